// SPDX-License-Identifier: Apache-2.0

package dnsquery_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	dnsquery "github.com/thinkube/infra/modules/dns_query"
	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/dnstest"
	"github.com/thinkube/infra/modules/internal/dnswire"
)

type dict = dnstest.Dict

var module = dnsquery.Module

const zone = "example.com."

var text = dnstest.MinimalZone(zone) + `www A 192.0.2.2
www A 192.0.2.1
alias CNAME other
other CNAME www
@ MX 10 mail
* TXT "` + strings.Repeat("a", 200) + `" "b"
big TXT ` + strings.Repeat(`"`+strings.Repeat("x", 250)+`" `, 8) + `
1 PTR host.example.com.
xn--mnchen-3ya A 192.0.2.5
`

func ask(s *dnstest.Server, name, kind string, more dict) dict {
	return dnstest.With(dict{"name": name, "type": kind, "server": "127.0.0.1", "port": s.Port, "timeout": "2s", "attempt_timeout": "500ms"}, more)
}

func TestAnswersAreComparedAsSets(t *testing.T) {
	for _, kind := range []string{"named", "knotd"} {
		t.Run(kind, func(t *testing.T) {
			s := dnstest.Start(t, kind, dnstest.Zone{Name: zone, Text: text})

			for _, each := range []struct {
				name, kind string
				expect     []any
			}{
				{"www.example.com", "A", []any{"192.0.2.1", "192.0.2.2"}},
				{"WWW.example.com.", "a", []any{"192.0.2.2", "192.0.2.1"}},
				{"alias.example.com", "A", []any{"192.0.2.1", "192.0.2.2"}},
				{"alias.example.com", "CNAME", []any{"OTHER.example.com."}},
				{"example.com", "MX", []any{"10 mail.example.com."}},
				{"any.example.com", "TXT", []any{strings.Repeat("a", 200) + "b"}},
				{"big.example.com", "TXT", []any{strings.Repeat("x", 2000)}},
				{"www.example.com", "AAAA", []any{}},
				{"münchen.example.com", "A", []any{"192.0.2.5"}},
			} {
				result := dnstest.OK(t, module, ask(s, each.name, each.kind, dict{"expect": each.expect}))
				assert.False(t, result.Changed)
				assert.Len(t, result.Raw["answer"].(dict)["values"], len(each.expect))
			}

			answer := dnstest.OK(t, module, ask(s, "alias.example.com", "A", nil)).Raw["answer"].(dict)
			assert.Equal(t, []any{"other.example.com.", "www.example.com."}, answer["aliases"])
			assert.Equal(t, true, answer["authoritative"])
			assert.EqualValues(t, 3600, answer["ttl"])
			assert.EqualValues(t, 1, answer["attempts"])
			assert.Equal(t, "udp", answer["network"])
			assert.Positive(t, answer["milliseconds"])

			// What does not fit into a datagram is asked for again.
			answer = dnstest.OK(t, module, ask(s, "big.example.com", "TXT", nil)).Raw["answer"].(dict)
			assert.Equal(t, "tcp", answer["network"])

			answer = dnstest.OK(t, module, ask(s, "www.example.com", "A", dict{"tcp": true, "tsig": dict{"name": "update", "secret": dnstest.Secret("update")}})).Raw["answer"].(dict)
			assert.Equal(t, "tcp", answer["network"])
		})
	}
}

