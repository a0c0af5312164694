// SPDX-License-Identifier: Apache-2.0

package lxdstoragepool_test

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/lxdtest"
)

const module = "lxd_storage_pool"

type dict = map[string]any

// settings cuts off what lxc shows after an object's settings: its members, in a new order every time.
func settings(shown string) string {
	before, _, _ := strings.Cut(shown, "locations:")

	return before
}

func TestPoolOnAllMembers(t *testing.T) {
	cluster := lxdtest.StartCluster(t, 3)
	host := cluster.Hosts[0]
	args := dict{
		"name": "local", "driver": "btrfs", "description": "for all",
		"config":  dict{"size": "200MiB", "rsync.compression": false},
		"members": dict{"n2": dict{"size": "300MiB"}},
	}

	result := host.Converges(module, args)
	assert.Equal(t, []string{
		`create storage pool "local" on member "n1" (define it, size=200MiB)`,
		`create storage pool "local" on member "n2" (define it, size=300MiB)`,
		`create storage pool "local" on member "n3" (define it, size=200MiB)`,
		`create storage pool "local" (driver btrfs, rsync.compression=false)`,
	}, result.Plan)

	pool := result.Raw["pool"].(dict)
	assert.Equal(t, "Created", pool["status"])
	assert.Equal(t, "btrfs", pool["driver"])
	assert.Equal(t, "for all", pool["description"])
	assert.Equal(t, "300MiB", pool["members"].(dict)["n2"].(dict)["config"].(dict)["size"])
	assert.Contains(t, cluster.Hosts[1].Run("stat", "--format=%s", "/var/lib/lxd/disks/local.img"), "314572800")
	host.LXC("storage", "volume", "create", "local", "probe", "--target=n3") // usable

	// The same sizes in other words are the same.
	args["config"] = dict{"size": "209715200"}
	host.Unchanged(module, args)
	cluster.Hosts[2].Unchanged(module, args) // and the same from every member

	args["description"], args["config"] = "changed", dict{"rsync.compression": nil, "user.note": 7}
	result = host.Converges(module, args)
	assert.Equal(t, []string{`change storage pool "local" (description "changed", remove rsync.compression, new user.note)`}, result.Plan)

	used := host.Module(module, dict{"name": "local", "state": "absent"})
	assert.Equal(t, "in_use", used.Code)
	assert.Contains(t, used.Msg, "/1.0/storage-pools/local/volumes/custom/probe")

	host.LXC("storage", "volume", "delete", "local", "probe", "--target=n3")
	host.Converges(module, dict{"name": "local", "state": "absent"})
	assert.Empty(t, host.LXC("storage", "list", "--format=csv"))

	for _, member := range cluster.Hosts {
		assert.Empty(t, member.Run("ls", "/var/lib/lxd/disks"))
	}
}

// TestKilledAfterEveryStep cuts the module at each of its steps and runs it again.
func TestKilledAfterEveryStep(t *testing.T) {
	host := lxdtest.StartCluster(t, 3).Hosts[0]
	args := dict{"name": "local", "driver": "dir", "description": "for all", "config": dict{"user.note": "x"}}
	absent := dict{"name": "local", "state": "absent"}

	for step := 1; step <= 4; step++ {
		killed := host.Module(module, args, lxdtest.Task{KillAfterStep: step})
		require.True(t, killed.Killed, "step %d: %s", step, killed.Stdout)

		result := host.OK(module, args)
		assert.Equal(t, step < 4, result.Changed)
		assert.Len(t, result.Plan, 4-step)
		assert.Equal(t, "for all", result.Raw["pool"].(dict)["description"])
		host.Unchanged(module, args)
		host.Converges(module, absent)
	}

	// What is left half-made can be deleted as well.
	killed := host.Module(module, args, lxdtest.Task{KillAfterStep: 2})
	require.True(t, killed.Killed)
	host.Converges(module, absent)
}

