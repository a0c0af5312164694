// SPDX-License-Identifier: Apache-2.0

package netstate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// passes bounds how often Execute looks again. Two are normal: deleting addresses takes routes along.
const passes = 5

// Execute brings the kernel to the target, from whatever it is now. The error names what could not be done; the rest was
// tried all the same, since half a network is better than a quarter of one.
func Execute(ctx context.Context, target Target) error {
	var failed error

	for range passes {
		current, err := Read()
		if err != nil {
			return err
		}

		ops := Ops(current, target)
		if len(ops) == 0 {
			return nil
		}

		failed = nil

		for _, op := range ops {
			err := do(op)
			if err != nil {
				failed = errors.Join(failed, fmt.Errorf("%s: %w", op, err))
			}
		}

		if ctx.Err() != nil {
			return errors.Join(failed, ctx.Err())
		}
	}

	current, err := Read()
	if err != nil {
		return err
	}

	left := Ops(current, target)
	if len(left) == 0 {
		return nil
	}

	return errors.Join(fmt.Errorf("the kernel is still not as it should be: %s", left[0]), failed)
}

// do makes one call. What is there already, or gone already, is no error.
func do(op Op) error {
	switch op.Verb {
	case AddLink:
		return ignore(addBridge(op.Want), unix.EEXIST)
	case SetSysctl:
		return os.WriteFile(sysctlPath(op.Link, op.Key), []byte(op.Value), 0)
	case SetLink:
		return setLink(op.Want)
	case SetMaster:
		return setMaster(op.Link, op.Value)
	case DeleteLink:
		return deleteLink(op.Link)
	case AddAddr:
		return ignore(withAddr(op.Addr, netlink.AddrReplace), unix.EEXIST)
	case DeleteAddr:
		return ignore(withAddr(op.Addr, netlink.AddrDel), unix.EADDRNOTAVAIL)
	case AddRoute:
		err := withRoute(op.Route, netlink.RouteAdd)
		if errors.Is(err, unix.EEXIST) && !op.Route.IPv6 {
			// Another route to there, with another source for example. (With IPv6 this would make one route of both.)
			err = withRoute(op.Route, netlink.RouteAppend)
		}

		return ignore(err, unix.EEXIST)
	case DeleteRoute:
		return ignore(withRoute(op.Route, netlink.RouteDel), unix.ESRCH)
	case AddRule:
		return ignore(netlink.RuleAdd(makeNetlinkRule(op.Rule)), unix.EEXIST)
	case DeleteRule:
		return ignore(netlink.RuleDel(makeNetlinkRule(op.Rule)), unix.ENOENT)
	}

	return fmt.Errorf("unknown operation %q", op.Verb)
}

func ignore(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}

	return err
}

// bridgeData is IFLA_LINKINFO of a bridge. The library knows neither spanning tree nor forward delay.
func bridgeData(bridge *Bridge) *nl.RtAttr {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))

	if bridge == nil {
		return info
	}

	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(iflaBrSTPState, nl.Uint32Attr(uint32(b2i(bridge.STP))))

	// A kernel without VLAN filtering refuses the very attribute.
	if bridge.VLANFiltering {
		data.AddRtAttr(iflaBrVLANFilter, nl.Uint8Attr(1))
	}

	// The kernel checks the delay against the standard's bounds only while STP is on (net/bridge/br_stp.c,
	// br_set_forward_delay).
	data.AddRtAttr(iflaBrForwDelay, nl.Uint32Attr(bridge.ForwardDelay))

	return info
}

func addBridge(want *Link) error {
	request := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)

	if want.Up {
		message.Flags, message.Change = unix.IFF_UP, unix.IFF_UP
	}

	request.AddData(message)
	request.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(want.Name)))

	if want.MAC != "" {
		mac, err := net.ParseMAC(want.MAC)
		if err != nil {
			return err
		}

		request.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, mac))
	}

	if want.MTU != 0 {
		request.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(want.MTU))))
	}

	request.AddData(bridgeData(want.Bridge))

	_, err := request.Execute(unix.NETLINK_ROUTE, 0)

	return err
}

