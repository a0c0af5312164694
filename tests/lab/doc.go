// SPDX-License-Identifier: Apache-2.0

// Package lab boots real Debian hosts on one machine: systemd, sshd, LXD and BIND in each, joined by a
// private bridge. It is the ground that the integration tests stand on, the demo, and a playground.
//
// A host is a systemd-nspawn container whose root is an overlay: a base image that is built once and
// cached, under a writable layer of the host's own. A snapshot is a copy of that layer, so tests can
// compare a host with its earlier self ([Host.Diff]) and put it back ([Host.Restore]).
//
// Each host's mounts and its end of the network live in namespaces of one supervisor process. Once that
// process and the host's init are dead, the kernel has removed the mounts and the link: a killed lab
// leaves processes at worst, and those are found by the control group they were born in.
//
// All of it needs root.
package lab
