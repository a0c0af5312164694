// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// Turn waits until no other process on this machine has the turn of that name, and takes it: two runs of the same tests would
// share a lab. The socket has no file (abstract, unix(7)), so that the turn goes with the process.
func Turn(name string, log io.Writer) (io.Closer, error) {
	for told := false; ; time.Sleep(time.Second) {
		turn, err := net.Listen("unix", "@"+name)
		if !errors.Is(err, syscall.EADDRINUSE) {
			return turn, err
		}

		if !told {
			_, _ = fmt.Fprintf(log, "waiting for another run of %s to end\n", name)

			told = true
		}
	}
}
