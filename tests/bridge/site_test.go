// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/lab"
)

// dir is fixed: what a killed run left is found by the next.
const dir = "/var/lib/thinkube-bridge-tests"

// hostCount is how many tests run side by side: much of their time they wait for something that is not to happen.
const hostCount = 6

var labConfig = lab.Config{
	Name: "bridge", Hosts: hostCount, Subnet: netip.MustParsePrefix("10.177.94.0/24"), Dir: filepath.Join(dir, "lab"),
	Inventory: filepath.Join(dir, "lab.yaml"), Log: os.Stderr,
}

const (
	// uplink is the machine's own end of the hosts' network, where their gateway is.
	uplink   = "bridge0"
	gateway  = "10.177.94.1"
	gateway6 = "fd00:94::1"
)

// site is the lab, with hosts that tests borrow, and a collection whose program can be made to fail.
type site struct {
	alone net.Listener // held to the end
	lab   *lab.Lab
	root  string
	hosts chan *lab.Host
	// queue has tests take their hosts one after the other, so that no two of them wait for each other's.
	queue sync.Mutex
	whole sync.Map // names of hosts that need not be restored
}

var (
	bringUp sync.Once
	theSite *site
	siteErr error
)

func TestMain(m *testing.M) {
	flag.Parse()

	// By default as many as there are processors; but what these tests do is mostly to wait.
	err := flag.Set("test.parallel", strconv.Itoa(hostCount))
	if err != nil {
		panic(err)
	}

	code := m.Run()

	if theSite != nil && os.Getenv("THINKUBE_KEEP") == "" {
		err := errors.Join(lab.Down(context.Background(), labConfig, false), os.RemoveAll(dir))
		if err != nil {
			os.Stderr.WriteString("taking the lab down: " + err.Error() + "\n")

			code = 1
		}
	}

	os.Exit(code)
}

func needSite(t *testing.T) *site {
	t.Helper()

	if os.Getenv("THINKUBE_LAB") == "" {
		t.Skip("boots hosts: set THINKUBE_LAB=1")
	}

	_, err := exec.LookPath("ansible-playbook")
	if err == nil && os.Geteuid() != 0 {
		err = errors.New("needs root: boots hosts")
	}

	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal(err)
	}

	if err != nil {
		t.Skip(err)
	}

	bringUp.Do(func() { theSite, siteErr = makeSite() })
	require.NoError(t, siteErr)

	return theSite
}

// turn waits until no other run of these tests is on this machine. The socket has no file, and goes with the process.
func turn() (net.Listener, error) {
	for told := false; ; time.Sleep(time.Second) {
		alone, err := net.Listen("unix", "@thinkube-bridge-tests")
		if !errors.Is(err, syscall.EADDRINUSE) {
			return alone, err
		}

		if !told {
			fmt.Fprintln(os.Stderr, "waiting for another run of these tests to end")

			told = true
		}
	}
}

func makeSite() (*site, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return nil, err
	}

	alone, err := turn()
	if err != nil {
		return nil, err
	}

	err = writeCollection(root, filepath.Join(dir, "collections"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "ansible.cfg"), nil, 0o644) // none of the user's own
	}

	if err != nil {
		return nil, err
	}

	ctx := context.Background()

	// Of what an earlier run left, a host may be one that cannot be reached.
	err = lab.Down(ctx, labConfig, false)
	if err != nil {
		return nil, err
	}

	up, err := lab.Up(ctx, labConfig)
	if err != nil {
		return nil, err
	}

	// It goes with the lab's bridge.
	out, err := exec.Command("ip", "address", "replace", gateway6+"/64", "dev", uplink, "nodad").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("giving the gateway its IPv6 address: %w: %s", err, out)
	}

	made := &site{alone: alone, lab: up, root: root, hosts: make(chan *lab.Host, hostCount)}

	err = up.Snapshot(ctx, before)

	for _, host := range up.Hosts() {
		made.whole.Store(host.Name(), true)
		made.hosts <- host
	}

	return made, err
}

// before is the snapshot of every host as it was before all tests.
const before = "before"

// writeCollection makes a collections folder of the checkout, with the program built so that it can be made to fail.
func writeCollection(root, folder string) error {
	collection := filepath.Join(folder, "ansible_collections/thinkube/infra")

	err := errors.Join(os.RemoveAll(folder), os.MkdirAll(filepath.Join(collection, "libexec"), 0o755))
	if err != nil {
		return err
	}

	out, err := exec.Command("cp", "-r", filepath.Join(root, "plugins"), filepath.Join(root, "meta"), filepath.Join(root, "roles"), collection).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}

	program := filepath.Join(collection, "libexec/program")
	build := exec.Command("go", "build", "-tags", "faultinject", "-trimpath", "-ldflags", "-s -w", "-o", program, "./modules/bundle")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")

	out, err = build.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}

	text, err := os.ReadFile(program)
	if err != nil {
		return err
	}

	var packed bytes.Buffer

	writer := gzip.NewWriter(&packed)
	_, err = writer.Write(text)
	sum := sha256.Sum256(text)
	name := filepath.Join(collection, "libexec/thinkube_linux_"+runtime.GOARCH)

	return errors.Join(err, writer.Close(), os.Remove(program),
		os.WriteFile(name+".gz", packed.Bytes(), 0o644), os.WriteFile(name+".sha256", []byte(hex.EncodeToString(sum[:])+"\n"), 0o644))
}

// borrow gives the test a host as it was before everything.
func (s *site) borrow(t *testing.T) *lab.Host {
	t.Helper()

	return s.borrowSome(t, 1)[0]
}

