// SPDX-License-Identifier: Apache-2.0

// The module as a stand-alone program, which stock Ansible runs from a library/ folder.
package main

import (
	"os"

	"github.com/thinkube/infra/modules/internal/ansible"
	kernelcmdline "github.com/thinkube/infra/modules/kernel_cmdline"
)

func main() {
	os.Exit(ansible.Standalone(kernelcmdline.Module, os.Args, os.Stdout, os.Stderr))
}
