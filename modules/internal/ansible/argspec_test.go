// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// testdata/argspec holds what ansible-core's own AnsibleModule answered to 174 sets of arguments, one file a version.
// 2.19 is the judge. What the other versions do otherwise is in differences.txt, and nothing else is.
//
// Two things of 2.19 are not followed: the list of valid booleans, whose order is random there, and the case
// "suboptions [1]", in which core crashes; the answer here is the error that core had noted before it crashed.

// recorded is one line of a corpus file.
type recorded struct {
	Case   string         `json:"case"`
	Args   map[string]any `json:"args"`
	Opt    map[string]any `json:"opt"`
	Result map[string]any `json:"result"`
}

func readCorpus(t *testing.T, version string) []recorded {
	t.Helper()

	file, err := os.Open(filepath.Join("testdata", "argspec", "corpus-"+version+".jsonl"))
	require.NoError(t, err)

	defer file.Close()

	var cases []recorded

	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var one recorded

		decoder := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		decoder.UseNumber()
		require.NoError(t, decoder.Decode(&one))

		cases = append(cases, one)
	}

	require.NoError(t, lines.Err())
	require.Len(t, cases, 174)

	return cases
}

// corpusSpec is the argument_spec with which the corpus was recorded.
func corpusSpec() *Spec {
	options := func(list ...*Option) *Spec {
		spec := &Spec{Options: map[string]*Option{}, SupportsCheckMode: true}
		for _, o := range list {
			spec.add(o)
		}

		return spec
	}

	sub := options(
		&Option{Name: "a", Type: "int", Required: true},
		&Option{Name: "b", Type: "bool", Default: true, HasDefault: true},
		&Option{Name: "c", Type: "str", Choices: []any{"x", "y"}},
		&Option{Name: "pw", Type: "str", Secret: true},
	)
	subs := options(
		&Option{Name: "k", Type: "str", Required: true},
		&Option{Name: "v", Type: "int"},
	)
	spec := options(
		&Option{Name: "name", Type: "str", Aliases: []string{"title"}, Required: true},
		&Option{Name: "state", Type: "str", Choices: []any{"present", "absent"}, Default: "present", HasDefault: true},
		&Option{Name: "count", Type: "int"},
		&Option{Name: "ratio", Type: "float"},
		&Option{Name: "force", Type: "bool", Default: false, HasDefault: true},
		&Option{Name: "tags", Type: "list", Elements: "str"},
		&Option{Name: "ports", Type: "list", Elements: "int"},
		&Option{Name: "labels", Type: "dict"},
		&Option{Name: "path", Type: "path"},
		&Option{Name: "any", Type: "raw"},
		&Option{Name: "js", Type: "json"},
		&Option{Name: "size", Type: "bytes"},
		&Option{Name: "speed", Type: "bits"},
		&Option{Name: "password", Type: "str", Secret: true},
		&Option{Name: "old", Type: "str", RemovedIn: "3.0.0", RemovedFrom: "t.bin"},
		&Option{Name: "olddate", Type: "str", RemovedAt: "2030-01-01", RemovedFrom: "t.bin"},
		&Option{Name: "new", Type: "str", Aliases: []string{"legacy"}, RemovedFrom: "t.bin",
			DeprecatedAliases: []DeprecatedAlias{{Name: "legacy", Version: "3.0.0", CollectionName: "t.bin"}}},
		&Option{Name: "sub", Type: "dict", Options: sub},
		&Option{Name: "subs", Type: "list", Elements: "dict", Options: subs},
		&Option{Name: "token", Type: "str", Secret: true},
	)
	spec.Rules = corpusRules()

	return spec
}

func corpusRules() Rules {
	return Rules{
		MutuallyExclusive: [][]string{{"count", "ratio"}},
		RequiredTogether:  [][]string{{"tags", "ports"}},
		RequiredIf: []RequiredIf{
			{Option: "state", Value: "absent", Needs: []string{"force"}, Any: true},
			{Option: "name", Value: "needpath", Needs: []string{"path", "count"}},
			{Option: "name", Value: "any1", Needs: []string{"path", "count"}, Any: true},
		},
		RequiredBy: map[string][]string{"labels": {"path"}},
	}
}

