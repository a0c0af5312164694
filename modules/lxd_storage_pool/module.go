// SPDX-License-Identifier: Apache-2.0

// Package lxdstoragepool manages one LXD storage pool, on a stand-alone server or on all members of a cluster.
package lxdstoragepool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/canonical/lxd/shared/units"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
	"github.com/thinkube/infra/modules/internal/lxdtwophase"
)

// Args are the module's options.
type Args struct {
	Name        string                    `ansible:"name,required"`
	State       string                    `ansible:"state" choices:"present,absent" default:"present"`
	Driver      string                    `ansible:"driver"`
	Description *string                   `ansible:"description"`
	Config      map[string]any            `ansible:"config"`
	Members     map[string]map[string]any `ansible:"members"`
	Force       bool                      `ansible:"force" default:"false"`
	lxdapi.Options

	wanted lxdtwophase.Wanted
}

// Values are what the module returns.
type Values struct {
	Pool *Pool `json:"pool"`
}

// Pool is a storage pool as users see it.
type Pool struct {
	Name        string                        `json:"name"`
	Driver      string                        `json:"driver"`
	Status      string                        `json:"status"`
	Description string                        `json:"description"`
	Config      lxdapi.Config                 `json:"config"`
	Members     map[string]lxdtwophase.Member `json:"members"`
}

// Failure codes of this module.
const (
	CodeDriverMissing ansible.Code = "driver_missing"
	CodeSourceMissing ansible.Code = "source_missing"
	CodeSourceInUse   ansible.Code = "source_in_use"
)

// Module is lxd_storage_pool.
var Module = ansible.Module[Args, State, Values]{
	Name: "lxd_storage_pool",
	Lock: lxdapi.Lock,
	Codes: lxdtwophase.Codes(map[ansible.Code]string{
		CodeDriverMissing: "a member's server cannot use the driver because tools or a kernel module are missing there",
		CodeSourceMissing: "the pool's source does not exist",
		CodeSourceInUse:   "the pool's source holds data or is in use",
	}),
	Normalize: normalize,
	Open:      open,
	Plan:      makePlan,
	Result:    func(_ Args, final State) Values { return Values{Pool: makePool(final.Object)} },
}

func makePool(object *lxdtwophase.Object) *Pool {
	if object == nil {
		return nil
	}

	return &Pool{object.Name, object.Type, object.Status, object.Description, object.Config, object.Members}
}

func normalize(args *Args) error {
	errs := []error{lxdapi.CheckObjectName("name", args.Name)}
	args.wanted = lxdtwophase.Wanted{
		Name: args.Name, Type: args.Driver, Description: args.Description, Members: map[string]lxdapi.Config{},
	}

	config, err := lxdapi.MakeConfig("config", args.Config)
	args.wanted.Config = config
	errs = append(errs, err, checkConfig("config", config))

	for _, name := range slices.Sorted(maps.Keys(args.Members)) {
		option := fmt.Sprintf("members[%q]", name)

		own, err := lxdapi.MakeConfig(option, args.Members[name])
		args.wanted.Members[name] = own
		errs = append(errs, err, checkConfig(option, own))
	}

	return errors.Join(errs...)
}

// checkConfig finds values that can be judged by themselves.
func checkConfig(option string, config lxdapi.Config) error {
	var errs []error

	for _, key := range slices.Sorted(maps.Keys(config)) {
		if lxdapi.Computed(key) {
			errs = append(errs, fmt.Errorf("%s: %q is the server's own and cannot be set", option, key))
		}
	}

	if size := config["size"]; size != "" {
		bytes, err := units.ParseByteSizeString(size)
		if err != nil || bytes <= 0 {
			errs = append(errs, fmt.Errorf("%s: size %q: must be a number with a unit as LXD writes it, for example 30GiB", option, size))
		}
	}

	return errors.Join(errs...)
}

// kind is what a storage pool is among the objects that a cluster makes in two phases. The member keys are those of LXD
// 5.0 to 6 (lxd/db/storage_pools.go, NodeSpecificStorageConfig).
var kind = lxdtwophase.Kind{
	Noun: "storage pool", Collection: "storage-pools", Entity: "storage-pool", TypeField: "driver",
	MemberKeys: []string{
		"lvm.thinpool_name", "lvm.vg_name", "size", "source", "source.recover", "source.wipe", "volatile.initial_source", "zfs.pool_name",
	},
}

func open(ctx context.Context, _ *ansible.Task, args Args) (ansible.Host[State], error) {
	server, err := lxdapi.Connect(ctx, args.Options)
	if err != nil {
		return nil, err
	}

	return &host{args: args, server: server, target: lxdtwophase.Target{
		Kind: kind, Name: args.Name, Server: server, Explain: explain,
	}}, nil
}

// isLoop tells whether a source is the file that the server makes by itself for the pool.
func isLoop(source, pool string) bool {
	return source == "" || strings.HasSuffix(source, "/disks/"+pool+".img")
}