func TestOtherAnswersFail(t *testing.T) {
	s := dnstest.Start(t, "named", dnstest.Zone{Name: zone, Text: dnstest.MinimalZone(zone) + "www A 192.0.2.1\n"})

	for _, each := range []struct {
		expect []any
		got    string
	}{
		{[]any{"192.0.2.2"}, "got 192.0.2.1, expected 192.0.2.2"},
		{[]any{"192.0.2.1", "192.0.2.2"}, "got 192.0.2.1, expected 192.0.2.1, 192.0.2.2"},
		{[]any{}, "got 192.0.2.1, expected none"},
	} {
		failed := dnstest.Fails(t, module, dnsquery.CodeUnexpected, ask(s, "www.example.com", "A", dict{"expect": each.expect, "timeout": "300ms"}))
		assert.Contains(t, failed.Msg, each.got)
		assert.Contains(t, failed.Msg, "times in")
	}

	failed := dnstest.Fails(t, module, dnsquery.CodeUnexpected, ask(s, "none.example.com", "A", dict{"expect": []any{"192.0.2.1"}, "timeout": "300ms"}))
	assert.Contains(t, failed.Msg, "got NXDOMAIN")

	assert.Equal(t, "NXDOMAIN", dnstest.OK(t, module, ask(s, "none.example.com", "A", nil)).Raw["answer"].(dict)["rcode"])
	dnstest.Fails(t, module, dnswire.CodeRefused, ask(s, "www.example.net", "A", dict{"timeout": "300ms"}))
	dnstest.Fails(t, module, dnswire.CodeUnreachable, ask(s, "www.example.com", "A", dict{"port": 1, "timeout": "300ms"}))
	dnstest.Fails(t, module, dnswire.CodeKey, ask(s, "www.example.com", "A", dict{"tsig": dict{"name": "update", "secret": dnstest.Secret("wrong")}}))

	bad := dnstest.Fails(t, module, "invalid_argument", ask(s, "a..b", "NOPE", dict{"port": 0, "attempt_timeout": 0, "expect": []any{"x"}}))
	for _, part := range []string{"a..b", "NOPE", "port 0", "attempt_timeout"} {
		assert.Contains(t, bad.Msg, part)
	}
}

// TestItWaitsForWhatIsComing asks until the record is there.
func TestItWaitsForWhatIsComing(t *testing.T) {
	s := dnstest.Start(t, "named", dnstest.Zone{Name: zone})

	go func() {
		time.Sleep(700 * time.Millisecond)
		s.Update(zone, "add late.example.com. 60 A 192.0.2.7")
	}()

	answer := dnstest.OK(t, module, ask(s, "late.example.com", "A", dict{"expect": []any{"192.0.2.7"}, "timeout": "20s"})).Raw["answer"].(dict)
	assert.Greater(t, answer["attempts"], 1.0)
}

// TestASignedAnswer asks a resolver that checks signatures: it vouches for an answer when it is asked to.
func TestASignedAnswer(t *testing.T) {
	s := dnstest.Start(t, "named", dnstest.Zone{Name: zone, Signed: true})

	resolver := dnstest.StartResolver(t, s, s, zone)

	answer := dnstest.OK(t, module, ask(s, "ns1.example.com", "A", dict{"dnssec": true})).Raw["answer"].(dict)
	assert.Equal(t, false, answer["authenticated"], "an authoritative server does not vouch for its own answers")

	for _, dnssec := range []bool{true, false} {
		answer := dnstest.OK(t, module, ask(resolver, "ns1.example.com", "A", dict{"dnssec": dnssec, "timeout": "20s", "expect": []any{"192.0.2.53"}})).Raw["answer"].(dict)
		assert.Equal(t, dnssec, answer["authenticated"])
		assert.Equal(t, false, answer["authoritative"])
	}

	// One with the key of another zone does not believe what it gets.
	other := dnstest.Start(t, "named", dnstest.Zone{Name: zone, Signed: true})
	resolver = dnstest.StartResolver(t, s, other, zone)
	dnstest.Fails(t, module, dnswire.CodeRefused, ask(resolver, "ns1.example.com", "A", dict{"dnssec": true}))
}

// TestSignaturesAreAskedFor looks at what is sent.
func TestSignaturesAreAskedFor(t *testing.T) {
	for _, dnssec := range []bool{true, false} {
		asked := make(chan bool, 1)
		port := dnstest.Misbehave(t, "", func(e *dnstest.Exchange) {
			asked <- e.Query.IsEdns0() != nil && e.Query.IsEdns0().Do()
			e.Answer(e.Reply(0, "www.example.com. 1 IN A 192.0.2.1"))
		})
		dnstest.OK(t, module, dict{"name": "www.example.com", "server": "127.0.0.1", "port": port, "tcp": true, "dnssec": dnssec})
		assert.Equal(t, dnssec, <-asked)
	}
}

