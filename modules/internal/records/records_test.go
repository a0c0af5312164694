// SPDX-License-Identifier: Apache-2.0

package records

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const zone = "example.com."

func one(t *testing.T, name, kind string, values ...any) Set {
	t.Helper()

	set, err := MakeSet(Entry{Name: name, Type: kind, Values: values}, zone, 3600)
	require.NoError(t, err)

	return set
}

func TestEveryTypeInCanonicalForm(t *testing.T) {
	for _, each := range []struct{ name, kind, given, want string }{
		{"www", "A", "192.0.2.1", "192.0.2.1"},
		{"www", "AAAA", "2001:DB8:0::0001", "2001:db8::1"},
		{"www", "CNAME", "Other", "Other.example.com."},
		{"@", "MX", "010   Mail.Example.NET.", "10 Mail.Example.NET."},
		{"@", "MX", "0 .", "0 ."},
		{"sub", "NS", "ns1", "ns1.example.com."},
		{"@", "TXT", "v=spf1 -all", `"v=spf1 -all"`},
		{"@", "TXT", `say "hi" \ there`, `"say \"hi\" \\ there"`},
		{"@", "TXT", "grün", `"gr\195\188n"`},
		{"@", "TXT", "", `""`},
		{"_sip._tcp", "SRV", "1 2 5060 sip", "1 2 5060 sip.example.com."},
		{"@", "CAA", `0 issue "ca.example.net; policy=ev"`, `0 issue "ca.example.net; policy=ev"`},
		{"1", "PTR", "host.example.net.", "host.example.net."},
		{"www", "SSHFP", "4 2 ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789", "4 2 ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789"},
		{"_443._tcp.www", "TLSA", "3 1 1 ab cd", "3 1 1 abcd"},
		{"@", "NAPTR", `100 10 "S" "SIP+D2U" "!^.*$!x!" _sip._udp`, ""},
		{"sub", "DS", "12345 13 2 ABCD", "12345 13 2 ABCD"},
		{"www", "SVCB", "1 . alpn=h2 port=8443", `1 . alpn="h2" port="8443"`},
		{"www", "HTTPS", "1 svc.example.net. alpn=h3,h2 ipv4hint=192.0.2.1", `1 svc.example.net. alpn="h3,h2" ipv4hint="192.0.2.1"`},
		{"here", "LOC", "52 22 23.000 N 4 53 32.000 E -2.00m 0.00m 10000m 10m", "52 22 23.000 N 04 53 32.000 E -2m 0.00m 10000m 10m"},
		{"odd", "TYPE65280", `\# 4 0A 00 0001`, `\# 4 0a000001`},
		{"odd", "TYPE65280", `\# 0`, `\# 0`},
		{"www", "A", `\# 4 c0000201`, "192.0.2.1"},
	} {
		t.Run(each.kind+" "+each.given, func(t *testing.T) {
			if each.want == "" { // a name in the last place must say whether it is relative
				_, err := MakeSet(Entry{Name: each.name, Type: each.kind, Values: []any{each.given}}, zone, 60)
				require.ErrorContains(t, err, "trailing-dot")

				return
			}

			set := one(t, each.name, each.kind, each.given)
			assert.Equal(t, []string{each.want}, set.Values)

			// As it comes back from a server it is the same.
			rrs, err := set.RRs()
			require.NoError(t, err)

			back, err := reread(rrs[0])
			require.NoError(t, err)

			id, value, err := FromRR(back)
			require.NoError(t, err)
			assert.Equal(t, set.ID(), id)
			assert.True(t, set.Same(Set{Name: id.Name, Type: id.Type, TTL: set.TTL, Values: []string{value}}), "%q", value)
		})
	}
}

