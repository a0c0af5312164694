// SPDX-License-Identifier: Apache-2.0

package lxdstoragepool

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/canonical/lxd/shared/units"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
	"github.com/thinkube/infra/modules/internal/lxdtwophase"
	"github.com/thinkube/infra/modules/internal/plan"
)

func makePlan(args Args, current State) (plan.Plan[State], error) {
	out := plan.Plan[State]{After: current}
	rules := lxdtwophase.Rules{Compare: comparer(args.Name, current.CanGrow)}

	var (
		planned plan.Plan[lxdtwophase.State]
		err     error
	)

	if args.State == "absent" {
		planned, err = kind.Absent(args.Name, current.State, rules, users(current.UsedBy), args.Force)
	} else {
		planned, err = kind.Present(args.wanted, current.State, rules)
		if err == nil {
			err = checkWanted(args, current, planned.Changes())
		}
	}

	out.Steps, out.After.State = planned.Steps, planned.After

	return out, err
}

// users are what keeps a pool from being deleted. Images are not: the pool has copies of them, which the server makes
// when it needs them and deletes with the pool.
func users(usedBy []string) []string {
	return slices.DeleteFunc(slices.Clone(usedBy), func(user string) bool { return strings.HasPrefix(user, "/1.0/images/") })
}

// creationOnly are keys that say how to make a pool and mean nothing for one that is made.
var creationOnly = []string{"source.wipe", "source.recover"}

// fixed are keys that the server takes only at creation (LXD lxd/storage/drivers).
var fixed = []string{
	"zfs.pool_name", "lvm.vg_name", "lvm.use_thinpool", "lvm.thinpool_metadata_size",
	"ceph.cluster_name", "ceph.osd.pool_name", "cephfs.cluster_name", "cephfs.path", "cephobject.cluster_name",
}

// comparer judges wanted values of the pool of that name.
func comparer(pool string, canGrow bool) func(key, wanted string, live lxdapi.Config) (lxdtwophase.Verdict, string) {
	return func(key, wanted string, live lxdapi.Config) (lxdtwophase.Verdict, string) {
		switch {
		case slices.Contains(creationOnly, key), live[key] == wanted:
			return lxdtwophase.Same, ""
		case key == "source":
			return compareSource(pool, wanted, live)
		case key == "size":
			return compareSize(pool, wanted, live, canGrow)
		case slices.Contains(fixed, key) && wanted == "":
			return lxdtwophase.Same, "" // left to the server at creation
		case slices.Contains(fixed, key):
			return lxdtwophase.Fixed, live[key]
		}

		return lxdtwophase.Differs, ""
	}
}

// compareSource compares with what the pool was made from: the server rewrites source (a device becomes its file system's
// UUID, its volume group or its ZFS pool) and keeps the original in volatile.initial_source.
func compareSource(pool, wanted string, live lxdapi.Config) (lxdtwophase.Verdict, string) {
	initial, kept := live["volatile.initial_source"]

	switch {
	case wanted == "", wanted == initial, path.Clean(wanted) == path.Clean(live["source"]):
		return lxdtwophase.Same, ""
	case kept && initial != "":
		return lxdtwophase.Fixed, initial
	case live["source"] != "" && isLoop(live["source"], pool), path.IsAbs(live["source"]) && !strings.HasPrefix(live["source"], "/dev/"):
		return lxdtwophase.Fixed, live["source"] // a file or folder, which is never rewritten
	}

	return lxdtwophase.Same, "" // rewritten, and what it was is not known
}

// compareSize compares sizes as numbers. Only a loop file has one that is managed, and only some servers can change it:
// the others take a new value without a word and leave the file as it is.
func compareSize(pool, wanted string, live lxdapi.Config, canGrow bool) (lxdtwophase.Verdict, string) {
	if wanted == "" {
		return lxdtwophase.Same, ""
	}

	want, wantErr := units.ParseByteSizeString(wanted)
	have, haveErr := units.ParseByteSizeString(live["size"])
	loop := live["source"] != "" && isLoop(live["source"], pool)

	switch {
	case loop && wantErr == nil && haveErr == nil && want == have:
		return lxdtwophase.Same, ""
	case loop && wantErr == nil && haveErr == nil && want > have && canGrow:
		return lxdtwophase.Differs, ""
	case loop:
		return lxdtwophase.Fixed, live["size"]
	}

	return lxdtwophase.Fixed, "that of " + live["source"]
}