func TestServersThatMisbehave(t *testing.T) {
	question := dict{"name": "www.example.com", "server": "127.0.0.1", "tcp": true, "timeout": "900ms", "attempt_timeout": "200ms", "expect": []any{"192.0.2.1"}}

	for _, each := range []struct {
		name   string
		code   ansible.Code
		handle func(e *dnstest.Exchange)
	}{
		{"silent", dnswire.CodeUnreachable, func(*dnstest.Exchange) {}},
		{"hangs up", dnswire.CodeUnreachable, func(e *dnstest.Exchange) { e.Close() }},
		{"refuses", dnswire.CodeRefused, func(e *dnstest.Exchange) { e.Answer(e.Reply(dns.RcodeRefused)) }},
		{"fails", dnswire.CodeRefused, func(e *dnstest.Exchange) { e.Answer(e.Reply(dns.RcodeServerFailure)) }},
		{"answers something else", dnsquery.CodeUnexpected, func(e *dnstest.Exchange) { e.Answer(e.Reply(0, "other.example.com. 1 IN A 192.0.2.1")) }},
		{"leads in a circle", dnsquery.CodeUnexpected, func(e *dnstest.Exchange) {
			e.Answer(e.Reply(0, "www.example.com. 1 IN CNAME a.", "a. 1 IN CNAME www.example.com."))
		}},
		{"makes noise", dnswire.CodeMalformed, func(e *dnstest.Exchange) { e.Write([]byte("HTTP/1.1 400 Bad Request\r\n")) }},
	} {
		t.Run(each.name, func(t *testing.T) {
			port := dnstest.Misbehave(t, "", each.handle)
			dnstest.Fails(t, module, each.code, dnstest.With(question, dict{"port": port}))
		})
	}

	// One that answers at the third attempt is good enough.
	n := 0
	port := dnstest.Misbehave(t, "", func(e *dnstest.Exchange) {
		if n++; n < 3 {
			e.Close()
		} else {
			e.Answer(e.Reply(0, "www.example.com. 1 IN A 192.0.2.1"))
		}
	})
	result := dnstest.OK(t, module, dnstest.With(question, dict{"port": port, "timeout": "10s"}))
	assert.EqualValues(t, 3, result.Raw["answer"].(dict)["attempts"])
}

// TestAddressesAreTurnedRound asks for the name of an address.
func TestAddressesAreTurnedRound(t *testing.T) {
	reverse := "2.0.192.in-addr.arpa."
	s := dnstest.Start(t, "named", dnstest.Zone{Name: reverse, Text: fmt.Sprintf("$ORIGIN %s\n$TTL 60\n@ SOA ns.example.com. h.example.com. 1 2 3 4 5\n@ NS ns.example.com.\n7 PTR host.example.com.\n", reverse)})
	answer := dnstest.OK(t, module, ask(s, "192.0.2.7", "PTR", dict{"expect": []any{"host.example.com."}})).Raw["answer"].(dict)
	require.Equal(t, "7.2.0.192.in-addr.arpa.", answer["name"])

	dnstest.OK(t, module, ask(s, "@", "NS", dict{"origin": "192.0.2.0/24", "expect": []any{"ns.example.com."}}))
	dnstest.OK(t, module, ask(s, "7", "PTR", dict{"origin": "192.0.2.0/24", "expect": []any{"host.example.com."}}))
}

