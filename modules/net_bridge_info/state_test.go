// SPDX-License-Identifier: Apache-2.0

package netbridgeinfo

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/armed"
	"github.com/thinkube/infra/modules/internal/netstate"
)

// made is a bridge as it was written down, and the kernel that has it.
func made() (*armed.Record, netstate.Net) {
	current := netstate.Net{
		Links: []netstate.Link{
			{Name: "br0", Kind: "bridge", MAC: "02:00:00:00:00:01", MTU: 1500, Up: true, Carrier: true, Bridge: &netstate.Bridge{STP: true, ForwardDelay: 400}},
			{Name: "eth0", MAC: "02:00:00:00:00:01", MTU: 1500, Up: true, Carrier: true, Master: "br0", PortState: "forwarding"},
			{Name: "tap7", Kind: "tun", MAC: "02:00:00:00:00:77", MTU: 1500, Up: true, Master: "br0", PortState: "disabled"},
		},
		Addrs: []netstate.Addr{
			{Link: "br0", Prefix: "192.168.1.10/24"}, {Link: "br0", Prefix: "192.168.1.99/24", Valid: 600}, {Link: "br0", Prefix: "fe80::1/64", Scope: 253},
		},
		Routes: []netstate.Route{
			{Table: netstate.TableMain, Type: 1, Dst: "default", Dev: "br0", Via: "192.168.1.1", Proto: 4},
			{Table: netstate.TableMain, Type: 1, Dst: "192.168.1.0/24", Dev: "br0", Proto: netstate.ProtoKernel, Src: "192.168.1.10"},
			{Table: 100, Type: 1, Dst: "10.0.0.0/8", Dev: "br0", Via: "192.168.1.3", Proto: 4},
		},
		Rules: []netstate.Rule{{Priority: 7, Iif: "br0", Table: 100}},
	}

	applied := netstate.Capture(current, "br0", []string{"eth0"})

	return &armed.Record{Ports: []string{"eth0"}, Applied: applied}, current
}

func TestBridgeIsShown(t *testing.T) {
	_, current := made()

	assert.Equal(t, Bridge{
		Name: "br0", MAC: "02:00:00:00:00:01", MTU: 1500, Up: true, Carrier: true, STP: true, ForwardDelay: 4,
		Ports: []Port{
			{Name: "eth0", MAC: "02:00:00:00:00:01", Carrier: true, State: "forwarding"},
			{Name: "tap7", MAC: "02:00:00:00:00:77", State: "disabled"},
		},
		Addresses: []string{"192.168.1.10/24", "192.168.1.99/24"}, Gateways: []string{"192.168.1.1"}, Answering: []string{},
		Routes: []string{"default via 192.168.1.1 dev br0", "10.0.0.0/8 via 192.168.1.3 dev br0 table 100"},
		Files:  []File{}, Differences: []string{},
	}, makeBridge(current, current.Links[0]))
}

func TestDifferencesAreNamed(t *testing.T) {
	for name, each := range map[string]struct {
		change func(*netstate.Net)
		want   []string
	}{
		"as it was made": {func(*netstate.Net) {}, []string{}},
		"an address went": {
			func(n *netstate.Net) { n.Addrs = n.Addrs[1:] }, []string{`missing: add address 192.168.1.10/24 on "br0"`},
		},
		"an address that a DHCP server gave went": {func(n *netstate.Net) { n.Addrs = n.Addrs[:1] }, []string{}},
		"an address came": {
			func(n *netstate.Net) { n.Addrs = append(n.Addrs, netstate.Addr{Link: "br0", Prefix: "10.9.9.9/8"}) }, []string{},
		},
		"the default route went": {func(n *netstate.Net) { n.Routes = n.Routes[1:] }, []string{"missing: add route default via 192.168.1.1 dev br0"}},
		"another gateway":        {func(n *netstate.Net) { n.Routes[0].Via = "192.168.1.2" }, []string{"missing: add route default via 192.168.1.1 dev br0"}},
		"a route of table 100 went": {
			func(n *netstate.Net) { n.Routes = n.Routes[:2] }, []string{"missing: add route 10.0.0.0/8 via 192.168.1.3 dev br0 table 100"},
		},
		"a rule went":      {func(n *netstate.Net) { n.Rules = nil }, []string{"missing: add rule 7: iif br0 table 100"}},
		"another MTU":      {func(n *netstate.Net) { n.Links[0].MTU = 1400 }, []string{`missing: set link "br0": mtu 1500`}},
		"another MAC":      {func(n *netstate.Net) { n.Links[0].MAC = "02:00:00:00:00:99" }, []string{`missing: set link "br0": mac 02:00:00:00:00:01`}},
		"no spanning tree": {func(n *netstate.Net) { n.Links[0].Bridge = &netstate.Bridge{} }, []string{`missing: set link "br0": stp true, forward delay 400, vlan filtering false`}},
		"down":             {func(n *netstate.Net) { n.Links[0].Up = false }, []string{`missing: set link "br0": up`}},
		"a port less":      {func(n *netstate.Net) { n.Links[1].Master = "" }, []string{`missing: make link "eth0" a port of "br0"`}},
	} {
		t.Run(name, func(t *testing.T) {
			record, current := made()
			each.change(&current)

			bridge := makeBridge(current, current.Links[0])
			require.NoError(t, compare(&bridge, current, record))
			assert.Equal(t, each.want, bridge.Differences)
			assert.Equal(t, len(each.want) == 0, *bridge.Agrees)
		})
	}
}
