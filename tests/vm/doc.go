// SPDX-License-Identifier: Apache-2.0

// Package vm boots a real Debian kernel in QEMU and runs programs on it: for what a container cannot have, its own kernel
// modules, kernel command line, PCI devices, IOMMU and restarts.
//
// The processor is emulated in software (no KVM), so a guest is a machine that is some ten times slower than this one, and
// everywhere the same. The kernel is the package that Debian's linux-image-amd64 names, never installed, only unpacked into
// the cache. QEMU starts its uncompressed vmlinux, with an initramfs made here: a small program of ours as init, the kernel
// modules that were asked for with what they depend on, busybox, and files of the test. With [Machine.Root] that init then
// hands over to a real Debian with systemd, on a disk.
//
// A program beside the guest's init runs commands that come over a virtio serial port. What the kernel and init say on the
// serial console is kept when a test fails.
//
//	guest := vm.Boot(t, vm.Machine{Modules: []string{"8021q"}})
//	out, err := guest.Sh(t.Context(), "ip link add link lo name lo.10 type vlan id 10; ip -d link show lo.10")
//
// [Chroot] is the part that boots nothing: a Debian whose own tools make what a later start reads.
//
// The tests run where THINKUBE_LAB is set, and under CI=true, where a tool that is missing is a failure. Programs are linked once
// for a package's tests, whose TestMain removes them with [RemovePrograms]. Tests are parallel: a guest has one processor, and go test
// runs as many at a time as this machine has.
//
// The folder for all of it is $THINKUBE_VM_CACHE, by default thinkube-tests/vm in the user's cache folder.
package vm
