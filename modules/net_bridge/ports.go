// SPDX-License-Identifier: Apache-2.0

package netbridge

import (
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/netstate"
)

// findPorts gives the names of the links that are to be ports, or says why that cannot be told.
func findPorts(args Args, state State) ([]string, error) {
	if args.State == "absent" || args.auto() {
		if state.Record != nil {
			return state.Record.Ports, nil
		}

		if args.State == "absent" {
			return nil, nil
		}

		return uplink(args.Name, state.Net)
	}

	var ports []string

	for _, asked := range args.Ports {
		name, err := findPort(asked, args.Name, state.Net)
		if err != nil {
			return nil, err
		}

		ports = append(ports, name)
	}

	return ports, nil
}

// findPort finds a link by its name or MAC. A bridge and what is stacked on a port have the port's MAC as well.
func findPort(asked, bridge string, state netstate.Net) (string, error) {
	if !strings.Contains(asked, ":") {
		if state.Link(asked) == nil {
			return "", ansible.Fail(CodePort, "look which links there are: ip link", "port %q: there is no link of that name", asked)
		}

		return asked, nil
	}

	var found []string

	for _, link := range state.Links {
		if link.MAC == asked && link.Name != bridge && link.Kind != "bridge" && link.Kind != "vlan" && link.Kind != "macvlan" && link.Kind != "bond" {
			found = append(found, link.Name)
		}
	}

	switch len(found) {
	case 0:
		return "", ansible.Fail(CodePort, "look which links there are: ip link", "port %q: there is no link with that MAC", asked)
	case 1:
		return found[0], nil
	}

	return "", ansible.Fail(CodeAmbiguous, "give the port's name", "port %q: links %q have that MAC", asked, found)
}

// uplink is the link of the default routes. Of several of one family the one with the least metric counts.
func uplink(bridge string, state netstate.Net) ([]string, error) {
	var devs []string

	for _, v6 := range []bool{false, true} {
		best := -1

		var found []string

		for _, route := range state.Routes {
			if !route.Default() || route.IPv6 != v6 || best >= 0 && route.Metric > best {
				continue
			}

			if best >= 0 && route.Metric < best {
				found = nil
			}

			best = route.Metric
			found = append(found, route.Devs()...)
		}

		devs = append(devs, found...)
	}

	slices.Sort(devs)
	devs = slices.Compact(devs)

	hint := "name the port with ports"

	switch {
	case len(devs) == 0:
		return nil, ansible.Fail(CodeAmbiguous, hint, "ports auto: there is no default route, so no link is the uplink")
	case len(devs) > 1:
		return nil, ansible.Fail(CodeAmbiguous, hint, "ports auto: default routes lead over links %q", devs)
	case devs[0] != bridge:
		if link := state.Link(devs[0]); link != nil && link.Kind != "" && link.Kind != "veth" {
			return nil, ansible.Fail(CodePort, hint+" if you mean it", "ports auto: the default route leads over link %q, which is a %s", devs[0], link.Kind)
		}

		return devs, nil
	}

	// The bridge is the uplink already. What of it is hardware is its port; the rest belongs to virtual machines.
	var ports []string

	for _, port := range state.Ports(bridge) {
		if link := state.Link(port); link.Kind == "" || link.Kind == "veth" && len(state.Ports(bridge)) == 1 {
			ports = append(ports, port)
		}
	}

	if len(ports) != 1 {
		return nil, ansible.Fail(CodeAmbiguous, hint, "ports auto: bridge %q is the uplink and has ports %q", bridge, state.Ports(bridge))
	}

	return ports, nil
}

// checkPort finds what speaks against a link as a port.
func checkPort(args Args, state State, name string) error {
	link := state.Net.Link(name)

	switch {
	case link == nil:
		return ansible.Fail(CodePort, "look which links there are: ip link", "port %q: there is no link of that name", name)
	case link.Master != "" && link.Master != args.Name:
		return ansible.Fail(CodePort, "take it out there first", "port %q: is a port of %q already", name, link.Master)
	case link.Wifi:
		return ansible.Fail(CodePort, "use a cable: an access point takes frames of its own stations only (IEEE 802.11)", "port %q: a wireless link cannot be a bridge's port", name)
	case link.Other || link.Kind == "bridge":
		return ansible.Fail(CodePort, "", "port %q: is a %s, and no Ethernet link", name, kindOf(*link))
	case args.MTU != nil && link.MaxMTU > 0 && *args.MTU > link.MaxMTU:
		return ansible.Fail(CodePort, "", "port %q: can have an MTU of %d at most, not %d", name, link.MaxMTU, *args.MTU)
	}

	return nil
}

func kindOf(link netstate.Link) string {
	if link.Kind == "" {
		return "link of another kind"
	}

	return link.Kind
}

// checkMAC refuses a MAC that another link of this host has: two would answer on one wire.
func checkMAC(args Args, state State, ports []string) error {
	if args.MAC == "port" {
		return nil
	}

	for _, link := range state.Net.Links {
		if link.MAC == args.MAC && link.Name != args.Name && !slices.Contains(ports, link.Name) {
			return ansible.Fail(ansible.CodeInvalidArgument, "", "mac %q: link %q has it already", args.MAC, link.Name)
		}
	}

	return nil
}
