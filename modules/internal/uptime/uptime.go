// SPDX-License-Identifier: Apache-2.0

// Package uptime tells which files are older than the start of the kernel that runs: what they say has been in force since
// then, so that another start brings nothing new.
package uptime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// StatFile is the file that says since when the kernel runs (proc(5), btime).
const StatFile = "/proc/stat"

// StartedSince tells whether all files are older than the kernel's start, which stat says. No files are none that are older,
// nor is one that is gone by now.
func StartedSince(stat string, paths []string) (bool, error) {
	text, err := os.ReadFile(stat)
	if err != nil {
		return false, err
	}

	_, after, _ := strings.Cut(string(text), "\nbtime ")
	line, _, _ := strings.Cut(after, "\n")

	since, err := strconv.ParseInt(line, 10, 64)
	if err != nil {
		return false, fmt.Errorf("%s does not say when the kernel was started: %w", stat, err)
	}

	for _, path := range paths {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}

		if err != nil {
			return false, err
		}

		if info.ModTime().Unix() >= since {
			return false, nil
		}
	}

	return len(paths) > 0, nil
}