// corpusArgs is the same as a struct with tags.
type corpusArgs struct {
	Name     string         `ansible:"name,required" aliases:"title"`
	State    string         `ansible:"state" choices:"present,absent" default:"present"`
	Count    *int64         `ansible:"count"`
	Ratio    *float64       `ansible:"ratio"`
	Force    bool           `ansible:"force" default:"false"`
	Tags     []string       `ansible:"tags"`
	Ports    []int          `ansible:"ports"`
	Labels   map[string]any `ansible:"labels"`
	Path     Path           `ansible:"path"`
	Any      any            `ansible:"any"`
	JS       JSON           `ansible:"js"`
	Size     *Bytes         `ansible:"size"`
	Speed    *Bits          `ansible:"speed"`
	Password Secret         `ansible:"password"`
	Old      string         `ansible:"old" removed_in:"3.0.0" removed_from:"t.bin"`
	OldDate  string         `ansible:"olddate" removed_at:"2030-01-01" removed_from:"t.bin"`
	New      string         `ansible:"new" deprecated_aliases:"legacy=3.0.0" removed_from:"t.bin"`
	Sub      *corpusSub     `ansible:"sub"`
	Subs     []corpusItem   `ansible:"subs"`
	Token    Secret         `ansible:"token"`
}

type corpusSub struct {
	A  int    `ansible:"a,required"`
	B  bool   `ansible:"b" default:"true"`
	C  string `ansible:"c" choices:"x,y"`
	Pw Secret `ansible:"pw"`
}

type corpusItem struct {
	K string `ansible:"k,required"`
	V *int   `ansible:"v"`
}

func TestTagsMakeTheSameSpec(t *testing.T) {
	spec, err := SpecOf(&corpusArgs{}, corpusRules())
	require.NoError(t, err)
	assert.Equal(t, corpusSpec(), spec)
}

// changed gives the spec with what a case changes in it.
func changed(t *testing.T, opt map[string]any) *Spec {
	t.Helper()

	spec := corpusSpec()

	for key, value := range opt {
		switch key {
		case "required_one_of":
			for _, group := range value.([]any) {
				var names []string
				for _, name := range group.([]any) {
					names = append(names, name.(string))
				}

				spec.Rules.RequiredOneOf = append(spec.Rules.RequiredOneOf, names)
			}
		case "supports_check_mode":
			spec.SupportsCheckMode = value.(bool)
		case "add_file_common_args":
			for _, name := range []string{"owner", "group", "seuser", "serole", "setype", "selevel"} {
				spec.add(&Option{Name: name})
			}

			spec.add(&Option{Name: "mode", Type: "raw"})
			spec.add(&Option{Name: "attributes", Aliases: []string{"attr"}})
			spec.add(&Option{Name: "unsafe_writes", Type: "bool", Default: false, HasDefault: true, Env: []string{"ANSIBLE_UNSAFE_WRITES"}})
		default:
			t.Fatalf("unknown change %q", key)
		}
	}

	return spec
}

// testEnv is the environment of the recording.
func testEnv(name string) (string, bool) {
	if name == "HOME" {
		return "/home/u", true
	}

	return "", false
}

// answer is what a module says, in a form in which the versions can be compared.
type answer struct {
	Msg          string
	Failed       bool
	Skipped      bool
	Params       any
	Invocation   any
	Warnings     []string
	Deprecations []Deprecation
}

func ours(t *testing.T, one recorded) answer {
	t.Helper()

	spec := changed(t, one.Opt)
	decoded, err := spec.DecodeEnv("t.bin.x", one.Args, testEnv)

	mask := NewMasker()
	mask.Add(decoded.Secrets...)

	got := answer{Warnings: decoded.Warnings, Deprecations: decoded.Deprecations}

	switch {
	case err != nil:
		got.Failed, got.Msg = true, mask.Text(err.Error())
	case one.Args["_ansible_check_mode"] == true && !spec.SupportsCheckMode:
		got.Skipped, got.Msg = true, SkipText("t.bin.x")
	default:
		got.Params = normal(t, json.RawMessage(masked(t, mask, decoded.Params)))
	}

	if one.Result["invocation"] != nil {
		got.Invocation = normal(t, map[string]any{"module_args": json.RawMessage(masked(t, mask, decoded.Params))})
	}

	return sortBooleans(got)
}

