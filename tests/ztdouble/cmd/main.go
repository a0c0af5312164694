// SPDX-License-Identifier: Apache-2.0

// ztdouble is one node of the double.
package main

import (
	"fmt"
	"os"

	"github.com/thinkube/infra/tests/ztdouble/program"
)

func main() {
	err := program.Run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "ztdouble:", err)
		os.Exit(1)
	}
}
