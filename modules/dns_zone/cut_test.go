// SPDX-License-Identifier: Apache-2.0

package dnszone_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	dnszone "github.com/thinkube/infra/modules/dns_zone"
	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/dnstest"
)

// inFrontOf puts a shell script in the place of a server's tool, which it finds as $REAL.
func inFrontOf(t *testing.T, script string, tools ...string) {
	t.Helper()

	folder := t.TempDir()

	for _, tool := range tools {
		text := fmt.Sprintf("#!/bin/sh\nREAL=%s\n%s\n", dnstest.Find(tool), script)
		require.NoError(t, os.WriteFile(filepath.Join(folder, tool), []byte(text), 0o755))
	}

	t.Setenv("PATH", folder+":"+os.Getenv("PATH"))
}

// TestMain has this program be the module when it is started for that: with a folder of its own for records.
func TestMain(m *testing.M) {
	if root, ok := os.LookupEnv("TEST_AS_PROGRAM"); ok {
		dnszone.SetRecordRoot(root)
		os.Exit(ansible.Standalone(module, os.Args, os.Stdout, os.Stderr))
	}

	os.Exit(m.Run())
}

// asProgram is the module as a process of its own, which can be killed.
func asProgram(t *testing.T, args dict, environment ...string) *exec.Cmd {
	t.Helper()

	text, err := json.Marshal(args)
	require.NoError(t, err)

	file := filepath.Join(t.TempDir(), "args")
	require.NoError(t, os.WriteFile(file, text, 0o600))

	run := exec.Command(os.Args[0], file)
	run.Env = append(append(os.Environ(), "TEST_AS_PROGRAM="+recordRoot), environment...)

	return run
}

// toolsOf are what the module runs.
var toolsOf = map[string][]string{"named": {"rndc", "named-checkzone"}, "knotd": {"knotc", "kzonecheck"}}

// TestAFileThatWasNotLoaded has the server not take a new file at once: later runs do not say that all is well.
func TestAFileThatWasNotLoaded(t *testing.T) {
	for _, kind := range servers {
		t.Run(kind, func(t *testing.T) {
			s := dnstest.Start(t, kind, dnstest.Zone{Name: zone, Static: true})
			args := local(t, s, dict{"mode": "file", "settle": "300ms", "records": []any{record("www", "A", "192.0.2.1")}})

			mark := filepath.Join(t.TempDir(), "once")
			inFrontOf(t, fmt.Sprintf(`case "$*" in *reload*) [ -e %[1]s ] || { touch %[1]s; exit 1; };; esac; exec $REAL "$@"`, mark), toolsOf[kind][0])
			dnstest.Fails(t, module, dnszone.CodeServer, args)
			assert.Empty(t, s.Lookup("www.example.com", "A"))

			result := dnstest.Converges(t, module, args)
			assert.Equal(t, []string{"change zone example.com (serial 2, which is in the file already, instead of 1)"}, result.Plan)
			assert.Equal(t, "192.0.2.1", s.Lookup("www.example.com", "A"))

			// By hand, and forgotten.
			text, err := os.ReadFile(s.ZoneFile(zone))
			require.NoError(t, err)

			edited := strings.Replace(string(text), " 2 7200", " 5 7200", 1) + "hand A 192.0.2.77\n"
			require.NoError(t, os.WriteFile(s.ZoneFile(zone), []byte(edited), 0o644))
			dnstest.Converges(t, module, args)
			assert.Equal(t, "192.0.2.77", s.Lookup("hand.example.com", "A"))

			// A server that could not load the zone at all.
			broken := dnstest.Start(t, kind, dnstest.Zone{Name: "other.example."}, dnstest.Zone{Name: zone, Text: "@ SOA nonsense", Static: true, Broken: true})
			args = dnstest.With(args, dict{"port": broken.Port, "control": broken.Control, "file": broken.ZoneFile(zone), "settle": "10s"})
			dnstest.Fails(t, module, dnszone.CodeFile, args)
			require.NoError(t, os.WriteFile(broken.ZoneFile(zone), []byte(edited), 0o644))
			assert.Contains(t, dnstest.Converges(t, module, args).Plan[0], "instead of none")
		})
	}
}

