// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/lab"
)

// longTimeout is what no test here waits for: what happens, happens for another reason.
const longTimeout = "5m"

// cutOff leaves a host with a change that is made and waits for a confirmation, whose controller is gone.
func (s *site) cutOff(t *testing.T, host *lab.Host, confirmTimeout string) {
	t.Helper()
	sh(t, host, "echo 'probed pause' >/run/thinkube-fault")

	running := s.start(t, host, "net_bridge", wanted(map[string]any{"confirm_timeout": confirmTimeout}))
	eventually(t, 2*time.Minute, "the change is nearly made", func() bool {
		require.False(t, running.over(), "the task is over: %s", &running.out)

		return holds(t, host, "test -e /run/thinkube-fault.probed")
	})
	running.cut()
	eventually(t, 10*time.Second, "the change is made", func() bool { return holds(t, host, isPhase("applied")) })
}

func isPhase(phase string) string {
	return `grep -q '"phase": "` + phase + `"' /var/lib/thinkube/net_bridge/armed.json`
}

func holds(t *testing.T, host *lab.Host, command string) bool {
	t.Helper()

	_, err := host.Run(t.Context(), command)

	return err == nil
}

// goesOn makes the change again and takes it back, to show that nothing was left that is in the way.
func (s *site) goesOn(t *testing.T, host *lab.Host) {
	t.Helper()
	// The kernel makes it anew, in its own time.
	eventually(t, 20*time.Second, "the link has its own address", func() bool {
		return holds(t, host, "ip -6 addr show dev eth0 scope link -tentative | grep -q fe80")
	})
	s.isWhole(t, host, "old")
	assert.True(t, again(t, host))
	s.leave(t, host)
}

// TestGuardToldToStop ends the guard as an administrator does: that must not leave the change to nobody.
func TestGuardToldToStop(t *testing.T) {
	t.Parallel()

	s := needSite(t)

	for name, how := range map[string]string{
		"by_systemctl_stop": "systemctl stop thinkube-net-bridge.service",
		"by_a_signal":       "kill -TERM $(systemctl show --value -p MainPID thinkube-net-bridge.service)",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			host := s.borrow(t)
			s.cutOff(t, host, longTimeout)
			sh(t, host, how)
			eventually(t, 10*time.Second, "the change is undone", func() bool { return atRest(t.Context(), host) })
			assert.True(t, holds(t, host, "grep -q 'told to stop' /var/lib/thinkube/net_bridge/armed.json"))
			s.goesOn(t, host)
		})
	}
}

// smallDisk puts the module's folder on a file system of its own, which can be filled and taken away.
func smallDisk(t *testing.T, host *lab.Host) {
	t.Helper()
	sh(t, host, "mkdir -p /var/lib/thinkube && mount -t tmpfs -o size=40m tmpfs /var/lib/thinkube")
}

// TestFullDiskDoesNotStopUndoing fills the disk between the change and its deadline.
func TestFullDiskDoesNotStopUndoing(t *testing.T) {
	t.Parallel()

	s := needSite(t)
	host := s.borrow(t)
	smallDisk(t, host)
	s.cutOff(t, host, "15s")

	sh(t, host, "cat /dev/zero >/var/lib/thinkube/fill || true")
	require.False(t, holds(t, host, "echo something longer than nothing >/var/lib/thinkube/one-more-file && test -s /var/lib/thinkube/one-more-file"))
	eventually(t, 15*time.Second+10*time.Second, "the change is undone", func() bool { return atRest(t.Context(), host) })

	sh(t, host, "umount -l /var/lib/thinkube")
	s.goesOn(t, host)
}

// TestReadOnlyDiskDoesNotStopUndoing has a disk that takes nothing at all any more, as after an error.
func TestReadOnlyDiskDoesNotStopUndoing(t *testing.T) {
	t.Parallel()

	s := needSite(t)
	host := s.borrow(t)
	smallDisk(t, host)
	s.cutOff(t, host, "15s")

	// Over it, since a file system with a file open for writing cannot be made read-only by hand.
	sh(t, host, "mount --bind /var/lib/thinkube /var/lib/thinkube && mount -o remount,ro,bind /var/lib/thinkube")
	eventually(t, 15*time.Second+10*time.Second, "the network is as before", func() bool {
		out, err := host.SSH(t.Context(), "root", "ip link show br0 || echo gone")

		return err == nil && strings.Contains(out, "gone")
	})
	assert.False(t, holds(t, host, "ls /etc/systemd/network | grep thinkube"))
	assert.True(t, holds(t, host, isPhase("applied")), "nothing could be written down")

	sh(t, host, "umount -l /var/lib/thinkube")
	eventually(t, 45*time.Second, "it is written down when that is possible again", func() bool { return atRest(t.Context(), host) })
	sh(t, host, "umount -l /var/lib/thinkube")
	s.goesOn(t, host)
}

// TestWhatCannotBeUndoneIsKept has files that cannot be written back: the kernel is as before, and all is kept until it works.
func TestWhatCannotBeUndoneIsKept(t *testing.T) {
	t.Parallel()

	s := needSite(t)
	host := s.borrow(t)
	s.cutOff(t, host, "15s")

	sh(t, host, "mount --bind /etc/systemd/network /etc/systemd/network && mount -o remount,ro,bind /etc/systemd/network")
	eventually(t, 15*time.Second+20*time.Second, "undoing was given up", func() bool { return holds(t, host, isPhase("stuck")) })

	out, err := host.SSH(t.Context(), "root", "ip route")
	require.NoError(t, err, "the host is reached all the same")
	assert.NotContains(t, out, "br0")

	for _, phase := range []string{"apply", "confirm"} {
		got := s.run(t, host, wanted(map[string]any{"phase": phase}))
		assert.Equal(t, "not_undone", got.Failure.Code, got.Msg)
	}

	got := s.run(t, host, wanted(map[string]any{"phase": "rollback"}))
	assert.True(t, got.Failed, "what stands in the way is still there")
	assert.True(t, holds(t, host, isPhase("stuck")))

	sh(t, host, "umount /etc/systemd/network")

	got = s.run(t, host, wanted(map[string]any{"phase": "rollback"}))
	assert.False(t, got.Failed, got.Msg)
	assert.True(t, got.Changed)
	s.goesOn(t, host)
}

// TestTheTaskAgainConfirms runs a task again whose controller was cut off when the change was made.
func TestTheTaskAgainConfirms(t *testing.T) {
	t.Parallel()

	s := needSite(t)
	host := s.borrow(t)
	s.cutOff(t, host, longTimeout)

	got := s.run(t, host, wanted(map[string]any{"confirm_timeout": longTimeout}))
	require.False(t, got.Failed, got.Msg)
	assert.True(t, got.Changed)
	s.isWhole(t, host, "new")
	s.leave(t, host)
}

// TestConnectionThatProvesNothing is refused before anything is touched, since nothing could confirm the change.
func TestConnectionThatProvesNothing(t *testing.T) {
	t.Parallel()

	s := needSite(t)
	host := s.borrow(t)
	program := s.programOn(t, host)

	for _, connection := range []string{"local", "community.docker.docker", "ssh"} { // ssh: without an sshd among the parents
		out := sh(t, host, strings.Replace(module(program, `{"name":"br0"}`), `"args"`, `"connection":"`+connection+`","args"`, 1))
		assert.Contains(t, out, `"old_connection"`)
		assert.Contains(t, out, "nothing was touched")
	}

	s.keep(t, host)
}
