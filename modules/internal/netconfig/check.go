// SPDX-License-Identifier: Apache-2.0

package netconfig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Check has the manager's own program judge the files that are to be written, in a folder beside the real ones.
func Check(ctx context.Context, manager string, changes []Change) error {
	if manager != Netplan {
		// networkd, NetworkManager and ifupdown have no program that judges a file; what they refuse is found when the change
		// is made, and undone.
		return nil
	}

	root, err := os.MkdirTemp("", "thinkube-netplan-")
	if err != nil {
		return err
	}

	defer func() { _ = os.RemoveAll(root) }()

	var all Config

	err = all.readAll("", "*.yaml", netplanFolders...)
	if err != nil {
		return err
	}

	for _, change := range changes {
		if strings.HasPrefix(change.Path, netplanEtc+"/") {
			all.put(change)
		}
	}

	for _, file := range all.Files {
		path := filepath.Join(root, file.Path)

		err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(file.Content), 0o600))
		if err != nil {
			return err
		}
	}

	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()

	out, err := exec.CommandContext(ctx, "netplan", "generate", "--root-dir", root).CombinedOutput()
	if err != nil {
		return fmt.Errorf("netplan generate: %w: %s", err, strings.TrimSpace(strings.ReplaceAll(string(out), root, "")))
	}

	return nil
}

// put gives a file the content it has after a change.
func (c *Config) put(change Change) {
	var kept []File

	for _, file := range c.Files {
		if file.Path != change.Path {
			kept = append(kept, file)
		}
	}

	if change.After != nil {
		kept = append(kept, *change.After)
	}

	c.Files = kept
}
