// SPDX-License-Identifier: Apache-2.0

// Cmd fetches what the guests of package vm need and no package manager installs: Debian's newest kernel.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/thinkube/infra/tests/vm"
)

func main() {
	kernel, err := vm.OpenKernel(context.Background(), true, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("the guests' kernel is %s\n", kernel.Version)
}
