// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/plan"
	"github.com/thinkube/infra/modules/internal/records"
)

// Change is an RRset before and after. One of them may be nil.
type Change struct {
	Old *records.Set `json:"old,omitempty"`
	New *records.Set `json:"new,omitempty"`

	// Alone: the name has no other records now, so that it must not exist when the change is made.
	Alone bool `json:"alone,omitempty"`
}

// set is the new one, or the one that goes.
func (c Change) set() *records.Set {
	if c.New != nil {
		return c.New
	}

	return c.Old
}

func (c Change) id() records.ID { return c.set().ID() }

// Update is what one message does: all of it or nothing.
type Update struct {
	Zone    string   `json:"zone"`
	Changes []Change `json:"changes,omitempty"`
	// SOA is the new one, with its serial; OldSOA is what it must be until then, if that can be asked for.
	SOA    *records.SOA `json:"soa,omitempty"`
	OldSOA *records.SOA `json:"old_soa,omitempty"`
}

// Part is a change that the Update of an earlier step has made.
type Part struct{}

// sets finds sets by their names and types. It belongs to one goroutine.
type sets struct {
	list []records.Set
	at   map[records.ID]int // nil until it is needed
}

func makeIndex(list []records.Set) *sets { return &sets{list: list} }

// find gives the set, nil when there is none.
func (s *sets) find(id records.ID) *records.Set {
	if s.at == nil {
		s.at = make(map[records.ID]int, len(s.list))
		for i, set := range s.list {
			s.at[set.ID()] = i
		}
	}

	if i, ok := s.at[id]; ok {
		return &s.list[i]
	}

	return nil
}

func makePlan(args Args, current State) (plan.Plan[State], error) {
	out := plan.Plan[State]{After: current}

	p := &planner{args: args, current: current, index: makeIndex(current.Sets), out: &out}

	switch {
	case args.removes() && current.Known != nil:
		return out, p.remove()
	case p.lost():
		p.restore()
	case current.SOA == nil:
		return out, p.missing()
	default:
		p.finish()
	}

	current = p.current

	changes, err := p.changes()
	if err != nil {
		return out, err
	}

	soa := args.SOA.over(*current.SOA)
	out.After.Sets = after(current.Sets, changes)
	out.After.SOA = &soa

	err = p.check(changes, soa)
	if err != nil {
		return out, err
	}

	if args.Mode == "file" {
		p.addFileSteps(changes, soa)
	} else {
		err = p.addSteps(changes, soa)
	}

	return out, err
}

// over gives the SOA as it is wanted; a new serial if anything differs.
func (s *SOAArg) over(current records.SOA) records.SOA {
	if s == nil {
		return current
	}

	wanted := current

	if s.Primary != "" {
		wanted.Primary = s.Primary
	}

	if s.Mail != "" {
		wanted.Mail = s.Mail
	}

	for _, each := range []struct {
		from *int
		to   *uint32
	}{{s.Refresh, &wanted.Refresh}, {s.Retry, &wanted.Retry}, {s.Expire, &wanted.Expire}, {s.Minimum, &wanted.Minimum}, {s.TTL, &wanted.TTL}} {
		if each.from != nil {
			*each.to = uint32(*each.from)
		}
	}

	if wanted != current {
		wanted.Serial = records.NextSerial(current.Serial)
	}

	return wanted
}

type planner struct {
	args    Args
	current State
	index   *sets
	out     *plan.Plan[State]
}

// changes are the differences by RRset, in the order of the zone.
func (p *planner) changes() ([]Change, error) {
	wanted, err := p.wantedSets()
	if err != nil {
		return nil, err
	}

	var changes []Change

	// Both lists are in order.
	for current := p.current.Sets; len(wanted) > 0 || len(current) > 0; {
		switch order := compareFirst(wanted, current); {
		case order < 0:
			changes = append(changes, Change{New: &wanted[0]})
			wanted = wanted[1:]
		case order > 0:
			if left, gone := p.fate(current[0]); gone {
				changes = append(changes, Change{Old: &current[0], New: left})
			}

			current = current[1:]
		default:
			if !wanted[0].Same(current[0]) {
				changes = append(changes, Change{Old: &current[0], New: &wanted[0]})
			}

			wanted, current = wanted[1:], current[1:]
		}
	}

	p.markAlone(changes)

	return changes, nil
}

