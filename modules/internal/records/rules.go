// SPDX-License-Identifier: Apache-2.0

package records

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// targetAt is which word of a value is the name of a host or another name; -1 the last.
var targetAt = map[string]int{"CNAME": 0, "NS": 0, "PTR": 0, "MX": 1, "SRV": 3, "NAPTR": -1, "SVCB": 1, "HTTPS": 1}

// checkTarget makes sure that the name in a value says whether it is relative: one with a dot in it must end in one. It gives
// the text with names of other scripts in ASCII.
func checkTarget(kind, text, zone string) (string, error) {
	at, ok := targetAt[kind]
	words := strings.Fields(text)

	if !ok || at >= len(words) || len(words) == 0 {
		return text, nil // without target; the parser says so
	}

	if at < 0 {
		at = len(words) - 1
	}

	name := words[at]
	if strings.Contains(name, ".") && !strings.HasSuffix(name, ".") {
		return "", broken("trailing-dot", "%q: a name with dots must end in one: write %q, or, if it is in this zone, %q", name, name+".", name+"."+zone)
	}

	ascii, err := toASCII(name)
	if err != nil || ascii == name {
		return text, err
	}

	words[at] = ascii

	return strings.Join(words, " "), nil
}

// Target gives the canonical name that a value of the set refers to, "" if there is none.
func (s Set) Target(value string) string {
	at, ok := targetAt[s.Type]
	if !ok || strings.HasPrefix(value, `\#`) {
		return ""
	}

	words := strings.Split(value, " ")
	if at < 0 {
		at = len(words) - 1
	}

	if at >= len(words) {
		return ""
	}

	return strings.ToLower(words[at])
}

func checkCAA(caa *dns.CAA) error {
	if caa.Flag != 0 && caa.Flag != 128 {
		return broken("caa-flags", "flags %d: must be 0 or 128 (RFC 8659, 4.1)", caa.Flag)
	}

	if caa.Tag == "" || strings.Trim(strings.ToLower(caa.Tag), "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
		return broken("caa-tag", "tag %q: must be letters and digits (RFC 8659, 4.1)", caa.Tag)
	}

	known := []string{"issue", "issuewild", "iodef", "contactemail", "contactphone", "issuemail", "issuevmc"}
	if !slices.Contains(known, strings.ToLower(caa.Tag)) {
		return broken("caa-tag", "tag %q: must be one of %s", caa.Tag, strings.Join(known, ", "))
	}

	return nil
}

// checkValues judges the values of one set together.
func checkValues(set Set) error {
	if len(set.Values) < 2 {
		return nil
	}

	var errs []error

	seen := make(map[string]bool, len(set.Values))

	for _, value := range set.Values {
		key := set.key(value, true)
		if seen[key] {
			errs = append(errs, broken("duplicate", "value %q comes twice", value))
		}

		seen[key] = true
	}

	if set.Type == "CNAME" {
		errs = append(errs, broken("cname-single", "a CNAME has one value, not %d", len(set.Values)))
	}

	if set.Type == "MX" && slices.ContainsFunc(set.Values, func(v string) bool { return strings.HasSuffix(v, " .") }) {
		errs = append(errs, broken("mx-null", `"0 ." says that there is no mail and stands alone (RFC 7505)`))
	}

	where := set.String()
	for i, err := range errs {
		errs[i] = located(where, err)
	}

	return errors.Join(errs...)
}

// Merge puts entries of one name and type together, and reports what they contradict each other in. The sets come back in order,
// in the list that was given.
func Merge(sets []Set) ([]Set, error) {
	var errs []error

	SortSets(sets)

	merged := sets[:0]

	for _, set := range sets {
		if len(merged) == 0 || merged[len(merged)-1].ID() != set.ID() {
			merged = append(merged, set)

			continue
		}

		first := &merged[len(merged)-1]
		if first.TTL != set.TTL {
			errs = append(errs, located(set.String(), broken("one-ttl", "has ttl %d and %d; all records of one name and type have the same (RFC 2181, 5.2)", first.TTL, set.TTL)))
		}

		first.Values = append(slices.Clone(first.Values), set.Values...)
		first.Exact = first.Exact || set.Exact
		slices.Sort(first.Values)

		err := checkValues(*first)
		if err != nil {
			errs = append(errs, err)
		}
	}

	return merged, errors.Join(append(errs, checkCNAMEs(merged, nil))...)
}

