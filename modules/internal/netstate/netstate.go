// SPDX-License-Identifier: Apache-2.0

// Package netstate holds what the kernel knows of links, addresses, routes and rules as plain data, and the way from one
// such state to another. Read and Execute talk to the kernel; everything else is pure.
//
// A change of a host's network and its undoing are the same thing here: a Target to reach from wherever the kernel is.
// That is why an interrupted change needs no log of what was done so far.
package netstate

import (
	"net/netip"
	"slices"
	"strings"
)

// Net is the network of a host (of one network namespace).
type Net struct {
	Links  []Link  `json:"links"`
	Addrs  []Addr  `json:"addrs"`
	Routes []Route `json:"routes"`
	Rules  []Rule  `json:"rules,omitempty"`
}

// Link is one interface.
type Link struct {
	Name    string  `json:"name"`
	Index   int     `json:"index,omitempty"`
	Kind    string  `json:"kind,omitempty"` // "bridge", "vlan", ...; empty for hardware
	MAC     string  `json:"mac,omitempty"`
	MTU     int     `json:"mtu,omitempty"`
	MaxMTU  int     `json:"max_mtu,omitempty"` // 0 when the kernel does not say
	Master  string  `json:"master,omitempty"`
	Up      bool    `json:"up,omitempty"`
	Carrier bool    `json:"carrier,omitempty"`
	Wifi    bool    `json:"wifi,omitempty"`
	Other   bool    `json:"other,omitempty"` // not Ethernet: loopback, tunnels, PPP
	Bridge  *Bridge `json:"bridge,omitempty"`
	// PortState is what a bridge does with the traffic of this port: "forwarding", or why not yet.
	PortState string `json:"port_state,omitempty"`
	// Sysctls are those of the link itself that can be set, as "ipv4/rp_filter".
	Sysctls map[string]string `json:"sysctls,omitempty"`
}

// Bridge is what only bridges have.
type Bridge struct {
	STP           bool   `json:"stp"`
	ForwardDelay  uint32 `json:"forward_delay"` // in 1/100 s, as the kernel counts
	VLANFiltering bool   `json:"vlan_filtering"`
}

// Addr is an address of a link.
type Addr struct {
	Link      string `json:"link"`
	Prefix    string `json:"prefix"` // 10.0.0.2/24
	Peer      string `json:"peer,omitempty"`
	Broadcast string `json:"broadcast,omitempty"`
	Label     string `json:"label,omitempty"` // only when it is not the link's name
	Scope     int    `json:"scope,omitempty"`
	// Flags are those that somebody chose: noprefixroute, home address, managed temporary addresses.
	Flags int `json:"flags,omitempty"`
	// Valid and Preferred are seconds; 0 is for ever.
	Valid     int `json:"valid,omitempty"`
	Preferred int `json:"preferred,omitempty"`
}

// Dynamic tells of an address that somebody (DHCP, a router) must renew.
func (a Addr) Dynamic() bool { return a.Valid != 0 }

// Addr4 tells the family.
func (a Addr) Addr4() bool { return !strings.Contains(a.Prefix, ":") }

// Own tells of an IPv6 link-local address, which each link has of itself.
func (a Addr) Own() bool {
	prefix, err := netip.ParsePrefix(a.Prefix)

	return err == nil && prefix.Addr().Is6() && prefix.Addr().IsLinkLocalUnicast()
}

func (a Addr) key() string { return a.Link + " " + a.Prefix + " " + a.Peer }

