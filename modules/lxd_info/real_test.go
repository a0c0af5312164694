// SPDX-License-Identifier: Apache-2.0

package lxdinfo_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/lxdtest"
)

func TestRealServer(t *testing.T) {
	host := lxdtest.Start(t, 1).Hosts[0]
	host.LXC("storage", "create", "local", "dir")
	host.LXC("network", "create", "lxdbr0", "ipv4.address=10.99.0.1/24", "ipv6.address=none")

	facts := host.Unchanged("lxd_info", nil).Raw
	assert.Equal(t, true, facts["installed"])
	assert.Equal(t, "LXD", facts["server"].(map[string]any)["product"])
	assert.Equal(t, false, facts["cluster"].(map[string]any)["enabled"])

	pool := facts["storage_pools"].([]any)[0].(map[string]any)
	assert.Equal(t, "dir", pool["driver"])
	assert.Equal(t, true, pool["members"].(map[string]any)["n1"].(map[string]any)["usable"])
	assert.NotEqual(t, 0.0, pool["members"].(map[string]any)["n1"].(map[string]any)["space_total"])

	network := facts["networks"].([]any)[0].(map[string]any)["members"].(map[string]any)["n1"].(map[string]any)
	assert.Equal(t, []any{"10.99.0.1/24"}, network["addresses"])
	assert.Equal(t, true, network["usable"])

	host.Run("ip", "link", "set", "lxdbr0", "down")

	facts = host.OK("lxd_info", map[string]any{"gather": "networks"}).Raw
	network = facts["networks"].([]any)[0].(map[string]any)["members"].(map[string]any)["n1"].(map[string]any)
	assert.Equal(t, false, network["usable"])
	assert.Equal(t, "the interface is down", network["error"])
	assert.Nil(t, facts["profiles"], "what was not asked for is not read")
}

func TestMissingServer(t *testing.T) {
	host := lxdtest.Start(t, 1).Hosts[0]
	host.Run("mount", "-t", "tmpfs", "tmpfs", "/var/lib") // nothing of LXD is left to see

	missing := host.Module("lxd_info", nil)
	require.True(t, missing.Failed)
	assert.Equal(t, "not_installed", missing.Code)
	assert.Contains(t, missing.Hint, "apt install lxd")

	facts := host.OK("lxd_info", map[string]any{"missing_ok": true}).Raw
	assert.Equal(t, false, facts["installed"])
}
