// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What becomes of a reserved card when a host starts. The modules are applied by Ansible to a Debian with initramfs-tools and
// GRUB, that Debian's own tools make the initramfs and grub.cfg, and that initramfs is booted in the machine of gpu_test.go,
// where it says which driver each function has before there is a root.

// startRoot is a Debian that does not run.
type startRoot struct{ *Chroot }

func newStartRoot(t *testing.T, generator string) *startRoot {
	t.Helper()
	return &startRoot{NewChroot(t, generator)}
}

func (r *startRoot) mounted(t *testing.T, script string) string {
	t.Helper()
	return r.Sh(t, script)
}

// apply runs a module's program on the Debian, behind scripts.
func (r *startRoot) apply(t *testing.T, module string, options map[string]any, before ...string) gpuAnswer {
	t.Helper()
	return answerOf(t, r.Run(t, module, options, before...))
}

// ansible has Ansible do that.
func (r *startRoot) ansible(t *testing.T, module string, options map[string]any) gpuAnswer {
	t.Helper()
	return answerOf(t, r.Ansible(t, module, options))
}

func answerOf(t *testing.T, text []byte) gpuAnswer {
	t.Helper()
	var said gpuAnswer
	require.NoError(t, json.Unmarshal(text, &said), "%s", text)
	return said
}

func (r *startRoot) etc(t *testing.T) string {
	t.Helper()
	return r.Etc(t)
}

// initramfs gives a copy of the initramfs.
func (r *startRoot) initramfs(t *testing.T, name string) string {
	t.Helper()
	r.mounted(t, `cp "$root"/boot/initrd.img-* "$out/`+name+`"`)
	return filepath.Join(r.Out(), name)
}

// names gives the names of the files in an initramfs.
func (r *startRoot) names(t *testing.T) string {
	t.Helper()
	return r.mounted(t, `chroot "$root" lsinitramfs $(cd "$root"; ls /boot/initrd.img-* boot/initrd.img-* 2>/dev/null | sed 's,^/*,/,' | grep '^/boot' | tail -n 1) | sort`)
}

// reports boots an initramfs on a machine, and gives driver and override of each function, and what the kernel said of the
// cards.
func reports(t *testing.T, initrd, cmdline string, machine []string) (drivers map[string]string, all string) {
	t.Helper()
	guest := Boot(t, Machine{
		CPUs: 1, Initrd: initrd, Args: machine, Before: giveNvidiaIDs,
		Cmdline: cardCmdline + "intel_iommu=on iommu=pt " + cmdline,
	})
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	require.NoError(t, guest.Wait(ctx))
	drivers = map[string]string{}
	for line := range strings.Lines(guest.Serial()) {
		if report, ok := strings.CutPrefix(strings.TrimSpace(line), "REPORT "); ok {
			address, rest, _ := strings.Cut(report, " ")
			drivers[address] = rest
		}
	}
	require.Contains(t, drivers, twin+".2", guest.Serial())
	return drivers, guest.Serial()
}

// withEarlyVFIO gives an initramfs whose first program loads vfio-pci before udev runs, as rd.driver.pre does with dracut, and
// as it is where the driver is part of the kernel.
func withEarlyVFIO(t *testing.T, initrd string) string {
	t.Helper()
	text, err := os.ReadFile(initrd)
	require.NoError(t, err)
	added := &archive{dirs: map[string]bool{}}
	added.file("/early", 0o755, []byte("#!/bin/sh\nmkdir -p /sys /proc\nmount -t sysfs sysfs /sys\nmount -t proc proc /proc\nmodprobe vfio-pci\n[ -d /sys/bus/pci/drivers/vfio-pci ] && echo EARLY >/dev/console\numount /proc /sys\nexec /init\n"))
	path := initrd + "-early"
	require.NoError(t, os.WriteFile(path, append(added.bytes(), text...), 0o600))
	return path
}

// onlyTwin asserts that the second card is with VFIO, and nothing else.
func onlyTwin(t *testing.T, drivers map[string]string) {
	t.Helper()
	for address, driver := range drivers {
		assert.Equal(t, strings.HasPrefix(address, twin), driver == "vfio-pci vfio-pci", "%s: %s", address, driver)
	}
	assert.Equal(t, "bochs-drm (null)", drivers[first+".0"])
}

