// SPDX-License-Identifier: Apache-2.0

package gpuvfio

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/initramfs"
	"github.com/thinkube/infra/modules/internal/pcitest"
)

func builtIn(driver, module string) []target {
	const folder = "/devices/pci0000:00/"

	return []target{
		{Record: Record{Address: "0000:02:00.0", ID: "10de:2684", Path: folder + "0000:02:00.0", Card: "0000:02:00.0", Driver: "nouveau", Module: "nouveau"}, wanted: "vfio-pci"},
		{Record: Record{Address: "0000:02:00.2", ID: "10de:1ad6", Path: folder + "0000:02:00.2", Card: "0000:02:00.0", Driver: driver, Module: module}, wanted: "vfio-pci"},
	}
}

func TestOnlyBuiltInDriversNeedAUnit(t *testing.T) {
	assert.Empty(t, renderUnit(builtIn("xhci_hcd", "xhci_pci")))
	assert.Empty(t, renderUnit(builtIn("", "")))
	assert.Contains(t, renderUnit(builtIn("xhci_hcd", "")), "shown 0000:02:00.0 || move 0000:02:00.2 /sys/devices/pci0000:00/0000:02:00.2 0x10de 0x1ad6 vfio-pci")
}

// TestTheUnitLoadsEveryDriver: who is unbound for a driver that is not there is with nobody.
func TestTheUnitLoadsEveryDriver(t *testing.T) {
	targets := builtIn("xhci_hcd", "")
	targets[0].Module, targets[0].wanted = "", "nvgrace_gpu_vfio_pci"
	unit := renderUnit(targets)

	assert.Contains(t, unit, "ExecStartPre=-modprobe nvgrace_gpu_vfio_pci\nExecStartPre=-modprobe vfio-pci\nExecStart=")
	assert.Contains(t, renderUnit(builtIn("xhci_hcd", "")), "TimeoutStartSec=30\nExecStartPre=-modprobe vfio-pci\nExecStart=")
}

// TestTheRuleTakesNothingForADriverThatTheKernelLacks: as the rule asks, in a shell.
func TestTheRuleTakesNothingForADriverThatTheKernelLacks(t *testing.T) {
	rule := renderRule(builtIn("xhci_hcd", ""))
	_, after, found := strings.Cut(rule, `TEST!="/sys/bus/pci/drivers/vfio-pci", PROGRAM!="/bin/sh -c '`)
	require.True(t, found, rule)

	script, after, _ := strings.Cut(after, `'", `)
	assert.True(t, strings.HasPrefix(after, `GOTO="thinkube_gpu_vfio_0000:02:00.0"`), after)
	assert.Equal(t, 1, strings.Count(rule, "PROGRAM"), "once for a card")

	for name, each := range map[string]struct {
		modprobe string
		has      bool
	}{
		"the kernel has it":   {"#!/bin/sh\n[ \"$*\" = '-D -q vfio-pci' ]\n", true},
		"the kernel lacks it": {"#!/bin/sh\nexit 1\n", false},
		"nobody can tell":     {"", true},
	} {
		modprobe := t.TempDir() + "/modprobe"
		if each.modprobe != "" {
			require.NoError(t, os.WriteFile(modprobe, []byte(each.modprobe), 0o700))
		}

		program := exec.Command("/bin/sh", "-c", strings.ReplaceAll(script, "/sbin/modprobe", modprobe))
		assert.Equal(t, each.has, program.Run() == nil, name)
	}
}

// unitScript is what systemd gives to the shell.
func unitScript(t *testing.T, root string) string {
	t.Helper()

	_, script, found := strings.Cut(renderUnit(builtIn("xhci_hcd", "")), "ExecStart=/bin/sh -c '")
	require.True(t, found)

	script, _, found = strings.Cut(script, "'\n")
	require.True(t, found)

	return strings.ReplaceAll(strings.ReplaceAll(script, "$$", "$"), "/sys/", root+"/sys/")
}

