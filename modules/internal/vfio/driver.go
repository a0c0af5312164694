// SPDX-License-Identifier: Apache-2.0

package vfio

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/thinkube/infra/modules/internal/pci"
)

// DefaultDriver is the one that takes any PCI device.
const DefaultDriver = "vfio-pci"

// Release gives the running kernel's release, which names the folder of its modules.
func Release() (string, error) {
	var name unix.Utsname

	err := unix.Uname(&name)

	return unix.ByteSliceToString(name.Release[:]), err
}

// Alias is a driver for VFIO that fits some devices: a line "alias vfio_pci:PATTERN MODULE" of modules.alias. Variant
// drivers know more of a card than vfio-pci does (Documentation/driver-api/vfio.rst).
type Alias struct {
	Pattern string `json:"pattern"` // without vfio_pci:
	Module  string `json:"module"`
}

// ReadAliases reads them for a kernel release; none when there is no such file, as on a host without modules.
func ReadAliases(root, release string) ([]Alias, error) {
	text, err := os.ReadFile(filepath.Join(root, "/lib/modules", release, "modules.alias"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}

	if err != nil {
		return nil, err
	}

	var found []Alias

	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) != 3 || words[0] != "alias" {
			continue
		}

		if pattern, ok := strings.CutPrefix(words[1], "vfio_pci:"); ok && words[2] != "vfio_pci" {
			found = append(found, Alias{pattern, words[2]})
		}
	}

	return found, lines.Err()
}

// DriverFor picks the driver for a device: the variant whose pattern fits with the fewest free places, or vfio-pci.
func DriverFor(device pci.Device, aliases []Alias) string {
	driver, free := DefaultDriver, -1
	name := strings.TrimPrefix(device.Modalias, "pci:")

	for _, alias := range aliases {
		// The patterns are made of letters, digits and *, for which Match is the same as the kernel's fnmatch.
		fits, err := filepath.Match(alias.Pattern, name)
		if err != nil || !fits {
			continue
		}

		if stars := strings.Count(alias.Pattern, "*"); free < 0 || stars < free {
			driver, free = alias.Module, stars
		}
	}

	return driver
}

// modprobes are where the program is; services often have no /sbin in their PATH.
var modprobes = []string{"/sbin/modprobe", "/usr/sbin/modprobe", "/bin/modprobe"}

// Load loads the module of a PCI driver unless the driver is registered.
func (b Bus) Load(ctx context.Context, driver, module string) error {
	registered := b.Root + "/sys/bus/pci/drivers/" + driver

	_, err := os.Stat(registered)
	if err == nil {
		return nil
	}

	modprobe := ""
	for _, path := range modprobes {
		if _, err := os.Stat(path); err == nil {
			modprobe = path
		}
	}

	if modprobe == "" {
		return fmt.Errorf("driver %q is not loaded, and there is no modprobe to load it", driver)
	}

	out, err := exec.CommandContext(ctx, modprobe, "--", module).CombinedOutput()
	if err != nil {
		return fmt.Errorf("loading module %q for driver %q: %w: %s", module, driver, err, bytes.TrimSpace(out))
	}

	_, err = os.Stat(registered)
	if err != nil {
		return fmt.Errorf("driver %q is not registered although its module is loaded", driver)
	}

	return nil
}

// What Device.Persistence can be.
const (
	PersistenceOn      = "enabled"
	PersistenceOff     = "disabled"
	PersistenceUnknown = "unknown"
)

// ReadPersistence asks NVIDIA's own tool, since the kernel does not tell: the mode of each card with the driver nvidia.
func ReadPersistence(ctx context.Context, system *pci.System) error {
	for i := range system.Devices {
		device := &system.Devices[i]
		if device.Driver != "nvidia" {
			continue
		}

		tool, err := exec.LookPath("nvidia-smi")
		if err != nil {
			device.Persistence = PersistenceUnknown

			continue
		}

		out, err := exec.CommandContext(ctx, tool, "-i", device.Address, "--query-gpu=persistence_mode", "--format=csv,noheader").Output()
		if err != nil {
			return fmt.Errorf("asking nvidia-smi for the persistence mode of %s: %w", device.Address, err)
		}

		switch answer := strings.ToLower(strings.TrimSpace(string(out))); answer {
		case PersistenceOn, PersistenceOff:
			device.Persistence = answer
		default:
			device.Persistence = PersistenceUnknown
		}
	}

	return nil
}
