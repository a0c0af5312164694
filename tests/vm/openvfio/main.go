// SPDX-License-Identifier: Apache-2.0

// Openvfio opens a PCI device through VFIO as QEMU does, and says as JSON how far it came: the proof that a card is
// reserved. With a third argument it holds the device until its standard input ends.
//
//	openvfio GROUP ADDRESS [hold]
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of include/uapi/linux/vfio.h.
const (
	getAPIVersion   = 0x3b64
	setIOMMU        = 0x3b66
	groupGetStatus  = 0x3b67
	setContainer    = 0x3b68
	getDeviceFD     = 0x3b6a
	deviceGetInfo   = 0x3b6b
	type1v2         = 3
	groupFlagViable = 1
)

type result struct {
	Viable  bool   `json:"viable"`
	Opened  bool   `json:"opened"`
	Flags   uint32 `json:"flags"`
	Regions uint32 `json:"regions"`
	IRQs    uint32 `json:"irqs"`
	Error   string `json:"error,omitempty"`
}

func main() {
	var got result

	err := got.open(os.Args[1], os.Args[2])
	if err != nil {
		got.Error = err.Error()
	}

	_ = json.NewEncoder(os.Stdout).Encode(got)

	if len(os.Args) > 3 && err == nil {
		_, _ = io.Copy(io.Discard, os.Stdin)
	}
}

func call(fd int, request uint, argument uintptr) (int, error) {
	value, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), argument)
	if errno != 0 {
		return 0, errno
	}

	return int(value), nil
}

func (r *result) open(group, address string) error {
	container, err := unix.Open("/dev/vfio/vfio", unix.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("opening the container: %w", err)
	}

	fd, err := unix.Open("/dev/vfio/"+group, unix.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("opening group %s: %w", group, err)
	}

	if version, err := call(container, getAPIVersion, 0); err != nil || version != 0 {
		return fmt.Errorf("version %d of the interface: %w", version, err)
	}

	status := struct{ size, flags uint32 }{size: 8}
	if _, err := call(fd, groupGetStatus, uintptr(unsafe.Pointer(&status))); err != nil {
		return fmt.Errorf("asking for the group's state: %w", err)
	}

	r.Viable = status.flags&groupFlagViable != 0
	if !r.Viable {
		return nil
	}

	number := int32(container)
	if _, err := call(fd, setContainer, uintptr(unsafe.Pointer(&number))); err != nil {
		return fmt.Errorf("putting the group into the container: %w", err)
	}

	if _, err := call(container, setIOMMU, type1v2); err != nil {
		return fmt.Errorf("setting the IOMMU: %w", err)
	}

	name, err := unix.BytePtrFromString(address)
	if err != nil {
		return err
	}

	device, err := call(fd, getDeviceFD, uintptr(unsafe.Pointer(name)))
	if err != nil {
		return fmt.Errorf("opening device %s: %w", address, err)
	}

	info := struct{ size, flags, regions, irqs, capability, pad uint32 }{size: 24}
	if _, err := call(device, deviceGetInfo, uintptr(unsafe.Pointer(&info))); err != nil {
		return fmt.Errorf("asking device %s about itself: %w", address, err)
	}

	r.Opened, r.Flags, r.Regions, r.IRQs = true, info.flags, info.regions, info.irqs

	return nil
}
