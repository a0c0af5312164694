// SPDX-License-Identifier: Apache-2.0

package lxdprofile_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/lxdtest"
)

func TestRealServer(t *testing.T) {
	host := lxdtest.Start(t, 1).Hosts[0]
	args := map[string]any{
		"name": "vm-base", "description": "common",
		"config": map[string]any{"limits.cpu": 2, "security.secureboot": false, "no.such.key": 1},
	}

	refused := host.Module("lxd_profile", args)
	assert.True(t, refused.Failed)
	assert.Contains(t, refused.Msg, `create profile "vm-base"`)
	assert.Contains(t, refused.Msg, "no.such.key")
	assert.Contains(t, refused.Raw["warnings"], `profile "vm-base": config key "no.such.key" is no instance option of LXD 4.0 to 6; is it misspelt?`)

	args["config"] = map[string]any{"limits.cpu": 2, "security.secureboot": false}

	result := host.Converges("lxd_profile", args)
	assert.Equal(t, []string{`create profile "vm-base" with 2 config keys and devices []`}, result.Plan)
	assert.Contains(t, host.LXC("profile", "show", "vm-base"), `limits.cpu: "2"`)

	args["config"] = map[string]any{"limits.cpu": 4}
	host.Converges("lxd_profile", args)
	assert.Contains(t, host.LXC("profile", "show", "vm-base"), "security.secureboot", "mode merge keeps what it does not name")

	args["mode"] = "replace"
	host.Converges("lxd_profile", args)
	assert.NotContains(t, host.LXC("profile", "show", "vm-base"), "security.secureboot")

	host.Converges("lxd_profile", map[string]any{"name": "vm-base", "state": "absent"})
	assert.NotContains(t, host.LXC("profile", "list", "--format=csv"), "vm-base")
}

func TestRollbackRestoresAForeignProfile(t *testing.T) {
	host := lxdtest.Start(t, 1).Hosts[0]
	before := host.LXC("profile", "show", "default")

	host.Converges("lxd_profile", map[string]any{"name": "default", "config": map[string]any{"limits.cpu": 2}})
	host.Converges("lxd_profile", map[string]any{"name": "default", "config": map[string]any{"limits.cpu": 4}})
	host.Converges("lxd_profile", map[string]any{"name": "default", "description": "mine", "state": "present"})

	host.LXC("profile", "set", "default", "user.admin", "important")

	host.Converges("lxd_profile", map[string]any{"name": "default", "state": "absent"})
	assert.Contains(t, host.LXC("profile", "show", "default"), "user.admin", "somebody else's key is kept")
	host.LXC("profile", "unset", "default", "user.admin")
	assert.Equal(t, before, host.LXC("profile", "show", "default"))
}

func TestForeignProfilesAreLeftAlone(t *testing.T) {
	host := lxdtest.Start(t, 1).Hosts[0]
	absent := map[string]any{"name": "p", "state": "absent"}

	// What LXD refused leaves no claim on an object that somebody else makes later.
	refused := host.Module("lxd_profile", map[string]any{"name": "p", "config": map[string]any{"no.such.key": 1}})
	require.True(t, refused.Failed)
	host.LXC("profile", "create", "p")

	left := host.Unchanged("lxd_profile", absent)
	assert.Contains(t, left.Raw["warnings"], `profile "p": was not made by this module and is left alone; force: true deletes it`)

	absent["force"] = true
	host.Converges("lxd_profile", absent)

	missing := host.Module("lxd_profile", map[string]any{"name": "p", "project": "nope", "state": "absent"})
	assert.Equal(t, "invalid_argument", missing.Code, "a missing project is no missing profile")
}
