// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/lab"
)

// What becomes of a reserved card when a host starts. The modules are applied by Ansible to a Debian with initramfs-tools and
// GRUB, that Debian's own tools make the initramfs and grub.cfg, and that initramfs is booted in the machine of gpu_test.go,
// where it says which driver each function has before there is a root.

//go:embed gpuroot.sh
var gpuRecipe []byte

// gpuRoot gives the folder of what the recipe makes with a generator: made once, and cached.
func gpuRoot(t *testing.T, generator string) (made, base string) {
	t.Helper()
	Need(t)
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root: makes an initramfs in a Debian")
		}
		t.Skip("needs root: makes an initramfs in a Debian")
	}
	ctx := t.Context()
	kernel, err := OpenKernel(ctx, false, os.Stderr)
	require.NoError(t, err)
	base, err = lab.BaseImage(ctx, os.Stderr)
	require.NoError(t, err)
	cache, err := cacheDir()
	require.NoError(t, err)
	sum := sha256.Sum256(slices.Concat(gpuRecipe, []byte(base), []byte(kernel.Deb)))
	prefix := filepath.Join(cache, "gpu-"+generator+"-")
	made = prefix + hex.EncodeToString(sum[:6])
	require.NoError(t, locked(cache, "gpu-"+generator, func() error {
		if _, err := os.Stat(made); err == nil {
			return nil
		}
		old, err := filepath.Glob(prefix + "*")
		fresh := filepath.Join(cache, ".gpu-"+generator)
		for _, each := range append(old, fresh) {
			err = errors.Join(err, os.RemoveAll(each))
		}
		script := filepath.Join(t.TempDir(), "gpuroot.sh")
		err = errors.Join(err, os.Mkdir(fresh, 0o755), os.WriteFile(script, gpuRecipe, 0o600))
		if err != nil {
			return err
		}
		_, err = run(ctx, "", "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", script, base, kernel.Deb, generator, fresh)
		if err != nil {
			return errors.Join(err, os.RemoveAll(fresh))
		}
		return os.Rename(fresh, made)
	}))
	return made, base
}

// startRoot is a Debian that does not run.
type startRoot struct {
	lower, dir string // what is written to it is in dir
	library    string // the modules' programs
	sys        string // the folder that is its sysfs
}

func newStartRoot(t *testing.T, generator string) *startRoot {
	t.Helper()
	made, base := gpuRoot(t, generator)
	// Not in a temporary folder: that may lie on an overlay, on which there cannot be another.
	cache, err := cacheDir()
	require.NoError(t, err)
	dir, err := os.MkdirTemp(cache, "start-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	r := &startRoot{lower: made + "/layer:" + base, dir: dir, library: t.TempDir(), sys: t.TempDir()}
	_, err = run(t.Context(), r.sys, "sh", "-ec", hardware)
	require.NoError(t, err)
	for _, name := range []string{"upper", "work", "root", "out"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o755))
	}
	for _, module := range []string{"gpu_vfio", "kernel_cmdline"} {
		require.NoError(t, os.Rename(Build(t, "github.com/thinkube/infra/modules/"+module+"/cmd"), filepath.Join(r.library, module)))
	}
	return r
}

