// SPDX-License-Identifier: Apache-2.0

package gpuinfo

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/thinkube/infra/modules/internal/pci"
)

const (
	nvidiaDriver = "nvidia"
	nvidiaVendor = "10de:"
)

// readDriver looks for the kernel module, of which sysfs has the version (Linux, Documentation/ABI/stable/sysfs-module).
func (h *host) readDriver(driver *Driver) error {
	folder := filepath.Join(h.root, "sys/module/nvidia")

	_, err := os.Stat(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return h.assertSysfs()
	}

	if err != nil {
		return fmt.Errorf("looking for the driver: %w", err)
	}

	driver.Loaded = true

	text, err := os.ReadFile(filepath.Join(folder, "version"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}

	if version := strings.TrimSpace(string(text)); err == nil && version != "" {
		driver.Version = &version
	}

	return err
}

// assertSysfs tells "not there" from "cannot be seen".
func (h *host) assertSysfs() error {
	_, err := os.Stat(filepath.Join(h.root, "sys/module"))
	if err != nil {
		return fmt.Errorf("sysfs is not mounted, so what this host has cannot be seen: %w", err)
	}

	return nil
}

var pciAddress = regexp.MustCompile(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

// readCards gives the display controllers of NVIDIA that the kernel knows, by their addresses.
func (h *host) readCards() ([]Card, error) {
	cards := []Card{}
	reader := pci.Reader{Root: strings.TrimSuffix(h.root, "/")}

	devices, err := reader.Brief()
	if err != nil {
		return nil, err
	}

	if devices == nil {
		return cards, h.assertSysfs() // a host without PCI
	}

	for _, device := range devices {
		if !device.IsDisplay() || !strings.HasPrefix(device.ID, nvidiaVendor) {
			continue
		}

		card := Card{Address: device.Address}
		if device.Driver != "" {
			card.KernelDriver = &device.Driver
		}

		// Not for the others: reading it wakes a card that sleeps.
		if device.Driver == nvidiaDriver {
			card.lost, err = reader.Lost(device.Address)
			if errors.Is(err, fs.ErrNotExist) {
				continue // it was removed while we looked
			}

			if err != nil {
				return nil, fmt.Errorf("reading PCI device %s: %w", device.Address, err)
			}
		}

		cards = append(cards, card)
	}

	return cards, nil
}

// ParseAddress gives a PCI address in the form of sysfs, from NVML's ("00000000:3B:00.0") or CUDA's ("0000:3b:00.0").
func ParseAddress(text string) (string, error) {
	address := strings.ToLower(text)
	if !pciAddress.MatchString(address) {
		return "", fmt.Errorf("PCI address %q: must look like 0000:3b:00.0", text)
	}

	domain, rest, _ := strings.Cut(address, ":")

	// At least four digits, however many were given (Linux, drivers/pci/probe.c).
	return strings.Repeat("0", max(0, 4-len(strings.TrimLeft(domain, "0")))) + strings.TrimLeft(domain, "0") + ":" + rest, nil
}
