// SPDX-License-Identifier: Apache-2.0

package zerotiermember

import (
	"fmt"
	"maps"
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
	setMember struct {
		Change ztapi.MemberChange `json:"change"`
		New    bool               `json:"new"`
	}
	join struct {
		Settings ztapi.Settings `json:"settings"`
	}
	changeSettings struct {
		Settings ztapi.Settings `json:"settings"`
	}
	leave        struct{}
	deleteMember struct{}
)

func makePlan(args Args, current State) (plan.Plan[State], error) {
	planned := plan.Plan[State]{After: current}

	if args.State == "absent" {
		planAbsent(args, current, &planned)

		return planned, nil
	}

	// Authorised first, the node gets its configuration with its first question; the other way round takes twice as long.
	if args.managed() {
		err := planMember(args, current, &planned)
		if err != nil {
			return planned, err
		}
	}

	if args.local() {
		planJoin(args, current, &planned)
	}

	return planned, nil
}

func memberName(args Args, current State) string {
	if current.Node == "" {
		return fmt.Sprintf("member of network %s (the host's node, which is not there yet)", args.NetworkID)
	}

	return fmt.Sprintf("member %s of network %s", current.Node, args.NetworkID)
}

func planMember(args Args, current State, planned *plan.Plan[State]) error {
	wanted := ztapi.Member{Node: current.Node, Addresses: []string{}, Tags: map[string]int64{}, Capabilities: []int64{}}
	if current.Member != nil {
		wanted = *current.Member
	}

	var (
		change ztapi.MemberChange
		words  []string
	)

	authorized := args.Authorized == nil || *args.Authorized
	say := func(format string, values ...any) { words = append(words, fmt.Sprintf(format, values...)) }

	if current.Member == nil || wanted.Authorized != authorized {
		change.Authorized, wanted.Authorized = &authorized, authorized

		say("%s", map[bool]string{true: "authorise", false: "not authorised"}[authorized])
	}

	take(&wanted.Name, args.Name, &change.Name, "name", say)
	take(&wanted.Description, args.Description, &change.Description, "description", say)
	take(&wanted.Hidden, args.Hidden, &change.Hidden, "hidden", say)
	take(&wanted.NoAutoAssignIPs, args.NoAutoAssignIPs, &change.NoAutoAssignIPs, "no_auto_assign_ips", say)
	take(&wanted.ActiveBridge, args.ActiveBridge, &change.ActiveBridge, "active_bridge", say)
	take(&wanted.Tags, args.Tags, &change.Tags, "tags", say)
	take(&wanted.Capabilities, args.Capabilities, &change.Capabilities, "capabilities", say)
	take(&wanted.Addresses, wantedAddresses(args, wanted.Addresses), &change.Addresses, "ip_assignments", say)

	err := checkAddresses(args, current, planned)
	warnOfGiven(args, current, wanted, planned)

	if err != nil || len(words) == 0 {
		return err
	}

	verb := plan.Change
	if current.Member == nil {
		verb = plan.Create
	}

	step := planned.Add(verb, memberName(args, current), setMember{change, current.Member == nil}, "(%s)", strings.Join(words, ", "))
	step.Before, step.After = current.Member, wanted
	planned.After.Member = &wanted

	return nil
}

// take notes a field that is to change. A nil option leaves it.
func take[T any](have *T, want *T, change **T, name string, say func(string, ...any)) {
	if want == nil || reflect.DeepEqual(*have, *want) || isEmpty(*have) && isEmpty(*want) {
		return
	}

	*have, *change = *want, want

	say("%s %s", name, show(*want))
}

