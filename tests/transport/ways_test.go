// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/transport/farm"
)

// TestEveryWay runs the same tasks over every way to a host and expects the same of them, on hosts whose Python
// cannot be found.
func TestEveryWay(t *testing.T) {
	eachCore(t, func(t *testing.T, f *testHosts, environ []string) {
		f.forget(t)

		ways := map[string]map[string]any{
			"pipelined":      ssh(farm.Plain, 1, map[string]any{"ansible_pipelining": true}),
			"not_pipelined":  ssh(farm.Plain, 2, map[string]any{"ansible_pipelining": false}),
			"root":           ssh(farm.Plain, 3, map[string]any{"ansible_become": true}),
			"root_password":  ssh(farm.Sudo, 4, map[string]any{"ansible_become": true, "ansible_become_password": farm.Password}),
			"other_user":     ssh(farm.Plain, 5, map[string]any{"ansible_become": true, "ansible_become_user": farm.Other}),
			"exec":           ssh(farm.Plain, 7, map[string]any{"thinkube_transport": "exec"}),
			"exec_root":      ssh(farm.Plain, 8, map[string]any{"thinkube_transport": "exec", "ansible_become": true}),
			"agent":          ssh(farm.Plain, 9, map[string]any{"thinkube_transport": "agent"}),
			"agent_root":     ssh(farm.Plain, 10, map[string]any{"thinkube_transport": "agent", "ansible_become": true}),
			"local":          {"ansible_connection": "local"},
			"like_container": {"ansible_connection": "container", "ansible_host": f.busyboxHost(t)},
		}
		names := []string{}
		for name := range ways {
			names = append(names, name)
		}

		ways["second"] = ssh(farm.Plain, 6, nil)

		vaultFile := filepath.Join(f.Folder, "vault-password")
		require.NoError(t, os.WriteFile(vaultFile, []byte("vault password\n"), 0o600))

		vault, err := exec.Command("ansible-vault", "encrypt_string", "--vault-password-file", vaultFile, "from the vault").Output()
		require.NoError(t, err)

		play := f.play(t, environ, "every_way", inventory{hosts: ways, ways: names, vars: "from_vault: " + string(vault)},
			setup{args: []string{"--vault-password-file", vaultFile}})
		require.NotContains(t, play.output, "opensesame", "a no_log task")

		for _, way := range names {
			t.Run(way, func(t *testing.T) { checkWay(t, f, play, way) })
		}

		t.Run("agent and exec give the same", func(t *testing.T) {
			assert.Equal(t, play.comparable("exec"), play.comparable("agent"))
			assert.Equal(t, play.comparable("exec_root"), play.comparable("agent_root"))
		})
	})
}

// comparable is all results of a host without what is of one process or one host only.
func (r run) comparable(host string) []string {
	all := []string{}

	for _, one := range r.results {
		if one.Host != host {
			continue
		}

		result := maps.Clone(one.Result)
		delete(result, "pid")

		if env, ok := result["env"].(map[string]any); ok {
			result["env"] = maps.Clone(env)
			for _, name := range []string{"SSH_CLIENT", "SSH_CONNECTION", "SUDO_COMMAND"} {
				delete(result["env"].(map[string]any), name)
			}
		}

		if stack, ok := result["module_stderr"].(string); ok {
			result["module_stderr"], _, _ = strings.Cut(stack, "\n") // addresses and goroutines follow
		}

		// What stray prints become is a matter of the way.
		if one.Task != "junk around the answer" {
			all = append(all, fmt.Sprintf("%s of %q: %v", one.Event, one.Task, result))
		}
	}

	return all
}

