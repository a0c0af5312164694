// SPDX-License-Identifier: Apache-2.0

// Package gpuvfio reserves GPUs for virtual machines: each by its address, with all that has to go with it, from the
// moment the kernel finds it on, and gives them back.
package gpuvfio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/pci"
	"github.com/thinkube/infra/modules/internal/vfio"
)

// Args are the module's options.
type Args struct {
	Devices           []string         `ansible:"devices"`
	State             string           `ansible:"state" choices:"present,absent" default:"present"`
	Select            *Select          `ansible:"select"`
	HostDevices       []string         `ansible:"host_devices"`
	Companions        string           `ansible:"companions" choices:"group,slot" default:"group"`
	AllowGroupMembers []string         `ansible:"allow_group_members"`
	Driver            string           `ansible:"driver" default:"auto"`
	AllowBootDisplay  bool             `ansible:"allow_boot_display" default:"false"`
	ApplyNow          bool             `ansible:"apply_now" default:"true"`
	Stage             string           `ansible:"stage" choices:"initramfs,udev,none" default:"initramfs"`
	Root              ansible.Path     `ansible:"root" default:"/"`
	Timeout           ansible.Duration `ansible:"timeout" default:"15m"`
}

// Select picks cards by what they are.
type Select struct {
	ID        string `ansible:"id"`
	Count     *int   `ansible:"count"`
	AllExcept string `ansible:"all_except" choices:"boot_display"`
}

// TaskTimeout bounds the task.
func (a Args) TaskTimeout() time.Duration { return a.Timeout }

// root is the tree's folder, empty for the host's own.
func (a Args) root() string {
	if a.Root == "/" {
		return ""
	}

	return string(a.Root)
}

// live tells whether functions change their drivers now.
func (a Args) live() bool { return a.ApplyNow && a.root() == "" }

// Values are what the module returns.
type Values struct {
	Devices        []Device `json:"devices"`
	Groups         []Group  `json:"groups"`
	Files          []string `json:"files"`
	RebootRequired bool     `json:"reboot_required"`
	RebootReasons  []string `json:"reboot_reasons"`
}

// Device is one reserved function.
type Device struct {
	Address      string   `json:"address"`
	ID           string   `json:"id"`
	Class        string   `json:"class"`
	Kind         string   `json:"kind"`
	Card         string   `json:"card"`
	Group        string   `json:"group"`
	Driver       string   `json:"driver"`
	Override     string   `json:"override"`
	ResetMethods []string `json:"reset_methods"`
}

// Group is an IOMMU group that reserved functions are in.
type Group struct {
	Group   string   `json:"group"`
	Members []Member `json:"members"`
	Viable  bool     `json:"viable"`
}

// Member is one device of a group.
type Member struct {
	Address  string `json:"address"`
	ID       string `json:"id"`
	Kind     string `json:"kind"`
	Driver   string `json:"driver"`
	Reserved bool   `json:"reserved"`
}

// Failure codes of this module.
const (
	CodeNotFound         ansible.Code = "not_found"
	CodeNotGPU           ansible.Code = "not_gpu"
	CodeTooFew           ansible.Code = "too_few"
	CodeIOMMUOffFirmware ansible.Code = "iommu_off_firmware"
	CodeIOMMUOffKernel   ansible.Code = "iommu_off_kernel"
	CodeLost             ansible.Code = "lost"
	CodeVirtualFunctions ansible.Code = "virtual_functions"
	CodeNotIsolated      ansible.Code = "not_isolated"
	CodeBootDisplay      ansible.Code = "boot_display"
	CodeInUse            ansible.Code = "in_use"
	CodeHeld             ansible.Code = "held_by_driver"
	CodeLastDisplay      ansible.Code = "last_display"
	CodeNoDriver         ansible.Code = "no_driver"
	CodeNoInitramfs      ansible.Code = "no_initramfs"
	CodeInitramfs        ansible.Code = "initramfs_failed"
	CodeReadOnly         ansible.Code = "read_only"
	CodeContained        ansible.Code = "contained"
	CodeForeignFile      ansible.Code = "foreign_file"
	CodeBind             ansible.Code = "bind_failed"
)

