// SPDX-License-Identifier: Apache-2.0

// Package gpu runs the playbook 00_initial_setup/30 on several hosts and looks which of them it restarts, and when. A host is
// an sshd in namespaces, with a /sys of its own that has a card; a restart ends it and starts it anew. What real kernels and a
// real start do is tested in tests/vm. One host has a Debian of its own with GRUB, and a command line that GRUB does not make.
//
// The tests need root, and run when THINKUBE_LAB is set.
package gpu
