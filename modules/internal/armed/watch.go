// SPDX-License-Identifier: Apache-2.0

package armed

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// watcher waits for files that take their place in a folder.
type watcher struct{ fd int }

func watchFolder(path string) (watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return watcher{}, err
	}

	_, err = unix.InotifyAddWatch(fd, path, unix.IN_MOVED_TO|unix.IN_DELETE|unix.IN_DELETE_SELF)
	if err != nil {
		_ = unix.Close(fd)
	}

	return watcher{fd}, err
}

func (w watcher) close() { _ = unix.Close(w.fd) }

// wait is back when something happened, the time is over, or the context has ended, which is looked at twice a second.
func (w watcher) wait(ctx context.Context, limit time.Duration) {
	end := time.Now().Add(limit)

	for ctx.Err() == nil {
		left := time.Until(end)
		if left <= 0 {
			return
		}

		waiting := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}

		n, _ := unix.Poll(waiting, int(min(left, 500*time.Millisecond).Milliseconds())+1)
		if n > 0 {
			_, _ = unix.Read(w.fd, make([]byte, 4096))

			return
		}
	}
}