// TestFailedCreation has a member refuse in the second phase: its server leaves the pool errored, with the shared keys
// taken and some members done.
func TestFailedCreation(t *testing.T) {
	cluster := lxdtest.StartCluster(t, 3)
	host := cluster.Hosts[0]
	args := dict{
		"name": "data", "driver": "dir", "description": "second", "config": dict{"user.note": "x"},
		"members": dict{"n3": dict{"source": "/var/lib/there"}},
	}

	failed := host.Module(module, args)
	assert.Equal(t, "source_missing", failed.Code)
	assert.Contains(t, failed.Msg, "/var/lib/there")
	assert.True(t, failed.Changed)
	assert.Contains(t, host.LXC("storage", "show", "data"), "status: Errored")

	// The cause is removed: the creation goes on.
	cluster.Hosts[2].Run("mkdir", "/var/lib/there")

	args["description"] = "third"
	result := host.Converges(module, args)
	assert.Equal(t, []string{
		`create storage pool "data" (go on where an earlier attempt stopped)`,
		`change storage pool "data" (description "third")`,
	}, result.Plan)
	assert.Contains(t, host.LXC("storage", "show", "data"), "user.note: x")
	host.Converges(module, dict{"name": "data", "state": "absent"})

	// The task is corrected instead.
	cluster.Hosts[2].Run("rmdir", "/var/lib/there")
	require.True(t, host.Module(module, args).Failed)
	cluster.Hosts[2].Run("mkdir", "/var/lib/other")

	args["members"] = dict{"n3": dict{"source": "/var/lib/other"}}
	result = host.Converges(module, args)
	assert.Equal(t, `change storage pool "data" on member "n3" (source=/var/lib/other (was /var/lib/there))`, result.Plan[0])
	host.Converges(module, dict{"name": "data", "state": "absent"})

	// A shared key is corrected: the server takes it only anew.
	args["members"] = dict{"n3": dict{"source": "/var/lib/there"}}
	require.True(t, host.Module(module, args).Failed)

	args["members"], args["config"] = nil, dict{"user.note": "y"}
	result = host.Converges(module, args)
	assert.Equal(t, `delete storage pool "data" (half-made by an earlier attempt that cannot be ended with these settings)`, result.Plan[0])
	assert.Contains(t, host.LXC("storage", "show", "data"), "user.note: \"y\"")
}