// Route is a route of any table but "local", which the kernel keeps by itself.
type Route struct {
	IPv6   bool   `json:"ipv6,omitempty"`
	Table  int    `json:"table"`
	Dst    string `json:"dst"` // "default" or a prefix
	Type   int    `json:"type,omitempty"`
	Dev    string `json:"dev,omitempty"`
	Via    string `json:"via,omitempty"`
	OnLink bool   `json:"onlink,omitempty"`
	Src    string `json:"src,omitempty"`
	Metric int    `json:"metric,omitempty"`
	Proto  int    `json:"proto,omitempty"`
	Scope  int    `json:"scope,omitempty"`
	TOS    int    `json:"tos,omitempty"`
	MTU    int    `json:"mtu,omitempty"`
	AdvMSS int    `json:"advmss,omitempty"`
	Realm  int    `json:"realm,omitempty"`
	Hops   []Hop  `json:"hops,omitempty"` // of a route with several ways
	// Metrics are what else connections over it go by; nil for none.
	Metrics *RouteMetrics `json:"metrics,omitempty"`
	// Odd names what this package cannot set again: encapsulations, MPLS.
	Odd string `json:"odd,omitempty"`
}

// RouteMetrics are a route's settings for connections (ip-route(8)), in the kernel's units.
type RouteMetrics struct {
	MTULock          bool   `json:"mtu_lock,omitempty"`
	Window           int    `json:"window,omitempty"`
	RTT              int    `json:"rtt,omitempty"`
	RTTVar           int    `json:"rttvar,omitempty"`
	SSThresh         int    `json:"ssthresh,omitempty"`
	Cwnd             int    `json:"cwnd,omitempty"`
	Reordering       int    `json:"reordering,omitempty"`
	HopLimit         int    `json:"hoplimit,omitempty"`
	InitCwnd         int    `json:"initcwnd,omitempty"`
	InitRwnd         int    `json:"initrwnd,omitempty"`
	Features         int    `json:"features,omitempty"`
	RTOMin           int    `json:"rto_min,omitempty"`
	RTOMinLock       bool   `json:"rto_min_lock,omitempty"`
	QuickACK         int    `json:"quickack,omitempty"`
	Congctl          string `json:"congctl,omitempty"`
	FastOpenNoCookie int    `json:"fastopen_no_cookie,omitempty"`
}

// Hop is one way of a multipath route.
type Hop struct {
	Dev    string `json:"dev"`
	Via    string `json:"via,omitempty"`
	Weight int    `json:"weight,omitempty"`
	OnLink bool   `json:"onlink,omitempty"`
}

// Rule is a routing rule. All of the kernel's selectors are kept, since all are to be restored.
type Rule struct {
	IPv6     bool   `json:"ipv6,omitempty"`
	Priority int    `json:"priority"`
	Table    int    `json:"table,omitempty"`
	Src      string `json:"src,omitempty"`
	Dst      string `json:"dst,omitempty"`
	Iif      string `json:"iif,omitempty"`
	Oif      string `json:"oif,omitempty"`
	Mark     uint32 `json:"mark,omitempty"`
	Mask     uint32 `json:"mask,omitempty"`
	TOS      uint   `json:"tos,omitempty"`
	Invert   bool   `json:"invert,omitempty"`
	IPProto  int    `json:"ipproto,omitempty"`
	SPort    []int  `json:"sport,omitempty"` // first and last
	DPort    []int  `json:"dport,omitempty"`
	UIDs     []int  `json:"uids,omitempty"`
	Suppress *int   `json:"suppress_prefixlength,omitempty"`
	Goto     *int   `json:"goto,omitempty"`
	Type     int    `json:"type,omitempty"`
	Proto    int    `json:"proto,omitempty"`
}

// The kernel's numbers that this package judges by (linux/rtnetlink.h).
const (
	ProtoRedirect = 1
	ProtoKernel   = 2
	ProtoRA       = 9
	ProtoDHCP     = 16
	TableMain     = 254
	TableLocal    = 255
	tableDefault  = 253
	typeUnicast   = 1
	scopeLink     = 253
)

// Default tells of a default route of the main table.
func (r Route) Default() bool {
	return r.Dst == "default" && r.Table == TableMain && r.Type == typeUnicast
}

// Devs are the links that a route uses.
func (r Route) Devs() []string {
	if len(r.Hops) == 0 {
		return []string{r.Dev}
	}

	devs := make([]string, 0, len(r.Hops))
	for _, hop := range r.Hops {
		devs = append(devs, hop.Dev)
	}

	return devs
}

