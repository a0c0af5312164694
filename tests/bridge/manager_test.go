// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/lab"
)

// maxGap is how long a host may be away while its address moves. In a quiet lab it is some 20 ms.
const maxGap = time.Second

// manager is a way to have a host's network configured. Its script runs on a host that networkd manages.
type manager struct {
	name, script string
	files        string // one that must be there afterwards
	dhcp         bool
}

var managers = []manager{
	{
		name: "networkd", files: "/etc/systemd/network/05-thinkube-br0.network",
		script: `mkdir -p /etc/systemd/network/10-uplink.network.d
printf '[Network]\nAddress=ADDRESS2/24\n\n[Route]\nDestination=10.9.0.0/16\nGateway=GATEWAY\nTable=100\n\n[RoutingPolicyRule]\nFrom=ADDRESS2\nTable=100\nPriority=1000\n' >/etc/systemd/network/10-uplink.network.d/more.conf
networkctl reload; networkctl reconfigure eth0`,
	},
	{
		name: "networkd with DHCP", files: "/etc/systemd/network/05-thinkube-br0.network", dhcp: true,
		script: `printf '[Match]\nName=eth*\n\n[Network]\nDHCP=yes\nIPv6AcceptRA=no\n' >/etc/systemd/network/10-uplink.network
networkctl reload; networkctl reconfigure eth0`,
	},
	{
		name: "netplan", files: "/etc/netplan/90-thinkube-br0.yaml",
		script: `DEBIAN_FRONTEND=noninteractive apt-get -qq -y install netplan.io; mkdir -p /etc/netplan
cat >/etc/netplan/50-uplink.yaml <<E
# the uplink
network:
  version: 2
  ethernets:
    eth0:
      addresses: [ADDRESS/24, ADDRESS2/24]
      accept-ra: false
      routes: [{to: default, via: GATEWAY}]
E
chmod 600 /etc/netplan/50-uplink.yaml; rm /etc/systemd/network/10-uplink.network; netplan generate; networkctl reload`,
	},
	{
		name: "netplan with DHCP", files: "/etc/systemd/network/10-netplan-br0.network.d/thinkube.conf", dhcp: true,
		script: `DEBIAN_FRONTEND=noninteractive apt-get -qq -y install netplan.io; mkdir -p /etc/netplan
printf 'network: {version: 2, ethernets: {eth0: {dhcp4: true, accept-ra: false}}}\n' >/etc/netplan/50-uplink.yaml
chmod 600 /etc/netplan/50-uplink.yaml; rm /etc/systemd/network/10-uplink.network; netplan generate; networkctl reload`,
	},
	{
		name: "NetworkManager", files: "/etc/NetworkManager/system-connections/thinkube-br0.nmconnection",
		script: `DEBIAN_FRONTEND=noninteractive apt-get -qq -y install network-manager
f=/etc/NetworkManager/system-connections/uplink.nmconnection
printf '[connection]\nid=uplink\nuuid=11111111-2222-3333-4444-555555555555\ntype=ethernet\ninterface-name=eth0\n\n[ipv4]\nmethod=manual\naddress1=ADDRESS/24,GATEWAY\naddress2=ADDRESS2/24\n\n[ipv6]\nmethod=link-local\n' >$f
chmod 600 $f; rm /etc/systemd/network/10-uplink.network
systemctl disable --now systemd-networkd systemd-networkd.socket; rm -rf /run/systemd/netif; ip -4 addr flush dev eth0
systemctl enable NetworkManager; systemctl restart NetworkManager; nmcli connection up uplink`,
	},
	{
		name: "netplan over NetworkManager", files: "/etc/netplan/90-thinkube-br0.yaml",
		script: `DEBIAN_FRONTEND=noninteractive apt-get -qq -y install network-manager netplan.io; mkdir -p /etc/netplan
printf 'network: {version: 2, renderer: NetworkManager, ethernets: {eth0: {addresses: [ADDRESS/24, ADDRESS2/24], routes: [{to: default, via: GATEWAY}]}}}\n' >/etc/netplan/50-uplink.yaml
chmod 600 /etc/netplan/50-uplink.yaml; rm /etc/systemd/network/10-uplink.network
systemctl disable --now systemd-networkd systemd-networkd.socket; rm -rf /run/systemd/netif; ip -4 addr flush dev eth0
netplan generate; systemctl enable NetworkManager; systemctl restart NetworkManager; nmcli connection up netplan-eth0`,
	},
	{
		name: "ifupdown", files: "/etc/network/interfaces",
		script: `DEBIAN_FRONTEND=noninteractive apt-get -qq -y install ifupdown
cat >/etc/network/interfaces <<E
auto lo
iface lo inet loopback

# the uplink
auto eth0
iface eth0 inet static
    address ADDRESS/24
    gateway GATEWAY
    up ip addr add ADDRESS2/24 dev eth0
    up ip route add 10.9.0.0/16 via GATEWAY dev eth0
E
rm /etc/systemd/network/10-uplink.network
systemctl disable --now systemd-networkd systemd-networkd.socket; rm -rf /run/systemd/netif; ip -4 addr flush dev eth0
systemctl enable networking; systemctl restart networking`,
	},
}

