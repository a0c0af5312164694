// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/transport/farm"
)

// TestOneAgent follows the process that runs the tasks of a host through a play.
func TestOneAgent(t *testing.T) {
	eachCore(t, func(t *testing.T, f *testHosts, environ []string) {
		f.forget(t)

		collections, other := f.collectionThatChanges(t)
		variables := func(n int, more map[string]any) map[string]any {
			more["other"], more["other_build"] = farm.Other, other
			more["libexec"] = filepath.Join(collections, "ansible_collections/thinkube/infra/libexec")

			return ssh(farm.Plain, n, more)
		}
		play := f.play(t, environ, "agent", inventory{hosts: map[string]map[string]any{
			"plain": variables(1, map[string]any{}),
			"root":  variables(2, map[string]any{"ansible_become": true}),
			// Who sets a ControlPath of his own must not lose reset_connection by it.
			"own_path": variables(3, map[string]any{"ansible_ssh_args": "-o ControlMaster=auto -o ControlPersist=60s -o ControlPath=" + f.Path("control") + "/own-%C"}),
		}}, setup{collections: filepath.Base(collections)})
		require.Equal(t, 0, play.code, play.output)

		for _, host := range []string{"plain", "root", "own_path"} {
			agent := func(task string) string { return play.of(t, host, task).text("pid") }
			first := agent("first")

			assert.Equal(t, first, agent("second"), host)
			assert.Equal(t, first, agent("check mode"), host)
			assert.Equal(t, first, agent("after all that"), host)

			items := play.of(t, host, "an environment").Result["results"].([]any)
			seen := []string{}

			for _, item := range items {
				item := result{Result: item.(map[string]any)}
				assert.Equal(t, item.text("item"), item.text("env", "GREETING"), host)
				seen = append(seen, item.text("pid"))
			}

			assert.NotContains(t, seen, first, "%s: an environment is another process", host)
			assert.NotEqual(t, seen[0], seen[1], host)
			assert.Equal(t, seen[0], seen[2], "%s: the same environment is the same process", host)

			become := play.of(t, host, "another user")
			assert.Equal(t, fmt.Sprint(farm.UID(farm.Other)), become.text("user"), host)
			assert.NotEqual(t, first, become.text("pid"), host)
			assert.Empty(t, play.of(t, host, "on a delegated host").text("env", "SSH_CONNECTION"), host)

			assert.NotEqual(t, first, agent("after a reset"), host)
			assert.NotEqual(t, agent("after a reset"), agent("after another build"), host)
			assert.NotEqual(t, play.of(t, host, "first").text("program"), play.of(t, host, "after another build").text("program"), host)
			assert.NotEqual(t, agent("after another build"), agent("after the host broke the connection"), host)
		}

		f.nothingLeft(t)
	})
}

// collectionThatChanges makes a collection of the test's own, and a folder with another build of its program.
func (f *testHosts) collectionThatChanges(t *testing.T) (collections, other string) {
	t.Helper()

	folder, err := os.MkdirTemp(f.Folder, "changes")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(folder, 0o755))

	// A build of other bytes that does the same.
	path := filepath.Join(folder, "echo")
	build := exec.Command("go", "build", "-o", path, "../../modules/internal/agent/echo")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")

	output, err := build.CombinedOutput()
	require.NoError(t, err, string(output))

	second, err := farm.Pack(path)
	require.NoError(t, err)
	require.NotEqual(t, f.program.SHA256, second.SHA256)
	require.NoError(t, farm.WriteCollection(folder, "../..", f.program))
	require.NoError(t, farm.WriteCollection(filepath.Join(folder, "second"), "../..", second))

	return folder, filepath.Join(folder, "second/ansible_collections/thinkube/infra/libexec")
}

