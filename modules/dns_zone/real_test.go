// SPDX-License-Identifier: Apache-2.0

package dnszone_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	dnszone "github.com/thinkube/infra/modules/dns_zone"
	"github.com/thinkube/infra/modules/internal/dnstest"
	"github.com/thinkube/infra/modules/internal/dnswire"
)

type dict = dnstest.Dict

var module = dnszone.Module

const zone = "example.com."

// servers are the kinds that every test runs against.
var servers = []string{"named", "knotd"}

func record(name, kind string, values ...any) dict {
	return dict{"name": name, "type": kind, "values": values}
}

// task gives the arguments for a server's zone.
func task(s *dnstest.Server, more dict) dict {
	return dnstest.With(dict{
		"name": "example.com", "server": "127.0.0.1", "port": s.Port, "timeout": "20s",
		"tsig": dict{"name": "update", "secret": dnstest.Secret("update")},
	}, more)
}

func onEach(t *testing.T, run func(t *testing.T, s *dnstest.Server)) {
	t.Helper()

	for _, kind := range servers {
		t.Run(kind, func(t *testing.T) { run(t, dnstest.Start(t, kind, dnstest.Zone{Name: zone})) })
	}
}

// everyType is one record of each.
var everyType = []any{
	record("www", "A", "192.0.2.1", "192.0.2.2"),
	record("www", "AAAA", "2001:db8::1"),
	record("*", "A", "192.0.2.9"),
	record("alias", "CNAME", "www"),
	record("@", "MX", "10 mail", "20 mail.example.net."),
	record("mail", "A", "192.0.2.3"),
	record("sub", "NS", "ns1", "ns.example.net."),
	record("sub", "DS", "12345 13 2 E2D3C916F6DEEAC73294E8268FB5885044A833FC5459588F4A9184CFC41A5766"),
	record("@", "TXT", "v=spf1 -all", strings.Repeat("long ", 120)),
	record("_sip._tcp", "SRV", "1 2 5060 www"),
	record("@", "CAA", `0 issue "ca.example.net"`),
	record("ptr", "PTR", "www"),
	record("www", "SSHFP", "4 2 ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789"),
	record("_443._tcp.www", "TLSA", "3 1 1 ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789"),
	record("@", "NAPTR", `100 10 "S" "SIP+D2U" "!^.*$!x!" _sip._udp.example.com.`),
	record("svc", "SVCB", "1 www alpn=h2 port=8443"),
	record("web", "HTTPS", "1 . alpn=h3,h2 ipv4hint=192.0.2.1"),
	record("here", "LOC", "52 22 23.000 N 4 53 32.000 E -2m 0m 10000m 10m"),
	record("odd", "TYPE65280", `\# 4 0a000001`),
	record("münchen", "A", "192.0.2.5"),
}

func TestEveryTypeIsMadeChangedAndDeleted(t *testing.T) {
	onEach(t, func(t *testing.T, s *dnstest.Server) {
		args := task(s, dict{"records": everyType, "ttl": 300})
		before := s.Lookup(zone, "SOA")

		result := dnstest.Converges(t, module, args)
		assert.Len(t, result.Plan, len(everyType))
		assert.Contains(t, result.Plan, "create records www.example.com A (192.0.2.1, 192.0.2.2, ttl 300)")
		assert.Contains(t, result.Plan, "create records münchen.example.com (xn--mnchen-3ya.example.com) A (192.0.2.5, ttl 300)")

		// The server says the same to others.
		assert.Equal(t, "www.example.com.", s.Lookup("alias.example.com", "CNAME"))
		assert.Equal(t, "192.0.2.9", s.Lookup("anything.example.com", "A"))
		assert.Equal(t, strings.Repeat("long ", 120), joined(s.Lookup(zone, "TXT"), "long"))
		assert.Equal(t, "1 2 5060 www.example.com.", s.Lookup("_sip._tcp.example.com", "SRV"))
		assert.Equal(t, `\# 4 0A000001`, s.Lookup("odd.example.com", "TYPE65280"))

		assert.NotEqual(t, before, s.Lookup(zone, "SOA"), "the serial is raised")
		before = s.Lookup(zone, "SOA")

		dnstest.Unchanged(t, module, args)
		assert.Equal(t, before, s.Lookup(zone, "SOA"), "and not without a change")

		// Each of them with another TTL, which prerequisites cannot see.
		args["ttl"] = 301
		args["force"] = true
		dnstest.Converges(t, module, args)
		assert.Len(t, dnstest.Unchanged(t, module, args).Plan, 0)

		args["state"] = "absent"
		dnstest.Converges(t, module, args)
		assert.Empty(t, s.Lookup("www.example.com", "A"))
		assert.NotEmpty(t, s.Lookup(zone, "NS"), "what was not listed stays")
	})
}

