// SPDX-License-Identifier: Apache-2.0

package ztdouble

import (
	"errors"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// Kernel plugs real links: a vxlan for each network, which all its members in reach of the underlay share by a multicast
// group.
type Kernel struct {
	Underlay string // the link that carries it
}

// vxlanPort is not the usual one, which others may use.
const vxlanPort = 19994

// vxlanOverhead is what a vxlan adds to each packet over IPv4.
const vxlanOverhead = 50

// Set makes the device be there with exactly these addresses, and those that are kept.
func (k Kernel) Set(device Device) error {
	link, err := netlink.LinkByName(device.Name)

	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		link, err = k.add(device)
	}

	if err != nil {
		return err
	}

	return errors.Join(setAddresses(link, device), setRoutes(link, device))
}

func (k Kernel) add(device Device) (netlink.Link, error) {
	under, err := netlink.LinkByName(k.Underlay)
	if err != nil {
		return nil, err
	}

	mac, err := net.ParseMAC(device.MAC)
	if err != nil {
		return nil, err
	}

	id := number(device.Network) & 0xffffff

	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = device.Name, mac, min(device.MTU, under.Attrs().MTU-vxlanOverhead)

	err = netlink.LinkAdd(&netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: int(id), VtepDevIndex: under.Attrs().Index, Port: vxlanPort, Learning: true,
		Group: net.IPv4(239, byte(id>>16), byte(id>>8), byte(id)),
	})
	if err != nil {
		return nil, err
	}

	link, err := netlink.LinkByName(device.Name)
	if err != nil {
		return nil, err
	}

	return link, netlink.LinkSetUp(link)
}

func setAddresses(link netlink.Link, device Device) error {
	have, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}

	var errs []error

	for _, addr := range have {
		text := addr.IPNet.String()
		if !addr.IP.IsLinkLocalUnicast() && !slices.Contains(device.Addresses, text) && !slices.Contains(device.Keep, text) {
			errs = append(errs, netlink.AddrDel(link, &addr))
		}
	}

	for _, text := range device.Addresses {
		if slices.ContainsFunc(have, func(addr netlink.Addr) bool { return addr.IPNet.String() == text }) {
			continue
		}

		addr, err := netlink.ParseAddr(text)
		if err == nil {
			addr.Flags = 2 // IFA_F_NODAD: it is there at once
			err = netlink.AddrAdd(link, addr)
		}

		errs = append(errs, err)
	}

	return errors.Join(errs...)
}

// metric marks the routes of a network on its device.
const metric = 5000

func setRoutes(link netlink.Link, device Device) error {
	var (
		errs   []error
		wanted []string
	)

	for _, route := range device.Routes {
		_, target, err := net.ParseCIDR(route[0])
		if err != nil || route[1] == "" || len(device.Addresses) == 0 {
			continue // the kernel makes those on the link
		}

		wanted = append(wanted, target.String())
		errs = append(errs, netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: target, Gw: net.ParseIP(route[1]), Priority: metric}))
	}

	have, err := netlink.RouteList(link, netlink.FAMILY_ALL)
	for _, route := range have {
		if route.Priority == metric && route.Dst != nil && !slices.Contains(wanted, route.Dst.String()) {
			errs = append(errs, netlink.RouteDel(&route))
		}
	}

	return errors.Join(append(errs, err)...)
}

// Remove removes a device that is one of ours.
func (k Kernel) Remove(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil || !strings.HasPrefix(name, "zt") {
		return err
	}

	return netlink.LinkDel(link)
}
