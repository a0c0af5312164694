// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	bootTimeout = 90 * time.Second
	// stopTimeout is what a host gets to power off by itself.
	stopTimeout = 30 * time.Second
)

// Host is one host of the lab.
type Host struct {
	lab   *Lab
	state hostState
}

// Name is the host's name, as in the inventory.
func (h *Host) Name() string { return h.state.Name }

// Address is the host's fixed address on the lab's bridge.
func (h *Host) Address() netip.Addr { return h.lab.state.address(h.state.Index) }

// HasLXD says whether LXD and BIND were in the image that the host was made from.
func (h *Host) HasLXD() bool { return !h.state.WithoutLXD }

func (h *Host) dir() string   { return filepath.Join(h.lab.cfg.Dir, "hosts", h.state.Name) }
func (h *Host) upper() string { return filepath.Join(h.dir(), "upper") }

// cgroups are the host's own groups; on a machine run by systemd they are below its scope instead.
func (h *Host) cgroups() []string {
	var dirs []string
	for _, dir := range h.lab.state.Cgroups {
		dirs = append(dirs, filepath.Join(dir, h.state.Name))
	}
	if run, err := h.running(); err == nil && run.Scope != "" {
		dirs = append(dirs, run.Scope)
	}
	return dirs
}

// runState is the note about a host's supervisor, the process that holds the host's namespaces.
type runState struct {
	process
	Scope string `json:"scope,omitempty"` // cgroup v2 folder made by the machine's systemd
}

func (h *Host) runFile() string { return filepath.Join(h.dir(), "run.json") }

func (h *Host) running() (runState, error) {
	var run runState
	err := readJSON(h.runFile(), &run)
	return run, err
}

// Running says whether the host's supervisor is alive.
func (h *Host) Running() bool {
	run, err := h.running()
	return err == nil && run.alive()
}

// leader is the host's init as the machine numbers it.
func (h *Host) leader() (process, error) {
	run, err := h.running()
	if err == nil && run.alive() {
		for _, pid := range descendants(run.PID) {
			if isInit(pid) {
				return findProcess(pid)
			}
		}
	}
	return process{}, fmt.Errorf("host %q is not running", h.Name())
}

// supervisor is the script that runs a host. It starts in a mount and a network namespace of its own,
// waits for its network card, and boots again when the host wants to reboot: that is what 133 means
// (nspawn.c: EXIT_FORCE_RESTART, given with --keep-unit). Should its parent die first, it reads no line
// and ends.
const supervisor = `
read -r _ || exit 1
options=$1 root=$2 name=$3
# systemd-nspawn keeps locks and sockets here; in a namespace they leave nothing behind.
mount -t tmpfs tmpfs /run
mount -t overlay overlay -o "$options" "$root" || exit 1
while :; do
    systemd-nspawn --quiet --directory="$root" --machine="$name" --hostname="${name##*-}" --boot \
        --register=no --keep-unit --network-namespace-path=/proc/self/ns/net \
        --capability=all --system-call-filter='add_key keyctl bpf' \
        --resolv-conf=off --timezone=off --link-journal=no </dev/null
    [ $? = 133 ] || exit 0
done
`

// start boots the host and returns once its supervisor runs; see waitReady.
func (h *Host) start(ctx context.Context) error {
	if err := h.prepare(ctx); err != nil {
		return fmt.Errorf("preparing its files: %w", err)
	}
	root, work := filepath.Join(h.dir(), "root"), filepath.Join(h.dir(), "work")
	if err := errors.Join(os.MkdirAll(root, 0o755), os.RemoveAll(work), os.MkdirAll(work, 0o755)); err != nil {
		return err
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s",
		strings.Join(h.lab.image.lowers(h.state.WithoutLXD), ":"), h.upper(), work)
	console, err := os.Create(filepath.Join(h.dir(), "console.log"))
	if err != nil {
		return err
	}
	defer console.Close()
	argv := []string{"/bin/sh", "-c", supervisor, "thinkube-lab", options, root, h.lab.state.linkName(h.Name())}
	bySystemd := runBySystemd()
	if bySystemd {
		// The control groups of such a machine are systemd's; it delegates some in a scope.
		argv = append([]string{"systemd-run", "--scope", "--collect", "--quiet", "--property=Delegate=yes",
			"--description=lab host " + h.Name(),
			"--unit=thinkube-lab-" + h.lab.state.linkName(h.Name()), "--"}, argv...)
	}
	cmd := exec.Command(argv[0], argv[1:]...) // outlives the context on purpose
	cmd.Stdout, cmd.Stderr = console, console
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8",
		"SYSTEMD_NSPAWN_TMPFS_TMP=0", // Debian's servers have /tmp on disk
		// The network's sysctls are the host's own; the rest of /proc/sys and /sys is the machine's.
		"SYSTEMD_NSPAWN_API_VFS_WRITABLE=network"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	ready, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // no zombie while this program lives
	return h.release(ctx, cmd.Process.Pid, bySystemd, ready)
}

