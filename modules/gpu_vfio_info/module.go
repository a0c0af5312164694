// SPDX-License-Identifier: Apache-2.0

// Package gpuvfioinfo tells which GPUs a host has, which of them can be reserved for virtual machines, and why others cannot.
// It changes nothing.
package gpuvfioinfo

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/pci"
	"github.com/thinkube/infra/modules/internal/vfio"
)

// Args are the module's options.
type Args struct {
	Devices           []string `ansible:"devices"`
	AllowGroupMembers []string `ansible:"allow_group_members"`
}

// Values are what the module returns.
type Values struct {
	GPUs       []GPU    `json:"gpus"`
	IOMMU      IOMMU    `json:"iommu"`
	NVSwitches []string `json:"nvswitches"`
}

// IOMMU is what is known of the host's IOMMU.
type IOMMU struct {
	Enabled   bool     `json:"enabled"`
	Table     string   `json:"table"`
	Units     []string `json:"units"`
	Groups    int      `json:"groups"`
	CPUVendor string   `json:"cpu_vendor"`
	Reason    string   `json:"reason"`
	Hint      string   `json:"hint"`
}

// GPU is one card.
type GPU struct {
	Address      string     `json:"address"`
	ID           string     `json:"id"`
	Class        string     `json:"class"`
	Driver       string     `json:"driver"`
	Group        string     `json:"group"`
	Functions    []Function `json:"functions"`
	GroupMembers []Function `json:"group_members"`
	ResetMethods []string   `json:"reset_methods"`
	ShowsHost    bool       `json:"shows_host"`
	Reserved     bool       `json:"reserved"`
	Viable       bool       `json:"viable"`
	Eligible     bool       `json:"eligible"`
	Reasons      []Reason   `json:"reasons"`
	Users        []string   `json:"users"`
	Held         []string   `json:"held"`
	Summary      string     `json:"summary"`
}

// Function is one function of a card, or another device in its IOMMU group.
type Function struct {
	Address  string `json:"address"`
	ID       string `json:"id"`
	Kind     string `json:"kind"`
	Driver   string `json:"driver"`
	Override string `json:"override"`
	Bridge   bool   `json:"bridge"`
}

// Reason is why a card cannot be reserved.
type Reason struct {
	Code   string `json:"code"`
	Reason string `json:"reason"`
	Hint   string `json:"hint"`
}

// Failure codes of this module.
const (
	CodeNotFound ansible.Code = "not_found"
	CodeNotGPU   ansible.Code = "not_gpu"
)

// codes gives the failure code of an address that is refused.
var codes = map[vfio.Kind]ansible.Code{vfio.NotFound: CodeNotFound, vfio.NotGPU: CodeNotGPU}

// Module is gpu_vfio_info.
var Module = ansible.Module[Args, State, Values]{
	Name:      "gpu_vfio_info",
	Normalize: normalize,
	Codes: map[ansible.Code]string{
		CodeNotFound: "the host has no PCI device of that address",
		CodeNotGPU:   "the address is not that of a GPU",
	},
	Open: func(_ context.Context, _ *ansible.Task, args Args) (ansible.Host[State], error) {
		if os.Geteuid() != 0 {
			return nil, ansible.Fail(ansible.CodeFailed, "use become: true", "who uses a card, and where the framebuffer is, is told to root alone")
		}

		return &host{args: args}, nil
	},
	Result: makeValues,
}

func normalize(args *Args) error {
	for _, list := range [][]string{args.Devices, args.AllowGroupMembers} {
		for i, text := range list {
			address, err := pci.ParseAddress(text)
			if err != nil {
				return err
			}

			list[i] = address
		}
	}

	return nil
}

func makeValues(args Args, read State) Values {
	system := &read.PCI
	values := Values{GPUs: []GPU{}, NVSwitches: []string{}, IOMMU: makeIOMMU(system)}

	for _, address := range system.GPUs() {
		named := slices.ContainsFunc(args.Devices, func(other string) bool { return pci.Slot(other) == pci.Slot(address) })
		if args.Devices == nil || named {
			values.GPUs = append(values.GPUs, makeGPU(args, &read, address))
		}
	}

	for _, device := range system.Devices {
		// Of class "bridge, other", and no bridge by its header.
		if strings.HasPrefix(device.ID, "10de:") && strings.HasPrefix(device.Class, "0680") && !device.Bridge {
			values.NVSwitches = append(values.NVSwitches, device.Address)
		}
	}

	return values
}

func makeIOMMU(system *pci.System) IOMMU {
	iommu := IOMMU{
		Enabled: system.IOMMU.Groups > 0, Table: system.IOMMU.Table, Units: orEmpty(system.IOMMU.Units), Groups: system.IOMMU.Groups, CPUVendor: system.CPUVendor,
	}

	if refusal := vfio.CheckIOMMU(system); refusal != nil {
		iommu.Reason, iommu.Hint = refusal.Reason, refusal.Hint
	}

	return iommu
}

