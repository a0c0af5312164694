// SPDX-License-Identifier: Apache-2.0

package lxdtwophase

import (
	"maps"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
	"github.com/thinkube/infra/modules/internal/plan"
)

// Absent undoes what the module did: what it made is deleted, what it changed gets back what it had, and what it never
// touched is left alone. force deletes in every case. Users are what keeps the object from being deleted.
func (k Kind) Absent(name string, now State, rules Rules, users []string, force bool) (plan.Plan[State], error) {
	p := k.planner(Wanted{Name: name}, now, rules)

	switch {
	case now.Object == nil:
		return p.out, nil
	case !force && len(now.Marks.Undo) > 0:
		p.restore()
	case !force && !now.Marks.Created && !now.Object.onlyDefined():
		p.out.Add(plan.Report, p.object(""), nil, "was not made by this module and is left alone; force: true deletes it")

		return p.out, nil
	case len(users) > 0:
		return p.out, ansible.Fail(CodeInUse, "delete these first, or move them elsewhere", "%s is used by %q", p.object(""), users)
	default:
		p.out.Add(plan.Delete, p.object(""), remove{}, "").Before = now.Object
		p.out.After.Object, p.out.After.Marks, p.out.After.UsedBy = nil, lxdapi.Marks{}, nil
	}

	return p.out, p.needAll()
}

// onlyDefined tells of an object that was announced to members and never made on any. Such a thing cannot be marked as
// ours: members take no shared keys. It holds nothing, so deleting it loses nothing.
func (o *Object) onlyDefined() bool {
	for _, member := range o.Members {
		if member.Status != StatusPending {
			return false
		}
	}

	return o.Status == StatusPending && !o.begun()
}

// restore plans the way back to what somebody else's object was. The marks go last: until then it can be done again.
func (p *planner) restore() {
	live := p.now.Object
	fields, foreign := p.now.Marks.Restore(live.fields())

	for _, field := range foreign {
		p.out.Add(plan.Report, p.object(""), nil, "%s was changed by somebody else since and stays as it is", field)
	}

	own := map[string]lxdapi.Config{}
	global := p.back("", live.Config, fields)

	for _, member := range slices.Sorted(maps.Keys(live.Members)) {
		own[member] = p.back(member, live.Members[member].Config, fields)
	}

	after := p.out.After.Object
	after.Description = fields["description"]
	after.Config = lxdapi.Merge(live.Config, global)

	if p.now.Clustered {
		for _, member := range p.now.names() {
			p.changeOwn(member, own[member], live.Members[member].Config, p.now.etags[member])
		}
	} else {
		maps.Copy(global, own[p.now.Server])
		after.Members[p.now.Server] = Member{live.Members[p.now.Server].Status, lxdapi.Merge(live.Members[p.now.Server].Config, own[p.now.Server])}
	}

	p.changeShared(global, lxdapi.Marks{}, true, "back to what it was before this module changed it ")
}

// back gives the keys that lead from a live config to the earlier fields. What the server takes only at creation (a pool
// that was made larger) stays, which is said.
func (p *planner) back(member string, live, fields lxdapi.Config) lxdapi.Config {
	set := lxdapi.Config{}

	for _, key := range p.keysOf(member, live, fields) {
		field := key
		if member != "" {
			field = memberField(member, key)
		}

		value, had := fields[field]
		if value == live[key] {
			continue
		}

		verdict, shown := p.rules.Compare(key, value, live)

		switch {
		case !had:
			set[key] = ""
		case verdict == Fixed:
			p.out.Add(plan.Report, p.object(member), nil, "%s stays %q: it cannot become %q again", key, shown, value)
		case verdict == Differs:
			set[key] = value
		}
	}

	return set
}

// keysOf lists the keys of a config, and those that it had before us.
func (p *planner) keysOf(member string, live, fields lxdapi.Config) []string {
	keys := slices.Collect(maps.Keys(live))

	for field := range p.now.Marks.Undo {
		if _, had := fields[field]; !had || field == "description" {
			continue
		}

		if key, isOwn := strings.CutPrefix(field, memberField(member, "")); isOwn && member != "" {
			keys = append(keys, key)
		} else if !strings.Contains(field, " ") && member == "" {
			keys = append(keys, field)
		}
	}

	slices.Sort(keys)

	return slices.Compact(keys)
}
