// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"bufio"
	"fmt"
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

	"github.com/thinkube/infra/tests/lab"
)

// TestHowLongTheHostIsAway moves a static address there and back again and again, and shows the median of the longest times
// without an answer: the number in docs/network-safety.md, where it was run alone.
func TestHowLongTheHostIsAway(t *testing.T) {
	t.Parallel()

	s := needSite(t)
	host := s.borrow(t)

	var there, back []time.Duration

	for range 5 {
		for _, way := range []struct {
			state string
			gaps  *[]time.Duration
		}{{"present", &there}, {"absent", &back}} {
			*way.gaps = append(*way.gaps, measure(t, host, func() {
				got := s.run(t, host, wanted(map[string]any{"state": way.state}))
				require.True(t, got.Changed, "%+v", got)
			}))
		}
	}

	slices.Sort(there)
	slices.Sort(back)
	t.Logf("ping every %s; longest time without an answer, median of %d: %s there (worst %s), %s back (worst %s)",
		Interval, len(there), there[len(there)/2], there[len(there)-1], back[len(back)/2], back[len(back)-1])
	assert.Less(t, there[len(there)/2], maxGap)
	assert.Less(t, back[len(back)/2], maxGap)
	s.keep(t, host)
}

// TestConnectionsSurvive has a session over SSH talk all the while.
func TestConnectionsSurvive(t *testing.T) {
	t.Parallel()

	s := needSite(t)
	host := s.borrow(t)

	argv := append(host.SSHArgs("root"), "--", "while :; do echo still here; sleep 0.2; done")
	session := exec.CommandContext(t.Context(), argv[0], argv[1:]...)

	out, err := session.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, session.Start())

	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())

	for _, state := range []string{"present", "absent"} {
		got := s.run(t, host, wanted(map[string]any{"state": state}))
		require.True(t, got.Changed, "%+v", got)
		require.True(t, lines.Scan(), "the session broke")
	}

	// What is in the pipe by now was said before; three more lines were said after.
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		require.True(t, lines.Scan(), "the session broke")
	}

	require.NoError(t, session.Process.Kill())
	_ = session.Wait()
	s.keep(t, host)
}

// TestBadInputTouchesNothing asks for what cannot be.
func TestBadInputTouchesNothing(t *testing.T) {
	t.Parallel()

	s := needSite(t)
	host := s.borrow(t)

	sh(t, host, "ip link add taken type veth peer name takenpeer")

	for name, each := range map[string]struct {
		args map[string]any
		code string
	}{
		"name too long":           {map[string]any{"name": "a-name-that-is-too-long"}, "invalid_argument"},
		"name of another link":    {map[string]any{"name": "taken"}, "name_taken"},
		"address without prefix":  {map[string]any{"addresses": []string{"10.177.94.77"}}, "invalid_argument"},
		"address of another host": {map[string]any{"addresses": []string{gateway + "/24"}, "gateway4": "none"}, "address_in_use"},
		"gateway outside":         {map[string]any{"gateway4": "192.0.2.1"}, "address"},
		"duplicate MAC":           {map[string]any{"mac": strings.TrimSpace(sh(t, host, "ip -br link show taken | awk '{print $3}'"))}, "invalid_argument"},
		"MTU":                     {map[string]any{"mtu": 70000}, "invalid_argument"},
		"no such port":            {map[string]any{"ports": []string{"eth9"}}, "port"},
		"not its manager":         {map[string]any{"manager": "netplan"}, "manager"},
	} {
		got := s.run(t, host, wanted(each.args))
		assert.True(t, got.Failed, name)
		assert.Equal(t, each.code, got.Failure.Code, "%s: %s", name, got.Msg)
	}

	sh(t, host, "ip link del taken")
	s.keep(t, host)
}