// joined puts the strings of a TXT record together that has a word in it.
func joined(shown, word string) string {
	for line := range strings.Lines(shown) {
		if strings.Contains(line, word) {
			return strings.ReplaceAll(strings.Trim(strings.TrimSpace(line), `"`), `" "`, "")
		}
	}

	return ""
}

func TestASetIsReplacedAsAWhole(t *testing.T) {
	onEach(t, func(t *testing.T, s *dnstest.Server) {
		dnstest.Converges(t, module, task(s, dict{"records": []any{record("www", "A", "192.0.2.1", "192.0.2.2"), record("b", "A", "192.0.2.1")}}))

		force := dict{"force": true}
		result := dnstest.Converges(t, module, task(s, dnstest.With(force, dict{"records": []any{record("www", "A", "192.0.2.2", "192.0.2.3")}})))
		assert.Equal(t, []string{"change records www.example.com A (not 192.0.2.1, but 192.0.2.3)"}, result.Plan)

		// A CNAME takes the place of addresses, and the other way round, in one message.
		result = dnstest.Converges(t, module, task(s, dnstest.With(force, dict{"records": []any{
			record("www", "CNAME", "b"), dict{"name": "www", "type": "A", "state": "absent"},
		}})))
		assert.Equal(t, []string{"delete records www.example.com A (192.0.2.2, 192.0.2.3)", "create records www.example.com CNAME (b.example.com., ttl 3600)"}, result.Plan)

		dnstest.Converges(t, module, task(s, dnstest.With(force, dict{"records": []any{
			record("www", "A", "192.0.2.7"), dict{"name": "www", "type": "CNAME", "state": "absent"},
		}})))
		assert.Equal(t, "192.0.2.7", s.Lookup("www.example.com", "A"))

		// What is there and not listed is judged together with what is.
		dnstest.Fails(t, module, dnszone.CodeRules, task(s, dict{"records": []any{record("www", "CNAME", "b")}}))
		dnstest.Fails(t, module, dnszone.CodeRules, task(s, dict{"records": []any{record("sub", "NS", "nowhere")}}))

		// One value of two goes.
		dnstest.Converges(t, module, task(s, dict{"records": []any{record("www", "A", "192.0.2.7", "192.0.2.8")}}))
		result = dnstest.Converges(t, module, task(s, dict{"records": []any{
			dict{"name": "www", "type": "A", "values": []any{"192.0.2.7"}, "state": "absent"},
		}}))
		assert.Equal(t, []string{"change records www.example.com A (not 192.0.2.7)"}, result.Plan)
	})
}

