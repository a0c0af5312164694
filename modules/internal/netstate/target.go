// SPDX-License-Identifier: Apache-2.0

package netstate

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Target is what the kernel is to be like, as far as the links of one bridge go: the bridge, its ports, all that is
// configured on them, and nothing else of the host.
type Target struct {
	Bridge string `json:"bridge"`
	// Links are the bridge, if it is to exist, and the ports. A port's Master is the bridge or what it was.
	Links  []Link  `json:"links"`
	Addrs  []Addr  `json:"addrs,omitempty"`
	Routes []Route `json:"routes,omitempty"`
	Rules  []Rule  `json:"rules,omitempty"`
	// Lenient lets stay what a DHCP client or a router puts on a link beyond this target, as they will at any time.
	Lenient bool `json:"lenient,omitempty"`
}

// Capture makes a target of what is: executed later, it restores it.
func Capture(n Net, bridge string, ports []string) Target {
	scope := append([]string{bridge}, ports...)
	target := Target{Bridge: bridge, Addrs: n.AddrsOf(scope...), Routes: n.RoutesOf(scope...), Rules: n.RulesFor(scope...)}

	for _, name := range scope {
		if link := n.Link(name); link != nil {
			target.Links = append(target.Links, *link)
		}
	}

	return target
}

// scope are the links that a target speaks of: also the bridge that is not to exist.
func (t Target) scope() []string {
	names := []string{t.Bridge}

	for _, link := range t.Links {
		if link.Name != t.Bridge {
			names = append(names, link.Name)
		}
	}

	return names
}

// Link finds a link of the target.
func (t Target) Link(name string) *Link { return Net{Links: t.Links}.Link(name) }

// Verb says what an Op does.
type Verb string

// The verbs, in the order in which operations are done: what a host loses comes as late as it can.
const (
	AddLink     Verb = "add link"
	SetSysctl   Verb = "set sysctl"
	SetLink     Verb = "set link"
	AddAddr     Verb = "add address"
	SetMaster   Verb = "set master"
	DeleteAddr  Verb = "delete address"
	DeleteRoute Verb = "delete route"
	DeleteLink  Verb = "delete link"
	AddRoute    Verb = "add route"
	DeleteRule  Verb = "delete rule"
	AddRule     Verb = "add rule"
)

// Op is one call to the kernel.
type Op struct {
	Verb  Verb   `json:"verb"`
	Link  string `json:"link,omitempty"`
	Key   string `json:"key,omitempty"` // of a sysctl
	Value string `json:"value,omitempty"`
	Want  *Link  `json:"want,omitempty"`
	Addr  *Addr  `json:"addr,omitempty"`
	Route *Route `json:"route,omitempty"`
	Rule  *Rule  `json:"rule,omitempty"`
}

// String is a line for people.
func (o Op) String() string {
	switch o.Verb {
	case SetSysctl:
		return fmt.Sprintf("set %s of link %q to %s", o.Key, o.Link, o.Value)
	case AddLink:
		return fmt.Sprintf("add bridge %q", o.Link)
	case SetLink:
		return fmt.Sprintf("set link %q: %s", o.Link, o.Value)
	case DeleteLink:
		return fmt.Sprintf("delete bridge %q", o.Link)
	case SetMaster:
		if o.Value == "" {
			return fmt.Sprintf("take link %q out of its bridge", o.Link)
		}

		return fmt.Sprintf("make link %q a port of %q", o.Link, o.Value)
	case AddAddr, DeleteAddr:
		return fmt.Sprintf("%s %s on %q", o.Verb, o.Addr.Prefix, o.Addr.Link)
	case AddRoute, DeleteRoute:
		return fmt.Sprintf("%s %s", o.Verb, o.Route)
	case AddRule, DeleteRule:
		return fmt.Sprintf("%s %s", o.Verb, o.Rule)
	}

	return string(o.Verb)
}