// TestHowATaskWasCarried is the choice between agent and exec, and that it is told.
func TestHowATaskWasCarried(t *testing.T) {
	eachCore(t, func(t *testing.T, f *testHosts, environ []string) {
		f.forget(t)
		// What has no end of line stands before what the program says.
		f.inside(t, fmt.Sprintf("echo 'echo hello; printf title' >/home/%s/.bashrc", farm.Owner(1)))

		play := f.play(t, environ, "carried", inventory{hosts: map[string]map[string]any{
			"by_agent":  ssh(farm.Plain, 1, nil),
			"by_exec":   ssh(farm.Plain, 2, map[string]any{"thinkube_transport": "exec"}),
			"here":      {"ansible_connection": "local"},
			"no_way":    {"ansible_connection": "local", "thinkube_transport": "agent"},
			"misspelt":  ssh(farm.Plain, 1, map[string]any{"thinkube_transport": "agnet"}),
			"impatient": ssh(farm.Plain, 1, map[string]any{"thinkube_agent_idle": "soon"}),
			"chatty":    ssh(farm.Owner(1), 3, nil),
			"password": ssh(farm.Sudo, 8, map[string]any{"ansible_password": farm.Password, "ansible_ssh_private_key_file": "/dev/null",
				"ansible_become": true, "ansible_become_password": farm.Password}),
			"jump":      ssh(farm.Plain, 9, map[string]any{"ansible_ssh_extra_args": f.by(10)}),
			"terminal":  ssh(farm.Plain, 4, map[string]any{"ansible_ssh_extra_args": "-tt"}),
			"terminal2": ssh(farm.Plain, 6, map[string]any{"ansible_ssh_extra_args": "-tt", "thinkube_transport": "exec"}),
			"unshared":  ssh(farm.Plain, 7, map[string]any{"ansible_ssh_args": "-o ControlMaster=no"}),
			"templated": ssh(farm.Plain, 5, map[string]any{"thinkube_transport": "{{ way }}", "way": "exec"}),
		}}, setup{args: []string{"-v"}})

		same := func(host string) bool {
			return play.of(t, host, "carried").text("pid") == play.of(t, host, "carried once more").text("pid")
		}
		for _, host := range []string{"by_agent", "chatty", "password", "jump"} {
			assert.Equal(t, "ok", play.of(t, host, "carried").Event, host)
			assert.True(t, same(host), host)
		}

		assert.Equal(t, "0", play.of(t, "password", "carried").text("user"))
		assert.True(t, strings.HasPrefix(play.of(t, "jump", "carried").text("env", "SSH_CONNECTION"), "127.0.0."))

		for _, host := range []string{"by_exec", "here", "templated", "unshared"} {
			assert.Equal(t, "ok", play.of(t, host, "carried").Event, host)
			assert.False(t, same(host), host)
		}

		output := strings.Join(strings.Fields(play.output), " ")
		why := "thinkube.infra: exec in place of the agent: a connection of type 'local' holds no channel"
		assert.Equal(t, 2, strings.Count(output, why), "one line for each task at -v:\n%s", play.output)
		assert.NotContains(t, output, "<"+farm.Address(2)+"> thinkube.infra", "who asks for exec knows why")

		terminal := "ssh gives the program a terminal on the host, which changes what passes through it; nothing was started"
		assert.Contains(t, output, "<"+farm.Address(7)+"> thinkube.infra: exec in place of the agent: the ssh connection is not shared")

		for host, words := range map[string][2]string{
			"no_way":    {"no agent on the host: a connection of type 'local' holds no channel", "thinkube_transport: auto uses exec then"},
			"terminal":  {terminal, "take -t and RequestTTY out of the ssh options"},
			"terminal2": {terminal, "take -t and RequestTTY out of the ssh options"},
			"misspelt":  {"thinkube_transport is 'agnet': must be one of auto, agent, exec", ""},
			"impatient": {"thinkube_agent_idle is 'soon': must be a whole number of seconds from 1 to 86400", ""},
		} {
			got := play.of(t, host, "carried")
			assert.Equal(t, "failed", got.Event, host)
			assert.Equal(t, words[0], got.text("msg"), host)
			assert.Equal(t, words[1], got.text("hint"), host)
		}
	})
}

// by is ssh's option for a way by another host.
func (f *testHosts) by(n int) string {
	return fmt.Sprintf("-o 'ProxyCommand=ssh -F none -i %s -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -p %s -W %%h:%%p %s@%s'",
		f.Path("key"), f.Port, farm.Plain, farm.Address(n))
}

