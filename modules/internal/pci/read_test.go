// SPDX-License-Identifier: Apache-2.0

package pci_test

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/pci"
	"github.com/thinkube/infra/modules/internal/pcitest"
)

func TestAddresses(t *testing.T) {
	for text, want := range map[string]string{
		"01:00.0": "0000:01:00.0", "0000:01:00.0": "0000:01:00.0", "0000:0A:1f.7": "0000:0a:1f.7", "10000:e1:00.0": "10000:e1:00.0", " c1:00.1 ": "0000:c1:00.1",
	} {
		got, err := pci.ParseAddress(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got)
	}

	for _, text := range []string{"", "1:00.0", "01:00", "01:20.0", "01:00.8", "01:00.0.0", "0000:0000:01:00.0", "gg:00.0", "000:01:00.0", "nvidia"} {
		_, err := pci.ParseAddress(text)
		assert.ErrorContains(t, err, "must be dddd:bb:dd.f", text)
	}

	for _, number := range []string{"60.0", "660", "660.5"} {
		_, err := pci.ParseAddress(number)
		assert.ErrorContains(t, err, "base 60", number)
	}

	assert.Equal(t, "0000:11:00.0", pci.MisreadDecimal("0000:17:00.0"))
	assert.Empty(t, pci.MisreadDecimal("0000:1f:00.0"))
	assert.Negative(t, pci.Compare("ffff:01:00.0", "10000:01:00.0"))
}

func FuzzParseAddress(f *testing.F) {
	f.Add("01:00.0")
	f.Fuzz(func(t *testing.T, text string) {
		address, err := pci.ParseAddress(text)
		if err != nil {
			return
		}

		again, err := pci.ParseAddress(address)
		if err != nil || again != address {
			t.Fatalf("%q gives %q, which gives %q, %v", text, address, again, err)
		}
	})
}

func read(t *testing.T, kernel *pcitest.Kernel) pci.System {
	t.Helper()

	system, err := pci.Reader{Root: kernel.Root}.Read()
	require.NoError(t, err)

	return system
}

func TestReadGivesWhatSysfsSays(t *testing.T) {
	kernel := pcitest.TwoCards(t)
	system := read(t, kernel)

	assert.Equal(t, pci.IOMMU{Table: "DMAR", Units: []string{"dmar0"}, Groups: 5}, system.IOMMU)
	assert.Equal(t, "GenuineIntel", system.CPUVendor)
	assert.Equal(t, []string{"vfio-pci"}, system.Drivers)
	assert.Equal(t, []string{"0000:00:02.0", "0000:01:00.0", "0000:02:00.0"}, system.GPUs(), "no audio function is a GPU")
	assert.Equal(t, []string{"0000:02:00.0", "0000:02:00.1", "0000:02:00.2"}, system.Functions("0000:02:00"))
	assert.True(t, system.Device("0000:00:04.0").Bridge)
	assert.True(t, system.Device("0000:00:02.0").BootVGA)

	card := system.Device("0000:02:00.2")
	assert.Equal(t, "/devices/pci0000:00/0000:02:00.2", card.Path)
	assert.Equal(t, "10de:1ad6", card.ID)
	assert.Equal(t, "0c0330", card.Class)
	assert.Equal(t, "7", card.Group)
	assert.Equal(t, "xhci_hcd", card.Driver)
	assert.Equal(t, "xhci_pci", card.Module)
	assert.Equal(t, []string{"bus"}, card.ResetMethods)
	assert.Empty(t, card.Override, `"(null)" is none`)
	assert.Empty(t, system.Device("0000:00:04.0").Module, "pcieport is part of the kernel")
}

func TestReadFindsWhatHoldsADisplay(t *testing.T) {
	kernel := pcitest.New(t, pcitest.Function{
		Address: "0000:01:00.0", ID: "10de:2684", Class: "030000", Group: "1",
		Files: map[string]string{
			"resource":                         "0x00000000d0000000 0x00000000dfffffff 0x0000000000140204\n0x0000000000000000 0x0000000000000000 0x0000000000000000\n",
			"drm/card0/card0-HDMI-A-1/status":  "connected\n",
			"drm/card0/card0-HDMI-A-1/enabled": "enabled\n",
			"drm/card0/card0-DP-1/status":      "connected\n",
			"drm/card0/card0-DP-1/enabled":     "disabled\n",
		},
	})
	kernel.Put(t, "/proc/iomem", "d0000000-dfffffff : 0000:01:00.0\n  d0000000-d02fffff : BOOTFB\n")

	card := read(t, kernel).Device("0000:01:00.0")
	assert.Equal(t, "BOOTFB", card.Framebuffer)
	assert.Equal(t, []string{"HDMI-A-1"}, card.Connectors, "a cable alone shows nothing")

	kernel.Put(t, "/proc/iomem", "00000000-00000000 : BOOTFB\n")

	_, err := pci.Reader{Root: kernel.Root}.Read()
	require.ErrorContains(t, err, "needs root")
}