// String is a route for people, in ip's words.
func (r Route) String() string {
	words := []string{r.Dst}

	if r.Via != "" {
		words = append(words, "via", r.Via)
	}

	words = append(words, "dev", strings.Join(r.Devs(), "+"))

	if r.Table != TableMain {
		words = append(words, "table", fmt.Sprint(r.Table))
	}

	if r.Metric != 0 {
		words = append(words, "metric", fmt.Sprint(r.Metric))
	}

	return strings.Join(words, " ")
}

// String is a rule for people.
func (r Rule) String() string {
	words := []string{fmt.Sprintf("%d:", r.Priority)}

	for _, part := range []struct{ name, value string }{{"from", r.Src}, {"to", r.Dst}, {"iif", r.Iif}, {"oif", r.Oif}} {
		if part.value != "" {
			words = append(words, part.name, part.value)
		}
	}

	return strings.Join(append(words, "table", fmt.Sprint(r.Table)), " ")
}

// Ops is the way from what is to the target. It is empty when the target is reached. Deleting addresses takes routes
// with them in ways that are the kernel's own, so after these operations it is to be read and asked again.
func Ops(current Net, target Target) []Op {
	planner := planner{current: current, target: target, scope: target.scope()}
	planner.links()
	planner.addrs()
	planner.routes()
	planner.rules()

	order := []Verb{AddLink, SetSysctl, SetLink, AddAddr, SetMaster, DeleteAddr, DeleteRoute, DeleteLink, AddRoute, DeleteRule, AddRule}
	slices.SortStableFunc(planner.ops, func(a, b Op) int {
		return cmp.Compare(slices.Index(order, a.Verb), slices.Index(order, b.Verb))
	})

	return planner.ops
}

type planner struct {
	current Net
	target  Target
	scope   []string
	ops     []Op
}

func (p *planner) add(op Op) { p.ops = append(p.ops, op) }

func (p *planner) links() {
	for i := range p.target.Links {
		want := &p.target.Links[i]
		have := p.current.Link(want.Name)

		if have == nil {
			if want.Kind != "bridge" {
				continue // hardware that is gone is not ours to bring back; its addresses are missing then, and are seen
			}

			p.add(Op{Verb: AddLink, Link: want.Name, Want: want})
		} else {
			p.link(want, have)
		}

		p.sysctls(want, have)
	}

	if p.target.Link(p.target.Bridge) == nil && p.current.Link(p.target.Bridge) != nil {
		p.add(Op{Verb: DeleteLink, Link: p.target.Bridge})
	}
}

func (p *planner) link(want, have *Link) {
	var diff []string

	if want.MAC != "" && want.MAC != have.MAC {
		diff = append(diff, "mac "+want.MAC)
	}

	if want.MTU != 0 && want.MTU != have.MTU {
		diff = append(diff, fmt.Sprintf("mtu %d", want.MTU))
	}

	if want.Up != have.Up {
		diff = append(diff, map[bool]string{true: "up", false: "down"}[want.Up])
	}

	if want.Bridge != nil && !want.Bridge.same(have.Bridge) {
		diff = append(diff, fmt.Sprintf("stp %t, forward delay %d, vlan filtering %t",
			want.Bridge.STP, want.Bridge.ForwardDelay, want.Bridge.VLANFiltering))
	}

	if diff != nil {
		p.add(Op{Verb: SetLink, Link: want.Name, Want: want, Value: strings.Join(diff, ", ")})
	}

	if want.Master != have.Master {
		p.add(Op{Verb: SetMaster, Link: want.Name, Value: want.Master})
	}
}

// same compares what matters: without spanning tree a port forwards at once, whatever the delay (net/bridge/br_stp_if.c,
// br_make_forwarding), and NetworkManager leaves it at the kernel's default then.
func (b *Bridge) same(other *Bridge) bool {
	return other != nil && b.STP == other.STP && b.VLANFiltering == other.VLANFiltering && (!b.STP || b.ForwardDelay == other.ForwardDelay)
}

