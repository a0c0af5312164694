// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// moreArgs is the spec of testdata/argspec/more.py, which records what ansible-core 2.19 answers to more arguments: the
// conversions one by one, and sub-options with everything that a level of options can have.
type moreArgs struct {
	Str    string           `ansible:"str" aliases:"text,txt"`
	Word   string           `ansible:"word" choices:"yes,no,maybe"`
	SDef   string           `ansible:"sdef" choices:"on,off,yes" default:"on"`
	Int    *int64           `ansible:"int"`
	IDef   int              `ansible:"idef" default:"3"`
	ICh    int              `ansible:"ich" choices:"1,2"`
	Float  float64          `ansible:"float"`
	Bool   bool             `ansible:"bool"`
	BDef   bool             `ansible:"bdef" default:"true"`
	Path   Path             `ansible:"path"`
	JSON   JSON             `ansible:"json"`
	Raw    any              `ansible:"raw"`
	Bytes  Bytes            `ansible:"bytes" default:"1K"`
	Bits   Bits             `ansible:"bits"`
	Dict   map[string]any   `ansible:"dict"`
	DDef   map[string]any   `ansible:"ddef" default:"{\"k\": 1}"`
	List   []any            `ansible:"list"`
	LDef   []string         `ansible:"ldef" default:"u"`
	LCh    []string         `ansible:"lch" choices:"a,b"`
	LInt   []int            `ansible:"lint"`
	LFloat []float64        `ansible:"lfloat"`
	LBool  []bool           `ansible:"lbool"`
	LPath  []Path           `ansible:"lpath"`
	LBytes []Bytes          `ansible:"lbytes"`
	LDict  []map[string]any `ansible:"ldict"`
	Dir    Path             `ansible:"dir" env:"X_NONE,X_DIR"`
	Req    []string         `ansible:"req,required"`
	Sub    *moreSub         `ansible:"sub"`
	Subs   []moreSub        `ansible:"subs"`
	App    moreInner        `ansible:"app,apply_defaults"`
}

type moreSub struct {
	A     int         `ansible:"a,required"`
	B     bool        `ansible:"b" default:"true"`
	C     string      `ansible:"c" choices:"x,y"`
	Pw    Secret      `ansible:"pw" aliases:"passwd"`
	Old   string      `ansible:"old" removed_in:"2.0.0" removed_from:"t.bin"`
	New   string      `ansible:"new" deprecated_aliases:"legacy=2030-01-01" removed_from:"t.bin"`
	Deep  *moreInner  `ansible:"deep"`
	Deeps []moreInner `ansible:"deeps"`
	Key   Secret      `ansible:"key" env:"X_NONE,X_SECRET"`
}

// ArgumentRules are those of SUBRULES in more.py.
func (moreSub) ArgumentRules() Rules {
	return Rules{
		MutuallyExclusive: [][]string{{"c", "deep"}},
		RequiredTogether:  [][]string{{"new", "pw"}},
		RequiredOneOf:     [][]string{{"b", "c"}},
		RequiredIf:        []RequiredIf{{Option: "b", Value: false, Needs: []string{"c"}}},
		RequiredBy:        map[string][]string{"c": {"pw"}},
	}
}

type moreInner struct {
	P int       `ansible:"p"`
	Q Secret    `ansible:"q" aliases:"qq"`
	R []float64 `ansible:"r"`
	S bool      `ansible:"s" default:"false"`
}

// notAsCore are arguments with which this package does not follow core.
var notAsCore = map[string]string{
	// The options that the text names come from a set whose order is random; here it is the first name's.
	`{"req":["r"],"sub":{"a":1,"deep":{"zz":1},"yy":2}}`:    "Supported parameters of another level",
	`{"req":["r"],"subs":[{"a":1,"deep":{"zz":1},"yy":2}]}`: "Supported parameters of another level",
}

func TestMoreArguments(t *testing.T) {
	spec, err := SpecOf(moreArgs{}, Rules{})
	require.NoError(t, err)

	file, err := os.Open(filepath.Join("testdata", "argspec", "more-2.19.jsonl"))
	require.NoError(t, err)

	defer file.Close()

	env := func(name string) (string, bool) {
		value, ok := map[string]string{"HOME": "/home/u", "X_DIR": "/srv", "X_SECRET": "from env"}[name]

		return value, ok
	}

	count := 0
	lines := bufio.NewScanner(file)

	for ; lines.Scan(); count++ {
		var want struct {
			Args         map[string]any
			Params       map[string]any
			Msg          string
			Warnings     []string
			Deprecations []string
		}

		decoder := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		decoder.UseNumber()
		require.NoError(t, decoder.Decode(&want))

		name, err := json.Marshal(want.Args)
		require.NoError(t, err)

		got, err := spec.DecodeEnv("t.bin.x", want.Args, env)

		if want.Msg != "" {
			if notAsCore[string(name)] == "" {
				assert.Equal(t, sortBooleans(answer{Msg: want.Msg}), sortBooleans(answer{Msg: errorText(err)}), string(name))
			}

			continue
		}

		if !assert.NoError(t, err, string(name)) {
			continue
		}

		given := map[string]any{}
		for option := range want.Params {
			given[option] = got.Params[option]
		}

		assert.Equal(t, normal(t, want.Params), normal(t, given), string(name))

		var deprecations []string
		for _, note := range got.Deprecations {
			deprecations = append(deprecations, note.Msg)
		}

		slices.Sort(deprecations)
		slices.Sort(got.Warnings)
		assert.ElementsMatch(t, want.Warnings, got.Warnings, string(name))
		assert.ElementsMatch(t, want.Deprecations, deprecations, string(name))

		var bound moreArgs

		err = Bind(got.Params, &bound)
		if err != nil { // only numbers that are too large for the field
			assert.Regexp(t, "does not fit into 64 bits$", err.Error(), string(name))
		}
	}

	require.NoError(t, lines.Err())
	assert.Equal(t, 426, count)
}

func errorText(err error) string {
	if err == nil {
		return ""
	}

	return err.Error()
}
