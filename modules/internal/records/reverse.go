// SPDX-License-Identifier: Apache-2.0

package records

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// ReverseZone gives the zone that holds the names of a prefix's addresses: 192.168.1.0/24 is 1.168.192.in-addr.arpa.
func ReverseZone(text string) (string, error) {
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return "", broken("reverse-prefix", "%q: must be a prefix, for example 192.168.1.0/24", text)
	}

	step, top := 8, "in-addr.arpa."
	if prefix.Addr().Is6() {
		step, top = 4, "ip6.arpa."
	}

	if prefix.Masked() != prefix {
		return "", broken("reverse-prefix", "%q: has bits set after its length; did you mean %s?", text, prefix.Masked())
	}

	if prefix.Bits() == 0 || prefix.Bits()%step != 0 {
		return "", broken("reverse-prefix", "%q: a reverse zone ends at a multiple of %d bits; give the prefixes that it is made of", text, step)
	}

	full, err := dns.ReverseAddr(prefix.Addr().String())
	if err != nil {
		return "", broken("reverse-prefix", "%q: %v", text, err)
	}

	labels := strings.Split(strings.TrimSuffix(full, "."+top), ".")

	return strings.Join(append(labels[len(labels)-prefix.Bits()/step:], top), "."), nil
}

// Reverse derives PTR sets for a reverse zone from A and AAAA sets in the order in which they were written. An address that
// several names have gets the first of them. Wildcards and addresses outside the zone have none.
func Reverse(zone string, sets []Set, ttl uint32) []Set {
	var derived []Set

	seen := map[string]bool{}

	for _, set := range sets {
		if set.Type != "A" && set.Type != "AAAA" || strings.HasPrefix(set.Name, "*") {
			continue
		}

		for _, value := range set.Values {
			name, err := dns.ReverseAddr(value)
			if err != nil || !InZone(name, zone) || seen[name] {
				continue
			}

			seen[name] = true
			derived = append(derived, Set{Name: name, Type: "PTR", TTL: ttl, Values: []string{set.Name}})
		}
	}

	return derived
}

// Unless leaves out the sets that others already have.
func Unless(sets, others []Set) []Set {
	index := makeIndex(others)

	return slices.DeleteFunc(slices.Clone(sets), func(s Set) bool { return index.has(s.Name, s.Type) })
}

// SOA is what a zone says about itself. Durations are in seconds.
type SOA struct {
	Primary string `json:"primary"`
	Mail    string `json:"mail"` // as a domain name: hostmaster.example.com.
	Serial  uint32 `json:"serial"`
	Refresh uint32 `json:"refresh"`
	Retry   uint32 `json:"retry"`
	Expire  uint32 `json:"expire"`
	Minimum uint32 `json:"minimum"` // how long it is remembered that a name does not exist (RFC 2308)
	TTL     uint32 `json:"ttl"`
}

// FromSOA reads a record.
func FromSOA(rr *dns.SOA) SOA {
	return SOA{
		Primary: dns.CanonicalName(rr.Ns), Mail: dns.CanonicalName(rr.Mbox), Serial: rr.Serial, Refresh: rr.Refresh,
		Retry: rr.Retry, Expire: rr.Expire, Minimum: rr.Minttl, TTL: rr.Hdr.Ttl,
	}
}

// RR makes the record.
func (s SOA) RR(zone string) *dns.SOA {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: s.TTL},
		Ns:  s.Primary, Mbox: s.Mail, Serial: s.Serial, Refresh: s.Refresh, Retry: s.Retry, Expire: s.Expire, Minttl: s.Minimum,
	}
}

// SameButSerial tells whether two zones say the same about themselves. The serial is the server's: one that signs has its own.
func (s SOA) SameButSerial(other *SOA) bool {
	if other == nil {
		return false
	}

	s.Serial = other.Serial

	return s == *other
}

// SerialAfter tells whether a serial is newer than another (RFC 1982, 3.2). Serials that are half the circle apart are not
// comparable; neither is newer then.
func SerialAfter(a, b uint32) bool { return int32(a-b) > 0 }

// NextSerial gives the serial of a zone's next version: one more, leaving out 0, which some servers take for "none".
func NextSerial(serial uint32) uint32 {
	if serial+1 == 0 {
		return 1
	}

	return serial + 1
}

// MailName makes the domain name of a mail address (RFC 1035, 8): hostmaster@example.com is hostmaster.example.com., and dots
// before the @ are escaped.
func MailName(text, zone string) (string, error) {
	user, host, found := strings.Cut(text, "@")
	if !found {
		return MakeName(text, zone)
	}

	if user == "" || host == "" {
		return "", broken("soa-mail", "%q: must be a mail address or a domain name", text)
	}

	if !strings.HasSuffix(host, ".") {
		host += "."
	}

	name, err := MakeName(strings.ReplaceAll(user, ".", `\.`)+"."+host, zone)
	if err != nil {
		return "", fmt.Errorf("%q: %w", text, err)
	}

	return name, nil
}
