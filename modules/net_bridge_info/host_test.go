// SPDX-License-Identifier: Apache-2.0

package netbridgeinfo_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/hosttest"
)

// bridge is the only one that was found.
func bridge(t *testing.T, got hosttest.Answer) map[string]any {
	t.Helper()
	require.False(t, got.Failed, got.Msg)
	require.False(t, got.Changed)

	found, ok := got.Values["bridges"].([]any)
	require.True(t, ok)
	require.Len(t, found, 1)

	return found[0].(map[string]any)
}

// TestReadsBridgesOfOthers reads what nobody made with net_bridge.
func TestReadsBridgesOfOthers(t *testing.T) {
	info := hosttest.Build(t, "./cmd")
	host := hosttest.New(t, hosttest.Uplink+`
ip link add br7 address 02:00:00:00:00:07 type bridge stp_state 1 forward_delay 400
ip link add p1 address 02:00:00:00:00:70 type veth peer name q1
ip link set p1 master br7 up
ip link set br7 up
ip addr add 10.7.0.1/24 dev br7
ip addr add fd00:7::1/64 dev br7 nodad
ip route add 10.8.0.0/16 dev br7 table 100
ip link add br8 type bridge
`)
	before := host.Shown(t)

	got := bridge(t, host.Run(t, info, map[string]any{"name": "br7"}))
	assert.Equal(t, map[string]any{
		"name": "br7", "mac": "02:00:00:00:00:07", "mtu": 1500.0, "up": true, "carrier": false, "stp": true, "forward_delay": 4.0, "vlan_filtering": false,
		"ports":     []any{map[string]any{"name": "p1", "mac": "02:00:00:00:00:70", "carrier": false, "state": "disabled", "managed": false}},
		"addresses": []any{"10.7.0.1/24", "fd00:7::1/64"}, "gateways": []any{}, "answering": []any{}, "routes": []any{"10.8.0.0/16 dev br7 table 100"},
		"managed": false, "manager": "", "files": []any{}, "agrees": nil, "differences": []any{},
	}, got)

	all := host.Run(t, info, map[string]any{})
	assert.Len(t, all.Values["bridges"], 2)
	assert.Nil(t, all.Values["armed"])

	none := host.Run(t, info, map[string]any{"name": "eth0"})
	assert.False(t, none.Failed, none.Msg)
	assert.Empty(t, none.Values["bridges"], "a link that is no bridge")

	host.Sh(t, "mkdir -p /var/lib/thinkube/net_bridge; echo '{' >/var/lib/thinkube/net_bridge/br7.json")
	broken := host.Run(t, info, map[string]any{"name": "br7"})
	assert.True(t, broken.Failed, "what cannot be read is not taken for nothing")
	assert.Contains(t, broken.Msg, `reading the record of bridge "br7"`)

	host.Sh(t, "rm -r /var/lib/thinkube")
	assert.Equal(t, before, host.Shown(t))
}