func TestTheUnitMovesWhatItMeansAndNothingElse(t *testing.T) {
	read := func(kernel *pcitest.Kernel, name string) string {
		text, err := os.ReadFile(kernel.Root + "/sys/bus/pci/" + name)
		require.NoError(t, err)

		return strings.TrimSpace(string(text))
	}
	run := func(kernel *pcitest.Kernel) {
		out, err := exec.Command("sh", "-ec", unitScript(t, kernel.Root)).CombinedOutput()
		require.NoError(t, err, string(out))
	}

	kernel := pcitest.TwoCards(t)
	run(kernel)
	assert.Equal(t, "vfio-pci", read(kernel, "devices/0000:02:00.2/driver_override"))
	assert.Equal(t, "0000:02:00.2", read(kernel, "drivers/xhci_hcd/unbind"))
	assert.Equal(t, "0000:02:00.2", read(kernel, "drivers_probe"))
	assert.Equal(t, "(null)", read(kernel, "devices/0000:01:00.2/driver_override"))

	kernel = pcitest.TwoCards(t)
	kernel.Put(t, "/sys/devices/pci0000:00/0000:02:00.2/device", "0x9999\n")
	run(kernel)
	assert.Equal(t, "(null)", read(kernel, "devices/0000:02:00.2/driver_override"), "another card is there now")

	kernel = pcitest.TwoCards(t)
	kernel.Put(t, "/sys/devices/pci0000:00/0000:02:00.0/boot_vga", "1\n")
	run(kernel)
	assert.Equal(t, "(null)", read(kernel, "devices/0000:02:00.2/driver_override"), "the display is on that card now")

	kernel = pcitest.TwoCards(t)
	require.NoError(t, os.RemoveAll(kernel.Root+"/sys/bus/pci/drivers/vfio-pci"))
	run(kernel)
	assert.Equal(t, "(null)", read(kernel, "devices/0000:02:00.2/driver_override"), "the kernel does not have the driver")

	kernel = pcitest.TwoCards(t)
	require.NoError(t, os.Remove(kernel.Root+"/sys/bus/pci/devices/0000:02:00.2"))
	kernel.Link(t, "/sys/bus/pci/devices/0000:02:00.2", "../../../devices/pci0000:00/0000:01:00.2")
	kernel.Put(t, "/sys/devices/pci0000:00/0000:01:00.2/uevent", "")
	run(kernel)
	assert.Equal(t, "(null)", read(kernel, "devices/0000:01:00.2/driver_override"), "the twin has the address now, in another slot")
}

func TestTheUnitIsWhatSystemdUnderstands(t *testing.T) {
	program, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("CI") == "true" {
			require.NoError(t, err)
		}

		t.Skip(err)
	}

	path := filepath.Join(t.TempDir(), fileName+".service")
	require.NoError(t, os.WriteFile(path, []byte(renderUnit(builtIn("xhci_hcd", ""))), 0o600))

	out, _ := exec.Command(program, "verify", "--man=no", "--recursive-errors=no", path).CombinedOutput()
	assert.NotContains(t, string(out), fileName, "it complains of other units of this machine as well")
}

func TestTheHookPassesShellcheck(t *testing.T) {
	program, err := exec.LookPath("shellcheck")
	if err != nil {
		if os.Getenv("CI") == "true" {
			require.NoError(t, err)
		}

		t.Skip(err)
	}

	hook := initramfs.RenderConfig(initramfs.InitramfsTools, fileName, header, rulePath, []string{"vfio-pci", iommuModule})
	path := filepath.Join(t.TempDir(), "hook")
	require.NoError(t, os.WriteFile(path, []byte(hook.Content), 0o600))

	// The sourced file is initramfs-tools' own.
	out, err := exec.Command(program, "--exclude=SC1091", path).CombinedOutput()
	require.NoError(t, err, string(out))
}
