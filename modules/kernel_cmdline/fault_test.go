// SPDX-License-Identifier: Apache-2.0

package kernelcmdline

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/bootloader"
)

// bench is the module on a tree with boot loaders' tools that are made up.
type bench struct {
	root string
	// failAt is which write fails, counted from 1 in each run, of files, records and tools: once, and it is 0 then. A tool that is
	// late fails when it has done what it was told.
	failAt, wrote int
	late          bool
	// broken tools fail whenever they change something.
	broken bool
}

var errInjected = errors.New("injected failure")

func (b *bench) write(string) error {
	b.wrote++

	if b.wrote == b.failAt {
		b.failAt = 0

		return errInjected
	}

	return nil
}

func (b *bench) put(t *testing.T, files map[string]string) {
	t.Helper()

	for path, content := range files {
		require.NoError(t, os.MkdirAll(filepath.Dir(b.root+path), 0o755))
		require.NoError(t, os.WriteFile(b.root+path, []byte(content), 0o644))
	}
}

func (b *bench) run(t *testing.T, state string) map[string]any {
	t.Helper()

	module := Module
	module.Lock = ""
	module.Open = func(_ context.Context, _ *ansible.Task, args Args) (ansible.Host[State], error) {
		return &host{args: args, fault: b.write, tool: b.tool}, nil
	}

	args := map[string]any{"name": "gpu", "state": state, "root": b.root}
	if state == "present" {
		args["present"], args["absent"] = []string{"intel_iommu=on", "iommu=pt"}, []string{"quiet"}
	}

	text, err := json.Marshal(args)
	require.NoError(t, err)

	path := filepath.Join(t.TempDir(), "args")
	require.NoError(t, os.WriteFile(path, text, 0o600))

	var out, errOut bytes.Buffer

	b.wrote = 0
	ansible.Standalone(module, []string{"kernel_cmdline", path}, &out, &errOut)

	var result map[string]any

	require.NoError(t, json.Unmarshal(out.Bytes(), &result), "%s%s", out.String(), errOut.String())

	return result
}

// tool does what a boot loader's tool does.
func (b *bench) tool(program string, args ...string) ([]byte, error) {
	if program == "grubby" && slices.Contains(args, "--info=ALL") {
		text, err := os.ReadFile(b.root + grubbyStore)
		out := ""

		for line := range strings.Lines(string(text)) {
			out += "index=0\nargs=\"" + strings.TrimSpace(line) + "\"\n"
		}

		return []byte(out), err
	}

	if program == "proxmox-boot-tool" && args[0] == "status" {
		if _, err := os.Stat(b.root + "/boot/grub/grub.cfg"); err == nil {
			return []byte("AB is configured with: grub (versions: 1)\n"), nil
		}

		return []byte("AB is configured with: uefi (versions: 1)\n"), nil
	}

	err := b.write(program)
	if b.broken {
		err = errInjected
	}

	if err != nil && !b.late {
		return nil, err
	}

	return nil, errors.Join(err, b.make(program, args))
}

const grubbyStore = "/grubby"

