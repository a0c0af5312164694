// SPDX-License-Identifier: Apache-2.0

package zerotier

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/thinkube/infra/tests/lab"
)

// dir is fixed: what a killed run left is found by the next.
const dir = "/var/lib/thinkube-zerotier-tests"

var labConfig = lab.Config{
	Name: "zt", Subnet: netip.MustParsePrefix("10.177.99.0/24"), Dir: filepath.Join(dir, "lab"), Inventory: filepath.Join(dir, "lab.yaml"), Log: os.Stderr,
}

const (
	network    = "6eabbc719100beef"
	token      = "s3cr3t-of-the-controller"
	foreigner  = "deadbeef00"
	configured = "configured" // the snapshot before the first playbook
)

// nodes are the hosts' ids; n1 holds the controller.
var nodes = map[string]string{"n1": "6eabbc7191", "n2": "680bbfa232", "n3": "00d52687fd"}

type site struct {
	*testing.T
	lab       *lab.Lab
	root      string
	inventory string
	// fingerprint is that of the key which signs the package.
	fingerprint string
}

// run is one finished run of a playbook.
type run struct {
	code    int
	output  string
	folder  string
	changed int
}

func needLab(t *testing.T) {
	t.Helper()

	if os.Getenv("THINKUBE_LAB") == "" {
		t.Skip("boots hosts: set THINKUBE_LAB=1")
	}

	_, err := exec.LookPath("ansible-runner")
	if os.Geteuid() != 0 {
		err = errors.New("needs root: boots hosts")
	}

	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal(err)
	}

	if err != nil {
		t.Skip(err)
	}
}

func newSite(t *testing.T) *site {
	t.Helper()
	needLab(t)

	root, err := filepath.Abs("../..")
	require.NoError(t, err)

	s := &site{T: t, root: root, inventory: filepath.Join(dir, "inventory.yaml")}

	command(t, root, "make", "-s", "build")

	turn, err := lab.Turn("thinkube-zerotier-tests", os.Stderr)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, turn.Close()) })

	ctx := context.Background()
	require.NoError(t, errors.Join(lab.Down(ctx, labConfig, false), os.RemoveAll(dir), os.MkdirAll(filepath.Join(dir, "home"), 0o755)))
	t.Cleanup(func() {
		if os.Getenv("THINKUBE_KEEP") == "" {
			assert.NoError(t, errors.Join(lab.Down(ctx, labConfig, false), os.RemoveAll(dir)))
		}
	})

	s.lab, err = lab.Up(ctx, labConfig)
	require.NoError(t, err)
	s.installDouble()
	s.writeInventory()
	s.joinByHand()
	require.NoError(t, s.lab.Snapshot(ctx, configured))

	s.awaitService("n1")
	s.awaitService("n2")

	return s
}

// byHand is the host that an administrator made a member before the first playbook.
const byHand = "n2"

func (s *site) joinByHand() {
	s.api("POST", "/controller/network/"+network+"/member/"+nodes[byHand],
		`{"authorized":true,"name":"by hand","ipAssignments":["10.147.17.50"],"noAutoAssignIps":false,"tags":[[7,1]]}`)
	s.service(byHand, "POST", network)
	require.Eventually(s, func() bool { return strings.Contains(s.sh(byHand, "ip -o -4 addr"), "10.147.17.50/24") }, time.Minute, 200*time.Millisecond)
}

// service makes a request about a network of a host's own service.
func (s *site) service(host, method, network string) {
	s.sh(host, fmt.Sprintf(`python3 - <<'END'
import urllib.request
r = urllib.request.Request("http://127.0.0.1:9993/network/%s", method="%s", headers={"X-ZT1-Auth": open("/var/lib/zerotier-one/authtoken.secret").read()})
urllib.request.urlopen(r).read()
END`, network, method))
}