func TestGPUIsReservedFromTheStart(t *testing.T) {
	t.Parallel()
	r := newStartRoot(t, "initramfs-tools")
	before, names := r.etc(t), r.names(t)
	r.initramfs(t, "stale")
	sum := func() string { return r.mounted(t, `sha256sum "$root"/boot/initrd.img-*`) }
	image := sum()
	options := func() map[string]any { return map[string]any{"devices": []string{"02:00.0"}} }

	t.Run("when it cannot be made, everything is as it was", func(t *testing.T) {
		r.mounted(t, `printf '#!/bin/sh\n[ "$1" = prereqs ] || { echo no space left >&2; exit 1; }\n' >"$root/etc/initramfs-tools/hooks/broken"; chmod 755 "$root/etc/initramfs-tools/hooks/broken"`)
		files := r.etc(t)
		for _, folder := range []string{"/etc/udev/rules.d", "/etc/initramfs-tools/hooks"} {
			said := r.apply(t, "gpu_vfio", options(), ReadOnly(folder))
			assert.True(t, said.Failed && !said.Changed, "%s: %+v", folder, said)
			assert.Contains(t, said.Msg, folder)
			assert.Equal(t, files, r.etc(t), folder)
		}
		said := r.apply(t, "gpu_vfio", options())
		assert.Equal(t, "initramfs_failed", said.Failure.Code, said.Msg)
		assert.Contains(t, said.Msg, "no space left")
		assert.Equal(t, files, r.etc(t))
		assert.Equal(t, image, sum())
		r.mounted(t, `rm "$root/etc/initramfs-tools/hooks/broken"; cp "$root/etc/initramfs-tools/update-initramfs.conf" "$out/conf"; echo update_initramfs=no >"$root/etc/initramfs-tools/update-initramfs.conf"`)
		files = r.etc(t)
		said = r.apply(t, "gpu_vfio", options())
		assert.Equal(t, "initramfs_failed", said.Failure.Code, "a tool that does nothing and says that all is well: %s", said.Msg)
		assert.Equal(t, files, r.etc(t))
		assert.Equal(t, image, sum())
		r.mounted(t, `cp "$out/conf" "$root/etc/initramfs-tools/update-initramfs.conf"`)

		// A boot loader that boots a copy of its own, and a failure after that was made.
		r.mounted(t, `d="$root/etc/initramfs/post-update.d"; [ ! -e "$d" ] || touch "$out/had"; mkdir -p "$d"; printf '#!/bin/sh\ncp "$2" /boot/copy\n' >"$d/10copy"
printf '#!/bin/sh\n[ ! -e /boot/fail ] || { rm /boot/fail; echo no space on the other partition >&2; exit 1; }\n' >"$d/20fail"; chmod 755 "$d"/*; touch "$root/boot/fail"`)
		said = r.apply(t, "gpu_vfio", options())
		assert.Equal(t, "initramfs_failed", said.Failure.Code, said.Msg)
		assert.Contains(t, said.Msg, "no space on the other partition")
		assert.Equal(t, image, sum())
		assert.NotEmpty(t, r.mounted(t, `cmp "$root/boot/copy" "$root"/boot/initrd.img-* && echo the same`), "the boot loader's copy is the old one again")
		r.mounted(t, `cd "$root/etc"; rm initramfs/post-update.d/10copy initramfs/post-update.d/20fail "$root/boot/copy"; [ -e "$out/had" ] || rmdir -p initramfs/post-update.d`)
	})

	said := r.ansible(t, "gpu_vfio", options())
	require.False(t, said.Failed, "%+v", said)
	assert.True(t, said.Changed)
	assert.Contains(t, r.names(t), "udev/rules.d/05-thinkube-gpu-vfio.rules")
	assert.False(t, r.ansible(t, "gpu_vfio", options()).Changed, "the second run")
	reserved := r.initramfs(t, "reserved")
	unit := r.mounted(t, `cat "$root/etc/systemd/system/`+unitName+`"`)
	require.Equal(t, unitLink+"\n", r.mounted(t, `readlink "$root/etc/systemd/system/sysinit.target.wants/`+unitName+`"`))

	t.Run("an initramfs of before is noticed", func(t *testing.T) {
		r.mounted(t, `cp "$out/stale" "$root"/boot/initrd.img-*; touch "$root"/boot/initrd.img-*`)
		asked := options()
		asked["_ansible_check_mode"] = true
		said := r.apply(t, "gpu_vfio", asked)
		assert.True(t, said.Changed && !said.Failed, "what 38_test_gpu_reservation asks, and fails for: %+v", said)
		said = r.apply(t, "gpu_vfio", options())
		assert.True(t, said.Changed, "%+v", said)
		assert.Contains(t, strings.Join(said.Plan, " "), "make /boot/initrd.img-")
		assert.Contains(t, r.names(t), "udev/rules.d/05-thinkube-gpu-vfio.rules")
		assert.False(t, r.apply(t, "gpu_vfio", options()).Changed)
	})

	t.Run("given back", func(t *testing.T) {
		said := r.apply(t, "gpu_vfio", map[string]any{"state": "absent"})
		require.False(t, said.Failed, "%+v", said)
		assert.True(t, said.Changed)
		assert.Equal(t, before, r.etc(t))
		assert.Equal(t, names, r.names(t))
	})

	t.Run("booted", func(t *testing.T) {
		t.Run("reserved", func(t *testing.T) {
			t.Parallel()
			drivers, said := reports(t, reserved, "udev.children_max=1", cardArgs("intel"))
			onlyTwin(t, drivers)
			saw := sawCards(said)
			assert.Contains(t, saw, first+".0", "a driver tells which card it has")
			assert.NotContains(t, saw, twin, "no driver of the host's has seen it")
		})
		t.Run("with vfio-pci there before udev is", func(t *testing.T) {
			t.Parallel()
			drivers, said := reports(t, withEarlyVFIO(t, reserved), "rdinit=/early", cardArgs("intel"))
			require.Contains(t, said, "EARLY")
			onlyTwin(t, drivers)
		})
		t.Run("by systemd, where the drivers are there before udev is", func(t *testing.T) {
			t.Parallel()
			byUnit(t, r.made, unit)
		})
		t.Run("with one more bus in front", func(t *testing.T) {
			t.Parallel()
			drivers, _ := reports(t, reserved, "", append(cardArgs("intel"), "-device", "pcie-root-port,id=rp9,chassis=9,slot=9,addr=3.0"))
			require.Contains(t, drivers, "0000:03:00.2", "the reserved card is there now")
			assert.Equal(t, "bochs-drm (null)", drivers[twin+".0"], "its twin has its address, and is left alone")
			assert.Equal(t, "xhci_hcd (null)", drivers[twin+".2"])
		})
		t.Run("with the display on the card", func(t *testing.T) {
			t.Parallel()
			machine := cardArgs("intel")
			for i, device := range machine {
				machine[i] = strings.NewReplacer("VGA,addr=2", "bochs-display,addr=2", "bochs-display,bus=rp2", "VGA,bus=rp2").Replace(device)
			}
			drivers, said := reports(t, reserved, "", machine)
			require.Contains(t, said, "REPORT "+twin+".0 bochs-drm (null)")
			assert.Equal(t, "snd_hda_intel (null)", drivers[twin+".1"])
			assert.Equal(t, "xhci_hcd (null)", drivers[twin+".2"])
		})
	})
}

