// SPDX-License-Identifier: Apache-2.0

package lxdtwophase

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
	"github.com/thinkube/infra/modules/internal/plan"
)

// Wanted is what a task asks for. In both configs an empty value asks for the key's removal; a key that is not named is
// not managed.
type Wanted struct {
	Name        string
	Type        string // empty: whatever is there
	Description *string
	Config      lxdapi.Config            // keys that all share, and member keys that hold for every member
	Members     map[string]lxdapi.Config // member keys by member; they win over Config
}

// Verdict says what a wanted value means for an object that exists.
type Verdict int

// The verdicts.
const (
	Same    Verdict = iota // it is there, in these words or in the server's own
	Differs                // it has to be set
	Fixed                  // it differs and is only taken at creation
)

// Rules are what a kind's keys mean.
type Rules struct {
	// Compare judges a wanted value against the live config that its key is part of. Shown is the live value as people
	// would look for it, for the message when it is Fixed.
	Compare func(key, wanted string, live lxdapi.Config) (verdict Verdict, shown string)
	// Filled are keys that the server sets at creation when they are not given: removing them takes one more step.
	Filled []string
	// ForgetsDescription: a cluster drops the description that it is given at creation.
	ForgetsDescription bool
}

type planner struct {
	kind  Kind
	want  Wanted
	now   State
	rules Rules

	global lxdapi.Config            // the wanted keys that all share
	own    map[string]lxdapi.Config // the wanted keys of each member
	fixed  []string                 // what cannot be changed
	out    plan.Plan[State]
}

// Object is how messages name an object of the kind.
func (k Kind) Object(name string) string { return fmt.Sprintf("%s %q", k.Noun, name) }

// Own gives the wanted member keys of one member. It is for reading ahead; Present judges them.
func (k Kind) Own(want Wanted, now State, member string) lxdapi.Config {
	own := lxdapi.Config{}

	for key, value := range want.Config {
		if k.ForMember(key, now) {
			own[key] = value
		}
	}

	maps.Copy(own, want.Members[member])

	return own
}

// Present plans for the object to exist with the wanted settings on every member.
func (k Kind) Present(want Wanted, now State, rules Rules) (plan.Plan[State], error) {
	p := k.planner(want, now, rules)

	err := p.resolve()
	if err != nil {
		return p.out, err
	}

	if !k.twoPhases(p.typ(), now) {
		err = p.refuseOwn()
	}

	switch {
	case err != nil:
	case now.Object == nil:
		err = p.make()
	case now.Object.Type != want.Type && want.Type != "":
		err = p.immutable([]string{p.fixedLine("", k.TypeField, now.Object.Type, want.Type)})
	case now.Object.created():
		err = p.changeAll()
	case now.Object.halfMade():
		err = p.resume()
	default:
		err = p.unavailable("")
	}

	return p.out, err
}

func (k Kind) planner(want Wanted, now State, rules Rules) *planner {
	p := &planner{kind: k, want: want, now: now, rules: rules}
	p.out.After = now
	p.out.After.Object = now.Object.clone()

	return p
}

// resolve sorts the wanted keys by whom they belong to, and refuses members and keys that cannot be.
func (p *planner) resolve() error {
	var bad []string

	for _, name := range slices.Sorted(maps.Keys(p.want.Members)) {
		if !slices.Contains(p.now.names(), name) {
			bad = append(bad, fmt.Sprintf("members[%q]: there is no such member; there are %q", name, p.now.names()))
		}

		for _, key := range slices.Sorted(maps.Keys(p.want.Members[name])) {
			if !p.kind.ForMember(key, p.now) {
				bad = append(bad, fmt.Sprintf("members[%q]: %q is a key that all members share: give it in config; a member has %q for itself",
					name, key, p.memberKeys()))
			}
		}
	}

	if bad != nil {
		return ansible.Fail(ansible.CodeInvalidArgument, "", "%s", strings.Join(bad, "; "))
	}

	p.global, p.own = lxdapi.Config{}, map[string]lxdapi.Config{}

	for key, value := range p.want.Config {
		if !p.kind.ForMember(key, p.now) {
			p.global[key] = value
		}
	}

	for _, member := range p.now.names() {
		p.own[member] = p.kind.Own(p.want, p.now, member)
	}

	return nil
}

// memberKeys lists what a user may give for a member.
func (p *planner) memberKeys() []string {
	var keys []string

	for _, key := range append(slices.Clone(p.kind.MemberKeys), p.now.MemberKeys...) {
		if !lxdapi.Computed(key) {
			keys = append(keys, key)
		}
	}

	slices.Sort(keys)

	return slices.Compact(keys)
}