func (p *planner) sysctls(want, have *Link) {
	keys := make([]string, 0, len(want.Sysctls))
	for key := range want.Sysctls {
		keys = append(keys, key)
	}

	slices.Sort(keys)

	for _, key := range keys {
		if have == nil || have.Sysctls[key] != want.Sysctls[key] {
			p.add(Op{Verb: SetSysctl, Link: want.Name, Key: key, Value: want.Sysctls[key]})
		}
	}
}

func (p *planner) addrs() {
	have := map[string]Addr{}
	for _, addr := range p.current.AddrsOf(p.scope...) {
		have[addr.key()] = addr
	}

	wanted := map[string]bool{}

	for i := range p.target.Addrs {
		want := &p.target.Addrs[i]
		wanted[want.key()] = true

		_, ok := have[want.key()]
		if !ok && p.reachable(want.Link) {
			p.add(Op{Verb: AddAddr, Link: want.Link, Addr: want})
		}
	}

	for _, addr := range p.current.AddrsOf(p.scope...) {
		if !wanted[addr.key()] && !p.tolerated(addr.Link, addr.Dynamic()) && !p.dies(addr.Link) {
			p.add(Op{Verb: DeleteAddr, Link: addr.Link, Addr: &addr})
		}
	}
}

// reachable tells whether a link is there or will be.
func (p *planner) reachable(name string) bool {
	want := p.target.Link(name)

	return p.current.Link(name) != nil || want != nil && want.Kind == "bridge"
}

// dies tells whether a link goes, and all that is on it with it.
func (p *planner) dies(name string) bool {
	return name == p.target.Bridge && p.target.Link(name) == nil
}

// tolerated tells of what a DHCP client or a router put on a link that has it from them.
func (p *planner) tolerated(link string, dynamic bool) bool {
	if !p.target.Lenient || !dynamic {
		return false
	}

	want := p.target.Link(link)

	return want != nil && (want.Master == "" || link == p.target.Bridge)
}

