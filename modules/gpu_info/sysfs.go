// SPDX-License-Identifier: Apache-2.0

package gpuinfo

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

const (
	nvidiaDriver = "nvidia"
	nvidiaVendor = "0x10de"
	displayClass = "0x03" // the base class of VGA, 3D and other display controllers
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
	folder := filepath.Join(h.root, "sys/bus/pci/devices")

	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return cards, h.assertSysfs() // a host without PCI
	}

	if err != nil {
		return nil, fmt.Errorf("reading the PCI bus: %w", err)
	}

	for _, entry := range entries {
		if !pciAddress.MatchString(entry.Name()) {
			continue
		}

		card, err := readCard(filepath.Join(folder, entry.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was removed while we looked
		}

		if err != nil {
			return nil, fmt.Errorf("reading PCI device %s: %w", entry.Name(), err)
		}

		if card != nil {
			cards = append(cards, *card)
		}
	}

	return cards, nil
}

// readCard gives nil for other devices than NVIDIA's cards.
func readCard(folder string) (*Card, error) {
	vendor, err := os.ReadFile(filepath.Join(folder, "vendor"))
	if err != nil || strings.TrimSpace(string(vendor)) != nvidiaVendor {
		return nil, err
	}

	class, err := os.ReadFile(filepath.Join(folder, "class"))
	if err != nil || !strings.HasPrefix(string(class), displayClass) {
		return nil, err
	}

	card := &Card{Address: filepath.Base(folder)}

	target, err := os.Readlink(filepath.Join(folder, "driver"))
	if errors.Is(err, fs.ErrNotExist) {
		return card, nil
	}

	if err != nil {
		return nil, err
	}

	name := filepath.Base(target)
	card.KernelDriver = &name

	// Not for the others: reading it wakes a card that sleeps.
	if name == nvidiaDriver {
		card.lost, err = fallenOff(filepath.Join(folder, "config"))
	}

	return card, err
}

// fallenOff tells whether the card's configuration space reads as all ones: what a bus gives when nobody answers (PCI
// Local Bus Specification 3.0, 6.1).
func fallenOff(config string) (bool, error) {
	file, err := os.Open(config)
	if err != nil {
		return false, err
	}

	defer func() { _ = file.Close() }()

	var head [4]byte

	_, err = io.ReadFull(file, head[:])
	if err != nil {
		return false, fmt.Errorf("reading its configuration space: %w", err)
	}

	return head == [4]byte{0xff, 0xff, 0xff, 0xff}, nil
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