// TestMovesWhatEachManagerConfigured moves the uplink and puts it back, in the files of everybody who may manage it, over a
// restart, and measures how long the host is away.
func TestMovesWhatEachManagerConfigured(t *testing.T) {
	s := needSite(t)

	for _, each := range managers {
		t.Run(strings.ReplaceAll(each.name, " ", "_"), func(t *testing.T) { s.moves(t, each) })
	}
}

func (s *site) moves(t *testing.T, m manager) {
	host := s.borrow(t)

	if m.dhcp {
		s.serveDHCP(t, host)
	}

	script := strings.NewReplacer("ADDRESS2", strings.Replace(host.Address().String(), ".94.", ".94.2", 1), "ADDRESS", host.Address().String(), "GATEWAY", "10.177.94.1").Replace(m.script)
	sh(t, host, "{ apt-get -qq update\n"+script+"\n} >/dev/null 2>&1 || true")
	eventually(t, 30*time.Second, "the host is reached after its manager was changed", func() bool { return atRest(t.Context(), host) })

	network := sh(t, host, shownNetwork)
	files := sh(t, host, shownFiles)

	moved := measure(t, host, func() {
		got := s.run(t, host, wanted(nil))
		require.False(t, got.Failed || got.Unreachable, got.Msg)
		require.True(t, got.Changed, "%+v", got)
	})

	sh(t, host, "test -s "+m.files)
	s.isBridged(t, host, network)

	require.NoError(t, host.Kill(t.Context()))
	require.NoError(t, host.Start(t.Context()))
	s.isBridged(t, host, network)

	back := measure(t, host, func() {
		got := s.run(t, host, wanted(map[string]any{"state": "absent"}))
		require.False(t, got.Failed || got.Unreachable, got.Msg)
		require.True(t, got.Changed)
	})

	assert.Equal(t, network, sh(t, host, shownNetwork))
	assert.Equal(t, files, sh(t, host, shownFiles), "byte for byte")
	t.Logf("away for %s on the way there, %s on the way back", moved, back)
	assert.Less(t, moved, maxGap)
	assert.Less(t, back, maxGap)
}

// shownNetwork is what the host's own tool says, without what it counts and numbers.
const shownNetwork = `ip -o -4 addr show scope global | sed 's/^[0-9]*: //; s/valid_lft.*//; s/  */ /g' | sort
ip route show table all | grep -v 'table local' | sort; ip rule`

// shownFiles is every file that has to do with the network, with owner, mode and content.
const shownFiles = `find /etc/systemd /etc/netplan /etc/network /etc/NetworkManager /var/lib/thinkube -type f -exec stat -c '%n %a %u %g' {} + -exec md5sum {} + 2>/dev/null | sort`

// isBridged tells that the bridge has what the port had, that the port has nothing any more, and that the module agrees.
func (s *site) isBridged(t *testing.T, host *lab.Host, network string) {
	t.Helper()

	want := strings.ReplaceAll(network, "eth0", "br0")

	for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && sh(t, host, shownNetwork) != want; {
		time.Sleep(100 * time.Millisecond)
	}

	require.Equal(t, want, sh(t, host, shownNetwork))

	got := s.run(t, host, wanted(nil))
	require.False(t, got.Failed || got.Unreachable, got.Msg)
	require.False(t, got.Changed, "%q", got.Steps)
}

// serveDHCP has another host give the host the address that it has.
func (s *site) serveDHCP(t *testing.T, host *lab.Host) {
	t.Helper()

	server := s.borrow(t)
	mac := strings.TrimSpace(sh(t, host, "cat /proc/net/dev >/dev/null; ip -br link show eth0 | awk '{print $3}'"))
	sh(t, server, fmt.Sprintf("systemd-run --quiet --unit=dhcp dnsmasq --keep-in-foreground --port=0 --interface=eth0 --bind-interfaces "+
		"--dhcp-range=10.177.94.100,10.177.94.150,255.255.255.0,10m --dhcp-option=3,10.177.94.1 --dhcp-leasefile=/run/leases --dhcp-host=%s,%s", mac, host.Address()))
}