// compareFirst tells which of two lists, not both empty, has the set that comes first in the zone: less than 0 for a, 0 for both.
func compareFirst(a, b []records.Set) int {
	switch {
	case len(b) == 0:
		return -1
	case len(a) == 0:
		return 1
	}

	return records.Compare(a[0].ID(), b[0].ID())
}

// markAlone finds the changes that give a name its first records.
func (p *planner) markAlone(changes []Change) {
	if !slices.ContainsFunc(changes, func(c Change) bool { return c.Old == nil }) {
		return
	}

	used := make(map[string]bool, len(p.current.Sets))
	for _, set := range p.current.Sets {
		used[set.Name] = true
	}

	for i, change := range changes {
		changes[i].Alone = change.Old == nil && !used[change.New.Name]
	}
}

// fate says what becomes of a set that nobody listed as present.
func (p *planner) fate(old records.Set) (left *records.Set, gone bool) {
	for _, set := range p.args.absent {
		if set.ID() != old.ID() || p.args.Manage == "owned" && !p.owned(old.ID()) {
			continue
		}

		if len(set.Values) == 0 {
			return nil, true
		}

		rest := old
		set.Exact = false
		rest.Values = old.Without(set)

		switch len(rest.Values) {
		case len(old.Values):
			return nil, false
		case 0:
			return nil, true
		}

		return &rest, true
	}

	switch {
	case ignored(&p.args, old):
		return nil, false
	case p.args.Manage == "zone":
		// The zone's own NS records are never emptied, and what only its maker can read is left to them.
		return nil, (old.Name != p.args.zone || old.Type != "NS") && !strings.HasPrefix(old.Type, "TYPE") && !opaque(old)
	case p.args.Manage == "owned":
		return nil, p.owned(old.ID()) || p.marker(old)
	}

	return nil, false
}

func opaque(set records.Set) bool {
	return slices.ContainsFunc(set.Values, func(value string) bool { return strings.HasPrefix(value, `\#`) })
}

// ignored tells whether a pattern covers the set: of its name relative to the zone, and perhaps a type after a space.
func ignored(args *Args, set records.Set) bool {
	if len(args.Ignore) == 0 {
		return false
	}

	name := relative(set.Name, args.zone)

	for _, pattern := range args.Ignore {
		glob, kind, typed := strings.Cut(pattern, " ")
		if typed && !strings.EqualFold(strings.TrimSpace(kind), set.Type) {
			continue
		}

		if matched, _ := path.Match(strings.ToLower(glob), name); matched {
			return true
		}
	}

	return false
}

func relative(name, zone string) string {
	if name == zone {
		return "@"
	}

	return strings.TrimSuffix(name, "."+zone)
}

// check refuses what breaks rules together with what is there, and what goes too far.
func (p *planner) check(changes []Change, soa records.SOA) error {
	if len(changes) == 0 && soa == *p.current.SOA {
		return nil
	}

	names := map[string]bool{}
	for _, change := range changes {
		names[change.id().Name] = true
	}

	err := records.CheckZone(p.args.zone, p.out.After.Sets, names)
	if err != nil {
		return ansible.Fail(CodeRules, "", "%w", err)
	}

	if p.args.Force {
		return nil
	}

	lost := 0

	var reasons []string

	for _, change := range changes {
		lost += change.lost()

		if id := change.id(); change.Old != nil && id.Name == p.args.zone && id.Type == "NS" {
			reasons = append(reasons, "the zone's own NS records would be changed")
		}
	}

	if soa != *p.current.SOA {
		reasons = append(reasons, "the zone's SOA would be changed")
	}

	if reason := plan.UsualGuard.Refuses("records", lost, records.Count(p.current.Sets)); reason != "" {
		reasons = append(reasons, reason)
	}

	if reasons == nil {
		return nil
	}

	return ansible.Fail(CodeUnsafe, "if that is what you want, set force: true; --check --diff with it shows the whole plan",
		"zone %s: %s", records.Display(p.args.zone), strings.Join(reasons, "; "))
}

