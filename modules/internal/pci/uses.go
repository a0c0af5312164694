// SPDX-License-Identifier: Apache-2.0

package pci

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// readUses finds what the kernel itself does with a device, of which no process has a node open: file systems and swap on
// its disks, and network interfaces. NVIDIA's driver holds a card whose screens it drives.
func (r Reader) readUses(device *Device, nodes []node) error {
	folder, err := filepath.EvalSymlinks(filepath.Join(r.Root+devicesFolder, device.Address))
	if err != nil {
		return err
	}

	for _, each := range nodes {
		ask := r.diskUses
		if each.isNet {
			ask = r.interfaceUses
		}

		uses, err := ask(each)
		if err != nil {
			return err
		}

		device.Uses = append(device.Uses, uses...)
	}

	if device.Driver == "nvidia" {
		cards, err := filepath.Glob(filepath.Join(folder, "drm/card*"))
		if err != nil {
			return err
		}

		modeset, err := readText(r.Root + "/sys/module/nvidia_drm/parameters/modeset")
		if err != nil {
			return err
		}

		device.Modeset = len(cards) > 0 && modeset == "Y"
	}

	return nil
}

// diskUses tells what a disk or partition is part of.
func (r Reader) diskUses(disk node) ([]string, error) {
	if !strings.Contains(disk.folder, "/block/") {
		return nil, nil
	}

	holders, err := list(filepath.Join(disk.folder, "holders"))
	if err != nil {
		return nil, err
	}

	var uses []string
	for _, holder := range holders {
		uses = append(uses, disk.path+" is part of /dev/"+holder)
	}

	mounts, err := r.mountsOf(disk)
	if err != nil {
		return nil, err
	}

	for _, mount := range mounts {
		uses = append(uses, disk.path+" is mounted on "+mount)
	}

	swaps, err := readText(r.Root + "/proc/swaps")
	if err != nil {
		return nil, err
	}

	for line := range strings.Lines(swaps) {
		if words := strings.Fields(line); len(words) > 0 && words[0] == disk.path {
			uses = append(uses, disk.path+" is swap space")
		}
	}

	return uses, nil
}

// mountsOf gives where a disk is mounted, in whatever mount namespace: that of a container is another one.
func (r Reader) mountsOf(disk node) ([]string, error) {
	pids, err := list(r.Root + "/proc")
	if err != nil {
		return nil, err
	}

	var mounts []string

	seen := map[string]bool{}

	for _, pid := range pids {
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}

		// Processes share their namespaces, mostly.
		namespace, err := os.Readlink(filepath.Join(r.Root, "/proc", pid, "ns/mnt"))
		if err == nil && seen[namespace] {
			continue
		}

		seen[namespace] = err == nil

		text, err := os.ReadFile(filepath.Join(r.Root, "/proc", pid, "mountinfo"))
		if gone(err) {
			continue
		}

		if err != nil {
			return nil, err
		}

		for line := range strings.Lines(string(text)) {
			if mount := mountOf(line, disk); mount != "" && !slices.Contains(mounts, mount) {
				mounts = append(mounts, mount)
			}
		}
	}

	return mounts, nil
}

// mountOf gives the place out of a line of mountinfo (proc(5)) that is of a disk; empty for other lines. Some file systems,
// such as btrfs, have numbers of their own, and name the disk as their source.
func mountOf(line string, disk node) string {
	words := strings.Fields(line)
	dash := slices.Index(words, "-")

	if len(words) < 5 || dash < 0 || len(words) < dash+3 {
		return ""
	}

	if words[2] != fmt.Sprintf("%d:%d", disk.major, disk.minor) && words[dash+2] != disk.path {
		return ""
	}

	return words[4]
}

// ifUp is IFF_UP of include/uapi/linux/if.h.
const ifUp = 1

// interfaceUses tells of a network interface that is up.
func (r Reader) interfaceUses(card node) ([]string, error) {
	read := attributes{folder: card.folder}
	state := read.text("operstate")
	text := read.text("flags")

	if read.err != nil || text == "" {
		return nil, read.err
	}

	flags, err := strconv.ParseUint(text, 0, 32)
	if err != nil || flags&ifUp == 0 || state == "down" {
		return nil, err
	}

	return []string{"network interface " + filepath.Base(card.folder) + " is up"}, nil
}
