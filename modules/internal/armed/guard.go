// SPDX-License-Identifier: Apache-2.0

package armed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// unfinished are the phases that undoing starts from.
var unfinished = []Phase{Armed, Applying, Applied, Restoring}

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
	if err != nil {
		// Nothing has changed yet, and nothing will.
		_, turned := s.turn(id, []Phase{Armed}, Staged, nil)
		disableUnit()

		return errors.Join(err, turned)
	}

	return nil
}

func (s Store) startGuard(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()

	argv := []string{s.Program(), "service", "net_bridge", "guard"}

	if bySystemd() {
		run := exec.CommandContext(ctx, "systemd-run", append([]string{
			"--quiet", "--collect", "--unit=" + guardUnit, "--description=Undo a change of the network unless it is confirmed",
			"--property=Restart=on-failure", "--property=RestartSec=50ms", "--property=StartLimitIntervalSec=0",
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

	for !s.Guarded() {
		select {
		case <-ctx.Done():
			return errors.New("the guard was started and does not run")
		case <-time.After(5 * time.Millisecond):
		}
	}

	return nil
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

func (s Store) guardLock() (*os.File, error) {
	return os.OpenFile(filepath.Join(s.Dir, "guard.lock"), os.O_CREATE|os.O_RDWR, 0o600)
}

// Guarded tells whether a guard runs: it holds a lock that its death gives back.
func (s Store) Guarded() bool {
	if _, err := os.Stat(filepath.Join(s.Dir, "guard.lock")); err != nil {
		return false
	}

	lock, err := s.guardLock()
	if err != nil {
		return false
	}

	defer func() { _ = lock.Close() }()

	return errors.Is(flock(lock, unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// Guard is the process that lives from before the change until it is confirmed or undone.
func (s Store) Guard(ctx context.Context) error {
	lock, err := s.guardLock()
	if err != nil {
		return err
	}

	defer func() { _ = lock.Close() }()

	err = flock(lock, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil // there is one
	}

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
		return s.finish(change.ID)
	}

	return nil
}

// guardChange has the change made and sees to its end.
func (s Store) guardChange(ctx context.Context, change *Change) error {
	select {
	case <-ctx.Done():
		return nil
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
		return nil // the host goes down; the unit for its next start takes over
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

			return s.finish(change.ID)
		}

		return s.awaitConfirm(ctx, change)
	case Restoring:
		return s.Restore(ctx, change.ID, change.Reason)
	case Confirmed:
		return s.finish(change.ID)
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
			return nil // the host goes down; the unit for its next start takes over
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
