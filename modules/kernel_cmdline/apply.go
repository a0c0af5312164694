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

	err = h.writer().Apply(do.Changes)
	if err != nil {
		return errors.Join(err, h.unkeep(do))
	}

	made, err := h.refresh(ctx, do)
	if err == nil {
		return nil
	}

	hint := "see whether the boot loader's tool works without this module's file"

	undo := h.undo(context.WithoutCancel(ctx), do, made)
	if undo != nil {
		err = fmt.Errorf("%w; and putting it back: %w", err, undo)
	}

	if undo != nil && !h.asBefore(context.WithoutCancel(ctx), do) {
		return ansible.Fail(CodeRefresh, hint+"; then state: absent takes back what is left of this", "%w", err) // by the records
	}

	return ansible.Fail(CodeRefresh, hint, "%w", errors.Join(err, h.unkeep(do)))
}

func (h *host) writer() ownfile.Writer { return ownfile.Writer{Root: h.args.root(), Fault: h.fault} }

// undo puts files and entries back. The latter may have been made anew in part. (GRUB's are one file, which is as it was
// unless it was made.)
func (h *host) undo(ctx context.Context, do change, made bool) error {
	err := h.writer().Undo(do.Changes)
	if err != nil || do.Loader == bootloader.GRUB && !made {
		return err
	}

	return h.reader().Refresh(ctx, do.Loader, do.Remove, without(do.Add, do.Own))
}

// asBefore looks whether nothing is left of a change, also where putting it back has failed: so it is with a tool that fails
// whenever it is called.
func (h *host) asBefore(ctx context.Context, do change) bool {
	for _, each := range do.Changes {
		file, err := ownfile.Read(h.args.root(), each.Path)
		if err != nil || !same(file, each.Before) {
			return false
		}
	}

	entries, err := h.reader().Entries(ctx, do.Loader)
	if err != nil || do.Loader == bootloader.GRUB {
		return false // what its entries had is not known here
	}

	return len(lacks(entries, do.Remove, without(do.Add, do.Own))) == 0
}

// refresh also looks whether the entries have become what they were to be. It tells whether the tool made some.
func (h *host) refresh(ctx context.Context, do change) (made bool, err error) {
	err = h.reader().Refresh(ctx, do.Loader, do.Add, do.Remove)
	if err != nil {
		return errors.Is(err, bootloader.ErrPartly), err
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

// keep records what is about to change: all of it or nothing.
func (h *host) keep(do change) error {
	var err error
	if do.Original != nil {
		err = h.store().Keep(h.args.Name, do.Original)
	}

	for _, object := range h.objects(do.Added, do.Removed) {
		if err == nil {
			err = h.store().Keep(object, true)
		}
	}

	if err != nil {
		return errors.Join(err, h.unkeep(do))
	}

	return nil
}

// objects are the names of the records of parameters.
func (h *host) objects(added, removed []string) []string {
	var objects []string
	for _, parameter := range added {
		objects = append(objects, h.args.Name+signAdded+parameter)
	}

	for _, parameter := range removed {
		objects = append(objects, h.args.Name+signRemoved+parameter)
	}

	return objects
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

	for _, object := range h.objects(do.Added, do.Removed) {
		err := h.store().Forget(object)
		if err != nil {
			return err
		}
	}

	if !do.All {
		return nil
	}

	return h.store().Forget(h.args.Name)
}
