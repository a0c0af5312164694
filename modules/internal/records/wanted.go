// SPDX-License-Identifier: Apache-2.0

package records

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// Entry is what a person writes: one name and type with its values.
type Entry struct {
	Name string
	Type string
	// Values are texts as zone files have them. For TXT each is the plain text, however long; a list gives the strings that
	// it is made of.
	Values []any
	TTL    *int // nil: the zone's
}

// RuleError is a rule that does not hold.
type RuleError struct {
	Rule  string
	Where string // "www.example.com A", or "" while that is not known
	Text  string
}

func (e *RuleError) Error() string {
	if e.Where == "" {
		return fmt.Sprintf("%s: %s", e.Rule, e.Text)
	}

	return fmt.Sprintf("%s: %s: %s", e.Where, e.Rule, e.Text)
}

func broken(rule, format string, args ...any) error {
	return &RuleError{Rule: rule, Text: fmt.Sprintf(format, args...)}
}

// located says whose rule it is.
func located(where string, err error) error {
	var rule *RuleError
	if errors.As(err, &rule) && rule.Where == "" {
		return &RuleError{Rule: rule.Rule, Where: where, Text: rule.Text}
	}

	return err
}

// MaxTTL is the largest that means what it says (RFC 2181, 8).
const MaxTTL = 1<<31 - 1

// MakeSet makes a set of what a person wrote, and reports every rule that it breaks by itself. Sets without values are
// allowed: they name what is to be absent.
func MakeSet(entry Entry, zone string, ttl uint32) (Set, error) {
	set := Set{Type: strings.ToUpper(entry.Type), TTL: ttl}

	var errs []error

	note := func(err error) {
		if err != nil {
			errs = append(errs, located(fmt.Sprintf("%s %s", entry.Name, entry.Type), err))
		}
	}

	number, err := checkType(set.Type)
	note(err)

	name, nameErr := MakeName(entry.Name, zone)
	note(nameErr)

	set.Name = name

	if nameErr == nil {
		note(checkOwner(name, set.Type, zone))
	}

	if entry.TTL != nil {
		if *entry.TTL < 0 || *entry.TTL > MaxTTL {
			note(broken("ttl-range", "ttl %d: must be 0 to %d", *entry.TTL, MaxTTL))
		} else {
			set.TTL = uint32(*entry.TTL)
		}
	}

	if err != nil || nameErr != nil {
		return set, errors.Join(errs...)
	}

	for _, given := range entry.Values {
		value, exact, err := makeValue(set, number, given, zone)
		note(err)

		if err == nil {
			set.Values = append(set.Values, value)
			set.Exact = set.Exact || exact
		}
	}

	note(checkValues(set))
	slices.Sort(set.Values)

	return set, errors.Join(errs...)
}

func checkType(kind string) (uint16, error) {
	number, known := typeNumber(kind)
	if !known {
		number = dns.StringToType[kind]
	}

	switch {
	case Signature(number):
		return 0, broken("dnssec-type", "records of type %s are made by the server that signs the zone", kind)
	case number == dns.TypeSOA:
		return 0, broken("soa-input", "the SOA is given with the option soa, and its serial is kept by itself")
	case number == 0 || number == dns.TypeOPT || number == dns.TypeTSIG || number == dns.TypeTKEY || number >= 128 && number <= 255:
		return 0, broken("type-unknown", "%q is no type of record", kind)
	case known && typeName(number) != kind:
		return 0, broken("type-unknown", "%s is written as %s", kind, typeName(number))
	case !known:
		return 0, broken("type-unknown", "type %s is taken as TYPE%d, with values as RFC 3597 has them: \\# LENGTH HEX", kind, number)
	}

	return number, nil
}