// object names what a step acts on.
func (p *planner) object(member string) string {
	object := p.kind.Object(p.want.Name)
	if member != "" && p.now.Clustered {
		object += fmt.Sprintf(" on member %q", member)
	}

	return object
}

// needAll refuses to begin what cannot be ended: every member takes part in a change.
func (p *planner) needAll() error {
	offline := p.now.offline()
	if offline == nil {
		return nil
	}

	return ansible.Fail(lxdapi.CodeOffline, "bring it back, or remove it from the cluster for good (lxd_cluster with state: absent); then run this again",
		"%s: every member takes part, and these are not online: %q; nothing was changed", p.object(""), offline)
}

// make plans for an object that is not there at all.
func (p *planner) make() error {
	err := p.needAll()
	if err != nil {
		return err
	}

	if p.kind.twoPhases(p.want.Type, p.now) {
		for _, member := range p.now.names() {
			p.define(member)
		}
	}

	p.create()

	return nil
}

// refuseOwn refuses member keys for a type that has none.
func (p *planner) refuseOwn() error {
	if !p.now.Clustered {
		return nil
	}

	for _, member := range p.now.names() {
		for _, key := range slices.Sorted(maps.Keys(p.own[member])) {
			return ansible.Fail(ansible.CodeInvalidArgument, "", "%s: %s %q has no key of a member's own, and %q is one",
				p.object(""), p.kind.TypeField, p.want.Type, key)
		}
	}

	return nil
}

func (p *planner) define(member string) {
	config := lxdapi.Merge(nil, p.own[member])
	step := p.out.Add(plan.Create, p.object(member), define{member, p.typ(), config}, "(define it%s)", listed(config))
	step.After = config
}

// typ is the type that the object has or gets.
func (p *planner) typ() string {
	if p.want.Type == "" && p.now.Object != nil {
		return p.now.Object.Type
	}

	return p.want.Type
}

// create plans the call that makes the object everywhere. Once the server has taken the shared keys (it has begun), it
// takes none again: "already partially created" (LXD storage_pools.go, networks.go).
func (p *planner) create() {
	begun := p.now.Object != nil && p.now.Object.begun()
	do := create{Type: p.typ(), Config: lxdapi.Config{}}

	if begun {
		do.Description = p.now.Object.Description
	}

	if p.want.Description != nil {
		do.Description = *p.want.Description
	}

	future := p.future(do)
	p.out.After.Object = future

	if begun {
		p.out.Add(plan.Create, p.object(""), do, "(go on where an earlier attempt stopped)").After = future
		p.settle(do.Description, p.now.Marks.Changed(p.now.Object.fields(), future.fields()))

		return
	}

	p.out.After.Marks = lxdapi.Marks{Created: true}
	plain := lxdapi.Merge(nil, p.global)

	if !p.now.Clustered {
		plain = lxdapi.Merge(plain, p.own[p.now.Server])
	}

	do.Config = p.out.After.Marks.Into(plain)
	p.out.Add(plan.Create, p.object(""), do, "(%s %s%s)", p.kind.TypeField, do.Type, listed(plain)).After = future
	p.settle(do.Description, p.out.After.Marks)
}

// settle plans what a creation leaves to do: keys to remove that the server fills in, and a description that it drops.
func (p *planner) settle(description string, marks lxdapi.Marks) {
	do := change{Description: description, Set: lxdapi.Config{}, Marks: marks}
	begun := p.now.Object != nil && p.now.Object.begun()

	var lines []string

	for _, key := range p.rules.Filled {
		if value, named := p.global[key]; named && value == "" {
			do.Set[key] = ""
			lines = append(lines, "remove "+key)
		}
	}

	dropped := p.rules.ForgetsDescription && !begun && description != ""
	if p.now.Clustered && (dropped || begun && description != p.now.Object.Description) {
		lines = append(lines, fmt.Sprintf("description %q", description))
	}

	if lines != nil {
		p.out.After.Marks = marks
		p.out.Add(plan.Change, p.object(""), do, "(%s)", strings.Join(lines, ", ")).After = p.out.After.Object
	}
}

// future is the object as it is expected after its creation. What the server fills in is not known before.
func (p *planner) future(do create) *Object {
	future := &Object{
		Name: p.want.Name, Type: do.Type, Status: StatusCreated, Description: do.Description,
		Config: lxdapi.Merge(nil, p.global), Members: map[string]Member{},
	}

	if p.now.Object != nil {
		future.Config = lxdapi.Merge(p.now.Object.Config, p.global)
	}

	for _, member := range p.now.names() {
		future.Members[member] = Member{StatusCreated, lxdapi.Merge(known(p.now.Object, member), p.own[member])}
	}

	return future
}

