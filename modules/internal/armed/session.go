// SPDX-License-Identifier: Apache-2.0

package armed

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Session is how the process was reached.
type Session struct {
	SSH     bool
	Started int64  // of the connection, on the clock of Now
	From    string // the controller's address; empty when it is not known
}

// userHz is the unit of times in /proc/PID/stat: 100 on every architecture that Linux has today (proc(5)).
const userHz = 100

// FindSession looks among the process's parents for the sshd of its connection. That is the nearest one: above it may be
// another one for the user's privileges, and the one that listens.
func FindSession() Session {
	var session Session

	for pid := os.Getpid(); pid > 1; {
		name, parent, started, err := readStat(pid)
		if err != nil {
			break
		}

		if session.From == "" {
			session.From = clientOf(pid)
		}

		if strings.HasPrefix(name, "sshd") {
			session.SSH, session.Started = true, started

			break
		}

		pid = parent
	}

	return session
}

// clientOf reads SSH_CONNECTION from a process's own environment: sudo takes it away from ours.
func clientOf(pid int) string {
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return ""
	}

	for _, one := range strings.Split(string(environ), "\x00") {
		if value, ok := strings.CutPrefix(one, "SSH_CONNECTION="); ok {
			client, _, _ := strings.Cut(value, " ")

			return client
		}
	}

	return ""
}

// readStat reads /proc/PID/stat, whose second field may hold anything, also brackets.
func readStat(pid int) (name string, parent int, started int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0, 0, err
	}

	open, end := strings.IndexByte(string(text), '('), strings.LastIndexByte(string(text), ')')
	fields := strings.Fields(string(text[end+1:]))

	if open < 0 || end < open || len(fields) < 20 {
		return "", 0, 0, fmt.Errorf("unexpected form of /proc/%d/stat", pid)
	}

	parent, err = strconv.Atoi(fields[1])
	if err != nil {
		return "", 0, 0, err
	}

	ticks, err := strconv.ParseInt(fields[19], 10, 64)

	return string(text[open+1 : end]), parent, ticks * int64(time.Second) / userHz, err
}