// release puts the waiting supervisor in its place and lets it go on.
func (h *Host) release(ctx context.Context, pid int, bySystemd bool, ready io.Writer) error {
	proc, err := findProcess(pid)
	if err != nil {
		return err
	}
	run := runState{process: proc}
	if bySystemd {
		if run.Scope, err = waitScope(ctx, pid); err != nil {
			return err
		}
	}
	if err := writeJSON(h.runFile(), run); err != nil {
		return err
	}
	if !bySystemd {
		if err := ensureCgroups(h.lab.state.Cgroups, h.Name()); err != nil {
			return err
		}
		if err := joinCgroups(h.lab.state.Cgroups, h.Name(), pid); err != nil {
			return err
		}
	}
	if err := h.lab.plugIn(ctx, h.state, pid); err != nil {
		return fmt.Errorf("plugging in its network: %w", err)
	}
	_, err = io.WriteString(ready, "go\n")
	return err
}

// runBySystemd says whether the machine's init is systemd (sd_booted(3)).
func runBySystemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}

// waitScope waits until systemd-run has moved itself into its scope, and returns the scope's folder.
func waitScope(ctx context.Context, pid int) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	var dir string
	err = poll(ctx, 10*time.Millisecond, func() (bool, error) {
		own, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil {
			return false, err
		}
		for _, hier := range parseHierarchies(string(mounts)) {
			if path := hier.ownPath(string(own)); hier.unified && strings.HasSuffix(path, ".scope") && strings.Contains(path, "thinkube-lab-") {
				dir = filepath.Join(hier.mount, path)
			}
		}
		return dir != "", nil
	})
	return dir, err
}

// ensureUp starts the host unless it runs, and waits until it is ready.
func (h *Host) ensureUp(ctx context.Context) error {
	thaw(h.cgroups()) // a snapshot may have been cut
	if !h.Running() {
		// What a dead supervisor left has no business beside a new one.
		if err := h.kill(ctx); err != nil {
			return err
		}
		if err := h.start(ctx); err != nil {
			return fmt.Errorf("starting: %w", errors.Join(err, h.kill(ctx)))
		}
	}
	return h.waitReady(ctx)
}

// waitReady waits until sshd answers and the host's boot is over.
func (h *Host) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bootTimeout, fmt.Errorf("not ready within %s", bootTimeout))
	defer cancel()
	err := poll(ctx, 50*time.Millisecond, func() (bool, error) {
		if !h.Running() {
			return false, errors.New("ended while booting")
		}
		return answers(ctx, h.Address()), nil
	})
	if err != nil {
		return h.explain(err)
	}
	// sshd is up before logins of ordinary users are allowed.
	state, err := h.Run(ctx, "systemctl is-system-running --wait || true")
	if err != nil {
		return h.explain(err)
	}
	if state = strings.TrimSpace(state); state != "running" && state != "degraded" {
		return h.explain(fmt.Errorf("system state is %q", state))
	}
	return nil
}

func (h *Host) explain(err error) error {
	path := filepath.Join(h.dir(), "console.log")
	return fmt.Errorf("booting: %w; the last lines of %s are:\n%s", err, path, lastLines(path, 10))
}

// answers says whether an ssh server greets us.
func answers(ctx context.Context, addr netip.Addr) bool {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(addr, 22).String())
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	greeting := make([]byte, 4)
	_, err = io.ReadFull(conn, greeting)
	return err == nil && string(greeting) == "SSH-"
}

// locked runs something that changes this host only, beside what is done to others, on the lab's state as it
// is once the lock is had.
func (h *Host) locked(do func(h *Host) error) error {
	unlockLab, err := lockShared(h.lab.cfg.Dir)
	if err != nil {
		return err
	}
	defer unlockLab()
	unlock, err := lock(h.dir())
	if err != nil {
		return err
	}
	defer unlock()
	fresh, err := readState(h.lab.cfg.Dir)
	if err != nil {
		return err
	}
	lab := *h.lab // others of this process may hold the same
	lab.state = fresh
	return do(&Host{lab: &lab, state: h.state})
}

// Start boots a stopped host and waits until it is ready; a running host is left as it is.
func (h *Host) Start(ctx context.Context) error {
	return h.locked(func(h *Host) error { return h.wrap("starting", h.ensureUp(ctx)) })
}

// Stop powers the host off, as its power button would; after a deadline it pulls the plug. The host's
// files stay.
func (h *Host) Stop(ctx context.Context) error {
	return h.locked(func(h *Host) error { return h.wrap("stopping", h.stop(ctx)) })
}

// Kill pulls the plug. The host's files stay.
func (h *Host) Kill(ctx context.Context) error {
	return h.locked(func(h *Host) error { return h.wrap("killing", h.kill(ctx)) })
}

