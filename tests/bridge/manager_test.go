// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"bytes"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/lab"
)

// maxGap is how long a host may be away while its address moves. In a quiet lab it is some 20 ms.
const maxGap = time.Second

// busyGap is how long it may be in a single try while other hosts boot and install packages on the same processors.
const busyGap = 5 * time.Second

// manager is a way to have a host's network configured. Its script runs on a host that networkd manages.
type manager struct {
	name, script string
	files        string // one that must be there afterwards
	spoil        string // what makes that somebody else's file is refused, by the manager's own program or in its stead
	says         string
	golden       string // which of the renderer's golden files are its own
	judge        string // what has it read them, in the folder of each
	dhcp, ra     bool
}

var managers = []manager{
	{
		name: "networkd", files: "/etc/systemd/network/05-thinkube-br0.network",
		script: `mkdir -p /etc/systemd/network/10-uplink.network.d
printf '[Network]\nAddress=ADDRESS2/24\nAddress=ADDRESS6/64\nGateway=GATEWAY6\n\n[Route]\nDestination=10.9.0.0/16\nGateway=GATEWAY\nTable=100\n\n[RoutingPolicyRule]\nFrom=ADDRESS2\nTable=100\nPriority=1000\n' >/etc/systemd/network/10-uplink.network.d/more.conf
networkctl reload; networkctl reconfigure eth0`,
		spoil: `printf '[Match]\nName=br*\n' >/etc/systemd/network/01-bridges.network`,
		says:  `networkd would take file "/etc/systemd/network/01-bridges.network" for link "br0"`,
	},
	{
		name: "networkd with DHCP and router advertisements", files: "/etc/systemd/network/05-thinkube-br0.network", dhcp: true, ra: true,
		script: `printf '[Match]\nName=eth*\n\n[Network]\nDHCP=ipv4\nIPv6AcceptRA=yes\n' >/etc/systemd/network/10-uplink.network
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
      addresses: [ADDRESS/24, ADDRESS2/24, "ADDRESS6/64"]
      accept-ra: false
      routes: [{to: default, via: GATEWAY}, {to: "::/0", via: "GATEWAY6"}]
E
chmod 600 /etc/netplan/50-uplink.yaml; rm /etc/systemd/network/10-uplink.network; netplan generate; networkctl reload`,
		spoil: `printf 'network: {ethernets: {eth7: {addresses: [10.0.0.500/24]}}}\n' >/etc/netplan/70-more.yaml; chmod 600 /etc/netplan/70-more.yaml`,
		says:  "netplan generate",

		golden: "netplan_*", judge: "chmod -R go= . && netplan generate --root-dir $PWD",
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
printf '[connection]\nid=uplink\nuuid=11111111-2222-3333-4444-555555555555\ntype=ethernet\ninterface-name=eth0\n\n[ipv4]\nmethod=manual\naddress1=ADDRESS/24,GATEWAY\naddress2=ADDRESS2/24\n\n[ipv6]\nmethod=manual\naddress1=ADDRESS6/64,GATEWAY6\n' >$f
chmod 600 $f; rm /etc/systemd/network/10-uplink.network
systemctl disable --now systemd-networkd systemd-networkd.socket; rm -rf /run/systemd/netif; ip -4 addr flush dev eth0
systemctl enable NetworkManager; systemctl restart NetworkManager; nmcli connection up uplink`,
		spoil: `echo 'route1=10.0.0.0/88' >>/etc/NetworkManager/system-connections/uplink.nmconnection`,
		says:  `NetworkManager understands 0 of ["10.0.0.0/88"]`,

		golden: "networkmanager_*", judge: `for f in etc/NetworkManager/system-connections/thinkube-*; do nmcli --offline connection modify connection.id x <$f >/dev/null || exit 1; done`,
	},
	{
		name: "netplan over NetworkManager, with router advertisements", files: "/etc/netplan/90-thinkube-br0.yaml", ra: true,
		script: `DEBIAN_FRONTEND=noninteractive apt-get -qq -y install network-manager netplan.io; mkdir -p /etc/netplan
printf 'network: {version: 2, renderer: NetworkManager, ethernets: {eth0: {dhcp6: true, addresses: [ADDRESS/24, ADDRESS2/24], routes: [{to: default, via: GATEWAY}]}}}\n' >/etc/netplan/50-uplink.yaml
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
iface eth0 inet6 static
    address ADDRESS6/64
    gateway GATEWAY6
    accept_ra 0
E
rm /etc/systemd/network/10-uplink.network
systemctl disable --now systemd-networkd systemd-networkd.socket; rm -rf /run/systemd/netif; ip -4 addr flush dev eth0
systemctl enable networking; systemctl restart networking`,
		spoil: `sed -i 's/^iface lo inet loopback/iface lo inet looping/' /etc/network/interfaces`,
		says:  "ifquery br0",

		golden: "ifupdown_*", judge: "ifquery --interfaces=$PWD/etc/network/interfaces br0",
	},
}

// TestMovesWhatEachManagerConfigured moves the uplink and puts it back, in the files of everybody who may manage it, over a
// restart, and measures how long the host is away. What the manager would not take is refused before.
func TestMovesWhatEachManagerConfigured(t *testing.T) {
	t.Parallel()

	s := needSite(t)

	for _, each := range managers {
		t.Run(strings.ReplaceAll(each.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			s.moves(t, each)
		})
	}
}

func (s *site) moves(t *testing.T, m manager) {
	hosts := s.borrowSome(t, map[bool]int{false: 1, true: 2}[m.dhcp])
	host := hosts[0]

	if m.dhcp {
		serveDHCP(t, hosts[1], host)
	}

	if m.ra {
		advertise(t, host)
	}

	m.takesOver(t, host, "")

	network := sh(t, host, shownNetwork)
	files := sh(t, host, shownFiles)

	if m.judge != "" {
		s.understandsGolden(t, host, m)
	}

	if m.spoil != "" {
		s.refuses(t, host, m)
		require.Equal(t, network, sh(t, host, shownNetwork))
		require.Equal(t, files, sh(t, host, shownFiles))
	}

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

	isShown(t, host, network)
	assert.Equal(t, files, sh(t, host, shownFiles), "byte for byte")
	t.Logf("away for %s on the way there, %s on the way back", moved, back)
	assert.Less(t, moved, busyGap)
	assert.Less(t, back, busyGap)
}

// takesOver gives the host to the manager, and does more then.
func (m manager) takesOver(t *testing.T, host *lab.Host, more string) {
	t.Helper()

	address := host.Address().String()
	script := strings.NewReplacer("ADDRESS2", strings.Replace(address, ".94.", ".94.2", 1), "ADDRESS6", address6(host), "ADDRESS", address,
		"GATEWAY6", gateway6, "GATEWAY", gateway).Replace(m.script)
	sh(t, host, "{ apt-get -qq update\n"+script+"\n"+more+"\n} >/dev/null 2>&1 || true")
	eventually(t, 30*time.Second, "the host is reached after its manager was changed", func() bool { return atRest(t.Context(), host) })
	eventually(t, 30*time.Second, "the host has what its manager was told", func() bool {
		return m.dhcp && !m.ra || strings.Contains(sh(t, host, "ip -6 route show default"), "default") && strings.Contains(sh(t, host, "ip -6 addr show scope global -tentative"), "global")
	})
}

// understandsGolden has the real program read what the renderers' own tests compare with.
func (s *site) understandsGolden(t *testing.T, host *lab.Host, m manager) {
	t.Helper()

	folder := filepath.Join(s.root, "modules/internal/netconfig/testdata/render")
	found, err := filepath.Glob(filepath.Join(folder, m.golden, "after"))
	require.NoError(t, err)
	require.Greater(t, len(found), 5)

	pack := exec.Command("tar", "-c", "-C", folder)
	for _, one := range found {
		pack.Args = append(pack.Args, strings.TrimPrefix(one, folder+"/"))
	}

	text, err := pack.Output()
	require.NoError(t, err)

	_, err = host.RunInput(t.Context(), bytes.NewReader(text), "mkdir /run/golden; tar -x -C /run/golden")
	require.NoError(t, err)
	sh(t, host, `for d in /run/golden/*/after; do cd $d; out=$( { `+m.judge+`; } 2>&1 ) || { echo "$d: $out" >&2; exit 1; }; done; cd /; rm -r /run/golden`)
}

// refuses tells that files that the manager would not take, or not as they are meant, are never written.
func (s *site) refuses(t *testing.T, host *lab.Host, m manager) {
	t.Helper()

	const aside = "/run/before-it-was-spoiled"

	sh(t, host, "mkdir "+aside+"; for d in systemd/network netplan NetworkManager network; do [ ! -e /etc/$d ] || { mkdir -p "+aside+"/$d; cp -a /etc/$d/. "+aside+"/$d/; }; done\n"+m.spoil)
	spoiled := sh(t, host, shownFiles)

	got := s.run(t, host, wanted(nil))
	assert.True(t, got.Failed)
	assert.Equal(t, "invalid_config", got.Failure.Code)
	assert.Contains(t, got.Msg, m.says)
	assert.Equal(t, spoiled, sh(t, host, shownFiles))

	sh(t, host, "for d in systemd/network netplan NetworkManager network; do [ ! -e "+aside+"/$d ] || { rm -rf /etc/$d; cp -a "+aside+"/$d /etc/$d; }; done; rm -r "+aside)
}

// address6 is a static address that belongs to the host alone.
func address6(host *lab.Host) string {
	_, last, _ := strings.Cut(host.Address().String(), ".94.")

	return "fd00:94::" + last
}

// shownNetwork is what the host's own tool says, without what it counts and numbers, and what the kernel makes by itself.
const shownNetwork = `ip -o addr show scope global | sed 's/^[0-9]*: //; s/valid_lft.*//; s/ nodad//; s/  */ /g' | sort
{ ip route show table all; ip -6 route show table all; } | grep -v -e 'table local' -e multicast -e 'fe80::/64' -e ff00::/8 -e 'dev lo ' |
sed 's/ expires [0-9]*sec//; s/ hoplimit 64//; s/  */ /g' | sort; ip rule; ip -6 rule`

// shownFiles is every file that has to do with the network, with owner, mode and content.
const shownFiles = `find /etc/systemd /etc/netplan /etc/network /etc/NetworkManager /var/lib/thinkube -type f -exec stat -c '%n %a %u %g' {} + -exec md5sum {} + 2>/dev/null | sort`

// isShown waits until the host's network is as it should be.
func isShown(t *testing.T, host *lab.Host, want string) {
	t.Helper()

	for end := time.Now().Add(15 * time.Second); time.Now().Before(end) && sh(t, host, shownNetwork) != want; {
		time.Sleep(200 * time.Millisecond)
	}

	require.Equal(t, want, sh(t, host, shownNetwork))
}

// isBridged tells that the bridge has what the port had, that the port has nothing any more, and that the module agrees.
func (s *site) isBridged(t *testing.T, host *lab.Host, network string) {
	t.Helper()
	isShown(t, host, strings.ReplaceAll(network, "eth0", "br0"))

	got := s.run(t, host, wanted(nil))
	require.False(t, got.Failed || got.Unreachable, got.Msg)
	require.False(t, got.Changed, "%q", got.Steps)
}

// serveDHCP has a host give another the address that it has.
func serveDHCP(t *testing.T, server, host *lab.Host) {
	t.Helper()

	mac := strings.TrimSpace(sh(t, host, "ip -br link show eth0 | awk '{print $3}'"))
	sh(t, server, fmt.Sprintf("systemd-run --quiet --unit=dhcp dnsmasq --keep-in-foreground --port=0 --interface=eth0 --bind-interfaces "+
		"--dhcp-range=10.177.94.100,static,255.255.255.0,10m --dhcp-option=3,%s --dhcp-leasefile=/run/leases --dhcp-host=%s,%s", gateway, mac, host.Address()))
}

// TestIPv6Modes goes through the ways to have IPv6 on a bridge whose port had it from a router.
func TestIPv6Modes(t *testing.T) {
	t.Parallel()

	s := needSite(t)
	host := s.borrow(t)
	advertise(t, host)
	sh(t, host, "sed -i s/IPv6AcceptRA=no/IPv6AcceptRA=yes/ /etc/systemd/network/10-uplink.network; networkctl reload; networkctl reconfigure eth0")

	const (
		own      = `dev=$(ip -o route show default | sed 's/.* dev \([^ ]*\).*/\1/'); ip -o -6 addr show dev $dev -tentative | sed 's/.*inet6 \([^ ]*\).*/\1/' | sort`
		default6 = "ip -6 route show default | wc -l"
	)

	has := func(addresses, routes int, linkLocal bool) bool {
		got := sh(t, host, own)

		return strings.Count(got, "fd00:") == addresses && strings.Contains(got, "fe80:") == linkLocal && strings.TrimSpace(sh(t, host, default6)) == fmt.Sprint(routes)
	}
	eventually(t, 20*time.Second, "the port has an address by an advertisement", func() bool { return has(1, 1, true) })

	network, address := sh(t, host, shownNetwork), sh(t, host, own)

	for _, each := range []struct {
		mode              string
		more              map[string]any
		addresses, routes int
		linkLocal         bool
	}{
		{mode: "inherit", addresses: 1, routes: 1, linkLocal: true},
		{mode: "static", addresses: 0, routes: 0, linkLocal: true},
		{mode: "off", addresses: 0, routes: 0, linkLocal: false},
		{mode: "ra", addresses: 1, routes: 1, linkLocal: true},
		{
			mode: "static", addresses: 1, routes: 1, linkLocal: true,
			more: map[string]any{"addresses": []string{host.Address().String() + "/24", address6(host) + "/64"}, "gateway4": gateway, "gateway6": gateway6},
		},
	} {
		args := wanted(map[string]any{"ipv6": each.mode})
		maps.Copy(args, each.more)

		got := s.run(t, host, args)
		require.False(t, got.Failed || got.Unreachable, "%s: %s", each.mode, got.Msg)
		require.True(t, got.Changed, each.mode)
		eventually(t, 20*time.Second, each.mode+": IPv6 is as asked for", func() bool { return has(each.addresses, each.routes, each.linkLocal) })

		if each.mode == "ra" || each.mode == "inherit" {
			assert.Equal(t, address, sh(t, host, own), "the MAC makes the address, and stays")
		}

		got = s.run(t, host, args)
		require.False(t, got.Failed || got.Unreachable, "%s: %s", each.mode, got.Msg)
		require.False(t, got.Changed, "%s: %q", each.mode, got.Steps)
	}

	got := s.run(t, host, wanted(map[string]any{"state": "absent"}))
	require.False(t, got.Failed || got.Unreachable, got.Msg)
	isShown(t, host, network)
}