func TestRulesHaveIDs(t *testing.T) {
	long := strings.Repeat("a", 64)

	for _, each := range []struct {
		rule, name, kind string
		values           []any
	}{
		{"name-form", "", "A", []any{"192.0.2.1"}},
		{"name-form", "a..b", "A", []any{"192.0.2.1"}},
		{"name-length", long, "A", []any{"192.0.2.1"}},
		{"name-length", strings.Repeat("abcdefgh.", 30) + "x", "A", []any{"192.0.2.1"}},
		{"trailing-dot", "www.example.com", "A", []any{"192.0.2.1"}},
		{"trailing-dot", "example.com", "A", []any{"192.0.2.1"}},
		{"trailing-dot", "www", "CNAME", []any{"www.example.net"}},
		{"trailing-dot", "@", "MX", []any{"10 mail.example.net"}},
		{"bailiwick", "www.example.net.", "A", []any{"192.0.2.1"}},
		{"bailiwick", "badexample.com.", "A", []any{"192.0.2.1"}},
		{"wildcard-leftmost", "a.*.b", "A", []any{"192.0.2.1"}},
		{"name-form", "a..münchen", "A", []any{"192.0.2.1"}},
		{"name-form", "münchen。.b", "A", []any{"192.0.2.1"}},
		{"name-form", ".münchen", "A", []any{"192.0.2.1"}},
		{"idn", "xn--a-\u00e4", "A", []any{"192.0.2.1"}},
		{"type-unknown", "www", "NOPE", []any{"1"}},
		{"type-unknown", "www", "URI", []any{"1"}},
		{"type-unknown", "www", "TYPE1", []any{"192.0.2.1"}},
		{"type-unknown", "www", "ANY", []any{"1"}},
		{"dnssec-type", "www", "RRSIG", []any{"x"}},
		{"dnssec-type", "@", "DNSKEY", []any{"x"}},
		{"dnssec-type", "@", "TYPE65534", []any{`\# 0`}},
		{"soa-input", "@", "SOA", []any{"x"}},
		{"cname-apex", "@", "CNAME", []any{"www"}},
		{"cname-single", "www", "CNAME", []any{"a", "b"}},
		{"ds-apex", "@", "DS", []any{"12345 13 2 ABCD"}},
		{"srv-name", "sip", "SRV", []any{"1 2 3 a"}},
		{"caa-tag", "@", "CAA", []any{`0 isue "x"`}},
		{"caa-flags", "@", "CAA", []any{`1 issue "x"`}},
		{"mx-null", "@", "MX", []any{"0 .", "10 mail"}},
		{"duplicate", "www", "A", []any{"192.0.2.1", "192.0.2.1"}},
		{"duplicate", "www", "NS", []any{"A", "a"}},
		{"txt-quotes", "@", "TXT", []any{`"v=spf1"`}},
		{"txt-string", "@", "TXT", []any{[]any{strings.Repeat("x", 256)}}},
		{"rdata-length", "@", "TXT", []any{strings.Repeat("x", 65535)}},
		{"rdata", "www", "A", []any{"2001:db8::1"}},
		{"rdata", "www", "A", []any{"192.0.2.1 ; comment"}},
		{"rdata", "www", "AAAA", []any{"192.0.2.1"}},
		{"rdata", "@", "MX", []any{"mail"}},
		{"rdata", "@", "MX", []any{"10 mail ; the best"}},
		{"rdata", "@", "MX", []any{"10 mail\n$INCLUDE /etc/passwd"}},
		{"rdata", "@", "MX", []any{map[string]any{"a": 1}}},
		{"rdata", "odd", "TYPE65280", []any{"text"}},
		{"rdata", "odd", "TYPE65280", []any{`\# 3 0a0b`}},
		{"rdata", "www", "A", []any{`\# 3 0a0b0c`}},
	} {
		t.Run(each.rule+" "+each.name+" "+each.kind, func(t *testing.T) {
			_, err := MakeSet(Entry{Name: each.name, Type: each.kind, Values: each.values}, zone, 3600)
			require.ErrorContains(t, err, each.rule+": ")
		})
	}
}

func TestAllErrorsAtOnce(t *testing.T) {
	ttl := -1
	_, err := MakeSet(Entry{Name: "@", Type: "CNAME", Values: []any{"a.b", "c.d"}, TTL: &ttl}, zone, 1)

	for _, rule := range []string{"cname-apex", "ttl-range", "a.b", "c.d"} {
		assert.ErrorContains(t, err, rule)
	}
}