func TestTheWholeZoneIsManaged(t *testing.T) {
	onEach(t, func(t *testing.T, s *dnstest.Server) {
		s.Update(zone, "add foreign.example.com. 60 A 192.0.2.80", "add _acme-challenge.example.com. 60 TXT x",
			"add dyn.example.com. 60 A 192.0.2.81", "add dyn.example.com. 60 TXT y", `add odd.example.com. 60 TYPE65280 \# 1 00`)

		args := task(s, dict{"manage": "zone", "ignore": []any{"_acme-challenge*", "dyn a"}, "force": true, "records": []any{
			record("www", "A", "192.0.2.1"), record("ns1", "A", "192.0.2.53"),
		}})
		result := dnstest.Converges(t, module, args)
		assert.Equal(t, []string{
			"delete records dyn.example.com TXT (\"y\")",
			"delete records foreign.example.com A (192.0.2.80)",
			"create records www.example.com A (192.0.2.1, ttl 3600)",
		}, result.Plan)
		assert.NotEmpty(t, s.Lookup(zone, "NS"), "the zone's own name servers stay")
		assert.NotEmpty(t, s.Lookup("odd.example.com", "TYPE65280"), "and so does what only its maker can read")

		// Without the glue nobody could find the zone.
		dnstest.Fails(t, module, dnszone.CodeRules, dnstest.With(args, dict{"records": []any{record("www", "A", "192.0.2.1")}}))
	})
}

func TestNameServersAndSOA(t *testing.T) {
	onEach(t, func(t *testing.T, s *dnstest.Server) {
		list := []any{record("@", "NS", "ns2", "ns3.example.net."), record("ns2", "A", "192.0.2.54")}
		soa := dict{"primary": "ns2", "mail": "dns.team@example.net", "minimum": 60}

		unsafe := dnstest.Fails(t, module, dnszone.CodeUnsafe, task(s, dict{"records": list, "soa": soa}))
		assert.Contains(t, unsafe.Msg, "NS")
		assert.Contains(t, unsafe.Msg, "SOA")
		assert.Contains(t, unsafe.Hint, "force")

		dnstest.Converges(t, module, task(s, dict{"records": list, "soa": soa, "force": true}))
		assert.ElementsMatch(t, []string{"ns2.example.com.", "ns3.example.net."}, strings.Fields(s.Lookup(zone, "NS")))
		assert.Contains(t, s.Lookup(zone, "SOA"), `ns2.example.com. dns\.team.example.net. `)
		assert.Contains(t, s.Lookup(zone, "SOA"), " 1209600 60")
	})
}

func TestOnlyWhatIsOwned(t *testing.T) {
	onEach(t, func(t *testing.T, s *dnstest.Server) {
		s.Update(zone, "add theirs.example.com. 60 A 192.0.2.80", "add same.example.com. 3600 A 192.0.2.81", "add www.example.com. 60 TXT theirs")

		list := []any{record("www", "A", "192.0.2.1"), record("*", "AAAA", "2001:db8::1"), record("@", "TXT", "ours"), record("same", "A", "192.0.2.81")}
		args := task(s, dict{"manage": "owned", "owner": "lab", "records": list})

		result := dnstest.Converges(t, module, args)
		assert.Len(t, result.Plan, 6, "three sets and their markers")
		assert.Contains(t, strings.Join(result.Warnings, "\n"), "same.example.com A: are there already, made by somebody else")
		assert.Equal(t, `"types=A"`, s.Lookup("www._owner-lab.example.com", "TXT"))
		assert.Equal(t, `"types=AAAA"`, s.Lookup("_any._owner-lab.example.com", "TXT"))

		foreign := dnstest.Fails(t, module, dnszone.CodeForeign, task(s, dict{"manage": "owned", "owner": "lab", "records": []any{record("theirs", "A", "192.0.2.82")}}))
		assert.Contains(t, foreign.Msg, "theirs.example.com A")

		// What is listed no longer goes, and nothing else.
		args["records"], args["force"] = list[:1], true
		dnstest.Converges(t, module, args)
		assert.Empty(t, s.Lookup("x.example.com", "AAAA"))
		assert.Equal(t, "192.0.2.81", s.Lookup("same.example.com", "A"))

		args["state"], args["records"] = "absent", []any{}
		dnstest.Converges(t, module, args)
		assert.Equal(t, `"theirs"`, s.Lookup("www.example.com", "TXT"))
		assert.NotContains(t, s.Run("dig", "+tcp", "-p", fmt.Sprint(s.Port), "@127.0.0.1", zone, "AXFR", "-y", "hmac-sha256:update:"+dnstest.Secret("update")), "_owner")
	})
}

