// SPDX-License-Identifier: Apache-2.0

package records

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// ParseFile reads a zone file (RFC 1035, 5). Files that include others, and files with signatures, are refused: written anew
// they would lose something. What has no TTL, by itself or by $TTL, gets the given one; with 0 the SOA's minimum, which BIND takes
// when not even the SOA has one.
func ParseFile(text, zone string, missing uint32) (*SOA, []Set, error) {
	if missing == 0 {
		var said bool

		missing, said = fromMinimum(text, zone)
		if said {
			return parseFile(text, zone)
		}
	}

	soa, sets, err := parseFile(fmt.Sprintf("$TTL %d\n%s", missing, text), zone)
	if err != nil {
		_, _, plain := parseFile(text, zone)
		err = cmp.Or(plain, err) // which counts the lines as they are
	}

	return soa, sets, err
}

// fromMinimum gives the minimum of the SOA. It is the TTL of the SOA itself, and of all after it that have none, unless one was said up
// to there.
func fromMinimum(text, zone string) (minimum uint32, said bool) {
	first, second := firstSOA(text, zone, 1), firstSOA(text, zone, 2)
	if first == nil || second == nil || first.Hdr.Ttl == second.Hdr.Ttl {
		return 0, true
	}

	return first.Minttl, false
}

func firstSOA(text, zone string, ttl uint32) *dns.SOA {
	parser := dns.NewZoneParser(strings.NewReader(text), zone, "")
	parser.SetDefaultTTL(ttl)

	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		if soa, is := rr.(*dns.SOA); is {
			return soa
		}
	}

	return nil
}

func parseFile(text, zone string) (*SOA, []Set, error) {
	var (
		soa   *SOA
		found Collect
	)

	parser := dns.NewZoneParser(strings.NewReader(text), zone, "")
	parser.SetDefaultTTL(0) // not used; without one the parser refuses some records and not others

	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		header := rr.Header()
		name := dns.CanonicalName(header.Name)

		switch {
		case !InZone(name, zone):
			return nil, nil, fmt.Errorf("record %q is not in zone %q", header.Name, zone)
		case header.Class != dns.ClassINET:
			return nil, nil, fmt.Errorf("record %q has class %s", header.Name, dns.ClassToString[header.Class])
		case Signature(header.Rrtype):
			return nil, nil, fmt.Errorf("record %q %s: the file is signed; write the unsigned one", header.Name, dns.TypeToString[header.Rrtype])
		}

		rr, err := reread(rr)
		if err != nil {
			return nil, nil, fmt.Errorf("record %q: %w", header.Name, err)
		}

		if read, ok := rr.(*dns.SOA); ok {
			if soa != nil || name != zone {
				return nil, nil, fmt.Errorf("there is a second SOA, of %q", header.Name)
			}

			made := FromSOA(read)
			if made.Expire == 0 { // the parser takes missing numbers for 0
				return nil, nil, errors.New("the SOA is cut off, or its zone would expire at once")
			}

			soa = &made

			continue
		}

		id, value, err := FromRR(rr)
		if err != nil {
			return nil, nil, err
		}

		found.Add(id, rr.Header().Ttl, value)
	}

	err := parser.Err()
	if err == nil && soa == nil {
		err = errors.New("it has no SOA")
	}

	sets := found.Sets()
	for i := range sets {
		sets[i].Values = slices.Compact(sets[i].Values) // a record that comes twice is one (RFC 2181, 5)
	}

	return soa, sets, err
}

// RenderFile writes a zone file. Every name is absolute, so that no line depends on another.
func RenderFile(zone string, soa SOA, sets []Set) (string, error) {
	var out strings.Builder

	out.WriteString("; Written by thinkube.infra.dns_zone. Records that are added by hand are kept, comments are not.\n")
	fmt.Fprintf(&out, "%s\t%d\tIN\tSOA\t%s %s %d %d %d %d %d\n", zone, soa.TTL, soa.Primary, soa.Mail, soa.Serial, soa.Refresh, soa.Retry, soa.Expire, soa.Minimum)

	for _, set := range sets {
		for _, value := range set.Values {
			_, err := set.RR(value)
			if err != nil {
				return "", err
			}

			fmt.Fprintf(&out, "%s\t%d\tIN\t%s\t%s\n", set.Name, set.TTL, set.Type, value)
		}
	}

	return out.String(), nil
}
