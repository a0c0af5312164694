// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"github.com/thinkube/infra/modules/internal/records"
)

// What one message may hold. A message over TCP has up to 65535 octets; a signature comes on top, and some servers have lower
// limits on what they take at once.
const (
	mostOctets  = 48000
	mostRecords = 2000
)

// messages divides changes among messages. What belongs together stays together: all changes of one name (a CNAME takes the
// place of an address), its marker, and name servers with their addresses.
func messages(zone string, changes []Change) [][]Change {
	var (
		out             [][]Change
		now             []Change
		octets, records int
	)

	for _, group := range groups(zone, changes) {
		size, count := 0, 0

		for _, change := range group {
			s, c := change.size()
			size, count = size+s, count+c
		}

		if len(now) > 0 && (octets+size > mostOctets || records+count > mostRecords) {
			out, now, octets, records = append(out, now), nil, 0, 0
		}

		now = append(now, group...)
		octets, records = octets+size, records+count
	}

	if len(now) > 0 {
		out = append(out, now)
	}

	return out
}

// groups keeps the order of what is first in each.
func groups(zone string, changes []Change) [][]Change {
	of := map[string]string{} // a name's group is that of another name

	var leader func(name string) string

	leader = func(name string) string {
		if other, ok := of[name]; ok && other != name {
			return leader(other)
		}

		return name
	}

	join := func(a, b string) {
		if x, y := leader(a), leader(b); x != y {
			of[y] = x
		}
	}

	for _, change := range changes {
		if change.New != nil && change.New.Type == "NS" {
			for _, value := range change.New.Values {
				if target := change.New.Target(value); records.InZone(target, zone) {
					join(change.New.Name, target)
				}
			}
		}

		if marked := markedName(change.id().Name, zone); marked != "" {
			join(marked, change.id().Name)
		}
	}

	var out [][]Change

	at := map[string]int{}

	for _, change := range changes {
		name := leader(change.id().Name)

		index, known := at[name]
		if !known {
			index = len(out)
			at[name] = index
			out = append(out, nil)
		}

		out[index] = append(out[index], change)
	}

	return out
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
