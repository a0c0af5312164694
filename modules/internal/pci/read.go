// SPDX-License-Identifier: Apache-2.0

package pci

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const devicesFolder = "/sys/bus/pci/devices"

// Reader reads a tree. Root is the folder that sys and proc are in; empty is the host's own.
type Reader struct {
	Root string
	// WithoutUsers leaves out who has nodes open: what a tree of another host cannot tell.
	WithoutUsers bool
}

// Read gets all devices, and for GPUs and what shares a slot or an IOMMU group with one, who uses them.
// Root's rights are needed: others are not told where framebuffers are and what processes have open.
func (r Reader) Read() (System, error) {
	var system System

	entries, err := os.ReadDir(r.Root + devicesFolder)
	if err != nil {
		return system, fmt.Errorf("reading PCI devices: %w", err)
	}

	for _, entry := range entries {
		device, err := r.readDevice(entry.Name())
		if err != nil {
			return system, fmt.Errorf("reading PCI device %q: %w", entry.Name(), err)
		}

		system.Devices = append(system.Devices, device)
	}

	slices.SortFunc(system.Devices, func(a, b Device) int { return Compare(a.Address, b.Address) })

	err = errors.Join(r.readHost(&system), r.readFramebuffers(&system))
	if err == nil && !r.WithoutUsers {
		system.Contained, err = r.contained()
	}

	if err == nil && !r.WithoutUsers {
		err = r.readUsers(&system)
	}

	return system, err
}

// Brief gives address, ID, class and driver of all devices: what can be read without rights, and wakes no device that sleeps.
// None on a host without PCI.
func (r Reader) Brief() ([]Device, error) {
	addresses, err := list(r.Root + devicesFolder)
	if err != nil {
		return nil, fmt.Errorf("reading the PCI bus: %w", err)
	}

	var devices []Device

	for _, address := range addresses {
		device, err := r.readBrief(address)
		if err != nil {
			return nil, fmt.Errorf("reading PCI device %s: %w", address, err)
		}

		devices = append(devices, device)
	}

	return devices, nil
}

func (r Reader) readBrief(address string) (Device, error) {
	read := attributes{folder: filepath.Join(r.Root+devicesFolder, address)}
	hex := func(name string) string { return strings.TrimPrefix(read.text(name), "0x") }
	device := Device{Address: address, ID: hex("vendor") + ":" + hex("device"), Class: hex("class"), Driver: read.link("driver")}

	return device, read.err
}

// Lost tells whether a device does not answer any more. It wakes one that sleeps.
func (r Reader) Lost(address string) (bool, error) {
	file, err := os.Open(filepath.Join(r.Root+devicesFolder, address, "config"))
	if err != nil {
		return false, err
	}

	defer func() { _ = file.Close() }()

	header := make([]byte, len(nobody))

	_, err = io.ReadFull(file, header)
	if err != nil {
		return false, fmt.Errorf("reading its configuration space: %w", err)
	}

	return fellOff(header), nil
}

func (r Reader) readHost(system *System) error {
	var err error

	system.IOMMU, err = r.readIOMMU()
	if err != nil {
		return err
	}

	system.CPUVendor, err = r.CPUVendor()
	if err != nil {
		return err
	}

	drivers, err := list(r.Root + "/sys/bus/pci/drivers")
	if err != nil {
		return err
	}

	for _, driver := range drivers {
		if IsVFIO(driver) {
			system.Drivers = append(system.Drivers, driver)
		}
	}

	// The kernel's names of the groups that have a node; the node itself is devtmpfs's.
	groups, err := list(r.Root + "/sys/class/vfio")
	system.VFIOGroups = slices.DeleteFunc(groups, func(name string) bool { _, err := strconv.Atoi(name); return err != nil })

	// Root may write what its mode forbids, so only the file system can say no.
	denied := unix.Access(r.Root+"/sys/bus/pci/drivers_probe", unix.W_OK)
	system.ReadOnly = errors.Is(denied, unix.EROFS) || errors.Is(denied, unix.EACCES) || errors.Is(denied, unix.EPERM)

	return err
}

// IsVFIO tells whether a driver hands its devices to programs: vfio-pci and its variants for some cards, whose names end
// in it (Documentation/driver-api/vfio-pci-device-specific-driver-acceptance.rst).
func IsVFIO(driver string) bool {
	return strings.HasSuffix(strings.ReplaceAll(driver, "_", "-"), "vfio-pci")
}

