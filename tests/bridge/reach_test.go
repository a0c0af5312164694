// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// nobody is an inventory of hosts that cannot be reached.
const nobody = `all:
  vars: {ansible_host: 127.0.0.1, ansible_port: 1, network_bridge_name: br0, ansible_ssh_common_args: -F none -o UserKnownHostsFile=/dev/null}
  children:
    baremetal: {hosts: {a: {lan_ip: 10.0.0.1}, b: {lan_ip: 10.0.0.2}, c: {lan_ip: 10.0.0.3}}}
    management: {hosts: {c: }}
`

// TestOneThatCannotBeReachedEndsThePlay: a change may have cut it off, and the same may happen to the next.
func TestOneThatCannotBeReachedEndsThePlay(t *testing.T) {
	_, err := exec.LookPath("ansible-playbook")
	if err != nil && os.Getenv("CI") != "true" {
		t.Skip(err)
	}

	require.NoError(t, err)

	root, err := filepath.Abs("../..")
	require.NoError(t, err)

	inventory := filepath.Join(t.TempDir(), "inventory.yaml")
	require.NoError(t, os.WriteFile(inventory, []byte(nobody), 0o644))

	for _, name := range []string{"20-2_configure_network_bridge_apply", "19-2_rollback_network_bridge_apply"} {
		play := exec.CommandContext(t.Context(), "ansible-playbook", "--check", "-i", inventory, filepath.Join(root, "playbooks/10_baremetal_infra", name+".yaml"))
		play.Env = append(os.Environ(), "ANSIBLE_CONFIG="+filepath.Join(root, "ansible.cfg"), "ANSIBLE_NOCOLOR=1", "ANSIBLE_LOCAL_TEMP="+t.TempDir())

		output, err := play.CombinedOutput()
		require.Error(t, err, "%s", output)
		assert.Contains(t, string(output), "fatal: [a]: UNREACHABLE!", name)
		assert.NotContains(t, string(output), "[b]", name)
		assert.NotContains(t, string(output), "[c]", name)
	}
}
