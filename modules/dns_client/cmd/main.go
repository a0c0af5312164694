// SPDX-License-Identifier: Apache-2.0

// The module as a stand-alone program, which stock Ansible runs from a library/ folder.
package main

import (
	"os"

	dnsclient "github.com/thinkube/infra/modules/dns_client"
	"github.com/thinkube/infra/modules/internal/ansible"
)

func main() {
	os.Exit(ansible.Standalone(dnsclient.Module, os.Args, os.Stdout, os.Stderr))
}
