// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// Channel takes this process's stdin and stdout as the channel. From then on what anything prints goes to stderr, and a
// print to a channel that is gone is an error instead of the end of the process: tasks still run.
func Channel() (in, out *os.File, err error) {
	fd, err := unix.FcntlInt(1, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, nil, err
	}

	// Not signal.Ignore, which programs that modules start would inherit.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	// So that a goroutine that waits for a request holds no thread, and a request finds one at once.
	err = unix.SetNonblock(0, true)
	if err != nil {
		return nil, nil, err
	}

	return os.NewFile(0, "stdin"), os.NewFile(uintptr(fd), "stdout"), unix.Dup3(2, 1, 0)
}