// borrowSome gives the test several.
func (s *site) borrowSome(t *testing.T, count int) []*lab.Host {
	t.Helper()

	var hosts []*lab.Host

	s.queue.Lock()
	for range count {
		hosts = append(hosts, <-s.hosts)
	}
	s.queue.Unlock()

	t.Cleanup(func() {
		for _, host := range hosts {
			s.hosts <- host
		}
	})

	for _, host := range hosts {
		if _, whole := s.whole.LoadAndDelete(host.Name()); !whole {
			require.NoError(t, host.Restore(t.Context(), before))
		}
	}

	return hosts
}

// leave takes the bridge away again, so that the host need not be booted for the next test. Nobody is asked to confirm that.
func (s *site) leave(t *testing.T, host *lab.Host) {
	t.Helper()

	out := sh(t, host, module(anyProgram, `{"name":"br0","state":"absent","confirm_timeout":"0"}`))
	require.Contains(t, out, `"changed":true`)
	s.keep(t, host)
}

// keep tells that the host is as it was before everything.
func (s *site) keep(t *testing.T, host *lab.Host) {
	t.Helper()
	sh(t, host, "rm -f /run/thinkube-fault*")
	s.isWhole(t, host, "old")
	s.whole.Store(host.Name(), true)
}

// task is a running module task.
type task struct {
	cmd   *exec.Cmd
	out   bytes.Buffer
	done  chan error
	ended bool
}

// result is what a task gave.
type result struct {
	Changed     bool           `json:"changed"`
	Failed      bool           `json:"failed"`
	Unreachable bool           `json:"unreachable"`
	Msg         string         `json:"msg"`
	Steps       []string       `json:"steps"`
	Warnings    []string       `json:"warnings"`
	Armed       map[string]any `json:"armed"`
	Failure     struct {
		Code string `json:"code"`
	} `json:"failure"`
}

// start runs one task of the module by ansible's own command for that, over SSH.
func (s *site) start(t *testing.T, host *lab.Host, module string, args map[string]any) *task {
	t.Helper()

	text, err := json.Marshal(args)
	require.NoError(t, err)

	running := &task{done: make(chan error, 1)}
	running.cmd = exec.Command("ansible", host.Name(), "-i", s.lab.InventoryFile(), "-m", "thinkube.infra."+module, "-a", string(text), "--one-line")
	running.cmd.Dir = dir
	running.cmd.Env = s.environ()
	running.cmd.Stdout, running.cmd.Stderr = &running.out, &running.out
	running.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(t, running.cmd.Start())

	go func() { running.done <- running.cmd.Wait() }()

	return running
}

// cut ends the task on the controller, as if that had been unplugged: nothing of it will ever confirm anything.
func (r *task) cut() {
	if r.ended {
		return
	}

	_ = syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL)
	<-r.done
	r.ended = true
}

// over tells whether the task has ended.
func (r *task) over() bool {
	select {
	case <-r.done:
		r.ended = true
	default:
	}

	return r.ended
}

// wait gives the task's result.
func (r *task) wait(t *testing.T) result {
	t.Helper()

	if !r.over() {
		select {
		case <-r.done:
			r.ended = true
		case <-time.After(2 * time.Minute):
			r.cut()
			t.Fatalf("the task did not end:\n%s", r.out.String())
		}
	}

	var got result

	text := r.out.String()
	begin := strings.Index(text, "=> {")
	require.GreaterOrEqual(t, begin, 0, text)

	decoder := json.NewDecoder(strings.NewReader(text[begin+3:]))
	require.NoError(t, decoder.Decode(&got), text)

	got.Failed = got.Failed || strings.Contains(text[:begin], "FAILED")
	got.Unreachable = got.Unreachable || strings.Contains(text[:begin], "UNREACHABLE")
	if got.Failed || got.Unreachable {
		t.Logf("the task said: %s", got.Msg)
	}

	return got
}

func (s *site) run(t *testing.T, host *lab.Host, args map[string]any) result {
	t.Helper()

	return s.start(t, host, "net_bridge", args).wait(t)
}

// wanted are the arguments of the change that the tests make.
func wanted(more map[string]any) map[string]any {
	args := map[string]any{"name": "br0", "confirm_timeout": "10s"}
	for key, value := range more {
		args[key] = value
	}

	return args
}

// sh runs a command on the host, not over its network.
func sh(t *testing.T, host *lab.Host, command string) string {
	t.Helper()

	out, err := host.Run(t.Context(), command)
	require.NoError(t, err)

	return out
}

// eventually polls; the failure says what was waited for.
func eventually(t *testing.T, limit time.Duration, what string, check func() bool) {
	t.Helper()

	for end := time.Now().Add(limit); !check(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// cable plugs the host's cable in or out, on the other side.
func (s *site) cable(t *testing.T, host *lab.Host, state string) {
	t.Helper()

	out, err := exec.Command("ip", "link", "set", "bridge-"+host.Name(), state).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// measure gives the longest time without an answer from the host while something is done.
func measure(t *testing.T, host *lab.Host, do func()) time.Duration {
	t.Helper()

	ctx, cancel := context.WithCancel(t.Context())
	gap := make(chan time.Duration, 1)

	go func() {
		worst, answers, err := Watch(ctx, host.Address())
		if err != nil || answers == 0 {
			worst = time.Hour // no answer at all is no good one
		}

		gap <- worst
	}()

	do()
	time.Sleep(time.Second) // what comes late counts
	cancel()

	return <-gap
}