// hardware is what a captured sysfs has of the machine of gpu_test.go, as a shell script makes it in an empty folder.
const hardware = `mkdir -p bus/pci/devices bus/pci/drivers firmware/acpi/tables class/iommu/dmar0 kernel/iommu_groups
touch firmware/acpi/tables/DMAR bus/pci/drivers_probe
new() {
  d=devices/pci0000:00/$7$1; up=../../..${7:+/..}; mkdir -p $d kernel/iommu_groups/$4 bus/pci/drivers/$5 module/$6
  echo 0x${2%:*} >$d/vendor; echo 0x${2#*:} >$d/device; echo 0x$3 >$d/class; echo '(null)' >$d/driver_override
  head -c 64 /dev/zero >$d/config; : >$d/resource; echo live >module/$6/initstate
  ln -sfn ../../../../module/$6 bus/pci/drivers/$5/module
  ln -s $up/bus/pci/drivers/$5 $d/driver; ln -s $up/kernel/iommu_groups/$4 $d/iommu_group
  ln -s ../../../$d bus/pci/devices/$1
}
new 0000:00:02.0 10de:2684 030000 1 bochs-drm bochs ''
echo 1 >devices/pci0000:00/0000:00:02.0/boot_vga
card() {
  new 0000:$1:00.0 10de:2684 038000 $2 bochs-drm bochs $3
  new 0000:$1:00.1 10de:22ba 040300 $2 snd_hda_intel snd_hda_intel $3
  new 0000:$1:00.2 10de:1ad6 0c0330 $2 xhci_hcd xhci_pci $3
}
card 01 6 0000:00:04.0/
card 02 7 0000:00:05.0/
`

// mounted runs a script where $root is the Debian, with what programs in it expect; $out is a folder for what is to be kept.
// All of it is in a mount namespace that ends with the script.
func (r *startRoot) mounted(t *testing.T, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	script = `set -eu; root=$1/root out=$1/out
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$root"
mount -t proc proc "$root/proc"; mount --bind /dev "$root/dev"; mkdir -p "$root/sys"; mount --bind "$3" "$root/sys"
` + script
	out, err := run(ctx, "", "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh", r.dir, r.lower, r.sys)
	require.NoError(t, err)
	return out
}

// apply has Ansible run a module on the Debian.
func (r *startRoot) apply(t *testing.T, module string, options map[string]any) gpuAnswer {
	t.Helper()
	options["root"] = filepath.Join(r.dir, "root")
	text, err := json.Marshal(options)
	require.NoError(t, err)
	out := r.mounted(t, fmt.Sprintf(`touch "$out/ansible.cfg"; cd /; export ANSIBLE_LIBRARY='%s' ANSIBLE_CONFIG="$out/ansible.cfg"
ansible -i localhost, -c local localhost -t "$out/tree" -m %s -a '%s' >/dev/null || [ $? = 2 ]; cat "$out/tree/localhost"`, r.library, module, text))
	var said gpuAnswer
	require.NoError(t, json.Unmarshal([]byte(out), &said), out)
	return said
}

// etc is all that the modules could have changed, beside the initramfs.
func (r *startRoot) etc(t *testing.T) string {
	t.Helper()
	return r.mounted(t, `cd "$root"; find etc boot var/lib -xdev -not -path '*/initrd.img-*' -not -path 'etc/ssl/*' -printf '%p %m %s %l\n' | sort; cat boot/grub/grub.cfg`)
}

// initramfs gives a copy of the initramfs.
func (r *startRoot) initramfs(t *testing.T, name string) string {
	t.Helper()
	r.mounted(t, `cp "$root"/boot/initrd.img-* "$out/`+name+`"`)
	return filepath.Join(r.dir, "out", name)
}

// names gives the names of the files in an initramfs.
func (r *startRoot) names(t *testing.T) string {
	t.Helper()
	return r.mounted(t, `chroot "$root" lsinitramfs $(cd "$root"; ls /boot/initrd.img-* boot/initrd.img-* 2>/dev/null | sed 's,^/*,/,' | grep '^/boot' | tail -n 1) | sort`)
}