// codes gives the failure code of a refusal.
var codes = map[vfio.Kind]ansible.Code{
	vfio.IOMMUOffFirmware: CodeIOMMUOffFirmware,
	vfio.IOMMUOffKernel:   CodeIOMMUOffKernel,
	vfio.Lost:             CodeLost,
	vfio.VirtualFunctions: CodeVirtualFunctions,
	vfio.NotIsolated:      CodeNotIsolated,
	vfio.BootDisplay:      CodeBootDisplay,
	vfio.InUse:            CodeInUse,
	vfio.HeldByDriver:     CodeHeld,
	vfio.NotFound:         CodeNotFound,
	vfio.NotGPU:           CodeNotGPU,
	vfio.LastDisplay:      CodeLastDisplay,
	vfio.NoDriver:         CodeNoDriver,
}

// Module is gpu_vfio.
var Module = ansible.Module[Args, State, Values]{
	Name: "gpu_vfio",
	Lock: "gpu_vfio",
	Rules: ansible.Rules{
		MutuallyExclusive: [][]string{{"devices", "select"}},
		RequiredIf:        []ansible.RequiredIf{{Option: "state", Value: "present", Needs: []string{"devices", "select"}, Any: true}},
	},
	Codes: map[ansible.Code]string{
		CodeNotFound:         "the host has no PCI device of that address",
		CodeNotGPU:           "the address is not that of a GPU",
		CodeTooFew:           "fewer cards than asked for fit the selector and can be reserved; msg says why each other cannot",
		CodeIOMMUOffFirmware: "the IOMMU is off in the firmware",
		CodeIOMMUOffKernel:   "the firmware has an IOMMU and the kernel does not use it",
		CodeLost:             "the card does not answer, or one that is reserved is not there any more",
		CodeVirtualFunctions: "the card is divided into SR-IOV virtual functions or mediated devices, or is a virtual function itself",
		CodeNotIsolated:      "the card is in no IOMMU group, or in one with devices that are not its own",
		CodeBootDisplay:      "the host's display is on the card",
		CodeInUse:            "somebody uses the card; msg names processes and files, or disks and network interfaces",
		CodeHeld:             "nobody uses the card, and its driver would not let go of it, as NVIDIA's in persistence mode",
		CodeLastDisplay:      "it is a desktop, and no GPU would be left for it",
		CodeNoDriver:         "the driver is not there",
		CodeNoInitramfs:      "nobody is found who makes the initramfs, or it has no image",
		CodeInitramfs:        "making the initramfs failed; files and images are as they were",
		CodeReadOnly:         "sysfs or the files cannot be written",
		CodeContained:        "it runs in a container from where the host's processes cannot be seen, and a card would have to change its driver now",
		CodeForeignFile:      "a file of the name that this module uses was written by somebody else",
		CodeBind:             "a function did not change its driver; all of the card have those that they had; the hint says what the next start of the host does",
	},
	Normalize: normalize,
	Open:      open,
	Plan:      makePlan,
	Result:    makeValues,
}

var (
	validID     = regexp.MustCompile(`^[0-9a-f]{4}(:[0-9a-f]{4})?$`)
	validDriver = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
)

func normalize(args *Args) error {
	var errs []error

	for _, list := range []struct {
		option    string
		addresses []string
	}{{"devices", args.Devices}, {"host_devices", args.HostDevices}, {"allow_group_members", args.AllowGroupMembers}} {
		for i, text := range list.addresses {
			address, err := pci.ParseAddress(text)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", list.option, err))

				continue
			}

			list.addresses[i] = address
		}
	}

	errs = append(errs, checkTwice(args), checkSelect(args))

	if args.Driver != "auto" && (!validDriver.MatchString(args.Driver) || !pci.IsVFIO(args.Driver)) {
		errs = append(errs, fmt.Errorf("driver %q: must be auto, vfio-pci, or a variant of it whose name ends in vfio_pci", args.Driver))
	}

	args.Driver = driverName(args.Driver)

	if !filepath.IsAbs(string(args.Root)) {
		errs = append(errs, fmt.Errorf("root %q: must be an absolute path", args.Root))
	}

	args.Root = ansible.Path(filepath.Clean(string(args.Root)))

	if wants := len(args.Devices) > 0 || args.Select != nil; args.State == "present" && wants && args.Stage == "none" && !args.live() {
		errs = append(errs, errors.New("stage none with apply_now: false or root reserves nothing, neither now nor at the next start: choose another stage"))
	}

	return errors.Join(errs...)
}

