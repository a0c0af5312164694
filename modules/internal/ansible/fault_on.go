// SPDX-License-Identifier: Apache-2.0

//go:build faultinject

package ansible

import (
	"os"
	"strconv"
	"syscall"
)

// faultPoint kills this process, as a power cut would, once the number of done steps is the one in the environment.
// It exists only in programs built for the tests.
func faultPoint(done int) {
	if os.Getenv("THINKUBE_TEST_KILL_AFTER_STEP") == strconv.Itoa(done) {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)

		select {} // the signal ends this process; nothing more may happen
	}
}