func TestRefusals(t *testing.T) {
	cluster := lxdtest.StartCluster(t, 2)
	host := cluster.Hosts[0]
	host.OK(module, dict{"name": "local", "driver": "dir"})
	host.Run("mkdir", "/var/lib/full", "/var/lib/full/of-things")
	cluster.Hosts[1].Run("mkdir", "/var/lib/full", "/var/lib/full/of-things")

	for _, refused := range []struct {
		code, msg string
		args      dict
	}{
		{"invalid_argument", `name "a/b"`, dict{"name": "a/b", "driver": "dir"}},
		{"invalid_argument", "driver is missing", dict{"name": "new"}},
		{"invalid_argument", `size "12 parsecs"`, dict{"name": "new", "driver": "btrfs", "config": dict{"size": "12 parsecs"}}},
		{"invalid_argument", `members["n9"]: there is no such member; there are ["n1" "n2"]`, dict{"name": "new", "driver": "dir", "members": dict{"n9": dict{}}}},
		{"invalid_argument", `"rsync.bwlimit" is a key that all members share`, dict{"name": "new", "driver": "dir", "members": dict{"n1": dict{"rsync.bwlimit": "1MB"}}}},
		{"invalid_argument", "size is of the file", dict{"name": "new", "driver": "btrfs", "config": dict{"size": "1GiB", "source": "/dev/null"}}},
		{"driver_missing", `the server on member "n1" cannot use driver "zfs"; it can use ["btrfs" "dir"]`, dict{"name": "new", "driver": "zfs"}},
		{"source_missing", `source "/dev/no-such-disk" does not exist`, dict{"name": "new", "driver": "btrfs", "config": dict{"source": "/dev/no-such-disk"}}},
		{"source_in_use", `source "/var/lib/full" is not empty: it holds ["of-things"]`, dict{"name": "new", "driver": "dir", "config": dict{"source": "/var/lib/full"}}},
		{"disk_full", `storage pool "new" on member "n1": size 900TiB does not fit`, dict{"name": "new", "driver": "btrfs", "members": dict{"n1": dict{"size": "900TiB"}}}},
		{"disk_full", `storage pool "new" on member "n2": size 900TiB does not fit`, dict{"name": "new", "driver": "btrfs", "members": dict{"n2": dict{"size": "900TiB"}}}},
		{"immutable", `driver is "dir" and cannot become "btrfs"`, dict{"name": "local", "driver": "btrfs"}},
		{"immutable", `on member "n2": source is "/var/lib/lxd/storage-pools/local" and cannot become "/srv"`, dict{"name": "local", "members": dict{"n2": dict{"source": "/srv"}}}},
	} {
		before := host.LXC("storage", "list", "--format=csv")
		result := host.Module(module, refused.args)
		assert.Equal(t, refused.code, result.Code, "%v: %s", refused.args, result.Msg)
		assert.Contains(t, result.Msg, refused.msg)
		assert.False(t, result.Changed, result.Msg)
		assert.Equal(t, before, host.LXC("storage", "list", "--format=csv"))
	}

	// Only the server of the other member can see this; the creation on it is refused, and can be taken back.
	result := host.Module(module, dict{"name": "new", "driver": "dir", "members": dict{"n2": dict{"source": "/var/lib/full"}}})
	assert.Equal(t, "source_in_use", result.Code)
	host.Converges(module, dict{"name": "new", "state": "absent"})
	assert.NotEmpty(t, cluster.Hosts[1].Run("ls", "/var/lib/full"), "what was there is still there")

	// A foreign pool is left alone.
	host.LXC("storage", "create", "foreign", "dir", "--target=n1")
	host.LXC("storage", "create", "foreign", "dir", "--target=n2")
	host.LXC("storage", "create", "foreign", "dir")

	alone := host.Unchanged(module, dict{"name": "foreign", "state": "absent"})
	assert.Contains(t, alone.Raw["warnings"], `storage pool "foreign": was not made by this module and is left alone; force: true deletes it`)

	before := settings(host.LXC("storage", "show", "foreign"))
	host.Converges(module, dict{"name": "foreign", "description": "mine", "config": dict{"user.mine": true}})
	host.OK(module, dict{"name": "foreign", "state": "absent"})
	assert.Equal(t, before, settings(host.LXC("storage", "show", "foreign")), "a foreign pool that was changed is given back")
	host.Converges(module, dict{"name": "foreign", "state": "absent", "force": true})
}

func TestDeviceWithData(t *testing.T) {
	host := lxdtest.Start(t, 1).Hosts[0]
	host.Run("truncate", "--size=256M", "/var/lib/disk.img")

	out := host.Run("losetup", "--find", "--show", "/var/lib/disk.img")
	device := strings.TrimSpace(out)

	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", device).Run() })

	args := dict{"name": "disk", "driver": "btrfs", "config": dict{"source": device}}

	host.Run("mkfs.ext4", "-q", device)

	refused := host.Module(module, args)
	assert.Equal(t, "source_in_use", refused.Code)
	assert.Contains(t, refused.Msg, "an ext2, ext3 or ext4 file system")
	host.Run("wipefs", "--all", "--quiet", device)

	// The server replaces the source by the file system's UUID where udev knows it; the task's is still the same.
	host.Converges(module, args)

	args["config"] = dict{"source": "/dev/other"}
	changed := host.Module(module, args)
	assert.Equal(t, "immutable", changed.Code)
	assert.Contains(t, changed.Msg, device)
	host.Converges(module, dict{"name": "disk", "state": "absent"})
}