// driverName spells a driver as the kernel does: vfio-pci, whose module is vfio_pci, is the one with a hyphen; variants have the
// names of their modules (KBUILD_MODNAME). driver_override of another spelling matches nothing.
func driverName(name string) string {
	if vfio.ModuleName(name) == vfio.DefaultDriver {
		return vfio.DefaultDriver
	}

	return strings.ReplaceAll(name, "-", "_")
}

// checkTwice finds cards that are named twice. A card is its slot.
func checkTwice(args *Args) error {
	var errs []error

	for i, address := range args.Devices {
		sameSlot := func(other string) bool { return pci.Slot(other) == pci.Slot(address) }

		if other := slices.IndexFunc(args.Devices[:i], sameSlot); other >= 0 {
			errs = append(errs, fmt.Errorf("devices: %s and %s are the same card", args.Devices[other], address))
		}

		if slices.ContainsFunc(args.HostDevices, sameSlot) {
			errs = append(errs, fmt.Errorf("card %s cannot be in devices and in host_devices: it is the guests' or the host's", address))
		}
	}

	for _, address := range args.AllowGroupMembers {
		if slices.Contains(args.HostDevices, address) {
			errs = append(errs, fmt.Errorf("%s cannot be in allow_group_members and in host_devices: it is the guests' or the host's", address))
		}
	}

	return errors.Join(errs...)
}

func checkSelect(args *Args) error {
	selector := args.Select
	if selector == nil {
		return nil
	}

	var errs []error

	// It would pick among all cards of the host, and which of those that are reserved is meant is not in it.
	if args.State == "absent" {
		errs = append(errs, errors.New("select: only with state: present; with state: absent name the cards to give back in devices, or leave both out for all"))
	}

	if selector.ID == "" && selector.AllExcept == "" {
		errs = append(errs, errors.New("select: give id, all_except or both"))
	}

	if selector.ID != "" && !validID.MatchString(selector.ID) {
		errs = append(errs, fmt.Errorf("select: id %q: must be vendor or vendor:device in small hexadecimal digits, for example 10de or 10de:2684", selector.ID))
	}

	if selector.Count != nil && *selector.Count < 1 {
		errs = append(errs, fmt.Errorf("select: count %d: must be at least 1", *selector.Count))
	}

	return errors.Join(errs...)
}

func open(_ context.Context, task *ansible.Task, args Args) (ansible.Host[State], error) {
	if os.Geteuid() != 0 {
		return nil, ansible.Fail(ansible.CodeFailed, "use become: true", "who uses a card, and where the framebuffer is, is told to root alone")
	}

	made := &host{task: task, args: args, root: args.root()}

	// The hardware is that below the root where sysfs is mounted (or was captured) there, or this machine's.
	_, err := os.Stat(made.root + "/sys/bus/pci/devices")
	if err == nil {
		made.bus.Root = made.root
	}

	return made, nil
}

func makeValues(args Args, final State) Values {
	values := Values{Devices: []Device{}, Groups: []Group{}, Files: []string{}, RebootReasons: []string{}}

	for _, file := range final.Boot.Files {
		values.Files = append(values.Files, file.Path)
	}

	for _, record := range final.Records {
		device := final.PCI.Device(record.Address)
		if device == nil {
			continue
		}

		shown := Device{
			Address: device.Address, ID: device.ID, Class: device.Class, Kind: device.Kind(), Card: record.Card, Group: device.Group,
			Driver: device.Driver, Override: device.Override, ResetMethods: device.ResetMethods,
		}
		if shown.ResetMethods == nil {
			shown.ResetMethods = []string{}
		}

		values.Devices = append(values.Devices, shown)

		if !slices.ContainsFunc(values.Groups, func(group Group) bool { return group.Group == device.Group }) && device.Group != "" {
			values.Groups = append(values.Groups, makeGroup(final, device.Group))
		}
	}

	values.RebootReasons = append(values.RebootReasons, rebootReasons(args, final)...)
	values.RebootRequired = len(values.RebootReasons) > 0

	return values
}

func makeGroup(state State, name string) Group {
	group := Group{Group: name, Members: []Member{}, Viable: vfio.Viable(&state.PCI, name)}

	for _, address := range state.PCI.GroupMembers(name) {
		device := state.PCI.Device(address)
		group.Members = append(group.Members, Member{
			Address: address, ID: device.ID, Kind: device.Kind(), Driver: device.Driver, Reserved: state.record(address) != nil,
		})
	}

	return group
}