// TestConfirmNeedsANewConnection applies without the collection's own way of confirming.
func TestConfirmNeedsANewConnection(t *testing.T) {
	t.Parallel()

	s := needSite(t)
	host := s.borrow(t)

	program := s.programOn(t, host)

	out, err := host.SSH(t.Context(), "root", module(program, `{"name":"br0","confirm_timeout":"20s","ticket":"t1"}`)+"; sleep 4; "+module(program, `{"name":"br0","phase":"confirm","ticket":"t1"}`))
	require.NoError(t, err)
	assert.Contains(t, out, "_thinkube_ask", "it wants to go on over a new connection")
	assert.Contains(t, out, `"reconnect"`, "and again when it is still the old one")
	sh(t, host, `grep -q '"phase": "applied"' /var/lib/thinkube/net_bridge/armed.json`)

	out, err = host.SSH(t.Context(), "root", module(program, `{"name":"br0","phase":"confirm","ticket":"t2"}`))
	require.NoError(t, err)
	assert.Contains(t, out, "armed_change", "another ticket")

	out, err = host.SSH(t.Context(), "root", module(program, `{"name":"br0","phase":"confirm","ticket":"t1"}`))
	require.NoError(t, err)
	assert.Contains(t, out, `"changed":true`)
	s.isWhole(t, host, "new")
	s.leave(t, host)
}

// programOn puts the program on the host and gives its path.
func (s *site) programOn(t *testing.T, host *lab.Host) string {
	t.Helper()

	got := s.start(t, host, "net_bridge_info", map[string]any{"probe": false}).wait(t)
	require.False(t, got.Failed, got.Msg)

	return strings.TrimSpace(sh(t, host, "ls -d "+anyProgram))
}

// anyProgram is the program on a host that had a task before.
const anyProgram = "/root/.cache/thinkube/thinkube_*"

// module is a shell command that runs the program as the collection does, except that nobody reconnects for it.
func module(program, args string) string {
	return fmt.Sprintf(`echo '{"module":"net_bridge","args":%s,"key":"%s"}' | %s exec`, args, strings.Repeat("A", 43)+"=", program)
}

var changed = regexp.MustCompile(`(?m)^changed: \[(\S+)\]`)

var recap = regexp.MustCompile(`(?m)^(\S+) +: ok=(\d+) +changed=(\d+) +unreachable=(\d+) +failed=(\d+)`)

// TestPlaybooks runs the way of the numbers: there, again, test, sabotage, back, again.
func TestPlaybooks(t *testing.T) {
	t.Parallel()

	s := needSite(t)
	hosts := s.borrowSome(t, 3)
	plays := s.playsOn(t, hosts)
	expect := plays.expect

	expect("18", 0, 3, "has no bridge br0")
	expect("20-1", 3, 0)
	expect("20-1", 0, 0)

	said := expect("20-2", 3, 0)
	order := changed.FindAllStringSubmatch(said, -1)
	require.Len(t, order, 3, said)
	assert.Equal(t, hosts[0].Name(), order[2][1], "the controller is last")

	expect("20-2", 0, 0)
	expect("20-3", 0, 0)
	expect("18", 0, 0)
	expect("19-3", 0, 3, "still has bridge br0")
	s.sabotage(t, plays, hosts[1])

	plays.more = []string{"-e", "lan_ip=10.9.9.9"}
	expect("18", 0, 3, "10.9.9.9 is not among")

	plays.more = nil

	expect("19-1", 3, 0)

	said = expect("19-2", 3, 0)
	order = changed.FindAllStringSubmatch(said, -1)
	require.Len(t, order, 3, said)
	assert.Equal(t, hosts[0].Name(), order[2][1], "the controller is last")

	expect("19-2", 0, 0)
	expect("19-3", 0, 0)
	expect("18", 0, 3, "has no bridge br0")

	for _, host := range hosts {
		require.NotContains(t, sh(t, host, "ls /var/lib"), "thinkube")
		s.keep(t, host)
	}
}

// sabotage shows of every assertion of 18 that it can fail. That the port has no carrier or does not forward cannot be told to
// anybody, and is a host that is not reached.
func (s *site) sabotage(t *testing.T, plays *plays, host *lab.Host) {
	t.Helper()

	for _, each := range []struct{ harm, heal, says string }{
		{"ip route del default", "", "gateways over br0: none"},
		{"ip route replace default via 10.177.94.99", "ip route replace default via " + gateway + " proto static", "of these answer none"},
		{"echo >>/etc/systemd/network/05-thinkube-br0.network", "", `file \"/etc/systemd/network/05-thinkube-br0.network\" is not as it was written`},
		{"ip link set br0 mtu 1400", "", `missing: set link \"br0\": mtu 1500`},
	} {
		sh(t, host, each.harm)
		plays.expect("18", 0, 1, each.says)

		if each.heal != "" {
			sh(t, host, each.heal)
		} else {
			plays.expect("20-2", 1, 0)
		}

		plays.expect("18", 0, 0)
	}

	// A change that nobody has confirmed.
	_, err := host.SSH(t.Context(), "root", module(s.programOn(t, host), `{"name":"br0","mtu":1400,"confirm_timeout":"1m","ticket":"t1"}`)+"; sleep 2")
	require.NoError(t, err)
	plays.expect("18", 0, 1, "change t1 is appl")

	got := s.run(t, host, wanted(map[string]any{"phase": "rollback"}))
	require.False(t, got.Failed || got.Unreachable, got.Msg)
	plays.expect("18", 0, 0)
}

