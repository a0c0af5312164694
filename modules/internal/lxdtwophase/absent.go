// SPDX-License-Identifier: Apache-2.0

package lxdtwophase

import (
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
	"github.com/thinkube/infra/modules/internal/plan"
)

// Absent undoes what the module did: what it made is deleted, what it changed is given back, and what it never touched
// is left alone unless force is set. Users are what keeps the object from being deleted.
func (k Kind) Absent(name string, now State, rules Rules, users []string, force bool) (plan.Plan[*Object], error) {
	p := &planner{kind: k, want: Wanted{Name: name}, now: now, rules: rules}
	p.out.After = now.Object.clone()

	switch {
	case now.Object == nil && now.Origin.Recorded:
		p.out.Add(plan.Delete, "record of "+p.object(""), forget{}, "")

		return p.out, nil
	case now.Object == nil:
		return p.out, nil
	case now.Origin.Original != nil && now.Object.created():
		p.restore(now.Origin.Original)
	case !now.Origin.Recorded && !force:
		p.out.Add(plan.Report, p.object(""), nil, "was not made by this module on this host and is left alone; force: true deletes it")

		return p.out, nil
	case len(users) > 0:
		return p.out, ansible.Fail(CodeInUse, "delete these first, or move them elsewhere", "%s is used by %q", p.object(""), users)
	default:
		p.out.Add(plan.Delete, p.object(""), remove{}, "").Before = now.Object
		p.out.After = nil
	}

	return p.out, p.needAll()
}

// restore plans the way back to somebody else's object.
func (p *planner) restore(original *Object) {
	if p.now.Clustered {
		for _, member := range p.now.names() {
			was, had := original.Members[member]
			have, has := p.now.Object.Members[member]

			if had && has {
				p.change(member, p.back(member, have.Config, was.Config), have.Config, nil)
			}
		}
	}

	live, was := p.now.Object.whole(p.now), original.whole(p.now)
	set := p.back("", live, was)
	lines := lxdapi.Differences(live, lxdapi.Merge(live, set))

	do := giveBack{change{Description: original.Description, Set: set, etag: p.now.etags[""]}}
	step := p.out.Add(plan.Change, p.object(""), do, "back to what it was before this module changed it (%s)", strings.Join(lines, ", "))

	p.out.After.Description = do.Description
	p.out.After.setWhole(p.kind, p.now, lxdapi.Merge(live, set))
	step.Before, step.After = p.now.Object, p.out.After
}

// back gives the keys that lead from the live config to the earlier one. What the server keeps for itself stays; so does
// what it takes at creation only (a pool that was made larger), which is said.
func (p *planner) back(member string, live, was lxdapi.Config) lxdapi.Config {
	set := lxdapi.Config{}

	for key, value := range was {
		if live[key] == value || lxdapi.Computed(key) {
			continue
		}

		switch verdict, shown := p.rules.Compare(key, value, live); verdict {
		case Differs:
			set[key] = value
		case Fixed:
			p.out.Add(plan.Report, p.object(member), nil, "%s stays %q: it cannot become %q again", key, shown, value)
		case Same:
		}
	}

	for key := range live {
		if _, had := was[key]; !had && !lxdapi.Computed(key) {
			set[key] = ""
		}
	}

	return set
}
