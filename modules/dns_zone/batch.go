// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"cmp"
	"slices"

	"github.com/miekg/dns"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/records"
)

// What one message may hold. A message over TCP has up to 65535 octets; a signature comes on top, and some servers have lower
// limits on what they take at once.
const (
	mostOctets  = 48000
	mostRecords = 2000
)

// messages divides changes among messages. What belongs together stays together: all changes of one name (a CNAME takes the
// place of an address) with its marker and, as far as they fit, name servers with the addresses that they are to have; otherwise the
// addresses go first.
func messages(zone string, changes []Change) [][]Change {
	var (
		out [][]Change
		now load
	)

	add := func(part load) {
		if len(now.changes) > 0 && !now.fits(part) {
			out = append(out, now.changes)
			now = load{}
		}

		now.add(part)
	}

	for _, group := range groups(zone, changes) {
		whole := load{}
		for _, part := range group {
			whole.add(part)
		}

		if (&load{}).fits(whole) {
			add(whole)

			continue
		}

		slices.SortStableFunc(group, func(a, b load) int { return cmp.Compare(b.glue, a.glue) })

		for _, part := range group {
			add(part)
		}
	}

	if len(now.changes) > 0 {
		out = append(out, now.changes)
	}

	return out
}

// load is changes with what they take in a message.
type load struct {
	changes         []Change
	octets, records int
	glue            int // how many of the changes give a name server its addresses
}

func (l *load) add(other load) {
	l.changes = append(l.changes, other.changes...)
	l.octets += other.octets
	l.records += other.records
	l.glue += other.glue
}

func (l *load) fits(other load) bool {
	return l.octets+other.octets <= mostOctets && l.records+other.records <= mostRecords
}

// groups gives what belongs together, in the order of what is first in each. A part of a group is what cannot be divided.
func groups(zone string, changes []Change) [][]load {
	var (
		parts   union // names, by what cannot be divided
		whole   union // and by what should not be
		targets = map[string]bool{}
		given   = addresses(changes)
	)

	for _, change := range changes {
		name := change.id().Name

		if marked := markedName(name, zone); marked != "" {
			parts.join(marked, name)
			whole.join(marked, name)
		}

		if change.New == nil || change.New.Type != "NS" {
			continue
		}

		for _, value := range change.New.Values {
			if target := change.New.Target(value); given[target] {
				targets[target] = true
				whole.join(name, target)
			}
		}
	}

	var (
		out   [][]load
		group = map[string]int{}
		part  = map[string]int{}
	)

	for _, change := range changes {
		name := change.id().Name

		g, known := group[whole.leader(name)]
		if !known {
			g = len(out)
			group[whole.leader(name)] = g
			out = append(out, nil)
		}

		p, known := part[parts.leader(name)]
		if !known {
			p = len(out[g])
			part[parts.leader(name)] = p
			out[g] = append(out[g], load{})
		}

		one := load{changes: []Change{change}}
		one.octets, one.records = change.size()

		if targets[name] {
			one.glue = 1
		}

		out[g][p].add(one)
	}

	return out
}

// addresses are the names that are given addresses.
func addresses(changes []Change) map[string]bool {
	given := map[string]bool{}

	for _, change := range changes {
		if change.New != nil && (change.New.Type == "A" || change.New.Type == "AAAA") {
			given[change.New.Name] = true
		}
	}

	return given
}

// union joins names to sets of which one is the leader; the others lead there.
type union struct{ to map[string]string }

func (u *union) leader(name string) string {
	for next, ok := u.to[name]; ok; next, ok = u.to[name] {
		if after, ok := u.to[next]; ok {
			u.to[name] = after // half of the way next time
		}

		name = next
	}

	return name
}

func (u *union) join(a, b string) {
	if u.to == nil {
		u.to = map[string]string{}
	}

	if x, y := u.leader(a), u.leader(b); x != y {
		u.to[y] = x
	}
}

// checkSize refuses a message that no server could be sent. What a change takes is estimated generously, so that a large one is
// looked at again.
func checkSize(update Update) error {
	const signature = 512 // octets, at most

	octets := 0

	for _, change := range update.Changes {
		size, _ := change.size()
		octets += size
	}

	if octets <= mostOctets {
		return nil
	}

	msg, err := message(update)
	if err != nil {
		return ansible.Fail(ansible.CodeInternal, "", "%w", err)
	}

	if length := msg.Len() + signature; length > dns.MaxMsgSize-1 {
		return ansible.Fail(CodeRules, "change it in several tasks, each with some of its values; what is very large is better kept in a file (mode: file)",
			"%s: message-size: before and after the change its records take %d octets together, and an update can have %d",
			update.Changes[0].set(), length, dns.MaxMsgSize-1)
	}

	return nil
}

// size is what a change takes in a message at most: its prerequisite, what is deleted and what is added.
func (c Change) size() (octets, count int) {
	const header = 10 // type, class, TTL, length

	name := len(c.id().Name) + 1
	octets, count = 2*(name+header), 2

	if c.replaces() {
		octets += len(records.Types) * (name + header)
	}

	for _, set := range []*records.Set{c.Old, c.New} {
		if set == nil {
			continue
		}

		for _, value := range set.Values {
			octets += name + header + len(value) + 16 // an IPv6 address is longer than it may be written
			count++
		}
	}

	return octets, count
}
