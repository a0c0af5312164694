// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/transport/farm"
)

// sleeping starts a play whose task holds a secret and runs for a while, on a host as a user and as root.
func (f *testHosts) sleeping(t *testing.T, secret string) (*playing, string) {
	t.Helper()

	log := f.emptyLog(t, "sleeping")
	play := f.start(t, os.Environ(), "secret", inventory{hosts: map[string]map[string]any{
		"plain": ssh(farm.Plain, 1, map[string]any{"log": log}),
		"root":  ssh(farm.Sudo, 2, map[string]any{"log": log, "ansible_become": true, "ansible_become_password": farm.Password}),
	}}, setup{args: []string{"-vvvv"}, env: []string{"THE_SECRET=" + secret, "THINKUBE_BROKER_LOG=" + f.Path("notes/broker.log")}})

	f.await(t, log, "began\nbegan")
	t.Cleanup(func() {
		play.kill()
		_ = play.playbook.Wait() // the error is the kill
		f.nothingLeft(t)
	})

	return play, f.brokerFolder(t)
}

// brokerFolder is where the only broker listens.
func (f *testHosts) brokerFolder(t *testing.T) string {
	t.Helper()

	sockets, err := filepath.Glob(f.Path("controller/.ansible/tmp/*/thinkube.sock"))
	require.NoError(t, err)
	require.Len(t, sockets, 1)

	return filepath.Dir(sockets[0])
}

// TestNobodyElseIsServed has other users try to reach the broker, and looks for anything that listens on a host.
func TestNobodyElseIsServed(t *testing.T) {
	f := hosts(t)
	before := f.listening(t)
	_, folder := f.sleeping(t, "a secret of this test")

	assert.Equal(t, before, f.listening(t), "nothing new listens on a host")

	for name, mode := range map[string]os.FileMode{"": 0o700 | os.ModeDir, "thinkube.sock": 0o600 | os.ModeSocket} {
		info, err := os.Lstat(filepath.Join(folder, name))
		require.NoError(t, err)
		assert.Equal(t, mode, info.Mode(), name)
		assert.EqualValues(t, os.Geteuid(), info.Sys().(*syscall.Stat_t).Uid)
	}

	connect := func() string {
		script := `import socket, sys
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(sys.argv[1])
except OSError as error:
    sys.exit(error.strerror)
try:
    s.sendall(b"T" + b"\0\0\0\2\0\0\0\0h{}")
    print("answer", s.recv(100))
except (ConnectionResetError, BrokenPipeError):
    print("closed")`
		output, _ := exec.Command("setpriv", "--reuid", "61399", "--clear-groups", ansiblesPython(t), "-c", script, filepath.Join(folder, "thinkube.sock")).CombinedOutput()

		return strings.TrimSpace(string(output))
	}

	assert.Equal(t, "Permission denied", connect())

	// Were the folder and the socket open to all, the broker would still look who asks.
	for path := folder; path != f.Folder; path = filepath.Dir(path) {
		require.NoError(t, os.Chmod(path, 0o755))
	}

	require.NoError(t, os.Chmod(filepath.Join(folder, "thinkube.sock"), 0o666))
	assert.Contains(t, []string{"closed", "answer b''"}, connect())

	log, err := os.ReadFile(f.Path("notes/broker.log"))
	require.NoError(t, err)
	assert.Contains(t, string(log), "a connection of another user was closed")
}