func TestNames(t *testing.T) {
	for given, want := range map[string]string{
		"www": "www.example.com.", "WWW": "www.example.com.", "@": zone, "*": "*.example.com.", "a.b": "a.b.example.com.",
		"www.example.com.": "www.example.com.", "münchen": "xn--mnchen-3ya.example.com.", "xn--mnchen-3ya": "xn--mnchen-3ya.example.com.",
		"_dmarc": "_dmarc.example.com.", `a\.b`: `a\.b.example.com.`, `\097`: "a.example.com.", `a\046`: `a\..example.com.`,
		`a\.b.münchen`: `a\.b.xn--mnchen-3ya.example.com.`, "münchen。example。com.": "xn--mnchen-3ya.example.com.",
	} {
		got, err := MakeName(given, zone)
		require.NoError(t, err, given)
		assert.Equal(t, want, got, given)
	}

	assert.Equal(t, "münchen.example.com (xn--mnchen-3ya.example.com)", Display("xn--mnchen-3ya.example.com."))
}

func TestTextsAreComparedAsAWhole(t *testing.T) {
	long := strings.Repeat("x", 600)
	whole := one(t, "@", "TXT", long)
	assert.Len(t, strings.Fields(whole.Values[0]), 3)

	divided := one(t, "@", "TXT", []any{long[:100], long[100:300], long[300:500], long[500:]})
	assert.True(t, divided.Exact)

	other := divided
	other.Exact = false // as a server gives it
	assert.True(t, whole.Same(other))
	assert.False(t, divided.Same(whole), "its division was asked for")
	assert.True(t, divided.Same(other))

	// The end of one string and the beginning of the next are no part of a text, but may look as one.
	for _, text := range []string{`a" `, `a" "b`, `\" "`, `\`} {
		whole, parted := one(t, "@", "TXT", []any{text + "tail"}), one(t, "@", "TXT", []any{text, "tail"})
		whole.Exact, parted.Exact = false, false
		assert.True(t, whole.Same(parted), text)
		assert.False(t, whole.Same(one(t, "@", "TXT", []any{strings.ReplaceAll(text, " ", "") + "tail!"})), text)
	}

	opaque := Set{Name: zone, Type: "TXT", Values: []string{`\# 1 00`}}
	assert.False(t, opaque.Same(Set{Name: zone, Type: "TXT", Values: []string{`\# 1 01`}}))
}

func TestSetsAreCompared(t *testing.T) {
	assert.True(t, one(t, "@", "MX", "10 mail", "20 b").Same(one(t, "@", "MX", "20 B", "10 MAIL")), "names have no case")
	assert.False(t, one(t, "@", "TXT", "a").Same(one(t, "@", "TXT", "A")), "texts have")
	assert.False(t, one(t, "www", "A", "192.0.2.1").Same(one(t, "www", "A", "192.0.2.1", "192.0.2.2")))
	assert.Equal(t, []string{"192.0.2.2"}, one(t, "www", "A", "192.0.2.1", "192.0.2.2").Without(one(t, "www", "A", "192.0.2.1")))

	longer := one(t, "www", "A", "192.0.2.1")
	longer.TTL++
	assert.False(t, one(t, "www", "A", "192.0.2.1").Same(longer))
}

func TestEntriesAreMergedAndJudgedTogether(t *testing.T) {
	merged, err := Merge([]Set{one(t, "www", "A", "192.0.2.1"), one(t, "@", "NS", "ns"), one(t, "www", "A", "192.0.2.2")})
	require.NoError(t, err)
	require.Len(t, merged, 2)
	assert.Equal(t, zone, merged[0].Name)
	assert.Equal(t, []string{"192.0.2.1", "192.0.2.2"}, merged[1].Values)

	other := one(t, "www", "A", "192.0.2.1")
	other.TTL = 1
	_, err = Merge([]Set{one(t, "www", "A", "192.0.2.1"), other, one(t, "www", "CNAME", "x")})

	for _, rule := range []string{"one-ttl", "duplicate", "cname-alone"} {
		assert.ErrorContains(t, err, "www.example.com", rule)
		assert.ErrorContains(t, err, rule+": ")
	}
}

func TestTheWholeZoneIsJudged(t *testing.T) {
	sets := []Set{
		one(t, "@", "NS", "ns", "ns.example.net."), one(t, "@", "MX", "10 alias", "0 mail.example.net."), one(t, "alias", "CNAME", "host"),
		one(t, "host", "A", "192.0.2.1"), one(t, "sub", "NS", "ns.sub.example.com."), one(t, "far", "NS", "ns.sub.example.com."), one(t, "*.w", "A", "192.0.2.2"),
		one(t, "x", "NS", "ns.w.example.com."),
	}
	SortSets(sets)

	names := func(list ...string) map[string]bool {
		set := map[string]bool{}
		for _, name := range list {
			set[name] = true
		}

		return set
	}

	err := CheckZone(zone, sets, names(zone, "sub.example.com.", "far.example.com.", "x.example.com."))
	require.Error(t, err)
	assert.Equal(t, []string{
		"example.com MX: target-not-cname: alias.example.com is a CNAME; the target of MX must have addresses itself (RFC 2181, 10.3)",
		"example.com NS: ns-glue: ns.example.com is in this zone and has neither A nor AAAA, so nobody could reach it",
		"sub.example.com NS: ns-glue: ns.sub.example.com is in this zone and has neither A nor AAAA, so nobody could reach it",
	}, strings.Split(err.Error(), "\n"))

	assert.NoError(t, CheckZone(zone, sets, names("host.example.com.")), "what others have made wrong is theirs")
}

// TestGlueByAWildcard judges name servers whose addresses come from a wildcard, or would not (RFC 4592).
func TestGlueByAWildcard(t *testing.T) {
	wild := one(t, "*", "A", "192.0.2.1")

	for name, test := range map[string]struct {
		sets  []Set
		broke bool
	}{
		"a name that is nowhere":          {[]Set{wild, one(t, "@", "NS", "ns1")}, false},
		"two labels that are nowhere":     {[]Set{wild, one(t, "@", "NS", "ns1.dc1.example.com.")}, false},
		"one with something else":         {[]Set{wild, one(t, "@", "NS", "ns1"), one(t, "ns1", "TXT", "x")}, true},
		"one with something below":        {[]Set{wild, one(t, "@", "NS", "ns1"), one(t, "a.ns1", "A", "192.0.2.2")}, true},
		"one below something":             {[]Set{wild, one(t, "@", "NS", "ns1.dc1.example.com."), one(t, "dc1", "TXT", "x")}, true},
		"one beside something":            {[]Set{wild, one(t, "@", "NS", "ns1"), one(t, "ns10", "A", "192.0.2.2"), one(t, "ns", "A", "192.0.2.2")}, false},
		"a nearer wildcard of other type": {[]Set{wild, one(t, "@", "NS", "ns1.dc1.example.com."), one(t, "*.dc1", "TXT", "x")}, true},
		"a nearer wildcard":               {[]Set{one(t, "*.dc1", "AAAA", "2001:db8::1"), one(t, "@", "NS", "ns1.dc1.example.com.")}, false},
		"below its own delegation":        {[]Set{wild, one(t, "sub", "NS", "ns.sub.example.com.")}, true},
		"a wildcard below the delegation": {[]Set{one(t, "*.sub", "A", "192.0.2.1"), one(t, "sub", "NS", "ns.sub.example.com.")}, true},
		"the delegation itself":           {[]Set{wild, one(t, "sub", "NS", "sub")}, true},
		"below another delegation":        {[]Set{one(t, "far", "NS", "ns.example.net."), one(t, "@", "NS", "ns.far.example.com.")}, false},
	} {
		t.Run(name, func(t *testing.T) {
			SortSets(test.sets)

			err := CheckZone(zone, test.sets, map[string]bool{zone: true, "sub.example.com.": true})
			if test.broke {
				assert.ErrorContains(t, err, "ns-glue: ")
			} else {
				assert.NoError(t, err)
			}
		})
	}
}

func TestReverse(t *testing.T) {
	for given, want := range map[string]string{
		"192.168.1.0/24": "1.168.192.in-addr.arpa.", "10.0.0.0/8": "10.in-addr.arpa.", "192.0.2.1/32": "1.2.0.192.in-addr.arpa.",
		"2001:db8::/32": "8.b.d.0.1.0.0.2.ip6.arpa.",
	} {
		got, err := ReverseZone(given)
		require.NoError(t, err, given)
		assert.Equal(t, want, got)
	}

	for _, bad := range []string{"192.168.1.0/25", "192.168.1.1/24", "0.0.0.0/0", "x", "2001:db8::/33"} {
		_, err := ReverseZone(bad)
		assert.ErrorContains(t, err, "reverse-prefix", bad)
	}

	sets := Reverse("2.0.192.in-addr.arpa.", []Set{
		one(t, "host", "A", "192.0.2.1", "198.51.100.1"), one(t, "*", "A", "192.0.2.9"), one(t, "@", "A", "192.0.2.1"), one(t, "two", "A", "192.0.2.2"),
	}, 60)
	assert.Equal(t, []Set{
		{Name: "1.2.0.192.in-addr.arpa.", Type: "PTR", TTL: 60, Values: []string{"host.example.com."}},
		{Name: "2.2.0.192.in-addr.arpa.", Type: "PTR", TTL: 60, Values: []string{"two.example.com."}},
	}, sets)
}

func TestSerials(t *testing.T) {
	assert.True(t, SerialAfter(2, 1))
	assert.True(t, SerialAfter(1, 1<<32-1), "they go round")
	assert.False(t, SerialAfter(1, 1))
	assert.False(t, SerialAfter(1<<31, 0))
	assert.Equal(t, uint32(1), NextSerial(1<<32-1))

	name, err := MailName("host.master@example.net", zone)
	require.NoError(t, err)
	assert.Equal(t, `host\.master.example.net.`, name)
}

func TestUnreadableDataStaysOpaque(t *testing.T) {
	set := Set{Name: "a.example.com.", Type: "SVCB", TTL: 1, Values: []string{`\# 3 000100`}}
	rrs, err := set.RRs()
	require.NoError(t, err)

	packed := make([]byte, 100)
	end, err := dns.PackRR(rrs[0], packed, 0, nil, false)
	require.NoError(t, err)
	assert.Equal(t, []byte{0, 3, 0, 1, 0}, packed[end-5:end])

	id, value, err := FromRR(&dns.URI{Hdr: dns.RR_Header{Name: "A.example.com.", Rrtype: dns.TypeURI, Class: 1}, Priority: 1, Weight: 2, Target: "x"})
	require.NoError(t, err)
	assert.Equal(t, ID{"a.example.com.", "TYPE256"}, id)
	assert.Equal(t, `\# 5 0001000278`, value)

	_, value, err = FromRR(&dns.A{Hdr: dns.RR_Header{Name: "a.", Rrtype: dns.TypeA}, A: net.IPv4(192, 0, 2, 1)})
	require.NoError(t, err)
	assert.Equal(t, "192.0.2.1", value)
}

// order compares sets as RFC 4034, 6.1 says it, label by label.
func order(a, b Set) int {
	labels := func(name string) []string {
		list := dns.SplitDomainName(name)
		slices.Reverse(list)

		return list
	}

	return cmp.Or(slices.Compare(labels(a.Name), labels(b.Name)), strings.Compare(a.Type, b.Type))
}

// FuzzOrder compares the order of two names, and the short way to a canonical name with the long one.
func FuzzOrder(f *testing.F) {
	f.Add("www", "a.www", "A", "TXT")
	f.Add("host-1", "host-10", "A", "A")
	f.Add(`a\.b`, "b", "A", "AAAA")
	f.Add("*.x", "X_.x", "NS", "A")
	f.Add(`\000a.b`, `\000.b`, "A", "A")
	f.Add(strings.Repeat("a", 63)+"."+strings.Repeat("b", 64), strings.Repeat("abcdefgh.", 26)+"x", "A", "A")
	f.Add("example.org.", ".", "A", "NS")

	f.Fuzz(func(t *testing.T, first, second, firstType, secondType string) {
		var sets []Set

		for _, each := range [][2]string{{first, firstType}, {second, secondType}} {
			name, err := MakeName(each[0], zone)
			if err != nil || strings.Contains(each[1], "\x00") {
				return
			}

			if long, err := rewritten(name); isPlain(name) {
				require.NoError(t, err)
				require.Equal(t, long, name)
			}

			sets = append(sets, Set{Name: name, Type: each[1]})
		}

		require.Equal(t, order(sets[0], sets[1]), Compare(sets[0].ID(), sets[1].ID()), "%v", sets)
	})
}

func TestPlainNamesAreNotLongerThanNamesMayBe(t *testing.T) {
	long := strings.Repeat(strings.Repeat("a", 49)+".", 5) // 250
	for _, name := range []string{"a.", "*.", "a_-9.", long, long + "abc.", strings.Repeat("a", 63) + "."} {
		assert.True(t, isPlain(name), name)

		again, err := rewritten(name)
		require.NoError(t, err)
		assert.Equal(t, name, again)
	}

	for _, name := range []string{"", ".", "a", "a..", ".a.", "A.", `a\.`, "a b.", long + "abcd.", strings.Repeat("a", 64) + "."} {
		assert.False(t, isPlain(name), name)
	}
}

func TestRecordsAreCollectedInAnyOrder(t *testing.T) {
	found := MakeCollect(1)
	for _, each := range []struct {
		id    ID
		ttl   uint32
		value string
	}{
		{ID{"b.example.com.", "A"}, 60, "192.0.2.2"}, {ID{"a.b.example.com.", "A"}, 60, "192.0.2.3"}, {ID{"example.com.", "NS"}, 60, "ns."},
		{ID{"b.example.com.", "A"}, 30, "192.0.2.1"}, {ID{"b.example.com.", "AAAA"}, 60, "2001:db8::1"},
	} {
		found.Add(each.id, each.ttl, each.value)
	}

	assert.Equal(t, []Set{
		{Name: "example.com.", Type: "NS", TTL: 60, Values: []string{"ns."}},
		{Name: "b.example.com.", Type: "A", TTL: 30, Values: []string{"192.0.2.1", "192.0.2.2"}},
		{Name: "b.example.com.", Type: "AAAA", TTL: 60, Values: []string{"2001:db8::1"}},
		{Name: "a.b.example.com.", Type: "A", TTL: 60, Values: []string{"192.0.2.3"}},
	}, found.Sets())
}

func TestSortingKeepsTheOrderOfEquals(t *testing.T) {
	var sets []Set
	for i := range uint32(200) {
		sets = append(sets, Set{Name: fmt.Sprintf("h%d.example.com.", i*7%10), Type: "A", TTL: i})
	}

	SortSets(sets)

	for i, set := range sets[1:] {
		before := sets[i]
		assert.True(t, order(before, set) < 0 || before.ID() == set.ID() && before.TTL < set.TTL, "%v %v", before, set)
	}
}

// FuzzMakeSet makes sure that what is accepted can be sent, and is the same when it comes back.
func FuzzMakeSet(f *testing.F) {
	for _, kind := range []string{"A", "AAAA", "CNAME", "MX", "TXT", "SRV", "CAA", "NAPTR", "SVCB", "HTTPS", "LOC", "TLSA", "TYPE300"} {
		f.Add("www", kind, `10 "a" b.`)
	}

	f.Add("_a._b", "SRV", "0 0 1 x.")
	f.Add("@", "TXT", "a;b\x00\xff\\")
	f.Add("*", "HTTPS", `1 . alpn="h2\,x" key667="\010"`)

	f.Fuzz(func(t *testing.T, name, kind, value string) {
		set, err := MakeSet(Entry{Name: name, Type: kind, Values: []any{value}}, zone, 3600)
		if err != nil {
			return
		}

		rrs, err := set.RRs()
		require.NoError(t, err, "%q", set.Values)

		back, err := reread(rrs[0])
		require.NoError(t, err, "%q", set.Values)

		id, again, err := FromRR(back)
		require.NoError(t, err)
		require.Equal(t, set.ID(), id)
		require.True(t, set.Same(Set{Name: id.Name, Type: id.Type, TTL: 3600, Values: []string{again}}), "%q and %q", set.Values, again)
		require.True(t, InZone(set.Name, zone), fmt.Sprint(set))
	})
}
