// SPDX-License-Identifier: Apache-2.0

package lxdstoragepool_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/thinkube/infra/modules/internal/lxdtest"
)

const module = "lxd_storage_pool"

type dict = map[string]any

func TestDirPoolInACluster(t *testing.T) {
	cluster := lxdtest.StartCluster(t, 2)
	host := cluster.Hosts[0]
	args := dict{"name": "local", "driver": "dir", "description": "for all"}

	result := host.Converges(module, args)
	assert.Equal(t, []string{}, result.Plan)
	t.Log(result.Stdout)
}
