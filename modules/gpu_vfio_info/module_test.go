// SPDX-License-Identifier: Apache-2.0

package gpuvfioinfo

import (
	"context"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/pcitest"
	"github.com/thinkube/infra/modules/internal/vfio"
)

func values(t *testing.T, kernel *pcitest.Kernel, args Args) Values {
	t.Helper()

	state, err := (&host{root: kernel.Root, args: args}).Read(context.Background())
	require.NoError(t, err)

	return makeValues(args, state)
}

func summaries(all Values) []string {
	var texts []string
	for _, gpu := range all.GPUs {
		texts = append(texts, gpu.Summary)
	}

	return texts
}

func TestGPUsAreToldInWords(t *testing.T) {
	kernel := pcitest.TwoCards(t)
	all := values(t, kernel, Args{})

	assert.Equal(t, []string{
		"0000:00:02.0 (GPU 8086:4680, driver i915) cannot be reserved: 0000:00:02.0 is the display that the host started with (boot_vga)",
		"0000:01:00.0 (GPU 10de:2684, driver nouveau) can be reserved; it has 3 functions",
		"0000:02:00.0 (GPU 10de:2684, driver nouveau) can be reserved; it has 3 functions",
	}, summaries(all))
	assert.Equal(t, IOMMU{Enabled: true, Table: "DMAR", Units: []string{"dmar0"}, Groups: 5, CPUVendor: "GenuineIntel"}, all.IOMMU)
	assert.Equal(t, "boot_display", all.GPUs[0].Reasons[0].Code)
	assert.True(t, all.GPUs[0].ShowsHost)
	assert.Len(t, all.GPUs[1].Functions, 3)

	one := values(t, kernel, Args{Devices: []string{"0000:02:00.0"}})
	assert.Len(t, one.GPUs, 1)
}

func TestReservedAndDriftedCards(t *testing.T) {
	card := pcitest.Card("0000:01:00", "6")
	for i := range card {
		card[i].Driver, card[i].Module = "vfio-pci", "vfio_pci"
	}

	assert.Equal(t, []string{"0000:01:00.0 (GPU 10de:2684, driver vfio-pci) is reserved, with all that belongs to it"}, summaries(values(t, pcitest.New(t, card...), Args{})))

	card[1].Driver, card[1].Module = "snd_hda_intel", "snd_hda_intel"
	all := values(t, pcitest.New(t, card...), Args{})
	assert.False(t, all.GPUs[0].Reserved)
	assert.False(t, all.GPUs[0].Viable)
	assert.True(t, all.GPUs[0].Eligible, "it can be reserved again")
}

// TestUsersAreToldFromWhatADriverHolds: a restart ends the ones, and takes nothing from anybody with the others.
func TestUsersAreToldFromWhatADriverHolds(t *testing.T) {
	card := pcitest.Card("0000:01:00", "6")
	card[0].Driver, card[0].Module = "nvidia", "nvidia"
	card[1].Files = map[string]string{"sound/card0/controlC0/uevent": "MAJOR=116\nMINOR=2\nDEVNAME=snd/controlC0\n"}
	kernel := pcitest.New(t, card...)

	one := values(t, kernel, Args{}).GPUs[0]
	assert.Empty(t, one.Users)
	assert.Equal(t, []string{"whether NVIDIA's persistence mode holds 0000:01:00.0 cannot be told: there is no nvidia-smi to ask"}, one.Held)
	assert.Equal(t, "held_by_driver", one.Reasons[0].Code)

	kernel.Open(t, 42, "pipewire", "/dev/snd/controlC0")

	one = values(t, kernel, Args{}).GPUs[0]
	assert.Equal(t, []string{"process 42 (pipewire) has /dev/snd/controlC0 open"}, one.Users)
}

func TestIOMMUOff(t *testing.T) {
	card := pcitest.Card("0000:01:00", "")
	all := values(t, pcitest.New(t, card...), Args{})

	assert.False(t, all.IOMMU.Enabled)
	assert.Contains(t, all.IOMMU.Reason, "off in the kernel")
	assert.Equal(t, "iommu_off_kernel", all.GPUs[0].Reasons[0].Code)
}

func TestNVSwitchesAreToldApart(t *testing.T) {
	all := values(t, pcitest.New(t,
		pcitest.Function{Address: "0000:05:00.0", ID: "10de:22a3", Class: "068000", Group: "9"},
		pcitest.Function{Address: "0000:06:00.0", ID: "10de:22a3", Class: "068000", Group: "10", Bridge: true},
		pcitest.Function{Address: "0000:07:00.0", ID: "10de:2330", Class: "030200", Group: "11"},
	), Args{})

	assert.Equal(t, []string{"0000:05:00.0"}, all.NVSwitches)
	assert.Len(t, all.GPUs, 1)
}

func codesOf(gpu GPU) []string {
	var all []string
	for _, reason := range gpu.Reasons {
		all = append(all, reason.Code)
	}

	return all
}

// TestWhatGpuVfioRefusesIsNotEligible: for what the host has beside the card.
func TestWhatGpuVfioRefusesIsNotEligible(t *testing.T) {
	kernel := pcitest.New(t, pcitest.Card("0000:01:00", "6")...)
	assert.True(t, values(t, kernel, Args{}).GPUs[0].Eligible)

	kernel.Put(t, "/etc/systemd/system/display-manager.service", "")

	release, err := vfio.Release()
	require.NoError(t, err)
	kernel.Put(t, "/lib/modules/"+release+"/modules.dep", "kernel/drivers/gpu/drm/nouveau/nouveau.ko:\n")

	only := values(t, kernel, Args{}).GPUs[0]
	assert.Equal(t, []string{"last_display"}, codesOf(only), "vfio-pci is loaded")
	assert.Contains(t, only.Summary, "no GPU would be left for it")

	require.NoError(t, os.RemoveAll(kernel.Root+"/sys/bus/pci/drivers/vfio-pci"))

	only = values(t, kernel, Args{}).GPUs[0]
	assert.Equal(t, []string{"no_driver", "last_display"}, codesOf(only))
	assert.False(t, only.Eligible)

	contained := pcitest.New(t, pcitest.Card("0000:01:00", "6")...)
	contained.Link(t, "/proc/self/ns/pid", "pid:[4026532281]")
	assert.Equal(t, []string{"contained"}, codesOf(values(t, contained, Args{}).GPUs[0]), "who uses it cannot be seen")

	two := pcitest.TwoCards(t)
	two.Put(t, "/etc/systemd/system/display-manager.service", "")
	assert.Empty(t, codesOf(values(t, two, Args{}).GPUs[1]), "the processor's own is left")
}

func TestAnAddressThatIsNoGPUIsAnError(t *testing.T) {
	kernel := pcitest.TwoCards(t)

	for address, code := range map[string]ansible.Code{"0000:09:00.0": "not_found", "0000:03:00.0": "not_gpu", "0000:02:00.1": "not_gpu"} {
		_, err := (&host{root: kernel.Root, args: Args{Devices: []string{address}}}).Read(context.Background())

		var failure *ansible.Failure

		require.ErrorAs(t, err, &failure, address)
		assert.Equal(t, code, failure.Code)
	}
}
