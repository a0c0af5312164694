// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"slices"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/plan"
	"github.com/thinkube/infra/modules/internal/records"
)

// Write replaces the zone's file and has the server load it.
type Write struct{ File }

// Make makes a zone that the server does not have.
type Make struct{ File }

// Remove removes a zone that this module made.
type Remove struct{}

// missing plans for a zone that the server does not have.
func (p *planner) missing() error {
	switch {
	case p.current.Known == nil || *p.current.Known:
		return ansible.Fail(ansible.CodeInternal, "", "zone %q was read without its SOA", p.args.zone)
	case p.args.State == "absent":
		return nil
	case !p.args.Create:
		return ansible.Fail(CodeMissing, "set create: true to make it", "the server has no zone %s", records.Display(p.args.zone))
	}

	wanted, err := p.wantedSets()
	if err != nil {
		return err
	}

	sets := slices.Clone(wanted)

	soa := p.args.SOA.over(records.SOA{
		Mail: "hostmaster." + p.args.zone, Refresh: 7200, Retry: 900, Expire: 1209600, Minimum: 300, TTL: uint32(p.args.TTL),
	})

	err = p.checkNew(sets)
	if err != nil {
		return err
	}

	p.out.After.SOA, p.out.After.Sets, p.out.After.Made, p.out.After.File = &soa, sets, true, nil
	known := true
	p.out.After.Known = &known

	do := Make{File{Path: string(p.args.File), SOA: &soa, Sets: sets}}
	step := p.out.Add(plan.Create, "zone "+records.Display(p.args.zone), do, "(%d records, in %q)", records.Count(sets), p.args.File)
	step.After = sets

	return nil
}

// checkNew judges a zone that is to be made, as a whole.
func (p *planner) checkNew(sets []records.Set) error {
	names := map[string]bool{p.args.zone: true}
	for _, set := range sets {
		names[set.Name] = true
	}

	if makeIndex(sets).find(records.ID{Name: p.args.zone, Type: "NS"}) == nil {
		return ansible.Fail(CodeRules, "list one, with the name @", "apex-ns: a new zone must have an NS record of its own")
	}

	err := records.CheckZone(p.args.zone, sets, names)
	if err != nil {
		return ansible.Fail(CodeRules, "", "%w", err)
	}

	// What an interrupted run has left is the same; anything else is somebody's.
	left := p.current.File
	if left == nil || p.args.Force || slices.EqualFunc(left.Sets, sets, func(a, b records.Set) bool { return a.ID() == b.ID() && b.Same(a) }) {
		return nil
	}

	return ansible.Fail(CodeForeign, "give another file, or set force: true to overwrite it",
		"%q exists and is not the zone that is to be made, and the server does not use it", left.Path)
}

// remove plans the end of a zone; one that somebody else made is left alone.
func (p *planner) remove() {
	name := "zone " + records.Display(p.args.zone)

	if !p.current.Made {
		p.out.Add(plan.Report, name, nil, "was not made by this module and is left alone")

		return
	}

	known := false
	p.out.After = State{Zone: p.args.zone, Known: &known}
	step := p.out.Add(plan.Delete, name, Remove{}, "(%d records)", records.Count(p.current.Sets))
	step.Before = p.current.Sets
}

// addFileSteps makes one step of each change; the first writes the file.
func (p *planner) addFileSteps(changes []Change, soa records.SOA) {
	changed := soa != *p.current.SOA
	if !changed && len(changes) == 0 {
		return
	}

	if !changed {
		soa.Serial = records.NextSerial(soa.Serial)
	}

	p.out.After.SOA = &soa

	var do any = Write{File{Path: string(p.args.File), SOA: &soa, Sets: p.out.After.Sets}}

	if changed {
		step := p.out.Add(plan.Change, "SOA of "+records.Display(p.args.zone), do, "(%s)", describeSOA(*p.current.SOA, soa))
		step.Before, step.After = p.current.SOA, &soa
		do = Part{}
	}

	for _, change := range changes {
		p.addStep(change, do)
		do = Part{}
	}
}
