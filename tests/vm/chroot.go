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

	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/lab"
)

//go:embed gpuroot.sh
var chrootRecipe []byte

// chrootRoot gives the folder of what the recipe makes with a generator, and the base image below it: made once, and cached.
func chrootRoot(t testing.TB, generator string) (made, base string) {
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
	recipe := slices.Concat(lightRecipe, chrootRecipe)
	sum := sha256.Sum256(slices.Concat(recipe, []byte(base), []byte(kernel.Deb)))
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
		err = errors.Join(err, os.Mkdir(fresh, 0o755), os.WriteFile(script, recipe, 0o600))
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

// Chroot is a Debian that does not run, with a kernel, GRUB and a generator of initramfses, and with the machine of the GPU
// tests as its hardware. What is written to it ends with the test.
type Chroot struct {
	made, lower, dir string // what is written to it is in dir
	library          string // the modules' programs
	sys              string // the folder that is its sysfs
}

// NewChroot gives one with "initramfs-tools" or "dracut". It needs root, and is skipped, or fails, as [Need] says.
func NewChroot(t testing.TB, generator string) *Chroot {
	t.Helper()
	made, base := chrootRoot(t, generator)
	// Not in a temporary folder: that may lie on an overlay, on which there cannot be another.
	cache, err := cacheDir()
	require.NoError(t, err)
	dir, err := os.MkdirTemp(cache, "start-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	c := &Chroot{made: made, lower: made + "/layer:" + base, dir: dir, library: t.TempDir(), sys: t.TempDir()}
	_, err = run(t.Context(), c.sys, "sh", "-ec", hardware)
	require.NoError(t, err)
	for _, name := range []string{"upper", "work", "root", "out"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o755))
	}
	for _, module := range []string{"gpu_vfio", "kernel_cmdline"} {
		require.NoError(t, os.Symlink(Build(t, "github.com/thinkube/infra/modules/"+module+"/cmd"), filepath.Join(c.library, module)))
	}
	return c
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

// Out is the folder that $out of [Chroot.Sh] is.
func (c *Chroot) Out() string { return filepath.Join(c.dir, "out") }

// Overlay gives the folder where the Debian is to be mounted, and the options of the overlay that it is.
func (c *Chroot) Overlay() (root, options string) {
	return filepath.Join(c.dir, "root"), fmt.Sprintf("lowerdir=%s,upperdir=%[2]s/upper,workdir=%[2]s/work", c.lower, c.dir)
}

// Sh runs a script where $root is the Debian, with what programs in it expect, and gives what it prints; $out is a folder for
// what is to be kept. All of it is in a mount namespace that ends with the script.
func (c *Chroot) Sh(t testing.TB, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	root, overlay := c.Overlay()
	script = `set -eu; root=$1 out=$4
mount -t overlay overlay -o "$2" "$root"
mount -t proc proc "$root/proc"; mount --bind /dev "$root/dev"; mkdir -p "$root/sys"; mount --bind "$3" "$root/sys"
` + script
	out, err := run(ctx, "", "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh", root, overlay, c.sys, c.Out())
	require.NoError(t, err)
	return out
}

// ReadOnly is a script for [Chroot.Run] that makes a folder of the Debian one that cannot be written to.
func ReadOnly(folder string) string {
	return fmt.Sprintf(`mkdir -p "$root%[1]s"; mount --bind "$root%[1]s" "$root%[1]s"; mount -o remount,bind,ro "$root%[1]s"`, folder)
}

// Run runs a module's program on the Debian, behind scripts, and gives what it says, JSON. What those mount ends with it.
func (c *Chroot) Run(t testing.TB, module string, options map[string]any, before ...string) []byte {
	t.Helper()
	return []byte(c.Sh(t, strings.Join(before, "\n")+fmt.Sprintf(`
echo '%s' >"$out/args.json"; "%s/%s" "$out/args.json" || [ $? = 1 ]`, c.options(t, options), c.library, module)))
}

// Ansible has Ansible run a module on the Debian, and gives what it says, JSON.
func (c *Chroot) Ansible(t testing.TB, module string, options map[string]any) []byte {
	t.Helper()
	return []byte(c.Sh(t, fmt.Sprintf(`touch "$out/ansible.cfg"; cd /; export ANSIBLE_LIBRARY='%s' ANSIBLE_CONFIG="$out/ansible.cfg"
ansible -i localhost, -c local localhost -t "$out/tree" -m %s -a '%s' >/dev/null || [ $? = 2 ]; cat "$out/tree/localhost"`, c.library, module, c.options(t, options))))
}

func (c *Chroot) options(t testing.TB, options map[string]any) []byte {
	t.Helper()
	options["root"] = filepath.Join(c.dir, "root")
	text, err := json.Marshal(options)
	require.NoError(t, err)
	require.NotContains(t, string(text), "'", "the shell has it in such quotes")
	return text
}

// Etc is all that the modules could have changed, beside the initramfs.
func (c *Chroot) Etc(t testing.TB) string {
	t.Helper()
	return c.Sh(t, `cd "$root"; find etc boot var/lib -xdev -not -path '*/initrd.img-*' -not -path 'etc/ssl/*' -printf '%p %m %s %l\n' | sort; cat boot/grub/grub.cfg`)
}