// known gives a member's own keys as they are.
func known(object *Object, member string) lxdapi.Config {
	if object == nil {
		return nil
	}

	return object.Members[member].Config
}

// resume plans for an object that an earlier run, or somebody else, left half-made. Nothing can be on it yet.
func (p *planner) resume() error {
	err := p.needAll()
	if err != nil {
		return err
	}

	if !p.now.Clustered || p.now.Object.begun() && !p.canGoOn() {
		return p.startOver()
	}

	if p.kind.twoPhases(p.typ(), p.now) {
		for _, member := range p.now.names() {
			p.defineOrCorrect(member)
		}
	}

	if p.fixed != nil {
		return p.startOver()
	}

	p.create()

	return nil
}

// canGoOn tells whether an attempt that began can be ended as it is: the server takes neither other shared keys nor a
// further member then.
func (p *planner) canGoOn() bool {
	for key, value := range p.global {
		verdict, _ := p.rules.Compare(key, value, p.now.Object.Config)
		if verdict != Same && (value != "" || !slices.Contains(p.rules.Filled, key)) {
			return false
		}
	}

	for _, member := range p.now.names() {
		if _, defined := p.now.Object.Members[member]; !defined && p.kind.twoPhases(p.typ(), p.now) {
			return false
		}
	}

	return true
}

// startOver deletes what is half-made and makes it anew.
func (p *planner) startOver() error {
	if p.now.Object.begun() && !p.now.Marks.Created {
		return ansible.Fail(CodeImmutable, "wait until whoever does it is done; or delete it first (state: absent with force: true)",
			"%s is half-made by somebody else, with other settings", p.object(""))
	}

	if len(p.now.UsedBy) > 0 {
		return ansible.Fail(CodeInUse, "remove it from these first", "%s is half-made with other settings, and used by %q", p.object(""), p.now.UsedBy)
	}

	if p.want.Type == "" {
		p.want.Type = p.now.Object.Type
	}

	p.out.Steps, p.fixed = nil, nil
	p.out.Add(plan.Delete, p.object(""), remove{}, "(half-made by an earlier attempt that cannot be ended with these settings)").Before = p.now.Object
	p.now.Object, p.now.Marks = nil, lxdapi.Marks{}
	p.out.After.UsedBy = nil

	return p.make()
}

// defineOrCorrect brings one member to where the object can be created on it.
func (p *planner) defineOrCorrect(member string) {
	have, defined := p.now.Object.Members[member]

	switch {
	case !defined:
		p.define(member)
	case have.Status == StatusCreated:
		p.compare(member, p.own[member], have.Config)
	default:
		// Nothing was made there yet: what was defined can still be changed at will.
		set := lxdapi.Config{}

		for key, value := range p.own[member] {
			if have.Config[key] != value {
				set[key] = value
			}
		}

		p.changeOwn(member, set, have.Config, p.now.etags[member])
	}
}

// changeAll plans for an object that exists.
func (p *planner) changeAll() error {
	object := p.now.Object

	for _, member := range p.now.names() {
		have, defined := object.Members[member]

		switch {
		case !defined, have.Status == StatusPending:
			return p.missing(member)
		case have.Status == StatusOffline && len(p.own[member]) > 0:
			return p.needAll()
		case have.Status == StatusOffline:
			p.out.Add(plan.Report, p.object(member), nil, "the member is not online; it is not looked at")
		case have.Status == StatusUnavailable:
			return p.unavailable(member)
		}
	}

	set := map[string]lxdapi.Config{}
	for _, member := range p.now.names() {
		set[member] = p.compare(member, p.own[member], object.Members[member].Config)
	}

	global := p.compare("", p.global, object.Config)

	if p.fixed != nil {
		return p.immutable(p.fixed)
	}

	p.changeFrom(object, global, set)

	if len(p.out.Changes()) > 0 {
		return p.needAll()
	}

	return nil
}

