// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/lab"
)

const (
	// confirmTimeout is what changes have that nobody is to confirm.
	confirmTimeout = 10 * time.Second
	// promise is when after a fault the host must be back; of a host that was switched off, after it has started.
	promise = confirmTimeout + 10*time.Second
)

// points are the places in a change at which something can happen, in their order (package armed).
var points = []string{"applying", "file-1", "file-2", "file-3", "kernel", "manager", "settled", "probed"}

// undoing are those in a restoration.
var undoing = []string{"restoring", "restored-kernel", "restored-file-1", "restored-file-2", "restored-file-3", "restored-manager", "restored"}

// fault is one row of the table in docs/network-safety.md.
type fault struct {
	kind, at string
	lines    string         // for the program on the host
	args     map[string]any // beside wanted's
	then     func(t *testing.T, s *site, host *lab.Host, running *task)
	boots    bool
	ends     string // "old", "new", or "old, resolved" where somebody has to say so
}

func faults() []fault {
	var all []fault

	for _, at := range points {
		all = append(all,
			fault{kind: "process that makes the change killed", at: at, lines: at + " kill", ends: "old"},
			fault{kind: "guard and process killed", at: at, lines: at + " guard", ends: "old"},
			fault{kind: "power cut", at: at, lines: at + " stop", then: powerCut, boots: true, ends: "old"},
			fault{kind: "SSH cut for good", at: at, lines: at + " pause", then: sshCut, ends: "old"})
	}

	// A gateway that nobody is makes the change fail and be undone; that is what is cut then.
	wrong := map[string]any{"gateway4": "10.177.94.250"}

	for _, at := range undoing {
		all = append(all,
			fault{kind: "guard killed while undoing", at: at, lines: at + " kill", args: wrong, ends: "old"},
			fault{kind: "power cut while undoing", at: at, lines: at + " stop", args: wrong, then: powerCut, boots: true, ends: "old"})
	}

	return append(all,
		fault{kind: "module killed", at: "armed", lines: "armed kill", ends: "old, resolved"},
		fault{kind: "module killed", at: "confirmed", lines: "confirmed kill", ends: "new"},
		fault{kind: "power cut", at: "armed", lines: "armed stop", then: powerCut, boots: true, ends: "old"},
		fault{kind: "power cut", at: "confirmed", lines: "confirmed stop", then: powerCut, boots: true, ends: "new"},
		fault{kind: "SSH cut for good", at: "armed", lines: "armed pause", then: sshCut, ends: "old"},
		fault{kind: "SSH cut for good", at: "confirmed", lines: "confirmed pause", then: sshCut, ends: "new"},
		fault{kind: "port set down", at: "kernel", lines: "kernel pause", then: portDown, ends: "either"},
		fault{kind: "port set down", at: "probed", lines: "probed pause", then: portDown, ends: "old"},
		fault{kind: "wrong gateway", at: "applying", lines: "applying pass", args: wrong, ends: "old"},
		fault{kind: "cable out for 5 s", at: "kernel", lines: "kernel pause", then: cableOut(5 * time.Second), ends: "either"},
		fault{kind: "cable out until after the time", at: "probed", lines: "probed pause", then: cableOut(confirmTimeout + 3*time.Second), ends: "old"},
		fault{kind: "controller unreachable after the change", at: "probed", lines: "probed pause", then: controllerGone, ends: "old"},
	)
}

func (f fault) String() string { return f.kind + " at " + f.at }

func TestNoFaultLosesTheHost(t *testing.T) {
	t.Parallel()

	s := needSite(t)

	for _, each := range faults() {
		t.Run(strings.ReplaceAll(each.String(), " ", "_"), func(t *testing.T) {
			t.Parallel()
			s.endures(t, each)
		})
	}
}

// endures has a fault happen, sees that the host has all that it had or all that it was to have, and that work on it can go on.
func (s *site) endures(t *testing.T, f fault) {
	t.Helper()

	host := s.borrow(t)
	sh(t, host, fmt.Sprintf("echo '%s' >/run/thinkube-fault", f.lines))

	args := wanted(f.args)
	if f.ends != "new" {
		args["confirm_timeout"] = confirmTimeout.String()
	}

	running := s.start(t, host, "net_bridge", args)
	t.Cleanup(running.cut) // before the host is given back

	there, err := host.File("/run/thinkube-fault." + f.at)
	require.NoError(t, err)

	// How long Ansible takes to get there is not what is judged.
	eventually(t, 3*time.Minute, "the fault's place was not reached", func() bool {
		_, err := os.Stat(there)

		return err == nil
	})

	reached := time.Now()

	if f.then != nil {
		f.then(t, s, host, running)
	}

	if f.boots {
		reached = time.Now()
	}

	if f.ends == "old, resolved" {
		running.wait(t)
		s.resolves(t, host)
	}

	eventually(t, time.Until(reached.Add(promise)), "the host is back and at rest", func() bool { return atRest(t.Context(), host) })
	t.Logf("back after %s", time.Since(reached).Round(100*time.Millisecond))

	if f.then == nil && f.ends != "old, resolved" {
		running.wait(t)
	} else if f.then != nil {
		running.cut()
	}

	ends := s.isWhole(t, host, f.ends)

	assert.Equal(t, ends != "new", again(t, host))
	s.isWhole(t, host, "new")
	s.leave(t, host)
}

