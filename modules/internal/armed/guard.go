// SPDX-License-Identifier: Apache-2.0

package armed

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// unfinished are the phases that undoing starts from.
var unfinished = []Phase{Armed, Applying, Applied, Restoring, Stuck}

// guardUnit is the transient unit that the guard runs in.
const guardUnit = "thinkube-net-bridge.service"

// headStart is how long the guard waits before it changes anything, so that who armed it can say so over the connection
// that is about to be cut.
const headStart = 300 * time.Millisecond

// Arm starts the guard for a staged change, and with it the change. It is back when the guard runs.
func (s Store) Arm(ctx context.Context, id string) error {
	err := s.keepProgram()
	if err != nil {
		return fmt.Errorf("keeping the program: %w", err)
	}

	noise := make([]byte, reserved)
	_, _ = rand.Read(noise) // never fails, says crypto/rand

	err = replaceFile(s.reserve(), noise, 0o600, -1, -1)
	if err != nil {
		return fmt.Errorf("reserving room for undoing the change: %w", err)
	}

	err = s.enableUnit()
	if err != nil {
		return fmt.Errorf("writing unit %q: %w", unitName, err)
	}

	_, err = s.turn(id, []Phase{Staged}, Armed, func(change *Change) {
		change.BootID = BootID()
		change.Deadline = 0

		if change.Timeout > 0 {
			change.Deadline = Now() + change.Timeout.Nanoseconds()
		}
	})
	if err != nil {
		disableUnit()

		return err
	}

	faultPoint("armed")

	err = s.startGuard(ctx)
	if err == nil {
		return nil
	}

	_, turned := s.turn(id, []Phase{Armed}, Staged, nil)

	switch {
	case errors.Is(turned, ErrOutrun):
		return nil // there is a guard after all, and it is at work
	case turned == nil:
		disableUnit() // nothing has changed yet, and nothing will
	}

	return errors.Join(err, turned)
}

