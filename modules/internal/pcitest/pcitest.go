// SPDX-License-Identifier: Apache-2.0

// Package pcitest makes trees of sysfs and /proc for tests, with a kernel behind them that does what Linux does when a
// driver is unbound or a function is probed. What real kernels do is tested in tests/vm.
package pcitest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Function is one function of a made-up PCI device.
type Function struct {
	Address, ID, Class string
	Group              string // empty: in none
	Bridge             bool
	BootVGA            bool
	Driver             string            // the host's driver, which takes it by itself; empty: there is none for it
	Module             string            // of the driver; empty: it is part of the kernel
	Files              map[string]string // further files below its folder
}

// Kernel is the tree and what is behind it.
type Kernel struct {
	Root   string
	Writes []string // each as file=text, in order
	// FailAt is which write fails, counted from 1; 0: none.
	FailAt int
	// Deaf are drivers that take nothing.
	Deaf []string

	functions map[string]Function
}

// ErrInjected is what a failing write gives.
var ErrInjected = errors.New("injected failure")

// New makes a tree with an IOMMU of Intel's, switched on.
func New(t testing.TB, functions ...Function) *Kernel {
	t.Helper()

	kernel := &Kernel{Root: t.TempDir(), functions: map[string]Function{}}
	kernel.Put(t, "/sys/bus/pci/drivers_probe", "")
	kernel.Put(t, "/sys/bus/pci/drivers/vfio-pci/unbind", "")
	kernel.Put(t, "/sys/firmware/acpi/tables/DMAR", "")
	kernel.Put(t, "/sys/class/iommu/dmar0/x", "")
	kernel.Put(t, "/proc/cpuinfo", "processor\t: 0\nvendor_id\t: GenuineIntel\n")
	kernel.Started(t, time.Unix(0, 0))
	kernel.Put(t, "/proc/iomem", "00000000-00000fff : Reserved\n")

	for _, function := range functions {
		kernel.add(t, function)
	}

	return kernel
}

// Put writes a file of the tree. With the uevent of a device that has a number goes its file dev.
func (k *Kernel) Put(t testing.TB, path, content string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(k.Root+path), 0o755))
	require.NoError(t, os.WriteFile(k.Root+path, []byte(content), 0o644))

	if filepath.Base(path) == "uevent" && strings.HasPrefix(content, "MAJOR=") {
		k.Put(t, filepath.Dir(path)+"/dev", "")
	}
}

// Started says when the kernel was started: at first, before all files.
func (k *Kernel) Started(t testing.TB, at time.Time) {
	t.Helper()
	k.Put(t, "/proc/stat", fmt.Sprintf("cpu  1 2\nbtime %d\n", at.Unix()))
}

// Link makes a symbolic link in the tree.
func (k *Kernel) Link(t testing.TB, path, target string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(k.Root+path), 0o755))
	require.NoError(t, os.Symlink(target, k.Root+path))
}

// Open gives a process with an open file.
func (k *Kernel) Open(t testing.TB, pid int, command, path string) {
	t.Helper()
	k.Put(t, fmt.Sprintf("/proc/%d/cmdline", pid), command+"\x00--secret\x00")
	k.Link(t, fmt.Sprintf("/proc/%d/exe", pid), "/usr/bin/"+command)
	k.Link(t, fmt.Sprintf("/proc/%d/fd/3", pid), path)
}

func (k *Kernel) add(t testing.TB, function Function) {
	t.Helper()

	k.functions[function.Address] = function
	folder := "/sys/devices/pci0000:00/" + function.Address
	vendor, device, _ := strings.Cut(function.ID, ":")
	header := make([]byte, 64)

	if function.Bridge {
		header[0x0e] = 1
	}

	files := map[string]string{
		"vendor": "0x" + vendor + "\n", "device": "0x" + device + "\n", "class": "0x" + function.Class + "\n", "config": string(header),
		"driver_override": "(null)\n", "modalias": "pci:v0000" + strings.ToUpper(vendor) + "d0000" + strings.ToUpper(device) + "sv0sd0bc03sc00i00\n",
		"resource": "0x00000000f0000000 0x00000000f0ffffff 0x0000000000040200\n", "uevent": "PCI_CLASS=" + function.Class + "\n", "reset_method": "bus\n",
	}

	if function.BootVGA {
		files["boot_vga"] = "1\n"
	}

	for name, content := range function.Files {
		files[name] = content
	}

	for name, content := range files {
		k.Put(t, folder+"/"+name, content)
	}

	k.Link(t, "/sys/bus/pci/devices/"+function.Address, "../../../devices/pci0000:00/"+function.Address)

	if function.Group != "" {
		k.Link(t, folder+"/iommu_group", "../../../kernel/iommu_groups/"+function.Group)
		require.NoError(t, os.MkdirAll(k.Root+"/sys/kernel/iommu_groups/"+function.Group, 0o755))
	}

	if function.Driver != "" {
		k.addDriver(t, function)
		require.NoError(t, k.bind(function.Address, function.Driver))
	}
}

