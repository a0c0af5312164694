// SPDX-License-Identifier: Apache-2.0

// Package bootfiles tests what is written for the next start of a host with the tools that a Debian has for it, and boots
// nothing: GRUB's, systemd-boot's and dracut's, in chroots. What initramfs-tools makes is booted in tests/vm.
//
// The tests need root, and run when THINKUBE_LAB is set, or under CI=true.
package bootfiles
