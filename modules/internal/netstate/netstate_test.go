// SPDX-License-Identifier: Apache-2.0

package netstate_test

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinkube/infra/modules/internal/netstate"
)

// inNamespace gives the test a network namespace of its own: a thread that is never given back, and that ends with it.
func inNamespace(t *testing.T) {
	t.Helper()

	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("network namespaces need root")
		}

		t.Skip("network namespaces need root")
	}

	runtime.LockOSThread()
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))
}

// sh runs commands in the test's namespace: a child starts in its parent thread's.
func sh(t *testing.T, script string) string {
	t.Helper()

	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	require.NoError(t, err, "%s\n%s", script, out)

	return string(out)
}

// uplink is a port with everything that has to be moved.
const uplink = `
ip link set lo up
ip link add eth0 type veth peer name cable
ip link set eth0 address 02:00:00:00:00:01
ip link set cable up
ip link set eth0 up
sysctl -qw net.ipv4.conf.eth0.rp_filter=2 net.ipv6.conf.eth0.accept_ra=0
ip addr add 10.1.0.11/24 brd + dev eth0
ip addr add 10.1.0.12/24 dev eth0
ip addr add 10.2.0.1/32 dev eth0 label eth0:vip
ip addr add 10.3.0.7/24 dev eth0 valid_lft 4000 preferred_lft 3000
ip -6 addr add fd00:1::11/64 dev eth0 nodad
ip addr add 10.4.0.11/24 dev eth0 noprefixroute
ip addr add 10.4.0.12/24 dev eth0 noprefixroute
ip route add 10.4.0.0/24 dev eth0 proto kernel scope link src 10.4.0.11 metric 100
ip route append 10.4.0.0/24 dev eth0 proto kernel scope link src 10.4.0.12 metric 100
ip route add 10.5.0.0/24 via 10.4.0.1
ip route add default via 10.1.0.1 dev eth0 src 10.1.0.11
ip route add 192.0.2.0/24 via 10.1.0.2 dev eth0 metric 50 mtu 1400
ip route add 192.0.2.128/25 via 10.1.0.2 dev eth0 mtu lock 1300 window 4096 initcwnd 20 initrwnd 30 quickack 1 hoplimit 33 congctl reno
ip route add 192.0.2.64/26 via 10.1.0.2 dev eth0 rto_min 30ms
ip -6 route add 2001:db8:1::/48 via fd00:1::2 dev eth0 initcwnd 21 hoplimit 44
ip route add default via 10.1.0.3 dev eth0 table 100
ip route add 198.51.100.0/24 dev eth0 scope link table 100
ip route add 203.0.113.9 via 172.16.0.1 dev eth0 onlink
ip -6 route add default via fd00:1::1 dev eth0 metric 1024
ip -6 route add 2001:db8::/32 via fe80::1 dev eth0
ip rule add from 10.1.0.12 table 100 priority 1000
ip rule add iif eth0 table 100 priority 1001
ip -6 rule add oif eth0 table 100 priority 1002
`

func read(t *testing.T) netstate.Net {
	t.Helper()

	state, err := netstate.Read()
	require.NoError(t, err)

	return state
}

func bridge() netstate.Link {
	return netstate.Link{Name: "br0", Kind: "bridge", MAC: "02:00:00:00:00:01", MTU: 1500, Up: true, Bridge: &netstate.Bridge{}}
}

// shown is what ip says, less what the kernel numbers and counts by itself.
func shown(t *testing.T) string {
	t.Helper()

	return sh(t, `ip -o addr show dev eth0 | sed 's/valid_lft [0-9]*sec preferred_lft [0-9]*sec//; s/[0-9]*: //; s/ nodad//' | grep -v ' fe80' | sort
ip -4 route show table all | grep -v 'table local' | sort
ip -6 route show table all | grep -v -e 'table local' -e multicast -e ' fe80::/64' -e '^fe80::/64' | sort; ip rule; ip -6 rule; ip -br link show | sed 's/@.*UP/ UP/' | grep -v -e sit0 -e tunl`)
}

