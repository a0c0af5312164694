// SPDX-License-Identifier: Apache-2.0

package vfio

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/thinkube/infra/modules/internal/initramfs"
	"github.com/thinkube/infra/modules/internal/pci"
)

// Find tells which of the addresses is not that of a GPU; nil when all are.
func Find(system *pci.System, addresses []string) *Refusal {
	for _, address := range addresses {
		device := system.Device(address)
		hint := "its GPUs are: " + DescribeAll(system, system.GPUs())

		switch {
		case device == nil:
			if meant := pci.MisreadDecimal(address); system.Device(meant) != nil && system.Device(meant).IsGPU() {
				hint = fmt.Sprintf("PCI addresses are hexadecimal: if %s was read as decimal, it is %s; %s", address, meant, hint)
			}

			return &Refusal{NotFound, "the host has no PCI device " + address, hint}
		case !device.IsGPU():
			for _, other := range system.Functions(pci.Slot(address)) {
				if system.Device(other).IsGPU() {
					hint = "give the card by its GPU, " + other + "; all functions of it go along"
				}
			}

			return &Refusal{NotGPU, Describe(system, address) + " is no GPU", hint}
		}
	}

	return nil
}

// DescribeAll names devices for people.
func DescribeAll(system *pci.System, addresses []string) string {
	var texts []string
	for _, address := range addresses {
		texts = append(texts, Describe(system, address))
	}

	if texts == nil {
		return "none"
	}

	return strings.Join(texts, ", ")
}

// NoneLeft is why a desktop's cards cannot all be reserved.
func NoneLeft(system *pci.System, cards []string) Refusal {
	return Refusal{
		LastDisplay, "the host is a desktop with a display manager, and no GPU would be left for it: " + DescribeAll(system, cards),
		"keep one GPU for the desktop (the processor's own is enough), switch the display manager off, or set allow_boot_display: true",
	}
}

// OutOfSight is why nothing may be moved from within a container that does not see the host's processes.
func OutOfSight() Refusal {
	return Refusal{
		Contained, "this is a container with processes of its own: who uses a card on the host cannot be seen, so no function may change its driver now",
		"run it on the host itself, not in a container; or set apply_now: false and restart the host",
	}
}

// NoDriverHint says what to do about a driver that is not there.
const NoDriverHint = "install the kernel's package with extra modules, or name another driver"

// HasDesktop tells whether a display manager starts with a system.
func HasDesktop(root string) (bool, error) {
	_, err := os.Lstat(root + "/etc/systemd/system/display-manager.service")
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return false, fmt.Errorf("looking for a display manager: %w", err)
	}

	return err == nil, nil
}

// Missing gives those of the modules, named with hyphens, that a kernel does not have; known is false where it is not written
// down which it has.
func Missing(tree initramfs.Tree, release string, modules []string) (missing []string, known bool, err error) {
	installed, known, err := tree.Installed(release)
	if err != nil {
		return nil, false, fmt.Errorf("reading which modules kernel %s has: %w", release, err)
	}

	if !known {
		return nil, false, nil
	}

	for _, module := range modules {
		builtIn, err := tree.BuiltIn(release, module)
		if err != nil {
			return nil, false, fmt.Errorf("reading what is built into kernel %s: %w", release, err)
		}

		if !builtIn && !installed[module] {
			missing = append(missing, module)
		}
	}

	return missing, true, nil
}

// ModuleName gives a driver's module in the one spelling that is compared: the kernel's tools take - and _ for the same.
func ModuleName(driver string) string { return strings.ReplaceAll(driver, "_", "-") }
