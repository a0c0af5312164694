// SPDX-License-Identifier: Apache-2.0

package bootloader_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/bootloader"
	"github.com/thinkube/infra/modules/internal/initramfs"
)

func TestLines(t *testing.T) {
	line := bootloader.Split("root=UUID=1 ro  quiet\tdyndbg=\"file drivers/usb/* +p\" intel_iommu=off\n")
	assert.Equal(t, []string{"root=UUID=1", "ro", "quiet", `dyndbg="file drivers/usb/* +p"`, "intel_iommu=off"}, line)

	assert.Equal(t, []string{"root=UUID=1", "ro", `dyndbg="file drivers/usb/* +p"`, "intel_iommu=on", "iommu=pt"},
		bootloader.Edit(line, []string{"intel_iommu=on", "iommu=pt", "ro"}, []string{"intel_iommu=off", "quiet"}))
	assert.Equal(t, []string{"iommu=pt is missing", "intel_iommu=off is there"}, bootloader.Lacks(line, []string{"ro", "iommu=pt"}, []string{"intel-iommu"}))
	assert.Empty(t, bootloader.Lacks(line, []string{"quiet"}, []string{"intel_iommu=on", "oops"}))
}

// sourced gives what GRUB's variables are after /etc/default/grub and the file.
func sourced(t *testing.T, before string, present, absent []string) (all, normal string) {
	t.Helper()

	path := filepath.Join(t.TempDir(), "95-thinkube.cfg")
	require.NoError(t, os.WriteFile(path, []byte(bootloader.RenderGRUB("# header\n", present, absent)), 0o600))

	// grub-mkconfig has set -e too.
	out, err := exec.Command("sh", "-ec", before+"\n. "+path+"\nprintf '%s\\n%s\\n' \"$GRUB_CMDLINE_LINUX\" \"$GRUB_CMDLINE_LINUX_DEFAULT\"").CombinedOutput()
	require.NoError(t, err, string(out))

	lines := strings.Split(string(out), "\n")
	require.Len(t, lines, 3, string(out))

	return lines[0], lines[1]
}

func TestGRUBsAdditionsInAShell(t *testing.T) {
	for name, each := range map[string]struct {
		before          string
		present, absent []string
		all, normal     string
	}{
		"added at the end":             {`GRUB_CMDLINE_LINUX_DEFAULT="quiet splash"`, []string{"intel_iommu=on", "iommu=pt"}, nil, "", "quiet splash intel_iommu=on iommu=pt"},
		"added to nothing":             {`:`, []string{"iommu=pt"}, nil, "", "iommu=pt"},
		"single quotes":                {`GRUB_CMDLINE_LINUX_DEFAULT='quiet'`, []string{"iommu=pt"}, nil, "", "quiet iommu=pt"},
		"not added twice":              {`GRUB_CMDLINE_LINUX_DEFAULT="iommu=pt quiet"`, []string{"iommu=pt"}, nil, "", "iommu=pt quiet"},
		"not added to what all have":   {`GRUB_CMDLINE_LINUX="iommu=pt"`, []string{"iommu=pt"}, nil, "iommu=pt", ""},
		"only whole words count":       {`GRUB_CMDLINE_LINUX_DEFAULT="xiommu=pt iommu=pt2"`, []string{"iommu=pt"}, nil, "", "xiommu=pt iommu=pt2 iommu=pt"},
		"left out wherever it is":      {`GRUB_CMDLINE_LINUX="intel_iommu=on a"; GRUB_CMDLINE_LINUX_DEFAULT="b intel_iommu=on"`, nil, []string{"intel_iommu=on"}, "a", "b"},
		"left out eight times":         {`GRUB_CMDLINE_LINUX_DEFAULT="quiet intel_iommu=on iommu=pt intel_iommu=on iommu=pt intel_iommu=on iommu=pt intel_iommu=on iommu=pt"`, []string{"iommu=pt"}, []string{"intel_iommu"}, "", "quiet iommu=pt iommu=pt iommu=pt iommu=pt"},
		"left out by name":             {`GRUB_CMDLINE_LINUX_DEFAULT="intel_iommu=on quiet intel_iommu=off intel_iommu_x=1 intel_iommu"`, nil, []string{"intel_iommu"}, "", "quiet intel_iommu_x=1"},
		"only the value that is meant": {`GRUB_CMDLINE_LINUX_DEFAULT="intel_iommu=on,sm_on intel_iommu=on"`, nil, []string{"intel_iommu=on"}, "", "intel_iommu=on,sm_on"},
		"nothing to do":                {`GRUB_CMDLINE_LINUX_DEFAULT="  quiet   splash "`, []string{"quiet"}, []string{"nosplash"}, "", "  quiet   splash "},
		"patterns are no patterns":     {`GRUB_CMDLINE_LINUX_DEFAULT="a=b c=[d]"`, nil, []string{"c=[d]"}, "", "a=b"},
		"left out in either spelling":  {`GRUB_CMDLINE_LINUX_DEFAULT="intel-iommu=off a intel_iommu=on"`, nil, []string{"intel_iommu"}, "", "a"},
		"quotes stay":                  {`GRUB_CMDLINE_LINUX_DEFAULT='dyndbg="file x +p" quiet'`, []string{"iommu=pt"}, []string{"quiet"}, "", `dyndbg="file x +p" iommu=pt`},
	} {
		t.Run(name, func(t *testing.T) {
			all, normal := sourced(t, each.before, each.present, each.absent)
			assert.Equal(t, each.all, all, "GRUB_CMDLINE_LINUX")
			assert.Equal(t, each.normal, normal, "GRUB_CMDLINE_LINUX_DEFAULT")
		})
	}
}

