// SPDX-License-Identifier: Apache-2.0

//go:build cgo

// The module as the collection carries it: a program beside the bundle, since it needs cgo and glibc and the bundle must not.
package main

import (
	"os"

	"github.com/thinkube/infra/modules/gpu_info/nvidia"
	"github.com/thinkube/infra/modules/internal/ansible"
)

func main() {
	os.Exit(ansible.Bundle([]ansible.Runner{nvidia.Module()}, os.Args, os.Stdin, os.Stdout, os.Stderr))
}
