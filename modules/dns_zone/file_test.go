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
)

// programs are the names of the servers' kinds in the module's option.
var programs = map[string]string{"named": "bind", "knotd": "knot"}

// recordRoot is where the last call of local has records kept.
var recordRoot string

// local gives the arguments for a zone that is managed with the server's own tools.
func local(t *testing.T, s *dnstest.Server, more dict) dict {
	t.Helper()

	recordRoot = filepath.Join(t.TempDir(), "thinkube")
	dnszone.SetRecordRoot(recordRoot)

	return dnstest.With(dict{
		"name": "example.com", "server": "127.0.0.1", "port": s.Port, "timeout": "30s",
		"program": programs[s.Kind], "control": s.Control, "file": s.ZoneFile(zone),
	}, more)
}

func TestAZoneInAFile(t *testing.T) {
	for _, kind := range servers {
		t.Run(kind, func(t *testing.T) {
			s := dnstest.Start(t, kind, dnstest.Zone{Name: zone, Static: true})
			require.NoError(t, os.Chmod(s.ZoneFile(zone), 0o640))

			args := local(t, s, dict{"mode": "file", "records": everyType})
			result := dnstest.Converges(t, module, args)
			assert.Len(t, result.Plan, len(everyType))
			assert.Contains(t, s.Lookup(zone, "SOA"), " 2 7200", "the serial is one more")
			assert.Equal(t, "192.0.2.9", s.Lookup("anything.example.com", "A"))
			assert.Equal(t, `\# 4 0A000001`, s.Lookup("odd.example.com", "TYPE65280"))

			info, err := os.Stat(s.ZoneFile(zone))
			require.NoError(t, err)
			assert.Equal(t, os.FileMode(0o640), info.Mode().Perm())

			before, err := os.ReadFile(s.ZoneFile(zone))
			require.NoError(t, err)
			dnstest.Unchanged(t, module, args)

			again, err := os.ReadFile(s.ZoneFile(zone))
			require.NoError(t, err)
			assert.Equal(t, before, again, "and stays while nothing changes")

			// What is added by hand is kept, and purged where the whole zone is managed.
			require.NoError(t, os.WriteFile(s.ZoneFile(zone), append(before, "hand A 192.0.2.77\n"...), 0o640))
			args["records"], args["soa"], args["force"] = []any{record("new", "A", "192.0.2.6")}, dict{"minimum": 61}, true
			dnstest.Converges(t, module, args)
			assert.Equal(t, "192.0.2.77", s.Lookup("hand.example.com", "A"))
			assert.Contains(t, s.Lookup(zone, "SOA"), " 3 7200 900 1209600 61")

			args["manage"], args["records"] = "zone", []any{record("ns1", "A", "192.0.2.53")}
			dnstest.Converges(t, module, args)
			assert.Empty(t, s.Lookup("hand.example.com", "A"))

			left, err := filepath.Glob(filepath.Join(s.Dir, ".thinkube*"))
			require.NoError(t, err)
			assert.Empty(t, left)
		})
	}
}