func TestGRUBsAdditionsPassShellcheck(t *testing.T) {
	program, err := exec.LookPath("shellcheck")
	if err != nil {
		if os.Getenv("CI") == "true" {
			require.NoError(t, err)
		}

		t.Skip(err)
	}

	path := filepath.Join(t.TempDir(), "95-thinkube.cfg")
	require.NoError(t, os.WriteFile(path, []byte(bootloader.RenderGRUB("# header\n", []string{"iommu=pt"}, []string{"quiet", "intel_iommu=off"})), 0o600))

	// Another program reads the variables.
	out, err := exec.Command(program, "--shell=sh", "--exclude=SC2034", path).CombinedOutput()
	require.NoError(t, err, string(out))
}

const grubConfig = `menuentry 'Debian GNU/Linux' {
	linux	/boot/vmlinuz-6.1.0-1-amd64 root=UUID=1 ro  quiet iommu=pt
	initrd	/boot/initrd.img-6.1.0-1-amd64
}
menuentry 'recovery' {
	linux	/boot/vmlinuz-6.1.0-1-amd64 root=UUID=1 ro single
}
menuentry 'memory test' {
	linux16	/boot/memtest86+.bin
}
`

// tree makes a tree of files.
func tree(t *testing.T, files map[string]string) bootloader.Reader {
	t.Helper()

	root := t.TempDir()

	for path, content := range files {
		require.NoError(t, os.MkdirAll(filepath.Dir(root+path), 0o755))
		require.NoError(t, os.WriteFile(root+path, []byte(content), 0o755))
	}

	return bootloader.Reader{Tree: initramfs.Tree{Root: root}}
}

