// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/ansible219"
	"github.com/thinkube/infra/tests/transport/farm"
)

// inventory is the hosts of a play, by name; vars is group_vars of all of them, as text.
type inventory struct {
	hosts map[string]map[string]any
	ways  []string
	vars  string
}

// run is one finished ansible-playbook.
type run struct {
	code    int
	output  string
	results []result
}

type result struct {
	Event  string
	Host   string
	Task   string
	Result map[string]any
}

// setup is how ansible-playbook is called, beside play and inventory.
type setup struct {
	env         []string
	args        []string
	limit       string // a shell command that is run before
	collections string
}

// eachCore runs a test with the installed ansible-core and with 2.19.
func eachCore(t *testing.T, test func(t *testing.T, f *testHosts, environ []string)) {
	t.Helper()

	f := hosts(t)

	t.Run("installed", func(t *testing.T) { test(t, f, os.Environ()) })
	t.Run("2.19", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()

		environ, err := ansible219.Environment(ctx, os.Environ())
		if err != nil && os.Getenv("CI") != "true" {
			t.Skip(err)
		}

		require.NoError(t, err)
		test(t, f, environ)
	})
}

// eachTransport runs a test with agent and exec: what users see must be the same.
func eachTransport(t *testing.T, test func(t *testing.T, f *testHosts)) {
	t.Helper()

	for _, transport := range []string{"agent", "exec"} {
		f := *hosts(t)
		f.transport = transport

		t.Run(transport, func(t *testing.T) { test(t, &f) })
	}
}

// eachWay runs a test with both, and with each ansible-core.
func eachWay(t *testing.T, test func(t *testing.T, f *testHosts, environ []string)) {
	t.Helper()

	eachCore(t, func(t *testing.T, _ *testHosts, environ []string) {
		eachTransport(t, func(t *testing.T, f *testHosts) { test(t, f, environ) })
	})
}

// play runs testdata/plays/<name>.yml.
func (f *testHosts) play(t *testing.T, environ []string, name string, hosts inventory, how setup) run {
	t.Helper()

	return f.start(t, environ, name, hosts, how).wait()
}

// playing is an ansible-playbook that runs.
type playing struct {
	t        *testing.T
	playbook *exec.Cmd
	output   bytes.Buffer
	folder   string
	record   string
}

func (f *testHosts) start(t *testing.T, environ []string, name string, hosts inventory, how setup) *playing {
	t.Helper()

	folder, err := os.MkdirTemp(f.Path("runs"), "")
	require.NoError(t, err)

	f.writeInventory(t, folder, hosts)

	if how.collections == "" {
		how.collections = "collections"
	}

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)

	play := filepath.Join(folder, "play.yml")
	require.NoError(t, command("cp", "testdata/plays/"+name+".yml", play))
	require.NoError(t, os.WriteFile(filepath.Join(folder, "ansible.cfg"), nil, 0o644))

	testdata, err := filepath.Abs("testdata")
	require.NoError(t, err)

	p := &playing{t: t, folder: folder, record: filepath.Join(folder, "record")}
	p.playbook = exec.CommandContext(ctx, "sh", append([]string{"-c", how.limit + "\n" + `exec ansible-playbook "$@"`, "sh", "-i", filepath.Join(folder, "inventory.json"), play}, how.args...)...)
	p.playbook.Dir = folder
	p.playbook.Stdout, p.playbook.Stderr = &p.output, &p.output
	// What ansible-playbook leaves behind must not keep the test.
	p.playbook.WaitDelay = 5 * time.Second
	p.playbook.Env = append(environ,
		"HOME="+f.Path("controller"),
		"ANSIBLE_CONFIG="+filepath.Join(folder, "ansible.cfg"),
		"ANSIBLE_COLLECTIONS_PATH="+f.Path(how.collections),
		"ANSIBLE_CALLBACK_PLUGINS="+filepath.Join(testdata, "callback"),
		"ANSIBLE_CONNECTION_PLUGINS="+filepath.Join(testdata, "connection"),
		"ANSIBLE_CALLBACKS_ENABLED=record",
		"ANSIBLE_SSH_CONTROL_PATH_DIR="+f.Path("control"),
		"ANSIBLE_FORKS=10",
		"RECORD_TO="+p.record,
		"PYTHONDONTWRITEBYTECODE=1",
	)
	p.playbook.Env = append(p.playbook.Env, how.env...)
	require.NoError(t, p.playbook.Start())

	return p
}

// kill ends all of Ansible, without a word.
func (p *playing) kill() {
	p.t.Helper()

	for _, number := range append(processesWith(p.t, "ansible-playbook", p.folder), p.playbook.Process.Pid) {
		_ = syscall.Kill(number, syscall.SIGKILL) // it may have ended
	}
}

func (p *playing) wait() run {
	p.t.Helper()

	err := p.playbook.Wait()

	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.t.Fatalf("%v: %s", err, p.output.String())
	}

	return run{code: p.playbook.ProcessState.ExitCode(), output: p.output.String(), results: readRecord(p.t, p.record)}
}

func (f *testHosts) writeInventory(t *testing.T, folder string, hosts inventory) {
	t.Helper()

	ways := map[string]any{}
	for _, name := range hosts.ways {
		ways[name] = nil
	}

	common := map[string]any{
		"ansible_port":                 f.Port,
		"ansible_ssh_private_key_file": f.Path("key"),
		"ansible_ssh_common_args":      "-F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
		// Nothing here may need Python on a host.
		"ansible_python_interpreter": "/nonexistent/python",
	}

	// Not "agent", since some hosts of the tests cannot have one.
	if f.transport == "exec" {
		common["thinkube_transport"] = "exec"
	}

	text, err := json.Marshal(map[string]any{"all": map[string]any{
		"hosts": hosts.hosts, "vars": common, "children": map[string]any{"ways": map[string]any{"hosts": ways}},
	}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(folder, "inventory.json"), text, 0o644))

	if hosts.vars != "" {
		require.NoError(t, os.Mkdir(filepath.Join(folder, "group_vars"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(folder, "group_vars/all.yml"), []byte(hosts.vars), 0o644))
	}
}

func readRecord(t *testing.T, path string) []result {
	t.Helper()

	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}

	require.NoError(t, err)

	results := []result{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 16<<20)

	for lines.Scan() {
		var one result

		require.NoError(t, json.Unmarshal(lines.Bytes(), &one))

		results = append(results, one)
	}

	return results
}

// of gives the result of a task on a host; the test fails if there is none.
func (r run) of(t *testing.T, host, task string) result {
	t.Helper()

	for _, one := range r.results {
		if one.Host == host && one.Task == task {
			return one
		}
	}

	t.Fatalf("no result of %q on %q in:\n%s", task, host, r.output)

	return result{}
}

// text of a key in a result, or of nested ones.
func (r result) text(keys ...string) string {
	var value any = r.Result

	for _, key := range keys {
		inner, ok := value.(map[string]any)
		if !ok {
			return ""
		}

		value = inner[key]
	}

	if value == nil {
		return ""
	}

	return fmt.Sprint(value)
}

// ssh is the variables of a host that is reached by ssh; more wins.
func ssh(user string, n int, more map[string]any) map[string]any {
	vars := map[string]any{"ansible_host": farm.Address(n), "ansible_user": user}
	for name, value := range more {
		vars[name] = value
	}

	return vars
}

func command(name string, args ...string) error {
	output, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, output)
	}

	return nil
}
