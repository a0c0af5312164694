// SPDX-License-Identifier: Apache-2.0

package netstate

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// retries bounds how often a list is read again that changed while the kernel told it.
const retries = 10

// list calls one of netlink's dumps until it is consistent. EINTR and NLM_F_DUMP_INTR mean "half of this is old".
func list[T any](read func() ([]T, error)) ([]T, error) {
	for try := 1; ; try++ {
		found, err := read()
		if err == nil || try == retries || !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			return found, err
		}
	}
}

// Read gets the state of the network namespace that the calling thread is in.
func Read() (Net, error) {
	links, err := list(netlink.LinkList)
	if err != nil {
		return Net{}, fmt.Errorf("reading links: %w", err)
	}

	bridges, err := readBridges()
	if err != nil {
		return Net{}, fmt.Errorf("reading bridges: %w", err)
	}

	var read Net

	names := map[int]string{}
	for _, link := range links {
		names[link.Attrs().Index] = link.Attrs().Name
	}

	for _, link := range links {
		read.Links = append(read.Links, makeLink(link, names, bridges[link.Attrs().Index]))
	}

	addrs, err := list(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return Net{}, fmt.Errorf("reading addresses: %w", err)
	}

	for _, addr := range addrs {
		read.Addrs = append(read.Addrs, makeAddr(addr, names[addr.LinkIndex]))
	}

	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		err := readRouting(&read, family, names)
		if err != nil {
			return Net{}, err
		}
	}

	return read, nil
}

func readRouting(read *Net, family int, names map[int]string) error {
	// Table 0 with this mask is every table, where the default would be "main" alone.
	routes, err := list(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("reading routes: %w", err)
	}

	for _, route := range routes {
		if route.Table != unix.RT_TABLE_LOCAL && route.Type != unix.RTN_MULTICAST && route.Flags&unix.RTM_F_CLONED == 0 {
			read.Routes = append(read.Routes, makeRoute(route, family, names))
		}
	}

	rules, err := list(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil // a kernel without IPv6, or without rules
	}

	if err != nil {
		return fmt.Errorf("reading rules: %w", err)
	}

	for _, rule := range rules {
		read.Rules = append(read.Rules, makeRule(rule, family))
	}

	return nil
}

func makeLink(link netlink.Link, names map[int]string, bridge *bridgeInfo) Link {
	attrs := link.Attrs()
	made := Link{
		Name: attrs.Name, Index: attrs.Index, Kind: link.Type(), MAC: attrs.HardwareAddr.String(), MTU: attrs.MTU,
		Master: names[attrs.MasterIndex], Up: attrs.RawFlags&unix.IFF_UP != 0, Carrier: attrs.RawFlags&unix.IFF_LOWER_UP != 0,
		Other: attrs.EncapType != "ether",
	}

	if made.Kind == "device" {
		made.Kind = ""
	}

	if bridge != nil {
		made.MaxMTU = bridge.maxMTU
		made.PortState = bridge.portState
		made.Bridge = bridge.own
	}

	_, err := os.Stat(filepath.Join("/sys/class/net", attrs.Name, "phy80211"))
	made.Wifi = err == nil
	made.Sysctls = readSysctls(attrs.Name)

	return made
}

// keptSysctls are the settings of a link that decide whether and how it talks. The others follow from these, or are
// timers that nobody sets per link.
var keptSysctls = []string{
	"ipv4/rp_filter", "ipv4/arp_ignore", "ipv4/arp_announce", "ipv4/arp_filter", "ipv4/accept_redirects", "ipv4/send_redirects",
	"ipv4/accept_source_route", "ipv4/forwarding", "ipv4/log_martians", "ipv4/proxy_arp",
	"ipv6/accept_ra", "ipv6/autoconf", "ipv6/forwarding", "ipv6/use_tempaddr", "ipv6/accept_redirects", "ipv6/disable_ipv6",
	"ipv6/accept_ra_defrtr", "ipv6/accept_ra_pinfo", "ipv6/accept_ra_rt_info_max_plen", "ipv6/addr_gen_mode",
}

// sysctlPath is the file of a link's setting: "ipv4/rp_filter".
func sysctlPath(link, key string) string {
	family, name, _ := strings.Cut(key, "/")

	return filepath.Join("/proc/sys/net", family, "conf", link, name)
}