// Link finds a link by name.
func (n Net) Link(name string) *Link {
	for i := range n.Links {
		if n.Links[i].Name == name {
			return &n.Links[i]
		}
	}

	return nil
}

// Ports are the names of a bridge's ports.
func (n Net) Ports(bridge string) []string {
	var ports []string

	for _, link := range n.Links {
		if link.Master == bridge {
			ports = append(ports, link.Name)
		}
	}

	return ports
}

// AddrsOf are the addresses of the links that somebody configured, without the link-local ones that links have anyway.
func (n Net) AddrsOf(links ...string) []Addr {
	var found []Addr

	for _, addr := range n.Addrs {
		if slices.Contains(links, addr.Link) && !addr.Own() {
			found = append(found, addr)
		}
	}

	return found
}

// RoutesOf are the routes over the links that somebody configured, without those the kernel makes for addresses.
func (n Net) RoutesOf(links ...string) []Route {
	var found []Route

	for _, route := range n.Routes {
		if n.automatic(route) {
			continue
		}

		if slices.ContainsFunc(route.Devs(), func(dev string) bool { return slices.Contains(links, dev) }) {
			found = append(found, route)
		}
	}

	return found
}

// noPrefixRoute says of an address that the kernel makes no route for its subnet (linux/if_addr.h). Whoever set it makes
// that route, as NetworkManager does, and under the kernel's name.
const noPrefixRoute = 0x200

// automatic tells of a route that the kernel makes by itself.
func (n Net) automatic(route Route) bool {
	if route.Proto != ProtoKernel {
		return route.Proto == ProtoRedirect || route.Table == TableLocal
	}

	for _, addr := range n.Addrs {
		prefix, err := netip.ParsePrefix(addr.Prefix)
		if err == nil && addr.Link == route.Dev && addr.Flags&noPrefixRoute != 0 && prefix.Masked().String() == route.Dst && !addr.Own() {
			return false
		}
	}

	return true
}

// RulesFor are the rules that the links' traffic goes by: those that name them, or the source or a table of theirs.
func (n Net) RulesFor(links ...string) []Rule {
	tables := n.tablesOf(links)
	named := n.RulesOf(links...)

	var found []Rule

	for _, rule := range n.Rules {
		other := rule.Iif != "" || rule.Oif != "" // of links that are not these, or among those named

		if slices.ContainsFunc(named, rule.same) || !other && (tables[rule.Table] || n.isSource(rule.Src, links)) {
			found = append(found, rule)
		}
	}

	return found
}

// tablesOf are the tables that lead over the links alone. Those that every host has are everybody's.
func (n Net) tablesOf(links []string) map[int]bool {
	tables := map[int]bool{}

	for _, route := range n.Routes {
		ours := !slices.ContainsFunc(route.Devs(), func(dev string) bool { return !slices.Contains(links, dev) })

		if known, seen := tables[route.Table]; !seen || known {
			tables[route.Table] = ours
		}
	}

	for table := range tables {
		if table == 0 || table >= tableDefault && table <= TableLocal {
			delete(tables, table)
		}
	}

	return tables
}

// isSource tells of a prefix with an address of the links in it; one that is everything is nobody's.
func (n Net) isSource(src string, links []string) bool {
	prefix, err := netip.ParsePrefix(src)
	if err != nil || prefix.Bits() == 0 {
		return false
	}

	return slices.ContainsFunc(n.AddrsOf(links...), func(addr Addr) bool {
		own, err := netip.ParsePrefix(addr.Prefix)

		return err == nil && prefix.Contains(own.Addr())
	})
}

// RulesOf are the rules that name the links.
func (n Net) RulesOf(links ...string) []Rule {
	var found []Rule

	for _, rule := range n.Rules {
		if slices.Contains(links, rule.Iif) || slices.Contains(links, rule.Oif) {
			found = append(found, rule)
		}
	}

	return found
}
