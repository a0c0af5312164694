// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"fmt"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/plan"
	"github.com/thinkube/infra/modules/internal/records"
)

// Write replaces the zone's file and has the server load it.
type Write struct {
	File
	Digest string `json:"digest"` // of the file that was read
}

// Reload has the server load the file as it is.
type Reload struct {
	Serial uint32 `json:"serial"`
}

// Make makes a zone that the server does not have.
type Make struct {
	File
	Digest string `json:"digest,omitempty"` // of the file that lies there; "" when there is none
	Ours   bool   `json:"ours,omitempty"`   // that file is of an earlier run, which was cut
}

// Restore has the server serve a zone again that it has lost, from the file that lies there.
type Restore struct {
	Serial uint32 `json:"serial"`
}

// Finish notes that a zone is made, where a run was cut before it did.
type Finish struct {
	File string `json:"file"`
}

// Remove removes a zone that this module made.
type Remove struct {
	File  string `json:"file"`
	Known bool   `json:"known,omitempty"` // the server has it; otherwise only files are left
}

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

	soa := p.newSOA()

	err = p.checkNew(sets)
	if err != nil {
		return err
	}

	file := string(p.args.File)

	if p.current.Made != nil && !p.current.Made.Making && p.current.Made.File != file && !p.args.Force {
		return ansible.Fail(CodeForeign, "give that file, from which the zone is served again, or set force: true to remove it and make a new zone",
			"zone %s was made in %q, not in %q, and the server has lost it", records.Display(p.args.zone), p.current.Made.File, file)
	}

	if !p.noted() {
		p.clear()
	}

	known := true
	p.out.After = State{Zone: p.args.zone, SOA: &soa, Sets: sets, Known: &known, Made: &Made{File: file}, ServerFile: file}

	if p.args.Mode == "file" {
		p.out.After.Served = &soa.Serial
	}

	do := Make{File: File{Path: file, SOA: &soa, Sets: sets}, Digest: p.current.Digest, Ours: p.began() && p.current.File != nil}
	step := p.out.Add(plan.Create, "zone "+records.Display(p.args.zone), do, "(%d records, in %q)", records.Count(sets), p.args.File)
	step.After = sets

	return nil
}

// newSOA is that of a zone that is to be made. Where its file is there already, the serial goes on from that.
func (p *planner) newSOA() records.SOA {
	soa := p.args.SOA.over(records.SOA{
		Mail: "hostmaster." + p.args.zone, Refresh: 7200, Retry: 900, Expire: 1209600, Minimum: 300, TTL: uint32(p.args.TTL),
	})
	soa.Serial = p.current.NewSerial

	if left := p.current.File; left != nil && !records.SerialAfter(soa.Serial, left.SOA.Serial) {
		soa.Serial = records.NextSerial(left.SOA.Serial)
	}

	return soa
}

// began tells whether an earlier run began to make the zone in this file, and did not come to the end.
func (p *planner) began() bool {
	return p.noted() && p.current.Made.Making
}

// noted tells whether an earlier run made the zone in this file, or began to.
func (p *planner) noted() bool {
	return p.current.Made != nil && p.current.Made.File == string(p.args.File)
}

// lost tells whether the server has no more a zone that was made, and whose file is there: with what others put into it.
func (p *planner) lost() bool {
	return p.args.Create && p.args.State == "present" && p.current.SOA == nil && p.noted() && !p.current.Made.Making && p.current.File != nil
}

// restore plans that the server serves the file again. The rest of the plan goes on from what is in it; where the server has more
// in a journal, the changes fail and are planned anew from what is served.
func (p *planner) restore() {
	left, known := p.current.File, true

	p.current.SOA, p.current.Sets, p.current.Served, p.current.Known, p.current.ServerFile = left.SOA, left.Sets, &left.SOA.Serial, &known, left.Path
	p.current.File, p.current.NewSerial = nil, 0

	if p.args.Mode == "update" {
		p.current.Digest = ""
	}

	p.index = makeIndex(left.Sets)
	p.out.After = p.current
	p.out.Add(plan.Create, "zone "+records.Display(p.args.zone), Restore{Serial: left.SOA.Serial}, "(again, as it is in %q; the server has lost it)", left.Path)
}

// finish plans the end of a run that was cut when the server had the zone.
func (p *planner) finish() {
	if p.args.Create && p.args.State == "present" && p.began() && p.current.ServerFile == p.current.Made.File {
		made := Made{File: p.current.Made.File}
		p.out.After.Made = &made
		p.out.Add(plan.Change, "record of zone "+records.Display(p.args.zone), Finish{File: made.File}, "(it is made, by a run that was cut)")
	}
}

