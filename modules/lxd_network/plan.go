// SPDX-License-Identifier: Apache-2.0

package lxdnetwork

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
	"github.com/thinkube/infra/modules/internal/lxdtwophase"
	"github.com/thinkube/infra/modules/internal/plan"
)

// rules are what a network's keys mean. A cluster inserts a new network without its description (LXD lxd/networks.go,
// networksPostCluster), and gives a bridge with an automatic address NAT unless told otherwise (driver_bridge.go, FillConfig).
var rules = lxdtwophase.Rules{Compare: compare, Filled: []string{"ipv4.nat", "ipv6.nat"}, ForgetsDescription: true}

func makePlan(args Args, current State) (plan.Plan[State], error) {
	out := plan.Plan[State]{After: current}

	var (
		planned plan.Plan[lxdtwophase.State]
		err     error
	)

	if args.State == "absent" {
		planned, err = kind.Absent(args.Name, current.State, rules, current.UsedBy, args.Force)
	} else {
		wanted := args.wanted
		if current.Object == nil && wanted.Type == "" {
			wanted.Type = defaultType
		}

		planned, err = kind.Present(wanted, current.State, rules)
		if err == nil {
			err = checkWanted(args, current, planned.Changes())
		}
	}

	out.Steps, out.After.State = planned.Steps, planned.After

	return out, err
}

// compare judges a wanted value. "auto" asks the server to choose, once.
func compare(key, wanted string, live lxdapi.Config) (lxdtwophase.Verdict, string) {
	have := live[key]

	switch {
	case have == wanted:
		return lxdtwophase.Same, ""
	case wanted == "auto" && isAutomatic(key) && have != "" && have != "none":
		return lxdtwophase.Same, ""
	}

	return lxdtwophase.Differs, ""
}

// isAutomatic tells of keys whose value "auto" the server replaces by what it chose.
func isAutomatic(key string) bool {
	return key == "ipv4.address" || key == "ipv6.address" || key == "fan.underlay_subnet"
}

// checkWanted finds, before anything is made, what the servers would stumble over half-way or never notice.
func checkWanted(args Args, current State, changes []plan.Step) error {
	if len(changes) == 0 {
		return nil
	}

	if len(current.Unmanaged) > 0 && typeOf(args, current) == defaultType {
		return ansible.Fail(CodeUnmanaged, "give the network another name; or, if the interface is a bridge that you want to keep, let module net_bridge have it",
			"%s: interface %q exists on members %q and is none of LXD's networks", kind.Object(args.Name), args.Name, current.Unmanaged)
	}

	for _, member := range slices.Sorted(maps.Keys(current.Missing)) {
		return ansible.Fail(CodeNoInterface, "look there which interfaces it has: ip link; members gives each member its own names",
			"%s on member %q: there is no interface %q", kind.Object(args.Name), member, current.Missing[member])
	}

	return checkOverlap(args, current)
}

func typeOf(args Args, current State) string {
	switch {
	case current.Object != nil:
		return current.Object.Type
	case args.Type != "":
		return args.Type
	}

	return defaultType
}

// newSubnets are those that the network is to have and does not have yet.
func newSubnets(args Args, current State) []netip.Prefix {
	var subnets []netip.Prefix

	for _, key := range []string{"ipv4.address", "ipv6.address"} {
		wanted := args.wanted.Config[key]

		prefix, err := netip.ParsePrefix(wanted)
		made := current.Object != nil && current.Object.Status == lxdtwophase.StatusCreated

		if err == nil && !(made && current.Object.Config[key] == wanted) {
			subnets = append(subnets, prefix)
		}
	}

	return subnets
}

// checkOverlap finds who else has addresses of the wanted subnets. The server does not look, and hosts then lose their way
// to each other.
func checkOverlap(args Args, current State) error {
	var found []string

	for _, subnet := range newSubnets(args, current) {
		for _, other := range current.Subnets {
			prefix, err := netip.ParsePrefix(other.Subnet)
			if err == nil && prefix.Overlaps(subnet) {
				found = append(found, subnet.Masked().String()+" overlaps with "+other.Subnet+" of "+other.Owner)
			}
		}
	}

	if found == nil {
		return nil
	}

	return ansible.Fail(CodeOverlap, "choose a subnet that nobody uses; with address auto the server looks for one on its own host",
		"%s: %s", kind.Object(args.Name), strings.Join(found, "; "))
}
