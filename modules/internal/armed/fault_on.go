// SPDX-License-Identifier: Apache-2.0

//go:build faultinject

package armed

import (
	"os"
	"strings"
	"syscall"
)

// faultFile says where to fail and how: "POINT kill" kills this process, "POINT guard" the guard and this one, "POINT
// stop" stands still until somebody cuts the power. It is used up by that. It exists only in programs built for tests.
const faultFile = "/run/thinkube-fault"

func faultPoint(point string) {
	text, err := os.ReadFile(faultFile)
	if err != nil {
		return
	}

	at, how, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	if at != point {
		return
	}

	_ = os.Rename(faultFile, faultFile+".reached")

	switch how {
	case "guard":
		_ = syscall.Kill(os.Getppid(), syscall.SIGKILL)

		fallthrough
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}

	select {}
}