func TestReadFindsWhoUsesACard(t *testing.T) {
	card := pcitest.Card("0000:01:00", "6")
	card[0].Files = map[string]string{"drm/card1/uevent": "MAJOR=226\nMINOR=1\nDEVNAME=dri/card1\n"}
	card[1].Files = map[string]string{"sound/card0/controlC0/uevent": "MAJOR=116\nMINOR=2\nDEVNAME=snd/controlC0\n"}
	kernel := pcitest.New(t, card...)
	kernel.Put(t, "/proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA\nDevice Minor: \t 0\n")

	kernel.Open(t, 41, "/usr/bin/Xorg", "/dev/dri/card1")
	kernel.Open(t, 42, "pipewire", "/dev/snd/controlC0")
	kernel.Open(t, 43, "cuda", "/dev/nvidia0")
	kernel.Open(t, 44, "cat", "/home/card1") // a file of that name is none of it

	system := read(t, kernel)
	assert.Equal(t, []pci.User{{41, "/usr/bin/Xorg", "/dev/dri/card1"}, {43, "cuda", "/dev/nvidia0"}}, system.Device("0000:01:00.0").Users)
	assert.Equal(t, []pci.User{{42, "pipewire", "/dev/snd/controlC0"}}, system.Device("0000:01:00.1").Users)
}

// TestReadFindsANodeThatIsElsewhere by its number: /dev/null is the card's here. And one that was mapped and closed again.
func TestReadFindsANodeThatIsElsewhere(t *testing.T) {
	kernel := pcitest.TwoCards(t)
	kernel.Put(t, "/sys/devices/pci0000:00/0000:01:00.0/drm/card1/uevent", "MAJOR=1\nMINOR=3\nDEVNAME=dri/card1\n")
	kernel.Open(t, 41, "container", "/dev/null")
	kernel.Open(t, 42, "another", "/dev/zero")
	kernel.Put(t, "/proc/43/cmdline", "mapped\x00")
	kernel.Put(t, "/proc/43/maps", "7f0000000000-7f0000001000 rw-s 00000000 00:06 123                        /dev/dri/card1\n7f00-7f01 r--p 0 0:6 1 /dev/dri/card10\n")
	require.NoError(t, os.MkdirAll(kernel.Root+"/proc/43/fd", 0o755))
	kernel.Link(t, "/proc/43/exe", "/usr/bin/mapped")

	assert.Equal(t, []pci.User{{PID: 41, Command: "container", Node: "/dev/dri/card1"}, {PID: 43, Command: "mapped", Node: "/dev/dri/card1"}},
		read(t, kernel).Device("0000:01:00.0").Users)
}

func TestReadTellsAContainerWithProcessesOfItsOwn(t *testing.T) {
	for namespace, contained := range map[string]bool{"": false, "pid:[4026531836]": false, "pid:[4026532281]": true} {
		kernel := pcitest.TwoCards(t)
		if namespace != "" {
			kernel.Link(t, "/proc/self/ns/pid", namespace)
		}

		assert.Equal(t, contained, read(t, kernel).Contained, namespace)
	}
}