// lost counts the records that are no longer what they were.
func (c Change) lost() int {
	switch {
	case c.Old == nil:
		return 0
	case c.New == nil || c.New.TTL != c.Old.TTL:
		return len(c.Old.Values)
	}

	return len(c.Old.Without(*c.New))
}

// after gives the zone once all changes are made.
func after(current []records.Set, changes []Change) []records.Set {
	if len(changes) == 0 {
		return current
	}

	changed := make(map[records.ID]bool, len(changes))
	for _, change := range changes {
		changed[change.id()] = true
	}

	list := make([]records.Set, 0, len(current)+len(changes))

	for _, set := range current {
		if !changed[set.ID()] {
			list = append(list, set)
		}
	}

	for _, change := range changes {
		if change.New != nil {
			list = append(list, *change.New)
		}
	}

	records.SortSets(list)

	return list
}

// addSteps makes one step of each change. The first of each message does it all; the others say what is in it.
func (p *planner) addSteps(changes []Change, soa records.SOA) error {
	var errs []error

	if soa != *p.current.SOA {
		update := Update{Zone: p.args.zone, SOA: &soa}
		if !p.current.Signed { // otherwise what is signed has another serial than what is updated
			update.OldSOA = p.current.SOA
		}

		step := p.out.Add(plan.Change, "SOA of "+records.Display(p.args.zone), update, "(%s)", describeSOA(*p.current.SOA, soa))
		step.Before, step.After = p.current.SOA, &soa
	}

	for _, message := range messages(p.args.zone, changes) {
		update := Update{Zone: p.args.zone, Changes: message}
		errs = append(errs, checkSize(update))

		for i, change := range message {
			var do any = Part{}
			if i == 0 {
				do = update
			}

			p.addStep(change, do)
		}
	}

	return errors.Join(errs...)
}

func (p *planner) addStep(change Change, do any) {
	var step *plan.Step

	switch {
	case change.New == nil:
		step = p.out.Add(plan.Delete, "records "+change.Old.String(), do, "(%s)", shortList(change.Old.Values))
		step.Before = change.Old
	case change.Old == nil:
		step = p.out.Add(plan.Create, "records "+change.New.String(), do, "(%s, ttl %d)", shortList(change.New.Values), change.New.TTL)
		step.After = change.New
	default:
		step = p.out.Add(plan.Change, "records "+change.New.String(), do, "(%s)", difference(*change.Old, *change.New))
		step.Before, step.After = change.Old, change.New
	}
}

func difference(old, wanted records.Set) string {
	var parts []string

	if gone := old.Without(wanted); len(gone) > 0 {
		parts = append(parts, "not "+shortList(gone))
	}

	if came := wanted.Without(old); len(came) > 0 {
		parts = append(parts, "but "+shortList(came))
	}

	if old.TTL != wanted.TTL {
		parts = append(parts, fmt.Sprintf("ttl %d instead of %d", wanted.TTL, old.TTL))
	}

	return strings.Join(parts, ", ")
}

func describeSOA(old, wanted records.SOA) string {
	var parts []string

	note := func(name string, a, b any) {
		if a != b {
			parts = append(parts, fmt.Sprintf("%s %v instead of %v", name, b, a))
		}
	}

	note("primary", old.Primary, wanted.Primary)
	note("mail", old.Mail, wanted.Mail)
	note("refresh", old.Refresh, wanted.Refresh)
	note("retry", old.Retry, wanted.Retry)
	note("expire", old.Expire, wanted.Expire)
	note("minimum", old.Minimum, wanted.Minimum)
	note("ttl", old.TTL, wanted.TTL)

	return strings.Join(parts, ", ")
}

// shortList keeps a line readable.
func shortList(values []string) string {
	const most, longest = 4, 60

	var shown []string

	for _, value := range values[:min(most, len(values))] {
		if len(value) > longest {
			value = value[:longest] + "..."
		}

		shown = append(shown, value)
	}

	if len(values) > most {
		shown = append(shown, fmt.Sprintf("and %d more", len(values)-most))
	}

	return strings.Join(shown, ", ")
}
