// SPDX-License-Identifier: Apache-2.0

package zerotiernetwork

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/plan"
	"github.com/thinkube/infra/modules/internal/ztapi"
)

// The effects.
type (
	setNetwork struct {
		Change ztapi.NetworkChange `json:"change"`
		New    bool                `json:"new"`
	}
	deleteNetwork struct{}
)

func makePlan(args Args, current State) (plan.Plan[State], error) {
	planned := plan.Plan[State]{After: current}

	if args.State == "absent" {
		return planned, planAbsent(args, current, &planned)
	}

	wanted := ztapi.Network{
		ID: current.ID, Private: true, Broadcast: true, MTU: 2800, MulticastLimit: 32, Pools: []ztapi.Pool{}, Routes: []ztapi.Route{},
		DNS: ztapi.DNS{Servers: []string{}},
	}
	if current.Network != nil {
		wanted = *current.Network
	}

	var (
		change ztapi.NetworkChange
		words  []string
	)

	say := func(name string, value any) { words = append(words, fmt.Sprintf("%s %s", name, show(value))) }

	take(&wanted.Name, args.Name, &change.Name, "name", say)
	take(&wanted.Description, args.Description, &change.Description, "description", say)
	take(&wanted.Private, args.Private, &change.Private, "private", say)
	take(&wanted.Broadcast, args.Broadcast, &change.Broadcast, "broadcast", say)
	take(&wanted.MTU, args.MTU, &change.MTU, "mtu", say)
	take(&wanted.MulticastLimit, args.MulticastLimit, &change.MulticastLimit, "multicast_limit", say)
	take(&wanted.Pools, wantedPools(args, wanted.Pools), &change.Pools, "pools", say)
	take(&wanted.Routes, wantedRoutes(args, wanted.Routes), &change.Routes, "routes", say)
	take(&wanted.V4Assign, args.V4Assign, &change.V4Assign, "v4_assign", say)
	take(&wanted.V6Assign, wantedV6(args, wanted.V6Assign), &change.V6Assign, "v6_assign", say)
	take(&wanted.DNS, wantedDNS(args), &change.DNS, "dns", say)
	take(&wanted.FlowRules, args.FlowRules, &change.FlowRules, "flow_rules", say)

	if args.Rules != nil && !sameRules(*args.Rules, wanted.Rules) {
		change.Rules, wanted.Rules = args.Rules, *args.Rules

		say("rules", fmt.Sprintf("%d of them", len(*args.Rules)))
	}

	add(args, current, wanted, change, words, &planned)

	return planned, nil
}

func add(args Args, current State, wanted ztapi.Network, change ztapi.NetworkChange, words []string, planned *plan.Plan[State]) {
	object := name(current, wanted.Name)

	if current.Network == nil {
		// Never left to the controller: a network is open to nobody unless that was said.
		change.Private = &wanted.Private
		step := planned.Add(plan.Create, object, setNetwork{change, true}, "(%s)", strings.Join(append([]string{openness(wanted.Private)}, words...), ", "))
		step.After = wanted
		planned.After.Network = &wanted
	} else if len(words) > 0 {
		step := planned.Add(plan.Change, object, setNetwork{change, false}, "(%s)", strings.Join(words, ", "))
		step.Before, step.After = *current.Network, wanted
		planned.After.Network = &wanted
	}

	if current.Network != nil && change.Private != nil && *change.Private {
		planned.Add(plan.Report, object, nil, "who joined while it was public stays authorised")
	}

	for _, pool := range wanted.Pools {
		if args.Pools != nil && !covered(wanted.Routes, pool) {
			planned.Add(plan.Report, object, nil, "no route without via holds pool %s-%s: its addresses do not reach members", pool.Start, pool.End)
		}
	}
}

func openness(private bool) string {
	if private {
		return "private"
	}

	return "open to everyone"
}

func name(current State, wanted string) string {
	if current.ID == "" {
		return fmt.Sprintf("network %q", wanted)
	}

	return "network " + current.ID
}

// take notes a field that is to change. A nil option leaves it.
func take[T any](have *T, want *T, change **T, name string, say func(string, any)) {
	if want == nil || reflect.DeepEqual(*have, *want) {
		return
	}

	*have, *change = *want, want

	say(name, *want)
}