func TestKeys(t *testing.T) {
	onEach(t, func(t *testing.T, s *dnstest.Server) {
		list := func(n int) []any { return []any{record("www", "A", fmt.Sprintf("192.0.2.%d", n))} }

		for i, name := range []string{"update", "small", "large", "huge"} {
			key := dict{"name": name, "algorithm": dnstest.Keys[name], "secret": dnstest.Secret(name)}
			result := dnstest.Converges(t, module, task(s, dict{"records": list(i), "tsig": key, "force": true}))
			assert.NotContains(t, result.Stdout, dnstest.Secret(name))
		}

		// MD5 only when that is said.
		old := dict{"name": "old", "algorithm": "hmac-md5", "secret": dnstest.Secret("old")}
		dnstest.Fails(t, module, "invalid_argument", task(s, dict{"records": list(9), "tsig": old}))

		old["allow_md5"] = true
		dnstest.Converges(t, module, task(s, dict{"records": list(9), "tsig": old, "force": true}))

		// A key that may only transfer, and another for updates.
		dnstest.Converges(t, module, task(s, dict{"records": list(10), "force": true, "transfer_server": "127.0.0.1", "transfer_port": s.Port,
			"transfer_tsig": dict{"name": "transfer", "secret": dnstest.Secret("transfer")}}))

		refused := dnstest.Run(t, module, task(s, dict{"records": list(11), "tsig": dict{"name": "transfer", "secret": dnstest.Secret("transfer")}}))
		assert.True(t, refused.Failed)
		assert.False(t, refused.Changed)
		assert.Contains(t, []string{string(dnswire.CodeRefused), string(dnswire.CodeKey)}, refused.Failure.Code, "%s", refused.Msg)

		for what, key := range map[string]dict{
			"stranger":     {"name": "stranger", "secret": dnstest.Secret("stranger")},
			"unknown name": {"name": "nobody", "secret": dnstest.Secret("update")},
			"wrong secret": {"name": "update", "secret": dnstest.Secret("other")},
		} {
			wrong := dnstest.Run(t, module, task(s, dict{"records": list(11), "tsig": key}))
			assert.True(t, wrong.Failed, what)
			assert.Contains(t, []string{string(dnswire.CodeRefused), string(dnswire.CodeKey)}, wrong.Failure.Code, "%s: %s", what, wrong.Msg)
			assert.NotContains(t, wrong.Stdout, dnstest.Secret("update"))
		}

		assert.Equal(t, "192.0.2.10", s.Lookup("www.example.com", "A"))
	})
}

func TestKeyFiles(t *testing.T) {
	s := dnstest.Start(t, "named", dnstest.Zone{Name: zone})
	secret := dnstest.Secret("update")

	for i, text := range []string{
		"key \"update\" {\n\talgorithm hmac-sha256;\n\tsecret \"" + secret + "\";\n};\n",
		"# hmac-sha256:update:" + secret + "\nkey:\n- id: update\n  algorithm: hmac-sha256\n  secret: " + secret + "\n",
		secret + "\n",
	} {
		file := filepath.Join(t.TempDir(), "key")
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))

		key := dict{"file": file}
		if i == 2 {
			key["name"] = "update"
		}

		result := dnstest.Converges(t, module, task(s, dict{"tsig": key, "records": []any{record(fmt.Sprintf("n%d", i), "A", "192.0.2.1")}}))
		assert.NotContains(t, result.Stdout, secret)
	}

	for _, text := range []string{"", "no key at all!", "key \"x\" { };"} {
		file := filepath.Join(t.TempDir(), "key")
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		dnstest.Fails(t, module, dnswire.CodeKey, task(s, dict{"tsig": dict{"file": file}}))
	}

	dnstest.Fails(t, module, dnswire.CodeKey, task(s, dict{"tsig": dict{"file": "/nowhere"}}))
}

