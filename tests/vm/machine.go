// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/vm/wire"
)

// Machine says what is booted. The zero value is a PC without network or disk that runs what the initramfs has.
type Machine struct {
	// Type is QEMU's -machine; default q35.
	Type string
	// Args are more of QEMU's options, such as devices. Addresses 1d and 1e of the root bus are taken.
	Args []string
	// CPUs is the number of processors, default 1; Memory is in MiB, default 512.
	CPUs, Memory int
	// Cmdline is added to the kernel's command line.
	Cmdline string
	// Modules are kernel modules by name, parameters behind a space. What they depend on is loaded before them.
	Modules []string
	// Files are put into the guest, by their path there.
	Files map[string]File
	// Root is a file with an ext4 file system that is the guest's root, with systemd in it; see Debian. It is not changed.
	Root string
	// Keep has what the guest writes to its root outlast a restart.
	Keep bool
	// Kernel and Initrd are files to boot in place of ours. A guest with an Initrd of its own takes no commands: see
	// Guest.Wait and Guest.Serial.
	Kernel, Initrd string
	// Before is called with QEMU's process id before the guest's first instruction, at every start.
	Before func(pid int) error
}

// File is a file for the guest.
type File struct {
	Data []byte
	From string      // the file on this machine that has the data
	Link string      // what it is a symbolic link to, in place of data
	Mode fs.FileMode // default 0644
}

const (
	qemuProgram = "qemu-system-x86_64"
	busyboxFile = "/usr/bin/busybox"
	// bootLimit is for a machine that has many other things to do: at a load of 25 on two cores a boot took 2 minutes.
	bootLimit = 10 * time.Minute
)

// modules are those that were asked for and those that this package needs.
func (m Machine) modules() []string {
	names := []string{"virtio_pci", "virtio_console"}
	if m.Root != "" {
		names = append(names, "virtio_blk", "crc32c_generic", "ext4")
	}
	return append(names, m.Modules...)
}

// rootDevice is the root's disk in the guest. The kernel names virtio disks by their order, so a test that adds disks adds
// them with an address behind ours, or of another kind.
func (m Machine) rootDevice() string {
	if m.Root == "" {
		return ""
	}
	return "/dev/vda"
}

// Guest is a booted machine.
type Guest struct {
	// Kernel is what it runs, unless Machine.Kernel is given.
	Kernel *Kernel

	machine Machine
	dir     string // of this guest alone: sockets, initramfs, disk, log

	lock sync.Mutex // of the rest
	qemu *qemu
}

// qemu is one life of a guest.
type qemu struct {
	pid  int
	port net.Conn
	done chan struct{} // closed when QEMU has ended
	err  error         // why, then

	lock    sync.Mutex
	next    int
	waiting map[int]chan wire.Answer
}

// missing says what this machine lacks to boot a guest, once.
var missing = sync.OnceValue(func() error {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return fmt.Errorf("the guests are Linux on amd64, with this machine's busybox: this is %s on %s", runtime.GOOS, runtime.GOARCH)
	}
	for _, tool := range []string{qemuProgram, "dpkg-deb", "apt-get", "xz"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: make deps installs it", err)
		}
	}
	if _, err := os.Stat(busyboxFile); err != nil {
		return fmt.Errorf("%w: make deps installs it", err)
	}
	_, err := OpenKernel(context.Background(), false, os.Stderr)
	return err
})

