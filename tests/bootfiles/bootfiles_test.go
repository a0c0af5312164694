// SPDX-License-Identifier: Apache-2.0

package bootfiles

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/vm"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := vm.RemovePrograms(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// root is a Debian that does not run.
type root struct{ *vm.Chroot }

func newRoot(t *testing.T, generator string) root {
	t.Helper()
	return root{vm.NewChroot(t, generator)}
}

func (r root) sh(t *testing.T, script string) string {
	t.Helper()
	return r.Sh(t, script)
}

// answer is what a module says.
type answer struct {
	Changed bool   `json:"changed"`
	Failed  bool   `json:"failed"`
	Msg     string `json:"msg"`
	Failure struct {
		Code string `json:"code"`
	} `json:"failure"`
}

// apply runs a module's program on the Debian, behind scripts.
func (r root) apply(t *testing.T, module string, options map[string]any, before ...string) answer {
	t.Helper()
	text := r.Run(t, module, options, before...)
	var said answer
	require.NoError(t, json.Unmarshal(text, &said), "%s", text)
	return said
}

func TestKernelParametersWithRealGRUB(t *testing.T) {
	t.Parallel()
	r := newRoot(t, "initramfs-tools")
	r.sh(t, `sed -i 's/^GRUB_CMDLINE_LINUX_DEFAULT=.*/GRUB_CMDLINE_LINUX_DEFAULT="quiet amd_iommu=on splash"/' "$root/etc/default/grub"; env -u LC_ALL LANG=de_DE.UTF-8 chroot "$root" grub-mkconfig -o /boot/grub/grub.cfg 2>/dev/null`)
	before := r.Etc(t)
	lines := func() string { return r.sh(t, `grep '^[[:space:]]*linux' "$root/boot/grub/grub.cfg"`) }
	require.Contains(t, lines(), "quiet amd_iommu=on splash")
	require.Contains(t, before, "set lang=de_DE")
	options := func() map[string]any {
		return map[string]any{"name": "gpu", "present": []string{"intel_iommu=on", "iommu=pt"}, "absent": []string{"amd_iommu"}}
	}

	// Each of its writes: the record, the file, the entries.
	for _, folder := range []string{"/var/lib", "/etc/default/grub.d", "/boot/grub"} {
		said := r.apply(t, "kernel_cmdline", options(), vm.ReadOnly(folder))
		assert.True(t, said.Failed && !said.Changed, "%s: %+v", folder, said)
		assert.Equal(t, before, r.Etc(t), "%s: everything is as it was", folder)
	}

	said := r.apply(t, "kernel_cmdline", options())
	require.False(t, said.Failed, "%+v", said)
	assert.True(t, said.Changed)
	assert.Contains(t, lines(), "quiet splash intel_iommu=on iommu=pt")
	assert.NotContains(t, lines(), "amd_iommu")
	assert.Contains(t, r.sh(t, `cat "$root/etc/default/grub"`), "quiet amd_iommu=on splash", "the user's line is left alone")
	assert.False(t, r.apply(t, "kernel_cmdline", options()).Changed, "the second run")

	r.sh(t, `sed -i 's/ intel_iommu=on//' "$root/boot/grub/grub.cfg"`)
	assert.True(t, r.apply(t, "kernel_cmdline", options()).Changed, "entries that somebody changed")

	said = r.apply(t, "kernel_cmdline", map[string]any{"name": "gpu", "state": "absent"})
	require.False(t, said.Failed, "%+v", said)
	assert.Equal(t, before, r.Etc(t))
	assert.False(t, r.apply(t, "kernel_cmdline", map[string]any{"name": "gpu", "state": "absent"}).Changed)

	r.sh(t, `printf '#!/bin/sh\nexit 1\n' >"$root/etc/grub.d/00_broken"; chmod 755 "$root/etc/grub.d/00_broken"`)
	files := r.Etc(t)
	said = r.apply(t, "kernel_cmdline", options())
	assert.Equal(t, "refresh_failed", said.Failure.Code, said.Msg)
	assert.Equal(t, files, r.Etc(t), "everything is as it was")

	r.sh(t, `rm "$root/etc/grub.d/00_broken"; sed -i '2iGRUB_CMDLINE_LINUX_DEFAULT=other' "$root/etc/grub.d/10_linux"; env -u LC_ALL LANG=de_DE.UTF-8 chroot "$root" grub-mkconfig -o /boot/grub/grub.cfg 2>/dev/null`)
	files = r.Etc(t)
	said = r.apply(t, "kernel_cmdline", options())
	assert.Equal(t, "refresh_failed", said.Failure.Code, said.Msg)
	assert.Contains(t, said.Msg, "intel_iommu=on is missing", "a tool that does not take it")
	assert.Equal(t, files, r.Etc(t), "everything is as it was")
}

func TestKernelParametersWithRealKernelInstall(t *testing.T) {
	t.Parallel()
	r := newRoot(t, "initramfs-tools")
	// A system that systemd-boot starts, with a line that somebody wrote.
	r.sh(t, `echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"; mkdir -p "$root/boot/efi/loader/entries" "$root/etc/kernel"; echo layout=bls >"$root/etc/kernel/install.conf"
printf 'root=UUID=1   ro quiet\n' >"$root/etc/kernel/cmdline"; rm "$root/usr/sbin/grub-mkconfig"
mkdir -p "$root/boot/efi/0123456789abcdef0123456789abcdef"; release=$(ls "$root/lib/modules"); chroot "$root" kernel-install add "$release" "/boot/vmlinuz-$release"`)
	before := r.Etc(t)
	line := func() string { return r.sh(t, `grep -h '^options' "$root"/boot/efi/loader/entries/*.conf`) }
	require.Contains(t, line(), "root=UUID=1 ro quiet")

	options := map[string]any{"name": "gpu", "present": []string{"intel_iommu=on", "iommu=pt"}, "absent": []string{"quiet"}}
	said := r.apply(t, "kernel_cmdline", options)
	require.False(t, said.Failed, "%+v", said)
	assert.Contains(t, line(), "root=UUID=1 ro intel_iommu=on iommu=pt")
	assert.False(t, r.apply(t, "kernel_cmdline", options).Changed, "the second run")

	said = r.apply(t, "kernel_cmdline", map[string]any{"name": "gpu", "state": "absent"})
	require.False(t, said.Failed, "%+v", said)
	assert.Equal(t, before, r.Etc(t))
	assert.Equal(t, "root=UUID=1   ro quiet\n", r.sh(t, `cat "$root/etc/kernel/cmdline"`), "to the byte")
	assert.Contains(t, line(), "quiet")
	assert.NotContains(t, line(), "iommu")
}

// TestGPUWithDracut looks into what dracut makes; its initramfs takes an emulated processor a minute to boot.
func TestGPUWithDracut(t *testing.T) {
	t.Parallel()
	r := newRoot(t, "dracut")
	before := r.Etc(t)
	list := func() string {
		return r.sh(t, `chroot "$root" lsinitrd $(cd "$root"; ls boot/initrd.img-* | sed 's,^,/,') | sed -n 's/.* //p' | sort`)
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
	assert.Equal(t, before, r.Etc(t))
	assert.Equal(t, names, list())
}