// checkOwner judges a name that is to have records.
func checkOwner(name, kind, zone string) error {
	if !InZone(name, zone) {
		return broken("bailiwick", "%q is not in zone %q", name, zone)
	}

	if strings.Contains(name, ".*") && slices.Contains(dns.SplitDomainName(name)[1:], "*") {
		return broken("wildcard-leftmost", "%q: only the leftmost label can be a wildcard", name)
	}

	if kind == "CNAME" && name == zone {
		return broken("cname-apex", "the zone itself has SOA and NS records and so cannot be a CNAME (RFC 1034, 3.6.2)")
	}

	if kind == "DS" && name == zone {
		return broken("ds-apex", "DS stands in the zone above (RFC 4035, 2.4)")
	}

	if kind == "SRV" && !isService(dns.SplitDomainName(name)) {
		return broken("srv-name", "%q: must begin with the service and the protocol, for example _sip._tcp (RFC 2782)", name)
	}

	return nil
}

// isService tells whether labels begin with a service and a protocol.
func isService(labels []string) bool {
	return len(labels) > 1 && underscored(labels[0]) && underscored(labels[1])
}

func underscored(label string) bool { return len(label) > 1 && label[0] == '_' }

// makeValue brings one value into canonical form.
func makeValue(set Set, number uint16, given any, zone string) (value string, exact bool, err error) {
	if list, ok := given.([]any); ok {
		if set.Type != "TXT" {
			return "", false, broken("rdata", "%v: only a TXT record is made of several strings", given)
		}

		value, err = txtOf(list)

		return value, true, err
	}

	text, err := textOf(given)

	switch {
	case err != nil:
		return "", false, err
	case set.Type == "TXT":
		value, err = txt(text)
	case strings.HasPrefix(text, `\#`):
		value, err = parseOpaque(set.Name, number, text)
	case typeNames[number] == "":
		err = broken("rdata", "%q: a value of type %s is written as RFC 3597 says: \\# LENGTH HEX", text, set.Type)
	default:
		value, err = parseValue(set, number, text, zone)
	}

	return value, false, err
}

func textOf(given any) (string, error) {
	switch v := given.(type) {
	case string:
		return v, nil
	case nil, []any, map[string]any:
		return "", broken("rdata", "%v: a value is text", given)
	}

	return fmt.Sprint(given), nil
}

// maxString is what one string of a TXT record can have, in octets (RFC 1035, 3.3).
const maxString = 255

// txt makes the value of one text, divided where it has to be.
func txt(text string) (string, error) {
	if len(text) >= 2 && text[0] == '"' && text[len(text)-1] == '"' {
		return "", broken("txt-quotes", "%s: is the text itself, without the quotes of a zone file; a text that has quotes is given as a list of one string", text)
	}

	var parts []string

	for len(text) > maxString {
		parts = append(parts, text[:maxString])
		text = text[maxString:]
	}

	return quoteAll(append(parts, text))
}

// txtOf makes the value of given strings.
func txtOf(list []any) (string, error) {
	var parts []string

	for _, item := range list {
		text, err := textOf(item)
		if err != nil {
			return "", err
		}

		if len(text) > maxString {
			return "", broken("txt-string", "a string has %d octets, more than %d; give the text as a whole, and it is divided", len(text), maxString)
		}

		parts = append(parts, text)
	}

	if parts == nil {
		return "", broken("txt-string", "there must be a string")
	}

	return quoteAll(parts)
}

// maxData is what a record can hold, in octets; the message around it needs the rest.
const maxData = 65000

func quoteAll(parts []string) (string, error) {
	total := 0

	for i, part := range parts {
		total += len(part) + 1
		parts[i] = quote(part)
	}

	if total > maxData {
		return "", broken("rdata-length", "the text has %d octets, more than %d", total, maxData)
	}

	return strings.Join(parts, " "), nil
}

// quote writes a string as the library shows those that came from a server.
func quote(text string) string {
	var out strings.Builder

	out.WriteByte('"')

	for i := range len(text) {
		switch c := text[i]; {
		case c == '"' || c == '\\':
			out.WriteByte('\\')
			out.WriteByte(c)
		case c < ' ' || c > '~':
			fmt.Fprintf(&out, `\%03d`, c)
		default:
			out.WriteByte(c)
		}
	}

	out.WriteByte('"')

	return out.String()
}

