// SPDX-License-Identifier: Apache-2.0

// Package vfio knows which PCI devices can be handed to programs and virtual machines, and hands them over: the rules are
// pure, and Bus moves functions between drivers, all or none.
package vfio

import (
	"fmt"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/pci"
)

// Kind names a reason why a card cannot be reserved.
type Kind string

// The reasons.
const (
	IOMMUOffFirmware Kind = "iommu_off_firmware"
	IOMMUOffKernel   Kind = "iommu_off_kernel"
	Lost             Kind = "lost"
	VirtualFunctions Kind = "virtual_functions"
	NotIsolated      Kind = "not_isolated"
	BootDisplay      Kind = "boot_display"
	InUse            Kind = "in_use"
	HeldByDriver     Kind = "held_by_driver"
)

// Reasons that are not of a card by itself.
const (
	NotFound    Kind = "not_found"
	NotGPU      Kind = "not_gpu"
	LastDisplay Kind = "last_display"
	NoDriver    Kind = "no_driver"
	Contained   Kind = "contained"
)

// byGravity has them so that those come first which no restart of the host mends.
var byGravity = []Kind{IOMMUOffFirmware, Lost, VirtualFunctions, NotIsolated, BootDisplay, LastDisplay, NoDriver, IOMMUOffKernel, InUse, HeldByDriver}

// CompareGravity puts the graver of two reasons first.
func CompareGravity(a, b Kind) int { return slices.Index(byGravity, a) - slices.Index(byGravity, b) }

// Refusal is a reason why a card cannot be reserved, and the way out.
type Refusal struct {
	Kind   Kind   `json:"code"`
	Reason string `json:"reason"`
	Hint   string `json:"hint"`
}

// Wish says what is wanted of a card.
type Wish struct {
	AllowBootDisplay bool
	// AllowMembers are devices that are no functions of the card and may go with it, since they share its IOMMU group.
	AllowMembers []string
	// Driver is what the functions are to have; those that have it are not moved, so nobody is in the way. Empty: none has.
	Driver func(pci.Device) string
	// Later leaves out what matters only when a function changes its driver now.
	Later bool
}

// Members gives what has to go with a card: all functions of its slot, and what else is allowed of its IOMMU group.
func Members(system *pci.System, gpu string, allowed []string) []string {
	members := system.Functions(pci.Slot(gpu))

	for _, address := range system.GroupMembers(system.Device(gpu).Group) {
		if slices.Contains(allowed, address) && !slices.Contains(members, address) {
			members = append(members, address)
		}
	}

	slices.SortFunc(members, pci.Compare)

	return members
}

// CheckIOMMU tells why no card of the host can be reserved; nil when the IOMMU is on.
func CheckIOMMU(system *pci.System) *Refusal {
	switch {
	case system.IOMMU.Groups > 0:
		return nil
	case system.IOMMU.Table == "":
		return &Refusal{
			IOMMUOffFirmware, "the IOMMU is off in the firmware: no ACPI table describes one (DMAR, IVRS or IORT)",
			"switch on VT-d (Intel) or AMD-Vi, often called IOMMU (AMD), in the firmware's set-up, and restart the host",
		}
	}

	advice := "take iommu=off off the kernel command line"

	switch system.IOMMU.Table {
	case "DMAR":
		advice = "put intel_iommu=on on the kernel command line"
	case "IVRS":
		advice = "take amd_iommu=off off the kernel command line" // Linux uses AMD's without being asked
	}

	return &Refusal{
		IOMMUOffKernel, fmt.Sprintf("the IOMMU is off in the kernel: the firmware describes one (%s), but there are no IOMMU groups", system.IOMMU.Table),
		advice + " (module kernel_cmdline), and restart the host",
	}
}

// Check tells why a card cannot be reserved, everything at once; nothing when it can. While the IOMMU is off nobody knows the
// groups, and the restart that it needs ends users and who shows a picture, and may bring back what is lost.
func Check(system *pci.System, gpu string, wish Wish) []Refusal {
	checks := []func(*pci.System, string, Wish) *Refusal{checkLost, checkVFs, checkIsolation, checkDisplay, checkUsers, checkHeld}

	var found []Refusal

	if refusal := CheckIOMMU(system); refusal != nil {
		found = append(found, *refusal)
		checks = []func(*pci.System, string, Wish) *Refusal{checkVFs, checkBootDisplay}
	}

	for _, check := range checks {
		if refusal := check(system, gpu, wish); refusal != nil {
			found = append(found, *refusal)
		}
	}

	return found
}