func TestFilesThatAreNotTheZoneAreLeftAlone(t *testing.T) {
	for _, kind := range servers {
		t.Run(kind, func(t *testing.T) {
			s := dnstest.Start(t, kind, dnstest.Zone{Name: zone})
			args := local(t, s, dict{"mode": "file", "records": []any{record("www", "A", "192.0.2.1")}})
			before, err := os.ReadFile(s.ZoneFile(zone))
			require.NoError(t, err)

			// The server has more than its file; BIND says so before there is anything.
			s.Update(zone, "add x.example.com. 60 A 192.0.2.1")
			dnstest.Fails(t, module, dnszone.CodeDynamic, args)

			after, err := os.ReadFile(s.ZoneFile(zone))
			require.NoError(t, err)

			if kind == "named" {
				assert.Equal(t, before, after)
			}

			dnstest.Fails(t, module, dnszone.CodeFile, dnstest.With(args, dict{"file": "/nowhere/zone"}))
			dnstest.Fails(t, module, dnszone.CodeMissing, dnstest.With(args, dict{"name": "example.net", "file": "/nowhere/zone"}))
			dnstest.Fails(t, module, dnszone.CodeServer, dnstest.With(args, dict{"control": "/nowhere/control"}))
		})
	}

	for _, kind := range servers {
		primary := dnstest.Start(t, kind, dnstest.Zone{Name: zone, Static: true})
		s := dnstest.Start(t, kind, dnstest.Zone{Name: zone, PrimaryPort: primary.Port})
		failed := dnstest.Fails(t, module, dnszone.CodeDynamic, local(t, s, dict{"mode": "file", "records": []any{record("www", "A", "192.0.2.1")}}))
		assert.Contains(t, failed.Msg, "gets zone example.com from another")
	}

	s := dnstest.Start(t, "knotd", dnstest.Zone{Name: zone, Template: true})
	dnstest.Fails(t, module, dnszone.CodeDynamic, local(t, s, dict{"mode": "file", "records": []any{record("www", "A", "192.0.2.1")}}))

	s = dnstest.Start(t, "named", dnstest.Zone{Name: zone, Static: true})
	args := local(t, s, dict{"mode": "file", "records": []any{record("www", "A", "192.0.2.1")}})

	for _, text := range []string{"", "@ SOA a b 1 2 3 4 5\n$INCLUDE other\n", "@ SOA a"} {
		require.NoError(t, os.WriteFile(s.ZoneFile(zone), []byte(text), 0o644))
		dnstest.Fails(t, module, dnszone.CodeFile, args)

		after, err := os.ReadFile(s.ZoneFile(zone))
		require.NoError(t, err)
		assert.Equal(t, text, string(after), "a file that is not understood is no empty zone")
	}

	require.NoError(t, os.WriteFile(s.ZoneFile(zone), []byte(dnstest.MinimalZone(zone)), 0o644))
	require.NoError(t, os.WriteFile(s.ZoneFile(zone)+".jnl", nil, 0o644))
	failed := dnstest.Fails(t, module, dnszone.CodeDynamic, args)
	assert.Contains(t, failed.Msg, "journal")
}

// TestTTLsThatAFileDoesNotSay stay what the server makes of them when it is written anew.
func TestTTLsThatAFileDoesNotSay(t *testing.T) {
	for _, kind := range servers {
		t.Run(kind, func(t *testing.T) {
			text := "@ SOA ns1 hostmaster 1 7200 900 1209600 60\n@ NS ns1\nns1 A 192.0.2.53\nx 7 A 192.0.2.7\ny A 192.0.2.8\n"
			s := dnstest.Start(t, kind, dnstest.Zone{Name: zone, Static: true, Text: text})
			ttls := func() (found []uint32) {
				for _, name := range []string{"example.com.", "ns1.example.com.", "x.example.com.", "y.example.com."} {
					answer, err := s.Ask(name, map[bool]uint16{true: dns.TypeNS, false: dns.TypeA}[name == zone])
					require.NoError(t, err)
					require.NotEmpty(t, answer.Answer)

					found = append(found, answer.Answer[0].Header().Ttl)
				}

				return found
			}
			before := ttls()

			dnstest.Converges(t, module, local(t, s, dict{"mode": "file", "records": []any{record("www", "A", "192.0.2.1")}}))
			assert.Equal(t, before, ttls())
			assert.EqualValues(t, 7, before[2])
		})
	}
}

// TestZonesComeAndGo makes a zone that the server does not have, changes it, and removes it with all that was made.
func TestZonesComeAndGo(t *testing.T) {
	for _, kind := range servers {
		for _, mode := range []string{"update", "file"} {
			t.Run(kind+" "+mode, func(t *testing.T) {
				s := dnstest.Start(t, kind, dnstest.Zone{Name: "other.example."})

				before, err := os.ReadDir(s.Dir)
				require.NoError(t, err)

				args := local(t, s, dict{"mode": mode, "create": true, "soa": dict{"primary": "ns1"}, "records": []any{
					record("@", "NS", "ns1"), record("ns1", "A", "192.0.2.53"), record("*", "A", "192.0.2.9"),
				}})

				if mode == "update" {
					args["tsig"] = dict{"name": "update", "secret": dnstest.Secret("update")}
				}

				if kind == "knotd" && mode == "update" {
					args["config"] = "acl all\n"
				}

				assert.Contains(t, dnstest.Fails(t, module, "invalid_argument", dnstest.With(args, dict{"soa": nil})).Msg, "primary")
				assert.Contains(t, dnstest.Fails(t, module, dnszone.CodeRules, dnstest.With(args, dict{"records": []any{}})).Msg, "apex-ns")

				result := dnstest.Converges(t, module, args)
				assert.Len(t, result.Plan, 1)
				assert.Contains(t, result.Plan[0], "create zone example.com (3 records")
				assert.Equal(t, "192.0.2.9", s.Lookup("anything.example.com", "A"))

				args["records"] = append(args["records"].([]any), record("www", "A", "192.0.2.1"))
				dnstest.Converges(t, module, args)
				assert.Equal(t, "192.0.2.1", s.Lookup("www.example.com", "A"))

				for i := range 10 {
					args["records"] = append(args["records"].([]any), record(fmt.Sprint("h", i), "A", "192.0.2.10"))
				}

				dnstest.Converges(t, module, args)

				args["state"], args["records"] = "absent", []any{}
				unsafe := dnstest.Fails(t, module, dnszone.CodeUnsafe, args)
				assert.Contains(t, unsafe.Msg, "14 of 14 records")
				assert.Equal(t, "192.0.2.1", s.Lookup("www.example.com", "A"))

				args["force"] = true
				dnstest.Converges(t, module, args)
				assert.Empty(t, s.Lookup("www.example.com", "A"))

				after, err := os.ReadDir(s.Dir)
				require.NoError(t, err)
				assert.Subset(t, append(names(before), "_default.nzf", "_default.nzd", "_default.nzd-lock", "timers", "journal", "keys", "catalog"), names(after))

				// Another one's zone is none of our business.
				args["name"] = "other.example"
				args["file"] = "/nowhere/zone"
				foreign := dnstest.Unchanged(t, module, args)
				assert.Contains(t, foreign.Warnings, "zone other.example: was not made by this module and is left alone")
			})
		}
	}
}