// checkWanted finds, before anything is made, what the servers would stumble over half-way.
func checkWanted(args Args, current State, changes []plan.Step) error {
	if len(changes) == 0 {
		return nil
	}

	if current.Object == nil && args.Driver == "" {
		return ansible.Fail(ansible.CodeInvalidArgument, "", "storage pool %q does not exist, and driver is missing: it says how to make it, for example driver: btrfs", args.Name)
	}

	for _, member := range current.Members {
		err := checkMember(args, current, member.Name)
		if err != nil {
			return err
		}
	}

	return checkSource(args, current)
}

func checkMember(args Args, current State, member string) error {
	pool, driver := kind.Object(args.Name), args.Driver

	var live lxdapi.Config

	if current.Object != nil {
		driver, live = current.Object.Type, current.Object.Members[member].Config
	}

	drivers, known := current.Drivers[member]
	if known && !slices.Contains(drivers, driver) {
		return ansible.Fail(CodeDriverMissing, "install what the driver needs there (btrfs-progs, zfsutils-linux, lvm2, ...) and start the server again; or choose another driver",
			"%s: the server on member %q cannot use driver %q; it can use %q", pool, member, driver, drivers)
	}

	if current.Object != nil && current.Object.Members[member].Status == lxdtwophase.StatusCreated && !current.CanGrow {
		return nil
	}

	own := kind.Own(args.wanted, current.State, member)
	if own["size"] != "" && !isLoop(own["source"], args.Name) {
		return ansible.Fail(ansible.CodeInvalidArgument, "", "%s on member %q: size is of the file that the server makes itself; with source %q there is none",
			pool, member, own["source"])
	}

	want, _ := units.ParseByteSizeString(own["size"])
	have, _ := units.ParseByteSizeString(live["size"])

	if current.Object == nil || current.Object.Members[member].Status != lxdtwophase.StatusCreated {
		have = 0
	}

	if free, known := current.Free[member]; known && want-have > free {
		return ansible.Fail(lxdapi.CodeDiskFull, "choose a smaller size, or make room",
			"%s on member %q: size %s does not fit: %s are free where the server keeps it", pool, member, own["size"], units.GetByteSizeStringIEC(free, 1))
	}

	return nil
}

// checkSource judges what this host has where the pool is to be. Other members' sources are looked at by their servers.
func checkSource(args Args, current State) error {
	source := current.Source
	if source == nil {
		return nil
	}

	where := fmt.Sprintf("%s on member %q: source %q", kind.Object(args.Name), current.Server, source.Path)
	own := kind.Own(args.wanted, current.State, current.Server)

	switch {
	case source.Kind == "none" && args.Driver == "btrfs" && !strings.HasPrefix(source.Path, "/dev/"):
		return nil // the server makes a subvolume of that name
	case source.Kind == "none":
		return ansible.Fail(CodeSourceMissing, "look for it with lsblk, or make the folder", "%s does not exist", where)
	case source.Kind == "folder" && args.Driver == "dir" && !source.Empty:
		return ansible.Fail(CodeSourceInUse, "give an empty folder", "%s is not empty: it holds %q", where, source.Holds)
	case source.Kind == "device" && args.Driver == "dir":
		return ansible.Fail(ansible.CodeInvalidArgument, "", "%s is a block device; driver dir takes a folder", where)
	case source.Kind == "device" && !source.Empty && own["source.wipe"] != "true":
		return ansible.Fail(CodeSourceInUse, "if nothing of it is needed any more, clear it with wipefs --all; otherwise give another device",
			"%s holds data or is in use: %s", where, strings.Join(source.Holds, ", "))
	}

	return nil
}