func (p *planner) routes() {
	have := p.current.RoutesOf(p.scope...)
	wanted := slices.Clone(p.target.Routes)

	// A gateway can only be set once it is reachable over another route.
	slices.SortStableFunc(wanted, func(a, b Route) int { return cmp.Compare(b2i(a.Via != ""), b2i(b.Via != "")) })

	for i := range wanted {
		if !slices.ContainsFunc(have, wanted[i].same) && p.reachableAll(wanted[i].Devs()) {
			p.add(Op{Verb: AddRoute, Route: &wanted[i]})
		}
	}

	for _, route := range have {
		dynamic := route.Proto == ProtoRA || route.Proto == ProtoDHCP

		if !slices.ContainsFunc(wanted, route.same) && !p.tolerated(route.Devs()[0], dynamic) && !p.dies(route.Dev) {
			p.add(Op{Verb: DeleteRoute, Route: &route})
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}

	return 0
}

func (p *planner) reachableAll(names []string) bool {
	return !slices.ContainsFunc(names, func(name string) bool { return !p.reachable(name) && !slices.Contains(p.names(), name) })
}

func (p *planner) names() []string {
	names := make([]string, 0, len(p.current.Links))
	for _, link := range p.current.Links {
		names = append(names, link.Name)
	}

	return names
}

// same compares what makes a route lead where it leads. Who made it (proto) is not part of that: a network manager that
// takes a route over writes its own name into it.
func (r Route) same(other Route) bool {
	r.Proto, other.Proto = 0, 0

	return reflect.DeepEqual(r, other)
}

// same compares what a rule selects and does.
func (r Rule) same(other Rule) bool {
	r.Proto, other.Proto = 0, 0

	return reflect.DeepEqual(r, other)
}

func (p *planner) rules() {
	// One that only speaks of a source or table may be somebody's who came later; it does no harm.
	for _, rule := range p.current.RulesOf(p.scope...) {
		if !slices.ContainsFunc(p.target.Rules, rule.same) {
			p.add(Op{Verb: DeleteRule, Rule: &rule})
		}
	}

	for i := range p.target.Rules {
		if !slices.ContainsFunc(p.current.Rules, p.target.Rules[i].same) {
			p.add(Op{Verb: AddRule, Rule: &p.target.Rules[i]})
		}
	}
}

// Move makes the target in which the bridge has what the ports have. The ports keep their own MTU.
func Move(before Target, bridge Link, ports []string) Target {
	after := Target{Bridge: bridge.Name, Links: []Link{bridge}}
	own := before.Link(bridge.Name)

	if own != nil {
		after.Links[0].Index = own.Index
	}

	for _, link := range before.Links {
		if link.Name == bridge.Name {
			continue
		}

		if slices.Contains(ports, link.Name) {
			link.Master, link.Up, link.PortState = bridge.Name, true, ""
			// A port has no addresses of its own, also no link-local one: the bridge would hear of it and answer twice.
			link.Sysctls = map[string]string{"ipv6/disable_ipv6": "1"}
		}

		after.Links = append(after.Links, link)
	}

	moved := func(name string) string {
		if slices.Contains(ports, name) {
			return bridge.Name
		}

		return name
	}

	for _, addr := range before.Addrs {
		addr.Link = moved(addr.Link)
		if !slices.ContainsFunc(after.Addrs, func(a Addr) bool { return a.key() == addr.key() }) {
			after.Addrs = append(after.Addrs, addr)
		}
	}

	for _, route := range before.Routes {
		route.Dev = moved(route.Dev)
		route.Hops = slices.Clone(route.Hops)

		for i := range route.Hops {
			route.Hops[i].Dev = moved(route.Hops[i].Dev)
		}

		if !slices.ContainsFunc(after.Routes, route.same) {
			after.Routes = append(after.Routes, route)
		}
	}

	for _, rule := range before.Rules {
		rule.Iif, rule.Oif = moved(rule.Iif), moved(rule.Oif)
		after.Rules = append(after.Rules, rule)
	}

	return after
}

// Simulate gives the state that a target leads to, as far as it can be known: what check mode shows.
func Simulate(current Net, target Target) Net {
	scope := target.scope()
	in := func(name string) bool { return slices.Contains(scope, name) }
	next := Net{
		Links:  slices.DeleteFunc(slices.Clone(current.Links), func(l Link) bool { return in(l.Name) }),
		Addrs:  slices.DeleteFunc(slices.Clone(current.Addrs), func(a Addr) bool { return in(a.Link) }),
		Routes: slices.DeleteFunc(slices.Clone(current.Routes), func(r Route) bool { return slices.ContainsFunc(r.Devs(), in) }),
		Rules: slices.DeleteFunc(slices.Clone(current.Rules), func(r Rule) bool {
			return in(r.Iif) || in(r.Oif) || slices.ContainsFunc(target.Rules, r.same)
		}),
	}

	for _, link := range target.Links {
		have := current.Link(link.Name)
		if have != nil {
			sysctls := maps.Clone(have.Sysctls)
			if sysctls == nil {
				sysctls = map[string]string{}
			}

			maps.Copy(sysctls, link.Sysctls)
			link.Sysctls = sysctls
		}

		if link.Master != "" {
			link.PortState = "forwarding"
		}

		next.Links = append(next.Links, link)
	}

	slices.SortFunc(next.Links, func(a, b Link) int { return strings.Compare(a.Name, b.Name) })

	next.Addrs = append(next.Addrs, target.Addrs...)
	next.Routes = append(next.Routes, target.Routes...)
	next.Rules = append(next.Rules, target.Rules...)

	return next
}

// InheritedSysctls are what a bridge takes over of a port's own settings.
func InheritedSysctls(port Link) map[string]string {
	taken := map[string]string{}

	for _, key := range keptSysctls {
		if value, ok := port.Sysctls[key]; ok {
			taken[key] = value
		}
	}

	return taken
}
