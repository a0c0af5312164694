// SPDX-License-Identifier: Apache-2.0

//go:build faultinject

package armed

import (
	"os"
	"strings"
	"syscall"
	"time"
)

// faultFile says where to fail and how, in a line each: "POINT kill" kills this process, "POINT guard" the guard and this
// one, "POINT stop" stands still until somebody cuts the power, "POINT pause" for a while, and "POINT pass" not at all. A line
// is used up by that; what was reached is told in a file beside it. It exists only in programs built for tests.
const faultFile = "/run/thinkube-fault"

func faultPoint(point string) {
	text, err := os.ReadFile(faultFile)
	if err != nil {
		return
	}

	how := ""

	var left []string

	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		at, what, _ := strings.Cut(line, " ")
		if at == point && how == "" {
			how = what
		} else {
			left = append(left, line)
		}
	}

	if how == "" {
		return
	}

	_ = os.WriteFile(faultFile, []byte(strings.Join(left, "\n")), 0o600)
	_ = os.WriteFile(faultFile+"."+point, nil, 0o600)

	switch how {
	case "pass":
		return
	case "pause":
		time.Sleep(3 * time.Second)

		return
	case "guard":
		_ = syscall.Kill(os.Getppid(), syscall.SIGKILL)

		fallthrough
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}

	select {}
}
