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
	"reflect"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/dnswire"
	"github.com/thinkube/infra/modules/internal/ownfile"
	"github.com/thinkube/infra/modules/internal/plan"
)

// Apply does one step of the plan.
func (h *host) Apply(ctx context.Context, step plan.Step) error {
	h.changed = true

	switch do := step.Do.(type) {
	case Put:
		return h.put(ctx, do)
	case Back:
		return h.back(ctx, do)
	case Restart:
		return restart(ctx, do.Manager)
	}

	return ansible.Fail(ansible.CodeInternal, "", "step %q has no effect", step.Line)
}

// put writes the file. A host whose resolver does not do what is wanted then gets its former file back: it may have no other way
// to resolve names.
func (h *host) put(ctx context.Context, do Put) error {
	if len(do.Unanswered) > 0 {
		return ansible.Fail(dnswire.CodeUnreachable, "mend the servers, or the way to them; nothing was changed on this host",
			"the host would ask servers that do not answer: %s", strings.Join(do.Unanswered, "; "))
	}

	_, err := os.Stat(h.root + filepath.Dir(do.Path))
	do.MadeFolder = errors.Is(err, fs.ErrNotExist)

	before := do.Change
	before.After = nil

	// Looked at before it is recorded, too: what is recorded is given back some day.
	err = h.unchanged(do.Change)
	if err != nil {
		return err
	}

	err = h.store.Keep(h.args.Name, before)
	if err == nil {
		err = h.write(do.Change)
	}

	if err == nil {
		err = restart(ctx, do.Manager)
	}

	if err == nil && h.args.Verify {
		err = h.resolves(ctx)
	}

	switch {
	case err == nil:
		return nil
	case errors.Is(err, ansible.ErrChanged):
		return errors.Join(err, h.forget(do))
	}

	return errors.Join(err, h.undo(context.WithoutCancel(ctx), do))
}

// forget drops the record of a change that was not made.
func (h *host) forget(do Put) error {
	if !do.First {
		return nil
	}

	return h.store.Forget(h.args.Name)
}

// resolves fails unless the host resolves the wanted domains, now or within its time.
func (h *host) resolves(ctx context.Context) error {
	wrong, _ := h.settle(ctx)
	if len(wrong) == 0 {
		return nil
	}

	return ansible.Fail(CodeNotResolving, "the former setting is in force again", "with the new setting the host does not resolve %s", strings.Join(wrong, "; "))
}

func (h *host) undo(ctx context.Context, do Put) error {
	err := ownfile.Writer{Root: h.root}.Undo([]ownfile.Change{do.Change})
	if err == nil {
		err = restart(ctx, do.Manager)
	}

	if err == nil {
		err = h.forget(do)
	}

	return err
}

// back gives the host the file that it had before.
func (h *host) back(ctx context.Context, do Back) error {
	err := h.write(do.Change)
	if err != nil {
		return err
	}

	if do.MadeFolder {
		_ = os.Remove(h.root + filepath.Dir(do.Path)) // left by a run that was cut before the file; refused when others are in it
	}

	err = restart(ctx, do.Manager)
	if err != nil {
		return err
	}

	return h.store.Forget(h.args.Name)
}

func (h *host) write(change ownfile.Change) error {
	err := h.unchanged(change)
	if err != nil {
		return err
	}

	return ownfile.Writer{Root: h.root}.Apply([]ownfile.Change{change})
}

// unchanged fails when the file is not what the plan was made from.
func (h *host) unchanged(change ownfile.Change) error {
	now, err := ownfile.Read(h.root, change.Path)
	if err != nil {
		return fmt.Errorf("reading what the resolver was told: %w", err)
	}

	if !reflect.DeepEqual(now, change.Before) {
		return fmt.Errorf("%q was %w", change.Path, ansible.ErrChanged)
	}

	return nil
}

// reloads is how each manager reads its files. systemd-resolved has no reload before systemd 256; NetworkManager would give up
// its connections on a restart. Programs read resolv.conf by themselves.
var reloads = map[string][]string{
	Resolved:       {"restart", "systemd-resolved.service"},
	NetworkManager: {"reload", "NetworkManager.service"},
}

func restart(ctx context.Context, manager string) error {
	argv := reloads[manager]
	if argv == nil {
		return nil
	}

	out, err := exec.CommandContext(ctx, "systemctl", argv...).CombinedOutput()
	if err != nil {
		return ansible.Fail(CodeService, "journalctl -u "+argv[1]+" says why", "systemctl %s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}

	return nil
}