func readSysctls(link string) map[string]string {
	values := map[string]string{}

	for _, key := range keptSysctls {
		// A kernel without the setting has no file, and nothing to keep.
		text, err := os.ReadFile(sysctlPath(link, key))
		if err == nil {
			values[key] = strings.TrimSpace(string(text))
		}
	}

	return values
}

// chosenFlags are an address's flags that are no mere state (linux/if_addr.h).
const chosenFlags = unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_HOMEADDRESS | unix.IFA_F_MANAGETEMPADDR | unix.IFA_F_MCAUTOJOIN

func makeAddr(addr netlink.Addr, link string) Addr {
	made := Addr{Link: link, Prefix: addr.IPNet.String(), Scope: addr.Scope, Flags: addr.Flags & chosenFlags}

	if addr.Peer != nil {
		made.Peer = addr.Peer.String()
	}

	if addr.Broadcast != nil {
		made.Broadcast = addr.Broadcast.String()
	}

	if addr.Label != link {
		made.Label = addr.Label
	}

	// The library gives "for ever", 2^32-1, as it is.
	if uint32(addr.ValidLft) != ^uint32(0) {
		made.Valid, made.Preferred = addr.ValidLft, addr.PreferedLft
	}

	return made
}

func makeRoute(route netlink.Route, family int, names map[int]string) Route {
	made := Route{
		IPv6: family == netlink.FAMILY_V6, Table: route.Table, Dst: "default", Type: route.Type, Dev: names[route.LinkIndex],
		OnLink: route.Flags&unix.RTNH_F_ONLINK != 0, Metric: route.Priority, Proto: int(route.Protocol), Scope: int(route.Scope),
		TOS: route.Tos, MTU: route.MTU, AdvMSS: route.AdvMSS, Realm: route.Realm,
	}

	metrics := RouteMetrics{
		MTULock: route.MTULock, Window: route.Window, RTT: route.Rtt, RTTVar: route.RttVar, SSThresh: route.Ssthresh, Cwnd: route.Cwnd,
		Reordering: route.Reordering, HopLimit: route.Hoplimit, InitCwnd: route.InitCwnd, InitRwnd: route.InitRwnd, Features: route.Features,
		RTOMin: route.RtoMin, RTOMinLock: route.RtoMinLock, QuickACK: route.QuickACK, Congctl: route.Congctl,
		FastOpenNoCookie: route.FastOpenNoCookie,
	}
	if metrics != (RouteMetrics{}) {
		made.Metrics = &metrics
	}

	if route.Dst != nil && !(route.Dst.IP.IsUnspecified() && isZero(route.Dst.Mask)) {
		made.Dst = route.Dst.String()
	}

	if route.Gw != nil {
		made.Via = route.Gw.String()
	}

	if route.Src != nil {
		made.Src = route.Src.String()
	}

	for _, hop := range route.MultiPath {
		one := Hop{Dev: names[hop.LinkIndex], Weight: hop.Hops, OnLink: hop.Flags&unix.RTNH_F_ONLINK != 0}
		if hop.Gw != nil {
			one.Via = hop.Gw.String()
		}

		made.Hops = append(made.Hops, one)

		if hop.Encap != nil || hop.NewDst != nil || hop.Via != nil {
			made.Odd = "encapsulation"
		}
	}

	switch {
	case route.Encap != nil || route.NewDst != nil || route.MPLSDst != nil:
		made.Odd = "encapsulation"
	case route.Via != nil:
		made.Odd = "gateway of another family"
	}

	return made
}

func isZero(mask net.IPMask) bool {
	ones, _ := mask.Size()

	return ones == 0
}

