// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// lockFolder gives the folder of this user's lock files: /run/thinkube for root, /tmp/thinkube-UID for others. So a lock
// holds between the tasks of one user; what needs locks needs root in any case. The place depends on no variable of the
// environment, which differs between tasks. Tests have a folder of their own.
var lockFolder = func() string {
	if user := os.Geteuid(); user != 0 {
		return "/tmp/thinkube-" + strconv.Itoa(user)
	}

	return "/run/thinkube"
}

// turns lets one task of this process at a time try for a lock of the host: flock would take two of them for different
// processes, but each that waits in the kernel costs a thread. There are as many as modules have locks.
var turns sync.Map // path of a lock file -> chan struct{}

// takeLock waits until no other task on the host holds the lock, in this process or another, or until the context ends.
// The kernel gives a lock up when the process that holds it ends in any way. Where the lock file cannot be had (no /run,
// a folder that others may write to) it fails: what needs a lock must not run without.
func takeLock(ctx context.Context, name, module string) (func(), error) {
	path, err := lockFile(name)
	if err != nil {
		return nil, err
	}

	value, _ := turns.LoadOrStore(path, make(chan struct{}, 1))
	turn := value.(chan struct{})

	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return nil, outwaited(ctx, name, path)
	}

	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		<-turn

		return nil, fmt.Errorf("opening the file of lock %q: %w", name, err)
	}

	release := func() { _ = file.Close(); <-turn }
	locked := startFlock(file)

	select {
	case err = <-locked:
	case <-ctx.Done():
		// Nothing calls off the wait in the kernel. The turn stays taken until it ends, so one goroutine for a lock waits
		// like this at most.
		go func() { <-locked; release() }()

		return nil, outwaited(ctx, name, path)
	}

	if err != nil {
		release()

		return nil, fmt.Errorf("taking lock %q: %w", name, err)
	}

	// For the message of those who wait in vain: not worth a failure.
	_ = file.Truncate(0)
	_, _ = fmt.Fprintf(file, "module %q in process %d", module, os.Getpid())

	return release, nil
}

// startFlock gives what will say that the file is locked. Where nobody else has it, that is there at once.
func startFlock(file *os.File) <-chan error {
	locked := make(chan error, 1)

	err := flock(file, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		go func() { locked <- flock(file, unix.LOCK_EX) }()
	} else {
		locked <- err
	}

	return locked
}

func flock(file *os.File, how int) error {
	for {
		err := unix.Flock(int(file.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// lockFile gives the path of a lock file, in a folder that this user alone can write to: nobody else can put a link
// there, or hold a lock that is not theirs.
func lockFile(name string) (string, error) {
	folder := lockFolder()

	err := os.Mkdir(folder, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("making the folder for locks: %w", err)
	}

	var stat unix.Stat_t

	err = unix.Lstat(folder, &stat)
	if err != nil {
		return "", fmt.Errorf("looking at the folder for locks %q: %w", folder, err)
	}

	if stat.Mode&unix.S_IFMT != unix.S_IFDIR || int(stat.Uid) != os.Geteuid() || stat.Mode&0o022 != 0 {
		return "", Fail(CodeFailed, "remove it; the next task makes it again",
			"folder for locks %q: must be a folder that belongs to user %d and that nobody else can write to", folder, os.Geteuid())
	}

	return filepath.Join(folder, name+".lock"), nil
}

// outwaited says who had the lock when the task's time was over, or when the task was cancelled.
func outwaited(ctx context.Context, name, path string) error {
	code, cause := CodeFailed, context.Cause(ctx)
	if errors.Is(cause, context.DeadlineExceeded) {
		code = CodeTimeout
	}

	holder, _ := os.ReadFile(path)
	if len(holder) == 0 {
		holder = []byte("another task")
	}

	return Fail(code, "wait for that task to end, or give this one more time with its timeout option",
		"waiting for lock %q, held by %s: %w", name, holder, cause)
}