// make has the entries changed.
func (b *bench) make(program string, args []string) error {
	option := func(name string) []string {
		for i, arg := range args {
			if value, ok := strings.CutPrefix(arg, name+"="); ok {
				return strings.Fields(value)
			}

			if arg == name {
				return strings.Fields(args[i+1])
			}
		}

		return nil
	}
	read := func(path string) string {
		text, _ := os.ReadFile(b.root + path)

		return strings.TrimSpace(string(text))
	}
	write := func(path, text string) error { return os.WriteFile(b.root+path, []byte(text), 0o644) }

	switch program {
	case "grub-mkconfig":
		out, err := exec.Command("sh", "-ec", `GRUB_CMDLINE_LINUX_DEFAULT="root=UUID=1 ro quiet"; for each in "$1"/*.cfg; do [ ! -e "$each" ] || . "$each"; done; echo "$GRUB_CMDLINE_LINUX_DEFAULT"`,
			"sh", b.root+"/etc/default/grub.d").Output()

		return errors.Join(err, write("/boot/grub/grub.cfg", "\tlinux /vmlinuz "+string(out)))
	case "grubby":
		made := ""
		for line := range strings.Lines(read(grubbyStore) + "\n") {
			made += strings.Join(bootloader.Edit(strings.Fields(line), option("--args"), option("--remove-args")), " ") + "\n"
		}

		return write(grubbyStore, made)
	case "kernelstub":
		var config map[string]map[string][]string
		if err := json.Unmarshal([]byte(read("/etc/kernelstub/configuration")), &config); err != nil {
			return err
		}

		config["user"]["kernel_options"] = bootloader.Edit(config["user"]["kernel_options"], option("--add-options"), option("--delete-options"))
		text, err := json.Marshal(config)

		return errors.Join(err, write("/etc/kernelstub/configuration", string(text)))
	case "kernel-install":
		return write("/boot/loader/entries/0a-"+args[1]+".conf", "linux /vmlinuz\noptions "+read("/etc/kernel/cmdline")+"\n")
	case "proxmox-boot-tool":
		return write("/efi/cmdline", cmp.Or(read("/boot/grub/grub.cfg"), read("/etc/kernel/cmdline")))
	}

	return fmt.Errorf("there is no program %s", program)
}

func (b *bench) everything(t *testing.T) map[string]string {
	t.Helper()

	all := map[string]string{}

	require.NoError(t, filepath.WalkDir(b.root, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			text, _ := os.ReadFile(path)
			all[strings.TrimPrefix(path, b.root)] = string(text)
		} else if err == nil {
			all[strings.TrimPrefix(path, b.root)+"/"] = "folder"
		}

		return err
	}))

	return all
}

const userLine = "root=UUID=1 ro quiet\n"

// loaders are trees with each.
var loaders = map[string]map[string]string{
	bootloader.GRUB: {"/usr/sbin/grub-mkconfig": "", "/etc/default/grub": "", "/boot/grub/grub.cfg": "\tlinux /vmlinuz " + userLine},
	"grub by proxmox-boot-tool": {
		"/usr/sbin/grub-mkconfig": "", "/etc/default/grub": "", "/boot/grub/grub.cfg": "\tlinux /vmlinuz " + userLine, "/usr/sbin/proxmox-boot-tool": "",
		"/etc/kernel/proxmox-boot-uuids": "ABCD\n", "/etc/kernel/cmdline": userLine, "/efi/cmdline": "linux /vmlinuz " + strings.TrimSpace(userLine),
	},
	bootloader.KernelInstall: {
		"/usr/bin/kernel-install": "", "/etc/machine-id": "0a\n", "/etc/kernel/cmdline": userLine, "/boot/vmlinuz-1": "", "/boot/vmlinuz-2": "", "/lib/modules/1/x": "", "/lib/modules/2/x": "",
		"/boot/loader/entries/0a-1.conf": "linux /vmlinuz\noptions " + userLine, "/boot/loader/entries/0a-2.conf": "linux /vmlinuz\noptions " + userLine,
	},
	bootloader.Grubby:     {"/usr/sbin/grubby": "", grubbyStore: userLine + userLine},
	bootloader.Kernelstub: {"/usr/bin/kernelstub": "", "/etc/kernelstub/configuration": `{"user":{"kernel_options":["root=UUID=1","ro","quiet"]}}`},
	bootloader.Proxmox: {
		"/usr/sbin/proxmox-boot-tool": "", "/etc/kernel/proxmox-boot-uuids": "ABCD\n", "/etc/kernel/cmdline": userLine, "/efi/cmdline": strings.TrimSpace(userLine),
	},
}

func newBench(t *testing.T, loader string) *bench {
	t.Helper()

	b := &bench{root: t.TempDir()}
	b.put(t, loaders[loader])
	require.NoError(t, os.MkdirAll(b.root+"/var/lib", 0o755))

	return b
}