func command(t *testing.T, folder, name string, args ...string) {
	t.Helper()

	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = folder, append(os.Environ(), "CGO_ENABLED=0")

	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// unit runs the double under the name of the real service. Its times are a tenth.
const unit = `[Unit]
Description=double of zerotier-one
After=network-online.target
[Service]
ExecStart=/usr/sbin/ztdouble -scale 0.1 -underlay host0 %s
[Install]
WantedBy=multi-user.target
`

func (s *site) installDouble() {
	program := filepath.Join(s.TempDir(), "ztdouble")
	command(s.T, s.root, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./tests/ztdouble/cmd")

	binary, err := os.ReadFile(program)
	require.NoError(s, err)

	controller, err := s.lab.Host("n1")
	require.NoError(s, err)

	for _, host := range s.lab.Hosts() {
		flags := "-address " + nodes[host.Name()]

		if host.Name() == "n1" {
			s.input("n1", []byte(token), "mkdir -p /var/lib/zerotier-one && umask 077 && cat >/var/lib/zerotier-one/authtoken.secret")

			flags += fmt.Sprintf(` -central 9994 -networks '{"%s":{"name":"lab","routes":[{"target":"10.147.17.0/24"}]}}'`, network)
		} else {
			flags += fmt.Sprintf(" -controllers %s=http://%s:9993", nodes["n1"], controller.Address())
		}

		device := strings.TrimSpace(s.sh(host.Name(), "ip -o route get 10.177.99.1 | sed 's/.* dev \\([^ ]*\\).*/\\1/'"))
		text := strings.ReplaceAll(fmt.Sprintf(unit, flags), "host0", device)

		if host.Name() == packaged {
			s.offerPackage(host.Name(), program, text)
			continue
		}

		s.input(host.Name(), binary, "cat >/usr/sbin/ztdouble && chmod 755 /usr/sbin/ztdouble")
		s.input(host.Name(), []byte(text), "cat >/etc/systemd/system/zerotier-one.service && systemctl daemon-reload && systemctl enable --now zerotier-one")
		s.awaitService(host.Name())
	}
}

// packaged is the host on which setup has to install the service.
const packaged = "n3"

// offerPackage makes a package zerotier-one of the double and puts it into a repository on the host.
func (s *site) offerPackage(name, program, unit string) {
	folder := s.TempDir()

	for path, text := range map[string]string{
		"tree/DEBIAN/control":                              "Package: zerotier-one\nVersion: 1.14.1\nArchitecture: amd64\nMaintainer: tests <tests@example.com>\nDescription: double\n",
		"tree/DEBIAN/postinst":                             "#!/bin/sh\nset -e\nsystemctl daemon-reload\nsystemctl enable --now zerotier-one\n",
		"tree/DEBIAN/postrm":                               "#!/bin/sh\nsystemctl daemon-reload\n",
		"tree/usr/lib/systemd/system/zerotier-one.service": unit,
	} {
		file := filepath.Join(folder, path)
		require.NoError(s, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(s, os.WriteFile(file, []byte(text), 0o755))
	}

	command(s.T, folder, "sh", "-ec", `install -D -m 755 "$1" tree/usr/sbin/ztdouble
mkdir -p repo/dists/test/main/binary-amd64 && cd repo
dpkg-deb --root-owner-group -Zgzip -z1 -b ../tree zerotier-one_1.14.1_amd64.deb
{ dpkg-deb -f *.deb; echo "Filename: $(echo *.deb)"; echo "Size: $(stat -c %s *.deb)"; echo "SHA256: $(sha256sum *.deb | cut -d ' ' -f 1)"; } >dists/test/main/binary-amd64/Packages
cd dists/test
packages=main/binary-amd64/Packages
{ printf 'Origin: tests\nSuite: test\nCodename: test\nArchitectures: amd64\nComponents: main\nDate: %s\nSHA256:\n' "$(date -u -R)"
  echo " $(sha256sum $packages | cut -d ' ' -f 1) $(stat -c %s $packages) $packages"; } >Release
export GNUPGHOME="$PWD/../../../gnupg"
mkdir -m 700 "$GNUPGHOME"
trap 'gpgconf --kill gpg-agent' EXIT
gpg --batch --quiet --passphrase '' --quick-generate-key 'Tests <tests@example.com>' rsa2048 sign never
gpg --batch --quiet --clearsign -o InRelease Release
gpg --armor --export >../../key.asc
gpg --list-keys --with-colons | sed -n 's/^fpr:*\([0-9A-F]*\):.*/\1/p' | head -1 >../../../fingerprint
cd ../../.. && tar cf repo.tar repo`, "sh", program)

	text, err := os.ReadFile(filepath.Join(folder, "repo.tar"))
	require.NoError(s, err)
	s.input(name, text, "tar xf - -C /srv --one-top-level=zerotier --no-same-owner")

	fingerprint, err := os.ReadFile(filepath.Join(folder, "fingerprint"))
	require.NoError(s, err)

	s.fingerprint = strings.TrimSpace(string(fingerprint))
}

func (s *site) awaitService(name string) {
	require.Eventually(s, func() bool {
		host, err := s.lab.Host(name)
		if err != nil {
			return false
		}

		_, err = host.Run(context.Background(), "systemctl is-active zerotier-one && ss -ltn | grep -q :9993")

		return err == nil
	}, time.Minute, 200*time.Millisecond, "zerotier-one on %s", name)
}

func (s *site) sh(name, script string) string { return s.input(name, nil, script) }

func (s *site) input(name string, stdin []byte, script string) string {
	host, err := s.lab.Host(name)
	require.NoError(s, err)

	out, err := host.RunInput(context.Background(), bytes.NewReader(stdin), script)
	require.NoError(s, err)

	return out
}

// writeInventory is the lab's inventory with the overlay's part.
func (s *site) writeInventory() {
	text, err := os.ReadFile(s.lab.InventoryFile())
	require.NoError(s, err)

	var inventory map[string]map[string]any

	require.NoError(s, yaml.Unmarshal(text, &inventory))

	all := inventory["all"]
	vars := all["vars"].(map[string]any)
	vars["zerotier_network_id"], vars["zerotier_package_source"], vars["zerotier_wait_timeout"] = network, "none", "30s"
	vars["zerotier_controller"] = map[string]any{"kind": "self_hosted", "url": "http://127.0.0.1:9993", "token": token}
	vars["zerotier_subnet_prefix"], vars["primary_ingress_ip_octet"], vars["secondary_ingress_ip_octet"] = "10.147.17.", 200, 201
	vars["zerotier_routes"] = []any{map[string]any{"target": "10.200.0.0/24", "via": "10.147.17.1"}}

	children := all["children"].(map[string]any)
	hosts := map[string]any{}

	for i, name := range []string{"n1", "n2", "n3"} {
		hosts[name] = map[string]any{"zerotier_ip": fmt.Sprintf("10.147.17.%d", i+1)}
	}

	here := hosts[packaged].(map[string]any)
	here["zerotier_key_url"], here["zerotier_key_fingerprint"] = "file:///srv/zerotier/repo/key.asc", s.fingerprint
	here["zerotier_repository"], here["zerotier_repository_suite"] = "file:/srv/zerotier/repo", "test"
	here["zerotier_package_source"], here["zerotier_forward_to"] = "vendor", []string{"10.66.0.0/24"}

	children["zerotier_nodes"] = map[string]any{"hosts": hosts}
	children["microk8s_control_plane"] = map[string]any{"hosts": map[string]any{"n2": map[string]any{}, "n3": map[string]any{}}}

	text, err = yaml.Marshal(inventory)
	require.NoError(s, err)
	require.NoError(s, os.WriteFile(s.inventory, text, 0o600))
}

func (s *site) play(number string, args ...string) run {
	found, err := filepath.Glob(filepath.Join(s.root, "ansible/30_networking", number+"_*.yaml"))
	require.NoError(s, err)
	require.Len(s, found, 1)

	folder := s.TempDir()
	argv := []string{"run", folder, "-p", found[0], "-i", "run", "--project-dir", s.root, "--inventory", s.inventory}

	argv = append(argv, "--cmdline=-vvvv "+strings.Join(args, " "))

	ctx, cancel := context.WithTimeout(s.Context(), 5*time.Minute)
	defer cancel()

	runner := exec.CommandContext(ctx, "ansible-runner", argv...)
	runner.Dir = s.root
	runner.Env = append(os.Environ(), "ANSIBLE_CONFIG="+filepath.Join(s.root, "ansible.cfg"), "HOME="+filepath.Join(dir, "home"),
		"PYTHONDONTWRITEBYTECODE=1", "ANSIBLE_SSH_ARGS=-C -o ControlMaster=auto -o ControlPersist=10s")

	out, err := runner.CombinedOutput()

	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.Fatal(err)
	}

	require.NoError(s, ctx.Err(), "%s", out)

	done := run{code: runner.ProcessState.ExitCode(), output: string(out), folder: folder}

	files, err := filepath.Glob(filepath.Join(folder, "artifacts/run/job_events/*.json"))
	require.NoError(s, err)

	for _, file := range files {
		var event struct {
			Event string `json:"event"`
			Data  struct {
				Changed map[string]int `json:"changed"`
			} `json:"event_data"`
		}

		text, err := os.ReadFile(file)
		require.NoError(s, err)
		require.NoError(s, json.Unmarshal(text, &event))

		for _, count := range event.Data.Changed {
			done.changed += count
		}
	}

	require.Contains(s, done.output, "PLAY RECAP", done.output)
	s.noSecret(folder)

	return done
}

// noSecret looks through everything that is kept of a run.
func (s *site) noSecret(folder string) {
	secret := regexp.MustCompile(regexp.QuoteMeta(token))

	err := filepath.WalkDir(folder, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}

		text, err := os.ReadFile(path)
		if secret.Match(text) {
			s.Errorf("the token is in %s", path)
		}

		return err
	})
	require.NoError(s, err)
}

