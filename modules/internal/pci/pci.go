// SPDX-License-Identifier: Apache-2.0

// Package pci reads a host's PCI devices from sysfs and /proc: never from lspci, whose output is for people. Read gives
// plain data; nothing here writes. The root of both is a parameter, so that a captured or made-up tree can be read.
package pci

import (
	"slices"
	"strings"
)

// System is what the kernel knows of a host's PCI devices.
type System struct {
	Devices []Device `json:"devices"` // in order of their addresses
	IOMMU   IOMMU    `json:"iommu"`
	// CPUVendor is /proc/cpuinfo's vendor_id, such as GenuineIntel or AuthenticAMD; empty where there is none (arm64).
	CPUVendor string `json:"cpu_vendor,omitempty"`
	// Drivers are the registered PCI drivers that reserve devices, such as vfio-pci.
	Drivers []string `json:"drivers,omitempty"`
	// ReadOnly tells that sysfs cannot be written, as in a container.
	ReadOnly bool `json:"read_only,omitempty"`
	// Contained tells that the host's processes cannot be seen, as in a container with processes of its own: who uses a device is
	// not known.
	Contained bool `json:"contained,omitempty"`
	// VFIOGroups are the IOMMU groups that have a node for VFIO, /dev/vfio/GROUP.
	VFIOGroups []string `json:"vfio_groups,omitempty"`
}

// IOMMU is what is known of the host's IOMMU. Whether it is on is told by the groups, never by the kernel command line.
type IOMMU struct {
	// Table is the firmware's table that describes it: DMAR (Intel), IVRS (AMD), IORT (arm64), or empty.
	Table string `json:"table,omitempty"`
	// Units are those that the kernel drives, such as dmar0 or ivhd0.
	Units  []string `json:"units,omitempty"`
	Groups int      `json:"groups"`
}

// Device is one function of a PCI device.
type Device struct {
	Address string `json:"address"`
	// Path is the device's folder below /sys: through which port of which bridge it is reached. An address is given anew at
	// each start, and belongs to another card once a bus has come before it.
	Path  string `json:"path,omitempty"`
	ID    string `json:"id"`    // vendor:device, "10de:2684"
	Class string `json:"class"` // six hexadecimal digits, "030000" for a VGA controller
	// Bridge is the header type's word, not the class's: an NVSwitch is of class 0680 and no bridge.
	Bridge bool `json:"bridge,omitempty"`
	// Lost tells that nobody answers at its address: it has fallen off the bus, or is switched off.
	Lost   bool   `json:"lost,omitempty"`
	Group  string `json:"group,omitempty"` // IOMMU group; empty when it is in none
	Driver string `json:"driver,omitempty"`
	// Module is the kernel module of the driver; empty when the driver is part of the kernel.
	Module       string   `json:"module,omitempty"`
	Override     string   `json:"override,omitempty"` // driver_override
	BootVGA      bool     `json:"boot_vga,omitempty"`
	ResetMethods []string `json:"reset_methods,omitempty"`
	Modalias     string   `json:"modalias,omitempty"`

	// Framebuffer is what the firmware's or boot loader's framebuffer in one of the BARs is called, such as BOOTFB.
	Framebuffer string `json:"framebuffer,omitempty"`
	// Connectors are those that show a picture now, such as HDMI-A-1.
	Connectors []string `json:"connectors,omitempty"`
	// VFs is the number of SR-IOV virtual functions that are switched on; PhysFn is the function that this is one of.
	VFs    int    `json:"vfs,omitempty"`
	PhysFn string `json:"phys_fn,omitempty"`
	// Mdevs are mediated devices made of it, by UUID.
	Mdevs []string `json:"mdevs,omitempty"`
	// Nodes are the device nodes that belong to it, such as /dev/dri/card0, and Users who has one of them open.
	Nodes []string `json:"nodes,omitempty"`
	Users []User   `json:"users,omitempty"`
	// Uses are those of the kernel, for which no process has a node open: a mounted disk, swap, a network interface that is up.
	Uses []string `json:"uses,omitempty"`
	// Modeset tells that NVIDIA's driver holds the card for kernel mode setting.
	Modeset bool `json:"modeset,omitempty"`
	// Persistence is NVIDIA's persistence mode, which holds the card without an open node: enabled, disabled, unknown, or
	// empty where the driver has none; PersistenceWhy is why it is unknown.
	Persistence    string `json:"persistence,omitempty"`
	PersistenceWhy string `json:"persistence_why,omitempty"`
}