// reports boots an initramfs, with more of QEMU's options and on the command line, and gives driver and override of each
// function, and what the kernel said of the cards.
func reports(t *testing.T, initrd, cmdline string, more ...string) (drivers map[string]string, all string) {
	t.Helper()
	guest := Boot(t, Machine{
		CPUs: 1, Initrd: initrd, Args: append(cardArgs("intel"), more...), Before: giveNvidiaIDs,
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
	r := newStartRoot(t, "initramfs-tools")
	before, names := r.etc(t), r.names(t)
	stale := r.initramfs(t, "stale")
	options := func() map[string]any { return map[string]any{"devices": []string{"02:00.0"}} }

	said := r.apply(t, "gpu_vfio", options())
	require.False(t, said.Failed, "%+v", said)
	assert.True(t, said.Changed)
	assert.Contains(t, r.names(t), "udev/rules.d/05-thinkube-gpu-vfio.rules")
	assert.False(t, r.apply(t, "gpu_vfio", options()).Changed, "the second run")
	reserved := r.initramfs(t, "reserved")

	t.Run("an initramfs of before is noticed", func(t *testing.T) {
		r.mounted(t, `cp "$out/stale" "$root"/boot/initrd.img-*; touch "$root"/boot/initrd.img-*`)
		said := r.apply(t, "gpu_vfio", options())
		assert.True(t, said.Changed, "%+v", said)
		assert.Contains(t, strings.Join(said.Plan, " "), "make /boot/initrd.img-")
		assert.False(t, r.apply(t, "gpu_vfio", options()).Changed)
	})

	t.Run("when it cannot be made, everything is as it was", func(t *testing.T) {
		require.False(t, r.apply(t, "gpu_vfio", map[string]any{"state": "absent"}).Failed)
		r.mounted(t, `printf '#!/bin/sh\n[ "$1" = prereqs ] || { echo no space left >&2; exit 1; }\n' >"$root/etc/initramfs-tools/hooks/broken"; chmod 755 "$root/etc/initramfs-tools/hooks/broken"`)
		files, sum := r.etc(t), r.mounted(t, `sha256sum "$root"/boot/initrd.img-*`)
		said := r.apply(t, "gpu_vfio", options())
		assert.Equal(t, "initramfs_failed", said.Failure.Code, said.Msg)
		assert.Contains(t, said.Msg, "no space left")
		assert.Equal(t, files, r.etc(t))
		assert.Equal(t, sum, r.mounted(t, `sha256sum "$root"/boot/initrd.img-*`))
		r.mounted(t, `rm "$root/etc/initramfs-tools/hooks/broken"; echo update_initramfs=no >"$root/etc/initramfs-tools/update-initramfs.conf.new"; cp "$root/etc/initramfs-tools/update-initramfs.conf" "$out/conf"; mv "$root/etc/initramfs-tools/update-initramfs.conf.new" "$root/etc/initramfs-tools/update-initramfs.conf"`)
		said = r.apply(t, "gpu_vfio", options())
		assert.Equal(t, "initramfs_failed", said.Failure.Code, "a tool that does nothing and says that all is well: %s", said.Msg)
		r.mounted(t, `cp "$out/conf" "$root/etc/initramfs-tools/update-initramfs.conf"`)

		// A boot loader that boots its own copy, and a failure after that was made.
		r.mounted(t, `d="$root/etc/initramfs/post-update.d"; mkdir -p "$d"; printf '#!/bin/sh\ncp "$2" /boot/copy\n' >"$d/10copy"
printf '#!/bin/sh\n[ ! -e /boot/fail ] || { rm /boot/fail; echo no space on the other partition >&2; exit 1; }\n' >"$d/20fail"; chmod 755 "$d"/*; touch "$root/boot/fail"`)
		said = r.apply(t, "gpu_vfio", options())
		assert.Equal(t, "initramfs_failed", said.Failure.Code, said.Msg)
		assert.Contains(t, said.Msg, "no space on the other partition")
		assert.Equal(t, sum, r.mounted(t, `sha256sum "$root"/boot/initrd.img-*`))
		assert.NotEmpty(t, r.mounted(t, `cmp "$root/boot/copy" "$root"/boot/initrd.img-* && echo the same`), "the boot loader's copy is the old one again")
		r.mounted(t, `rm -r "$root/etc/initramfs" "$root/boot/copy"`)
		require.False(t, r.apply(t, "gpu_vfio", options()).Failed)
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
			drivers, said := reports(t, reserved, "udev.children_max=1")
			onlyTwin(t, drivers)
			assert.NotContains(t, said, "SAW [drm] Initialized bochs-drm 1.0.0 20130925 for "+twin+".0", "no driver of the host's has seen it")
			assert.Contains(t, said, "for "+first+".0", "but the twin")
		})
		t.Run("with vfio-pci there before udev is", func(t *testing.T) {
			t.Parallel()
			drivers, said := reports(t, withEarlyVFIO(t, reserved), "rdinit=/early")
			require.Contains(t, said, "EARLY")
			onlyTwin(t, drivers)
		})
		t.Run("with one more bus in front", func(t *testing.T) {
			t.Parallel()
			drivers, _ := reports(t, reserved, "", "-device", "pcie-root-port,id=rp9,chassis=9,slot=9,addr=3.0")
			require.Contains(t, drivers, "0000:03:00.2", "the reserved card is there now")
			assert.Equal(t, "bochs-drm (null)", drivers[twin+".0"], "its twin has its address, and is left alone")
			assert.Equal(t, "xhci_hcd (null)", drivers[twin+".2"])
		})
		t.Run("with an initramfs of before", func(t *testing.T) {
			t.Parallel()
			drivers, _ := reports(t, stale, "")
			assert.Equal(t, "bochs-drm (null)", drivers[twin+".0"], "the rule in /etc alone is of no use")
			assert.Equal(t, "xhci_hcd (null)", drivers[twin+".2"])
		})
	})
}

