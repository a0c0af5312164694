// SPDX-License-Identifier: Apache-2.0

package farm

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// asChild makes this program one that starts a farm and then waits to be killed.
const asChild = "FARM_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(asChild) == "" {
		os.Exit(m.Run())
	}

	runtime.LockOSThread()

	f, err := Start()
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}

	fmt.Println(f.Folder)
	time.Sleep(time.Hour)
}

// need skips a test where there can be no farm; it fails where there must be one.
func need(t *testing.T) {
	t.Helper()

	if missing := MissingTools(); missing != "" {
		if os.Getenv("CI") == "true" {
			t.Fatal(missing)
		}

		t.Skip(missing)
	}

	runtime.LockOSThread() // until the test's goroutine ends: what is started ends with the thread
}

// start gives a farm that ends with the test.
func start(t *testing.T) *Farm {
	t.Helper()
	need(t)

	f, err := Start()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, f.Stop()) })

	return f
}

// TestOwners reaches all hosts at once, each as its owner.
func TestOwners(t *testing.T) {
	f := start(t)
	commands := make([]*exec.Cmd, Addresses)
	outputs := make([]strings.Builder, Addresses)

	for i := range commands {
		commands[i] = f.ssh(i+1, "set -- $SSH_CONNECTION; echo $3 $(id -un) $HOME $(stat -c %a:%U $HOME) $(sudo -n id -un)")
		commands[i].Stdout, commands[i].Stderr = &outputs[i], &outputs[i]
		require.NoError(t, commands[i].Start())
	}

	for i, command := range commands {
		assert.NoError(t, command.Wait())
		assert.Equal(t, fmt.Sprintf("%[1]s %[2]s /home/%[2]s 755:%[2]s root\n", Address(i+1), Owner(i+1)), outputs[i].String())
	}
}

func (f *Farm) ssh(host int, script string) *exec.Cmd {
	return exec.Command("ssh", "-F", "none", "-i", f.Path("key"), "-p", f.Port, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-l", Owner(host), Address(host), script)
}

// TestManySessionsOfOneHost is what a controller with many forks and ControlPersist does.
func TestManySessionsOfOneHost(t *testing.T) {
	f := start(t)
	control := f.Path("control")

	master := f.ssh(1, "sleep 60")
	master.Args = append([]string{"ssh", "-M", "-S", control}, master.Args[1:]...)
	require.NoError(t, master.Start())

	t.Cleanup(func() { _ = master.Process.Kill(); _ = master.Wait() })
	require.Eventually(t, func() bool { _, err := os.Stat(control); return err == nil }, 10*time.Second, 20*time.Millisecond)

	sessions := make([]*exec.Cmd, 60)
	for i := range sessions {
		sessions[i] = f.ssh(1, "sleep 0.5")
		sessions[i].Args = append([]string{"ssh", "-S", control}, sessions[i].Args[1:]...)
		require.NoError(t, sessions[i].Start())
	}

	for _, session := range sessions {
		assert.NoError(t, session.Wait())
	}
}

func TestStopLeavesNothing(t *testing.T) {
	f := start(t)
	assert.NotEmpty(t, remains(t, f.Folder), "the test's own condition")

	require.NoError(t, f.Stop())
	assert.Empty(t, remains(t, f.Folder))
}

// TestKilledLeavesNothing kills a process that has started hosts, in each way that a test can end before its time.
func TestKilledLeavesNothing(t *testing.T) {
	need(t)

	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			need(t)

			child := exec.Command(os.Args[0])
			child.Env = append(os.Environ(), asChild+"=1")
			child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}

			stdout, err := child.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, child.Start())

			lines := bufio.NewScanner(stdout)
			require.True(t, lines.Scan())
			folder := lines.Text()
			require.True(t, filepath.IsAbs(folder), folder)
			require.NotEmpty(t, remains(t, folder), "the test's own condition")

			// Its whole group, as ^C in a terminal does.
			require.NoError(t, syscall.Kill(-child.Process.Pid, signal))
			require.Error(t, child.Wait())
			assert.Eventually(t, func() bool { return len(remains(t, folder)) == 0 }, 20*time.Second, 100*time.Millisecond,
				"still there: %v", remains(t, folder))
		})
	}
}

// remains lists what is there of a farm: its folder, its processes, its mounts in whatever namespace.
func remains(t *testing.T, folder string) []string {
	t.Helper()

	found, err := filepath.Glob(folder)
	require.NoError(t, err)

	processes, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)

	for _, process := range processes {
		for _, name := range []string{"cmdline", "mountinfo"} {
			text, _ := os.ReadFile(filepath.Join(process, name)) // the process may be gone
			if strings.Contains(string(text), folder) {
				found = append(found, filepath.Join(process, name))
			}
		}
	}

	return found
}
