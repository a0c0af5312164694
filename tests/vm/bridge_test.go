// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What the tests of net_bridge in containers cannot have, for the kernel they share lacks it: 802.1Q links, bonds, bridges
// that filter VLANs. The guest is the host, with eth0 and eth1. On the same wire is eth2, in a network namespace that is the
// other end: a gateway in each of the VLANs, and the controller, who reaches the host by SSH over the address that moves.

const (
	// confirmTimeout is what changes with a fault have; promise is when after it the host must be back. It has to be long
	// enough for an emulated processor to make a change at all, on a machine that does other things beside.
	confirmTimeout = 20 * time.Second
	promise        = confirmTimeout + 10*time.Second
	// patient is the confirm_timeout of changes that are to arrive.
	patient = 90 * time.Second
)

// site is a booted host and its surroundings.
type site struct {
	guest *Guest
	addr  string // the host's, where the controller reaches it
}

// lan makes the other end.
const lan = `ip netns add lan
ip link set eth2 netns lan
printf '%s\n' 'link set lo up' 'link set eth2 up' 'link add link eth2 name v10 type vlan id 10' 'link add link eth2 name v20 type vlan id 20' \
  'link set v10 up' 'link set v20 up' 'addr add 10.77.1.1/24 dev eth2' 'addr add 10.77.10.1/24 dev v10' 'addr add 10.77.20.1/24 dev v20' |
  ip netns exec lan ip -batch -`

// tag has the other end's gateway of VLAN 10 in another VLAN.
const tag = `ip -n lan link del v10; ip -n lan link add link eth2 name v10 type vlan id %d; ip -n lan link set v10 up; ip -n lan addr add 10.77.10.1/24 dev v10`

// sshConfig is the controller's. What is left of key exchanges is what an emulated processor has done in half a second.
const sshConfig = `StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
ConnectTimeout 3
BatchMode yes
KexAlgorithms curve25519-sha256
`

