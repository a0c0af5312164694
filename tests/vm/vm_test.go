// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := RemovePrograms(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// TestRunsProgramsInAGuest is all that a guest without a root does.
func TestRunsProgramsInAGuest(t *testing.T) {
	t.Parallel()
	var before int

	guest := Boot(t, Machine{
		Cmdline: "thinkube.test=1",
		Modules: []string{"8021q", "bridge", "bonding max_bonds=0", "dummy numdummies=3"},
		Files:   map[string]File{"/etc/greeting": {Data: []byte("hello\n"), Mode: 0o600}, "/etc/passwd-here": {From: "/etc/passwd"}},
		Args:    []string{"-device", "pcie-root-port,id=port1,chassis=1,slot=1,addr=4.0"},
		Before:  func(pid int) error { before = pid; return syscall.Kill(pid, 0) },
	})
	ctx := t.Context()
	sh := func(script string) string {
		t.Helper()
		out, err := guest.Sh(ctx, script)
		require.NoError(t, err)
		return strings.TrimSpace(out)
	}

	assert.NotZero(t, before)
	assert.Equal(t, guest.Kernel.Version, sh("uname -r"))
	assert.Contains(t, sh("cat /proc/cmdline"), "thinkube.test=1")
	assert.Equal(t, "3", sh("ls -d /sys/class/net/dummy* | wc -l"), "a module's parameter")
	assert.Equal(t, "0x1b36 0x000c", sh("cd /sys/bus/pci/devices/0000:00:04.0; echo $(cat vendor device)"), "a device that was asked for")
	sh("ip link add br0 type bridge; echo 1 >/sys/class/net/br0/bridge/vlan_filtering; ip link add link dummy0 name dummy0.10 type vlan id 10")
	assert.Equal(t, "hello 600", sh("echo $(cat /etc/greeting) $(stat -c %a /etc/greeting)"))

	got, err := guest.RunInput(ctx, []byte("in"), "sh", "-c", "cat; echo err >&2; exit 3")
	require.NoError(t, err)
	assert.Equal(t, Result{Code: 3, Stdout: "in", Stderr: "err\n"}, got)
	got, err = guest.Run(ctx, "sh", "-c", "kill -9 $$")
	require.NoError(t, err)
	assert.Equal(t, 137, got.Code)
	_, err = guest.Run(ctx, "no-such-program")
	require.ErrorContains(t, err, "no-such-program")
	_, err = guest.Sh(ctx, "echo why; exit 1")
	require.ErrorContains(t, err, "why")

	// What is in no line, and more than a buffer.
	big := []byte(strings.Repeat("\x00\xff\n", 1<<16))
	require.NoError(t, guest.Write(ctx, "/tmp/deep/down", big, 0o640))
	back, err := guest.Read(ctx, "/tmp/deep/down")
	require.NoError(t, err)
	assert.Equal(t, big, back)
	assert.Equal(t, "640", sh("stat -c %a /tmp/deep/down"))

	// One that takes too long is killed, with its children, and others go on meanwhile.
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	started := make(chan error, 1)
	go func() {
		_, err := guest.Run(short, "sh", "-c", "sleep 1000 & sleep 1000")
		started <- err
	}()
	assert.Equal(t, "now", sh("echo now"))
	require.ErrorIs(t, <-started, context.DeadlineExceeded)
	require.NoError(t, eventually(ctx, 10*time.Second, "the children are gone", func() bool { return sh("ps | grep -c '[s]leep 1000' || true") == "0" }))

	require.NoError(t, guest.Reboot(ctx))
	_, err = guest.Read(ctx, "/tmp/deep/down")
	require.Error(t, err, "without a disk nothing is kept")
	assert.Equal(t, "hello", sh("cat /etc/greeting"))

	require.NoError(t, exits(guest.Run(ctx, "sh", "-c", "echo c >/proc/sysrq-trigger")))
	require.NoError(t, guest.Wait(ctx))
	assert.Contains(t, guest.Serial(), "Kernel panic", "the console tells")
}

// exits is no error where a guest ended while something ran in it.
func exits(_ Result, err error) error {
	if err == nil {
		return errors.New("the guest went on")
	}
	return nil
}

// TestBadMachines asks for what cannot be.
func TestBadMachines(t *testing.T) {
	t.Parallel()
	Need(t)
	for name, each := range map[string]struct {
		machine Machine
		says    string
	}{
		"no such module":  {Machine{Modules: []string{"no-such-module"}}, `no module "no_such_module"`},
		"no such file":    {Machine{Files: map[string]File{"/x": {From: "/no/such/file"}}}, "/no/such/file"},
		"relative path":   {Machine{Files: map[string]File{"x": {}}}, `"x": must have an absolute path`},
		"no such device":  {Machine{Args: []string{"-device", "no-such-device"}}, "no-such-device"},
		"no such program": {Machine{Before: func(int) error { return errors.New("not like this") }}, "not like this"},
	} {
		guest, err := prepare(t.Context(), each.machine)
		if err == nil {
			err = guest.start(t.Context())
		}
		guest.stop()
		require.NoError(t, os.RemoveAll(guest.dir))
		require.ErrorContains(t, err, each.says, name)
	}
}

// TestNothingIsSkippedUnderCI runs a test on a machine without QEMU: only under CI=true that is a failure, and there always.
func TestNothingIsSkippedUnderCI(t *testing.T) {
	t.Parallel()
	for _, each := range []struct {
		ci, lab string
		says    string
		fails   bool
	}{
		{"true", "", qemuProgram, true},
		{"true", "1", qemuProgram, true},
		{"", "1", "SKIP", false},
		{"", "", "SKIP", false},
	} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.v", "-test.run", "^TestBadMachines$")
		cmd.Env = []string{"PATH=/nonexistent", "HOME=" + t.TempDir(), "CI=" + each.ci, "THINKUBE_LAB=" + each.lab}
		out, err := cmd.CombinedOutput()
		assert.Equal(t, each.fails, err != nil, "%+v: %s", each, out)
		assert.Contains(t, string(out), each.says, "%+v", each)
	}
}

// eventually polls until check is true; the error says what was waited for.
func eventually(ctx context.Context, limit time.Duration, what string, check func() bool) error {
	for end := time.Now().Add(limit); !check(); {
		if time.Now().After(end) {
			return fmt.Errorf("not within %s: %s", limit, what)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
	return nil
}
