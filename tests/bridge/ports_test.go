// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// secondPort makes a link that leads nowhere.
const secondPort = "ip link add eth1 address 02:00:00:00:94:01 type veth peer name far1; ip link set far1 up; "

// secondConfigured are ways to have a second port configured beside the first, by the manager's name: by a file of its own, or
// by nobody.
var secondConfigured = map[string]string{
	"networkd":       `printf '[Match]\nName=eth1\n\n[Link]\nMTUBytes=1400\n\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n' >/etc/systemd/network/20-second.network; networkctl reload`,
	"netplan":        "",
	"NetworkManager": `f=/etc/NetworkManager/system-connections/second.nmconnection; printf '[connection]\nid=second\nuuid=2-2-2\ntype=ethernet\ninterface-name=eth1\n\n[ipv4]\nmethod=disabled\n\n[ipv6]\nmethod=disabled\n' >$f; chmod 600 $f; nmcli connection reload; nmcli connection up second`,
}

// TestSeveralPorts puts two links into the bridge, refuses to change them, and gives both back.
func TestSeveralPorts(t *testing.T) {
	t.Parallel()

	s := needSite(t)

	for _, m := range managers {
		second, has := secondConfigured[m.name]
		if !has {
			continue
		}

		t.Run(m.name, func(t *testing.T) {
			t.Parallel()

			host := s.borrow(t)
			m.takesOver(t, host, secondPort+second)

			both := map[string]any{"ports": []string{"eth0", "eth1"}, "confirm_timeout": "1m"}
			shownPorts := `ip -o link show | sed -n 's/^[0-9]*: \(eth[01]\)@.* mtu \([0-9]*\) .* master \([^ ]*\) .*/\1 \2 \3/p'`
			network, files := sh(t, host, shownNetwork), sh(t, host, shownFiles)
			require.Empty(t, sh(t, host, shownPorts))

			got := s.run(t, host, wanted(both))
			require.False(t, got.Failed || got.Unreachable, got.Msg)
			require.True(t, got.Changed)
			assert.Equal(t, 2, strings.Count(sh(t, host, shownPorts), " br0\n"), sh(t, host, shownPorts))

			got = s.run(t, host, wanted(both))
			require.False(t, got.Failed || got.Unreachable, got.Msg)
			require.False(t, got.Changed, "%q", got.Steps)

			got = s.run(t, host, wanted(map[string]any{"ports": []string{"eth0"}}))
			require.True(t, got.Failed)
			assert.Contains(t, got.Msg, "its ports cannot be changed")

			got = s.run(t, host, wanted(map[string]any{"state": "absent", "confirm_timeout": "1m"}))
			require.False(t, got.Failed || got.Unreachable, got.Msg)
			require.True(t, got.Changed)
			assert.Empty(t, sh(t, host, shownPorts))
			isShown(t, host, network)
			assert.Equal(t, files, sh(t, host, shownFiles), "byte for byte")
		})
	}
}