func TestMovesEverythingAndBack(t *testing.T) {
	inNamespace(t)
	sh(t, uplink)

	before, asShown := read(t), shown(t)
	old := netstate.Capture(before, "br0", []string{"eth0"})
	want := netstate.Move(old, bridge(), []string{"eth0"})

	require.NoError(t, netstate.Execute(t.Context(), want))

	after := read(t)
	assert.Empty(t, netstate.Ops(after, want))
	assert.Equal(t, []string{"eth0"}, after.Ports("br0"))
	assert.Equal(t, "forwarding", after.Link("eth0").PortState)
	assert.Empty(t, after.AddrsOf("eth0"))
	assert.Empty(t, after.RoutesOf("eth0"))
	assert.Len(t, after.AddrsOf("br0"), 7)
	assert.Len(t, after.RoutesOf("br0"), len(before.RoutesOf("eth0")))
	assert.Len(t, after.RulesOf("br0"), 2)
	assert.Equal(t, "02:00:00:00:00:01", after.Link("br0").MAC)
	assert.Contains(t, sh(t, "ip route show 192.0.2.128/25"), "mtu lock 1300 window 4096 hoplimit 33 initcwnd 20 initrwnd 30 quickack 1 congctl reno")
	assert.Contains(t, sh(t, "ip -6 route show 2001:db8:1::/48"), "hoplimit 44 initcwnd 21")
	assert.NotContains(t, sh(t, "ip -6 addr show dev br0 scope global"), "tentative", "an address that is asked for first is deaf for a second")
	assert.Contains(t, sh(t, "ip route get 192.0.2.7"), "dev br0")
	assert.Contains(t, sh(t, "ip route get 8.8.8.8 from 10.1.0.12"), "via 10.1.0.3 dev br0")

	require.NoError(t, netstate.Execute(t.Context(), old))
	assert.Nil(t, read(t).Link("br0"))
	assert.Equal(t, asShown, shown(t))
	assert.Empty(t, netstate.Ops(read(t), old))
}

// TestReachesEitherEndFromAnywhere stops half-way, at random places, and goes on to one end or the other.
func TestReachesEitherEndFromAnywhere(t *testing.T) {
	inNamespace(t)
	sh(t, uplink)

	old := netstate.Capture(read(t), "br0", []string{"eth0"})
	want := netstate.Move(old, bridge(), []string{"eth0"})
	asShown := shown(t)
	random := rand.New(rand.NewPCG(1, 2))

	for range 25 {
		toward := []netstate.Target{old, want}[random.IntN(2)]
		ops := netstate.Ops(read(t), toward)

		for _, op := range ops[:random.IntN(len(ops)+1)] {
			_ = netstate.Do(op) // cut off here, and with it whatever was refused
		}

		end := []netstate.Target{old, want}[random.IntN(2)]
		require.NoError(t, netstate.Execute(t.Context(), end))
		require.Empty(t, netstate.Ops(read(t), end))
	}

	require.NoError(t, netstate.Execute(t.Context(), old))
	assert.Equal(t, asShown, shown(t))
}

func TestSaysWhatTheKernelRefuses(t *testing.T) {
	inNamespace(t)
	sh(t, uplink)

	want := netstate.Move(netstate.Capture(read(t), "br0", []string{"eth0"}), bridge(), []string{"eth0"})
	want.Routes = append(want.Routes, netstate.Route{Table: netstate.TableMain, Dst: "192.0.2.128/25", Type: 1, Dev: "br0", Via: "172.31.0.1"})

	err := netstate.Execute(t.Context(), want)
	require.ErrorContains(t, err, "add route 192.0.2.128/25 via 172.31.0.1 dev br0")
	assert.Equal(t, []string{"eth0"}, read(t).Ports("br0"), "the rest was done")
}

func TestOpsAreDeterministic(t *testing.T) {
	inNamespace(t)
	sh(t, uplink)

	state := read(t)
	want := netstate.Move(netstate.Capture(state, "br0", []string{"eth0"}), bridge(), []string{"eth0"})

	lines := func() string {
		var all []string
		for _, op := range netstate.Ops(state, want) {
			all = append(all, op.String())
		}

		return strings.Join(all, "\n")
	}

	first := lines()
	for range 20 {
		require.Equal(t, first, lines())
	}

	assert.Contains(t, first, `add address 10.1.0.11/24 on "br0"`)
	assert.Contains(t, first, `make link "eth0" a port of "br0"`)
}

// TestRulesBySourceAndTableAreGivenBack has a manager take rules away that it made for the port: they name no link.
func TestRulesBySourceAndTableAreGivenBack(t *testing.T) {
	inNamespace(t)
	sh(t, uplink+`
ip rule add to 198.51.100.0/24 table 100 priority 1003
ip rule add from 172.20.0.0/16 table 254 priority 1004`)

	asShown := shown(t)
	old := netstate.Capture(read(t), "br0", []string{"eth0"})
	require.Len(t, old.Rules, 4, "and not somebody else's, over the main table")

	want := netstate.Move(old, bridge(), []string{"eth0"})
	require.NoError(t, netstate.Execute(t.Context(), want))
	sh(t, `ip rule del priority 1000; ip rule del priority 1003; ip rule del priority 1004`)
	require.NoError(t, netstate.Execute(t.Context(), want))
	assert.Contains(t, sh(t, "ip rule"), "1000:\tfrom 10.1.0.12 lookup 100")

	sh(t, `ip rule del priority 1000; ip rule add from 172.20.0.0/16 table 254 priority 1004; ip rule add from 10.1.0.11 table 77 priority 1005`)
	require.NoError(t, netstate.Execute(t.Context(), old))
	assert.Contains(t, sh(t, "ip rule"), "1005:", "one that came later, and names no link, stays")

	sh(t, "ip rule del priority 1005")
	assert.Equal(t, asShown, shown(t))
}