// again makes the same change once more, without a fault, over one connection, and confirms it over another; it tells whether
// there was anything to do. The collection's part in that would take most of the time that these tests need.
func again(t *testing.T, host *lab.Host) bool {
	t.Helper()

	out, err := host.SSH(t.Context(), "root", module(anyProgram, `{"name":"br0","confirm_timeout":"90s","ticket":"again"}`))
	require.NoError(t, err)

	if strings.Contains(out, `"changed":false`) {
		return false
	}

	require.Contains(t, out, `"reconnect":`)
	eventually(t, 90*time.Second, "the change is confirmed over a new connection", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()

		// Until the change is made the answer waits, and a connection from before has to be opened anew.
		out, err = host.SSH(ctx, "root", module(anyProgram, `{"name":"br0","phase":"confirm","ticket":"again"}`))
		require.NotContains(t, out, `"failed":true`)

		return err == nil && strings.Contains(out, `"changed":true`)
	})

	return true
}

// atRest tells whether nothing is under way and a new connection to the host's address works. That is only tried once the first
// is so: each try costs the host more than all else.
func atRest(ctx context.Context, host *lab.Host) bool {
	path, err := host.File("/var/lib/thinkube/net_bridge/armed.json")
	if err != nil {
		return false
	}

	text, err := os.ReadFile(path)
	if !errors.Is(err, fs.ErrNotExist) && !strings.Contains(string(text), `"phase": "rolled_back"`) {
		return false
	}

	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()

	_, err = host.SSH(ctx, "root", "true")

	return err == nil
}

// isWhole tells that the host is as before, or as it was to become, and nothing between; and which.
func (s *site) isWhole(t *testing.T, host *lab.Host, ends string) string {
	t.Helper()

	if ends == "either" {
		ends = "old"

		if _, err := host.Run(t.Context(), "test -e /sys/class/net/br0 || ip link show br0"); err == nil {
			ends = "new"
		}
	}

	if ends != "new" {
		s.guardEnds(t, host)

		differs, err := host.Diff(t.Context(), before, "file /root/.cache", "file /root/.cache/**", "file /var/lib/thinkube", "file /var/lib/thinkube/**",
			"unit thinkube-net-bridge*", "file /home/admin/.sudo_as_admin_successful")
		require.NoError(t, err)
		require.Empty(t, differs)

		return ends
	}

	state := sh(t, host, "ip -br addr; ip route; ls /etc/systemd/network /var/lib/thinkube/net_bridge /etc/systemd/system/sysinit.target.wants; networkctl list --no-pager")
	require.Regexp(t, `(?m)^br0 +UP +`+strings.ReplaceAll(host.Address().String(), ".", `\.`)+"/24", state)
	require.Regexp(t, `default via 10\.177\.94\.1 dev br0`, state)
	require.Regexp(t, `eth0 +ether +enslaved +configured`, state)
	require.Contains(t, state, "05-thinkube-br0.netdev")
	require.Contains(t, state, "br0.json")
	require.NotContains(t, state, "armed.json")
	require.NotContains(t, state, "thinkube-net-bridge-boot")

	return ends
}

// guardEnds waits for that; of one that takes long it tells what it is doing.
func (s *site) guardEnds(t *testing.T, host *lab.Host) {
	t.Helper()

	gone := func() bool {
		_, err := host.Run(t.Context(), "test ! -e /run/systemd/transient/thinkube-net-bridge.service")

		return err == nil
	}

	for end := time.Now().Add(20 * time.Second); !gone() && time.Now().Before(end); {
		time.Sleep(100 * time.Millisecond)
	}

	if !gone() {
		t.Log(sh(t, host, "systemctl status --no-pager --full --lines 20 thinkube-net-bridge.service || true"))
	}

	// One that could not write something down tries again half a minute later.
	eventually(t, time.Minute, "the guard has ended", gone)
}

// resolves shows that a change that nobody looks after any more is told of, stands in the way, and can be taken away.
func (s *site) resolves(t *testing.T, host *lab.Host) {
	t.Helper()

	got := s.run(t, host, wanted(nil))
	require.Equal(t, "armed_change", got.Failure.Code, got.Msg)

	got = s.run(t, host, wanted(map[string]any{"phase": "rollback"}))
	require.False(t, got.Failed, got.Msg)
	require.True(t, got.Changed)
}

func powerCut(t *testing.T, _ *site, host *lab.Host, running *task) {
	t.Helper()
	require.NoError(t, host.Kill(t.Context()))
	running.cut()
	require.NoError(t, host.Start(t.Context()))
}

func sshCut(_ *testing.T, _ *site, _ *lab.Host, running *task) { running.cut() }

// portDown is somebody on the host itself.
func portDown(t *testing.T, _ *site, host *lab.Host, _ *task) {
	t.Helper()
	sh(t, host, "ip link set eth0 down")
}

func cableOut(how time.Duration) func(*testing.T, *site, *lab.Host, *task) {
	return func(t *testing.T, s *site, host *lab.Host, _ *task) {
		t.Helper()
		s.cable(t, host, "down")
		time.Sleep(how)
		s.cable(t, host, "up")
	}
}

// controllerGone lets the host talk to everybody but the controller, until long after its time is over.
func controllerGone(t *testing.T, _ *site, host *lab.Host, running *task) {
	t.Helper()
	sh(t, host, "nft add table ip gone; nft add chain ip gone in '{ type filter hook input priority 0; }'; nft add rule ip gone in tcp dport 22 drop")
	time.Sleep(confirmTimeout + 3*time.Second)
	running.cut()
	sh(t, host, "nft delete table ip gone")
}