func TestKernelParametersWithRealGRUB(t *testing.T) {
	r := newStartRoot(t, "initramfs-tools")
	r.mounted(t, `sed -i 's/^GRUB_CMDLINE_LINUX_DEFAULT=.*/GRUB_CMDLINE_LINUX_DEFAULT="quiet amd_iommu=on splash"/' "$root/etc/default/grub"; env -u LC_ALL LANG=de_DE.UTF-8 chroot "$root" grub-mkconfig -o /boot/grub/grub.cfg 2>/dev/null`)
	before := r.etc(t)
	lines := func() string { return r.mounted(t, `grep '^[[:space:]]*linux' "$root/boot/grub/grub.cfg"`) }
	require.Contains(t, lines(), "quiet amd_iommu=on splash")
	require.Contains(t, before, "set lang=de_DE")
	options := func() map[string]any {
		return map[string]any{"name": "gpu", "present": []string{"intel_iommu=on", "iommu=pt"}, "absent": []string{"amd_iommu"}}
	}

	said := r.apply(t, "kernel_cmdline", options())
	require.False(t, said.Failed, "%+v", said)
	assert.True(t, said.Changed)
	assert.Contains(t, lines(), "quiet splash intel_iommu=on iommu=pt")
	assert.NotContains(t, lines(), "amd_iommu")
	assert.Contains(t, r.mounted(t, `cat "$root/etc/default/grub"`), "quiet amd_iommu=on splash", "the user's line is left alone")
	assert.False(t, r.apply(t, "kernel_cmdline", options()).Changed, "the second run")

	r.mounted(t, `sed -i 's/ intel_iommu=on//' "$root/boot/grub/grub.cfg"`)
	assert.True(t, r.apply(t, "kernel_cmdline", options()).Changed, "entries that somebody changed")

	said = r.apply(t, "kernel_cmdline", map[string]any{"name": "gpu", "state": "absent"})
	require.False(t, said.Failed, "%+v", said)
	assert.Equal(t, before, r.etc(t))
	assert.False(t, r.apply(t, "kernel_cmdline", map[string]any{"name": "gpu", "state": "absent"}).Changed)

	r.mounted(t, `printf '#!/bin/sh\nexit 1\n' >"$root/etc/grub.d/00_broken"; chmod 755 "$root/etc/grub.d/00_broken"`)
	files := r.etc(t)
	said = r.apply(t, "kernel_cmdline", options())
	assert.Equal(t, "refresh_failed", said.Failure.Code, said.Msg)
	assert.Equal(t, files, r.etc(t), "everything is as it was")

	r.mounted(t, `rm "$root/etc/grub.d/00_broken"; sed -i '2iGRUB_CMDLINE_LINUX_DEFAULT=other' "$root/etc/grub.d/10_linux"; env -u LC_ALL LANG=de_DE.UTF-8 chroot "$root" grub-mkconfig -o /boot/grub/grub.cfg 2>/dev/null`)
	files = r.etc(t)
	said = r.apply(t, "kernel_cmdline", options())
	assert.Equal(t, "refresh_failed", said.Failure.Code, said.Msg)
	assert.Contains(t, said.Msg, "intel_iommu=on is missing", "a tool that does not take it")
	assert.Equal(t, files, r.etc(t), "everything is as it was")
}