func makeRule(rule netlink.Rule, family int) Rule {
	made := Rule{
		IPv6: family == netlink.FAMILY_V6, Priority: max(rule.Priority, 0), Table: rule.Table, Iif: rule.IifName, Oif: rule.OifName,
		Mark: rule.Mark, TOS: rule.Tos, Invert: rule.Invert, IPProto: rule.IPProto, Type: int(rule.Type), Proto: int(rule.Protocol),
	}

	if rule.Src != nil {
		made.Src = rule.Src.String()
	}

	if rule.Dst != nil {
		made.Dst = rule.Dst.String()
	}

	if rule.Mask != nil {
		made.Mask = *rule.Mask
	}

	if rule.SuppressPrefixlen >= 0 {
		made.Suppress = &rule.SuppressPrefixlen
	}

	if rule.Goto >= 0 {
		made.Goto = &rule.Goto
	}

	if rule.Sport != nil {
		made.SPort = []int{int(rule.Sport.Start), int(rule.Sport.End)}
	}

	if rule.Dport != nil {
		made.DPort = []int{int(rule.Dport.Start), int(rule.Dport.End)}
	}

	if rule.UIDRange != nil {
		made.UIDs = []int{int(rule.UIDRange.Start), int(rule.UIDRange.End)}
	}

	return made
}

// bridgeInfo is what the library does not tell of a link.
type bridgeInfo struct {
	own       *Bridge
	portState string
	maxMTU    int
}

var portStates = []string{"disabled", "listening", "learning", "forwarding", "blocking"}

// Attributes that the library has no names for (linux/if_link.h).
const (
	iflaMaxMTU       = 51
	iflaBrForwDelay  = 1
	iflaBrSTPState   = 5
	iflaBrVLANFilter = 7
	iflaBrportState  = 1
)

func readBridges() (map[int]*bridgeInfo, error) {
	messages, err := list(func() ([][]byte, error) {
		request := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))

		return request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	})
	if err != nil {
		return nil, err
	}

	found := map[int]*bridgeInfo{}

	for _, message := range messages {
		header := nl.DeserializeIfInfomsg(message)

		attrs, err := nl.ParseRouteAttr(message[header.Len():])
		if err != nil {
			return nil, err
		}

		info := &bridgeInfo{}
		found[int(header.Index)] = info

		for _, attr := range attrs {
			switch attr.Attr.Type &^ unix.NLA_F_NESTED {
			case iflaMaxMTU:
				info.maxMTU = int(nl.NativeEndian().Uint32(attr.Value))
			case unix.IFLA_LINKINFO:
				err = parseLinkInfo(attr.Value, info)
			}

			if err != nil {
				return nil, err
			}
		}
	}

	return found, nil
}

func parseLinkInfo(value []byte, info *bridgeInfo) error {
	attrs, err := nl.ParseRouteAttr(value)
	if err != nil {
		return err
	}

	var kind, slaveKind string

	for _, attr := range attrs {
		switch attr.Attr.Type &^ unix.NLA_F_NESTED {
		case nl.IFLA_INFO_KIND:
			kind = strings.TrimRight(string(attr.Value), "\x00")
		case nl.IFLA_INFO_SLAVE_KIND:
			slaveKind = strings.TrimRight(string(attr.Value), "\x00")
		case nl.IFLA_INFO_DATA:
			if kind == "bridge" {
				err = parseBridge(attr.Value, info)
			}
		case nl.IFLA_INFO_SLAVE_DATA:
			if slaveKind == "bridge" {
				err = parsePort(attr.Value, info)
			}
		}

		if err != nil {
			return err
		}
	}

	return nil
}

func parseBridge(value []byte, info *bridgeInfo) error {
	attrs, err := nl.ParseRouteAttr(value)
	info.own = &Bridge{}

	for _, attr := range attrs {
		switch attr.Attr.Type {
		case iflaBrForwDelay:
			info.own.ForwardDelay = nl.NativeEndian().Uint32(attr.Value)
		case iflaBrSTPState:
			info.own.STP = nl.NativeEndian().Uint32(attr.Value) != 0
		case iflaBrVLANFilter:
			info.own.VLANFiltering = attr.Value[0] != 0
		}
	}

	return err
}

func parsePort(value []byte, info *bridgeInfo) error {
	attrs, err := nl.ParseRouteAttr(value)

	for _, attr := range attrs {
		if attr.Attr.Type == iflaBrportState && int(attr.Value[0]) < len(portStates) {
			info.portState = portStates[attr.Value[0]]
		}
	}

	return err
}

// parseIP gives the address in the form that the library wants.
func parseIP(text string) net.IP {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return nil
	}

	return net.IP(addr.AsSlice())
}
