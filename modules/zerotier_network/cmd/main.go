// SPDX-License-Identifier: Apache-2.0

// The module as a stand-alone program, which stock Ansible runs from a library/ folder.
package main

import (
	"os"

	"github.com/thinkube/infra/modules/internal/ansible"
	zerotiernetwork "github.com/thinkube/infra/modules/zerotier_network"
)

func main() {
	os.Exit(ansible.Standalone(zerotiernetwork.Module, os.Args, os.Stdout, os.Stderr))
}