// Need skips the test where guests are not asked for or cannot be booted. Under CI=true nothing is skipped.
func Need(t testing.TB) {
	t.Helper()
	ci := os.Getenv("CI") == "true"
	if os.Getenv("THINKUBE_LAB") == "" && !ci {
		t.Skip("boots a machine in QEMU: set THINKUBE_LAB=1")
	}
	if err := missing(); err != nil {
		if ci {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// Boot starts a machine and waits until it takes commands and, with a root, its systemd has started everything; what of that
// has failed is an error. It ends with the test.
func Boot(t testing.TB, machine Machine) *Guest {
	t.Helper()
	Need(t)
	started := time.Now()
	guest, err := prepare(t.Context(), machine)
	if guest != nil {
		t.Cleanup(func() { guest.close(t) })
	}
	require.NoError(t, err)
	prepared := time.Since(started)
	require.NoError(t, guest.start(t.Context()))
	t.Logf("booted in %s, after %s of preparation", (time.Since(started) - prepared).Round(10*time.Millisecond), prepared.Round(10*time.Millisecond))
	return guest
}

// prepare makes the files that QEMU needs. It gives a guest with an error too: what it made has to be removed.
func prepare(ctx context.Context, machine Machine) (*Guest, error) {
	dir, err := os.MkdirTemp("", "thinkube-vm-") // short: the path of a socket has 107 bytes at most
	if err != nil {
		return nil, err
	}
	guest := &Guest{machine: machine, dir: dir}
	guest.Kernel, err = OpenKernel(ctx, false, os.Stderr)
	if err != nil {
		return guest, err
	}
	if machine.Initrd == "" {
		agent, err := build(ctx, "github.com/thinkube/infra/tests/vm/agent")
		if err != nil {
			return guest, err
		}
		packed, err := makeInitramfs(ctx, guest.Kernel, machine, agent)
		if err == nil {
			err = os.WriteFile(guest.path("initramfs"), packed, 0o600)
		}
		if err != nil {
			return guest, err
		}
	}
	if machine.Keep {
		_, err = run(ctx, "", "cp", "--sparse=always", "--reflink=auto", machine.Root, guest.path("root.img"))
	}
	return guest, err
}

// programs are those that this process has built, by package and options.
var programs struct {
	lock sync.Mutex // of the rest
	dir  string
	made map[string]func() (string, error)
}

// build builds a program of this module for the guest, static, once: linking takes longer than much that is done with it.
func build(ctx context.Context, pkg string, args ...string) (string, error) {
	p := &programs
	p.lock.Lock()
	if p.dir == "" {
		dir, err := os.MkdirTemp("", "thinkube-programs-")
		if err != nil {
			p.lock.Unlock()
			return "", err
		}
		p.dir, p.made = dir, map[string]func() (string, error){}
	}
	key := fmt.Sprintf("%q", append(args, pkg))
	if p.made[key] == nil {
		to := filepath.Join(p.dir, fmt.Sprint(len(p.made)))
		// Not with the test that comes first, which may end before another that waits for it.
		p.made[key] = sync.OnceValues(func() (string, error) { return to, link(context.WithoutCancel(ctx), to, pkg, args...) })
	}
	made := p.made[key]
	p.lock.Unlock()
	return made()
}

func link(ctx context.Context, to, pkg string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", slices.Concat([]string{"build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o", to}, args, []string{pkg})...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// Build gives a program of this module, built for the guest: a file that all tests of a package share. Their TestMain removes
// it with [RemovePrograms].
func Build(t testing.TB, pkg string, args ...string) string {
	t.Helper()
	made, err := build(t.Context(), pkg, args...)
	require.NoError(t, err)
	return made
}

// RemovePrograms removes what Build and Boot have built.
func RemovePrograms() error {
	programs.lock.Lock()
	defer programs.lock.Unlock()
	dir := programs.dir
	programs.dir, programs.made = "", nil
	if dir == "" {
		return nil
	}
	return os.RemoveAll(dir)
}

func (g *Guest) path(name string) string { return filepath.Join(g.dir, name) }

func either(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// args are QEMU's.
func (g *Guest) args() []string {
	m := g.machine
	cpus, memory := max(m.CPUs, 1), m.Memory
	if memory == 0 {
		memory = 512
	}
	// A panic ends QEMU, for its restart does. The processor's own clock is measured at the start, and a machine that was busy then
	// had it run four times too fast. The rest makes an emulated machine faster, or the log shorter.
	cmdline := "console=ttyS0 panic=-1 quiet mitigations=off random.trust_cpu=on net.ifnames=0 audit=0 apparmor=0 selinux=0 systemd.show_status=no" +
		" init_on_alloc=0 cryptomgr.notests rcupdate.rcu_expedited=1 clocksource=hpet tsc=reliable nowatchdog"
	args := []string{
		"-accel", "tcg,thread=multi", "-machine", either(m.Type, "q35"), "-cpu", "max", "-m", fmt.Sprint(memory), "-smp", fmt.Sprint(cpus),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-chardev", "file,id=serial,append=on,path=" + g.path("serial.log"), "-serial", "chardev:serial",
		"-qmp", "unix:" + g.path("qmp") + ",server=on,wait=off", "-S",
		"-kernel", either(m.Kernel, filepath.Join(g.Kernel.dir, "vmlinux")), "-initrd", either(m.Initrd, g.path("initramfs")),
		"-append", strings.TrimSpace(cmdline + " " + m.Cmdline),
	}
	args = append(args, m.Args...)
	if m.Initrd == "" {
		args = append(args, "-device", "virtio-serial-pci,addr=1e.0", "-chardev", "socket,id=agent,server=on,wait=off,path="+g.path("agent.sock"),
			"-device", "virtserialport,chardev=agent,name="+wire.Port)
	}
	if m.Root != "" {
		drive := "snapshot=on,file=" + m.Root
		if m.Keep {
			drive = "file=" + g.path("root.img")
		}
		args = append(args, "-drive", "if=none,id=root,format=raw,"+drive, "-device", "virtio-blk-pci,drive=root,addr=1d.0")
	}
	return args
}

// systemdIsDone waits for what a boot starts. systemctl can wait only once systemd listens.
const systemdIsDone = `until [ -S /run/systemd/private ]; do sleep 0.2; done
systemctl is-system-running --wait || { systemctl --failed --plain --no-legend; exit 1; }`

// start boots the machine, once more if it was booted before.
func (g *Guest) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	err := g.launch(ctx)
	if err == nil && g.machine.Root != "" && g.machine.Initrd == "" {
		_, err = g.Sh(ctx, systemdIsDone)
	}
	return err
}

func (g *Guest) launch(ctx context.Context) error {
	g.lock.Lock()
	defer g.lock.Unlock()
	for _, name := range []string{"qmp", "agent.sock"} {
		if err := os.Remove(g.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	life := &qemu{done: make(chan struct{}), waiting: map[int]chan wire.Answer{}}
	if err := life.launch(g.args()); err != nil {
		return err
	}
	g.qemu = life
	ready := life.expect(wire.Ready)
	if g.machine.Initrd == "" {
		port, err := life.dial(ctx, g.path("agent.sock"))
		if err != nil {
			return err
		}
		life.port = port
		go life.read()
	}
	if err := life.begin(ctx, g.path("qmp"), g.machine.Before); err != nil || g.machine.Initrd != "" {
		return err
	}
	select {
	case <-ready:
		return nil
	case <-life.done:
		return fmt.Errorf("the guest ended while it booted: %w", life.err)
	case <-ctx.Done():
		return fmt.Errorf("the guest has not booted within %s: %w", bootLimit, ctx.Err())
	}
}

// launch starts QEMU. It dies with this process, however that ends.
func (q *qemu) launch(args []string) error {
	cmd := exec.Command(qemuProgram, args...)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the parent that Pdeathsig means is the thread
		err := cmd.Start()
		if err == nil {
			q.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		q.err = errors.Join(cmd.Wait(), errors.New(strings.TrimSpace("QEMU has ended. "+said.String())))
		close(q.done)
	}()
	return <-started
}

// dial connects to a socket that QEMU opens when it is ready to.
func (q *qemu) dial(ctx context.Context, path string) (net.Conn, error) {
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			return conn, nil
		}
		select {
		case <-q.done:
			return nil, q.err
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// begin lets the processor run. What is to be done before is done when QEMU answers: only then it has all its devices.
func (q *qemu) begin(ctx context.Context, path string, before func(pid int) error) error {
	conn, err := q.dial(ctx, path)
	if err != nil {
		return err
	}
	defer conn.Close()
	if limit, ok := ctx.Deadline(); ok {
		err = conn.SetDeadline(limit)
	}
	// QMP greets first, then answers each command; events may come between.
	lines := bufio.NewScanner(conn)
	for _, command := range []string{"", "qmp_capabilities", "cont"} {
		if command == "cont" && before != nil && err == nil {
			err = before(q.pid)
		}
		if command != "" && err == nil {
			_, err = fmt.Fprintf(conn, "{\"execute\":%q}\n", command)
		}
		for answered := false; !answered && err == nil; {
			var answer map[string]any
			if !lines.Scan() {
				return errors.Join(fmt.Errorf("QMP ended: %w", errors.Join(lines.Err(), io.ErrUnexpectedEOF)), q.why())
			}
			err = json.Unmarshal(lines.Bytes(), &answer)
			if answer["error"] != nil {
				return fmt.Errorf("QMP: %s: %v", command, answer["error"])
			}
			answered = answer["event"] == nil
		}
	}
	return err
}

// why tells what QEMU says of its end, if that is near.
func (q *qemu) why() error {
	select {
	case <-q.done:
		return q.err
	case <-time.After(time.Second):
		return nil
	}
}

// expect is where the answer of that ID comes.
func (q *qemu) expect(id int) chan wire.Answer {
	answer := make(chan wire.Answer, 1)
	q.lock.Lock()
	defer q.lock.Unlock()
	q.waiting[id] = answer
	return answer
}

// read hands out answers until the guest ends.
func (q *qemu) read() {
	lines := json.NewDecoder(bufio.NewReader(q.port))
	for {
		var answer wire.Answer
		if lines.Decode(&answer) != nil {
			return // what waits looks at done
		}
		q.lock.Lock()
		waits := q.waiting[answer.ID]
		delete(q.waiting, answer.ID)
		q.lock.Unlock()
		if waits != nil {
			waits <- answer
		}
	}
}

func (q *qemu) send(request wire.Request) error {
	text, err := json.Marshal(request)
	if err != nil {
		return err
	}
	q.lock.Lock()
	defer q.lock.Unlock()
	_, err = q.port.Write(append(text, '\n'))
	return err
}

// end ends QEMU, and waits for that.
func (q *qemu) end() {
	select {
	case <-q.done: // the number may be another process's by now
	default:
		_ = syscall.Kill(q.pid, syscall.SIGKILL)
		<-q.done
	}
	if q.port != nil {
		_ = q.port.Close()
	}
}