// TestForeignBroker has a socket that is not this user's in the place of the broker's.
func TestForeignBroker(t *testing.T) {
	f := hosts(t)
	python := ansiblesPython(t)
	script := `import os, socket, sys, types
sys.path.insert(0, sys.argv[1])
from ansible import constants as C
C.DEFAULT_LOCAL_TMP = sys.argv[2]
from ansible_collections.thinkube.infra.plugins.plugin_utils import agent
try:
    with agent._connect(1):
        print("connected")
except agent.Unavailable as error:
    print(error)`
	connect := func(folder string) string {
		output, err := exec.Command(python, "-c", script, f.Path("collections"), folder).CombinedOutput()
		require.NoError(t, err, string(output))

		return strings.TrimSpace(string(output))
	}

	folder := t.TempDir()
	require.NoError(t, os.Chmod(folder, 0o755))
	assert.Equal(t, "the folder "+folder+" is not private to this user", connect(folder))

	require.NoError(t, os.Chmod(folder, 0o700))
	require.NoError(t, os.Chown(folder, farm.UID(farm.Other), -1))
	assert.Equal(t, "the folder "+folder+" is not private to this user", connect(folder))

	require.NoError(t, os.Chown(folder, 0, -1))

	listener := exec.Command(python, "-c", `import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
os.setresuid(61399, 61399, 61399)
s.listen()
print("listens", flush=True)
s.accept()[0].recv(1)`, filepath.Join(folder, "thinkube.sock"))
	out, err := listener.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, listener.Start())

	defer func() {
		_ = listener.Process.Kill()
		_ = listener.Wait() // the error is the kill
	}()

	_, err = fmt.Fscan(out, new(string))
	require.NoError(t, err)
	assert.Equal(t, "the broker's socket belongs to another user", connect(folder))

	long := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	require.NoError(t, os.Mkdir(long, 0o700))
	assert.Equal(t, "connected", connect(long), "longer than the path of a socket may be")
	f.nothingLeft(t)
}

// ansiblesPython is the interpreter that ansible-playbook runs with.
func ansiblesPython(t *testing.T) string {
	t.Helper()

	path, err := exec.LookPath("ansible-playbook")
	require.NoError(t, err)

	text, err := os.ReadFile(path)
	require.NoError(t, err)

	first, _, _ := strings.Cut(string(text), "\n")

	return strings.Fields(strings.TrimPrefix(first, "#!"))[0]
}

// listening lists the hosts' listening sockets.
func (f *testHosts) listening(t *testing.T) string {
	t.Helper()

	// The state of a listening socket is 0A in /proc/net/tcp, and 01 with the flag 10000 in /proc/net/unix. Other
	// programs share the network of the hosts: only sockets that an agent holds count.
	held := []string{}

	for _, number := range f.onHosts(t) {
		held = append(held, f.inside(t, fmt.Sprintf(`for fd in /proc/%d/fd/*; do s=$(readlink $fd) || continue; i=${s#socket:[}; i=${i%%]}
case $s in socket:*) awk -v i=$i '$4=="0A" && $10==i' /proc/net/tcp /proc/net/tcp6; awk -v i=$i '$4=="00010000" && $7==i' /proc/net/unix;; esac; done`, number)))
	}

	return strings.TrimSpace(strings.Join(held, "\n"))
}

// TestSecretIsOnlyInTheRequest looks for the secret of a task that runs: in files, command lines and environments on both
// sides, and in what Ansible prints.
func TestSecretIsOnlyInTheRequest(t *testing.T) {
	f := hosts(t)
	secret := "tell nobody of this 4711"
	play, folder := f.sleeping(t, secret)

	// The environment of this test's own ansible-playbook has it, from where its workers have it.
	for _, broker := range f.brokers(t) {
		for _, name := range []string{"cmdline", "environ"} {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", broker, name))
			require.NoError(t, err)
			assert.NotContains(t, string(text), secret, name)
			assert.NotContains(t, string(text), "THE_SECRET", name)
		}
	}

	// From a file, because a pattern in grep's own command line would be found there.
	require.NoError(t, os.WriteFile(f.Path("pattern"), []byte(secret), 0o600))

	found := f.inside(t, fmt.Sprintf(`{ grep -laF -f %[1]s /proc/[0-9]*/cmdline /proc/[0-9]*/environ
grep -rlaF -f %[1]s --exclude pattern /home /root /tmp /var/tmp /run; } 2>/dev/null || :`, f.Path("pattern")))
	assert.Empty(t, found, "on the hosts")

	output, _ := exec.Command("grep", "-rlaF", "-f", f.Path("pattern"), folder, f.Path("notes"), f.Path("control"), f.Path("controller")).CombinedOutput()
	assert.Empty(t, string(output), "on the controller")

	play.kill()
	assert.NotContains(t, play.wait().output, secret)
}