// vars writes variables that go over the inventory's, and gives what -e wants.
func (s *site) vars(text string) string {
	file := filepath.Join(s.TempDir(), "vars.json")
	require.NoError(s, os.WriteFile(file, []byte(text), 0o600))

	return "@" + file
}

func (s *site) passes(number string, args ...string) run {
	done := s.play(number, args...)
	require.Zero(s, done.code, done.output)

	return done
}

func (s *site) fails(number, says string, args ...string) {
	done := s.play(number, args...)
	require.NotZero(s, done.code, "%s passed:\n%s", number, done.output)
	require.Contains(s, done.output, says)
}

// api makes a request of the controller, as its administrator does.
func (s *site) api(method, path, body string) map[string]any {
	out := s.sh("n1", fmt.Sprintf(`python3 - <<'END'
import urllib.request
r = urllib.request.Request("http://127.0.0.1:9993%s", method="%s", data=b'''%s''' or None, headers={"X-ZT1-Auth": "%s"})
print(urllib.request.urlopen(r).read().decode())
END`, path, method, body, token))

	result := map[string]any{}
	require.NoError(s, json.Unmarshal([]byte(out), &result), out)

	return result
}

func (s *site) members() []string {
	var ids []string
	for id := range s.api("GET", "/controller/network/"+network+"/member", "") {
		ids = append(ids, id)
	}

	slices.Sort(ids)

	return ids
}

