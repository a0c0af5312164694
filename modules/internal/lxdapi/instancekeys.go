// SPDX-License-Identifier: Apache-2.0

package lxdapi

import (
	"slices"
	"strings"
)

// Applies says which instances take a config key.
type Applies int

// What InstanceTypeOf answers.
const (
	AllInstances Applies = iota
	ContainerOnly
	MachineOnly
	UnknownKey
)

// The instance options of LXD 4.0 to 6 and Incus 6, from LXD's reference "Instance options". LXD itself lets a profile
// hold the keys of both types and complains only when an instance starts, so a profile's mistakes are told here.
var (
	everyPrefix = []string{"user.", "volatile.", "image.", "environment.", "cloud-init.", "boot.", "cluster.", "migration.incremental.", "placement."}
	everyKey    = []string{
		"limits.cpu", "limits.cpu.nodes", "limits.cpu.pin_strategy", "limits.disk.priority", "limits.memory", "security.devlxd",
		"security.devlxd.images", "security.devlxd.management.volumes", "security.protection.delete", "security.protection.start",
		"snapshots.schedule", "snapshots.schedule.stopped", "snapshots.pattern", "snapshots.expiry", "agent.nic_config",
		"linux.kernel_modules", "linux.kernel_modules.load", "ubuntu_pro.guest_attach", "security.guestapi", "security.guestapi.images",
		"oci.entrypoint", "oci.cwd", "oci.uid", "oci.gid",
	}
	containerPrefix = []string{"limits.kernel.", "linux.sysctl.", "nvidia.", "security.syscalls.", "security.idmap.", "raw.lxc", "raw.seccomp", "raw.idmap", "oci."}
	containerKey    = []string{
		"limits.cpu.allowance", "limits.cpu.priority", "limits.hugepages.64KB", "limits.hugepages.1MB", "limits.hugepages.2MB", "limits.hugepages.1GB",
		"limits.memory.enforce", "limits.memory.swap", "limits.memory.swap.priority", "limits.memory.oom_priority", "limits.processes",
		"security.delegate_bpf", "security.delegate_bpf.attach_types", "security.delegate_bpf.cmd_types", "security.delegate_bpf.map_types",
		"security.delegate_bpf.prog_types", "security.nesting", "security.privileged", "security.protection.shift", "security.bpffs.path",
	}
	machineKey = []string{
		"limits.memory.hugepages", "migration.stateful", "raw.qemu", "raw.qemu.conf", "raw.qemu.qmp.early", "raw.qemu.qmp.post-start",
		"raw.qemu.qmp.pre-start", "raw.qemu.scriptlet", "security.agent.metrics", "security.csm", "security.iommu",
		"security.secureboot", "security.sev", "security.sev.policy.es", "security.sev.session.data", "security.sev.session.dh",
		"limits.max_bus_ports",
	}
)

// InstanceTypeOf tells which type of instance takes a config key.
func InstanceTypeOf(key string) Applies {
	has := func(prefix string) bool { return strings.HasPrefix(key, prefix) }

	switch {
	case key == "raw.apparmor", slices.Contains(everyKey, key), slices.ContainsFunc(everyPrefix, has):
		return AllInstances
	case slices.Contains(machineKey, key):
		return MachineOnly
	case slices.Contains(containerKey, key), slices.ContainsFunc(containerPrefix, has):
		return ContainerOnly
	}

	return UnknownKey
}
