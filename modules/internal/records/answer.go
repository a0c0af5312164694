// SPDX-License-Identifier: Apache-2.0

package records

import (
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

// Answers have records of more types than people write into zones: the SOA, and what a server makes by signing. They are shown
// and compared as zone files have them, too, but keep none of the rules of a zone.

// AnswerType gives the name under which records of a type are shown in answers: TYPE12345 where it has none.
func AnswerType(number uint16) string {
	if name := dns.TypeToString[number]; name != "" {
		return name
	}

	return typeName(number)
}

// MakeNumber reads the name of a type that a record can have. What only questions have is none, ANY above all: a server may answer
// it with as little as it likes (RFC 8482).
func MakeNumber(text string) (uint16, error) {
	kind := strings.ToUpper(text)

	number, known := dns.StringToType[kind]
	if !known {
		number, known = typeNumber(kind)
	}

	const firstMeta, lastMeta = 128, 255 // RFC 6895, 3.1

	if !known || number == dns.TypeNone || number == dns.TypeOPT || number >= firstMeta && number <= lastMeta {
		return 0, fmt.Errorf("%q: must be a type of record, for example A or TYPE65280", text)
	}

	return number, nil
}

// MakeAnswer makes a set of the values that an answer should have.
func MakeAnswer(entry Entry, origin string) (Set, error) {
	number := dns.StringToType[entry.Type]
	if typeNames[number] != "" || number == 0 {
		return MakeSet(entry, origin, 0)
	}

	set := Set{Name: entry.Name, Type: entry.Type}

	for _, given := range entry.Values {
		text, err := textOf(given)
		if err != nil {
			return set, err
		}

		value, err := parseAnswer(set.Name, number, strings.TrimSpace(text), origin)
		if err != nil {
			return set, err
		}

		set.Values = append(set.Values, value)
	}

	return set, checkValues(set)
}

func parseAnswer(name string, number uint16, text, origin string) (string, error) {
	const words = 7 // the parser takes missing ones for 0
	if number == dns.TypeSOA && len(strings.Fields(text)) != words && !strings.HasPrefix(text, `\#`) {
		return "", broken("rdata", "%q: an SOA has two names and five numbers (RFC 1035, 3.3.13)", text)
	}

	rr, err := parseData(name, number, text, origin)
	if err != nil {
		return "", err
	}

	rr, err = reread(rr)
	if err != nil {
		return "", broken("rdata", "%q: %v", text, err)
	}

	_, value, err := FromAnswer(rr)

	return value, err
}

// FromAnswer gives the name, type and value of a record of an answer.
func FromAnswer(rr dns.RR) (ID, string, error) {
	id, value, err := FromRR(rr)
	number := rr.Header().Rrtype

	if err == nil && typeNames[number] == "" && dns.TypeToString[number] != "" {
		id.Type = dns.TypeToString[number]

		if Readable(rr) {
			value = data(rr)
		}
	}

	return id, value, err
}
