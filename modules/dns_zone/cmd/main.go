// SPDX-License-Identifier: Apache-2.0

// The module as a stand-alone program, which stock Ansible runs from a library/ folder.
package main

import (
	"os"

	dnszone "github.com/thinkube/infra/modules/dns_zone"
	"github.com/thinkube/infra/modules/internal/ansible"
)

func main() {
	os.Exit(ansible.Standalone(dnszone.Module, os.Args, os.Stdout, os.Stderr))
}
