// SPDX-License-Identifier: Apache-2.0

// Package lxdtest starts real LXD daemons for tests, each in a network and mount namespace of its own, joined by a
// bridge in one more namespace: nothing of it is seen outside. It runs the real program with all modules in them and
// stands in for the collection's action plugin, so that a task can ask a second host.
package lxdtest

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Cluster is a set of hosts with an LXD daemon each. They know nothing of each other yet.
type Cluster struct {
	Hosts []*Host

	t       *testing.T
	program string
}

// Host is one LXD daemon in its namespaces.
type Host struct {
	Name    string // n1, n2, ...
	Address string // without port

	cluster *Cluster
	netns   string
	daemon  *exec.Cmd
}

// Result is what a module answered. Killed is set when the program was ended by a signal before it answered.
type Result struct {
	Changed bool
	Failed  bool
	Msg     string
	Hint    string
	Code    string
	Plan    []string
	Raw     map[string]any
	Killed  bool
	Stdout  string // everything that every process of the task printed, masked or not: for looking for secrets
}

// needed are the tools without which no daemon can be started.
var needed = []string{"lxd", "ip", "unshare", "nsenter", "dnsmasq", "nft"}

// Start starts n daemons and ends them with the test. Without root the test is skipped; under CI=true a missing tool
// fails it.
func Start(t *testing.T, n int) *Cluster {
	t.Helper()

	if os.Getuid() != 0 {
		t.Skip("needs root: starts LXD daemons in namespaces")
	}

	for _, tool := range needed {
		_, err := exec.LookPath(tool)
		if err != nil && os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing; make deps installs it", tool)
		}

		if err != nil {
			t.Skipf("%s is missing; make deps installs it", tool)
		}
	}

	cluster := &Cluster{t: t, program: Program(t)}
	tag := "tkt" + strconv.Itoa(os.Getpid()) + strconv.Itoa(sequence())
	bridge := tag + "b"

	run(t, "ip", "netns", "add", bridge)
	t.Cleanup(func() { run(t, "ip", "netns", "delete", bridge) })
	run(t, "ip", "-n", bridge, "link", "add", "name", "br0", "type", "bridge", "forward_delay", "0")
	run(t, "ip", "-n", bridge, "link", "set", "br0", "up")

	for i := 1; i <= n; i++ {
		cluster.add(tag, bridge, i)
	}

	for _, host := range cluster.Hosts {
		host.waitReady()
	}

	return cluster
}

var (
	sequenceLock sync.Mutex
	sequenceNext int
)

// sequence tells the clusters of one test program apart.
func sequence() int {
	sequenceLock.Lock()
	defer sequenceLock.Unlock()

	sequenceNext++

	return sequenceNext
}

// buildOnce leaves one program in the user's cache, however many test programs there are: none of them is told when the
// last test is over.
var buildOnce = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}

	folder := filepath.Join(cache, "thinkube-tests")

	err = os.MkdirAll(folder, 0o700)
	if err != nil {
		return "", err
	}

	program := filepath.Join(folder, "thinkube")
	fresh := program + "-" + strconv.Itoa(os.Getpid())
	build := exec.Command("go", "build", "-tags", "faultinject", "-o", fresh, "github.com/thinkube/infra/modules/bundle")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")

	out, err := build.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building the bundle: %w\n%s", err, out)
	}

	return program, os.Rename(fresh, program)
})

// Program builds the program with all modules, once a test run, with the points where tests can kill it.
func Program(t *testing.T) string {
	t.Helper()

	program, err := buildOnce()
	require.NoError(t, err)

	return program
}

func (c *Cluster) add(tag, bridge string, i int) {
	host := &Host{
		Name: fmt.Sprintf("n%d", i), Address: fmt.Sprintf("10.78.0.%d", 10+i),
		cluster: c, netns: fmt.Sprintf("%sn%d", tag, i),
	}
	c.Hosts = append(c.Hosts, host)

	t := c.t
	run(t, "ip", "netns", "add", host.netns)
	t.Cleanup(func() { run(t, "ip", "netns", "delete", host.netns) })
	run(t, "ip", "-n", host.netns, "link", "set", "lo", "up")
	run(t, "ip", "-n", host.netns, "link", "add", "eth0", "type", "veth", "peer", "name", host.Name, "netns", bridge)
	run(t, "ip", "-n", bridge, "link", "set", host.Name, "master", "br0", "up")
	run(t, "ip", "-n", host.netns, "addr", "add", host.Address+"/24", "dev", "eth0")
	run(t, "ip", "-n", host.netns, "link", "set", "eth0", "up")
	host.StartDaemon()
}

