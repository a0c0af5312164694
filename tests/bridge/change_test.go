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
// without an answer: the number in docs/network-safety.md.
func TestHowLongTheHostIsAway(t *testing.T) {
	s := needSite(t)
	host := s.borrow(t)

	var there, back []time.Duration

	for range 7 {
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
}

// TestConnectionsSurvive has a session over SSH talk all the while.
func TestConnectionsSurvive(t *testing.T) {
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
}

// TestBadInputTouchesNothing asks for what cannot be.
func TestBadInputTouchesNothing(t *testing.T) {
	s := needSite(t)
	host := s.borrow(t)
	other := <-s.hosts
	s.hosts <- other

	sh(t, host, "ip link add taken type veth peer name takenpeer")

	for name, each := range map[string]struct {
		args map[string]any
		code string
	}{
		"name too long":           {map[string]any{"name": "a-name-that-is-too-long"}, "invalid_argument"},
		"name of another link":    {map[string]any{"name": "taken"}, "name_taken"},
		"address without prefix":  {map[string]any{"addresses": []string{"10.177.94.77"}}, "invalid_argument"},
		"address of another host": {map[string]any{"addresses": []string{other.Address().String() + "/24"}}, "address_in_use"},
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
	s.isWhole(t, host, "old")
}

// TestConfirmNeedsANewConnection applies without the collection's own way of confirming.
func TestConfirmNeedsANewConnection(t *testing.T) {
	s := needSite(t)
	host := s.borrow(t)

	// The program itself, as stock Ansible runs a module: nobody reconnects for it.
	program := strings.TrimSpace(s.programOn(t, host))
	module := func(args string) string {
		return fmt.Sprintf(`echo '{"module":"net_bridge","args":%s,"key":"%s"}' | %s exec`, args, strings.Repeat("A", 43)+"=", program)
	}

	out, err := host.SSH(t.Context(), "root", module(`{"name":"br0","confirm_timeout":"20s","ticket":"t1"}`)+"; sleep 4; "+module(`{"name":"br0","phase":"confirm","ticket":"t1"}`))
	require.NoError(t, err)
	assert.Contains(t, out, "_thinkube_ask", "it wants to go on over a new connection")
	assert.Contains(t, out, `"reconnect"`, "and again when it is still the old one")
	sh(t, host, `grep -q '"phase": "applied"' /var/lib/thinkube/net_bridge/armed.json`)

	out, err = host.SSH(t.Context(), "root", module(`{"name":"br0","phase":"confirm","ticket":"t2"}`))
	require.NoError(t, err)
	assert.Contains(t, out, "armed_change", "another ticket")

	out, err = host.SSH(t.Context(), "root", module(`{"name":"br0","phase":"confirm","ticket":"t1"}`))
	require.NoError(t, err)
	assert.Contains(t, out, `"changed":true`)
	s.isWhole(t, host, "new")
}

// programOn puts the program on the host and gives its path.
func (s *site) programOn(t *testing.T, host *lab.Host) string {
	t.Helper()

	got := s.start(t, host, "net_bridge_info", map[string]any{"probe": false}).wait(t)
	require.False(t, got.Failed, got.Msg)

	return sh(t, host, "ls -d /root/.cache/thinkube/thinkube_*")
}

var recap = regexp.MustCompile(`(?m)^(\S+) +: ok=(\d+) +changed=(\d+) +unreachable=(\d+) +failed=(\d+)`)

// TestPlaybooks runs the way of the numbers: there, again, test, sabotage, back, again.
func TestPlaybooks(t *testing.T) {
	s := needSite(t)
	hosts := []*lab.Host{s.borrow(t), s.borrow(t), s.borrow(t)}

	play := func(number string) (changed, failed int, said string) {
		found, err := filepath.Glob(filepath.Join(s.root, "playbooks/10_baremetal_infra", number+"_*.yaml"))
		require.NoError(t, err)
		require.Len(t, found, 1)

		run := exec.CommandContext(t.Context(), "ansible-playbook", "-i", s.lab.InventoryFile(), found[0])
		run.Dir, run.Env = dir, s.environ()
		out, _ := run.CombinedOutput() // the recap tells

		matches := recap.FindAllStringSubmatch(string(out), -1)
		require.NotEmpty(t, matches, "%s", out)

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

	expect := func(number string, wantChanged, wantFailed int) {
		t.Helper()

		changed, failed, said := play(number)
		require.Equal(t, wantFailed, failed, "%s: hosts that failed\n%s", number, said)
		require.Equal(t, wantChanged, changed, "%s: hosts that changed\n%s", number, said)
	}

	expect("18", 0, 3)
	expect("20-1", 3, 0)
	expect("20-1", 0, 0)
	expect("20-2", 3, 0)
	expect("20-2", 0, 0)
	expect("20-3", 0, 0)
	expect("18", 0, 0)
	expect("19-3", 0, 3)

	for _, sabotage := range []string{
		"ip route del default",
		"echo >>/etc/systemd/network/05-thinkube-br0.network",
		"ip link set br0 mtu 1400",
	} {
		sh(t, hosts[1], sabotage)
		expect("18", 0, 1)
		expect("20-2", 1, 0)
		expect("18", 0, 0)
	}

	expect("19-1", 3, 0)
	expect("19-2", 3, 0)
	expect("19-2", 0, 0)
	expect("19-3", 0, 0)
	expect("18", 0, 3)

	for _, host := range hosts {
		s.isWhole(t, host, "old")
		require.NotContains(t, sh(t, host, "ls /var/lib"), "thinkube")
	}
}

func (s *site) environ() []string {
	return append(os.Environ(), "ANSIBLE_COLLECTIONS_PATH="+filepath.Join(dir, "collections"), "ANSIBLE_CONFIG="+filepath.Join(dir, "ansible.cfg"),
		"ANSIBLE_HOME="+filepath.Join(dir, "home"), "ANSIBLE_SSH_ARGS=-o ControlMaster=auto -o ControlPersist=10s", "ANSIBLE_TIMEOUT=3",
		"PYTHONDONTWRITEBYTECODE=1", "ANSIBLE_NOCOLOR=1", "ANSIBLE_LOCALHOST_WARNING=0", "ANSIBLE_SSH_CONTROL_PATH_DIR="+filepath.Join(dir, "cp"))
}

// TestNobodyNeedsToConfirm makes a change that stays by itself.
func TestNobodyNeedsToConfirm(t *testing.T) {
	s := needSite(t)
	host := s.borrow(t)

	got := s.run(t, host, wanted(map[string]any{"confirm_timeout": "0"}))
	require.False(t, got.Failed || got.Unreachable, got.Msg)
	assert.True(t, got.Changed)
	assert.Contains(t, strings.Join(got.Warnings, "\n"), "nothing will undo it")
	s.isWhole(t, host, "new")
}