// noise is what may differ on a host that was managed and given back: the collection's program, what sudo and apt note, and
// the empty table that the program iptables makes when it is used for the first time, and keeps.
var noise = append([]string{"file /root/.cache", "file /root/.cache/**", "file /home/*/.sudo_as_admin_successful", "nft table inet lxd", "nft table ip filter", "nft table ip filter, chain FORWARD",
	"nft table ip filter, chain FORWARD, type filter hook forward priority filter; policy accept;",
	"file /var/lib/dpkg/status", "file /var/lib/apt/**", "file /var/cache/apt/**"}, lab.IgnoreLXDDatabase...)

func TestPlaybooks(t *testing.T) {
	s := newSite(t)
	record := "/controller/network/" + network + "/member/"
	s.api("POST", record+foreigner, `{"authorized":true,"ipAssignments":["10.147.17.99"]}`)

	s.fails("18", "not installed")

	check := s.passes("10", "--check", "--diff")
	assert.Positive(t, check.changed)
	require.Equal(t, []string{nodes[byHand], foreigner}, s.members(), "check mode changes nothing")

	before := s.api("GET", record+nodes[byHand], "")

	s.refusesValues()
	s.refusesKeys()

	// The record is changed before the join, which fails: another task, so it is the role that puts it back.
	controller, err := s.lab.Host("n1")
	require.NoError(t, err)
	s.sh(byHand, "ip route add unreachable "+controller.Address().String())

	failed := s.play("10", "--limit", byHand, "-e", "zerotier_wait_timeout=3s")
	require.NotZero(t, failed.code, failed.output)
	require.Contains(t, failed.output, "The record is as it was")
	require.Contains(t, failed.output, "10.147.17.2 10.147.17.200 10.147.17.201 of node "+nodes[byHand]+": not on device")
	s.isRecord(before)
	s.sh(byHand, "ip route del unreachable "+controller.Address().String())

	start := time.Now()
	s.passes("10")
	t.Logf("10_setup_zerotier on three hosts: %s", time.Since(start).Round(100*time.Millisecond))
	assert.Zero(t, s.passes("10").changed)
	s.passes("18")

	addresses := s.sh("n2", "ip -o -4 addr")
	for _, address := range []string{"10.147.17.2/24", "10.147.17.200/24", "10.147.17.201/24"} {
		assert.Contains(t, addresses, address)
	}

	assert.NotContains(t, addresses, "10.147.17.50/24")

	for _, host := range []string{"n2", "n3"} {
		assert.Empty(t, s.sh(host, "grep -rlsF '"+token+"' /etc /root /home /tmp /var || true"), "the token came to %s", host)
	}

	device := strings.Fields(s.sh("n3", "ip -o link | grep -o 'zt[a-z0-9]*' | head -1"))[0]

	s.sabotages(device)
	s.forwards(device)

	// A service that is stopped is started, and is in again.
	s.sh("n2", "systemctl stop zerotier-one")
	s.fails("18", "connection refused")
	assert.Positive(t, s.passes("10").changed)
	s.passes("18")

	// Out again, with services that are stopped. What the node of n3 is part of besides would go with its identity: it stays.
	s.service("n3", "POST", other)
	require.Eventually(t, func() bool { return strings.Contains(s.sh("n3", "ls /var/lib/zerotier-one/networks.d"), other) }, 10*time.Second, 100*time.Millisecond)
	s.sh("n2", "systemctl stop zerotier-one")
	s.sh("n3", "systemctl stop zerotier-one")

	kept := s.passes("19")
	assert.Contains(t, kept.output, "stay, since the node has other networks")
	assert.Contains(t, s.sh("n3", "ls /var/lib/zerotier-one/networks.d /usr/sbin/ztdouble"), other)
	assert.Equal(t, []string{nodes[byHand], foreigner}, s.members())

	s.isRecord(before)

	s.service("n3", "DELETE", other)
	require.Eventually(t, func() bool { return !strings.Contains(s.sh("n3", "ls /var/lib/zerotier-one/networks.d"), other) }, 10*time.Second, 100*time.Millisecond)
	assert.Positive(t, s.passes("19").changed)
	assert.Zero(t, s.passes("19").changed)
	s.fails("18", "not joined")
	s.fails("18", "not installed")
	s.isAsBefore()

	// A package that was removed and left its home, with an identity, is installed again; this time the distribution has it.
	// An installation that is broken goes too, and the record with it; the home that was there stays.
	s.sh(packaged, `mkdir /var/lib/zerotier-one && echo mine >/var/lib/zerotier-one/kept
echo 'deb [signed-by=/srv/zerotier/repo/key.asc] file:/srv/zerotier/repo test main' >/etc/apt/sources.list.d/distribution.list`)
	s.passes("10", "--limit", packaged, "-e", "zerotier_package_source=distribution")
	assert.Empty(t, s.sh(packaged, "ls /usr/share/keyrings /etc/apt/sources.list.d | grep thinkube || true"))
	require.Contains(t, s.members(), nodes[packaged])
	s.sh(packaged, "systemctl stop zerotier-one; rm /usr/sbin/ztdouble /var/lib/zerotier-one/authtoken.secret")
	s.passes("19", "--limit", packaged)
	assert.Equal(t, []string{nodes[byHand], foreigner}, s.members())
	assert.Equal(t, "mine", strings.TrimSpace(s.sh(packaged, "cat /var/lib/zerotier-one/kept")))
	assert.NotContains(t, s.sh(packaged, "ls -R /var/lib/zerotier-one"), network, "it would join again")
	s.sh(packaged, "dpkg --purge zerotier-one; rm -rf /var/lib/zerotier-one /etc/apt/sources.list.d/distribution.list; apt-get -qq update")

	// Routes are of use to the hosts that stay: they went only when all of them were rolled back.
	s.passes("19")
	s.isAsBefore()

	s.throughCentral(record)
	s.isAsBefore()

	// A network that its controller lacks meanwhile has no record to restore: no reason to keep the hosts as they are.
	s.passes("10")
	s.api("DELETE", "/controller/network/"+network, "")
	s.passes("19")

	for _, host := range []string{"n1", "n3"} {
		assert.NotContains(t, s.sh(host, "ls -R /var/lib/zerotier-one /var/lib/thinkube 2>&1 || true"), network)
	}
}