func checkWay(t *testing.T, f *testHosts, play run, way string) {
	t.Helper()

	kept := play.of(t, way, "arguments keep their types")
	args, ok := kept.Result["args"].(map[string]any)
	require.True(t, ok, "%v", kept.Result)

	want := `{"do":"args","from_the_group":true,"number":5,"truth":true,"nothing":null,"list":["a",{"b":1}],"text":"it's \"quoted\" $HOME ` + "`id`" + ` é"}`
	delete(args, "big")

	got, err := json.Marshal(args)
	require.NoError(t, err)
	assert.JSONEq(t, want, string(got))

	env := play.of(t, way, "environment")
	assert.Equal(t, "it's $HOME", env.text("env", "GREETING"))
	assert.Equal(t, "7", env.text("env", "NUMBER"))
	assert.True(t, strings.HasSuffix(env.text("program"), "/.cache/thinkube/"+f.program.Name()), env.text("program"))

	uids := map[string]int{"pipelined": farm.UID(farm.Plain), "not_pipelined": farm.UID(farm.Plain), "other_user": farm.UID(farm.Other),
		"exec": farm.UID(farm.Plain), "agent": farm.UID(farm.Plain)}
	assert.EqualValues(t, uids[way], env.Result["user"])

	check := play.of(t, way, "check and diff")
	assert.Equal(t, "ok", check.Event)
	assert.Equal(t, true, check.Result["changed"])
	assert.Equal(t, true, check.Result["checked"])
	assert.Equal(t, "b\n", check.text("diff", "after"))

	loop := play.of(t, way, "a loop").Result["results"].([]any)
	require.Len(t, loop, 2)
	assert.Equal(t, "two", result{Result: loop[1].(map[string]any)}.text("args", "item"))

	failure := play.of(t, way, "a failure")
	assert.Equal(t, "failed", failure.Event)
	assert.Equal(t, "it did not work", failure.text("msg"))
	assert.Equal(t, "try again", failure.text("hint"))

	for task, words := range map[string]string{"no answer": "echo: last words", "a panic": "echo: a real panic", "killed by a signal": ""} {
		died := play.of(t, way, task)
		assert.Equal(t, "failed", died.Event, task)
		assert.Contains(t, died.text("msg"), "MODULE FAILURE", task)
		assert.Contains(t, died.text("module_stderr"), words, task)
	}

	assert.EqualValues(t, 137, play.of(t, way, "killed by a signal").Result["rc"])

	junk := play.of(t, way, "junk around the answer")
	assert.Equal(t, "ok", junk.Event)
	assert.Equal(t, true, junk.Result["junk"])
	assert.Contains(t, strings.Join(strings.Fields(play.output), " "), "Module invocation had junk after the JSON data: a line after")

	results := play.of(t, way, "results and output")
	assert.Equal(t, "text", results.text("ansible_module_results"))
	assert.Equal(t, []any{"one", "two"}, results.Result["stdout_lines"])
	assert.Equal(t, []any{"three"}, results.Result["stderr_lines"])
	assert.NotContains(t, results.Result, "_ansible_secret")
	assert.NotContains(t, play.output, "hidden-value")

	assert.Equal(t, "caf\ufffd", play.of(t, way, "bytes that are no UTF-8").text("text"))
	assert.Equal(t, "from the vault", play.of(t, way, "a vault value").text("args", "password"))
	assert.Contains(t, play.of(t, way, "another host for this task").text("env", "SSH_CONNECTION"), " "+farm.Address(6)+" ")
	assert.Equal(t, "ok", play.of(t, way, "still reachable").Event)
}

// busyboxHost makes a folder that is a host with nothing but busybox: no Python, no bash, no coreutils.
func (f *testHosts) busyboxHost(t *testing.T) string {
	t.Helper()

	root, err := os.MkdirTemp(f.Folder, "host")
	require.NoError(t, err)

	for _, folder := range []string{"bin", "root", "dev", "tmp", "var"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, folder), 0o755))
	}

	busybox, err := exec.LookPath("busybox")
	require.NoError(t, err)
	require.NoError(t, command("cp", busybox, filepath.Join(root, "bin/busybox")))
	require.NoError(t, command("chroot", root, "/bin/busybox", "--install", "/bin"))
	require.NoError(t, command("mknod", "-m", "666", filepath.Join(root, "dev/null"), "c", "1", "3"))

	return root
}