// checkCNAMEs finds names with a CNAME and something else. What DNSSEC makes may be beside it, and is in no Set. "only" are
// the names that are judged; nil: all.
func checkCNAMEs(sets []Set, only map[string]bool) error {
	var errs []error

	for begin := 0; begin < len(sets); {
		end := begin + 1
		for end < len(sets) && sets[end].Name == sets[begin].Name {
			end++
		}

		group := sets[begin:end]
		begin = end

		if len(group) < 2 || only != nil && !only[group[0].Name] {
			continue
		}

		if slices.ContainsFunc(group, func(s Set) bool { return s.Type == "CNAME" }) {
			var types []string
			for _, set := range group {
				types = append(types, set.Type)
			}

			errs = append(errs, located(Display(group[0].Name), broken("cname-alone", "has %s; a name with a CNAME has nothing else (RFC 1034, 3.6.2)", strings.Join(types, ", "))))
		}
	}

	return errors.Join(errs...)
}

// CheckZone judges a whole zone as it will be, in order, about the names that are asked for: what others have made wrong
// elsewhere is theirs.
func CheckZone(zone string, sets []Set, names map[string]bool) error {
	index := makeIndex(sets)
	errs := []error{checkCNAMEs(sets, names)}

	for _, set := range sets {
		if set.Type != "NS" && set.Type != "MX" && set.Type != "SRV" {
			continue
		}

		for _, value := range set.Values {
			target := set.Target(value)
			if target == "." || !InZone(target, zone) || !names[set.Name] && !names[target] {
				continue
			}

			if index.has(target, "CNAME") {
				errs = append(errs, located(set.String(), broken("target-not-cname", "%s is a CNAME; the target of %s must have addresses itself (RFC 2181, 10.3)", Display(target), set.Type)))
			} else if set.Type == "NS" && !index.resolves(sets, target, zone, set.Name) {
				errs = append(errs, located(set.String(), broken("ns-glue", "%s is in this zone and has neither A nor AAAA, so nobody could reach it", Display(target))))
			}
		}
	}

	return errors.Join(errs...)
}

// index finds sets by name and type.
type index map[ID]struct{}

func makeIndex(sets []Set) index {
	found := make(index, len(sets))
	for _, set := range sets {
		found[set.ID()] = struct{}{}
	}

	return found
}

func (i index) has(name, kind string) bool {
	_, ok := i[ID{name, kind}]

	return ok
}

func (i index) hasAddress(name string) bool { return i.has(name, "A") || i.has(name, "AAAA") }

// exists tells whether there is something at a name or below it, in sets that are in order.
func exists(sets []Set, name string) bool {
	at, found := slices.BinarySearchFunc(sets, ID{Name: name}, func(set Set, id ID) int { return Compare(set.ID(), id) })

	return found || at < len(sets) && (sets[at].Name == name || strings.HasSuffix(sets[at].Name, "."+name))
}

// resolves tells whether a name has addresses, also by a wildcard, or lies below a delegation other than the one that asks:
// then its servers know it.
func (i index) resolves(sets []Set, name, zone, asks string) bool {
	if i.hasAddress(name) {
		return true
	}

	// A wildcard stands for names that do not exist, right under the nearest one that does, and never below a delegation
	// (RFC 4592, 2.2.1 and 4.2).
	wild := true

	for up := name; up != zone && up != ""; {
		delegated := i.has(up, "NS")
		if delegated && up != asks {
			return true
		}

		_, rest, found := strings.Cut(up, ".")
		if !found {
			return false
		}

		wild = wild && !delegated && !exists(sets, up)
		if wild && (rest == zone || rest != asks) && i.hasAddress("*."+rest) {
			return true
		}

		up = rest
	}

	return false
}

// CheckZoneName judges the name of a zone.
func CheckZoneName(text string) (string, error) {
	if !strings.HasSuffix(text, ".") {
		text += "."
	}

	name, err := MakeName(text, ".")
	if err == nil && strings.Contains(name, "*") {
		err = broken("name-form", "%q: a zone has no wildcard in its name", text)
	}

	if err != nil {
		return "", fmt.Errorf("name: %w", err)
	}

	return name, nil
}
