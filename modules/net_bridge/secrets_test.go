// SPDX-License-Identifier: Apache-2.0

package netbridge

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/armed"
	"github.com/thinkube/infra/modules/internal/netconfig"
)

// TestDiffOfAnOpenChangeHidesSecrets looks at what --diff prints while a change waits: the record has whole files, of
// which nobody reads the originals then.
func TestDiffOfAnOpenChangeHidesSecrets(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("the module needs root")
		}

		t.Skip("the module needs root")
	}

	const passphrase = "correct horse battery"

	old := store
	store = armed.Store{Dir: filepath.Join(t.TempDir(), "net_bridge")}

	t.Cleanup(func() { store = old })

	file := netconfig.File{Path: "/etc/netplan/a.yaml", Content: "network:\n  wifis:\n    wlan0:\n      access-points:\n        home:\n          password: \"" + passphrase + "\"\n"}
	lost := netconfig.File{Path: "/etc/netplan/b.yaml", Content: "password: 'another passphrase'\n"}
	change := armed.Change{ID: "one", Bridge: "br0", Phase: armed.Applied, BootID: armed.BootID(), Timeout: 1}
	record := armed.Record{Source: netconfig.Config{Files: []netconfig.File{file}}, Files: []netconfig.Change{{Path: lost.Path, Before: &lost}}}

	require.NoError(t, os.MkdirAll(store.Dir, 0o700))

	for name, value := range map[string]any{"armed.json": change, "br0.json": record} {
		text, err := json.Marshal(value)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(store.Dir, name), text, 0o600))
	}

	task, err := json.Marshal(map[string]any{
		"module": "net_bridge", "key": base64.StdEncoding.EncodeToString(make([]byte, 32)), "answers": map[string]any{}, "resume": "",
		"args": map[string]any{"_ansible_diff": true, "_ansible_check_mode": true, "name": "br0", "state": "absent", "phase": "confirm"},
	})
	require.NoError(t, err)

	var out, failed bytes.Buffer

	require.Zero(t, ansible.Bundle([]ansible.Runner{Module}, []string{"thinkube", "exec"}, bytes.NewReader(task), &out, &failed), failed.String())
	assert.NotZero(t, strings.Count(out.String(), lost.Path), "the diff has the record")

	for _, secret := range []string{passphrase, "another passphrase"} {
		assert.Zero(t, strings.Count(out.String(), secret), secret)
	}
}