// TestAFileThatIsEditedMeanwhile has somebody else write to a file while the server's check looks at what is to take its place.
func TestAFileThatIsEditedMeanwhile(t *testing.T) {
	for _, kind := range servers {
		t.Run(kind, func(t *testing.T) {
			s := dnstest.Start(t, kind, dnstest.Zone{Name: zone, Static: true})
			args := local(t, s, dict{"mode": "file", "records": []any{record("www", "A", "192.0.2.1")}})

			mark := filepath.Join(t.TempDir(), "once")
			inFrontOf(t, fmt.Sprintf(`[ -e %[1]s ] || { touch %[1]s; echo 'hand A 192.0.2.77' >>%[2]s; }; exec $REAL "$@"`, mark, s.ZoneFile(zone)), toolsOf[kind][1])
			dnstest.OK(t, module, args)
			assert.Equal(t, "192.0.2.77", s.Lookup("hand.example.com", "A"))
			assert.Equal(t, "192.0.2.1", s.Lookup("www.example.com", "A"))

			// One that never stops.
			inFrontOf(t, fmt.Sprintf(`echo "; $$" >>%s; exec $REAL "$@"`, s.ZoneFile(zone)), toolsOf[kind][1])
			failed := dnstest.Run(t, module, dnstest.With(args, dict{"records": []any{record("b", "A", "192.0.2.2")}}))
			assert.Equal(t, "conflict", failed.Failure.Code, "%s", failed.Msg)
			assert.Empty(t, s.Lookup("b.example.com", "A"))

			// And a file that comes into being where a zone is to be made.
			made := dnstest.With(args, dict{"name": "example.net", "create": true, "file": s.ZoneFile("example.net."), "soa": dict{"primary": "ns1"}, "records": []any{
				record("@", "NS", "ns1"), record("ns1", "A", "192.0.2.53"),
			}})
			inFrontOf(t, fmt.Sprintf(`echo ';' >>%s; exec $REAL "$@"`, s.ZoneFile("example.net.")), toolsOf[kind][1])
			failed = dnstest.Run(t, module, made)
			assert.True(t, failed.Failed)
			assert.False(t, failed.Changed)

			text, err := os.ReadFile(s.ZoneFile("example.net."))
			require.NoError(t, err)
			assert.Equal(t, ";\n", string(text), "theirs is left as it is")
		})
	}
}

// TestAnIncludeThatIsEditedMeanwhile has somebody else write to what named includes while it reads that, and refuses our line: only
// that goes.
func TestAnIncludeThatIsEditedMeanwhile(t *testing.T) {
	s := dnstest.Start(t, "named")
	args := local(t, s, dict{"create": true, "include": s.Include(), "config": "no such statement;", "soa": dict{"primary": "ns1"}, "records": []any{
		record("@", "NS", "ns1"), record("ns1", "A", "192.0.2.53"),
	}})

	mark := filepath.Join(t.TempDir(), "once")
	inFrontOf(t, fmt.Sprintf(`case "$*" in *reconfig*) [ -e %[1]s ] || { touch %[1]s; echo '// too' >>%[2]s; };; esac; exec $REAL "$@"`, mark, s.Include()), "rndc")
	dnstest.Fails(t, module, dnszone.CodeServer, args)
	assert.FileExists(t, mark)

	text, err := os.ReadFile(s.Include())
	require.NoError(t, err)
	assert.Equal(t, "// by hand\n// too\n", string(text))
	assert.Empty(t, recorded(t))
	assert.NoFileExists(t, s.ZoneFile(zone))
}

// TestAZoneThatTheServerDoesNotTake is none of ours, also not when somebody else makes it later.
func TestAZoneThatTheServerDoesNotTake(t *testing.T) {
	for _, kind := range servers {
		t.Run(kind, func(t *testing.T) {
			s := dnstest.Start(t, kind)
			args := local(t, s, dict{"create": true, "mode": "file", "soa": dict{"primary": "ns1"}, "records": []any{
				record("@", "NS", "ns1"), record("ns1", "A", "192.0.2.53"),
			}})

			refused := dnstest.With(args, dict{"config": map[string]string{"named": "no such statement;", "knotd": "no such statement\n"}[kind]})
			failed := dnstest.Fails(t, module, dnszone.CodeServer, refused)
			assert.False(t, failed.Changed)
			assert.NoFileExists(t, s.ZoneFile(zone))
			assert.Empty(t, recorded(t))

			// What lay there stays.
			require.NoError(t, os.WriteFile(s.ZoneFile(zone), []byte(dnstest.MinimalZone(zone)), 0o644))
			dnstest.Fails(t, module, dnszone.CodeServer, refused)

			text, err := os.ReadFile(s.ZoneFile(zone))
			require.NoError(t, err)
			assert.Equal(t, dnstest.MinimalZone(zone), string(text))

			s.AddZone(zone, s.ZoneFile(zone))

			absent := dnstest.With(args, dict{"state": "absent", "records": []any{}})
			dnstest.Unchanged(t, module, absent)
			assert.Equal(t, "192.0.2.53", s.Lookup("ns1.example.com", "A"))

			// Nor is one that somebody made in another file after a run that was cut.
			require.NoError(t, os.MkdirAll(filepath.Join(recordRoot, "dns_zone"), 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(recordRoot, "dns_zone", "example.com..json"), []byte(`{"file": "/nowhere/zone"}`), 0o600))

			left := dnstest.Unchanged(t, module, absent)
			assert.Contains(t, strings.Join(left.Warnings, "\n"), "somebody else")
			assert.Equal(t, "192.0.2.53", s.Lookup("ns1.example.com", "A"))
		})
	}
}