// clear plans the end of what is noted as ours and that the server does not have, if there is such.
func (p *planner) clear() {
	if p.current.Made != nil {
		p.out.Add(plan.Delete, "files of zone "+records.Display(p.args.zone), Remove{File: p.current.Made.File}, "(%q, left by a run that was cut)", p.current.Made.File)
	}
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

	// What an interrupted run has left is noted, or is the same; anything else is somebody's.
	left := p.current.File
	if left == nil || p.args.Force || p.began() || slices.EqualFunc(left.Sets, sets, func(a, b records.Set) bool { return a.ID() == b.ID() && b.Same(a) }) {
		return nil
	}

	return ansible.Fail(CodeForeign, "give another file, or set force: true to overwrite it",
		"%q exists and is not the zone that is to be made, and the server does not use it", left.Path)
}

// remove plans the end of a zone; one that somebody else made is left alone.
func (p *planner) remove() error {
	name := "zone " + records.Display(p.args.zone)
	noted, known := p.current.Made, *p.current.Known

	switch {
	case noted == nil && known:
		p.out.Add(plan.Report, name, nil, "was not made by this module and is left alone")
	case noted == nil:
	case !known:
		p.clear()
		p.out.After = State{Zone: p.args.zone, Known: &known}

		return p.checkLoss()
	case p.current.ServerFile != noted.File:
		p.out.Add(plan.Report, name, nil, "was made by somebody else after this module had begun to (the server has it in %q, not in %q), and is left alone",
			p.current.ServerFile, noted.File)
	default:
		known = false
		p.out.After = State{Zone: p.args.zone, Known: &known}
		p.out.Add(plan.Delete, name, Remove{File: noted.File, Known: true}, "(%s, in %q)", p.size(), noted.File)

		return p.checkLoss()
	}

	return nil
}

func (p *planner) size() string {
	if p.current.Unread != "" {
		return "nobody knows how many records"
	}

	return fmt.Sprintf("%d records", records.Count(p.current.Sets))
}

// checkLoss refuses to remove a zone with more records than anybody means to lose unseen, with records that are others', or with what
// nobody knows. What the task lists is meant to go.
func (p *planner) checkLoss() error {
	if p.args.Force {
		return nil
	}

	var reasons []string

	if p.current.Unread != "" {
		reasons = append(reasons, "what is in it cannot be read: "+p.current.Unread)
	}

	lost, others := 0, 0

	for _, set := range p.current.Sets {
		if ignored(&p.args, set) {
			others += len(set.Values)
		}

		for _, meant := range p.args.absent {
			if meant.ID() == set.ID() && len(meant.Values) == 0 {
				set.Values = nil
			} else if meant.ID() == set.ID() {
				set.Values = set.Without(meant)
			}
		}

		lost += len(set.Values)
	}

	if others > 0 {
		reasons = append(reasons, fmt.Sprintf("records that ignore leaves to others would be deleted (%d)", others))
	}

	if reason := plan.UsualGuard.Refuses("records", lost, records.Count(p.current.Sets)); reason != "" {
		reasons = append(reasons, reason)
	}

	if reasons == nil {
		return nil
	}

	return ansible.Fail(CodeUnsafe, "if that is what you want, set force: true; --check --diff with it shows what is in the zone",
		"zone %s is to be removed: %s", records.Display(p.args.zone), strings.Join(reasons, "; "))
}

// addFileSteps makes one step of each change; the first writes the file.
func (p *planner) addFileSteps(changes []Change, soa records.SOA) {
	changed := soa != *p.current.SOA
	if !changed && len(changes) == 0 {
		p.addReload(soa)

		return
	}

	if !changed {
		soa.Serial = records.NextSerial(soa.Serial)
	}

	p.out.After.SOA, p.out.After.Served, p.out.After.Digest = &soa, &soa.Serial, ""

	var do any = Write{File{Path: string(p.args.File), SOA: &soa, Sets: p.out.After.Sets}, p.current.Digest}

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

// addReload plans that the server loads what is in the file already: a run was cut after it had written that, the server could not
// load it then, or somebody wrote it by hand.
func (p *planner) addReload(soa records.SOA) {
	served := "none"

	if p.current.Served != nil {
		if *p.current.Served == soa.Serial {
			return
		}

		served = fmt.Sprint(*p.current.Served)
	}

	p.out.After.Served = &soa.Serial
	p.out.Add(plan.Change, "zone "+records.Display(p.args.zone), Reload{Serial: soa.Serial}, "(serial %d, which is in the file already, instead of %s)", soa.Serial, served)
}