// sabotages breaks one thing after the other, which 18 must notice each, and what it says of it.
func (s *site) sabotages(device string) {
	s.Helper()

	record := func(host string) string { return "/controller/network/" + network + "/member/" + nodes[host] }
	routes := func(text string) {
		s.api("POST", "/controller/network/"+network, `{"routes":[{"target":"10.147.17.0/24"}`+text+`]}`)
	}
	away := func(host string) { // its service does not reach the controller, which is its root too
		controller, err := s.lab.Host("n1")
		require.NoError(s, err)
		s.sh(host, "ip route add unreachable "+controller.Address().String()+" && systemctl restart zerotier-one")
		s.awaitService(host)
	}
	back := func(host, address string) {
		s.sh(host, "ip route del unreachable $(ip route | sed -n 's/^unreachable \\([^ ]*\\).*/\\1/p') && systemctl restart zerotier-one")
		require.Eventually(s, func() bool { return strings.Contains(s.sh(host, "ip -o -4 addr"), address) }, 20*time.Second, 200*time.Millisecond)
	}

	for _, one := range []struct {
		host, what, says string // the host that sees it
		do, undo         func()
	}{
		{
			"n3", "an address is missing", "has []; wanted ['10.147.17.3']",
			func() { s.sh("n3", "ip addr del 10.147.17.3/24 dev "+device) },
			func() {
				s.sh("n3", "ip addr add 10.147.17.3/24 dev "+device+"; ip route add 10.200.0.0/24 via 10.147.17.1 dev "+device)
			},
		},
		{
			"n3", "an address too many", "'10.147.17.77'",
			func() { s.sh("n3", "ip addr add 10.147.17.77/24 dev "+device) },
			func() { s.sh("n3", "ip addr del 10.147.17.77/24 dev "+device) },
		},
		{
			"n3", "a route is not in the kernel", "route 10.200.0.0/24 via 10.147.17.1 does not lead over device " + device,
			func() { s.sh("n3", "ip route del 10.200.0.0/24") },
			func() { s.sh("n3", "ip route add 10.200.0.0/24 via 10.147.17.1 dev "+device) },
		},
		{
			"n3", "the network lacks a route", "setup would change the network's routes",
			func() { routes("") },
			func() { routes(`,{"target":"10.200.0.0/24","via":"10.147.17.1"}`) },
		},
		{
			"n3", "the link is down", "does not lead over device " + device,
			func() { s.sh("n3", "ip link set "+device+" down") },
			func() {
				s.sh("n3", "ip link set "+device+" up; ip route replace 10.200.0.0/24 via 10.147.17.1 dev "+device)
			},
		},
		{
			"n3", "packets do not come through", "test of 10.147.17.201",
			func() {
				s.sh("n2", "nft 'add table inet sabotage; add chain inet sabotage in { type filter hook input priority -10; }; add rule inet sabotage in ip daddr 10.147.17.201 drop'")
			},
			func() { s.sh("n2", "nft delete table inet sabotage") },
		},
		{
			"n2", "the service does not start with the host", "zerotier-one is disabled",
			func() { s.sh("n2", "systemctl disable zerotier-one") },
			func() { s.sh("n2", "systemctl enable zerotier-one") },
		},
		{
			"n2", "the member has another name", "setup would change the record of n2: change member " + nodes["n2"],
			func() { s.api("POST", record("n2"), `{"name":"somebody else's"}`) },
			func() { assert.Positive(s, s.passes("10").changed) },
		},
		{
			"n3", "the member is not authorised", "n3 in network " + network + ": ACCESS_DENIED",
			func() {
				s.api("POST", record("n3"), `{"authorized":false}`)
				require.Eventually(s, func() bool { return strings.Contains(s.status("n3"), "ACCESS_DENIED") }, 20*time.Second, 500*time.Millisecond)
			},
			func() { s.api("POST", record("n3"), `{"authorized":true}`) },
		},
		{"n3", "the node is not online", "n3: ZeroTier is not online", func() { away("n3") }, func() { back("n3", "10.147.17.3/24") }},
		{
			"n3", "the unit for forwarding does not start with the host", "thinkube-zerotier-forward is disabled and active",
			func() { s.sh("n3", "systemctl disable thinkube-zerotier-forward") },
			func() { s.sh("n3", "systemctl enable thinkube-zerotier-forward") },
		},
		{
			"n3", "it is stopped", "thinkube-zerotier-forward is enabled and inactive",
			func() { s.sh("n3", "systemctl stop thinkube-zerotier-forward") },
			func() { s.sh("n3", "systemctl start thinkube-zerotier-forward") },
		},
		{
			"n3", "it is another", "thinkube-zerotier-forward is not as setup writes it",
			func() { s.sh("n3", "echo '# mine' >>/etc/systemd/system/thinkube-zerotier-forward.service") },
			func() { assert.Positive(s, s.passes("10", "--limit", "n3").changed) },
		},
		{
			"n3", "the host does not forward", "ip_forward is 0",
			func() { s.sh("n3", "sysctl -qw net.ipv4.ip_forward=0") },
			func() { s.sh("n3", "sysctl -qw net.ipv4.ip_forward=1") },
		},
	} {
		one.do()
		s.Log(one.what)
		s.fails("18", one.says, "--limit", one.host)
		one.undo()
	}

	s.passes("18")

	// Check mode looks at all of it too.
	s.sh("n2", "nft 'add table inet sabotage; add chain inet sabotage in { type filter hook input priority -10; }; add rule inet sabotage in ip daddr 10.147.17.201 drop'")
	s.fails("18", "test of 10.147.17.201", "--limit", "n3", "--check")
	s.sh("n2", "nft delete table inet sabotage")
	s.passes("18", "--check")
}