// theirs reads the recorded result of any version.
func theirs(t *testing.T, one recorded) answer {
	t.Helper()

	result := one.Result
	got := answer{Failed: result["failed"] == true, Skipped: result["skipped"] == true}
	got.Msg, _ = result["msg"].(string)

	if crash, ok := result["_crash"].(string); ok {
		got.Failed, got.Msg = true, "crash: "+crash
	}

	if result["params"] != nil {
		got.Params = normal(t, result["params"])
	}

	if result["invocation"] != nil {
		got.Invocation = normal(t, result["invocation"])
	}

	warnings, _ := result["warnings"].([]any)
	for _, warning := range warnings {
		got.Warnings = append(got.Warnings, message(warning))
	}

	deprecations, _ := result["deprecations"].([]any)
	for _, note := range deprecations {
		fields := note.(map[string]any)
		one := Deprecation{Msg: message(note)}
		one.Version, _ = fields["version"].(string)
		one.Date, _ = fields["date"].(string)
		one.CollectionName, _ = fields["collection_name"].(string)

		if deprecator, ok := fields["deprecator"].(map[string]any); ok {
			one.CollectionName, _ = deprecator["resolved_name"].(string)
		}

		got.Deprecations = append(got.Deprecations, one)
	}

	return sortBooleans(got)
}

// message finds the text in a warning or deprecation: a text, {msg}, or {event: {msg}}.
func message(value any) string {
	switch v := value.(type) {
	case string:
		return v
	case map[string]any:
		if event, ok := v["event"]; ok {
			return message(event)
		}

		return message(v["msg"])
	default:
		return fmt.Sprint(value)
	}
}

// normal goes through JSON, as a result does, and makes equal numbers equal: 1 and 1.0.
func normal(t *testing.T, value any) any {
	t.Helper()

	text, err := json.Marshal(value)
	require.NoError(t, err)

	var decoded any

	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	require.NoError(t, decoder.Decode(&decoded))

	return exact(decoded)
}

func exact(value any) any {
	switch v := value.(type) {
	case json.Number:
		number, _ := new(big.Rat).SetString(v.String())

		return "number " + number.RatString()
	case []any:
		for i, item := range v {
			v[i] = exact(item)
		}
	case map[string]any:
		for key, item := range v {
			v[key] = exact(item)
		}
	}

	return value
}

// sortBooleans orders the list that is random in core.
func sortBooleans(a answer) answer {
	const mark = "Valid booleans include: "

	before, list, found := strings.Cut(a.Msg, mark)
	if found {
		words := strings.Split(list, ", ")
		slices.Sort(words)
		a.Msg = before + mark + strings.Join(words, ", ")
	}

	return a
}

func TestCorpus219(t *testing.T) {
	for _, one := range readCorpus(t, "2.19") {
		t.Run(one.Case, func(t *testing.T) {
			if one.Case == "suboptions [1]" {
				require.Contains(t, one.Result, "_crash")
				assert.Equal(t, answer{
					Failed: true, Msg: "Value '1' in the sub parameter field 'sub' must be a dict, not 'int'",
				}, ours(t, one))

				return
			}

			assert.Equal(t, theirs(t, one), ours(t, one))
		})
	}
}

// TestOtherVersions compares with versions that are not the judge: each difference has its reason in differences.txt.
func TestOtherVersions(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "argspec", "differences.txt"))
	require.NoError(t, err)

	listed := map[string][]string{}

	for _, line := range strings.Split(string(text), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}

		parts := strings.SplitN(line, " | ", 3)
		require.Len(t, parts, 3, "want \"version | case | reason\": %q", line)
		require.NotEmpty(t, parts[2])

		listed[parts[0]] = append(listed[parts[0]], parts[1])
	}

	for version, count := range map[string]int{"2.14": 36, "2.22": 6} {
		var differ []string

		for _, one := range readCorpus(t, version) {
			if !assert.ObjectsAreEqual(theirs(t, one), ours(t, one)) {
				differ = append(differ, one.Case)
			}
		}

		assert.Equal(t, listed[version], differ, version)
		assert.Len(t, differ, count, version)
	}
}
