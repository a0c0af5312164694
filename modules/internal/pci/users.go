// SPDX-License-Identifier: Apache-2.0

package pci

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// node is a device node: where it is, and its number; or a network interface, which has no node.
type node struct {
	path         string // empty for a network interface
	major, minor uint32 // 0, 0 when the kernel does not say it
	folder       string // in sysfs; empty for one that has none there
	isNet        bool
}

// readUsers finds the nodes of the GPUs and what is related to them, and who has one open.
func (r Reader) readUsers(system *System) error {
	owners := map[string]*Device{} // by the node's path
	nodes := map[string][]node{}   // by its last part

	for _, address := range system.Related() {
		device := system.Device(address)
		if device.Bridge {
			continue
		}

		found, err := r.readNodes(*device)
		if err != nil {
			return fmt.Errorf("device nodes of PCI device %q: %w", address, err)
		}

		for _, each := range found {
			if each.isNet {
				continue
			}

			// A group's node belongs to all its devices. The first stands for them.
			if owners[each.path] == nil {
				owners[each.path] = device
				nodes[filepath.Base(each.path)] = append(nodes[filepath.Base(each.path)], each)
			}

			device.Nodes = append(device.Nodes, each.path)
		}

		err = r.readUses(device, found)
		if err != nil {
			return fmt.Errorf("what uses PCI device %q: %w", address, err)
		}
	}

	if len(owners) == 0 {
		return nil
	}

	opened, err := r.readOpen(nodes)
	if err != nil {
		return err
	}

	for i := range system.Devices {
		device := &system.Devices[i]
		for _, user := range opened {
			if slices.Contains(device.Nodes, user.Node) {
				device.Users = append(device.Users, user)
			}
		}
	}

	return nil
}

// readNodes finds a device's nodes: those below it in sysfs, its group's for VFIO, and NVIDIA's, which sysfs lacks.
func (r Reader) readNodes(device Device) ([]node, error) {
	folder, err := filepath.EvalSymlinks(filepath.Join(r.Root+devicesFolder, device.Address))
	if err != nil {
		return nil, err
	}

	var found []node

	err = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil && gone(err):
			return nil // what is unplugged while we look has no users left
		case err != nil:
			return err
		case entry.Name() != "uevent":
			return nil
		}

		each, err := readUevent(path)
		if err == nil && (each.path != "" || each.isNet) {
			found = append(found, each)
		}

		return err
	})
	if err != nil {
		return nil, err
	}

	if IsVFIO(device.Driver) && device.Group != "" {
		found = append(found, node{path: "/dev/vfio/" + device.Group})
	}

	nvidia, err := r.nvidiaNode(device.Address)
	if nvidia != "" {
		found = append(found, node{path: nvidia})
	}

	return found, err
}

// readUevent reads the node out of a device's uevent file; its path is empty when there is none.
func readUevent(path string) (node, error) {
	text, err := readText(path)
	if err != nil {
		return node{}, err
	}

	found := node{folder: filepath.Dir(path)}

	for _, line := range strings.Split(text, "\n") {
		name, value, _ := strings.Cut(line, "=")

		switch name {
		case "INTERFACE":
			found.isNet = filepath.Base(filepath.Dir(found.folder)) == "net" // USB's interfaces are others
		case "DEVNAME":
			found.path = "/dev/" + value
		case "MAJOR", "MINOR":
			number, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return node{}, fmt.Errorf("%q: %w", path, err)
			}

			if name == "MAJOR" {
				found.major = uint32(number)
			} else {
				found.minor = uint32(number)
			}
		}
	}

	return found, nil
}

// nvidiaNode gives the node of NVIDIA's own driver, whose number its folder in /proc says.
func (r Reader) nvidiaNode(address string) (string, error) {
	text, err := readText(r.Root + "/proc/driver/nvidia/gpus/" + address + "/information")
	if err != nil {
		return "", err
	}

	for _, line := range strings.Split(text, "\n") {
		name, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) == "Device Minor" {
			return "/dev/nvidia" + strings.TrimSpace(value), nil
		}
	}

	return "", nil
}

// readOpen goes through the open files of all processes.
func (r Reader) readOpen(nodes map[string][]node) ([]User, error) {
	pids, err := list(r.Root + "/proc")
	if err != nil {
		return nil, err
	}

	var users []User

	for _, name := range pids {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}

		opened, err := r.openBy(name, nodes)
		if err != nil {
			return nil, fmt.Errorf("reading what process %d has open: %w", pid, err)
		}

		if opened == nil {
			continue
		}

		command, err := r.command(name)
		if err != nil {
			return nil, err
		}

		for _, path := range opened {
			users = append(users, User{PID: pid, Command: command, Node: path})
		}
	}

	slices.SortFunc(users, func(a, b User) int { return a.PID - b.PID })

	return users, nil
}

// openBy gives the nodes that a process has open, each once.
func (r Reader) openBy(pid string, nodes map[string][]node) ([]string, error) {
	folder := filepath.Join(r.Root, "/proc", pid, "fd")

	entries, err := os.ReadDir(folder)
	if gone(err) {
		return nil, nil
	}

	if err != nil {
		return nil, err
	}

	var found []string

	for _, entry := range entries {
		file := filepath.Join(folder, entry.Name())

		target, err := os.Readlink(file)
		if gone(err) {
			continue
		}

		if err != nil {
			return nil, err
		}

		for _, each := range nodes[filepath.Base(target)] {
			if each.is(target, file) && !slices.Contains(found, each.path) {
				found = append(found, each.path)
			}
		}
	}

	return found, nil
}

// is tells whether an open file is the node: by path or, since a container may have it elsewhere, by number.
func (n node) is(target, file string) bool {
	if target == n.path {
		return true
	}

	var stat unix.Stat_t

	err := unix.Stat(file, &stat)

	return err == nil && stat.Mode&unix.S_IFMT == unix.S_IFCHR && n.major != 0 &&
		unix.Major(uint64(stat.Rdev)) == n.major && unix.Minor(uint64(stat.Rdev)) == n.minor
}

// command gives a process's command line, or its name where it has none.
func (r Reader) command(pid string) (string, error) {
	text, err := os.ReadFile(filepath.Join(r.Root, "/proc", pid, "cmdline"))
	if err != nil && !gone(err) {
		return "", err
	}

	// Without arguments, which may hold secrets.
	program, _, _ := strings.Cut(string(text), "\x00")
	if program != "" {
		return program, nil
	}

	name, err := readText(filepath.Join(r.Root, "/proc", pid, "comm"))
	if gone(err) {
		return "", nil
	}

	return name, err
}
