// SPDX-License-Identifier: Apache-2.0

package kernelcmdline

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/bootloader"
	"github.com/thinkube/infra/modules/internal/ownfile"
	"github.com/thinkube/infra/modules/internal/plan"
)

// Apply does one step of the plan.
func (h *host) Apply(ctx context.Context, step plan.Step) error {
	switch do := step.Do.(type) {
	case change:
		return h.change(ctx, do)
	case forget:
		return h.forget(do)
	}

	return ansible.Fail(ansible.CodeInternal, "", "unknown step")
}

// change writes, has the entries made anew and looks at them. When one of it fails, file and entries are as before.
func (h *host) change(ctx context.Context, do change) error {
	err := h.keep(do)
	if err != nil {
		return err
	}

	writer := ownfile.Writer{Root: h.args.root()}

	err = writer.Apply(do.Changes)
	if err != nil {
		return errors.Join(err, h.unkeep(do))
	}

	made, err := h.refresh(ctx, do)
	if err == nil {
		return nil
	}

	undo := writer.Undo(do.Changes)
	if undo == nil && (made || do.Loader != bootloader.GRUB) {
		// The entries may have been made anew in part. (GRUB's are one file, which is as it was.)
		undo = h.reader().Refresh(context.WithoutCancel(ctx), do.Loader, do.Remove, do.Add)
	}

	if undo != nil {
		err = fmt.Errorf("%w; and putting it back: %w", err, undo)
	}

	return ansible.Fail(CodeRefresh, "see whether the boot loader's tool works without this module's file", "%w", errors.Join(err, h.unkeep(do)))
}

// refresh also looks whether the entries have become what they were to be. It tells whether the tool made some.
func (h *host) refresh(ctx context.Context, do change) (made bool, err error) {
	err = h.reader().Refresh(ctx, do.Loader, do.Add, do.Remove)
	if err != nil {
		return false, err
	}

	entries, err := h.reader().Entries(ctx, do.Loader)
	if err != nil {
		return true, err
	}

	if left := lacks(entries, do.Present, do.Absent); len(left) > 0 {
		return true, fmt.Errorf("%s has made its entries, and still: %s", do.Loader, strings.Join(left, ", "))
	}

	return true, nil
}

// keep records what is about to change.
func (h *host) keep(do change) error {
	if do.Original != nil {
		err := h.store().Keep(h.args.Name, do.Original)
		if err != nil {
			return err
		}
	}

	for sign, parameters := range map[string][]string{signAdded: do.Added, signRemoved: do.Removed} {
		for _, parameter := range parameters {
			err := h.store().Keep(h.args.Name+sign+parameter, true)
			if err != nil {
				return err
			}
		}
	}

	return nil
}

// unkeep takes that back.
func (h *host) unkeep(do change) error {
	return h.forget(forget{All: do.Original != nil, Added: do.Added, Removed: do.Removed})
}

func (h *host) forget(do forget) error {
	if do.All {
		var known State

		err := h.readRecords(&known)
		if err != nil {
			return err
		}

		do.Added, do.Removed = known.Added, known.Removed
	}

	for sign, parameters := range map[string][]string{signAdded: do.Added, signRemoved: do.Removed} {
		for _, parameter := range parameters {
			err := h.store().Forget(h.args.Name + sign + parameter)
			if err != nil {
				return err
			}
		}
	}

	if !do.All {
		return nil
	}

	return h.store().Forget(h.args.Name)
}