// TestSomebodyElseEditsMeanwhile changes the zone between the module's reading and its update.
func TestSomebodyElseEditsMeanwhile(t *testing.T) {
	onEach(t, func(t *testing.T, s *dnstest.Server) {
		s.Update(zone, "add www.example.com. 3600 A 192.0.2.1", "add gone.example.com. 3600 A 192.0.2.1")

		edits := []string{}
		port := dnstest.Misbehave(t, s.Address(), func(e *dnstest.Exchange) {
			if e.Updates() && len(edits) > 0 {
				s.Update(zone, edits[0])
				edits = edits[1:]
			}

			e.Pass(nil)
		})
		args := task(s, dict{"port": port, "force": true})

		// A set that is changed: planned again on what is there now.
		edits = []string{"add www.example.com. 3600 A 192.0.2.99"}
		result := dnstest.OK(t, module, dnstest.With(args, dict{"records": []any{record("www", "A", "192.0.2.2")}}))
		assert.Equal(t, []string{"change records www.example.com A (not 192.0.2.1, 192.0.2.99, but 192.0.2.2)"}, result.Plan)

		// A name that appears.
		edits = []string{"add new.example.com. 3600 TXT theirs"}
		failed := dnstest.Run(t, module, dnstest.With(args, dict{"records": []any{record("new", "CNAME", "www")}}))
		assert.Equal(t, string(dnszone.CodeRules), failed.Failure.Code, "%s", failed.Msg)
		assert.Contains(t, failed.Msg, "cname-alone")
		assert.Equal(t, `"theirs"`, s.Lookup("new.example.com", "TXT"))

		// An address of another kind, beside those that a CNAME is to take the place of: nothing is deleted.
		s.Update(zone, "add swap.example.com. 3600 A 192.0.2.1")

		edits = []string{"add swap.example.com. 3600 AAAA 2001:db8::1"}
		failed = dnstest.Run(t, module, dnstest.With(args, dict{"records": []any{record("swap", "CNAME", "www"), dict{"name": "swap", "type": "A", "state": "absent"}}}))
		assert.Equal(t, string(dnszone.CodeRules), failed.Failure.Code, "%s", failed.Msg)
		assert.False(t, failed.Changed)
		assert.Equal(t, "192.0.2.1", s.Lookup("swap.example.com", "A"))

		// A set that vanishes before it is deleted is gone, and that is what was wanted.
		edits = []string{"delete gone.example.com. A"}
		dnstest.OK(t, module, dnstest.With(args, dict{"records": []any{dict{"name": "gone", "type": "A", "state": "absent"}}}))

		// Somebody who never stops is not fought with.
		edits = []string{"add www.example.com. 3600 A 192.0.2.11", "add www.example.com. 3600 A 192.0.2.12", "add www.example.com. 3600 A 192.0.2.13", "add www.example.com. 3600 A 192.0.2.14"}
		failed = dnstest.Run(t, module, dnstest.With(args, dict{"records": []any{record("www", "A", "192.0.2.3")}}))
		assert.Equal(t, "conflict", failed.Failure.Code, "%s", failed.Msg)
		assert.False(t, failed.Changed)
	})
}