func (k *Kernel) addDriver(t testing.TB, function Function) {
	t.Helper()

	folder := "/sys/bus/pci/drivers/" + function.Driver
	if _, err := os.Stat(k.Root + folder); err == nil {
		return
	}

	k.Put(t, folder+"/unbind", "")

	if function.Module != "" {
		k.Put(t, "/sys/module/"+function.Module+"/initstate", "live\n")
		k.Link(t, folder+"/module", "../../../../module/"+function.Module)
	}
}

func (k *Kernel) folder(address string) string {
	return k.Root + "/sys/devices/pci0000:00/" + address
}

func (k *Kernel) bind(address, driver string) error {
	return os.Symlink("../../../bus/pci/drivers/"+driver, k.folder(address)+"/driver")
}

// Driver gives the driver that a function has.
func (k *Kernel) Driver(address string) string {
	target, err := os.Readlink(k.folder(address) + "/driver")
	if err != nil {
		return ""
	}

	return filepath.Base(target)
}

// Override gives a function's driver_override.
func (k *Kernel) Override(address string) string {
	text, _ := os.ReadFile(k.folder(address) + "/driver_override")

	return strings.TrimSpace(strings.ReplaceAll(string(text), "(null)", ""))
}

// Drivers gives driver and override of every function.
func (k *Kernel) Drivers() map[string]string {
	all := map[string]string{}
	for address := range k.functions {
		all[address] = k.Driver(address) + " " + k.Override(address)
	}

	return all
}

// Write is what the kernel makes of a write to its files.
func (k *Kernel) Write(path, text string) error {
	short := strings.TrimPrefix(strings.TrimPrefix(path, k.Root), "/sys/bus/pci/")
	k.Writes = append(k.Writes, short+"="+strings.TrimSpace(text))

	if len(k.Writes) == k.FailAt {
		return ErrInjected
	}

	address := strings.TrimSpace(text)

	switch {
	case strings.HasSuffix(short, "/driver_override"):
		if address == "" {
			text = "(null)\n"
		}

		return os.WriteFile(path, []byte(text), 0o644)
	case strings.HasSuffix(short, "/driver/unbind"):
		if k.Driver(address) == "" {
			return os.ErrNotExist
		}

		return errors.Join(os.Remove(k.folder(address)+"/driver"), k.vfioNodes())
	case short == "drivers_probe":
		return errors.Join(k.probe(address), k.vfioNodes())
	}

	return fmt.Errorf("the kernel has no file %q to write to", path)
}

// probe succeeds also when nothing takes the function.
func (k *Kernel) probe(address string) error {
	driver := k.Override(address)
	if driver == "" {
		driver = k.functions[address].Driver
	}

	if driver == "" || slices.Contains(k.Deaf, driver) {
		return nil
	}

	return k.bind(address, driver)
}

// vfioNodes makes the nodes of the groups that have a function with VFIO.
func (k *Kernel) vfioNodes() error {
	err := os.RemoveAll(k.Root + "/sys/class/vfio")

	for address, function := range k.functions {
		if strings.HasSuffix(k.Driver(address), "vfio-pci") {
			err = errors.Join(err, os.MkdirAll(k.Root+"/sys/class/vfio/"+function.Group, 0o755))
		}
	}

	return err
}

// Card gives the three functions of a graphics card with NVIDIA's ids, each with its driver.
func Card(slot, group string) []Function {
	return []Function{
		{Address: slot + ".0", ID: "10de:2684", Class: "030000", Group: group, Driver: "nouveau", Module: "nouveau"},
		{Address: slot + ".1", ID: "10de:22ba", Class: "040300", Group: group, Driver: "snd_hda_intel", Module: "snd_hda_intel"},
		{Address: slot + ".2", ID: "10de:1ad6", Class: "0c0330", Group: group, Driver: "xhci_hcd", Module: "xhci_pci"},
	}
}

// TwoCards is a host with a display of its own and two identical cards.
func TwoCards(t testing.TB) *Kernel {
	t.Helper()

	functions := []Function{
		{Address: "0000:00:02.0", ID: "8086:4680", Class: "030000", Group: "1", BootVGA: true, Driver: "i915", Module: "i915"},
		{Address: "0000:00:04.0", ID: "8086:a000", Class: "060400", Group: "2", Bridge: true, Driver: "pcieport"},
	}
	functions = append(functions, Card("0000:01:00", "6")...)
	functions = append(functions, Card("0000:02:00", "7")...)

	return New(t, append(functions,
		Function{Address: "0000:03:00.0", ID: "8086:100e", Class: "020000", Group: "8", Driver: "e1000", Module: "e1000"})...)
}
