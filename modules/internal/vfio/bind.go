// SPDX-License-Identifier: Apache-2.0

package vfio

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/thinkube/infra/modules/internal/pci"
)

// Move is what one function is to be: with which driver, and with which driver_override.
type Move struct {
	Address  string `json:"address"`
	Driver   string `json:"driver"`   // empty: none
	Override string `json:"override"` // empty: any driver that fits
	// Lenient accepts another driver of the host, or none, as when that of former times is not there any more.
	Lenient bool `json:"lenient,omitempty"`
}

// AnyDriver is the driver of a lenient move when that of former times is not known.
const AnyDriver = "*"

// done tells whether a function with a driver is where it is to be.
func (m Move) done(driver string) bool {
	return driver == m.Driver || m.Lenient && m.Driver != "" && driver != "" && !pci.IsVFIO(driver)
}

// Limits for what the kernel does with one function.
const (
	// bindLimit is for a driver to take a function. 240 ms were seen for three of them on a slow machine.
	bindLimit = 3 * time.Second
	// unbindLimit is for a driver to let go. Some wait for their last user, and cannot be interrupted.
	unbindLimit = 20 * time.Second
	poll        = 20 * time.Millisecond
)

// errStuck marks a function whose driver does not let go. The kernel holds the function's lock until it does, so whoever
// touches it waits as well.
var errStuck = errors.New("its driver does not let go of it; somebody must be using it")

// Bus moves functions between drivers, by the kernel's files.
type Bus struct {
	Root string // empty is the host's own
	// Write writes text to a file of sysfs. Nil is the real one; tests have a kernel of their own behind it.
	Write func(path, text string) error
	// BindLimit is how long a driver may take; 0 is the default.
	BindLimit time.Duration
}

// Apply moves all functions in their order, or none: when one fails, or check (which may be nil) is not content in the
// end, they get back what they had, the last first.
func (b Bus) Apply(ctx context.Context, moves []Move, check func() error) error {
	var before []Move

	for _, move := range moves {
		had, err := b.read(move.Address)
		if err != nil {
			return errors.Join(err, b.restore(before))
		}

		before = append(before, had)

		err = b.move(ctx, move)
		if err == nil {
			continue
		}

		if errors.Is(err, errStuck) {
			before = before[:len(before)-1]
			err = fmt.Errorf("%w; it stays set to driver %q, and has none once it is let go (write its address to /sys/bus/pci/drivers_probe then)", err, move.Override)
		}

		return errors.Join(fmt.Errorf("PCI device %s: %w", move.Address, err), b.restore(before))
	}

	if check != nil {
		err := check()
		if err != nil {
			return errors.Join(err, b.restore(before))
		}
	}

	return nil
}

// restore is done to the end whatever becomes of the task.
func (b Bus) restore(before []Move) error {
	var errs []error

	for _, move := range slices.Backward(before) {
		err := b.move(context.Background(), move)
		if err != nil {
			errs = append(errs, fmt.Errorf("PCI device %s cannot be given back to driver %q: %w", move.Address, move.Driver, err))
		}
	}

	return errors.Join(errs...)
}

func (b Bus) folder(address string) string { return b.Root + "/sys/bus/pci/devices/" + address }

// read gives what a function has now.
func (b Bus) read(address string) (Move, error) {
	driver, err := b.driver(address)
	if err != nil {
		return Move{}, err
	}

	override, err := os.ReadFile(b.folder(address) + "/driver_override")
	if err != nil {
		return Move{}, err
	}

	text := string(override)
	if n := len(text); n > 0 && text[n-1] == '\n' {
		text = text[:n-1]
	}

	if text == "(null)" {
		text = ""
	}

	return Move{Address: address, Driver: driver, Override: text}, nil
}

func (b Bus) driver(address string) (string, error) {
	target, err := os.Readlink(b.folder(address) + "/driver")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}

	return filepath.Base(target), err
}

// move gives one function its override and its driver. What it has already is not written.
func (b Bus) move(ctx context.Context, move Move) error {
	now, err := b.read(move.Address)
	if err != nil {
		return err
	}

	if now.Override != move.Override {
		// An empty line clears it.
		err = b.write(ctx, b.folder(move.Address)+"/driver_override", move.Override+"\n")
		if err != nil {
			return err
		}
	}

	if move.done(now.Driver) {
		return nil
	}

	if now.Driver != "" {
		err = b.write(ctx, b.folder(move.Address)+"/driver/unbind", move.Address)
		if err != nil {
			return err
		}
	}

	if move.Driver == "" {
		return nil
	}

	err = b.write(ctx, b.Root+"/sys/bus/pci/drivers_probe", move.Address)
	if err != nil {
		return err
	}

	return b.await(ctx, move)
}

// await waits for the driver: drivers_probe succeeds also when nothing takes the function, and some take it later.
func (b Bus) await(ctx context.Context, move Move) error {
	limit := b.BindLimit
	if limit == 0 {
		limit = bindLimit
	}

	deadline := time.Now().Add(limit)

	for {
		driver, err := b.driver(move.Address)
		if err != nil || move.done(driver) {
			return err
		}

		switch {
		case driver != "":
			return fmt.Errorf("driver %q took it, and not %q", driver, move.Driver)
		case time.Now().After(deadline) && move.Lenient:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("driver %q did not take it within %s; the kernel log (dmesg) may say why", move.Driver, limit)
		}

		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(poll):
		}
	}
}

// write writes to a file of sysfs, and does not wait for ever: the kernel's side of it can sleep.
func (b Bus) write(ctx context.Context, path, text string) error {
	put := b.Write
	if put == nil {
		put = writeFile
	}

	done := make(chan error, 1)

	go func() { done <- put(path, text) }()

	limit := time.NewTimer(unbindLimit)
	defer limit.Stop()

	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errors.Join(errStuck, context.Cause(ctx))
	case <-limit.C:
		return fmt.Errorf("%w (waited %s)", errStuck, unbindLimit)
	}
}

// writeFile writes in one call, as sysfs wants it, to a file that must be there.
func writeFile(path, text string) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}

	_, err = file.WriteString(text)

	return errors.Join(err, file.Close())
}
