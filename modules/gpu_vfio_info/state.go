// SPDX-License-Identifier: Apache-2.0

package gpuvfioinfo

import (
	"context"
	"slices"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/initramfs"
	"github.com/thinkube/infra/modules/internal/pci"
	"github.com/thinkube/infra/modules/internal/vfio"
)

// State is what was read.
type State struct {
	PCI     pci.System
	Aliases []vfio.Alias
	// Missing are drivers for VFIO, by their modules with hyphens, that the kernel does not have.
	Missing []string
	// Desktop tells that a display manager starts with the host.
	Desktop bool
}

type host struct {
	ansible.ReadOnly
	args Args
	root string
}

// Read reads the devices, who uses them, and what the host has for them. An address that is not that of a GPU is an error.
func (h *host) Read(ctx context.Context) (State, error) {
	var state State

	var err error

	state.PCI, err = pci.Reader{Root: h.root}.Read()
	if err != nil {
		return state, err
	}

	vfio.ReadPersistence(ctx, &state.PCI)

	if refusal := vfio.Find(&state.PCI, h.args.Devices); refusal != nil {
		return state, ansible.Fail(codes[refusal.Kind], refusal.Hint, "%s", refusal.Reason)
	}

	release, err := vfio.Release()
	if err == nil {
		state.Aliases, err = vfio.ReadAliases(h.root, release)
	}

	if err != nil {
		return state, err
	}

	modules := []string{vfio.DefaultDriver}
	for _, alias := range state.Aliases {
		modules = append(modules, vfio.ModuleName(alias.Module))
	}

	state.Missing, _, err = vfio.Missing(initramfs.Tree{Root: h.root}, release, modules)
	if err != nil {
		return state, err
	}

	state.Desktop, err = vfio.HasDesktop(h.root)

	return state, err
}

// missing tells whether the driver that a device is to have is not there. One that is loaded is.
func (s *State) missing(device pci.Device) bool {
	driver := vfio.DriverFor(device, s.Aliases)

	return !slices.Contains(s.PCI.Drivers, driver) && slices.Contains(s.Missing, vfio.ModuleName(driver))
}