func (s Store) startGuard(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()

	argv := []string{s.Program(), "service", "net_bridge", "guard"}

	if bySystemd() {
		run := exec.CommandContext(ctx, "systemd-run", append([]string{
			"--quiet", "--collect", "--unit=" + guardUnit, "--description=Undo a change of the network unless it is confirmed",
			"--property=Restart=on-failure", "--property=RestartSec=50ms", "--property=StartLimitIntervalSec=0",
			"--property=TimeoutStopSec=5min", // told to stop, it undoes the change first
			"--property=OOMScoreAdjust=-900", "--property=SendSIGHUP=no", "--",
		}, argv...)...)

		out, err := run.CombinedOutput()
		if err != nil {
			return fmt.Errorf("starting the guard with systemd-run: %w: %s", err, out)
		}
	} else {
		err := s.detach(argv)
		if err != nil {
			return fmt.Errorf("starting the guard: %w", err)
		}
	}

	for {
		guarded, err := s.Guarded()
		if guarded || err != nil {
			return err
		}

		select {
		case <-ctx.Done():
			return errors.New("the guard was started and does not run")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// detach starts the guard in a session of its own, so that the end of ours does not end it.
func (s Store) detach(argv []string) error {
	log, err := os.OpenFile(filepath.Join(s.Dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}

	defer func() { _ = log.Close() }()

	guard := exec.Command(argv[0], argv[1:]...)
	guard.Dir, guard.Stdout, guard.Stderr = "/", log, log
	guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true}

	err = guard.Start()
	if err != nil {
		return err
	}

	return guard.Process.Release()
}

func (s Store) guardLock() string { return filepath.Join(s.Dir, "guard.lock") }

// The lock is one that can be looked at without being taken (fcntl_locking(2), open file description locks): who asks
// must not be in the way of a guard that starts in that moment.
func guardsLock() unix.Flock_t { return unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart} }

// Guarded tells whether a guard runs: it holds a lock that its death gives back.
func (s Store) Guarded() (bool, error) {
	file, err := os.OpenFile(s.guardLock(), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}

	if err != nil {
		return false, fmt.Errorf("looking for the guard: %w", err)
	}

	defer func() { _ = file.Close() }()

	lock := guardsLock()

	err = unix.FcntlFlock(file.Fd(), unix.F_OFD_GETLK, &lock)
	if err != nil {
		return false, fmt.Errorf("looking for the guard: %w", err)
	}

	return lock.Type != unix.F_UNLCK, nil
}

// Guard is the process that lives from before the change until it is confirmed or undone. When it is told to end earlier,
// it undoes the change first, unless the host goes down: then the unit for its next start does that.
func (s Store) Guard(ctx context.Context) error {
	file, err := os.OpenFile(s.guardLock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}

	defer func() { _ = file.Close() }()

	lock := guardsLock()

	err = unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return nil // there is one
	}

	if err == nil {
		err = s.guard(ctx)
	}

	if ctx.Err() != nil && err == nil {
		err = s.stopped(ctx)
	}

	// What failed at once would fail again at once.
	switch {
	case errors.Is(err, errUnsaid):
		time.Sleep(30 * time.Second)
	case err != nil:
		time.Sleep(time.Second)
	}

	return err
}

// stopped undoes a change whose guard was told to end.
func (s Store) stopped(ctx context.Context) error {
	change, err := s.Load()
	if err != nil || change == nil || !change.Phase.moving() {
		return err
	}

	if goesDown(ctx) {
		return nil
	}

	return s.Restore(ctx, change.ID, "the guard was told to stop before the change was confirmed")
}

// goesDown tells whether the host is being shut down.
func goesDown(ctx context.Context) bool {
	if !bySystemd() {
		return false
	}

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()

	out, _ := exec.CommandContext(ctx, "systemctl", "is-system-running").Output() // its exit code says the same

	return strings.TrimSpace(string(out)) == "stopping"
}

// guard goes on from wherever the change is.
func (s Store) guard(ctx context.Context) error {
	change, err := s.Load()
	if err != nil || change == nil {
		return err
	}

	if change.BootID != BootID() && change.Phase.Open() {
		return s.Restore(context.WithoutCancel(ctx), change.ID, "the host was restarted before the change was confirmed")
	}

	switch change.Phase {
	case Armed:
		return s.guardChange(ctx, change)
	case Applying:
		return s.Restore(ctx, change.ID, "the guard was killed while the change was made")
	case Restoring:
		return s.Restore(ctx, change.ID, change.Reason)
	case Applied:
		return s.awaitConfirm(ctx, change)
	case Confirmed:
		return s.Finish(change.ID)
	}

	return nil
}

// guardChange has the change made and sees to its end.
func (s Store) guardChange(ctx context.Context, change *Change) error {
	select {
	case <-ctx.Done():
		return nil // stopped goes on
	case <-time.After(headStart):
	}

	change, err := s.turn(change.ID, []Phase{Armed}, Applying, nil)
	if errors.Is(err, ErrOutrun) {
		return s.settle(ctx)
	}

	if err != nil {
		return err
	}

	err = s.runApplier(ctx, change)

	if ctx.Err() != nil {
		return nil // stopped goes on
	}

	now, loadErr := s.Load()

	switch {
	case loadErr != nil:
		return loadErr
	case now == nil || now.ID != change.ID:
		return nil
	case err != nil || now.Phase == Applying:
		if err == nil {
			err = errors.New("the change ended without a word")
		}

		return s.Restore(ctx, change.ID, err.Error())
	}

	return s.settle(ctx)
}

// settle goes on from whatever the change is now.
func (s Store) settle(ctx context.Context) error {
	change, err := s.Load()
	if err != nil || change == nil {
		return err
	}

	switch change.Phase {
	case Applied:
		if change.Timeout == 0 {
			_, err := s.turn(change.ID, []Phase{Applied}, Confirmed, nil)
			if err != nil {
				return err
			}

			return s.Finish(change.ID)
		}

		return s.awaitConfirm(ctx, change)
	case Restoring:
		return s.Restore(ctx, change.ID, change.Reason)
	case Confirmed:
		return s.Finish(change.ID)
	}

	return nil
}

// applyLimit bounds a change that nobody needs to confirm.
const applyLimit = 2 * time.Minute

// runApplier makes the change in a process that dies with this one, so that never two of them are at work.
func (s Store) runApplier(ctx context.Context, change *Change) error {
	limit := applyLimit
	if change.Timeout > 0 {
		limit = time.Duration(change.Deadline - Now())
	}

	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()

	// The parent that Pdeathsig means is the thread, not the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	applier := exec.CommandContext(ctx, s.Program(), "service", "net_bridge", "apply")
	applier.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	applier.Cancel = func() error { return syscall.Kill(-applier.Process.Pid, syscall.SIGKILL) }
	applier.WaitDelay = time.Second

	var said tail

	applier.Stdout, applier.Stderr = &said, &said

	err := applier.Run()
	if err == nil {
		return nil
	}

	if ctx.Err() != nil {
		return errors.New("the change was not made in time")
	}

	if said.String() == "" {
		return fmt.Errorf("the process that made the change died: %w", err)
	}

	return errors.New(said.String())
}

// awaitConfirm waits for a confirmation or the end of the time.
func (s Store) awaitConfirm(ctx context.Context, change *Change) error {
	watch, err := watchFolder(s.Dir)
	if err != nil {
		return err
	}

	defer watch.close()

	for {
		now, err := s.Load()
		if err != nil {
			return err
		}

		if now == nil || now.ID != change.ID {
			return nil
		}

		if now.Phase != Applied {
			return s.settle(ctx)
		}

		left := time.Duration(change.Deadline - Now())
		if left <= 0 {
			return s.Restore(ctx, change.ID, fmt.Sprintf("nobody confirmed it within %s", change.Timeout))
		}

		watch.wait(ctx, left)

		if ctx.Err() != nil {
			return nil // stopped goes on
		}
	}
}

// tail keeps the end of what a process says.
type tail struct{ text []byte }

// Write keeps the last bytes.
func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	if len(t.text) > 4000 {
		t.text = t.text[len(t.text)-4000:]
	}

	return len(p), nil
}

// String is what was said, without the last line's end.
func (t *tail) String() string {
	text := string(t.text)
	for len(text) > 0 && (text[len(text)-1] == '\n' || text[len(text)-1] == ' ') {
		text = text[:len(text)-1]
	}

	return text
}