func (h *Host) wrap(doing string, err error) error {
	if err != nil {
		return fmt.Errorf("%s host %q: %w", doing, h.Name(), err)
	}
	return nil
}

// powerOff asks systemd as process 1 to power off (systemd(1), SIGRTMIN+4).
const powerOff = syscall.Signal(34 + 4)

func (h *Host) stop(ctx context.Context) error {
	leader, err := h.leader()
	if err != nil {
		return h.kill(ctx) // nothing is there that could listen
	}
	thaw(h.cgroups())
	if err := leader.signal(powerOff); err != nil {
		return err
	}
	deadline, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := leader.waitGone(deadline); err != nil && ctx.Err() != nil {
		return err
	}
	return h.kill(ctx)
}

// kill ends the supervisor, the host's init, and with it every process of the host.
func (h *Host) kill(ctx context.Context) error {
	thaw(h.cgroups())
	run, err := h.running()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if leader, err := h.leader(); err == nil {
		if err := leader.signal(syscall.SIGKILL); err != nil {
			return err
		}
		// Its parents end by themselves then, each waiting for its child as it should.
		soon, cancel := context.WithTimeout(ctx, time.Second)
		_ = run.waitGone(soon)
		cancel()
	}
	victims := []process{run.process}
	if run.alive() {
		for _, pid := range descendants(run.PID) {
			if proc, err := findProcess(pid); err == nil && (isInit(pid) || slices.Contains(children(run.PID), pid)) {
				victims = append(victims, proc)
			}
		}
	}
	for _, proc := range victims {
		if err := proc.signal(syscall.SIGKILL); err != nil {
			return err
		}
	}
	for _, proc := range victims {
		if err := proc.waitGone(ctx); err != nil {
			return err
		}
	}
	if err := killCgroups(ctx, h.cgroups()); err != nil {
		return err
	}
	if err := os.Remove(h.runFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ExitError says that a command ran on a host and failed.
type ExitError struct {
	Host, Command  string
	Code           int
	Stdout, Stderr string
}

func (e *ExitError) Error() string {
	text := strings.TrimSpace(e.Stderr)
	if text == "" {
		text = strings.TrimSpace(e.Stdout)
	}
	return fmt.Sprintf("host %q: command %q exited with %d: %s", e.Host, e.Command, e.Code, text)
}

// Run runs a shell command as root on the host and returns its standard output. It goes into the host's
// namespaces from the machine, and so works also when the host's network or sshd doesn't. A command that
// fails gives an *ExitError.
func (h *Host) Run(ctx context.Context, command string) (string, error) {
	return h.RunInput(ctx, nil, command)
}

// RunInput is Run with something on the command's standard input.
func (h *Host) RunInput(ctx context.Context, stdin io.Reader, command string) (string, error) {
	argv, err := h.ExecArgs("/bin/sh", "-c", command)
	if err != nil {
		return "", err
	}
	return h.run(ctx, argv, stdin, command)
}

// SSH runs a shell command as a user of the host over the network, and returns its standard output.
func (h *Host) SSH(ctx context.Context, user, command string) (string, error) {
	return h.run(ctx, append(h.SSHArgs(user), "--", command), nil, command)
}

func (h *Host) run(ctx context.Context, argv []string, stdin io.Reader, command string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	// The command itself is a child of nsenter's in another process namespace, but of the same group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return stdout.String(), fmt.Errorf("host %q: command %q: %w", h.Name(), command, context.Cause(ctx))
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return stdout.String(), &ExitError{h.Name(), command, exit.ExitCode(), stdout.String(), stderr.String()}
	}
	return stdout.String(), err
}

// ExecArgs is the command line with which the machine runs a program in the host's namespaces.
func (h *Host) ExecArgs(argv ...string) ([]string, error) {
	leader, err := h.leader()
	if err != nil {
		return nil, err
	}
	enter := []string{"nsenter", fmt.Sprintf("--target=%d", leader.PID), "--mount", "--uts", "--ipc", "--net",
		"--pid", "--cgroup", "--root", "--",
		"env", "-i", "--chdir=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "USER=root", "LC_ALL=C.UTF-8", "TERM=" + first(os.Getenv("TERM"), "dumb")}
	return append(enter, argv...), nil
}

// File is where the machine sees a file of the running host, until that is switched off.
func (h *Host) File(path string) (string, error) {
	leader, err := h.leader()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("/proc/%d/root%s", leader.PID, path), nil
}

// SSHArgs is the command line with which the machine logs in to the host.
func (h *Host) SSHArgs(user string) []string {
	return []string{"ssh", "-F", "none", "-i", h.lab.KeyFile(), "-o", "UserKnownHostsFile=" + h.lab.KnownHostsFile(),
		"-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10",
		user + "@" + h.Address().String()}
}
