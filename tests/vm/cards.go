// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// The ids that QEMU's devices have, and NVIDIA's that they get: no option of QEMU's sets a vendor.
var nvidiaIDs = []struct {
	class           byte
	vendor, device  uint16
	asVendor, asDev uint16
	count           int
}{
	{0x03, 0x1234, 0x1111, 0x10de, 0x2684, 4}, // VGA, two bochs-display, secondary-vga
	{0x04, 0x8086, 0x2668, 0x10de, 0x22ba, 2}, // intel-hda
	{0x0c, 0x1b36, 0x000d, 0x10de, 0x1ad6, 2}, // qemu-xhci
}

// maxMapping leaves out the guest's own memory.
const maxMapping = 256 << 20

// Offsets in a PCI configuration header (PCI Local Bus 3.0, 6.1).
const (
	configSize      = 64
	configClass     = 0x0b
	configHeader    = 0x0e
	configSubsystem = 0x2c
	configCaps      = 0x34
)

// giveNvidiaIDs writes NVIDIA's ids into the configuration of QEMU's devices, in QEMU's memory, before the guest has run an
// instruction. It is an error if there are not as many as the machine has: then QEMU keeps them elsewhere, and nothing was
// tested.
func giveNvidiaIDs(pid int) error {
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer memory.Close()
	ranges, err := writableRanges(pid)
	if err != nil {
		return err
	}
	found := make([]int, len(nvidiaIDs))
	for _, each := range ranges {
		text := make([]byte, each[1]-each[0])
		if n, _ := memory.ReadAt(text, each[0]); n < len(text) {
			text = text[:n] // not all of a mapping has to be there
		}
		for i, id := range nvidiaIDs {
			old := binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, id.vendor), id.device)
			fresh := binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, id.asVendor), id.asDev)
			for at := 0; at+configSize <= len(text); at += 8 {
				if !bytes.HasPrefix(text[at:], old) || !isConfig(text[at:at+configSize], id.class) {
					continue
				}
				if _, err := memory.WriteAt(fresh, each[0]+int64(at)); err != nil {
					return err
				}
				found[i]++
			}
		}
	}
	for i, id := range nvidiaIDs {
		if found[i] != id.count {
			err = errors.Join(err, fmt.Errorf("%d devices %04x:%04x were found in QEMU's memory, and not %d", found[i], id.vendor, id.device, id.count))
		}
	}
	return err
}

func isConfig(config []byte, class byte) bool {
	return config[configClass] == class && config[configHeader]&0x7f == 0 && config[configCaps]%4 == 0 &&
		binary.LittleEndian.Uint16(config[configSubsystem:]) != 0
}

// writableRanges gives the parts of a process's memory that it has allocated.
func writableRanges(pid int) ([][2]int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	var ranges [][2]int64
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) < 5 || words[1] != "rw-p" || len(words) > 5 && words[5] != "[heap]" {
			continue
		}
		from, to, _ := strings.Cut(words[0], "-")
		start, startErr := strconv.ParseInt(from, 16, 64)
		end, endErr := strconv.ParseInt(to, 16, 64)
		err = errors.Join(err, startErr, endErr)
		if end-start <= maxMapping {
			ranges = append(ranges, [2]int64{start, end})
		}
	}
	return ranges, err
}