func TestLoadersAreFoundAndRead(t *testing.T) {
	entry := "title Debian\nversion 6.1\noptions root=UUID=1 ro\noptions quiet\nlinux /vmlinuz\n"
	others := `### BEGIN /etc/grub.d/10_linux ###
menuentry 'Debian' {
	linux /vmlinuz root=UUID=1 ro quiet
}
### END /etc/grub.d/10_linux ###
### BEGIN /etc/grub.d/30_os-prober ###
menuentry 'Fedora' {
	linux /vmlinuz root=UUID=2 ro rhgb
}
### END /etc/grub.d/30_os-prober ###
### BEGIN /etc/grub.d/40_custom ###
	linux /mine root=UUID=3
### END /etc/grub.d/40_custom ###
`

	for name, each := range map[string]struct {
		files   map[string]string
		found   []string
		entries []bootloader.Entry
	}{
		"grub": {
			map[string]string{"/usr/sbin/grub-mkconfig": "", "/boot/grub/grub.cfg": grubConfig}, []string{"grub"},
			[]bootloader.Entry{{Source: "/boot/grub/grub.cfg", Line: []string{"root=UUID=1", "ro", "quiet", "iommu=pt"}}},
		},
		"kernel-install": {
			map[string]string{
				"/usr/bin/kernel-install": "", "/etc/machine-id": "0a\n", "/boot/efi/loader/entries/0a-6.1.conf": entry,
				"/boot/efi/loader/entries/0b-6.1.conf": entry, "/boot/efi/loader/entries/memtest.conf": "title Memory\nefi /memtest.efi\n",
				"/boot/efi/loader/entries/0a-other.conf": "machine-id 0b\n" + entry, "/boot/efi/loader/entries/0a-tool.conf": "efi /tool.efi\n",
			},
			[]string{"kernel-install"},
			[]bootloader.Entry{{Source: "/boot/efi/loader/entries/0a-6.1.conf", Line: []string{"root=UUID=1", "ro", "quiet"}}},
		},
		"kernel-install with a token": {
			map[string]string{"/usr/bin/kernel-install": "", "/etc/kernel/entry-token": "a\n", "/boot/efi/loader/entries/a-6.1.conf": entry}, []string{"kernel-install"},
			[]bootloader.Entry{{Source: "/boot/efi/loader/entries/a-6.1.conf", Line: []string{"root=UUID=1", "ro", "quiet"}}},
		},
		"kernel-install beside another system's entries": {
			map[string]string{"/usr/bin/kernel-install": "", "/etc/machine-id": "0a\n", "/boot/efi/loader/entries/0b-6.1.conf": entry}, []string{}, nil,
		},
		"grub with other systems": {
			map[string]string{"/usr/sbin/grub-mkconfig": "", "/boot/grub/grub.cfg": others}, []string{"grub"},
			[]bootloader.Entry{{Source: "/boot/grub/grub.cfg", Line: []string{"root=UUID=1", "ro", "quiet"}}},
		},
		"kernelstub": {
			map[string]string{"/usr/bin/kernelstub": "", "/etc/kernelstub/configuration": `{"default": {}, "user": {"kernel_options": ["quiet", "splash"], "esp_path": "/boot/efi"}}`, "/usr/bin/kernel-install": "", "/boot/efi/loader/entries/Pop_OS-current.conf": entry},
			[]string{"kernelstub"}, []bootloader.Entry{{Source: "/etc/kernelstub/configuration", Line: []string{"quiet", "splash"}}},
		},
		"proxmox": {
			map[string]string{"/usr/sbin/proxmox-boot-tool": "", "/etc/kernel/proxmox-boot-uuids": "ABCD\n", "/etc/kernel/cmdline": "root=ZFS=rpool boot=zfs\n", "status": "ABCD is configured with: uefi (versions: 6.8)", "/usr/sbin/grub-mkconfig": "", "/boot/grub/grub.cfg": grubConfig},
			[]string{"proxmox-boot-tool", "grub"}, []bootloader.Entry{{Source: "/etc/kernel/cmdline", Line: []string{"root=ZFS=rpool", "boot=zfs"}}},
		},
		"kernel-install without entries is not in charge": {map[string]string{"/usr/bin/kernel-install": ""}, []string{}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			reader := tree(t, each.files)
			reader.Tree.Tool = func(program string, args ...string) ([]byte, error) { return []byte(each.files["status"]), nil }
			found, err := reader.Find(t.Context())
			require.NoError(t, err)
			assert.Equal(t, each.found, found)

			if len(found) > 0 {
				entries, err := reader.Entries(context.Background(), found[0])
				require.NoError(t, err)
				assert.Equal(t, each.entries, entries)
			}
		})
	}
}

func TestGRUBsFilesAreNotBelievedWhereSystemdBootStartsTheHost(t *testing.T) {
	// Flags, then UTF-16.
	info := func(name string) string {
		text := "\x06\x00\x00\x00"
		for _, char := range name + "\x00" {
			text += string(char) + "\x00"
		}

		return text
	}

	for name, found := range map[string][]string{"systemd-boot 252.39-1": {"kernel-install"}, "GRUB 2.12": {"grub", "kernel-install"}} {
		reader := tree(t, map[string]string{
			"/usr/sbin/grub-mkconfig": "", "/boot/grub/grub.cfg": grubConfig, "/usr/bin/kernel-install": "", "/etc/machine-id": "0a\n",
			"/boot/efi/loader/entries/0a-6.1.conf":                                      "linux /vmlinuz\noptions root=UUID=1\n",
			"/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f": info(name),
		})
		got, err := reader.Find(t.Context())
		require.NoError(t, err)
		assert.Equal(t, []string{"grub", "kernel-install"}, got, "a tree that does not run")

		reader.Sys = reader.Tree.Root + "/sys"
		got, err = reader.Find(t.Context())
		require.NoError(t, err)
		assert.Equal(t, found, got, name)
	}
}

