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
	"time"

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

// askLimit is for one question to nvidia-smi, which hangs where a card does.
const askLimit = 10 * time.Second

// ReadPersistence asks NVIDIA's own tool, since the kernel does not tell: the mode of each card with the driver nvidia. A tool
// that does not answer makes it unknown, and matters only to cards that are to be moved.
func ReadPersistence(ctx context.Context, system *pci.System) {
	why := ""

	for i := range system.Devices {
		device := &system.Devices[i]
		if device.Driver != "nvidia" {
			continue
		}

		// What does not answer for one card is not waited for with each.
		if why == "" {
			device.Persistence, why = askPersistence(ctx, device.Address)
		}

		if why != "" {
			device.Persistence, device.PersistenceWhy = PersistenceUnknown, why
		}
	}
}

// askPersistence gives a card's mode, or why it is not known.
func askPersistence(ctx context.Context, address string) (mode, why string) {
	tool, err := exec.LookPath("nvidia-smi")
	if err != nil {
		return "", "there is no nvidia-smi to ask"
	}

	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()

	type result struct {
		out []byte
		err error
	}

	answered := make(chan result, 1) // one that hangs in the kernel cannot be ended, and is left behind

	go func() {
		command := exec.CommandContext(ctx, tool, "-i", address, "--query-gpu=persistence_mode", "--format=csv,noheader")
		command.WaitDelay = time.Second // for what it has started

		out, err := command.CombinedOutput()
		answered <- result{out, err}
	}()

	var got result

	select {
	case got = <-answered:
	case <-ctx.Done():
		return "", fmt.Sprintf("nvidia-smi has not answered within %s", askLimit)
	}

	said, _, _ := strings.Cut(strings.TrimSpace(string(got.out)), "\n")
	if got.err != nil {
		return "", fmt.Sprintf("nvidia-smi failed (%s: %s)", got.err, said)
	}

	switch answer := strings.ToLower(said); answer {
	case PersistenceOn, PersistenceOff:
		return answer, ""
	}

	return "", fmt.Sprintf("nvidia-smi says %q", said)
}