func TestASignedZone(t *testing.T) {
	s := dnstest.Start(t, "named", dnstest.Zone{Name: zone, Signed: true})

	require.Eventually(t, func() bool {
		answer, err := s.Ask(zone, dns.TypeDNSKEY)

		return err == nil && len(answer.Answer) > 0
	}, 20*time.Second, 100*time.Millisecond, "the zone is signed")

	args := task(s, dict{"records": []any{record("www", "A", "192.0.2.1"), record("@", "TXT", "signed")}, "manage": "zone", "force": true})
	args["records"] = append(args["records"].([]any), record("ns1", "A", "192.0.2.53"))

	result := dnstest.Converges(t, module, args)
	assert.Len(t, result.Plan, 2, "what the server makes by signing is not touched")
	assert.Equal(t, true, result.Raw["zone"].(dict)["signed"])
	assert.Contains(t, s.Run("dig", "+dnssec", "+tcp", "-p", fmt.Sprint(s.Port), "@127.0.0.1", "www.example.com", "A"), "RRSIG")

	args["records"] = args["records"].([]any)[1:]
	dnstest.Converges(t, module, args)
	assert.Empty(t, s.Lookup("www.example.com", "A"))
}

func TestManyRecords(t *testing.T) {
	onEach(t, func(t *testing.T, s *dnstest.Server) {
		list := []any{record("ns1", "A", "192.0.2.53")}
		for i := range 1000 {
			list = append(list, record(fmt.Sprintf("host-%d", i), "A", fmt.Sprintf("10.0.%d.%d", i/250, i%250+1)))
		}

		result := dnstest.Converges(t, module, task(s, dict{"records": list}))
		assert.Len(t, result.Plan, 1000)

		unsafe := dnstest.Fails(t, module, dnszone.CodeUnsafe, task(s, dict{"records": list[:500], "manage": "zone"}))
		assert.Contains(t, unsafe.Msg, "of 1002 records would be changed or deleted")
		dnstest.Unchanged(t, module, task(s, dict{"records": list}))

		dnstest.Converges(t, module, task(s, dict{"records": list[1:], "state": "absent", "force": true}))
	})
}

// TestManyDelegations are to a name server that is made with them, and to one that is there.
func TestManyDelegations(t *testing.T) {
	onEach(t, func(t *testing.T, s *dnstest.Server) {
		list := []any{record("ns2", "A", "192.0.2.54")}
		for i := range 2500 {
			list = append(list, record(fmt.Sprintf("sub-%d", i), "NS", "ns2", "ns1"))
		}

		dnstest.Converges(t, module, task(s, dict{"records": list}))
	})
}

func TestAZoneThatTakesNoUpdates(t *testing.T) {
	for _, kind := range servers {
		t.Run(kind, func(t *testing.T) {
			s := dnstest.Start(t, kind, dnstest.Zone{Name: zone, Static: true})
			args := dict{"name": "example.com", "port": s.Port, "records": []any{record("www", "A", "192.0.2.1")}}

			failed := dnstest.Run(t, module, args)
			assert.Equal(t, string(dnswire.CodeRefused), failed.Failure.Code, "%s", failed.Msg)
			assert.False(t, failed.Changed)
			assert.Empty(t, failed.Failure.Done)

			args["name"] = "example.net"
			failed = dnstest.Fails(t, module, dnswire.CodeRefused, args)
			assert.Contains(t, failed.Msg, "example.net", "a zone that is not there is no empty one")
		})
	}
}

// TestAHundredThousandRecords has one change among them.
func TestAHundredThousandRecords(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}

	const many = 100_000

	text := []byte(dnstest.MinimalZone(zone))
	list := make([]any, 0, many)

	for i := range many {
		address := fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)
		text = fmt.Appendf(text, "host-%d A %s\n", i, address)
		list = append(list, record(fmt.Sprintf("host-%d", i), "A", address))
	}

	for _, kind := range servers {
		t.Run(kind, func(t *testing.T) {
			s := dnstest.Start(t, kind, dnstest.Zone{Name: zone, Text: string(text)})
			dnstest.Unchanged(t, module, task(s, dict{"records": list}))

			list[50_000] = record("host-50000", "A", "192.0.2.1")
			result := dnstest.OK(t, module, task(s, dict{"records": list}))
			assert.Equal(t, []string{"change records host-50000.example.com A (not 10.0.195.80, but 192.0.2.1)"}, result.Plan)

			list[50_000] = record("host-50000", "A", "10.0.195.80")
		})
	}
}
