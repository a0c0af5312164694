// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// hierarchy is one mounted control group tree: the unified one (v2), or one of v1's.
type hierarchy struct {
	mount      string
	unified    bool
	controller string // for v1: "memory", "cpu,cpuacct", "name=systemd", ...
}

// hierarchies reads them from a mountinfo file (proc_pid_mountinfo(5)).
func parseHierarchies(mountinfo string) []hierarchy {
	var found []hierarchy
	for _, line := range strings.SplitAfter(mountinfo, "\n") {
		before, after, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 3 {
			continue
		}
		switch right[0] {
		case "cgroup2":
			found = append(found, hierarchy{mount: left[4], unified: true})
		case "cgroup":
			found = append(found, hierarchy{mount: left[4], controller: v1Controller(right[2])})
		}
	}
	return found
}

// v1Controller picks what names the hierarchy out of its mount's super options.
func v1Controller(options string) string {
	var names []string
	for _, option := range strings.Split(options, ",") {
		switch option {
		case "rw", "ro", "xattr", "clone_children", "noprefix", "seclabel":
		default:
			if !strings.HasPrefix(option, "release_agent=") {
				names = append(names, option)
			}
		}
	}
	return strings.Join(names, ",")
}

// ownPath is the caller's place in a hierarchy, from a /proc/PID/cgroup file (cgroups(7)).
func (h hierarchy) ownPath(cgroup string) string {
	for _, line := range strings.SplitAfter(cgroup, "\n") {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && ((h.unified && parts[0] == "0") || (!h.unified && parts[1] == h.controller)) {
			return parts[2]
		}
	}
	return "/"
}

// labCgroups are the folders a new lab gets: one in each hierarchy, below the caller's own group, so
// that the lab escapes no limit that its caller is under.
func labCgroups(name string) ([]string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, h := range parseHierarchies(string(mounts)) {
		dirs = append(dirs, filepath.Join(h.mount, h.ownPath(string(own)), "thinkube-lab-"+name))
	}
	return dirs, nil
}

// ensureCgroups makes the host's groups: without a group of its own per host, the hosts' systemds would
// all manage the same tree, and kill each other's processes.
func ensureCgroups(dirs []string, host string) error {
	for _, dir := range dirs {
		for _, each := range []string{dir, filepath.Join(dir, host)} {
			if err := ensureCgroup(each); err != nil {
				return fmt.Errorf("creating control group %q: %w", each, err)
			}
		}
	}
	return nil
}

func ensureCgroup(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// A cpuset of v1 starts empty and takes no process until it has processors and memory nodes.
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || strings.TrimSpace(string(have)) != "" {
			continue
		}
		parent, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if err != nil {
			continue // the unified hierarchy's root has none, and needs none
		}
		if err := os.WriteFile(filepath.Join(dir, file), parent, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func joinCgroups(dirs []string, host string, pid int) error {
	for _, dir := range dirs {
		procs := filepath.Join(dir, host, "cgroup.procs")
		if err := os.WriteFile(procs, []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return fmt.Errorf("joining control group: %w", err)
		}
	}
	return nil
}

// cgroupProcesses are all processes in the groups and the groups below them.
func cgroupProcesses(dirs []string) []int {
	var pids []int
	for _, dir := range dirs {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				pids = append(pids, readPIDs(filepath.Join(path, "cgroup.procs"))...)
			}
			return nil // a group that vanishes while we look has no processes
		})
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

func readPIDs(file string) []int {
	data, _ := os.ReadFile(file)
	var pids []int
	for _, field := range strings.Fields(string(data)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killCgroups kills everything in the groups and removes them.
func killCgroups(ctx context.Context, dirs []string) error {
	thaw(dirs)
	err := poll(ctx, 10*time.Millisecond, func() (bool, error) {
		pids := cgroupProcesses(dirs)
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return false, fmt.Errorf("killing process %d: %w", pid, err)
			}
		}
		return len(pids) == 0, nil
	})
	if err != nil {
		return fmt.Errorf("ending what runs in the lab's control groups: %w", err)
	}
	return removeCgroups(ctx, dirs)
}

// removeCgroups removes empty groups; the kernel may call a group busy for a moment after its last
// process has ended.
func removeCgroups(ctx context.Context, dirs []string) error {
	for _, dir := range dirs {
		err := poll(ctx, 10*time.Millisecond, func() (bool, error) {
			err := removeTree(dir)
			if errors.Is(err, syscall.EBUSY) {
				return false, nil
			}
			return true, err
		})
		if err != nil {
			return fmt.Errorf("removing control group %q: %w", dir, err)
		}
	}
	return nil
}

// removeTree removes a group and those below it, deepest first. Its files go with it.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeTree(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, syscall.ENOENT) {
		return err
	}
	return nil
}

// freeze stops all processes of the groups' v2 member and returns when they have stopped; where there
// is no v2 hierarchy it does nothing.
func freeze(ctx context.Context, dirs []string) error {
	for _, dir := range dirs {
		file := filepath.Join(dir, "cgroup.freeze")
		if _, err := os.Stat(file); err != nil {
			continue
		}
		if err := os.WriteFile(file, []byte("1"), 0o644); err != nil {
			return err
		}
		err := poll(ctx, 5*time.Millisecond, func() (bool, error) {
			events, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
			return strings.Contains(string(events), "frozen 1"), err
		})
		if err != nil {
			return fmt.Errorf("freezing %q: %w", dir, err)
		}
	}
	return nil
}

func thaw(dirs []string) {
	for _, dir := range dirs {
		file := filepath.Join(dir, "cgroup.freeze")
		if _, err := os.Stat(file); err == nil {
			_ = os.WriteFile(file, []byte("0"), 0o644)
		}
	}
}