// TestAFailureAtEveryWriteIsTakenBack has each write fail that a run makes - records, files, removals, the boot loader's tool,
// this before and after it has done what it was told - and looks that nothing is half done and that the next run brings it to an end.
func TestAFailureAtEveryWriteIsTakenBack(t *testing.T) {
	for loader := range loaders {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, late %t", loader, late), func(t *testing.T) {
				t.Parallel()

				b := newBench(t, loader)
				before := b.everything(t)
				require.NotContains(t, b.run(t, "present"), "failed")

				after := b.everything(t)
				require.NotEqual(t, before, after)
				require.Equal(t, false, b.run(t, "present")["changed"])

				there := everyWrite(t, loader, late, "present", func(t *testing.T, _ *bench) {}, before, after)
				back := everyWrite(t, loader, late, "absent", func(t *testing.T, b *bench) {
					require.NotContains(t, b.run(t, "present"), "failed")
				}, after, before)

				t.Logf("%d writes there, %d back", there, back)
				assert.Greater(t, there, 2)
				assert.Greater(t, back, 2)
			})
		}
	}
}

// everyWrite has one write after the other fail, on a tree that is made ready, and gives how many there are.
func everyWrite(t *testing.T, loader string, late bool, state string, ready func(*testing.T, *bench), before, after map[string]string) int {
	t.Helper()

	for write := 1; ; write++ {
		b := newBench(t, loader)
		ready(t, b)
		b.failAt, b.late = write, late

		result := b.run(t, state)
		if b.failAt > 0 {
			require.NotContains(t, result, "failed", "%v", result)

			return write - 1
		}

		name := fmt.Sprintf("%s, write %d: %v", state, write, result["msg"])
		require.Equal(t, true, result["failed"], name)

		got := b.everything(t)
		if result["changed"] == true { // only records are left
			assert.Subset(t, got, after, name)
			assert.Contains(t, result["msg"], "removing the record", name)
		} else {
			assert.Equal(t, before, got, name)
		}

		require.NotContains(t, b.run(t, state), "failed", name)
		assert.Equal(t, after, b.everything(t), name)
	}
}

// TestAToolThatFailsAlwaysLeavesNothing, not even a record of what it was to do, where it has done nothing; and the record where
// it has, since that is what state: absent goes by.
func TestAToolThatFailsAlwaysLeavesNothing(t *testing.T) {
	for loader := range loaders {
		b := newBench(t, loader)
		before := b.everything(t)
		b.broken = true

		result := b.run(t, "present")
		assert.Equal(t, "refresh_failed", result["failure"].(map[string]any)["code"], "%s: %v", loader, result)
		assert.Equal(t, before, b.everything(t), loader)

		b.broken = false
		require.NotContains(t, b.run(t, "present"), "failed")
	}
}

// TestWhatOneEntryHadStays: grubby keeps a line for each kernel, and somebody had the parameter for one of them.
func TestWhatOneEntryHadStays(t *testing.T) {
	b := newBench(t, bootloader.Grubby)
	b.put(t, map[string]string{grubbyStore: "root=UUID=1 ro quiet\nroot=UUID=1 ro iommu=pt quiet\n"})

	result := b.run(t, "present")
	require.NotContains(t, result, "failed", "%v", result)
	assert.Contains(t, fmt.Sprint(result["warnings"]), "some entries of grubby have iommu=pt by themselves")
	assert.Equal(t, false, b.run(t, "present")["changed"])

	require.NotContains(t, b.run(t, "absent"), "failed")

	text, err := os.ReadFile(b.root + grubbyStore)
	require.NoError(t, err)
	assert.Equal(t, "root=UUID=1 ro iommu=pt quiet\nroot=UUID=1 ro iommu=pt quiet\n", string(text))
	assert.NoDirExists(t, b.root+"/var/lib/thinkube")

	// When the tool fails, nor is it taken from that one.
	b = newBench(t, bootloader.Grubby)
	b.put(t, map[string]string{grubbyStore: "root=UUID=1 ro quiet\nroot=UUID=1 ro iommu=pt quiet\n"})
	b.failAt, b.late = 4, true // two records before it: of the name, of intel_iommu=on; and that of quiet

	result = b.run(t, "present")
	require.Equal(t, true, result["failed"])
	assert.Contains(t, result["msg"], "grubby --update-kernel=ALL")

	text, err = os.ReadFile(b.root + grubbyStore)
	require.NoError(t, err)
	assert.Contains(t, string(text), "iommu=pt")
	assert.NotContains(t, string(text), "intel_iommu=on")
}
