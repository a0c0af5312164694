// SPDX-License-Identifier: Apache-2.0

// Bundle is all modules in one program per architecture: what the collection ships and its action plugin calls.
package main

import (
	"os"

	"github.com/thinkube/infra/modules/internal/ansible"
)

func main() {
	os.Exit(ansible.Bundle(runners(), os.Args, os.Stdin, os.Stdout, os.Stderr))
}
