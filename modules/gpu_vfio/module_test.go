// SPDX-License-Identifier: Apache-2.0

package gpuvfio

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/pcitest"
	"github.com/thinkube/infra/modules/internal/vfio"
)

// bench is the module on a made-up kernel, and a folder for the files.
type bench struct {
	kernel *pcitest.Kernel
	files  string
	// failAt is which write fails, counted from 1 in each run, of files, records, images and the kernel's: once, and it is 0 then.
	failAt, wrote int
	// meanwhile is what others do while files are written.
	meanwhile func()
}

func newBench(t *testing.T) *bench {
	t.Helper()

	b := &bench{kernel: pcitest.TwoCards(t), files: t.TempDir()}
	require.NoError(t, os.MkdirAll(b.files+"/etc/udev/rules.d", 0o755))
	require.NoError(t, os.MkdirAll(b.files+"/var/lib", 0o755))

	return b
}

// write counts a write, and has it fail if it is its turn.
func (b *bench) write(string) error {
	b.wrote++

	if b.meanwhile != nil {
		b.meanwhile()
	}

	if b.wrote == b.failAt {
		b.failAt = 0

		return errors.New("injected failure")
	}

	return nil
}

// run runs the module as a task of Ansible's does.
func (b *bench) run(t *testing.T, args map[string]any) map[string]any {
	t.Helper()

	module := Module
	module.Lock = ""
	module.Open = func(_ context.Context, task *ansible.Task, args Args) (ansible.Host[State], error) {
		return &host{
			task: task, args: args, root: b.files,
			bus: vfio.Bus{Root: b.kernel.Root, BindLimit: 50 * time.Millisecond, Write: func(path, text string) error {
				err := b.write(path)
				if err != nil {
					return err
				}

				return b.kernel.Write(path, text)
			}},
			fault: b.write, tool: b.makeImage,
		}, nil
	}

	text, err := json.Marshal(args)
	require.NoError(t, err)

	path := filepath.Join(t.TempDir(), "args")
	require.NoError(t, os.WriteFile(path, text, 0o600))

	var out, errOut bytes.Buffer

	b.wrote = 0

	ansible.Standalone(module, []string{"gpu_vfio", path}, &out, &errOut)

	var result map[string]any

	require.NoError(t, json.Unmarshal(out.Bytes(), &result), "%s%s", out.String(), errOut.String())

	return result
}

func (b *bench) reserve(t *testing.T) map[string]any {
	t.Helper()

	return b.run(t, map[string]any{"devices": []string{"02:00.0"}, "stage": "udev"})
}

// everything is all that the module could change.
func (b *bench) everything(t *testing.T) map[string]string {
	t.Helper()

	all := b.kernel.Drivers()

	require.NoError(t, filepath.WalkDir(b.files, func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			all[strings.TrimPrefix(path, b.files)+"/"] = "folder"
		} else if err == nil {
			text, _ := os.ReadFile(path)
			all[strings.TrimPrefix(path, b.files)] = string(text)
		}

		return err
	}))

	return all
}

func TestReserveTwiceAndGiveBack(t *testing.T) {
	b := newBench(t)
	before := b.everything(t)

	result := b.run(t, map[string]any{"devices": []string{"02:00.0"}, "stage": "udev", "_ansible_check_mode": true})
	assert.Equal(t, true, result["changed"])
	assert.Equal(t, before, b.everything(t), "check mode changes nothing")
	assert.Empty(t, b.kernel.Writes)

	predicted := result["devices"]
	result = b.reserve(t)
	require.NotContains(t, result, "failed", "%v", result)
	assert.Equal(t, true, result["changed"])
	assert.Equal(t, predicted, result["devices"], "as check mode said")
	assert.Equal(t, false, result["reboot_required"])
	assert.Len(t, result["devices"], 3)

	for _, function := range []string{"0", "1", "2"} {
		assert.Equal(t, "vfio-pci", b.kernel.Driver("0000:02:00."+function))
		assert.NotEqual(t, "vfio-pci", b.kernel.Driver("0000:01:00."+function), "the twin is left alone")
	}

	assert.Equal(t, false, b.reserve(t)["changed"])

	result = b.run(t, map[string]any{"state": "absent"})
	assert.Equal(t, true, result["changed"], "%v", result)
	assert.Equal(t, before, b.everything(t))
	assert.Equal(t, false, b.run(t, map[string]any{"state": "absent"})["changed"])
	assert.NoDirExists(t, b.files+"/var/lib/thinkube")
}