func TestReadFindsWhatTheKernelUsesWithoutAProcess(t *testing.T) {
	card := pcitest.Card("0000:01:00", "6")
	card[0].Driver = "nvidia"
	card[0].Files = map[string]string{"drm/card1/uevent": "MAJOR=226\nMINOR=1\nDEVNAME=dri/card1\n"}
	usb := "usb3/3-1/3-1:1.0/"
	card[2].Files = map[string]string{
		usb + "uevent":                            "INTERFACE=8/6/80\n",
		usb + "host4/block/sdb/uevent":            "MAJOR=8\nMINOR=16\nDEVNAME=sdb\nDEVTYPE=disk\n",
		usb + "host4/block/sdb/sdb1/uevent":       "MAJOR=8\nMINOR=17\nDEVNAME=sdb1\n",
		usb + "host4/block/sdb/sdb2/uevent":       "MAJOR=8\nMINOR=18\nDEVNAME=sdb2\n",
		usb + "host4/block/sdb/sdb3/uevent":       "MAJOR=8\nMINOR=19\nDEVNAME=sdb3\n",
		usb + "host4/block/sdb/sdb4/uevent":       "MAJOR=8\nMINOR=20\nDEVNAME=sdb4\n",
		usb + "host4/block/sdb/sdb3/holders/dm-0": "",
		usb + "net/eth1/uevent":                   "INTERFACE=eth1\nIFINDEX=4\n",
		usb + "net/eth1/flags":                    "0x1003\n",
		usb + "net/eth1/operstate":                "up\n",
		usb + "net/eth2/uevent":                   "INTERFACE=eth2\nIFINDEX=5\n",
		usb + "net/eth2/flags":                    "0x1002\n",
		usb + "net/eth2/operstate":                "down\n",
	}
	kernel := pcitest.New(t, card...)
	kernel.Put(t, "/proc/1/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
	kernel.Put(t, "/proc/77/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 8:17 / /backup rw shared:1 - ext4 /dev/sdb1 rw\n31 22 0:44 / /data rw - btrfs /dev/sdb4 rw\n")
	kernel.Put(t, "/proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/dev/sdb2  partition 1 0 -2\n")
	kernel.Put(t, "/sys/module/nvidia_drm/parameters/modeset", "Y\n")

	system := read(t, kernel)
	assert.ElementsMatch(t, []string{
		"/dev/sdb1 is mounted on /backup", "/dev/sdb2 is swap space", "/dev/sdb3 is part of /dev/dm-0", "/dev/sdb4 is mounted on /data", "network interface eth1 is up",
	}, system.Device("0000:01:00.2").Uses)
	assert.True(t, system.Device("0000:01:00.0").Modeset)

	kernel.Put(t, "/sys/module/nvidia_drm/parameters/modeset", "N\n")
	assert.False(t, read(t, kernel).Device("0000:01:00.0").Modeset)
}

func TestReadFindsWhoUsesAGroup(t *testing.T) {
	kernel := pcitest.New(t, pcitest.Function{Address: "0000:01:00.0", ID: "10de:2684", Class: "030000", Group: "7", Driver: "vfio-pci", Module: "vfio_pci"})
	kernel.Open(t, 50, "qemu-system-x86_64", "/dev/vfio/7")

	assert.Equal(t, []pci.User{{50, "qemu-system-x86_64", "/dev/vfio/7"}}, read(t, kernel).Device("0000:01:00.0").Users)
}

func TestWhatDoesNotAnswerIsNoBridge(t *testing.T) {
	kernel := pcitest.New(t, pcitest.Card("0000:01:00", "6")...)
	kernel.Put(t, "/sys/devices/pci0000:00/0000:01:00.0/config", strings.Repeat("\xff", 64))

	system := read(t, kernel)
	assert.True(t, system.Device("0000:01:00.0").Lost)
	assert.False(t, system.Device("0000:01:00.0").Bridge)
	assert.Equal(t, []string{"0000:01:00.0"}, system.GPUs(), "it is a GPU all the same")
	assert.False(t, system.Device("0000:01:00.1").Lost)
}

func TestReadFindsVirtualFunctionsAndMediatedDevices(t *testing.T) {
	kernel := pcitest.New(t,
		pcitest.Function{Address: "0000:01:00.0", ID: "10de:2684", Class: "030000", Group: "7", Files: map[string]string{"sriov_numvfs": "4\n"}},
		pcitest.Function{Address: "0000:02:00.0", ID: "10de:2684", Class: "030000", Group: "8"},
	)
	kernel.Link(t, "/sys/bus/mdev/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", "../../../devices/pci0000:00/0000:02:00.0/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001")

	system := read(t, kernel)
	assert.Equal(t, 4, system.Device("0000:01:00.0").VFs)
	assert.Equal(t, []string{"83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"}, system.Device("0000:02:00.0").Mdevs)
	assert.Empty(t, system.Device("0000:01:00.0").Mdevs)
}

func TestReadDoesNotTakeWhatItCannotReadForNothing(t *testing.T) {
	_, err := pci.Reader{Root: t.TempDir()}.Read()
	require.ErrorContains(t, err, "reading PCI devices")

	kernel := pcitest.New(t, pcitest.Function{Address: "0000:01:00.0", ID: "10de:2684", Class: "030000", Files: map[string]string{"config": "short"}})
	_, err = pci.Reader{Root: kernel.Root}.Read()
	require.ErrorContains(t, err, "header type")

	kernel = pcitest.New(t, pcitest.Function{Address: "0000:01:00.0", ID: "10de:2684", Class: "030000", Files: map[string]string{"sriov_numvfs": "many"}})
	_, err = pci.Reader{Root: kernel.Root}.Read()
	require.ErrorContains(t, err, "many")
}

func TestWhatPeopleCallAGraphicsCard(t *testing.T) {
	system := pci.System{Devices: []pci.Device{
		{Address: "0000:00:02.0", ID: "8086:4680", Class: "030000"}, // in the processor
		{Address: "0000:00:0b.0", ID: "8086:7d1d", Class: "120000"}, // its neural unit
		{Address: "0000:01:00.0", ID: "10de:2684", Class: "030000"},
		{Address: "0000:02:00.0", ID: "10de:2330", Class: "030200"},
		{Address: "0000:03:00.0", ID: "1002:74a1", Class: "120000"}, // an accelerator without display
		{Address: "0000:04:00.0", ID: "1a03:2000", Class: "030000"}, // of a management controller
		{Address: "0000:05:00.0", ID: "8086:56a0", Class: "030000"},
		{Address: "0000:0c:00.0", ID: "1002:1638", Class: "030000"}, // in the processor, with what follows
		{Address: "0000:0c:00.2", ID: "1022:15df", Class: "108000"},
		{Address: "0000:0d:00.1", ID: "1022:1502", Class: "118000"},
	}}

	var cards []string

	for _, device := range system.Devices {
		if system.IsCard(device.Address) {
			cards = append(cards, device.Address)
		}
	}

	assert.Equal(t, []string{"0000:01:00.0", "0000:02:00.0", "0000:03:00.0", "0000:05:00.0"}, cards)
	assert.False(t, system.IsCard("0000:09:00.0"))
}