// TestSlowStart has a host where logging in takes longer than an agent may be idle.
func TestSlowStart(t *testing.T) {
	f := hosts(t)
	f.inside(t, fmt.Sprintf("echo 'sleep 2.5' >/home/%s/.bashrc", farm.Owner(3)))

	way := ssh(farm.Owner(3), 3, map[string]any{"thinkube_agent_idle": 1, "thinkube_transport": "agent"})
	play := f.play(t, os.Environ(), "carried", inventory{hosts: map[string]map[string]any{"slow": way}}, setup{})

	require.Equal(t, "ok", play.of(t, "slow", "carried").Event, play.output)
	assert.Equal(t, play.of(t, "slow", "carried").text("pid"), play.of(t, "slow", "carried once more").text("pid"))
}

// TestFewFiles has a controller that may open few files, as is usual for what is started without a login.
func TestFewFiles(t *testing.T) {
	f := hosts(t)
	ways := map[string]map[string]any{}

	for i := 1; i <= 30; i++ {
		ways[fmt.Sprint("host", i)] = ssh(farm.Owner(i), i, map[string]any{"thinkube_transport": "agent"})
	}

	play := f.play(t, os.Environ(), "carried", inventory{hosts: ways}, setup{limit: "ulimit -Sn 64", env: []string{"ANSIBLE_FORKS=30"}})
	assert.Equal(t, 0, play.code, play.output)
	f.nothingLeft(t)
}

// TestResetUnderATask has two names for one host: the one resets the connection while the other's task runs.
func TestResetUnderATask(t *testing.T) {
	f := hosts(t)
	log := f.emptyLog(t, "reset")
	play := f.play(t, os.Environ(), "retired", inventory{hosts: map[string]map[string]any{
		"host":  ssh(farm.Plain, 1, map[string]any{"long": true, "log": log}),
		"alias": ssh(farm.Plain, 1, map[string]any{"log": log}),
	}}, setup{})

	require.Equal(t, 0, play.code, play.output)

	items := play.of(t, "alias", "others").Result["results"].([]any)
	assert.NotEqual(t, play.of(t, "host", "long").text("pid"), result{Result: items[0].(map[string]any)}.text("pid"))
	f.nothingLeft(t)
}

// TestStderrIsOfOneTask has a hidden task print, and the next one crash.
func TestStderrIsOfOneTask(t *testing.T) {
	f := hosts(t)
	play := f.play(t, os.Environ(), "stderr", inventory{hosts: map[string]map[string]any{"host": ssh(farm.Plain, 1, nil)}}, setup{})

	assert.Equal(t, "echo: last words\n", play.of(t, "host", "crash").text("module_stderr"))
	assert.NotContains(t, play.output, "a line before")
}

// TestTogether has ten hosts use one agent at the same time; two of them give up, which is nobody else's matter.
func TestTogether(t *testing.T) {
	eachCore(t, func(t *testing.T, f *testHosts, environ []string) {
		f.emptyNote(t, "together")

		hosts := map[string]map[string]any{"one": ssh(farm.Plain, 1, nil)}
		ways := []string{}

		for i := range 10 {
			name := fmt.Sprint("asker", i)
			ways = append(ways, name)
			hosts[name] = map[string]any{"ansible_host": "192.0.2.1", "seconds": 3, "limit": 60, "log": f.Path("notes/together")}
		}

		for _, name := range []string{"asker3", "asker7"} {
			hosts[name]["seconds"], hosts[name]["limit"] = 120, 1
		}

		// The connection first, so that all come at once.
		f.play(t, environ, "one", one(nil, map[string]map[string]any{"one": ssh(farm.Plain, 1, nil)}), setup{})
		begin := time.Now()
		play := f.play(t, environ, "together", inventory{hosts: hosts, ways: ways}, setup{})
		pids := map[string]bool{}
		earliestEnd, latestBegin := float64(0), float64(0)

		for _, name := range ways {
			got := play.of(t, name, "sleep")
			if hosts[name]["limit"] == 1 {
				assert.Equal(t, "failed", got.Event, name)

				continue
			}

			require.Equal(t, "ok", got.Event, "%s: %v", name, got.Result)

			pids[got.text("pid")] = true
			latestBegin = max(latestBegin, got.Result["began"].(float64))

			if end := got.Result["ended"].(float64); earliestEnd == 0 || end < earliestEnd {
				earliestEnd = end
			}
		}

		assert.Len(t, pids, 1, "one process for all")
		assert.Less(t, latestBegin, earliestEnd, "all ran at the same time")
		assert.Less(t, time.Since(begin), 20*time.Second, "nobody waits for the two that sleep on")

		log, err := os.ReadFile(f.Path("notes/together"))
		require.NoError(t, err)
		assert.Equal(t, map[string]int{"began": 10, "ended": 8, "cancelled": 2}, countWords(string(log)), "a task that nobody waits for is cancelled")
		f.nothingLeft(t)
	})
}

