// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/thinkube/infra/modules/internal/ansible"
	lxdprofile "github.com/thinkube/infra/modules/lxd_profile"
)

// runners lists every module of the collection.
func runners() []ansible.Runner {
	return []ansible.Runner{
		lxdprofile.Module,
	}
}
