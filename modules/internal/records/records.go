// SPDX-License-Identifier: Apache-2.0

// Package records knows what stands in a DNS zone: names, types and values in one form that can be compared, the rules that
// they have to keep (each with an id), and how zones are written in files. It knows no server and no host.
package records

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	"golang.org/x/net/idna"
)

// Set is an RRset: all records of one name and type.
type Set struct {
	Name string `json:"name"` // canonical: lower case, ASCII, with the dot at its end
	Type string `json:"type"` // of Types, or TYPE12345
	TTL  uint32 `json:"ttl"`  // seconds
	// Values are the records' data as zone files have it, sorted. Data of a type that is not known, or that does not fit its
	// type, is written as RFC 3597 says: \# LENGTH HEX.
	Values []string `json:"values"`
	// Exact is set for TXT whose division into strings matters; otherwise texts are compared as a whole.
	Exact bool `json:"exact,omitempty"`
}

// ID names a set within a zone.
type ID struct{ Name, Type string }

// ID gives the set's name and type.
func (s Set) ID() ID { return ID{s.Name, s.Type} }

// String gives the set's name as people write it, and its type.
func (s Set) String() string { return Display(s.Name) + " " + s.Type }

// Types are those whose values can be given as zone files have them.
var Types = map[string]uint16{
	"A": dns.TypeA, "AAAA": dns.TypeAAAA, "CAA": dns.TypeCAA, "CNAME": dns.TypeCNAME, "DS": dns.TypeDS, "HTTPS": dns.TypeHTTPS,
	"LOC": dns.TypeLOC, "MX": dns.TypeMX, "NAPTR": dns.TypeNAPTR, "NS": dns.TypeNS, "PTR": dns.TypePTR, "SRV": dns.TypeSRV,
	"SSHFP": dns.TypeSSHFP, "SVCB": dns.TypeSVCB, "TLSA": dns.TypeTLSA, "TXT": dns.TypeTXT,
}

var typeNames = func() map[uint16]string {
	names := map[uint16]string{}
	for name, number := range Types {
		names[number] = name
	}

	return names
}()

// signatures are the types that a server makes itself when it signs a zone, and its own notes on that (TYPE65534 is BIND's).
var signatures = []uint16{
	dns.TypeRRSIG, dns.TypeNSEC, dns.TypeNSEC3, dns.TypeNSEC3PARAM, dns.TypeDNSKEY, dns.TypeCDS, dns.TypeCDNSKEY, dns.TypeZONEMD, 65534,
}

// Signature tells whether records of a type are the server's own, made by signing the zone.
func Signature(number uint16) bool { return slices.Contains(signatures, number) }

// typeName gives the name under which a type is shown and compared.
func typeName(number uint16) string {
	if name := typeNames[number]; name != "" {
		return name
	}

	return fmt.Sprintf("TYPE%d", number)
}

// typeNumber is the reverse of typeName; false for what is no type.
func typeNumber(name string) (uint16, bool) {
	if number, ok := Types[name]; ok {
		return number, true
	}

	var number uint16

	_, err := fmt.Sscanf(name, "TYPE%d", &number)

	return number, err == nil && name == fmt.Sprintf("TYPE%d", number)
}

// MakeName makes a canonical name of one that a person wrote: relative to the origin, "@" for the origin itself, or with a
// dot at its end. Labels in other scripts become ASCII (RFC 5891).
func MakeName(text, origin string) (string, error) {
	if text == "@" {
		return origin, nil
	}

	if text == "" {
		return "", broken("name-form", "the name is empty; the zone itself is written as @")
	}

	text, err := toASCII(text)
	if err != nil {
		return "", err
	}

	if !strings.HasSuffix(text, ".") || escapedDot(text) {
		if bare := strings.TrimSuffix(origin, "."); origin != "." && (strings.EqualFold(text, bare) || hasSuffixFold(text, "."+bare)) {
			return "", broken("trailing-dot", "%q ends in the zone's name, but without a dot at the end it is relative to the zone; write %q, or the name without the zone", text, text+".")
		}

		text += "."
		if origin != "." {
			text += origin
		}
	}

	return canonical(text)
}

