// SPDX-License-Identifier: Apache-2.0

package gpuvfio

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/initramfs"
	"github.com/thinkube/infra/modules/internal/ownfile"
	"github.com/thinkube/infra/modules/internal/pci"
	"github.com/thinkube/infra/modules/internal/plan"
	"github.com/thinkube/infra/modules/internal/vfio"
)

// Apply does one step of the plan.
func (h *host) Apply(ctx context.Context, step plan.Step) error {
	switch do := step.Do.(type) {
	case prepare:
		return h.prepare(ctx, do)
	case sweep:
		return h.sweep(do)
	case bind:
		return h.bind(ctx, do)
	case release:
		return h.release(ctx, do)
	case forget:
		return h.forget(do)
	}

	return ansible.Fail(ansible.CodeInternal, "", "unknown step")
}

// keep writes down what was there before the first change to it: all of it or nothing.
func (h *host) keep(records []Record, folders []string) error {
	var err error

	for _, record := range records {
		if err == nil {
			err = h.store().Keep(record.Address, record)
		}
	}

	for _, folder := range folders {
		if err == nil {
			err = h.store().Keep(folderRecord+folder, true)
		}
	}

	if err != nil {
		return joinFailure(err, h.unkeep(records, folders))
	}

	return nil
}

// unkeep takes that back.
func (h *host) unkeep(records []Record, folders []string) error {
	return h.forget(forget{Addresses: addressesOf(records), Folders: folders})
}

// forget goes on after an error: each record that is gone is worth having.
func (h *host) forget(do forget) error {
	var errs []error

	for _, address := range do.Addresses {
		errs = append(errs, h.store().Forget(address))
	}

	for _, folder := range do.Folders {
		errs = append(errs, h.store().Forget(folderRecord+folder))
	}

	return errors.Join(errs...)
}

func (h *host) sweep(do sweep) error {
	for _, path := range do.Paths {
		var err error
		if h.fault != nil {
			err = h.fault(path)
		}

		if err == nil {
			err = os.Remove(h.root + path)
		}

		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}

	return nil
}

// prepare writes the files and makes the images again. When that fails, both are as before, and so are the records.
func (h *host) prepare(ctx context.Context, do prepare) error {
	err := h.keep(do.Records, do.Folders)
	if err != nil {
		return err
	}

	writer := ownfile.Writer{Root: h.root, Fault: h.fault}

	err = writer.Apply(do.Changes)
	if err == nil {
		err = h.remake(ctx, do)
		if err != nil {
			err = joinFailure(err, writer.Undo(do.Changes))
		}
	}

	if err != nil {
		return joinFailure(err, h.unkeep(do.Records, do.Folders))
	}

	return nil
}

// joinFailure adds what went wrong with undoing. The first failure's code and hint stay.
func joinFailure(err, undo error) error {
	if undo == nil {
		return err
	}

	return fmt.Errorf("%w; and then: %w", err, undo)
}

func addressesOf(records []Record) []string {
	var addresses []string
	for _, record := range records {
		addresses = append(addresses, record.Address)
	}

	return addresses
}

func (h *host) remake(ctx context.Context, do prepare) error {
	if len(do.Images) == 0 {
		return nil
	}

	err := h.tree().Remake(ctx, do.Images, func(ctx context.Context, image *initramfs.Image) error { return h.checkImage(ctx, image, do) })
	if err != nil {
		return ansible.Fail(CodeInitramfs, "see whether it works without this module: update-initramfs -u, or dracut --force", "%w", err)
	}

	return nil
}

// checkImage looks whether an image has become what it was made for: some generators succeed without doing anything.
func (h *host) checkImage(ctx context.Context, image *initramfs.Image, do prepare) error {
	err := h.look(ctx, image, do.Modules)
	if err != nil {
		return err
	}

	if rule := image.Rules[filepath.Base(rulePath)]; rule != do.Rule && do.Rule != "" || do.Rule == "" && do.removes() && rule != "" {
		return fmt.Errorf("it was made, and its rule in it is not the one in %s", rulePath)
	}

	for _, module := range do.Modules {
		if do.Rule != "" && lacks(*image, module) {
			return fmt.Errorf("it was made without module %s", module)
		}
	}

	return nil
}