// prepare gives the daemon, and the locks of tasks, file systems of their own in a mount namespace.
const prepare = `
set -e
mount --make-rprivate /
for d in /var/lib /var/log /var/cache; do mount -t tmpfs tmpfs $d; done
mkdir -p /var/lib/lxd /var/log/lxd /var/cache/lxd /run/lxd
mkdir -p -m 700 /run/thinkube
mount -t tmpfs tmpfs /run/lxd
mount -t tmpfs -o mode=700 tmpfs /run/thinkube
mkdir -p /var/lib/misc
exec lxd --group root
`

// StartDaemon starts the host's daemon with nothing in it, as a freshly installed one.
func (h *Host) StartDaemon() {
	t := h.cluster.t
	h.daemon = exec.Command("ip", "netns", "exec", h.netns, "unshare", "--mount", "--uts", "--", "sh", "-c", "hostname "+h.Name+"; "+prepare)
	h.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}

	var log bytes.Buffer

	h.daemon.Stdout, h.daemon.Stderr = &log, &log
	require.NoError(t, h.daemon.Start())

	daemon := h.daemon

	t.Cleanup(func() {
		_ = syscall.Kill(-daemon.Process.Pid, syscall.SIGTERM)

		gone := make(chan struct{})

		go func() { _ = daemon.Wait(); close(gone) }()

		select {
		case <-gone:
		case <-time.After(10 * time.Second):
			_ = syscall.Kill(-daemon.Process.Pid, syscall.SIGKILL)
			<-gone
		}

		// What the daemon started itself (dnsmasq, forkdns) lives in its network namespace.
		out, _ := exec.Command("ip", "netns", "pids", h.netns).Output()
		for _, field := range strings.Fields(string(out)) {
			if pid, err := strconv.Atoi(field); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}

		if t.Failed() {
			t.Logf("log of LXD on %s:\n%s", h.Name, tail(log.String(), 30))
		}
	})
}

// Root is the host's file system as this process sees it.
func (h *Host) Root() string { return fmt.Sprintf("/proc/%d/root", h.daemon.Process.Pid) }

// Signal sends the daemon a signal, for tests of members that stop answering.
func (h *Host) Signal(signal syscall.Signal) {
	require.NoError(h.cluster.t, syscall.Kill(h.daemon.Process.Pid, signal))
}

func (h *Host) waitReady() {
	t := h.cluster.t

	require.Eventually(t, func() bool {
		command, err := h.command("lxd", "waitready", "--timeout=1")

		return err == nil && command.Run() == nil
	}, 60*time.Second, 100*time.Millisecond, "LXD on %s did not start", h.Name)
}

// command builds a command that runs on the host.
func (h *Host) command(argv ...string) (*exec.Cmd, error) {
	if h.daemon.ProcessState != nil {
		return nil, fmt.Errorf("the daemon of %s has ended", h.Name)
	}

	pid := strconv.Itoa(h.daemon.Process.Pid)

	return exec.Command("nsenter", append([]string{"--target", pid, "--mount", "--net", "--uts", "--"}, argv...)...), nil
}

// Run runs a command on the host and gives what it printed; a non-zero exit fails the test.
func (h *Host) Run(argv ...string) string {
	t := h.cluster.t
	t.Helper()

	command, err := h.command(argv...)
	require.NoError(t, err)

	var stderr bytes.Buffer

	command.Stderr = &stderr

	out, err := command.Output()
	require.NoError(t, err, "%s: %q: %s%s", h.Name, argv, out, stderr.String())

	return string(out)
}

// LXC runs the lxc client on the host.
func (h *Host) LXC(argv ...string) string {
	h.cluster.t.Helper()

	return h.Run(append([]string{"env", "HOME=/run/lxd", "lxc"}, argv...)...)
}

// Task is a task for a module. The zero value runs it for real.
type Task struct {
	Check         bool
	KillAfterStep int // the program is killed when it has done so many steps
}

// Module runs a module on the host as the action plugin does: also its questions to other hosts.
func (h *Host) Module(module string, args map[string]any, how ...Task) Result {
	t := h.cluster.t
	t.Helper()

	var task Task
	if len(how) > 0 {
		task = how[0]
	}

	raw := map[string]any{"_ansible_check_mode": task.Check, "_ansible_diff": true, "_ansible_module_name": "thinkube.infra." + module}
	for key, value := range args {
		raw[key] = value
	}

	key := make([]byte, 32)
	_, _ = rand.Read(key)

	envelope := map[string]any{
		"module": module, "args": raw, "key": base64.StdEncoding.EncodeToString(key), "answers": map[string]any{}, "resume": "",
	}

	return h.exchange(envelope, task)
}

type finally struct {
	host     *Host
	envelope map[string]any
}