// TestNamesAsInAZone are relative to it.
func TestNamesAsInAZone(t *testing.T) {
	s := dnstest.Start(t, "named", dnstest.Zone{Name: zone, Text: text + "_sip._tcp SRV 1 2 5060 www\nsub NS ns.sub\nns.sub A 192.0.2.9\n"})

	for _, each := range []struct{ name, kind, value string }{
		{"@", "MX", "10 mail"},
		{"alias", "CNAME", "other"},
		{"alias.example.com.", "CNAME", "other.example.com."},
		{"@", "NS", "ns1"},
		{"_sip._tcp", "SRV", "1 2 5060 www"},
		{"münchen", "A", "192.0.2.5"},
	} {
		dnstest.OK(t, module, ask(s, each.name, each.kind, dict{"origin": "example.com", "expect": []any{each.value}}))
	}

	bad := dnstest.Fails(t, module, "invalid_argument", ask(s, "www.example.com", "A", dict{"origin": "example.com"}))
	assert.Contains(t, bad.Msg, "trailing-dot")
	bad = dnstest.Fails(t, module, "invalid_argument", ask(s, "www", "A", dict{"origin": "a..b"}))
	assert.Contains(t, bad.Msg, "origin")
}

// TestTypesThatAreInNoInventory are compared like others; what is no type of record is not asked for.
func TestTypesThatAreInNoInventory(t *testing.T) {
	s := dnstest.Start(t, "named", dnstest.Zone{Name: zone, Signed: true, Text: dnstest.MinimalZone(zone) + "u URI 10 1 \"https://example.com/\"\nh HINFO pc unix\nd DNAME other.example.net.\nx TYPE65280 \\# 2 abcd\n"})
	values := func(name, kind string, more dict) []any {
		return dnstest.OK(t, module, ask(s, name, kind, more)).Raw["answer"].(dict)["values"].([]any)
	}

	require.Eventually(t, func() bool { return len(values("example.com", "NSEC", nil)) == 1 }, 20*time.Second, 100*time.Millisecond, "it is signed")

	for kind, form := range map[string]string{
		"SOA": `^ns1\.example\.com\. hostmaster\.example\.com\. \d+ 7200 900 1209600 300$`, "DNSKEY": `^257 3 13 [A-Za-z0-9+/=]+$`, "NSEC": `^d\.example\.com\. NS SOA RRSIG NSEC DNSKEY TYPE65534$`,
	} {
		found := values("example.com", kind, nil)
		assert.Regexp(t, form, found[0])
		// What was answered can be expected, in any spelling.
		answer := dnstest.OK(t, module, ask(s, "example.com", kind, dict{"expect": found})).Raw["answer"].(dict)
		assert.Equal(t, kind, answer["type"])

		dnstest.Fails(t, module, dnsquery.CodeUnexpected, ask(s, "example.com", kind, dict{"expect": []any{}, "timeout": "300ms"}))
	}

	for _, each := range []struct{ name, kind, value string }{
		{"u", "uri", `10 1 "https://example.com/"`},
		{"h", "HINFO", `"pc" "unix"`},
		{"h", "TYPE13", `\# 8 02706304756e6978`},
		{"d", "DNAME", "OTHER.example.net."},
		{"x", "TYPE65280", `\# 2 ABCD`},
	} {
		values(each.name+".example.com", each.kind, dict{"expect": []any{each.value}})
	}

	serial := strings.Fields(values("example.com", "SOA", nil)[0].(string))[2]
	values("example.com", "SOA", dict{"expect": []any{"NS1.example.com. hostmaster.example.com. " + serial + " 7200 900 1209600 300"}})
	failed := dnstest.Fails(t, module, dnsquery.CodeUnexpected, ask(s, "example.com", "SOA", dict{"expect": []any{"ns1.example.com. hostmaster.example.com. 1 7200 900 1209600 300"}, "timeout": "300ms"}))
	assert.Contains(t, failed.Msg, "got ns1.example.com. hostmaster.example.com. "+serial)

	for _, kind := range []string{"ANY", "*", "TYPE255", "MAILB", "maila", "AXFR", "IXFR", "OPT", "TSIG", "TYPE0", "NONE"} {
		bad := dnstest.Fails(t, module, "invalid_argument", ask(s, "example.com", kind, dict{"expect": []any{}}))
		assert.Contains(t, bad.Msg, "must be a type of record", kind)
	}

	bad := dnstest.Fails(t, module, "invalid_argument", ask(s, "example.com", "SOA", dict{"expect": []any{"ns1.example.com. hostmaster.example.com. 1"}}))
	assert.Contains(t, bad.Msg, "two names and five numbers")
}