func (r Reader) readIOMMU() (IOMMU, error) {
	var iommu IOMMU

	tables, err := list(r.Root + "/sys/firmware/acpi/tables")
	if err != nil {
		return iommu, err
	}

	for _, table := range []string{"DMAR", "IVRS", "IORT"} {
		if slices.Contains(tables, table) {
			iommu.Table = table
		}
	}

	iommu.Units, err = list(r.Root + "/sys/class/iommu")
	if err != nil {
		return iommu, err
	}

	groups, err := list(r.Root + "/sys/kernel/iommu_groups")
	iommu.Groups = len(groups)

	return iommu, err
}

// CPUVendor gives /proc/cpuinfo's vendor_id; empty where the kernel has none.
func (r Reader) CPUVendor() (string, error) {
	text, err := readText(r.Root + "/proc/cpuinfo")
	if err != nil {
		return "", err
	}

	for _, line := range strings.Split(text, "\n") {
		name, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) == "vendor_id" {
			return strings.TrimSpace(value), nil
		}
	}

	return "", nil
}

// list gives the names in a folder, in order; none when the kernel has no such folder.
func list(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}

	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}

	return names, err
}

// readText reads an attribute without its newline; empty when the kernel has no such file.
func readText(path string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}

	return strings.TrimSpace(string(text)), err
}

// linkName gives the last part of a link's target; empty when there is no link.
func linkName(path string) (string, error) {
	target, err := os.Readlink(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}

	return filepath.Base(target), err
}

// attributes reads several files of one device and keeps the first error.
type attributes struct {
	folder string
	err    error
}

func (a *attributes) text(name string) string {
	text, err := readText(filepath.Join(a.folder, name))
	a.keep(err)

	return text
}

func (a *attributes) link(name string) string {
	target, err := linkName(filepath.Join(a.folder, name))
	a.keep(err)

	return target
}

func (a *attributes) number(name string) int {
	text := a.text(name)
	if text == "" {
		return 0
	}

	number, err := strconv.Atoi(text)
	a.keep(err)

	return number
}

func (a *attributes) keep(err error) {
	if a.err == nil {
		a.err = err
	}
}

func (r Reader) readDevice(address string) (Device, error) {
	device, err := r.readBrief(address)
	if err != nil {
		return device, err
	}

	read := attributes{folder: filepath.Join(r.Root+devicesFolder, address)}
	device.Group, device.Override = read.link("iommu_group"), noneIsEmpty(read.text("driver_override"))
	device.BootVGA, device.Modalias = read.text("boot_vga") == "1", read.text("modalias")
	device.ResetMethods = strings.Fields(read.text("reset_method"))
	device.VFs, device.PhysFn = read.number("sriov_numvfs"), read.link("physfn")

	if read.err != nil {
		return device, read.err
	}

	if len(device.ID) != 9 || len(device.Class) != 6 {
		return device, fmt.Errorf("id %q and class %q are not what a kernel writes", device.ID, device.Class)
	}

	device.Path, err = r.devicePath(address)
	if err != nil {
		return device, err
	}

	device.Bridge, device.Lost, err = readHeader(filepath.Join(read.folder, "config"))
	if err != nil {
		return device, err
	}

	if device.Driver != "" {
		device.Module, err = r.moduleOf(device.Driver)
	}

	if err == nil && device.IsGPU() {
		err = r.readGPU(&device, read.folder)
	}

	return device, err
}

// devicePath gives the target of the device's link in the bus's folder, ../../../devices/pci0000:00/...
func (r Reader) devicePath(address string) (string, error) {
	target, err := os.Readlink(filepath.Join(r.Root+devicesFolder, address))
	if err != nil {
		return "", err
	}

	at := strings.Index(target, "/devices/")
	if at < 0 {
		return "", fmt.Errorf("its link %q is not one into /sys/devices", target)
	}

	return target[at:], nil
}

// noneIsEmpty: the kernel writes "(null)" for an attribute that was never set.
func noneIsEmpty(text string) string {
	if text == "(null)" {
		return ""
	}

	return text
}

// headerType is where the configuration space says it; without its top bit 0 is an end point. Where nobody answers, all of
// it reads as ones (PCI Local Bus Specification 3.0, 6.1).
const headerType = 0x0e

// nobody is how the configuration space begins where nobody answers: there is no vendor ffff.
var nobody = []byte{0xff, 0xff, 0xff, 0xff}

func fellOff(header []byte) bool { return bytes.HasPrefix(header, nobody) }

func readHeader(path string) (bridge, lost bool, err error) {
	file, err := os.Open(path)
	if err != nil {
		return false, false, err
	}

	defer func() { _ = file.Close() }()

	header := make([]byte, headerType+1)

	_, err = file.ReadAt(header, 0)
	if err != nil {
		return false, false, fmt.Errorf("reading the header type: %w", err)
	}

	lost = fellOff(header)

	return !lost && header[headerType]&0x7f != 0, lost, nil
}