// TestWhoStartsAProxmoxIsAskedOfItsTool: with BIOS and secure boot it is GRUB, and /etc/kernel/cmdline is read by nobody.
func TestWhoStartsAProxmoxIsAskedOfItsTool(t *testing.T) {
	const both, systemd = "AB is configured with: uefi (versions: 6.8), grub (versions: 6.8)\n", "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

	for name, each := range map[string]struct {
		status string
		fails  bool
		info   string
		found  []string
	}{
		"systemd-boot":                    {status: "System currently booted with uefi\nAB is configured with: uefi (versions: 6.8)\n", found: []string{"proxmox-boot-tool", "grub"}},
		"GRUB by BIOS":                    {status: "System currently booted with legacy bios\nAB is configured with: grub (versions: 6.8)\nWARN: CD does not exist\n", found: []string{"grub"}},
		"GRUB by secure boot":             {status: "System currently booted with uefi\nAB is configured with: grub (versions: 6.8)\n", found: []string{"grub"}},
		"both, started by GRUB":           {status: both, found: []string{"grub"}},
		"both, started by systemd-boot":   {status: both, info: "systemd-boot 252", found: []string{"proxmox-boot-tool"}},
		"a tool that fails":               {fails: true, found: []string{"grub"}},
		"a tool that fails, systemd-boot": {fails: true, info: "systemd-boot 252", found: []string{"proxmox-boot-tool"}},
	} {
		files := map[string]string{
			"/usr/sbin/proxmox-boot-tool": "", "/etc/kernel/proxmox-boot-uuids": "AB\n", "/etc/kernel/cmdline": "root=ZFS=rpool\n", "/usr/sbin/grub-mkconfig": "", "/boot/grub/grub.cfg": grubConfig,
		}
		if each.info != "" {
			files[systemd] = "1234" + each.info
		}

		reader := tree(t, files)
		reader.Sys = reader.Tree.Root + "/sys"

		var ran []string

		reader.Tree.Tool = func(program string, args ...string) ([]byte, error) {
			ran = append(ran, program+" "+args[0])
			if each.fails {
				return nil, errors.New("no such command")
			}

			return []byte(each.status), nil
		}

		found, err := reader.Find(t.Context())
		require.NoError(t, err)
		assert.Equal(t, each.found, found, name)

		if found[0] == bootloader.GRUB && !each.fails {
			ran = nil
			require.NoError(t, reader.Refresh(t.Context(), bootloader.GRUB, nil, nil))
			assert.Equal(t, []string{"grub-mkconfig -o", "proxmox-boot-tool refresh"}, ran, name)
		}
	}
}

func TestWhatCannotBeReadIsNotTakenForNothing(t *testing.T) {
	for _, path := range []string{"/etc/machine-id", "/etc/kernel/entry-token", "/etc/os-release"} {
		reader := tree(t, map[string]string{"/usr/bin/kernel-install": "", path + "/it is a folder": ""})

		_, err := reader.Find(t.Context())
		assert.Error(t, err, path)
	}
}

func TestWhatKernelInstallBeginsWith(t *testing.T) {
	running := []string{"BOOT_IMAGE=/vmlinuz", "initrd=/initrd", "root=UUID=1", "init=/sbin/init", "ro"}

	reader := tree(t, nil)
	base, err := reader.Base(running)
	require.NoError(t, err)
	assert.Empty(t, base, "a tree that does not run has not been started")

	reader.Sys = "/sys"
	base, err = reader.Base(running)
	require.NoError(t, err)
	assert.Equal(t, []string{"root=UUID=1", "init=/sbin/init", "ro"}, base)

	reader = tree(t, map[string]string{"/usr/lib/kernel/cmdline": "root=LABEL=x quiet\n"})
	base, err = reader.Base(running)
	require.NoError(t, err)
	assert.Equal(t, []string{"root=LABEL=x", "quiet"}, base)
}

func FuzzSplit(f *testing.F) {
	f.Add(`root=UUID=1 a="b c" d`)
	f.Fuzz(func(t *testing.T, line string) {
		words := bootloader.Split(line)
		for _, word := range words {
			if word == "" {
				t.Fatalf("%q has an empty parameter", line)
			}
		}
	})
}