func TestKernelParametersWithRealKernelInstall(t *testing.T) {
	r := newStartRoot(t, "initramfs-tools")
	// A system that systemd-boot starts, with a line that somebody wrote.
	r.mounted(t, `echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"; mkdir -p "$root/boot/efi/loader/entries" "$root/etc/kernel"; echo layout=bls >"$root/etc/kernel/install.conf"
printf 'root=UUID=1   ro quiet\n' >"$root/etc/kernel/cmdline"; rm "$root/usr/sbin/grub-mkconfig"
mkdir -p "$root/boot/efi/0123456789abcdef0123456789abcdef"; release=$(ls "$root/lib/modules"); chroot "$root" kernel-install add "$release" "/boot/vmlinuz-$release"`)
	before := r.etc(t)
	line := func() string { return r.mounted(t, `grep -h '^options' "$root"/boot/efi/loader/entries/*.conf`) }
	require.Contains(t, line(), "root=UUID=1 ro quiet")

	options := map[string]any{"name": "gpu", "present": []string{"intel_iommu=on", "iommu=pt"}, "absent": []string{"quiet"}}
	said := r.apply(t, "kernel_cmdline", options)
	require.False(t, said.Failed, "%+v", said)
	assert.Contains(t, line(), "root=UUID=1 ro intel_iommu=on iommu=pt")
	assert.False(t, r.apply(t, "kernel_cmdline", options).Changed, "the second run")

	said = r.apply(t, "kernel_cmdline", map[string]any{"name": "gpu", "state": "absent"})
	require.False(t, said.Failed, "%+v", said)
	assert.Equal(t, before, r.etc(t))
	assert.Equal(t, "root=UUID=1   ro quiet\n", r.mounted(t, `cat "$root/etc/kernel/cmdline"`), "to the byte")
	assert.Contains(t, line(), "quiet")
	assert.NotContains(t, line(), "iommu")
}

// TestGPUWithDracut looks into what dracut makes; its initramfs takes an emulated processor a minute to boot.
func TestGPUWithDracut(t *testing.T) {
	r := newStartRoot(t, "dracut")
	before := r.etc(t)
	list := func() string {
		return r.mounted(t, `chroot "$root" lsinitrd $(cd "$root"; ls boot/initrd.img-* | sed 's,^,/,') | sed -n 's/.* //p' | sort`)
	}
	names := list()
	options := func() map[string]any { return map[string]any{"devices": []string{"02:00.0"}} }

	said := r.apply(t, "gpu_vfio", options())
	require.False(t, said.Failed, "%+v", said)
	assert.True(t, said.Changed)
	assert.Contains(t, list(), "etc/udev/rules.d/05-thinkube-gpu-vfio.rules")
	assert.Contains(t, list(), "vfio-pci.ko")
	assert.False(t, r.apply(t, "gpu_vfio", options()).Changed, "the second run")

	said = r.apply(t, "gpu_vfio", map[string]any{"state": "absent"})
	require.False(t, said.Failed, "%+v", said)
	assert.Equal(t, before, r.etc(t))
	assert.Equal(t, names, list())
}
