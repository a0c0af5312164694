// SPDX-License-Identifier: Apache-2.0

package lxdstoragepool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// signature is a text at a place of a block device that tells what is on it.
type signature struct {
	offset int
	text   string
	name   string
}

// signatures are those of what a server's disk may hold; the places are from the formats' own descriptions, as
// util-linux's libblkid has them. LXD makes ZFS pools with `zpool create -f` (driver_zfs.go), which overwrites all but
// disks that are in use, so this is looked at before.
var signatures = []signature{
	{0, "XFSB", "an XFS file system"},
	{0x438, "\x53\xef", "an ext2, ext3 or ext4 file system"},
	{0x10040, "_BHRfS_M", "a btrfs file system"},
	{0x10034, "ReIsErFs", "a ReiserFS file system"},
	{0x10034, "ReIsEr2Fs", "a ReiserFS file system"},
	{0x400, "\x10\x20\xf5\xf2", "an F2FS file system"},
	{0, "hsqs", "a squashfs file system"},
	{0x8001, "CD001", "an ISO 9660 file system"},
	{0, "LUKS\xba\xbe", "an encrypted volume (LUKS)"},
	{0x18, "LVM2 001", "an LVM physical volume"},
	{0x218, "LVM2 001", "an LVM physical volume"},
	{0x418, "LVM2 001", "an LVM physical volume"},
	{0x618, "LVM2 001", "an LVM physical volume"},
	{0xff6, "SWAPSPACE2", "swap space"},
	{0x1000, "\xfc\x4e\x2b\xa9", "a software RAID (md)"},
	{0, "\xfc\x4e\x2b\xa9", "a software RAID (md)"},
	{0x1018, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "a bcache device"},
	{0x200, "EFI PART", "a partition table (GPT)"},
	{0x1000, "EFI PART", "a partition table (GPT)"},
	{0x1fe, "\x55\xaa", "a partition table or FAT or NTFS file system"},
}

// headLength covers every signature, and the first of ZFS's four labels (256 KiB each, OpenZFS on-disk format).
const headLength = 256 << 10

// uberblocks begin with this number, in either byte order, in the second half of a ZFS label.
var uberblocks = [][]byte{{0x0c, 0xb1, 0xba, 0x00, 0, 0, 0, 0}, {0, 0, 0, 0, 0x00, 0xba, 0xb1, 0x0c}}

// lookAtDevice tells what is on a block device and who uses it. Nothing found means that it is free to use.
func lookAtDevice(path string) ([]string, error) {
	used, err := deviceUsers(path)
	if err != nil {
		return nil, err
	}

	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}

	defer func() { _ = file.Close() }()

	head := make([]byte, headLength)

	n, err := io.ReadFull(file, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, err
	}

	return append(used, signaturesIn(head[:n])...), nil
}

// signaturesIn names what the beginning of a device shows.
func signaturesIn(head []byte) []string {
	var found []string

	for _, sign := range signatures {
		if len(head) >= sign.offset+len(sign.text) && string(head[sign.offset:sign.offset+len(sign.text)]) == sign.text {
			found = append(found, sign.name)
		}
	}

	for at := 128 << 10; at+8 <= len(head); at += 1 << 10 {
		if bytes.Equal(head[at:at+8], uberblocks[0]) || bytes.Equal(head[at:at+8], uberblocks[1]) {
			return append(found, "a ZFS pool")
		}
	}

	return found
}

// deviceUsers tells of partitions, of what is built on the device, and of mounts.
func deviceUsers(path string) ([]string, error) {
	// Names under /dev/disk are links; mounts are listed by the device's own name.
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}

	var stat unix.Stat_t

	err = unix.Stat(path, &stat)
	if err != nil {
		return nil, err
	}

	number := fmt.Sprintf("%d:%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev))

	var used []string

	sysfs := "/sys/dev/block/" + number

	partitions, _ := filepath.Glob(sysfs + "/*/partition")
	for _, partition := range partitions {
		used = append(used, "partition "+filepath.Base(filepath.Dir(partition)))
	}

	holders, _ := filepath.Glob(sysfs + "/holders/*")
	for _, holder := range holders {
		used = append(used, "device "+filepath.Base(holder))
	}

	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}

	return append(used, mountsOf(string(mounts), number, path)...), nil
}

// mountsOf finds the mounts of a device by its number (third field of mountinfo), or by its name for file systems with
// numbers of their own, such as btrfs.
func mountsOf(mountinfo, number, path string) []string {
	var used []string

	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 10 {
			continue
		}

		source := fields[len(fields)-2]
		if fields[2] == number || source == path {
			where, err := strconv.Unquote(`"` + fields[4] + `"`) // the kernel writes blanks as \040
			if err != nil {
				where = fields[4]
			}

			used = append(used, "mounted at "+where)
		}
	}

	return used
}
