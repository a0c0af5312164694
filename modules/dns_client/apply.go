// SPDX-License-Identifier: Apache-2.0

package dnsclient

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/plan"
)

// Apply does one step of the plan.
func (h *host) Apply(ctx context.Context, step plan.Step) error {
	h.changed = true

	switch do := step.Do.(type) {
	case Put:
		return h.put(ctx, do)
	case Restart:
		return restart(ctx, do.Manager)
	}

	return ansible.Fail(ansible.CodeInternal, "", "step %q has no effect", step.Line)
}

func (h *host) put(ctx context.Context, do Put) error {
	folder := filepath.Dir(do.Path)

	if !do.Forget {
		_, err := os.Stat(folder)
		before := Before{Path: do.Path, Content: do.Before, Folder: errors.Is(err, fs.ErrNotExist)}

		err = h.store.Keep(h.args.Name, before)
		if err != nil {
			return err
		}
	}

	err := replace(do.Path, do.Content)
	if err != nil {
		return fmt.Errorf("writing what the resolver is told: %w", err)
	}

	if do.Folder {
		_ = os.Remove(folder) // stays when somebody else has put something there
	}

	err = restart(ctx, do.Manager)
	if err != nil || !do.Forget {
		return err
	}

	return h.store.Forget(h.args.Name)
}

// replace writes a file in one step, or removes it.
func replace(path string, content *string) error {
	if content == nil {
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}

		return err
	}

	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err != nil {
		return err
	}

	fresh, err := os.CreateTemp(filepath.Dir(path), ".thinkube-")
	if err != nil {
		return err
	}

	defer func() { _ = os.Remove(fresh.Name()) }()

	_, err = fresh.WriteString(*content)

	err = errors.Join(err, fresh.Chmod(0o644), fresh.Sync(), fresh.Close())
	if err != nil {
		return err
	}

	return os.Rename(fresh.Name(), path)
}

// restart has systemd-resolved read its files; it has no reload before systemd 256. Programs read resolv.conf by themselves.
func restart(ctx context.Context, manager string) error {
	if manager != Resolved {
		return nil
	}

	out, err := exec.CommandContext(ctx, "systemctl", "restart", "systemd-resolved.service").CombinedOutput()
	if err != nil {
		return ansible.Fail(CodeService, "journalctl -u systemd-resolved says why", "restarting systemd-resolved: %w: %s", err, strings.TrimSpace(string(out)))
	}

	return nil
}