func countWords(text string) map[string]int {
	counts := map[string]int{}
	for _, word := range strings.Fields(text) {
		counts[word]++
	}

	return counts
}

// TestIdle has an agent that is closed between two tasks.
func TestIdle(t *testing.T) {
	f := hosts(t)
	log := f.emptyLog(t, "idle")
	way := map[string]any{"log": log, "thinkube_agent_idle": 1}
	play := f.start(t, os.Environ(), "fault", inventory{hosts: map[string]map[string]any{"host": ssh(farm.Plain, 1, way)}}, setup{})

	f.await(t, log, "quiet")
	require.Eventually(t, func() bool { return len(f.leftOver(t)) == 0 }, 10*time.Second, 50*time.Millisecond,
		"agent, ssh and broker end when there is nothing to do")
	require.NoError(t, os.WriteFile(log+".go", nil, 0o644))

	ended := play.wait()
	assert.Equal(t, ended.of(t, "host", "before").text("pid"), ended.of(t, "host", "after").text("pid"))
	assert.NotEqual(t, ended.of(t, "host", "after").text("pid"), ended.of(t, "host", "after quiet").text("pid"))
	assert.Equal(t, "ok", ended.of(t, "host", "after quiet").Event)
	f.nothingLeft(t)
}

// --- what else runs

// emptyLog makes a file for "log", and removes the one that lets a play go on.
func (f *testHosts) emptyLog(t *testing.T, name string) string {
	t.Helper()
	f.emptyNote(t, name)

	path := f.Path("notes/" + name)
	_ = os.Remove(path + ".go")

	return path
}

// await waits for a word in a log.
func (f *testHosts) await(t *testing.T, log, word string) {
	t.Helper()
	require.Eventually(t, func() bool {
		text, err := os.ReadFile(log)

		return err == nil && strings.Contains(string(text), word)
	}, 30*time.Second, 10*time.Millisecond, "waiting for %q", word)
}

// onHosts gives the agents on the hosts: their process numbers there.
func (f *testHosts) onHosts(t *testing.T) []int {
	t.Helper()

	output := f.inside(t, `for p in /proc/[0-9]*; do
if { tr '\0' ' ' <$p/cmdline; } 2>/dev/null | grep -q '^[^ ]*/thinkube_linux_[^ ]* agent $'; then echo ${p#/proc/}; fi; done`)
	numbers := []int{}

	for _, line := range strings.Fields(output) {
		number, err := strconv.Atoi(line)
		require.NoError(t, err)

		numbers = append(numbers, number)
	}

	return numbers
}

// processesWith gives the processes here whose command line has all the words.
func processesWith(t *testing.T, words ...string) []int {
	t.Helper()

	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)

	numbers := []int{}

	for _, path := range paths {
		text, _ := os.ReadFile(path) // it may have ended
		if slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(string(text), word) }) {
			continue
		}

		number, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		require.NoError(t, err)

		numbers = append(numbers, number)
	}

	return numbers
}

func (f *testHosts) brokers(t *testing.T) []int {
	t.Helper()

	return processesWith(t, f.Folder, "broker.py")
}

// sshClients are those that hold a channel, not the masters of ControlPersist.
func (f *testHosts) sshClients(t *testing.T) []int {
	t.Helper()

	return processesWith(t, f.Folder, "THINKUBE-MISSING", "\" agent")
}

func (f *testHosts) leftOver(t *testing.T) []string {
	t.Helper()

	left := []string{}
	for kind, numbers := range map[string][]int{"agent": f.onHosts(t), "broker": f.brokers(t), "ssh": f.sshClients(t)} {
		for _, number := range numbers {
			left = append(left, fmt.Sprint(kind, " ", number))
		}
	}

	return left
}

// nothingLeft is asked after a play: no process of the agent's is left on either side.
func (f *testHosts) nothingLeft(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool { return len(f.leftOver(t)) == 0 }, 5*time.Second, 20*time.Millisecond, "left: %v", f.leftOver(t))
}