// TestReadsBridgesOfOurs reads what net_bridge made, and then what became of it.
func TestReadsBridgesOfOurs(t *testing.T) {
	info, module := hosttest.Build(t, "./cmd"), hosttest.Build(t, "github.com/thinkube/infra/modules/net_bridge/cmd")
	host := hosttest.New(t, hosttest.Uplink)
	look := func() map[string]any { return bridge(t, host.Run(t, info, map[string]any{"name": "br0"})) }
	change := func(args map[string]any) hosttest.Answer {
		args["name"] = "br0"
		got := host.Run(t, module, args)
		require.False(t, got.Failed, got.Msg)

		return got
	}
	underWay := func() map[string]any {
		armed, _ := host.Run(t, info, map[string]any{}).Values["armed"].(map[string]any)

		return armed
	}

	change(map[string]any{"phase": "stage", "ticket": "t0"})
	assert.Equal(t, []any{"t0", "staged", false}, []any{underWay()["ticket"], underWay()["phase"], underWay()["guarded"]})

	change(map[string]any{"ticket": "t1"})
	assert.Equal(t, []any{"t1", "applied", true}, []any{underWay()["ticket"], underWay()["phase"], underWay()["guarded"]})

	change(map[string]any{"phase": "confirm", "ticket": "t1"})
	assert.Nil(t, underWay())

	got := bridge(t, host.Run(t, info, map[string]any{"name": "br0", "probe": true}))
	assert.Equal(t, []any{true, "ifupdown", true}, []any{got["managed"], got["manager"], got["agrees"]}, got["differences"])
	assert.Equal(t, []any{"10.1.0.11/24", "10.1.0.12/24", "fd00:1::11/64"}, got["addresses"])
	assert.Equal(t, []any{"10.1.0.1", "fd00:1::1"}, got["gateways"])
	assert.Equal(t, []any{"10.1.0.1", "fd00:1::1"}, got["answering"])
	assert.Contains(t, got["routes"], "10.9.0.0/16 via 10.1.0.1 dev br0 table 100")
	assert.Equal(t, []any{map[string]any{"path": "/etc/network/interfaces", "owner": "ifupdown"}}, got["files"])
	assert.Equal(t, []any{map[string]any{"name": "eth0", "mac": "02:00:00:00:00:01", "carrier": true, "state": "forwarding", "managed": true}}, got["ports"])

	host.Sh(t, "ip link add tap0 type veth peer name vm; ip link set tap0 master br0; ip addr add 10.1.0.50/24 dev br0")

	got = look()
	assert.Equal(t, true, got["agrees"], "what others added is theirs: %v", got["differences"])
	assert.Len(t, got["ports"], 2)

	for _, each := range []struct{ harm, heal, says string }{
		{"ip route del default", "ip route add default via 10.1.0.1 dev br0 onlink", "missing: add route default via 10.1.0.1 dev br0"},
		{"ip addr del fd00:1::11/64 dev br0", "ip addr add fd00:1::11/64 dev br0 nodad; ip -6 route add default via fd00:1::1 dev br0 2>/dev/null || true", `missing: add address fd00:1::11/64 on "br0"`},
		{"ip link set br0 mtu 1400", "ip link set br0 mtu 1500", `missing: set link "br0": mtu 1500`},
		{"echo '# more' >>/etc/network/interfaces", "sed -i '$d' /etc/network/interfaces", `file "/etc/network/interfaces" is not as it was written`},
		{"chmod 666 /etc/network/interfaces", "chmod 640 /etc/network/interfaces", `file "/etc/network/interfaces" is not as it was written`},
		{"mv /etc/network/interfaces /run/", "mv /run/interfaces /etc/network/", `file "/etc/network/interfaces" is not as it was written`},
		{"ip link set eth0 nomaster", "ip link set eth0 master br0", `missing: make link "eth0" a port of "br0"`},
	} {
		host.Sh(t, each.harm)

		got := look()
		assert.Equal(t, false, got["agrees"], each.harm)
		assert.Contains(t, strings.Trim(strings.Join(texts(got["differences"]), "\n"), "[]"), each.says)

		host.Sh(t, each.heal)
		require.Equal(t, true, look()["agrees"], "%s: %v", each.heal, look()["differences"])
	}

	host.Sh(t, "ip link del tap0; ip addr del 10.1.0.50/24 dev br0")
	change(map[string]any{"state": "absent", "ticket": "t2", "confirm_timeout": "10s"})
	change(map[string]any{"phase": "rollback", "ticket": "t2"})
	assert.Equal(t, true, look()["agrees"])

	change(map[string]any{"state": "absent", "confirm_timeout": "0"})
	assert.Empty(t, host.Run(t, info, map[string]any{}).Values["bridges"])
}

func texts(list any) []string {
	var all []string

	for _, one := range list.([]any) {
		all = append(all, one.(string))
	}

	return all
}