// The unit for drivers that are part of the kernel. A system that does not run gets it for all functions.
const (
	unitName = "thinkube-gpu-vfio.service"
	unitLink = "../" + unitName
)

// byUnit boots a Debian that has the unit alone, with neither rule nor initramfs, and with drivers that have the cards'
// functions before systemd runs.
func byUnit(t *testing.T, made, unit string) {
	t.Helper()
	c := &cards{guest: Boot(t, Machine{
		Root: filepath.Join(made, "disk"), CPUs: 1, Memory: 1024, Cmdline: cardCmdline + "intel_iommu=on iommu=pt systemd.unit=sysinit.target",
		Modules: []string{"snd_hda_intel", "xhci_pci", "autofs4"}, Args: cardArgs("intel"), Before: giveNvidiaIDs,
		Files: map[string]File{
			"/etc/systemd/system/" + unitName:                      {Data: []byte(unit)},
			"/etc/systemd/system/sysinit.target.wants/" + unitName: {Link: unitLink},
		},
	})}
	drivers := c.drivers(t)
	onlyTwin(t, drivers)
	assert.Equal(t, "xhci_hcd (null)", drivers[first+".2"])
	assert.Contains(t, c.sh(t, "dmesg"), "xhci_hcd "+twin+".2: xHCI Host Controller", "the host's driver had it")
}

// sawCards is what the drivers of the guest's own have said of cards.
func sawCards(report string) string {
	var saw strings.Builder
	for line := range strings.Lines(report) {
		if strings.HasPrefix(line, "SAW ") {
			saw.WriteString(line)
		}
	}
	return saw.String()
}

// TestGPUWithAnInitramfsOfBefore is the control of that one: the rule is in /etc, and the initramfs is of before.
func TestGPUWithAnInitramfsOfBefore(t *testing.T) {
	t.Parallel()
	r := newStartRoot(t, "initramfs-tools")
	said := r.apply(t, "gpu_vfio", map[string]any{"devices": []string{"02:00.0"}, "stage": "udev"})
	require.True(t, said.Changed && !said.Failed, "%+v", said)
	require.Contains(t, r.etc(t), "udev/rules.d/05-thinkube-gpu-vfio.rules")
	drivers, console := reports(t, r.initramfs(t, "stale"), "", cardArgs("intel"))
	assert.Equal(t, "bochs-drm (null)", drivers[twin+".0"], "the rule in /etc alone comes too late")
	assert.Equal(t, "xhci_hcd (null)", drivers[twin+".2"])
	assert.Contains(t, sawCards(console), twin+".0")
}