func setLink(want *Link) error {
	link, err := netlink.LinkByName(want.Name)
	if err != nil {
		return err
	}

	attrs := link.Attrs()

	var errs []error

	if want.Bridge != nil {
		request := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
		message := nl.NewIfInfomsg(unix.AF_UNSPEC)
		message.Index = int32(attrs.Index)
		request.AddData(message)
		request.AddData(bridgeData(want.Bridge))

		_, err := request.Execute(unix.NETLINK_ROUTE, 0)
		errs = append(errs, err)

		// What was left out above because a kernel without VLAN filtering would refuse it.
		errs = append(errs, clearFiltering(link, want.Bridge))
	}

	if want.MAC != "" && want.MAC != attrs.HardwareAddr.String() {
		mac, err := net.ParseMAC(want.MAC)
		if err == nil {
			err = netlink.LinkSetHardwareAddr(link, mac)
		}

		errs = append(errs, err)
	}

	if want.MTU != 0 && want.MTU != attrs.MTU {
		errs = append(errs, netlink.LinkSetMTU(link, want.MTU))
	}

	if up := attrs.RawFlags&unix.IFF_UP != 0; want.Up && !up {
		errs = append(errs, netlink.LinkSetUp(link))
	} else if !want.Up && up {
		errs = append(errs, netlink.LinkSetDown(link))
	}

	return errors.Join(errs...)
}

func clearFiltering(link netlink.Link, want *Bridge) error {
	have, ok := link.(*netlink.Bridge)
	if !ok || want.VLANFiltering || have.VlanFiltering == nil || !*have.VlanFiltering {
		return nil
	}

	return netlink.BridgeSetVlanFiltering(link, false)
}

// Announce has the kernel tell everybody about the links once more. Nothing changes: an alias that is set to what it is
// is news all the same.
func Announce(names []string) {
	for _, name := range names {
		link, err := netlink.LinkByName(name)
		if err == nil {
			_ = netlink.LinkSetAlias(link, link.Attrs().Alias) // whoever needs to know is asked again anyway
		}
	}
}

func setMaster(name, master string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}

	if master == "" {
		return netlink.LinkSetNoMaster(link)
	}

	bridge, err := netlink.LinkByName(master)
	if err != nil {
		return err
	}

	return netlink.LinkSetMaster(link, bridge)
}

func deleteLink(name string) error {
	link, err := netlink.LinkByName(name)

	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) {
		return nil
	}

	if err != nil {
		return err
	}

	return ignore(netlink.LinkDel(link), unix.ENODEV)
}

func withAddr(addr *Addr, call func(netlink.Link, *netlink.Addr) error) error {
	link, err := netlink.LinkByName(addr.Link)
	if err != nil {
		return err
	}

	made, err := netlink.ParseAddr(addr.Prefix)
	if err != nil {
		return err
	}

	made.Label, made.Scope, made.Flags = addr.Label, addr.Scope, addr.Flags
	made.ValidLft, made.PreferedLft = addr.Valid, addr.Preferred
	made.Broadcast = parseIP(addr.Broadcast)

	if addr.Broadcast == "" {
		made.Broadcast = net.IPv4zero // none, where the library would make one up
	}

	if addr.Peer != "" {
		_, peer, err := net.ParseCIDR(addr.Peer)
		if err != nil {
			return err
		}

		peer.IP = parseIP(addr.Peer[:len(addr.Peer)-len(suffix(addr.Peer))])
		made.Peer = peer
	}

	if !addr.Addr4() {
		// The address was this host's a moment ago: no need to ask whose it is, and to be deaf meanwhile (RFC 4862, 5.4).
		made.Flags |= unix.IFA_F_NODAD
	}

	return call(link, made)
}

// suffix is "/24" of a prefix.
func suffix(prefix string) string {
	for i := range prefix {
		if prefix[i] == '/' {
			return prefix[i:]
		}
	}

	return ""
}

