// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// errCallerGone ends a peer call whose answer nobody waits for any more.
var errCallerGone = errors.New("the caller is gone")

// whileRead gives a context that ends when nobody can read stdout any more: the controller was killed, or the connection
// to it broke. A program that only waits would not notice by itself.
func whileRead(ctx context.Context, stdout io.Writer) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := func() { cancel(context.Canceled) }

	file, ok := stdout.(*os.File)
	if !ok {
		return ctx, stop
	}

	go func() {
		for ctx.Err() == nil {
			// No events asked for: an error (a pipe) or a hang-up (a socket, a terminal) is reported always.
			watched := []unix.PollFd{{Fd: int32(file.Fd())}}

			found, err := unix.Poll(watched, 1000)
			if found > 0 && watched[0].Revents != 0 || err != nil && !errors.Is(err, unix.EINTR) {
				cancel(errCallerGone)
			}
		}
	}()

	return ctx, stop
}