func checkLost(system *pci.System, gpu string, wish Wish) *Refusal {
	for _, address := range Members(system, gpu, wish.AllowMembers) {
		if system.Device(address).Lost {
			return &Refusal{
				Lost, address + " does not answer: it has fallen off the bus, or is switched off",
				"restart the host; where it comes back only then, a virtual machine's stop may have left it so (the kernel cannot reset every card)",
			}
		}
	}

	return nil
}

func checkVFs(system *pci.System, gpu string, wish Wish) *Refusal {
	for _, address := range Members(system, gpu, wish.AllowMembers) {
		device := system.Device(address)

		switch {
		case device.VFs > 0:
			return &Refusal{
				VirtualFunctions, fmt.Sprintf("%s is divided into %d SR-IOV virtual functions", address, device.VFs),
				"take them back first (write 0 to its sriov_numvfs), or give the virtual functions to virtual machines instead",
			}
		case len(device.Mdevs) > 0:
			return &Refusal{
				VirtualFunctions, fmt.Sprintf("%s is divided into mediated devices: %s", address, strings.Join(device.Mdevs, ", ")),
				"remove them first, or give them to virtual machines instead",
			}
		case device.PhysFn != "":
			return &Refusal{
				VirtualFunctions, fmt.Sprintf("%s is a virtual function of %s, and its driver decides when it is there", address, device.PhysFn),
				"give the whole card, or leave virtual functions to LXD (gputype: sriov)",
			}
		}
	}

	return nil
}

// Foreign gives what shares a card's IOMMU group, is no function of its slot and no bridge. Bridges need no driver for
// VFIO (drivers/vfio/vfio_main.c has pcieport among those that do no harm).
func Foreign(system *pci.System, gpu string) []string {
	var foreign []string

	for _, address := range system.Functions(pci.Slot(gpu)) {
		for _, member := range system.GroupMembers(system.Device(address).Group) {
			if pci.Slot(member) != pci.Slot(gpu) && !system.Device(member).Bridge && !slices.Contains(foreign, member) {
				foreign = append(foreign, member)
			}
		}
	}

	return foreign
}

func checkIsolation(system *pci.System, gpu string, wish Wish) *Refusal {
	for _, address := range system.Functions(pci.Slot(gpu)) {
		if system.Device(address).Group == "" {
			return &Refusal{
				NotIsolated, address + " is in no IOMMU group, so nothing keeps it from the rest of the memory",
				"put the card into another slot, or ask the board's maker whether its IOMMU covers this one",
			}
		}
	}

	var inTheWay []string

	for _, address := range Foreign(system, gpu) {
		if !slices.Contains(wish.AllowMembers, address) {
			inTheWay = append(inTheWay, Describe(system, address))
		}
	}

	if inTheWay == nil {
		return nil
	}

	return &Refusal{
		NotIsolated, fmt.Sprintf("%s shares IOMMU group %s with %s, which would have to go with it", gpu, system.Device(gpu).Group, strings.Join(inTheWay, " and ")),
		"put the card into another slot, or name in allow_group_members what the host can do without",
	}
}

// Describe names a device for people: address, what it is, and its driver.
func Describe(system *pci.System, address string) string {
	device := system.Device(address)

	text := fmt.Sprintf("%s (%s %s", address, device.Kind(), device.ID)
	if device.Driver != "" {
		text += ", driver " + device.Driver
	}

	return text + ")"
}

// ShowsHost says why a card is the one whose display the host itself uses; empty when it is not.
func ShowsHost(device pci.Device) string {
	switch {
	case device.BootVGA:
		return "is the display that the host started with (boot_vga)"
	case device.Framebuffer != "":
		return "holds the framebuffer that the host started with (" + device.Framebuffer + ")"
	case len(device.Connectors) > 0:
		return "shows a picture on " + strings.Join(device.Connectors, ", ")
	}

	return ""
}