func withRoute(route *Route, call func(*netlink.Route) error) error {
	if route.Odd != "" {
		return fmt.Errorf("a route with %s cannot be set again", route.Odd)
	}

	family := netlink.FAMILY_V4
	any := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}

	if route.IPv6 {
		family = netlink.FAMILY_V6
		any = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}

	made := &netlink.Route{
		Family: family, Table: route.Table, Type: route.Type, Priority: route.Metric, Scope: netlink.Scope(route.Scope),
		Protocol: netlink.RouteProtocol(route.Proto), Tos: route.TOS, MTU: route.MTU, AdvMSS: route.AdvMSS, Realm: route.Realm,
		Src: parseIP(route.Src), Gw: parseIP(route.Via), Dst: any,
	}

	if metrics := route.Metrics; metrics != nil {
		made.MTULock, made.Window, made.Rtt, made.RttVar, made.Ssthresh = metrics.MTULock, metrics.Window, metrics.RTT, metrics.RTTVar, metrics.SSThresh
		made.Cwnd, made.Reordering, made.Hoplimit, made.InitCwnd = metrics.Cwnd, metrics.Reordering, metrics.HopLimit, metrics.InitCwnd
		made.InitRwnd, made.Features, made.RtoMin, made.RtoMinLock = metrics.InitRwnd, metrics.Features, metrics.RTOMin, metrics.RTOMinLock
		made.QuickACK, made.Congctl, made.FastOpenNoCookie = metrics.QuickACK, metrics.Congctl, metrics.FastOpenNoCookie
	}

	if route.Dst != "default" {
		_, dst, err := net.ParseCIDR(route.Dst)
		if err != nil {
			return err
		}

		made.Dst = dst
	}

	if route.OnLink {
		made.Flags = unix.RTNH_F_ONLINK
	}

	if len(route.Hops) > 0 {
		return withHops(made, route.Hops, call)
	}

	if route.Dev != "" {
		link, err := netlink.LinkByName(route.Dev)
		if err != nil {
			return err
		}

		made.LinkIndex = link.Attrs().Index
	}

	return call(made)
}

func withHops(made *netlink.Route, hops []Hop, call func(*netlink.Route) error) error {
	for _, hop := range hops {
		link, err := netlink.LinkByName(hop.Dev)
		if err != nil {
			return err
		}

		one := &netlink.NexthopInfo{LinkIndex: link.Attrs().Index, Hops: hop.Weight, Gw: parseIP(hop.Via)}
		if hop.OnLink {
			one.Flags = unix.RTNH_F_ONLINK
		}

		made.MultiPath = append(made.MultiPath, one)
	}

	return call(made)
}

func makeNetlinkRule(rule *Rule) *netlink.Rule {
	made := netlink.NewRule()
	made.Family = netlink.FAMILY_V4

	if rule.IPv6 {
		made.Family = netlink.FAMILY_V6
	}

	made.Priority, made.Table, made.IifName, made.OifName = rule.Priority, rule.Table, rule.Iif, rule.Oif
	made.Mark, made.Tos, made.Invert, made.IPProto = rule.Mark, rule.TOS, rule.Invert, rule.IPProto
	made.Type, made.Protocol = uint8(rule.Type), uint8(rule.Proto)

	if rule.Mask != 0 {
		made.Mask = &rule.Mask
	}

	if rule.Suppress != nil {
		made.SuppressPrefixlen = *rule.Suppress
	}

	if rule.Goto != nil {
		made.Goto = *rule.Goto
	}

	if _, network, err := net.ParseCIDR(rule.Src); err == nil {
		made.Src = network
	}

	if _, network, err := net.ParseCIDR(rule.Dst); err == nil {
		made.Dst = network
	}

	if len(rule.SPort) == 2 {
		made.Sport = netlink.NewRulePortRange(uint16(rule.SPort[0]), uint16(rule.SPort[1]))
	}

	if len(rule.DPort) == 2 {
		made.Dport = netlink.NewRulePortRange(uint16(rule.DPort[0]), uint16(rule.DPort[1]))
	}

	if len(rule.UIDs) == 2 {
		made.UIDRange = netlink.NewRuleUIDRange(uint32(rule.UIDs[0]), uint32(rule.UIDs[1]))
	}

	return made
}