// moduleOf gives the module of a driver; empty when it is part of the kernel: only what was loaded has a state.
func (r Reader) moduleOf(driver string) (string, error) {
	link := r.Root + "/sys/bus/pci/drivers/" + driver + "/module"

	_, err := os.Stat(link + "/initstate")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}

	if err != nil {
		return "", err
	}

	return linkName(link)
}

func (r Reader) readGPU(device *Device, folder string) error {
	var err error

	device.Connectors, err = activeConnectors(folder)
	if err != nil {
		return err
	}

	device.Mdevs, err = r.readMdevs(device.Address)

	return err
}

// activeConnectors gives the connectors below a device that have a screen and show something on it.
func activeConnectors(folder string) ([]string, error) {
	found, err := filepath.Glob(filepath.Join(folder, "drm/card*/card*-*"))
	if err != nil {
		return nil, err
	}

	var active []string

	for _, connector := range found {
		read := attributes{folder: connector}
		if read.text("status") == "connected" && read.text("enabled") == "enabled" {
			_, name, _ := strings.Cut(filepath.Base(connector), "-")
			active = append(active, name)
		}

		if read.err != nil {
			return nil, read.err
		}
	}

	return active, nil
}

// readMdevs gives the mediated devices whose parent a device is.
func (r Reader) readMdevs(address string) ([]string, error) {
	folder := r.Root + "/sys/bus/mdev/devices"

	names, err := list(folder)
	if err != nil {
		return nil, err
	}

	var found []string

	for _, name := range names {
		// A link into the parent's folder: ../../../devices/pci0000:00/.../0000:01:00.0/UUID
		target, err := os.Readlink(filepath.Join(folder, name))
		if err != nil {
			return nil, err
		}

		if filepath.Base(filepath.Dir(target)) == address {
			found = append(found, name)
		}
	}

	return found, nil
}

// Names under which a firmware's or boot loader's framebuffer is in /proc/iomem: sysfb, efifb, simplefb, vesafb.
var framebufferNames = []string{"BOOTFB", "efifb", "simplefb", "simple-framebuffer", "simpledrm", "vesafb"}

// span is a range of addresses, ends included.
type span struct{ start, end uint64 }

func (s span) overlaps(other span) bool { return s.start <= other.end && other.start <= s.end }

// readFramebuffers finds the devices in whose memory a framebuffer lies that no driver of the device made.
func (r Reader) readFramebuffers(system *System) error {
	text, err := readText(r.Root + "/proc/iomem")
	if err != nil {
		return err
	}

	for _, line := range strings.Split(text, "\n") {
		where, name, _ := strings.Cut(strings.TrimSpace(line), " : ")
		if !slices.Contains(framebufferNames, name) {
			continue
		}

		buffer, err := parseSpan(where)
		if err != nil {
			return fmt.Errorf("/proc/iomem: line %q: %w", line, err)
		}

		if buffer == (span{}) {
			return fmt.Errorf("/proc/iomem does not say where framebuffer %q is: this needs root", name)
		}

		err = r.markFramebuffer(system, buffer, name)
		if err != nil {
			return err
		}
	}

	return nil
}

func (r Reader) markFramebuffer(system *System, buffer span, name string) error {
	for i := range system.Devices {
		device := &system.Devices[i]
		if !device.IsGPU() {
			continue
		}

		bars, err := r.readBARs(device.Address)
		if err != nil {
			return err
		}

		if slices.ContainsFunc(bars, buffer.overlaps) {
			device.Framebuffer = name
		}
	}

	return nil
}

func parseSpan(text string) (span, error) {
	from, to, _ := strings.Cut(text, "-")

	start, err := strconv.ParseUint(from, 16, 64)
	end, errEnd := strconv.ParseUint(to, 16, 64)

	return span{start, end}, errors.Join(err, errEnd)
}

// ioResourceMem is IORESOURCE_MEM of include/linux/ioport.h.
const ioResourceMem = 0x200

// readBARs gives the memory that a device's registers ask for: lines of start, end and flags.
func (r Reader) readBARs(address string) ([]span, error) {
	text, err := readText(filepath.Join(r.Root+devicesFolder, address, "resource"))
	if err != nil {
		return nil, err
	}

	var bars []span

	for _, line := range strings.Split(text, "\n") {
		var bar span

		var flags uint64

		if line == "" {
			continue
		}

		_, err := fmt.Sscanf(line, "%v %v %v", &bar.start, &bar.end, &flags)
		if err != nil {
			return nil, fmt.Errorf("resources of PCI device %q: line %q: %w", address, line, err)
		}

		if flags&ioResourceMem != 0 && bar.end > bar.start {
			bars = append(bars, bar)
		}
	}

	return bars, nil
}

// gone tells that a process or its file is over.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}