// TestADriverThatIsNotThereIsRefusedBeforeAnythingIsWritten: the next start would leave the card with no driver at all.
func TestADriverThatIsNotThereIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	release, err := vfio.Release()
	require.NoError(t, err)

	modules := func(b *bench, release, listed string) {
		folder := b.files + "/lib/modules/" + release
		require.NoError(t, os.MkdirAll(folder, 0o755))
		require.NoError(t, os.WriteFile(folder+"/modules.dep", []byte(listed), 0o644))
	}

	b := newBench(t)
	modules(b, release, "kernel/drivers/gpu/drm/nouveau/nouveau.ko:\n")
	assert.NotContains(t, b.run(t, map[string]any{"devices": []string{"02:00.0"}, "stage": "udev", "_ansible_check_mode": true}), "failed", "vfio-pci is loaded")
	require.NoError(t, os.RemoveAll(b.kernel.Root+"/sys/bus/pci/drivers/vfio-pci"))

	before := b.everything(t)
	refused := func(result map[string]any, says string) {
		t.Helper()
		require.Equal(t, true, result["failed"], "%v", result)
		assert.Equal(t, "no_driver", result["failure"].(map[string]any)["code"])
		assert.Contains(t, result["msg"], says)
		assert.Equal(t, before, b.everything(t))
	}
	later := map[string]any{"devices": []string{"02:00.0"}, "stage": "udev", "apply_now": false}

	refused(b.reserve(t), "the kernel that runs does not have it")
	refused(b.run(t, later), "no kernel that is installed has it")

	modules(b, "6.99-other", "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz\n")

	before = b.everything(t)
	refused(b.reserve(t), "the kernel that runs does not have it")
	assert.NotContains(t, b.run(t, later), "failed", "the next start may be with the other")
}

// TestWhoComesWhileFilesAreWrittenKeepsTheCard: between the look at the card and the first write to it an initramfs may be made.
func TestWhoComesWhileFilesAreWrittenKeepsTheCard(t *testing.T) {
	for code, comes := range map[string]func(b *bench){
		"in_use": func(b *bench) { b.kernel.Open(t, 4711, "pipewire", "/dev/snd/controlC1") },
		"boot_display": func(b *bench) {
			b.kernel.Put(t, "/sys/devices/pci0000:00/0000:02:00.0/boot_vga", "1\n")
		},
	} {
		b := newBench(t)
		b.kernel.Put(t, "/sys/devices/pci0000:00/0000:02:00.1/sound/card1/controlC1/uevent", "MAJOR=116\nMINOR=2\nDEVNAME=snd/controlC1\n")

		drivers := b.kernel.Drivers()
		b.meanwhile = func() { b.meanwhile = nil; comes(b) }

		result := b.reserve(t)
		require.Equal(t, true, result["failed"], "%v", result)
		assert.Equal(t, code, result["failure"].(map[string]any)["code"])
		assert.Nil(t, b.meanwhile)
		assert.Empty(t, b.kernel.Writes)
		assert.Equal(t, drivers, b.kernel.Drivers())
	}

	// A virtual machine is started while the rule is removed.
	b := newBench(t)
	b.reserve(t)
	b.kernel.Writes = nil
	reserved := b.kernel.Drivers()
	b.meanwhile = func() { b.meanwhile = nil; b.kernel.Open(t, 99, "qemu-system-x86_64", "/dev/vfio/7") }

	result := b.run(t, map[string]any{"state": "absent"})
	assert.Equal(t, "in_use", result["failure"].(map[string]any)["code"], "%v", result)
	assert.Contains(t, result["msg"], "qemu-system-x86_64")
	assert.Empty(t, b.kernel.Writes)
	assert.Equal(t, reserved, b.kernel.Drivers())

	require.NoError(t, os.RemoveAll(b.kernel.Root+"/proc/99"))
	assert.NotContains(t, b.run(t, map[string]any{"state": "absent"}), "failed")
	assert.Equal(t, "nouveau", b.kernel.Driver("0000:02:00.0"))
}

// TestARestartThatDoesNotHelpIsNotAskedForAgain: the host has started with the rule, and its driver was there before.
func TestARestartThatDoesNotHelpIsNotAskedForAgain(t *testing.T) {
	later := map[string]any{"devices": []string{"02:00.0"}, "stage": "udev", "apply_now": false}
	b := newBench(t)

	result := b.run(t, later)
	assert.Equal(t, true, result["reboot_required"], "%v", result)
	assert.Equal(t, true, b.run(t, later)["reboot_required"], "it has not been restarted yet")

	b.kernel.Started(t, time.Now().Add(time.Minute))

	result = b.run(t, later)
	assert.Equal(t, false, result["changed"])
	assert.Equal(t, false, result["reboot_required"], "%v", result)
	assert.Contains(t, fmt.Sprint(result["warnings"]), "0000:02:00.0: the host has started with these files, and still it is with nouveau")

	// What LXD leaves is another matter: the start reserved it.
	b.reserve(t)
	b.giveBackLikeLXD(t)

	result = b.run(t, later)
	assert.Equal(t, true, result["reboot_required"], "%v", result)
	assert.Len(t, result["reboot_reasons"], 2)

	// With another rule, the next start is not as the last one.
	result = b.run(t, map[string]any{"devices": []string{"01:00.0", "02:00.0"}, "stage": "udev", "apply_now": false})
	assert.Equal(t, true, result["reboot_required"])
}