func show(value any) string {
	switch v := value.(type) {
	case string:
		return fmt.Sprintf("%q", v)
	case []ztapi.Route:
		return list(v, func(route ztapi.Route) string {
			if route.Via == "" {
				return route.Target
			}

			return route.Target + " via " + route.Via
		})
	case []ztapi.Pool:
		return list(v, func(pool ztapi.Pool) string { return pool.Start + "-" + pool.End })
	case ztapi.DNS:
		return fmt.Sprintf("%q %s", v.Domain, list(v.Servers, func(server string) string { return server }))
	case ztapi.V6Assign:
		return fmt.Sprintf("zt=%t rfc4193=%t sixplane=%t", v.Pools, v.RFC4193, v.SixPlane)
	}

	return fmt.Sprint(value)
}

func list[T any](items []T, show func(T) string) string {
	if len(items) == 0 {
		return "none"
	}

	texts := []string{}
	for _, item := range items {
		texts = append(texts, show(item))
	}

	return strings.Join(texts, ", ")
}

// wantedRoutes are those given, beside what is there unless exact. A target that is there with another via is changed.
func wantedRoutes(args Args, have []ztapi.Route) *[]ztapi.Route {
	if args.Routes == nil {
		return nil
	}

	wanted := []ztapi.Route{}
	if !args.Exact {
		wanted = slices.Clone(have)
	}

	for _, given := range *args.Routes {
		route := ztapi.Route{Target: given.Target}
		if given.Via != nil {
			route.Via = *given.Via
		}

		at := slices.IndexFunc(wanted, func(one ztapi.Route) bool { return one.Target == route.Target })
		if at < 0 {
			wanted = append(wanted, route)
		} else {
			wanted[at] = route
		}
	}

	if sameSet(wanted, have) {
		return &have // in another order: the same
	}

	return &wanted
}

func wantedPools(args Args, have []ztapi.Pool) *[]ztapi.Pool {
	if args.Pools == nil {
		return nil
	}

	wanted := []ztapi.Pool{}
	if !args.Exact {
		wanted = slices.Clone(have)
	}

	for _, given := range *args.Pools {
		if pool := ztapi.Pool(given); !slices.Contains(wanted, pool) {
			wanted = append(wanted, pool)
		}
	}

	if sameSet(wanted, have) {
		return &have
	}

	return &wanted
}

func sameSet[T comparable](a, b []T) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(one T) bool { return !slices.Contains(b, one) })
}

// wantedV6 merges: a controller forgets the modes that are not sent.
func wantedV6(args Args, have ztapi.V6Assign) *ztapi.V6Assign {
	if args.V6Assign == nil {
		return nil
	}

	for mode, given := range map[*bool]*bool{&have.Pools: args.V6Assign.Pools, &have.RFC4193: args.V6Assign.RFC4193, &have.SixPlane: args.V6Assign.SixPlane} {
		if given != nil {
			*mode = *given
		}
	}

	return &have
}

// wantedDNS clears with an empty domain and no servers: null would be ignored.
func wantedDNS(args Args) *ztapi.DNS {
	if args.DNS == nil {
		return nil
	}

	return &ztapi.DNS{Domain: args.DNS.Domain, Servers: append([]string{}, args.DNS.Servers...)}
}

// sameRules compares what was given; a controller adds "not" and "or".
func sameRules(want, have []map[string]any) bool {
	return reflect.DeepEqual(canonical(want), canonical(have))
}

func canonical(rules []map[string]any) []map[string]any {
	text, err := json.Marshal(rules)
	made := []map[string]any{}

	if err != nil || json.Unmarshal(text, &made) != nil {
		return nil
	}

	for _, rule := range made {
		for _, key := range []string{"not", "or"} {
			if rule[key] == false {
				delete(rule, key)
			}
		}
	}

	return made
}

func covered(routes []ztapi.Route, pool ztapi.Pool) bool {
	start, err1 := netip.ParseAddr(pool.Start)
	end, err2 := netip.ParseAddr(pool.End)

	return err1 == nil && err2 == nil && slices.ContainsFunc(routes, func(route ztapi.Route) bool {
		prefix, err := netip.ParsePrefix(route.Target)

		return err == nil && route.Via == "" && prefix.Masked().Contains(start) && prefix.Masked().Contains(end)
	})
}

func planAbsent(args Args, current State, planned *plan.Plan[State]) error {
	if current.Network == nil {
		return nil
	}

	if len(current.Members) > 0 && !args.Force {
		return ansible.Fail(CodeInUse, "take the members out first, or set force", "network %s has %d members: %s", current.ID, len(current.Members), strings.Join(current.Members, ", "))
	}

	planned.Add(plan.Delete, "network "+current.ID, deleteNetwork{}, "%q", current.Network.Name).Before = *current.Network
	planned.After.Network, planned.After.Members = nil, nil

	return nil
}