// escapedDot tells whether the dot at the end is part of a label.
func escapedDot(text string) bool {
	before := strings.TrimSuffix(text, ".")

	return (len(before)-len(strings.TrimRight(before, `\`)))%2 == 1
}

func hasSuffixFold(text, suffix string) bool {
	return len(text) >= len(suffix) && strings.EqualFold(text[len(text)-len(suffix):], suffix)
}

// canonical brings an absolute name into the one form that is compared.
func canonical(name string) (string, error) {
	if isPlain(name) {
		return name, nil
	}

	return rewritten(name)
}

// isPlain tells whether an absolute name is in canonical form for sure, as most are: of small letters, digits, hyphens,
// underscores and asterisks, and not too long (RFC 1035, 3.1).
func isPlain(name string) bool {
	if len(name) > 254 || !strings.HasSuffix(name, ".") {
		return false
	}

	label := 0

	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '*':
			label++
		case c == '.' && label > 0 && label < 64:
			label = 0
		default:
			return false
		}
	}

	return true
}

// rewritten is canonical for any name.
func rewritten(name string) (string, error) {
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if label == "" && name != "." {
			return "", broken("name-form", "%q has an empty label", name)
		}
	}

	var packed [256]byte

	_, err := dns.PackDomainName(name, packed[:], 0, nil, false)
	if err != nil {
		return "", broken("name-length", "%q: a label may have 63 octets and a name 255 in all", name)
	}

	// Written and read again, escapes are those that names from a server have.
	back, _, err := dns.UnpackDomainName(packed[:], 0)
	if err != nil {
		return "", broken("name-form", "%q: %v", name, err)
	}

	return dns.CanonicalName(back), nil
}

// toASCII changes labels in other scripts.
func toASCII(name string) (string, error) {
	if isASCII(name) {
		return name, nil
	}

	labels := divide(name)
	for i, label := range labels {
		if isASCII(label) {
			continue
		}

		ascii, err := idna.Registration.ToASCII(strings.ToLower(label))
		if err != nil {
			return "", broken("idn", "%q: label %q: %v", name, label, err)
		}

		labels[i] = ascii
	}

	return strings.Join(labels, "."), nil
}

// divide gives the labels of a name, also where it is divided by the dots of other scripts (RFC 3490, 3.1). An escaped dot is part of
// its label; an empty label stays, for others to refuse, as that at the end of an absolute name does.
func divide(name string) []string {
	var (
		labels  []string
		label   strings.Builder
		escaped bool
	)

	for _, r := range name {
		if !escaped && strings.ContainsRune(".。．｡", r) {
			labels = append(labels, label.String())
			label.Reset()

			continue
		}

		label.WriteRune(r)
		escaped = !escaped && r == '\\'
	}

	return append(labels, label.String())
}

func isASCII(text string) bool {
	return strings.IndexFunc(text, func(r rune) bool { return r > 127 }) < 0
}

// Display gives a name for people: without the dot at its end, and with the other script beside the ASCII form.
func Display(name string) string {
	short := strings.TrimSuffix(name, ".")
	if short == "" {
		return "."
	}

	if !strings.Contains(short, "xn--") {
		return short
	}

	local, err := idna.Display.ToUnicode(short)
	if err != nil || local == short {
		return short
	}

	return fmt.Sprintf("%s (%s)", local, short)
}

// InZone tells whether a canonical name is the zone or below it.
func InZone(name, zone string) bool {
	return name == zone || zone == "." || strings.HasSuffix(name, "."+zone)
}

// FromRR gives the name, type and value of a record from a server.
func FromRR(rr dns.RR) (ID, string, error) {
	header := rr.Header()
	id := ID{header.Name, typeName(header.Rrtype)}

	if !isPlain(id.Name) {
		id.Name = dns.CanonicalName(id.Name)
	}

	if typeNames[header.Rrtype] != "" {
		return id, data(rr), nil
	}

	opaque := new(dns.RFC3597)

	err := opaque.ToRFC3597(rr)
	if err != nil {
		return id, "", fmt.Errorf("record %s %s: %w", Display(id.Name), id.Type, err)
	}

	return id, Opaque(mustHex(opaque.Rdata)), nil
}

func mustHex(text string) []byte {
	octets, _ := hex.DecodeString(text) // the library's own text

	return octets
}

// data is the text of a record after its header.
func data(rr dns.RR) string {
	if address, ok := rr.(*dns.A); ok {
		return address.A.String()
	}

	return rr.String()[len(rr.Header().String()):]
}

// Opaque writes data as RFC 3597 says.
func Opaque(octets []byte) string {
	if len(octets) == 0 {
		return `\# 0`
	}

	return fmt.Sprintf(`\# %d %x`, len(octets), octets)
}

// TypeOf gives the name under which records of a type are kept.
func TypeOf(number uint16) string { return typeName(number) }

// RRs gives the set's records.
func (s Set) RRs() ([]dns.RR, error) {
	rrs := make([]dns.RR, 0, len(s.Values))

	for _, value := range s.Values {
		rr, err := s.RR(value)
		if err != nil {
			return nil, err
		}

		rrs = append(rrs, rr)
	}

	return rrs, nil
}

// RR gives the record of one of the set's values.
func (s Set) RR(value string) (dns.RR, error) {
	number, ok := typeNumber(s.Type)
	if !ok {
		return nil, fmt.Errorf("%q is no type", s.Type)
	}

	header := dns.RR_Header{Name: s.Name, Rrtype: number, Class: dns.ClassINET, Ttl: s.TTL}

	if rest, ok := strings.CutPrefix(value, `\# `); ok {
		_, digits, _ := strings.Cut(rest, " ")

		return &dns.RFC3597{Hdr: header, Rdata: strings.ReplaceAll(digits, " ", "")}, nil
	}

	rr, err := parseData(s.Name, number, value, s.Name)
	if err != nil {
		return nil, err
	}

	*rr.Header() = header

	return rr, nil
}

// key is a value in the form that is compared: names in it without regard to case, texts as a whole unless their division
// matters.
func (s Set) key(value string, exact bool) string {
	switch s.Type {
	case "CNAME", "NS", "PTR", "MX", "SRV", "SOA", "DNAME", "NSEC":
		return strings.ToLower(value)
	case "NAPTR", "SVCB", "HTTPS":
		return lowerName(s.Type, value)
	case "TXT":
		if !exact && strings.HasPrefix(value, `"`) {
			return joined(value)
		}
	}

	return value
}

// joined gives the text of quoted strings as one.
func joined(value string) string {
	var (
		out             strings.Builder
		inside, escaped bool
	)

	for i := range len(value) {
		switch c := value[i]; {
		case c == '"' && !escaped:
			inside = !inside
		case inside:
			out.WriteByte(c)
			escaped = c == '\\' && !escaped
		}
	}

	return out.String()
}

// lowerName lowers the one word of a value that is a name.
func lowerName(kind, value string) string {
	words := strings.Split(value, " ")
	at := 1

	if kind == "NAPTR" {
		at = len(words) - 1
	}

	if at < len(words) {
		words[at] = strings.ToLower(words[at])
	}

	return strings.Join(words, " ")
}

// Same tells whether two sets of one ID have the same records.
func (s Set) Same(other Set) bool {
	return s.TTL == other.TTL && s.SameValues(other)
}

// SameValues leaves the TTL out.
func (s Set) SameValues(other Set) bool {
	return len(s.Values) == len(other.Values) && len(s.Without(other)) == 0
}

// Without gives the values of s that the other set does not have.
func (s Set) Without(other Set) []string {
	if slices.Equal(s.Values, other.Values) {
		return nil
	}

	exact := s.Exact || other.Exact
	has := map[string]bool{}

	for _, value := range other.Values {
		has[other.key(value, exact)] = true
	}

	var missing []string

	for _, value := range s.Values {
		if !has[s.key(value, exact)] {
			missing = append(missing, value)
		}
	}

	return missing
}

// Compare tells which of two sets comes first in the order of zone files: the zone itself first, then by name, each name after
// those above it, and by type.
func Compare(a, b ID) int {
	if a == b {
		return 0
	}

	return strings.Compare(a.sortKey(), b.sortKey())
}

// SortSets brings sets into the order of Compare. Those of the same name and type stay in theirs.
func SortSets(sets []Set) {
	type place struct {
		key string
		at  int
	}

	places := make([]place, len(sets))
	for i, set := range sets {
		places[i] = place{set.ID().sortKey(), i}
	}

	compare := func(a, b place) int { return cmp.Or(strings.Compare(a.key, b.key), a.at-b.at) }
	if slices.IsSortedFunc(places, compare) { // as servers send their zones
		return
	}

	slices.SortFunc(places, compare)

	sorted := make([]Set, len(sets))
	for i, p := range places {
		sorted[i] = sets[p.at]
	}

	copy(sets, sorted)
}

// sortKey are the labels from the right (RFC 4034, 6.1) and the type. The octet 0 ends a label: it is less than all that a
// label can have, in which it is written as an escape.
func (id ID) sortKey() string {
	var room [128]byte

	key, end := room[:0], len(strings.TrimSuffix(id.Name, "."))

	for at := end - 1; at >= -1; at-- {
		if at >= 0 && (id.Name[at] != '.' || escapedDot(id.Name[:at+1])) {
			continue
		}

		key = append(key, id.Name[at+1:end]...)
		key = append(key, 0)
		end = at
	}

	key = append(key, 0)

	return string(append(key, id.Type...))
}

// Collect groups single records into sets, as they come from a server or a file.
type Collect struct{ sets []Set }

// MakeCollect makes one for about so many sets.
func MakeCollect(expected int) Collect { return Collect{sets: make([]Set, 0, expected)} }

// Add takes one record.
func (c *Collect) Add(id ID, ttl uint32, value string) {
	c.sets = append(c.sets, Set{Name: id.Name, Type: id.Type, TTL: ttl, Values: []string{value}})
}

// Sets gives what came, in order.
func (c *Collect) Sets() []Set {
	SortSets(c.sets)

	sets := c.sets[:0]

	for _, set := range c.sets {
		if len(sets) == 0 || sets[len(sets)-1].ID() != set.ID() {
			sets = append(sets, set)

			continue
		}

		last := &sets[len(sets)-1]
		last.Values = append(last.Values, set.Values...)
		last.TTL = min(last.TTL, set.TTL) // they should not differ (RFC 2181, 5.2)
	}

	for i := range sets {
		slices.Sort(sets[i].Values)
	}

	c.sets = sets

	return sets
}

// Count is the number of records in sets.
func Count(sets []Set) int {
	count := 0
	for _, set := range sets {
		count += len(set.Values)
	}

	return count
}

// address reads an address of one family.
func address(text string, six bool) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(text)

	return addr, err == nil && addr.Is6() == six && addr.Zone() == ""
}