// status is what a host's service says of the network.
func (s *site) status(host string) string {
	return s.sh(host, fmt.Sprintf(`python3 - <<'END'
import urllib.request
r = urllib.request.Request("http://127.0.0.1:9993/network/%s", headers={"X-ZT1-Auth": open("/var/lib/zerotier-one/authtoken.secret").read()})
print(urllib.request.urlopen(r).read().decode())
END`, network))
}

// other is a network that is none of ours.
const other = "6eabbc719100abcd"

// refusesValues gives values that are wrong: all of them are said at once, before anything on a host is touched.
func (s *site) refusesValues() {
	s.Helper()

	token := func(text string) string {
		return `"zerotier_controller": {"kind": "self_hosted", "url": "http://127.0.0.1:9993", "token": "` + text + `"}`
	}

	for vars, says := range map[string][]string{
		`{"zerotier_extra_addresses": ["10.147.17.200"]}`: {"two members would have the same address"},
		`{"zerotier_extra_addresses": ["{{ {'n1': 'fd00::1', 'n2': 'FD00:0::0001', 'n3': 'fd00::3'}[inventory_hostname] }}"]}`: {
			"two members would have the same address",
		},
		`{"zerotier_network_id": "12", "zerotier_extra_addresses": ["10.147.17.300", "10.147.18.{{ inventory_hostname[1:] }}/24"],
			"zerotier_forward_to": ["10.66.0.0/24", "fd00:1::/64"], ` + token("") + `}`: {
			"zerotier_network_id: 12 is no network id", "10.147.17.300 is no IP address", "10.147.18.1/24 is no IP address",
			"fd00:1::/64 is no IPv4 network", "zerotier_api_token is empty",
		},
		`{` + token("another") + `}`:                  {"refused (401)"},
		`{"zerotier_network_id": "6eabbc719100ffff"}`: {"has no network 6eabbc719100ffff"},
	} {
		done := s.play("10", "-e", s.vars(vars))
		require.NotZero(s, done.code, done.output)
		assert.Zero(s, done.changed, vars)

		for _, text := range says {
			assert.Contains(s, done.output, text)
		}
	}

	for _, host := range s.lab.Hosts() {
		assert.Empty(s, s.sh(host.Name(), "ls -d /var/lib/thinkube/zerotier_role 2>/dev/null || true"), "%s was touched", host.Name())
	}
}