// parseValue reads data as zone files have it.
func parseValue(set Set, number uint16, text, zone string) (string, error) {
	text = strings.TrimSpace(text)

	if set.Type == "A" || set.Type == "AAAA" {
		addr, ok := address(text, set.Type == "AAAA")
		if !ok {
			return "", broken("rdata", "%q is no %s address", text, map[string]string{"A": "IPv4", "AAAA": "IPv6"}[set.Type])
		}

		if addr.Is4In6() {
			return "::ffff:" + addr.Unmap().String(), nil // as the library has it
		}

		return addr.String(), nil
	}

	text, err := checkTarget(set.Type, text, zone)
	if err != nil {
		return "", err
	}

	rr, err := parseData(set.Name, number, text, zone)
	if err != nil {
		return "", err
	}

	if caa, ok := rr.(*dns.CAA); ok {
		err = checkCAA(caa)
		if err != nil {
			return "", err
		}
	}

	rr, err = reread(rr)
	if err != nil {
		return "", broken("rdata", "%q: %v", text, err)
	}

	return data(rr), nil
}

// parseData reads the data of one record. Nothing but that may be in the text: no comment, no second record, no directive.
func parseData(name string, number uint16, text, origin string) (dns.RR, error) {
	if strings.ContainsAny(text, "\n\r\x00") {
		return nil, broken("rdata", "%q: must be on one line", text)
	}

	kind := dns.TypeToString[number]
	parser := dns.NewZoneParser(strings.NewReader(name+" 0 IN "+kind+" "+text+"\n"), origin, "")

	rr, ok := parser.Next()
	if !ok || rr == nil || rr.Header().Rrtype != number {
		reason := "it is empty"

		var parse *dns.ParseError
		if errors.As(parser.Err(), &parse) {
			reason = strings.TrimPrefix(parse.Error(), "dns: ")
		}

		return nil, broken("rdata", "%q is no value of type %s: %s", text, typeName(number), reason)
	}

	if parser.Comment() != "" {
		return nil, broken("rdata", "%q: what stands after a semicolon would be a comment", text)
	}

	return rr, nil
}

// reread brings a record into the form that it has when it comes from a server.
func reread(rr dns.RR) (dns.RR, error) {
	packed := make([]byte, dns.Len(rr)+300)

	end, err := dns.PackRR(rr, packed, 0, nil, false)
	if err != nil {
		return nil, err
	}

	back, _, err := dns.UnpackRR(packed[:end], 0)
	if err != nil {
		return nil, err
	}

	// The parser takes records without data, as updates have them, and some with half of it.
	if number := back.Header().Rrtype; (typeNames[number] != "" || number == dns.TypeSOA) && !Readable(back) {
		return nil, errors.New("its data is not complete")
	}

	return back, nil
}

// Readable tells whether the text of a record gives the record again. That of a few that the library takes does not.
func Readable(rr dns.RR) bool {
	header := rr.Header()

	switch header.Rrtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeSOA:
		return header.Rdlength > 0
	}

	text := data(rr)
	if strings.TrimSpace(text) == "" || header.Rdlength == 0 {
		return false
	}

	again, err := parseData(header.Name, header.Rrtype, text, ".")

	return err == nil && data(again) == text
}

// parseOpaque reads RFC 3597's form. Data of a type that is known is read as that.
func parseOpaque(name string, number uint16, text string) (string, error) {
	words := strings.Fields(text)
	digits := strings.ToLower(strings.Join(words[min(2, len(words)):], ""))

	var length int

	if len(words) < 2 || words[0] != `\#` || strings.Trim(digits, "0123456789abcdef") != "" || len(digits)%2 != 0 {
		return "", broken("rdata", "%q: must be \\# LENGTH HEX (RFC 3597, 5)", text)
	}

	_, err := fmt.Sscanf(words[1]+" ", "%d ", &length)
	if err != nil || length != len(digits)/2 || length > maxData {
		return "", broken("rdata", "%q: the length is not that of the data", text)
	}

	octets := mustHex(digits)

	if typeNames[number] == "" {
		return Opaque(octets), nil
	}

	header := dns.RR_Header{Name: name, Rrtype: number, Class: dns.ClassINET, Rdlength: uint16(length)}

	rr, _, err := dns.UnpackRRWithHeader(header, octets, 0)
	if err != nil {
		return "", broken("rdata", "%q is no value of type %s: %v", text, typeName(number), err)
	}

	return data(rr), nil
}