func names(entries []os.DirEntry) []string {
	var list []string
	for _, entry := range entries {
		list = append(list, entry.Name())
	}

	return list
}

// TestAZoneThatTheServerHasLost has somebody take a zone out of the server's configuration: it is served again with all that was in
// it, not made anew over what others have put into it.
func TestAZoneThatTheServerHasLost(t *testing.T) {
	for _, kind := range servers {
		for _, mode := range []string{"update", "file"} {
			t.Run(kind+" "+mode, func(t *testing.T) {
				s := dnstest.Start(t, kind)
				args := local(t, s, dict{"mode": mode, "create": true, "soa": dict{"primary": "ns1"}, "records": []any{
					record("@", "NS", "ns1"), record("ns1", "A", "192.0.2.53"),
				}})

				if mode == "update" {
					args["tsig"] = dict{"name": "update", "secret": dnstest.Secret("update")}
				}

				if kind == "knotd" && mode == "update" {
					args["config"] = "acl all\n"
				}

				dnstest.Converges(t, module, args)

				others := dnstest.With(args, dict{"records": []any{record("theirs", "A", "192.0.2.77")}})
				dnstest.Converges(t, module, others)
				assert.Equal(t, "192.0.2.77", s.Lookup("theirs.example.com", "A"))

				for _, more := range []any{record("ns1", "A", "192.0.2.53"), record("www", "A", "192.0.2.1")} {
					lose(s)
					assert.Empty(t, s.Lookup("ns1.example.com", "A"))

					other := dnstest.With(args, dict{"file": s.ZoneFile("moved.")})
					dnstest.Fails(t, module, dnszone.CodeForeign, other)

					again := dnstest.With(args, dict{"records": []any{record("@", "NS", "ns1"), more}})
					result := dnstest.Converges(t, module, again)
					assert.Contains(t, result.Plan[0], "the server has lost it")
					assert.Equal(t, "192.0.2.77", s.Lookup("theirs.example.com", "A"))
					assert.Equal(t, "192.0.2.53", s.Lookup("ns1.example.com", "A"))
				}

				assert.Equal(t, "192.0.2.1", s.Lookup("www.example.com", "A"))
			})
		}
	}
}

// lose takes the zone out of the server's configuration, and leaves all its files.
func lose(s *dnstest.Server) {
	if s.Kind == "named" {
		s.Run("rndc", "-c", s.Control, "delzone", "example.com")

		return
	}

	for _, words := range [][]string{{"conf-begin"}, {"conf-unset", "zone[" + zone + "]"}, {"conf-commit"}} {
		s.Run("knotc", append([]string{"-s", s.Control}, words...)...)
	}
}

