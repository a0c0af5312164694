// SPDX-License-Identifier: Apache-2.0

// The module as a stand-alone program, which stock Ansible runs from a library/ folder.
package main

import (
	"os"

	"github.com/thinkube/infra/modules/internal/ansible"
	netbridge "github.com/thinkube/infra/modules/net_bridge"
)

func main() {
	os.Exit(ansible.Standalone(netbridge.Module, os.Args, os.Stdout, os.Stderr))
}