// Displays gives the GPUs that a desktop can show itself on: those that answer, are with the host, and are no management
// controller's, whose screen is in a browser somewhere else.
func Displays(system *pci.System) []string {
	return slices.DeleteFunc(system.GPUs(), func(address string) bool {
		device := system.Device(address)
		local := system.IsCard(address) || system.OfProcessor(address)

		return !device.IsDisplay() || device.Lost || pci.IsVFIO(device.Driver) || device.PhysFn != "" || !local
	})
}

func checkDisplay(system *pci.System, gpu string, wish Wish) *Refusal {
	if wish.AllowBootDisplay {
		return nil
	}

	// What is allowed to go along may be a GPU as well, with the display on it.
	for _, address := range Members(system, gpu, wish.AllowMembers) {
		if why := ShowsHost(*system.Device(address)); why != "" {
			return &Refusal{
				BootDisplay, address + " " + why,
				"reserve another card, make another one the primary display in the firmware's set-up, or set allow_boot_display: true for a host that needs no display",
			}
		}
	}

	return nil
}

// checkBootDisplay asks for what a card is at every start only.
func checkBootDisplay(system *pci.System, gpu string, wish Wish) *Refusal {
	started := *system
	started.Devices = slices.Clone(system.Devices)

	for i := range started.Devices {
		started.Devices[i].Connectors = nil
	}

	return checkDisplay(&started, gpu, wish)
}

func checkUsers(system *pci.System, gpu string, wish Wish) *Refusal {
	users := ofMoved(system, gpu, wish, UsersOf)
	if users == nil {
		return nil
	}

	return &Refusal{
		InUse, fmt.Sprintf("%s is in use: %s", gpu, strings.Join(users, ", ")),
		"end what uses it, or set apply_now: false and restart the host",
	}
}

func checkHeld(system *pci.System, gpu string, wish Wish) *Refusal {
	held := ofMoved(system, gpu, wish, HeldOf)
	if held == nil {
		return nil
	}

	return &Refusal{
		HeldByDriver, fmt.Sprintf("%s would not be let go by its driver: %s", gpu, strings.Join(held, ", ")),
		"end that, or set apply_now: false and restart the host",
	}
}

// ofMoved asks for something of all functions that would change their drivers now. Each answer is given once.
func ofMoved(system *pci.System, gpu string, wish Wish, ask func(pci.Device) []string) []string {
	if wish.Later {
		return nil
	}

	var all []string

	for _, address := range Members(system, gpu, wish.AllowMembers) {
		device := system.Device(address)
		if wish.Driver != nil && device.Driver == wish.Driver(*device) || device.Driver == "" {
			continue
		}

		for _, answer := range ask(*device) {
			if !slices.Contains(all, answer) {
				all = append(all, answer)
			}
		}
	}

	return all
}

// UsersOf says who uses a device, one line each: processes, and what the kernel has on it.
func UsersOf(device pci.Device) []string {
	var users []string

	for _, user := range device.Users {
		users = append(users, fmt.Sprintf("process %d (%s) has %s open", user.PID, user.Command, user.Node))
	}

	return append(users, device.Uses...)
}

// HeldOf says why a device's driver would not let go of it although nobody uses it, one line each.
func HeldOf(device pci.Device) []string {
	var held []string

	switch device.Persistence {
	case PersistenceOn:
		held = append(held, "NVIDIA's persistence mode holds "+device.Address+" (nvidia-smi -i "+device.Address+" -pm 0 ends it)")
	case PersistenceUnknown:
		held = append(held, "whether NVIDIA's persistence mode holds "+device.Address+" cannot be told: "+device.PersistenceWhy)
	}

	if device.Modeset {
		held = append(held, "NVIDIA's kernel mode setting holds "+device.Address+" (nvidia_drm has modeset=Y)")
	}

	return held
}

// harmless are the drivers beside VFIO's own whose devices do not keep a group from being used
// (vfio_dev_driver_allowed in drivers/vfio/vfio_main.c).
var harmless = []string{"", "pci-stub", "pcieport"}

// Viable tells whether a program can use an IOMMU group: every device in it is with VFIO, with no driver, or harmless.
func Viable(system *pci.System, group string) bool {
	members := system.GroupMembers(group)

	return len(members) > 0 && !slices.ContainsFunc(members, func(address string) bool {
		driver := system.Device(address).Driver

		return !pci.IsVFIO(driver) && !slices.Contains(harmless, driver)
	})
}
