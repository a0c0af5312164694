// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process names one process for good: numbers are reused, but not together with the start time within
// one boot of the machine.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot: field 22 of /proc/PID/stat
	Boot  string `json:"boot"`
}

// findProcess returns the process that has this number now.
func findProcess(pid int) (process, error) {
	fields, err := statFields(pid)
	if err != nil {
		return process{}, err
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return process{}, fmt.Errorf("start time of process %d: %w", pid, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return process{}, err
	}
	return process{PID: pid, Start: start, Boot: strings.TrimSpace(string(boot))}, nil
}

// statFields are the fields of /proc/PID/stat from the third (state) on: the second is the program's
// name in brackets and may hold anything, brackets and spaces too.
func statFields(pid int) ([]string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	end := bytes.LastIndexByte(data, ')')
	fields := strings.Fields(string(data[end+1:]))
	if end < 0 || len(fields) < 20 {
		return nil, fmt.Errorf("/proc/%d/stat: unexpected form", pid)
	}
	return fields, nil
}

func (p process) alive() bool {
	if p.PID <= 0 {
		return false
	}
	now, err := findProcess(p.PID)
	if err != nil || now != p {
		return false
	}
	fields, err := statFields(p.PID)
	return err == nil && fields[0] != "Z" && fields[0] != "X"
}

// signal goes to this very process or to nobody.
func (p process) signal(sig syscall.Signal) error {
	// The number could be reused between the check and the kill only by going once around all numbers.
	if !p.alive() {
		return nil
	}
	if err := syscall.Kill(p.PID, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signalling process %d: %w", p.PID, err)
	}
	return nil
}

// waitGone polls until the process has ended.
func (p process) waitGone(ctx context.Context) error {
	return poll(ctx, 20*time.Millisecond, func() (bool, error) { return !p.alive(), nil })
}

// poll calls done until it says so, fails, or the context ends.
func poll(ctx context.Context, every time.Duration, done func() (bool, error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// children of a process, by number.
func children(pid int) []int {
	var found []int
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		data, _ := os.ReadFile(task)
		for _, field := range strings.Fields(string(data)) {
			if child, err := strconv.Atoi(field); err == nil {
				found = append(found, child)
			}
		}
	}
	slices.Sort(found)
	return found
}

// descendants of a process, nearest first.
func descendants(pid int) []int {
	var all []int
	for queue := children(pid); len(queue) > 0; queue = queue[1:] {
		all = append(all, queue[0])
		queue = append(queue, children(queue[0])...)
	}
	return all
}

// isInit says whether a process is number 1 of a process namespace directly below ours.
func isInit(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	own, _ := os.ReadFile("/proc/self/status")
	numbers := statusField(data, "NSpid")
	return len(numbers) == len(statusField(own, "NSpid"))+1 && numbers[len(numbers)-1] == "1"
}

func statusField(status []byte, name string) []string {
	for _, line := range strings.SplitAfter(string(status), "\n") {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.Fields(rest)
		}
	}
	return nil
}