// changeFrom plans the changes of an object that exists. What it had before us is noted by the same request that changes
// what all share, and before anything of a member's own is changed: that needs requests of its own.
func (p *planner) changeFrom(object *Object, global lxdapi.Config, own map[string]lxdapi.Config) {
	after := p.out.After.Object
	after.Config = lxdapi.Merge(object.Config, global)

	if p.want.Description != nil {
		after.Description = *p.want.Description
	}

	for member, have := range object.Members {
		after.Members[member] = Member{have.Status, lxdapi.Merge(have.Config, own[member])}
	}

	marks := p.now.Marks.Changed(object.fields(), after.fields())
	noted := !maps.Equal(marks.Into(nil), p.now.Marks.Into(nil))

	if !p.now.Clustered {
		maps.Copy(global, own[p.now.Server])
	}

	p.changeShared(global, marks, noted, "")

	if !p.now.Clustered {
		return
	}

	for _, member := range p.now.names() {
		etag := p.now.etags[member]
		if len(p.out.Changes()) > 0 {
			etag = "" // a member's answer has what all share in it
		}

		p.changeOwn(member, own[member], object.Members[member].Config, etag)
	}
}

// unavailable tells of an object that exists and may hold data, and that a server could not bring up: that is for people.
func (p *planner) unavailable(member string) error {
	return ansible.Fail(CodeUnavailable, "look there at: lxc warning list, and the daemon's log (journalctl -u lxd, or snap logs lxd)",
		"%s: the server could not bring it up", p.object(member))
}

// missing tells of a member without the object. A server takes no further member once an object is created.
func (p *planner) missing(member string) error {
	return ansible.Fail(CodeMissingOnMember,
		"a member gets it when it joins: remove the member from the cluster and join it again with what it needs in member_config (module lxd_cluster); or delete the "+
			p.kind.Noun+" and create it anew",
		"%s: it is created in the cluster and the member does not have it; the server has no way to add it", p.object(member))
}

// compare gives the keys to set, and notes those that cannot be.
func (p *planner) compare(member string, wanted, live lxdapi.Config) lxdapi.Config {
	set := lxdapi.Config{}

	for _, key := range slices.Sorted(maps.Keys(wanted)) {
		switch verdict, shown := p.rules.Compare(key, wanted[key], live); verdict {
		case Differs:
			set[key] = wanted[key]
		case Fixed:
			p.fixed = append(p.fixed, p.fixedLine(member, key, shown, wanted[key]))
		case Same:
		}
	}

	return set
}

func (p *planner) fixedLine(member, key, live, wanted string) string {
	return fmt.Sprintf("%s: %s is %q and cannot become %q", p.object(member), key, live, wanted)
}

func (p *planner) immutable(lines []string) error {
	return ansible.Fail(CodeImmutable, "ask for what is there, or leave it out; to have it otherwise, delete the "+p.kind.Noun+" (state: absent) and create it anew",
		"%s: this is only taken at creation", strings.Join(lines, "; "))
}

// changeOwn plans a change of one member's own keys.
func (p *planner) changeOwn(member string, set, live lxdapi.Config, etag string) {
	if len(set) == 0 {
		return
	}

	future := lxdapi.Merge(live, set)
	step := p.out.Add(plan.Change, p.object(member), changeOwn{member, set, etag}, "(%s)", strings.Join(lxdapi.Differences(live, future), ", "))
	step.Before, step.After = live, future
	p.out.After.Object.Members[member] = Member{p.out.After.Object.Members[member].Status, future}
}

// changeShared plans the one request that changes what all members share, from the object to the planned one.
func (p *planner) changeShared(set lxdapi.Config, marks lxdapi.Marks, noted bool, why string) {
	object, after := p.now.Object, p.out.After.Object

	var lines []string

	if after.Description != object.Description {
		lines = append(lines, fmt.Sprintf("description %q", after.Description))
	}

	live := object.whole(p.now)
	lines = append(lines, lxdapi.Differences(live, lxdapi.Merge(live, set))...)

	switch {
	case lines == nil && !noted:
		return
	case lines == nil && why == "":
		lines = []string{"note what members had before"}
	case lines == nil:
		lines = []string{"nothing of it is left"}
	}

	p.out.After.Marks = marks
	do := change{Description: after.Description, Set: set, Marks: marks, etag: p.now.etags[""]}
	step := p.out.Add(plan.Change, p.object(""), do, "%s(%s)", why, strings.Join(lines, ", "))
	step.Before, step.After = object, after
}

// whole is the config as the server keeps it under the object's own address: on a stand-alone server, all keys.
func (o *Object) whole(state State) lxdapi.Config {
	if state.Clustered {
		return o.Config
	}

	return lxdapi.Merge(o.Config, o.Members[state.Server].Config)
}

// listed gives the keys in words.
func listed(config lxdapi.Config) string {
	text := ""
	for _, line := range lxdapi.Differences(nil, config) {
		text += ", " + line
	}

	return text
}