// TestAZoneThatCannotBeLoadedIsRemoved as any other that this module made, if the server tells that it is that.
func TestAZoneThatCannotBeLoadedIsRemoved(t *testing.T) {
	for _, kind := range servers {
		t.Run(kind, func(t *testing.T) {
			s := dnstest.Start(t, kind, dnstest.Zone{Name: zone, Text: "@ SOA nonsense", Broken: true})
			absent := local(t, s, dict{"create": true, "state": "absent"})

			require.NoError(t, os.MkdirAll(filepath.Join(recordRoot, "dns_zone"), 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(recordRoot, "dns_zone", "example.com..json"), fmt.Appendf(nil, `{"file": %q}`, s.ZoneFile(zone)), 0o600))

			if kind == "named" {
				path := os.Getenv("PATH")
				inFrontOf(t, `case "$*" in *showzone*) echo "rndc: 'showzone' failed: failure"; exit 1;; esac; exec $REAL "$@"`, "rndc")
				assert.Contains(t, dnstest.Fails(t, module, dnszone.CodeServer, absent).Msg, "not known")
				assert.FileExists(t, s.ZoneFile(zone))
				t.Setenv("PATH", path)
			}

			assert.Contains(t, dnstest.Fails(t, module, dnszone.CodeUnsafe, absent).Msg, "cannot be read")
			dnstest.Converges(t, module, dnstest.With(absent, dict{"force": true}))
			assert.NoFileExists(t, s.ZoneFile(zone))
			assert.Empty(t, recorded(t))
		})
	}
}

// recorded lists what the module has noted.
func recorded(t *testing.T) []string {
	t.Helper()

	found, err := filepath.Glob(filepath.Join(recordRoot, "*", "*"))
	require.NoError(t, err)

	return found
}

// TestKilledAtEveryStep cuts the program before each thing that it has the server do, and runs the task again. A kill after a step
// of the plan is among these: the next thing is the question whether the zone is there.
func TestKilledAtEveryStep(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}

	for _, kind := range servers {
		for _, include := range []bool{false, true}[:map[string]int{"named": 2, "knotd": 1}[kind]] {
			t.Run(fmt.Sprintf("%s include=%t", kind, include), func(t *testing.T) {
				cutEverywhere(t, dnstest.Start(t, kind), include)
			})
		}
	}
}

func cutEverywhere(t *testing.T, s *dnstest.Server, include bool) {
	t.Helper()

	args := local(t, s, dict{"create": true, "mode": "file", "soa": dict{"primary": "ns1"}, "records": []any{
		record("@", "NS", "ns1"), record("ns1", "A", "192.0.2.53"),
	}})
	if include {
		args["include"] = s.Include()
	}

	changed := dnstest.With(args, dict{"records": append([]any{record("www", "A", "192.0.2.1")}, args["records"].([]any)...)})
	absent := dnstest.With(args, dict{"state": "absent", "records": []any{}})

	// The script counts the calls, and kills its parent at one of them.
	count := filepath.Join(t.TempDir(), "count")
	inFrontOf(t, fmt.Sprintf(`echo >>%[1]s
n=$(wc -l <%[1]s)
[ "$n" != "$CUT_BEFORE" ] || { kill -9 $PPID; exit 1; }
exec "$REAL" "$@"`, count), toolsOf[s.Kind]...)

	cut := func(args dict, n int) bool {
		require.NoError(t, os.WriteFile(count, nil, 0o600))

		run := asProgram(t, args, fmt.Sprintf("CUT_BEFORE=%d", n))
		output, err := run.CombinedOutput()

		if err == nil {
			return false
		}

		require.ErrorContains(t, err, "killed", "%s", output)

		return true
	}

	clean := func() {
		t.Helper()
		dnstest.Run(t, module, absent)
		dnstest.Unchanged(t, module, absent)
		assert.Empty(t, s.Lookup("ns1.example.com", "A"))
		assert.Empty(t, recorded(t))

		left, err := filepath.Glob(filepath.Join(s.Dir, "*example.com*"))
		require.NoError(t, err)
		assert.Empty(t, left)
	}

	cuts := 0

	for n := 1; cut(args, n); n++ {
		// Gone on with, and removed.
		dnstest.OK(t, module, args)
		assert.Equal(t, "192.0.2.53", s.Lookup("ns1.example.com", "A"))
		clean()

		// Removed at once.
		require.True(t, cut(args, n))
		clean()

		cuts++
	}

	dnstest.OK(t, module, args)

	for n := 1; cut(changed, n); n++ {
		dnstest.OK(t, module, changed)
		assert.Equal(t, "192.0.2.1", s.Lookup("www.example.com", "A"))
		dnstest.OK(t, module, dnstest.With(args, dict{"manage": "zone", "ignore": []any{}}))

		cuts++
	}

	for n := 1; cut(absent, n); n++ {
		clean()
		dnstest.OK(t, module, args)

		cuts++
	}

	clean()
	assert.Greater(t, cuts, 9)
}
