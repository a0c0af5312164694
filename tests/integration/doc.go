// SPDX-License-Identifier: Apache-2.0

// Package integration runs the playbooks on the lab's hosts as users do, by ansible-runner, and judges what Ansible says
// of it (events and statistics) and what has become of the hosts.
//
// The tests need root and boot hosts: they run when THINKUBE_LAB is set, which `make test` does. They have a lab of
// their own, beside any that is up; THINKUBE_KEEP=1 leaves it there, to look at what went wrong.
package integration