// plays runs the numbered playbooks on some hosts, of which the first is the controller.
type plays struct {
	t    *testing.T
	site *site
	argv []string
	more []string
}

func (s *site) playsOn(t *testing.T, hosts []*lab.Host) *plays {
	t.Helper()

	var names []string
	for _, host := range hosts {
		names = append(names, host.Name())
	}

	// In the lab's own inventory the controller is always the first host.
	inventory := filepath.Join(t.TempDir(), "hosts.yaml")
	text := strings.Replace(s.inventory(t), "    management:\n      hosts:\n        n1: {}\n", "    management:\n      hosts:\n        "+names[0]+": {}\n", 1)
	require.Contains(t, text, "management:\n      hosts:\n        "+names[0])
	require.NoError(t, os.WriteFile(inventory, []byte(text), 0o600))

	return &plays{t: t, site: s, argv: []string{"-i", inventory, "--limit", strings.Join(names, ",")}}
}

func (s *site) inventory(t *testing.T) string {
	t.Helper()

	text, err := os.ReadFile(s.lab.InventoryFile())
	require.NoError(t, err)

	return string(text)
}

// run gives on how many hosts something changed, and failed, and what was said.
func (p *plays) run(number string) (changed, failed int, said string) {
	p.t.Helper()

	found, err := filepath.Glob(filepath.Join(p.site.root, "playbooks/10_baremetal_infra", number+"_*.yaml"))
	require.NoError(p.t, err)
	require.Len(p.t, found, 1)

	run := exec.CommandContext(p.t.Context(), "ansible-playbook", slices.Concat(p.argv, p.more, found)...)
	run.Dir, run.Env = dir, p.site.environ()
	out, _ := run.CombinedOutput() // the recap tells

	matches := recap.FindAllStringSubmatch(string(out), -1)
	require.NotEmpty(p.t, matches, "%s", out)

	for _, match := range matches {
		if match[3] != "0" {
			changed++
		}

		if match[4] != "0" || match[5] != "0" {
			failed++
		}
	}

	return changed, failed, string(out)
}

// expect runs a playbook and gives what it said, with the words that are expected in it.
func (p *plays) expect(number string, wantChanged, wantFailed int, says ...string) string {
	p.t.Helper()

	changed, failed, said := p.run(number)
	require.Equal(p.t, wantFailed, failed, "%s: hosts that failed\n%s", number, said)
	require.Equal(p.t, wantChanged, changed, "%s: hosts that changed\n%s", number, said)

	for _, words := range says {
		require.Contains(p.t, said, words, number)
	}

	return said
}

func (s *site) environ() []string {
	return append(os.Environ(), "ANSIBLE_COLLECTIONS_PATH="+filepath.Join(dir, "collections"), "ANSIBLE_CONFIG="+filepath.Join(dir, "ansible.cfg"),
		"ANSIBLE_HOME="+filepath.Join(dir, "home"), "ANSIBLE_SSH_ARGS=-o ControlMaster=auto -o ControlPersist=10s", "ANSIBLE_TIMEOUT=8",
		"PYTHONDONTWRITEBYTECODE=1", "ANSIBLE_NOCOLOR=1", "ANSIBLE_LOCALHOST_WARNING=0", "ANSIBLE_SSH_CONTROL_PATH_DIR="+filepath.Join(dir, "cp"))
}

// TestNobodyNeedsToConfirm makes a change that stays by itself.
func TestNobodyNeedsToConfirm(t *testing.T) {
	t.Parallel()

	s := needSite(t)
	host := s.borrow(t)

	got := s.run(t, host, wanted(map[string]any{"confirm_timeout": "0"}))
	require.False(t, got.Failed || got.Unreachable, got.Msg)
	assert.True(t, got.Changed)
	assert.Contains(t, strings.Join(got.Warnings, "\n"), "nothing will undo it")
	s.isWhole(t, host, "new")
	s.leave(t, host)
}
