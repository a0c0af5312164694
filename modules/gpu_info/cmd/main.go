// SPDX-License-Identifier: Apache-2.0

//go:build cgo

// The module as a stand-alone program, which stock Ansible runs from a library/ folder.
package main

import (
	"os"

	"github.com/thinkube/infra/modules/gpu_info/nvidia"
	"github.com/thinkube/infra/modules/internal/ansible"
)

func main() {
	os.Exit(ansible.Standalone(nvidia.Module(), os.Args, os.Stdout, os.Stderr))
}
