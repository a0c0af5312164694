// SPDX-License-Identifier: Apache-2.0

// Package lxdnetwork manages one LXD network, on a stand-alone server or on all members of a cluster.
package lxdnetwork

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
	"github.com/thinkube/infra/modules/internal/lxdtwophase"
)

// Args are the module's options.
type Args struct {
	Name        string                    `ansible:"name,required"`
	State       string                    `ansible:"state" choices:"present,absent" default:"present"`
	Type        string                    `ansible:"type"`
	Description *string                   `ansible:"description"`
	Config      map[string]any            `ansible:"config"`
	Members     map[string]map[string]any `ansible:"members"`
	Force       bool                      `ansible:"force" default:"false"`
	lxdapi.Options

	wanted lxdtwophase.Wanted
}

// Values are what the module returns.
type Values struct {
	Network *Network `json:"network"`
}

// Network is a network as users see it.
type Network struct {
	Name        string                        `json:"name"`
	Type        string                        `json:"type"`
	Status      string                        `json:"status"`
	Description string                        `json:"description"`
	Config      lxdapi.Config                 `json:"config"`
	Members     map[string]lxdtwophase.Member `json:"members"`
}

// Failure codes of this module.
const (
	CodeUnmanaged   ansible.Code = "unmanaged"
	CodeOverlap     ansible.Code = "overlap"
	CodeToolMissing ansible.Code = "tool_missing"
	CodeNoInterface ansible.Code = "no_interface"
)

// Module is lxd_network.
var Module = ansible.Module[Args, State, Values]{
	Name: "lxd_network",
	Lock: lxdapi.Lock,
	Codes: lxdtwophase.Codes(map[ansible.Code]string{
		CodeUnmanaged:   "a member has an interface of that name that LXD does not manage",
		CodeOverlap:     "the network's subnet overlaps with another network or with an interface of a member",
		CodeToolMissing: "a member lacks a program that its server needs for the network, such as dnsmasq",
		CodeNoInterface: "a member does not have the interface that the network is to use",
	}),
	Normalize: normalize,
	Open:      open,
	Plan:      makePlan,
	Result:    func(_ Args, final State) Values { return Values{Network: makeNetwork(final.Object)} },
}

func makeNetwork(object *lxdtwophase.Object) *Network {
	if object == nil {
		return nil
	}

	return &Network{object.Name, object.Type, object.Status, object.Description, object.Config, object.Members}
}

// defaultType is what a network becomes that does not exist yet, as with LXD itself.
const defaultType = "bridge"

func normalize(args *Args) error {
	// A bridge is an interface of the same name; other types only have an API path.
	check := lxdapi.CheckObjectName
	if args.Type == "" || args.Type == defaultType {
		check = lxdapi.CheckInterfaceName
	}

	errs := []error{check("name", args.Name)}
	args.wanted = lxdtwophase.Wanted{
		Name: args.Name, Type: args.Type, Description: args.Description, Members: map[string]lxdapi.Config{},
	}

	config, err := lxdapi.MakeConfig("config", args.Config)
	args.wanted.Config = config
	errs = append(errs, err, checkConfig(config))

	for _, name := range slices.Sorted(maps.Keys(args.Members)) {
		own, err := lxdapi.MakeConfig(fmt.Sprintf("members[%q]", name), args.Members[name])
		args.wanted.Members[name] = own
		errs = append(errs, err)
	}

	return errors.Join(errs...)
}

// checkConfig finds values that can be judged by themselves.
func checkConfig(config lxdapi.Config) error {
	var errs []error

	for _, key := range slices.Sorted(maps.Keys(config)) {
		if lxdapi.Computed(key) {
			errs = append(errs, fmt.Errorf("config: %q is the server's own and cannot be set", key))
		}
	}

	for _, family := range []string{"ipv4", "ipv6"} {
		value, named := config[family+".address"]
		if named {
			errs = append(errs, checkAddress(family, value))
		}
	}

	return errors.Join(errs...)
}

// checkAddress judges the address that a bridge is to have.
func checkAddress(family, value string) error {
	example := map[string]string{"ipv4": "10.20.30.1/24", "ipv6": "fd42:1:2:3::1/64"}[family]

	if value == "auto" || value == "none" {
		return nil
	}

	if value == "" {
		return fmt.Errorf("config: %s.address: to have none say none; unset, the server chooses one, which is called auto", family)
	}

	prefix, err := netip.ParsePrefix(value)

	switch {
	case err != nil || prefix.Addr().Is4() != (family == "ipv4"):
		return fmt.Errorf("config: %s.address %q: must be none, auto, or an address with its prefix length, for example %s", family, value, example)
	case prefix.Bits() < prefix.Addr().BitLen()-1 && prefix.Masked().Addr() == prefix.Addr():
		return fmt.Errorf("config: %s.address %q: is the address of the subnet itself; give the bridge one in it, for example %s", family, value, example)
	}

	return nil
}

// kind is what a network is among the objects that a cluster makes in two phases. The member keys are those of LXD 5.0
// to 6 (lxd/db/networks.go, NodeSpecificNetworkConfig). OVN networks alone have none: LXD's driver_ovn.go.
var kind = lxdtwophase.Kind{
	Noun: "network", Collection: "networks", Entity: "network", TypeField: "type",
	MemberKeys: []string{"acceleration.parent", "bgp.ipv4.nexthop", "bgp.ipv6.nexthop", "bridge.external_interfaces", "parent"},
	GlobalOnly: func(typ string) bool { return typ == "ovn" },
}

func open(ctx context.Context, task *ansible.Task, args Args) (ansible.Host[State], error) {
	server, err := lxdapi.Connect(ctx, args.Options)
	if err != nil {
		return nil, err
	}

	return &host{args: args, task: task, server: server, target: lxdtwophase.Target{
		Kind: kind, Name: args.Name, Server: server, Explain: explain,
	}}, nil
}

// isSecret tells of config keys that hold a password: bgp.peers.NAME.password.
func isSecret(key string) bool { return strings.HasSuffix(key, ".password") }