func TestStandAloneServer(t *testing.T) {
	host := lxdtest.Start(t, 1).Hosts[0]
	args := dict{"name": "local", "driver": "btrfs", "description": "one", "config": dict{"size": "200MiB", "user.a": 1}}

	result := host.Converges(module, args)
	assert.Equal(t, []string{`create storage pool "local" (driver btrfs, size=200MiB, new user.a)`}, result.Plan)

	args["config"], args["description"] = dict{"user.a": nil, "user.b": 2}, "two"
	host.Converges(module, args)
	assert.Contains(t, host.LXC("storage", "show", "local"), "size: 200MiB", "what is not named is kept")

	args["config"] = dict{"size": "300MiB"}
	bigger := host.Module(module, args)
	assert.Equal(t, "immutable", bigger.Code, "LXD 5.0 takes a new size and leaves the file as it is")
	assert.Contains(t, bigger.Msg, `size is "200MiB" and cannot become "300MiB"`)
	host.Converges(module, dict{"name": "local", "state": "absent"})
}

func TestClusterOfOneMember(t *testing.T) {
	host := lxdtest.StartCluster(t, 1).Hosts[0]
	args := dict{"name": "local", "driver": "btrfs", "description": "one", "config": dict{"size": "200MiB", "rsync.bwlimit": "1MB"}}

	killed := host.Module(module, args, lxdtest.Task{KillAfterStep: 1})
	require.True(t, killed.Killed)
	host.Converges(module, args)

	args["config"] = dict{"rsync.bwlimit": "2MB"}
	host.Converges(module, args)
	host.Converges(module, dict{"name": "local", "state": "absent"})
}

func TestMembersThatComeAndGo(t *testing.T) {
	cluster := lxdtest.Start(t, 3)
	cluster.Form(2)
	host := cluster.Hosts[0]
	args := dict{"name": "local", "driver": "btrfs", "config": dict{"size": "200MiB"}}

	host.OK(module, args)
	host.LXC("storage", "create", "half", "dir", "--target=n1") // pending: a joining member does not get it

	cluster.Hosts[2].JoinCluster(`{entity: storage-pool, name: local, key: size, value: 250MiB}`)

	args["members"] = dict{"n3": dict{"size": "250MiB"}}
	host.Unchanged(module, args)
	assert.Equal(t, []string{
		`create storage pool "half" on member "n2" (define it)`,
		`create storage pool "half" on member "n3" (define it)`,
		`create storage pool "half" (driver dir)`,
	}, host.Converges(module, dict{"name": "half", "driver": "dir"}).Plan)

	host.LXC("config", "set", "cluster.offline_threshold", "11")
	cluster.Hosts[2].Signal(syscall.SIGSTOP)
	t.Cleanup(func() { cluster.Hosts[2].Signal(syscall.SIGCONT) })
	host.Run("sh", "-c", `for i in $(seq 60); do lxc cluster list --format=csv | grep -q '^n3.*OFFLINE' && exit 0; sleep 1; done; exit 1`)

	for _, args := range []dict{
		{"name": "new", "driver": "dir"},
		{"name": "local", "description": "changed"},
		{"name": "local", "members": dict{"n3": dict{"size": "250MiB"}}},
		{"name": "local", "state": "absent"},
	} {
		offline := host.Module(module, args)
		assert.Equal(t, "member_offline", offline.Code, offline.Msg)
		assert.Contains(t, offline.Msg, `"n3"`)
		assert.False(t, offline.Changed)
	}

	same := host.Unchanged(module, dict{"name": "local", "driver": "btrfs"})
	assert.Contains(t, same.Raw["warnings"], `storage pool "local" on member "n3": the member is not online; it is not looked at`)
}