func isEmpty(value any) bool {
	v := reflect.ValueOf(value)

	return (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0
}

func show(value any) string {
	switch v := value.(type) {
	case string:
		return fmt.Sprintf("%q", v)
	case []string:
		if len(v) == 0 {
			return "none"
		}

		return strings.Join(v, " ")
	}

	return fmt.Sprint(value)
}

// wantedAddresses is nil when they are left alone.
func wantedAddresses(args Args, have []string) *[]string {
	if args.Addresses == nil {
		return nil
	}

	wanted := *args.Addresses
	if args.AddressesState == "merge" {
		wanted = ztapi.SameAddresses(slices.Concat(have, wanted))
	}

	return &wanted
}

// checkAddresses says what a controller takes without a word and a node does not get.
func checkAddresses(args Args, current State, planned *plan.Plan[State]) error {
	wanted := wantedAddresses(args, memberAddresses(current))
	if wanted == nil {
		return nil
	}

	object := memberName(args, current)

	for _, address := range *wanted {
		other := current.Others[address]

		switch {
		case other != "" && args.Duplicates == "refuse" && !slices.Contains(memberAddresses(current), address):
			return ansible.Fail(CodeAddressTaken, "give another address, take it from that member first, or set duplicates: warn",
				"%s: member %s already has address %s", object, other, address)
		case other != "":
			planned.Add(plan.Report, object, nil, "member %s has address %s too", other, address)
		}

		if current.Managed != nil && !onLink(current.Managed, address) {
			planned.Add(plan.Report, object, nil, "no route of the network holds address %s: the node will not get it", address)
		}
	}

	if len(*wanted) > ztapi.MaxAddresses {
		planned.Add(plan.Report, object, nil, "only the first %d of %d addresses reach a node", ztapi.MaxAddresses, len(*wanted))
	}

	return nil
}

// warnOfGiven tells of addresses that come back by themselves: exact ones never stay then.
func warnOfGiven(args Args, current State, wanted ztapi.Member, planned *plan.Plan[State]) {
	if args.Addresses == nil || args.AddressesState != "exact" || wanted.NoAutoAssignIPs || !wanted.Authorized {
		return
	}

	for _, family := range current.Given {
		has := slices.ContainsFunc(wanted.Addresses, func(text string) bool {
			addr, err := netip.ParseAddr(text)

			return err == nil && addr.Is4() == (family == "IPv4")
		})
		if !has {
			planned.Add(plan.Report, memberName(args, current), nil,
				"the network gives %s addresses by itself, and ip_assignments has none: the member gets one; set no_auto_assign_ips to have it without", family)
		}
	}
}

func memberAddresses(state State) []string {
	if state.Member == nil {
		return nil
	}

	return state.Member.Addresses
}

// onLink tells whether a managed route without next hop holds the address.
func onLink(routes []ztapi.Route, text string) bool {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return false
	}

	return slices.ContainsFunc(routes, func(route ztapi.Route) bool {
		prefix, err := netip.ParsePrefix(route.Target)

		return err == nil && route.Via == "" && prefix.Masked().Contains(addr)
	})
}

func planJoin(args Args, current State, planned *plan.Plan[State]) {
	object := "network " + args.NetworkID
	have := ztapi.Allow{Managed: true}

	if current.Joined != nil {
		have = current.Joined.Allow
	}

	var (
		settings ztapi.Settings
		words    []string
	)

	say := func(format string, values ...any) { words = append(words, fmt.Sprintf(format, values...)) }

	after := have
	take(&after.Managed, args.AllowManaged, &settings.Managed, "allow_managed", say)
	take(&after.Global, args.AllowGlobal, &settings.Global, "allow_global", say)
	take(&after.Default, args.AllowDefault, &settings.Default, "allow_default", say)
	take(&after.DNS, args.AllowDNS, &settings.DNS, "allow_dns", say)

	switch {
	case current.Joined == nil:
		joined := ztapi.Joined{ID: args.NetworkID, Status: "OK", Assigned: []string{}, Routes: []ztapi.Route{}, DNS: ztapi.DNS{Servers: []string{}}, Allow: after}
		planned.After.Joined = &joined
		planned.Add(plan.Create, "membership of this host in "+object, join{settings}, "%s", strings.Join(append([]string{"(join it)"}, words...), ", "))
	case len(words) > 0:
		joined := *current.Joined
		joined.Allow = after
		planned.After.Joined = &joined
		step := planned.Add(plan.Change, "membership of this host in "+object, changeSettings{settings}, "(%s)", strings.Join(words, ", "))
		step.Before, step.After = have, after
	}
}

// planAbsent leaves first: a record that is deleted before comes back when the node asks again, within a minute.
func planAbsent(args Args, current State, planned *plan.Plan[State]) {
	if args.local() && current.Joined != nil {
		planned.Add(plan.Delete, "membership of this host in network "+args.NetworkID, leave{}, "(leave it)")
		planned.After.Joined, planned.After.Kernel = nil, []string{}
	}

	if current.Member == nil {
		return
	}

	switch {
	case args.MemberOnAbsent == "delete":
		planned.Add(plan.Delete, memberName(args, current), deleteMember{}, "").Before = *current.Member
		planned.After.Member = nil
	case args.MemberOnAbsent == "deauthorize" && current.Member.Authorized:
		off, after := false, *current.Member
		after.Authorized = false
		after.Tags = maps.Clone(after.Tags)
		planned.Add(plan.Change, memberName(args, current), setMember{ztapi.MemberChange{Authorized: &off}, false}, "(not authorised)")
		planned.After.Member = &after
	}
}
