// SPDX-License-Identifier: Apache-2.0

package ztapi

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// KernelAddresses reads what a network's device has in the kernel, with prefix lengths, without the link-local addresses, which the kernel makes itself.
func KernelAddresses(device string) ([]string, error) {
	found := []string{}

	link, err := netlink.LinkByName(device)

	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) || device == "" {
		return found, nil
	}

	if err != nil {
		return found, err
	}

	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)

	for _, addr := range addrs {
		if !addr.IP.IsLinkLocalUnicast() {
			found = append(found, addr.IPNet.String())
		}
	}

	return found, err
}

// KernelRoutes reads the routes of the main table that lead over a network's device.
func KernelRoutes(device string) ([]Route, error) {
	found := []Route{}

	link, err := netlink.LinkByName(device)

	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) || device == "" {
		return found, nil
	}

	if err != nil {
		return found, err
	}

	routes, err := netlink.RouteList(link, netlink.FAMILY_ALL)

	for _, route := range routes {
		one := Route{Target: "0.0.0.0/0"}

		switch {
		case route.Dst != nil:
			one.Target = CanonicalPrefix(route.Dst.String())
		case route.Family == netlink.FAMILY_V6:
			one.Target = "::/0"
		}

		if via, ok := netip.AddrFromSlice(route.Gw); ok {
			one.Via = via.Unmap().String()
		}

		found = append(found, one)
	}

	return found, err
}

// halves are what a node puts in place of a default route, so that the one that is there stays (ManagedRoute of zerotier-one).
var halves = map[string][]string{"0.0.0.0/0": {"0.0.0.0/1", "128.0.0.0/1"}, "::/0": {"::/1", "8000::/1"}}

// HasRoute tells whether the kernel's routes hold one of the network's.
func HasRoute(have []Route, want Route) bool {
	if slices.Contains(have, want) {
		return true
	}

	parts := halves[want.Target]
	for _, part := range parts {
		if !slices.Contains(have, Route{part, want.Via}) {
			return false
		}
	}

	return len(parts) > 0
}