// User is a process that has a device's node open.
type User struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
	Node    string `json:"node"`
}

// Device finds a device.
func (s System) Device(address string) *Device {
	for i := range s.Devices {
		if s.Devices[i].Address == address {
			return &s.Devices[i]
		}
	}

	return nil
}

// Functions gives the addresses of all functions of a slot, in order.
func (s System) Functions(slot string) []string {
	return s.addresses(func(device Device) bool { return Slot(device.Address) == slot })
}

// GroupMembers gives the addresses of all devices of an IOMMU group, in order.
func (s System) GroupMembers(group string) []string {
	if group == "" {
		return nil
	}

	return s.addresses(func(device Device) bool { return device.Group == group })
}

func (s System) addresses(match func(Device) bool) []string {
	var found []string

	for _, device := range s.Devices {
		if match(device) {
			found = append(found, device.Address)
		}
	}

	return found
}

// Classes of devices, PCI Code and ID Assignment Specification 1.
const (
	classDisplay     = "03"
	classAccelerator = "12"
)

// IsGPU tells a display controller, or an accelerator without display (class 12, as some data-centre cards are).
func (d Device) IsGPU() bool {
	base := d.Class[:min(2, len(d.Class))]

	return !d.Bridge && (base == classDisplay || base == classAccelerator)
}

// IsDisplay tells a display controller.
func (d Device) IsDisplay() bool { return d.IsGPU() && strings.HasPrefix(d.Class, classDisplay) }

// Makers of graphics cards. (Others make the displays of servers' management controllers, and of virtual machines.)
var cardMakers = map[string][]string{
	classDisplay:     {"10de", "1002", "8086"},
	classAccelerator: {"10de", "1002"}, // of class 12 are also neural units of processors
}

// classSecurity is that of AMD's security processor, which is in one slot with the graphics of the same chip.
const classSecurity = "1080"

// IsCard tells a graphics card from what else is of its classes: graphics of the processor, which are on bus 00 or, with AMD,
// in a slot with other parts of it; neural units; displays of management controllers.
func (s System) IsCard(address string) bool {
	device := s.Device(address)
	if device == nil || !device.IsGPU() {
		return false
	}

	vendor, _, _ := strings.Cut(device.ID, ":")

	return !s.OfProcessor(address) && slices.Contains(cardMakers[device.Class[:2]], vendor)
}

// OfProcessor tells what is part of the processor's chip.
func (s System) OfProcessor(address string) bool {
	domain, rest, _ := strings.Cut(address, ":")

	return domain == "0000" && strings.HasPrefix(rest, "00:") || slices.ContainsFunc(s.Functions(Slot(address)), func(other string) bool {
		return strings.HasPrefix(s.Device(other).Class, classSecurity)
	})
}

// Kind says in words what a device is.
func (d Device) Kind() string {
	if d.Bridge {
		return "bridge"
	}

	kinds := map[string]string{
		"0100": "SCSI controller", "0101": "IDE controller", "0106": "SATA controller", "0107": "SAS controller", "0108": "NVMe disk",
		"0200": "network card", "0280": "network card",
		"0300": "GPU", "0302": "GPU", "0380": "GPU", "0401": "audio device", "0403": "audio device",
		"0601": "ISA bridge", "0680": "bridge device", "0805": "SD card reader", "0806": "IOMMU", "0c03": "USB controller", "0c05": "SMBus",
		"0c80": "serial bus controller", "1200": "accelerator",
	}

	if kind, ok := kinds[d.Class[:min(4, len(d.Class))]]; ok {
		return kind
	}

	return "device of class " + d.Class
}

// GPUs gives the addresses of all GPUs, in order.
func (s System) GPUs() []string { return s.addresses(Device.IsGPU) }

// Related gives the addresses of what shares a slot or an IOMMU group with one of the GPUs.
func (s System) Related() []string {
	var related []string

	for _, gpu := range s.GPUs() {
		related = append(related, s.Functions(Slot(gpu))...)
		related = append(related, s.GroupMembers(s.Device(gpu).Group)...)
	}

	slices.SortFunc(related, Compare)

	return slices.Compact(related)
}