// removes tells whether the rule goes.
func (p prepare) removes() bool {
	return slices.ContainsFunc(p.Changes, func(change ownfile.Change) bool { return change.Path == rulePath && change.After == nil })
}

func (h *host) bind(ctx context.Context, do bind) error {
	for _, move := range do.Moves {
		err := h.bus.Load(ctx, move.Driver, move.Driver)
		if err != nil {
			return ansible.Fail(CodeNoDriver, bindHint(do, vfio.NoDriverHint), "%w", err)
		}
	}

	err := h.lookAgain(ctx, do.Moves, h.neededByHost)
	if err != nil {
		return err
	}

	err = h.keep(do.Records, nil)
	if err != nil {
		return err
	}

	err = h.bus.Apply(ctx, do.Moves, func() error { return h.checkGroups(do.Moves) })
	if err != nil {
		return joinFailure(ansible.Fail(CodeBind, bindHint(do, "see the kernel log (dmesg)"), "%w", err), h.unkeep(do.Records, nil))
	}

	return nil
}

// lookAgain has the task plan again when somebody has come to need what is to move: to make the initramfs takes minutes, and
// the kernel would take the functions from under them. The plan then says who it is.
func (h *host) lookAgain(ctx context.Context, moves []vfio.Move, needed func(pci.Device) bool) error {
	system, err := pci.Reader{Root: h.bus.Root}.Read()
	if err != nil {
		return err
	}

	vfio.ReadPersistence(ctx, &system)

	for _, move := range moves {
		device := system.Device(move.Address)
		if device == nil || device.Driver != "" && device.Driver != move.Driver && needed(*device) {
			return fmt.Errorf("PCI device %s was %w", move.Address, ansible.ErrChanged)
		}
	}

	return nil
}

// neededByHost tells what the plan refuses to take from the host.
func (h *host) neededByHost(device pci.Device) bool {
	shown := vfio.ShowsHost(device) != "" && !h.args.AllowBootDisplay

	return shown || inUse(device) || len(vfio.HeldOf(device)) > 0
}

func inUse(device pci.Device) bool { return len(vfio.UsersOf(device)) > 0 }

// bindHint also says what stays of a card that cannot be had now: a restart may be just what it needs.
func bindHint(do bind, hint string) string {
	if do.Prepared {
		hint += "; the card stays prepared for the next start of the host, which may do what could not be done now: state: absent takes that back"
	}

	return hint
}

// checkGroups looks whether a program can use what was reserved: the groups have their nodes, and nothing in them is left
// with the host.
func (h *host) checkGroups(moves []vfio.Move) error {
	system, err := pci.Reader{Root: h.bus.Root, WithoutUsers: true}.Read()
	if err != nil {
		return err
	}

	for _, move := range moves {
		group := system.Device(move.Address).Group

		if !slices.Contains(system.VFIOGroups, group) {
			return fmt.Errorf("IOMMU group %s of %s has no node /dev/vfio/%s", group, move.Address, group)
		}

		if !vfio.Viable(&system, group) {
			return fmt.Errorf("IOMMU group %s of %s cannot be used: some of its devices are still with the host", group, move.Address)
		}
	}

	return nil
}

func (h *host) release(ctx context.Context, do release) error {
	for i, move := range do.Moves {
		if do.Modules[i] == "" {
			continue
		}

		// It may not have been needed since the host started. That it is gone is no reason to keep the card.
		err := h.bus.Load(ctx, move.Driver, do.Modules[i])
		if err != nil {
			h.task.Warn("%s had driver %q before: %v", move.Address, move.Driver, err)
		}
	}

	err := h.lookAgain(ctx, do.Moves, inUse)
	if err != nil {
		return err
	}

	err = h.bus.Apply(ctx, do.Moves, nil)
	if err != nil {
		return ansible.Fail(CodeBind, releaseHint, "%w", err)
	}

	return nil
}

const releaseHint = "see the kernel log (dmesg); the card is still reserved, and nothing reserves it at the next start of the host any more: " +
	"that gives it back, if another run of this task does not"