func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}

	return list
}

func makeGPU(args Args, read *State, address string) GPU {
	system := &read.PCI
	device := system.Device(address)
	gpu := GPU{
		Address: address, ID: device.ID, Class: device.Class, Driver: device.Driver, Group: device.Group, ResetMethods: orEmpty(device.ResetMethods),
		Functions: makeFunctions(system, system.Functions(pci.Slot(address))), GroupMembers: makeFunctions(system, system.GroupMembers(device.Group)),
		Reserved: true, Viable: vfio.Viable(system, device.Group), Reasons: []Reason{}, Users: []string{}, Held: []string{},
	}

	for _, function := range vfio.Members(system, address, nil) {
		each := system.Device(function)
		gpu.Reserved = gpu.Reserved && pci.IsVFIO(each.Driver)
		gpu.ShowsHost = gpu.ShowsHost || vfio.ShowsHost(*each) != ""
		gpu.Users = append(gpu.Users, vfio.UsersOf(*each)...)
		gpu.Held = append(gpu.Held, vfio.HeldOf(*each)...)
	}

	// What is reserved already is not in the way of itself.
	wish := vfio.Wish{AllowMembers: args.AllowGroupMembers, Driver: func(each pci.Device) string {
		if pci.IsVFIO(each.Driver) {
			return each.Driver
		}

		return vfio.DefaultDriver
	}}

	for _, refusal := range vfio.Check(system, address, wish) {
		gpu.Reasons = append(gpu.Reasons, Reason{string(refusal.Kind), refusal.Reason, refusal.Hint})
	}

	gpu.Reasons = append(gpu.Reasons, ofHost(args, read, address)...)
	gpu.Eligible = len(gpu.Reasons) == 0
	gpu.Users = slices.Compact(gpu.Users)
	gpu.Summary = summarize(system, gpu)

	return gpu
}

// ofHost tells why a card cannot be reserved for what the host has beside it: no driver for VFIO, no other GPU for a desktop,
// or users that cannot be seen.
func ofHost(args Args, read *State, address string) []Reason {
	var reasons []Reason

	members := vfio.Members(&read.PCI, address, args.AllowGroupMembers)

	for _, member := range members {
		if device := read.PCI.Device(member); !device.Bridge && !pci.IsVFIO(device.Driver) && read.missing(*device) {
			reasons = append(reasons, Reason{string(vfio.NoDriver), fmt.Sprintf("the kernel that runs does not have driver %q", vfio.DriverFor(*device, read.Aliases)), vfio.NoDriverHint})

			break
		}
	}

	toMove := slices.ContainsFunc(members, func(member string) bool {
		device := read.PCI.Device(member)

		return !device.Bridge && device.Driver != "" && !pci.IsVFIO(device.Driver)
	})
	if read.PCI.Contained && toMove {
		refusal := vfio.OutOfSight()
		reasons = append(reasons, Reason{string(refusal.Kind), refusal.Reason, refusal.Hint})
	}

	left := slices.DeleteFunc(vfio.Displays(&read.PCI), func(other string) bool { return slices.Contains(members, other) })
	if read.Desktop && len(left) == 0 {
		refusal := vfio.NoneLeft(&read.PCI, []string{address})
		reasons = append(reasons, Reason{string(refusal.Kind), refusal.Reason, refusal.Hint})
	}

	return reasons
}

func summarize(system *pci.System, gpu GPU) string {
	name := vfio.Describe(system, gpu.Address)

	switch {
	case system.Device(gpu.Address).Lost && gpu.Reserved:
		return name + " is reserved, and does not answer: it has fallen off the bus, or is switched off"
	case gpu.Reserved && gpu.Viable:
		return name + " is reserved, with all that belongs to it"
	case gpu.Reserved:
		return name + " is reserved, and cannot be used: IOMMU group " + gpu.Group + " has devices that are still with the host"
	case gpu.Eligible:
		return fmt.Sprintf("%s can be reserved; it has %d functions", name, len(gpu.Functions))
	}

	var reasons []string
	for _, reason := range gpu.Reasons {
		reasons = append(reasons, reason.Reason)
	}

	return name + " cannot be reserved: " + strings.Join(reasons, "; ")
}

func makeFunctions(system *pci.System, addresses []string) []Function {
	functions := []Function{}

	for _, address := range addresses {
		device := system.Device(address)
		functions = append(functions, Function{address, device.ID, device.Kind(), device.Driver, device.Override, device.Bridge})
	}

	return functions
}
