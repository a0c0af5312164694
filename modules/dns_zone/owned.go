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

// With manage=owned each name that this module made records for has a marker, a TXT record in a branch of its own:
//
//	www._owner-thinkube.example.com. TXT "types=A,AAAA"
//
// It is not below the name itself, where a delegation would hide it, and not beside it, where a CNAME allows nothing. The zone
// itself is written as _apex, a wildcard as _any.
const (
	markerBranch = "_owner-"
	markerValue  = "types="
)

func branch(args *Args) string { return markerBranch + args.Owner + "." + args.zone }

// markerName gives the name of the marker for a name.
func markerName(args *Args, name string) string {
	label := relative(name, args.zone)

	switch rest, wild := strings.CutPrefix(label, "*"); {
	case label == "@":
		label = "_apex"
	case wild:
		label = "_any" + rest
	}

	return label + "." + branch(args)
}

// markedName gives the name that a marker of any owner stands for, "" when it is none.
func markedName(marker, zone string) string {
	label := relative(marker, zone)

	at := strings.LastIndex(label, "."+markerBranch)
	if at < 0 || strings.Contains(label[at+1:], ".") {
		return ""
	}

	label = label[:at]

	switch rest, wild := strings.CutPrefix(label, "_any"); {
	case label == "_apex":
		return zone
	case wild && (rest == "" || rest[0] == '.'):
		label = "*" + rest
	}

	return label + "." + zone
}

// marker tells whether a set is one of our markers.
func (p *planner) marker(set records.Set) bool {
	return set.Type == "TXT" && strings.HasSuffix(set.Name, "."+branch(&p.args))
}

// owned tells whether a marker says that we made the set.
func (p *planner) owned(id records.ID) bool {
	marker := p.index.find(records.ID{Name: markerName(&p.args, id.Name), Type: "TXT"})
	if marker == nil || len(marker.Values) != 1 {
		return false
	}

	types, ok := strings.CutPrefix(strings.Trim(marker.Values[0], `"`), markerValue)

	return ok && slices.Contains(strings.Split(types, ","), id.Type)
}

// wantedSets are the sets that are to be there, in order: those that are listed and, with manage=owned, their markers. What somebody
// else has made alike is left to them.
func (p *planner) wantedSets() ([]records.Set, error) {
	if p.args.Manage != "owned" {
		return p.args.wanted, nil
	}

	var (
		ours    []records.Set
		foreign []string
	)

	for _, set := range p.args.wanted {
		old := p.index.find(set.ID())

		switch {
		case old == nil, p.owned(set.ID()), p.args.Force && !set.Same(*old):
		case set.Same(*old):
			p.out.Add(plan.Report, "records "+set.String(), nil, "are there already, made by somebody else; they are left alone")

			continue
		default:
			foreign = append(foreign, set.String())
		}

		ours = append(ours, set)
	}

	if foreign != nil {
		return nil, ansible.Fail(CodeForeign, "leave them out, or set force: true to take them over",
			"made by somebody else, and other than wanted: %s", strings.Join(foreign, ", "))
	}

	markers, err := p.markers(slices.Concat(ours, p.kept()))
	wanted := append(ours, markers...)
	records.SortSets(wanted)

	return wanted, err
}

// kept are the sets of ours that stay without being listed: they are ignored, or only some of their values are to go.
func (p *planner) kept() []records.Set {
	var kept []records.Set

	listed := makeIndex(p.args.wanted)

	for _, set := range p.current.Sets {
		if !p.owned(set.ID()) || listed.find(set.ID()) != nil {
			continue
		}

		if left, gone := p.fate(set); !gone || left != nil {
			kept = append(kept, set)
		}
	}

	return kept
}

// markers are those of the sets that are ours from now on.
func (p *planner) markers(ours []records.Set) ([]records.Set, error) {
	var markers []records.Set

	records.SortSets(ours)

	for begin := 0; begin < len(ours); {
		name, types := ours[begin].Name, []string{}

		for ; begin < len(ours) && ours[begin].Name == name; begin++ {
			types = append(types, ours[begin].Type)
		}

		marker := markerName(&p.args, name)
		if len(marker) > 254 {
			return nil, ansible.Fail(CodeRules, "", "%s: name-length: the marker %q would be too long", records.Display(name), marker)
		}

		markers = append(markers, records.Set{
			Name: marker, Type: "TXT", TTL: uint32(p.args.TTL), Values: []string{fmt.Sprintf("%q", markerValue+strings.Join(types, ","))},
		})
	}

	return markers, nil
}