// exchange is the loop of the action plugin.
func (h *Host) exchange(envelope map[string]any, task Task) Result {
	t := h.cluster.t
	t.Helper()

	var (
		said    strings.Builder
		cleanup []finally
	)

	defer func() {
		for i := len(cleanup) - 1; i >= 0; i-- {
			cleanup[i].host.program("peer", cleanup[i].envelope, Task{})
		}
	}()

	answers, _ := envelope["answers"].(map[string]any)

	for range 20 {
		out, killed := h.program("exec", envelope, task)
		said.WriteString(out)

		if killed {
			return Result{Killed: true, Stdout: said.String()}
		}

		var answer map[string]any

		require.NoError(t, json.Unmarshal([]byte(out), &answer), "%s said: %s", h.Name, out)

		ask, ok := answer["_thinkube_ask"].(map[string]any)
		if !ok {
			return makeResult(answer, said.String())
		}

		asked := h.cluster.host(ask["host"].(string))
		reply, _ := asked.program("peer", peerEnvelope(envelope, ask["peer"], ask["request"]), Task{})
		said.WriteString(reply)

		var got map[string]any

		require.NoError(t, json.Unmarshal([]byte(reply), &got), "%s said: %s", asked.Name, reply)

		if after, ok := got["finally"].(map[string]any); ok {
			cleanup = append(cleanup, finally{asked, peerEnvelope(envelope, after["peer"], after["request"])})
		}

		answers[ask["id"].(string)] = got
		envelope["resume"] = answer["_thinkube_resume"]
	}

	t.Fatal("the task asks without end")

	return Result{}
}

func peerEnvelope(envelope map[string]any, peer, request any) map[string]any {
	return map[string]any{"module": envelope["module"], "key": envelope["key"], "peer": peer, "request": request, "args": envelope["args"]}
}

func (c *Cluster) host(name string) *Host {
	for _, host := range c.Hosts {
		if host.Name == name {
			return host
		}
	}

	c.t.Fatalf("a task asks host %q, which is not there", name)

	return nil
}

// program runs one process of the bundle on the host.
func (h *Host) program(mode string, envelope map[string]any, task Task) (string, bool) {
	t := h.cluster.t
	t.Helper()

	text, err := json.Marshal(envelope)
	require.NoError(t, err)

	command, err := h.command("env", "THINKUBE_TEST_KILL_AFTER_STEP="+strconv.Itoa(task.KillAfterStep), h.cluster.program, mode)
	require.NoError(t, err)

	var stdout, stderr bytes.Buffer

	command.Stdin, command.Stdout, command.Stderr = bytes.NewReader(text), &stdout, &stderr

	err = command.Run()
	if task.KillAfterStep > 0 && err != nil && stdout.Len() == 0 {
		return "", true
	}

	require.NoError(t, err, "%s %s: %s", h.Name, mode, stderr.String())

	return stdout.String(), false
}

func makeResult(answer map[string]any, said string) Result {
	result := Result{Raw: answer, Stdout: said}
	result.Changed, _ = answer["changed"].(bool)
	result.Failed, _ = answer["failed"].(bool)
	result.Msg, _ = answer["msg"].(string)
	result.Hint, _ = answer["hint"].(string)

	if failure, ok := answer["failure"].(map[string]any); ok {
		result.Code, _ = failure["code"].(string)
	}

	lines, _ := answer["plan"].([]any)
	for _, line := range lines {
		result.Plan = append(result.Plan, fmt.Sprint(line))
	}

	return result
}

// OK runs a module and fails the test when it fails.
func (h *Host) OK(module string, args map[string]any) Result {
	h.cluster.t.Helper()

	result := h.Module(module, args)
	require.False(h.cluster.t, result.Failed, "%s on %s: %s (%s)", module, h.Name, result.Msg, result.Hint)

	return result
}

// Converges runs a module in check mode (which must change nothing and announce a change), for real, and again (which
// must find nothing to do), and gives the real run's result.
func (h *Host) Converges(module string, args map[string]any) Result {
	t := h.cluster.t
	t.Helper()

	check := h.Module(module, args, Task{Check: true})
	require.False(t, check.Failed, "%s in check mode on %s: %s", module, h.Name, check.Msg)
	require.True(t, check.Changed, "%s in check mode on %s sees nothing to do", module, h.Name)

	result := h.OK(module, args)
	require.True(t, result.Changed)
	require.Equal(t, check.Plan, result.Plan, "check mode announced other steps than were done")

	h.Unchanged(module, args)

	return result
}

// Unchanged runs a module and fails the test when it changes something or fails.
func (h *Host) Unchanged(module string, args map[string]any) Result {
	h.cluster.t.Helper()

	result := h.OK(module, args)
	require.False(h.cluster.t, result.Changed, "%s on %s is not idempotent: %q", module, h.Name, result.Plan)

	return result
}

func run(t *testing.T, argv ...string) {
	t.Helper()

	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	require.NoError(t, err, "%q: %s", argv, out)
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")

	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