// TestASomebodyElsesFileIsNotOverwritten has a file lie where a zone is to be made.
func TestASomebodyElsesFileIsNotOverwritten(t *testing.T) {
	s := dnstest.Start(t, "named")
	args := local(t, s, dict{"create": true, "mode": "file", "soa": dict{"primary": "ns1"}, "records": []any{
		record("@", "NS", "ns1"), record("ns1", "A", "192.0.2.53"),
	}})

	require.NoError(t, os.WriteFile(s.ZoneFile(zone), []byte(dnstest.MinimalZone(zone)+"theirs A 192.0.2.1\n"), 0o644))
	dnstest.Fails(t, module, dnszone.CodeForeign, args)

	// What an interrupted run left is taken up.
	require.NoError(t, os.WriteFile(s.ZoneFile(zone), []byte(dnstest.MinimalZone(zone)), 0o644))
	dnstest.Converges(t, module, args)
}

// TestZonesInAnIncludedFile makes zones known to named by a file that it includes, beside what stands there.
func TestZonesInAnIncludedFile(t *testing.T) {
	s := dnstest.Start(t, "named", dnstest.Zone{Name: "other.example."})
	args := local(t, s, dict{
		"create": true, "include": s.Include(), "soa": dict{"primary": "ns1"}, "records": []any{record("@", "NS", "ns1"), record("ns1", "A", "192.0.2.53")},
		"tsig": dict{"name": "update", "secret": dnstest.Secret("update")},
	})

	read := func() string {
		text, err := os.ReadFile(s.Include())
		require.NoError(t, err)

		return string(text)
	}

	// What named refuses is taken back.
	failed := dnstest.Fails(t, module, dnszone.CodeServer, dnstest.With(args, dict{"config": "no such statement;"}))
	assert.Contains(t, failed.Msg, "reconfig")
	assert.Equal(t, "// by hand\n", read())

	args["config"] = "allow-update { key \"update\"; }; // may change it\n# and read it\nallow-transfer { key update; };\n/* in\ntwo lines */"
	dnstest.Converges(t, module, args)
	assert.Equal(t, "192.0.2.53", s.Lookup("ns1.example.com", "A"))
	assert.Contains(t, read(), "// by hand\nzone \"example.com\" {")

	args["records"] = append(args["records"].([]any), record("www", "A", "192.0.2.1"))
	dnstest.Converges(t, module, args)

	args["state"], args["records"] = "absent", []any{}
	dnstest.Converges(t, module, args)
	assert.Equal(t, "// by hand\n", read())
	assert.Empty(t, s.Lookup("ns1.example.com", "A"))
	assert.NoFileExists(t, s.ZoneFile(zone))
	assert.NoFileExists(t, s.ZoneFile(zone)+".jnl")

	dnstest.Fails(t, module, dnszone.CodeFile, dnstest.With(args, dict{"state": "present", "include": "/nowhere/zones", "records": []any{record("@", "NS", "ns.example.net.")}}))
}

// TestASignedZoneInAFile has named sign what is in the file (inline-signing): the zone that it serves has a serial of its own, which
// runs ahead of the file's.
func TestASignedZoneInAFile(t *testing.T) {
	s := dnstest.Start(t, "named", dnstest.Zone{Name: zone, Signed: true, Static: true})

	status := func() string { return s.Run("rndc", "-c", s.Control, "zonestatus", "example.com") }
	signed := func(name, kind string) string {
		return s.Run("dig", "+dnssec", "+tcp", "-p", fmt.Sprint(s.Port), "@127.0.0.1", name, kind)
	}

	require.Eventually(t, func() bool { return strings.Contains(signed("ns1.example.com", "A"), "RRSIG") }, 20*time.Second, 100*time.Millisecond, "it is signed")

	args := local(t, s, dict{"mode": "file", "records": []any{record("www", "A", "192.0.2.1")}})

	for i := range 3 {
		args["records"] = []any{record("www", "A", fmt.Sprintf("192.0.2.%d", i+1))}
		result := dnstest.Converges(t, module, args)
		assert.Len(t, result.Plan, 1)
		require.Eventually(t, func() bool { return strings.Contains(signed("www.example.com", "A"), fmt.Sprintf("192.0.2.%d", i+1)) }, 10*time.Second, 50*time.Millisecond)
		assert.Contains(t, signed("www.example.com", "A"), "RRSIG")
		assert.Equal(t, true, result.Raw["zone"].(dict)["signed"])
	}

	// An edit by hand that was not loaded is.
	text, err := os.ReadFile(s.ZoneFile(zone))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.ZoneFile(zone), []byte(strings.Replace(string(text), " 4 7200", " 9 7200", 1)+"hand.example.com. 60 IN A 192.0.2.77\n"), 0o644))

	result := dnstest.Converges(t, module, args)
	assert.Contains(t, result.Plan[0], "serial 9, which is in the file already, instead of 4")
	assert.Contains(t, status(), "serial: 9")
}