func bootSite(t *testing.T) *site {
	t.Helper()
	disk := Debian(t)
	keys := t.TempDir()
	for _, name := range []string{"user", "host"} {
		_, err := run(t.Context(), keys, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name)
		require.NoError(t, err)
	}
	var nics []string
	for i := range 3 {
		nics = append(nics, "-netdev", fmt.Sprintf("hubport,id=net%d,hubid=0", i),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=net%d,mac=52:54:00:77:00:0%d,romfile=,addr=%d.0", i, i, i+2))
	}
	program := Build(t, "github.com/thinkube/infra/modules/bundle", "-tags", "faultinject")
	s := &site{guest: Boot(t, Machine{
		Root: disk, Keep: true, Args: nics,
		Modules: []string{"virtio_net", "8021q", "bridge", "bonding max_bonds=0", "autofs4"},
		Files: map[string]File{
			"/usr/local/bin/thinkube":       {From: program, Mode: 0o755},
			"/root/.ssh/authorized_keys":    {From: filepath.Join(keys, "user.pub"), Mode: 0o600},
			"/root/.ssh/id_ed25519":         {From: filepath.Join(keys, "user"), Mode: 0o600},
			"/etc/ssh/ssh_host_ed25519_key": {From: filepath.Join(keys, "host"), Mode: 0o600},
			"/etc/ssh/ssh_config.d/vm.conf": {Data: []byte(sshConfig)},
			// A session of systemd's for each connection takes an emulated processor seconds.
			"/etc/ssh/sshd_config.d/vm.conf":      {Data: []byte("UsePAM no\n")},
			"/etc/hostname":                       {Data: []byte("guest\n")},
			"/etc/machine-id":                     {Data: []byte("0123456789abcdef0123456789abcdef\n")},
			"/etc/systemd/network/90-lan.network": {Data: []byte("[Match]\nName=eth2\n\n[Link]\nUnmanaged=yes\n")},
		},
	})}
	s.sh(t, lan)
	return s
}

func (s *site) until(t *testing.T, limit time.Duration, what string, check func() bool) {
	t.Helper()
	require.NoError(t, eventually(t.Context(), limit, what, check))
}

func (s *site) sh(t *testing.T, script string) string {
	t.Helper()
	out, err := s.guest.Sh(t.Context(), script)
	require.NoError(t, err)
	return out
}

// ssh runs something on the host as the controller does: over a new connection, from the other end.
func (s *site) ssh(ctx context.Context, stdin []byte, command string, options ...string) (Result, error) {
	return s.guest.RunInput(ctx, stdin, append(append([]string{"ip", "netns", "exec", "lan", "ssh"}, options...), "root@"+s.addr, command)...)
}

func (s *site) reached(ctx context.Context) bool {
	got, err := s.ssh(ctx, nil, "echo here")
	return err == nil && got.Stdout == "here\n"
}

// bridgeAnswer is what a task gives.
type bridgeAnswer struct {
	Changed bool     `json:"changed"`
	Failed  bool     `json:"failed"`
	Msg     string   `json:"msg"`
	Steps   []string `json:"steps"`
	Failure struct {
		Code string `json:"code"`
	} `json:"failure"`
	Bridges []struct {
		VLANFiltering bool     `json:"vlan_filtering"`
		Agrees        bool     `json:"agrees"`
		Differences   []string `json:"differences"`
		Answering     []string `json:"answering"`
	} `json:"bridges"`

	Ask *struct {
		ID        string  `json:"id"`
		Reconnect float64 `json:"reconnect"` // seconds
	} `json:"_thinkube_ask"`
	Resume string `json:"_thinkube_resume"`
}

// task runs a module as the collection's action plugin does: where it asks for a new connection, it gets one, if that can
// be had in the time it says.
func (s *site) task(ctx context.Context, module string, args map[string]any) (bridgeAnswer, error) {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails, says crypto/rand
	answers := map[string]any{}
	envelope := map[string]any{"module": module, "args": args, "key": base64.StdEncoding.EncodeToString(key), "answers": answers}
	for {
		text, err := json.Marshal(envelope)
		if err != nil {
			return bridgeAnswer{}, err
		}
		// The host was reached just now, so this is about an emulated processor that has much to do.
		got, err := s.ssh(ctx, text, "thinkube exec", "-o", "ConnectTimeout=30")
		if err != nil {
			return bridgeAnswer{}, err
		}
		var said bridgeAnswer
		if err := json.NewDecoder(strings.NewReader(got.Stdout)).Decode(&said); err != nil {
			return said, fmt.Errorf("%w: %q", err, got)
		}
		if said.Ask == nil {
			return said, nil
		}
		limit := time.Duration(said.Ask.Reconnect * float64(time.Second))
		if err := eventually(ctx, limit, "the host is reached", func() bool { return s.reached(ctx) }); err != nil {
			return said, err
		}
		answers[said.Ask.ID] = map[string]any{"answer": true}
		envelope["resume"] = said.Resume
	}
}

// bridge runs net_bridge.
func (s *site) bridge(t *testing.T, more map[string]any) bridgeAnswer {
	t.Helper()
	got, err := s.task(t.Context(), "net_bridge", wantedArgs(more))
	require.NoError(t, err)
	if got.Failed {
		t.Logf("the task said: %s: %s", got.Failure.Code, got.Msg)
	}
	return got
}

func wantedArgs(more map[string]any) map[string]any {
	args := map[string]any{"name": "br0", "confirm_timeout": patient.String()}
	maps.Copy(args, more)
	return args
}

// clear takes everything away that an earlier test configured.
const clear = `systemctl stop systemd-networkd.socket systemd-networkd
rm -rf /run/systemd/netif /etc/systemd/network/1* /etc/systemd/network/*thinkube* /var/lib/thinkube \
  /etc/systemd/system/thinkube* /etc/systemd/system/sysinit.target.wants/thinkube*
for link in br0 bond0.10 bond0 eth0.10 eth0.20; do ip link del $link 2>/dev/null || true; done
for link in eth0 eth1; do ip addr flush dev $link; ip link set $link down; done`

// configured gives the host the network of these files, and nothing else, and waits until the controller reaches it.
func (s *site) configured(t *testing.T, addr, port string, files map[string]string) {
	t.Helper()
	s.addr = addr
	s.sh(t, clear)
	for name, text := range files {
		require.NoError(t, s.guest.Write(t.Context(), "/etc/systemd/network/"+name, []byte(text), 0o644))
	}
	s.sh(t, "systemctl start systemd-networkd.socket systemd-networkd; /lib/systemd/systemd-networkd-wait-online --timeout=120 --interface="+port)
	s.until(t, patience, "the controller reaches the host", func() bool { return s.reached(t.Context()) })
}

// shown is all of the host's network that a change could leave behind: kernel and files.
func (s *site) shown(t *testing.T) string {
	t.Helper()
	return s.sh(t, `ip -d -o link | grep -v ' eth2' | sed 's/^[0-9]*: //; s/promiscuity.*minmtu/minmtu/' | sort
ip -o addr show scope global | sed 's/^[0-9]*: //; s/  */ /g' | sort
ip route show table all | grep -v 'table local' | sort
ip rule; bridge vlan
find /etc/systemd /etc/resolv.conf -type f -exec stat -c '%n %a %u %g' {} + -exec md5sum {} + | sort
cd /proc/sys/net/ipv6/conf; grep . */disable_ipv6 */accept_ra
systemctl list-units --plain --no-legend 'thinkube*'`)
}

const (
	untagged = "[Match]\nName=eth0\n\n[Network]\nAddress=10.77.1.5/24\nGateway=10.77.1.1\nIPv6AcceptRA=no\n"
	tagged   = "[Network]\nAddress=10.77.10.5/24\nGateway=10.77.10.1\nIPv6AcceptRA=no\n"
	silent   = "[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
	bond     = "[NetDev]\nName=bond0\nKind=bond\nMACAddress=52:54:00:77:00:00\n\n[Bond]\nMode=active-backup\nMIIMonitorSec=100ms\n"
)

func vlanLink(link string, id int) string {
	return fmt.Sprintf("[NetDev]\nName=%s.%d\nKind=vlan\n\n[VLAN]\nId=%d\n", link, id, id)
}

func named(link, rest string) string { return "[Match]\nName=" + link + "\n\n" + rest }

type uplink struct {
	name, port, addr string
	files            map[string]string
	args             map[string]any
	auto             string // the failure of ports: auto; "" where that works
	restart          bool
}

// uplinks are the ways in which the host is connected.
var uplinks = []uplink{
	{
		name: "VLAN filtering", port: "eth0", addr: "10.77.1.5", files: map[string]string{"10-eth0.network": untagged},
		args: map[string]any{"vlan_filtering": true},
	},
	{
		name: "VLAN as port", port: "eth0.10", addr: "10.77.10.5", auto: "port", restart: true,
		files: map[string]string{
			"10-eth0.network": named("eth0", silent+"VLAN=eth0.10\n"), "10-eth0.10.netdev": vlanLink("eth0", 10), "10-eth0.10.network": named("eth0.10", tagged),
		},
		args: map[string]any{"ports": []string{"eth0.10"}, "vlan_filtering": true},
	},
	{
		name: "bond as port", port: "bond0", addr: "10.77.1.5", auto: "port",
		files: map[string]string{
			"10-bond0.netdev": bond, "10-slaves.network": named("eth0 eth1", "[Network]\nBond=bond0\n"),
			"10-bond0.network": strings.Replace(untagged, "eth0", "bond0", 1),
		},
		args: map[string]any{"ports": []string{"bond0"}},
	},
	{
		name: "VLAN on a bond as port", port: "bond0.10", addr: "10.77.10.5", auto: "port",
		files: map[string]string{
			"10-bond0.netdev": bond, "10-slaves.network": named("eth0 eth1", "[Network]\nBond=bond0\n"),
			"10-bond0.network": named("bond0", silent+"VLAN=bond0.10\n"), "10-bond0.10.netdev": vlanLink("bond0", 10),
			"10-bond0.10.network": named("bond0.10", tagged),
		},
		args: map[string]any{"ports": []string{"bond0.10"}},
	},
}

// TestBridgesWithVLANs moves each kind of uplink.
func TestBridgesWithVLANs(t *testing.T) {
	t.Parallel() // with the next, on a host of its own: that one does little but wait
	s := bootSite(t)
	for _, each := range uplinks {
		t.Run(strings.ReplaceAll(each.name, " ", "_"), func(t *testing.T) { s.moves(t, each) })
	}
}

// TestNoWrongVLANLosesTheHost makes the changes of that row in docs/network-safety.md.
func TestNoWrongVLANLosesTheHost(t *testing.T) {
	t.Parallel()
	s := bootSite(t)
	for _, each := range wrongs {
		t.Run(strings.ReplaceAll(each.name, " ", "_"), func(t *testing.T) { s.endures(t, each) })
	}
}

// moves moves an uplink into a bridge and back, over the SSH connection that moves.
func (s *site) moves(t *testing.T, u uplink) {
	s.configured(t, u.addr, u.port, u.files)
	before := s.shown(t)

	if u.auto != "" {
		got := s.bridge(t, nil)
		require.True(t, got.Failed)
		require.Equal(t, u.auto, got.Failure.Code, "a link on top of others is not taken without being named")
	}

	plan := wantedArgs(u.args)
	plan["phase"] = "plan"
	got := s.bridge(t, plan)
	require.False(t, got.Failed || got.Changed)
	require.Contains(t, got.Steps, fmt.Sprintf("make link %q a port of \"br0\"", u.port))
	require.Equal(t, before, s.shown(t), "a plan touches nothing")

	got = s.bridge(t, u.args)
	require.False(t, got.Failed)
	require.True(t, got.Changed)
	s.isBridged(t, u.port, u.args)
	if u.restart {
		require.NoError(t, s.guest.PowerCut(t.Context()))
		s.sh(t, lan)
		s.until(t, patience, "the host is reached after a restart", func() bool { return s.reached(t.Context()) })
		s.isBridged(t, u.port, u.args)
	}

	got = s.bridge(t, map[string]any{"state": "absent"})
	require.False(t, got.Failed)
	require.True(t, got.Changed)
	require.Equal(t, before, s.shown(t), "all as before")
	require.False(t, s.bridge(t, map[string]any{"state": "absent"}).Changed)
}

// isBridged tells that the bridge has what the port had, in the kernel and in files, and does as it is told with VLANs.
func (s *site) isBridged(t *testing.T, port string, args map[string]any) {
	t.Helper()
	assert.Regexp(t, `br0 +UP +`+s.addr+"/24", s.sh(t, "ip -br addr show dev br0"))
	assert.Empty(t, s.sh(t, "ip -o addr show scope global dev "+port))
	assert.Contains(t, s.sh(t, "ip -o link show dev "+port), "master br0")
	assert.Regexp(t, `^default via 10\.77\.\d+\.1 dev br0`, s.sh(t, "ip route show default"))

	filtering := args["vlan_filtering"] == true
	assert.Equal(t, map[bool]string{true: "1\n", false: "0\n"}[filtering], s.sh(t, "cat /sys/class/net/br0/bridge/vlan_filtering"))
	if filtering {
		for _, link := range []string{port, "br0"} {
			assert.Regexp(t, link+` +1 PVID Egress Untagged\s*$`, s.sh(t, "bridge vlan show dev "+link))
		}
	}

	again := s.bridge(t, args)
	assert.False(t, again.Changed || again.Failed, "%q", again.Steps)
	info, err := s.task(t.Context(), "net_bridge_info", map[string]any{"name": "br0", "probe": true})
	require.NoError(t, err)
	require.Len(t, info.Bridges, 1)
	assert.True(t, info.Bridges[0].Agrees, "%q", info.Bridges[0].Differences)
	assert.Equal(t, filtering, info.Bridges[0].VLANFiltering)
	assert.Len(t, info.Bridges[0].Answering, 1, "the gateway")
}

// wrong is a change after which the host is in another VLAN than those who want to reach it.
type wrong struct {
	name, port, addr string
	files            map[string]string
	args             map[string]any
	right            map[string]any // the same without the mistake
	pause            string         // where the change waits for cause
	cause            func(t *testing.T, s *site)
	then             func(t *testing.T, s *site) // when the host is gone
	boots            bool
}

// Where a wrong VLAN comes from: the port's own file, whose ID counts once its bridge filters; or a switch. The gateway's
// silence undoes a change before its time. Without probes nobody but the controller notices.
var (
	wrongPVID = map[string]string{"10-eth0.network": untagged + "\n[BridgeVLAN]\nVLAN=20\nPVID=20\nEgressUntagged=20\n"}
	noProbes  = []string{}
)

var wrongs = []wrong{
	{
		name: "by the ports own file", port: "eth0", addr: "10.77.1.5", files: wrongPVID,
		args: map[string]any{"vlan_filtering": true}, right: map[string]any{},
	},
	{
		name: "by the ports own file, without probes", port: "eth0", addr: "10.77.1.5", files: wrongPVID,
		args: map[string]any{"vlan_filtering": true, "probes": noProbes}, right: map[string]any{},
	},
	{
		name: "by the ports own file, then power cut", port: "eth0", addr: "10.77.1.5", files: wrongPVID, boots: true,
		args: map[string]any{"vlan_filtering": true, "probes": noProbes}, right: map[string]any{},
		then: func(t *testing.T, s *site) {
			require.NoError(t, s.guest.PowerCut(t.Context()))
			s.sh(t, lan)
		},
	},
	{
		name: "by a switch, until after the time", port: "eth0.10", addr: "10.77.10.5", files: uplinks[1].files,
		args: uplinks[1].args, right: uplinks[1].args, pause: "probed",
		cause: func(t *testing.T, s *site) { s.sh(t, fmt.Sprintf(tag, 30)) },
		then: func(t *testing.T, s *site) {
			time.Sleep(confirmTimeout + 3*time.Second)
			s.sh(t, fmt.Sprintf(tag, 10))
		},
	},
}

// endures makes a change with a mistake, and then one without.
func (s *site) endures(t *testing.T, w wrong) {
	s.configured(t, w.addr, w.port, w.files)
	before := s.shown(t)
	s.sh(t, "rm -f /run/thinkube-fault*")
	if w.pause != "" {
		s.sh(t, "echo '"+w.pause+" pause' >/run/thinkube-fault")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan string, 1)
	go func() {
		args := wantedArgs(w.args)
		args["confirm_timeout"] = confirmTimeout.String()
		got, err := s.task(ctx, "net_bridge", args)
		ended <- fmt.Sprintf("%s: %s (%v)", got.Failure.Code, got.Msg, err)
	}()
	defer func() { cancel(); <-ended }()

	if w.cause != nil {
		s.until(t, patience, "the fault's place is reached", func() bool {
			return s.sh(t, "ls /run/thinkube-fault* || true") == "/run/thinkube-fault\n/run/thinkube-fault."+w.pause+"\n"
		})
		w.cause(t, s)
	}
	s.until(t, 30*time.Second, "the host is gone", func() bool { return !s.answers(t) })
	gone := time.Now()
	limit := promise
	if w.then != nil {
		w.then(t, s)
	}
	if w.boots {
		limit += time.Since(gone)
	}
	require.NoError(t, eventually(t.Context(), time.Until(gone.Add(limit)), "the host is back and at rest", func() bool { return s.atRest(t.Context()) }))
	t.Logf("back after %s", time.Since(gone).Round(100*time.Millisecond))
	after := s.shown(t)
	if w.boots {
		before, after = withoutEth1(before), withoutEth1(after)
	}
	require.Equal(t, before, after, "all as before")
	cancel()
	said := <-ended
	ended <- ""
	t.Logf("the task said: %s", said)

	got := s.bridge(t, w.right)
	require.True(t, got.Changed && !got.Failed)
	s.isBridged(t, w.port, w.right)
}

// withoutEth1 leaves out the link that has no part in it: a restart takes away what earlier tests left of its settings.
func withoutEth1(shown string) string {
	lines := strings.Split(shown, "\n")
	return strings.Join(slices.DeleteFunc(lines, func(line string) bool { return strings.HasPrefix(line, "eth1") }), "\n")
}

// answers tells whether the host answers the other end at all.
func (s *site) answers(t *testing.T) bool {
	t.Helper()
	got, err := s.guest.Run(t.Context(), "ip", "netns", "exec", "lan", "ping", "-q", "-c", "1", "-W", "1", s.addr)
	require.NoError(t, err)
	return got.Code == 0
}

// atRest tells whether a new connection to the host works and nothing is under way there.
func (s *site) atRest(ctx context.Context) bool {
	got, err := s.ssh(ctx, nil, `f=/var/lib/thinkube/net_bridge/armed.json; [ ! -e $f ] || grep -q '"phase": "rolled_back"' $f && echo rest`)
	return err == nil && got.Stdout == "rest\n"
}