// refusesKeys offers two keys that are not the vendor's; neither is remembered.
func (s *site) refusesKeys() {
	s.sh(packaged, "cp /srv/zerotier/repo/key.asc /srv/key.asc; echo '<html>sign in</html>' >/srv/zerotier/repo/key.asc")

	refused := s.play("10", "--limit", packaged)
	require.NotZero(s, refused.code, refused.output)
	require.Contains(s, refused.output, "this is no OpenPGP key")
	s.sh(packaged, "mv /srv/key.asc /srv/zerotier/repo/key.asc")

	refused = s.play("10", "--limit", packaged, "-e", "zerotier_key_fingerprint=0000000000000000000000000000000000000000")
	require.NotZero(s, refused.code, refused.output)
	require.Contains(s, refused.output, "has the fingerprint "+s.fingerprint)
	assert.Empty(s, s.sh(packaged, "ls /usr/share/keyrings | grep thinkube || true"), "apt may not use it")
}

// forwards looks at what members reach behind n3: what is meant, once, and nothing that is not meant any more.
func (s *site) forwards(device string) {
	rules := func() string { return s.sh("n3", "iptables -S thinkube-zerotier 2>/dev/null; iptables -S FORWARD") }
	meant := "-A thinkube-zerotier -d 10.66.0.0/24 -i " + device + " -j ACCEPT\n" +
		"-A thinkube-zerotier -s 10.66.0.0/24 -o " + device + " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"

	once := func() {
		s.Helper()
		assert.Equal(s, 1, strings.Count(rules(), meant), rules())
		assert.Equal(s, 2, strings.Count(rules(), "10.66.0.0/24"), rules())
		assert.Equal(s, 1, strings.Count(rules(), "-A FORWARD -j thinkube-zerotier"), rules())
	}

	once()
	assert.Contains(s, s.sh("n3", "systemctl is-enabled thinkube-zerotier-forward"), "enabled")
	assert.Equal(s, "1", strings.TrimSpace(s.sh("n3", "cat /proc/sys/net/ipv4/ip_forward")))

	s.sh("n3", "iptables -D thinkube-zerotier -d 10.66.0.0/24 -i "+device+" -j ACCEPT")
	s.fails("18", "does not forward as is meant")
	assert.Positive(s, s.passes("10", "--limit", "n3").changed)
	once()

	// Another network in the place of the first, and then none.
	vars := filepath.Join(s.TempDir(), "vars.json")
	require.NoError(s, os.WriteFile(vars, []byte(`{"zerotier_forward_to": ["10.67.0.9"]}`), 0o600))
	s.passes("10", "--limit", "n3", "-e", "@"+vars)
	assert.Zero(s, s.passes("10", "--limit", "n3", "-e", "@"+vars).changed, "the kernel has another spelling: 10.67.0.9/32")
	assert.Contains(s, rules(), "10.67.0.9/32")
	assert.NotContains(s, rules(), "10.66.0.0/24", "what is not meant any more")

	require.NoError(s, os.WriteFile(vars, []byte(`{"zerotier_forward_to": []}`), 0o600))
	s.passes("10", "--limit", "n3", "-e", "@"+vars)
	assert.NotContains(s, rules(), "thinkube-zerotier")
	s.fails("18", "and thinkube-zerotier-forward is not there")
	s.passes("10")
	once()
}

