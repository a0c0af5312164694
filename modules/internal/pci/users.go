// SPDX-License-Identifier: Apache-2.0

package pci

import (
	"bytes"
	"fmt"
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
	block        bool   // otherwise a character device
	folder       string // in sysfs; empty for one that has none there
	isNet        bool
}

// hostProcesses is the host's own PID namespace, which has the same number on every host (PROC_PID_INIT_INO of
// include/linux/proc_ns.h).
const hostProcesses = "pid:[4026531836]"

// contained tells whether processes of the host are out of sight.
func (r Reader) contained() (bool, error) {
	namespace, err := os.Readlink(r.Root + "/proc/self/ns/pid")
	if gone(err) {
		return false, nil // a kernel without such namespaces, or a tree that was captured
	}

	return namespace != hostProcesses, err
}

// readUsers finds the nodes of the GPUs and what is related to them, and who has one open.
func (r Reader) readUsers(system *System) error {
	owners := map[string]*Device{} // by the node's path
	nodes := []node{}

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
				nodes = append(nodes, each)
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

	found, err := findNodes(folder)
	if err != nil {
		return nil, err
	}

	if IsVFIO(device.Driver) && device.Group != "" {
		group, err := r.groupNode(device.Group)
		if err != nil {
			return nil, err
		}

		found = append(found, group)
	}

	nvidia, err := r.nvidiaNode(device.Address)
	if nvidia.path != "" {
		found = append(found, nvidia)
	}

	return found, err
}

// findNodes finds the nodes in a device's folder and those below. Only what has a number, or is a network interface, is one; the
// folders power have settings alone.
func findNodes(folder string) ([]node, error) {
	entries, err := os.ReadDir(folder)
	if gone(err) {
		return nil, nil // what is unplugged while we look has no users left
	}

	if err != nil {
		return nil, err
	}

	var found []node

	isNet := filepath.Base(filepath.Dir(folder)) == "net"

	for _, entry := range entries {
		switch {
		case entry.Name() == "dev" || entry.Name() == "uevent" && isNet:
			each, err := readUevent(filepath.Join(folder, "uevent"))
			if err != nil {
				return nil, err
			}

			if each.path != "" || each.isNet {
				found = append(found, each)
			}
		case entry.IsDir() && entry.Name() != "power":
			below, err := findNodes(filepath.Join(folder, entry.Name()))
			if err != nil {
				return nil, err
			}

			found = append(found, below...)
		}
	}

	return found, nil
}

// groupNode gives the node that VFIO has for an IOMMU group.
func (r Reader) groupNode(group string) (node, error) {
	text, err := readText(r.Root + "/sys/class/vfio/" + group + "/dev")
	found := node{path: "/dev/vfio/" + group}

	if err == nil && text != "" {
		_, err = fmt.Sscanf(text, "%d:%d", &found.major, &found.minor)
	}

	return found, err
}

// readUevent reads the node out of a device's uevent file; its path is empty when there is none.
func readUevent(path string) (node, error) {
	text, err := readText(path)
	if err != nil {
		return node{}, err
	}

	found := node{folder: filepath.Dir(path), block: strings.Contains(path, "/block/")}

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

// nvidiaMajor is the number of NVIDIA's nodes (Documentation/admin-guide/devices.txt).
const nvidiaMajor = 195

// nvidiaNode gives the node of NVIDIA's own driver, whose number its folder in /proc says.
func (r Reader) nvidiaNode(address string) (node, error) {
	text, err := readText(r.Root + "/proc/driver/nvidia/gpus/" + address + "/information")
	if err != nil {
		return node{}, err
	}

	for _, line := range strings.Split(text, "\n") {
		name, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) == "Device Minor" {
			minor, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)

			return node{path: fmt.Sprintf("/dev/nvidia%d", minor), major: nvidiaMajor, minor: uint32(minor)}, err
		}
	}

	return node{}, nil
}

// readOpen goes through the open files of all processes.
func (r Reader) readOpen(nodes []node) ([]User, error) {
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

// openBy gives the nodes that a process has open, or has mapped and closed again, each once.
func (r Reader) openBy(pid string, nodes []node) ([]string, error) {
	// The kernel's own threads run no program and have nothing open; they are most of an idle host's processes.
	_, err := os.Readlink(filepath.Join(r.Root, "/proc", pid, "exe"))
	if gone(err) {
		return nil, nil
	}

	if err != nil {
		return nil, err
	}

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

		number := numberOf(target, file)

		for _, each := range nodes {
			if each.is(target, number) && !slices.Contains(found, each.path) {
				found = append(found, each.path)
			}
		}
	}

	maps, err := os.ReadFile(filepath.Join(r.Root, "/proc", pid, "maps"))
	if err != nil && !gone(err) {
		return nil, err
	}

	for _, each := range nodes {
		if bytes.Contains(maps, []byte(" "+each.path+"\n")) && !slices.Contains(found, each.path) {
			found = append(found, each.path)
		}
	}

	return found, nil
}

// number is that of an open device.
type number struct {
	major, minor uint32
	block        bool
}

// numberOf gives an open file's number as a device; nothing for others. It asks for what the kernel has at hand: a server of
// files that does not answer is not waited for.
func numberOf(target, file string) number {
	if !strings.HasPrefix(target, "/") {
		return number{} // a socket, a pipe
	}

	var stat unix.Statx_t

	err := unix.Statx(unix.AT_FDCWD, file, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &stat)
	if kind := stat.Mode & unix.S_IFMT; err != nil || kind != unix.S_IFCHR && kind != unix.S_IFBLK {
		return number{}
	}

	return number{stat.Rdev_major, stat.Rdev_minor, stat.Mode&unix.S_IFMT == unix.S_IFBLK}
}

// is tells whether an open file is the node: by path or, since a container may have it elsewhere, by number.
func (n node) is(target string, has number) bool {
	return target == n.path || n.major != 0 && has == number{n.major, n.minor, n.block}
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
