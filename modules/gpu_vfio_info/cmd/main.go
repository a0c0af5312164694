// SPDX-License-Identifier: Apache-2.0

// The module as a stand-alone program, which stock Ansible runs from a library/ folder.
package main

import (
	"os"

	gpuvfioinfo "github.com/thinkube/infra/modules/gpu_vfio_info"
	"github.com/thinkube/infra/modules/internal/ansible"
)

func main() {
	os.Exit(ansible.Standalone(gpuvfioinfo.Module, os.Args, os.Stdout, os.Stderr))
}