func TestFoldersThatWereMadeGoAgain(t *testing.T) {
	b := newBench(t)
	require.NoError(t, os.Remove(b.files+"/etc/udev/rules.d"))

	before := b.everything(t)
	b.reserve(t)
	assert.FileExists(t, b.files+rulePath)
	assert.Equal(t, false, b.reserve(t)["changed"])
	b.run(t, map[string]any{"state": "absent"})
	assert.Equal(t, before, b.everything(t))

	b = newBench(t)
	b.reserve(t)
	b.run(t, map[string]any{"state": "absent"})
	assert.DirExists(t, b.files+"/etc/udev/rules.d", "it was there before")
}

func TestWhatAKilledRunHasLeftIsRemoved(t *testing.T) {
	b := newBench(t)
	require.NoError(t, os.Mkdir(b.files+"/boot", 0o755))
	before := b.everything(t)
	require.NoError(t, os.WriteFile(b.files+"/boot/.thinkube-initrd.img-6.1.0", []byte("image"), 0o600))

	result := b.run(t, map[string]any{"state": "absent"})
	assert.Equal(t, true, result["changed"], "%v", result)
	assert.Equal(t, before, b.everything(t))
	assert.Equal(t, false, b.run(t, map[string]any{"state": "absent"})["changed"])
}

// giveBackLikeLXD does what lxd/device/gpu_physical.go does when a virtual machine stops.
func (b *bench) giveBackLikeLXD(t *testing.T) {
	t.Helper()

	for _, address := range []string{"0000:02:00.1", "0000:02:00.2"} {
		folder := b.kernel.Root + "/sys/bus/pci/devices/" + address
		require.NoError(t, b.kernel.Write(folder+"/driver_override", "\n"))
		require.NoError(t, b.kernel.Write(folder+"/driver/unbind", address))
		require.NoError(t, b.kernel.Write(b.kernel.Root+"/sys/bus/pci/drivers_probe", address))
	}

	require.Equal(t, "snd_hda_intel", b.kernel.Driver("0000:02:00.1"))
}

func TestDriftAfterAVirtualMachineIsRepaired(t *testing.T) {
	b := newBench(t)
	b.reserve(t)
	b.giveBackLikeLXD(t)

	result := b.reserve(t)
	assert.Equal(t, true, result["changed"])
	assert.Contains(t, fmt.Sprint(result["warnings"]), "LXD")
	assert.Equal(t, "vfio-pci", b.kernel.Driver("0000:02:00.1"))
	assert.Equal(t, "vfio-pci", b.kernel.Driver("0000:02:00.2"))

	b.run(t, map[string]any{"state": "absent"})
	assert.Equal(t, "snd_hda_intel", b.kernel.Driver("0000:02:00.1"), "what it had at first, and not what LXD left")
}

func TestAGroupThatStaysUselessIsRestored(t *testing.T) {
	b := newBench(t)
	// A device of the host's appears in the group after the plan was made: nothing can be opened then.
	drivers := b.kernel.Drivers()
	require.NoError(t, os.Remove(b.kernel.Root+"/sys/devices/pci0000:00/0000:03:00.0/iommu_group"))
	b.kernel.Link(t, "/sys/devices/pci0000:00/0000:03:00.0/iommu_group", "../../../kernel/iommu_groups/7")

	result := b.run(t, map[string]any{"devices": []string{"02:00.0"}, "stage": "udev", "allow_group_members": []string{"03:00.0"}, "companions": "slot"})
	assert.Equal(t, "bind_failed", result["failure"].(map[string]any)["code"], "%v", result)
	assert.Contains(t, result["msg"], "some of its devices are still with the host")
	assert.Equal(t, drivers, b.kernel.Drivers())
}

func TestTwoCardsInOneGroup(t *testing.T) {
	b := newBench(t)

	for _, function := range []string{"0", "1", "2"} {
		link := b.kernel.Root + "/sys/devices/pci0000:00/0000:01:00." + function + "/iommu_group"
		require.NoError(t, os.Remove(link))
		require.NoError(t, os.Symlink("../../../kernel/iommu_groups/7", link))
	}

	result := b.run(t, map[string]any{"select": map[string]any{"id": "10de:2684"}, "stage": "udev"})

	require.NotContains(t, result, "failed", "%v", result)
	assert.Len(t, result["devices"], 6)
}