// throughCentral has the role speak to Central v1, its default, which loses the names of members that have not asked yet.
func (s *site) throughCentral(record string) {
	s.Helper()

	vars := s.vars(`{"zerotier_controller": {"kind": "central_v1", "url": "http://127.0.0.1:9994/api/v1", "token": "` + token + `"}}`)

	// The name is lost, and cannot be given again: the host is in all the same, and stays.
	nameless := s.play("10", "-e", vars, "-e", s.vars(`{"zerotier_member_name": "{{ nobody_says if zerotier_joined is defined else inventory_hostname }}"}`))
	require.NotZero(s, nameless.code, nameless.output)
	require.Contains(s, nameless.output, "nobody_says")
	assert.Contains(s, s.status(packaged), `"OK"`)
	assert.Empty(s, s.api("GET", record+nodes[packaged], "")["name"])
	assert.Equal(s, true, s.api("GET", record+nodes[packaged], "")["authorized"])

	s.passes("10", "-e", vars)

	for name, id := range nodes {
		assert.Equal(s, name, s.api("GET", record+id, "")["name"])
	}

	assert.Zero(s, s.passes("10", "-e", vars).changed)
	s.passes("18", "-e", vars)
	s.passes("19", "-e", vars)
}

// isRecord compares the record that was made by hand with what it was.
func (s *site) isRecord(before map[string]any) {
	s.Helper()

	after := s.api("GET", "/controller/network/"+network+"/member/"+nodes[byHand], "")
	for _, key := range []string{"authorized", "name", "ipAssignments", "noAutoAssignIps", "tags"} {
		assert.Equal(s, before[key], after[key], key)
	}
}

// isAsBefore compares every host with what it was before the first playbook.
func (s *site) isAsBefore() {
	s.Helper()

	require.Eventually(s, func() bool { return strings.Contains(s.sh(byHand, "ip -o -4 addr"), "10.147.17.50/24") }, 20*time.Second, 200*time.Millisecond)

	for _, host := range s.lab.Hosts() {
		found, err := host.Diff(s.Context(), configured, noise...)
		require.NoError(s, err)

		for _, each := range found {
			s.Errorf("%s differs: %s", host.Name(), each)
		}
	}
}
