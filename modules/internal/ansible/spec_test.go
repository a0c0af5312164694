// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// connection is a group of options that several modules share.
type connection struct {
	Socket  Path     `ansible:"socket" default:"/var/lib/x.socket" env:"X_DIR,X_SOCKET"`
	Timeout Duration `ansible:"timeout" default:"5m"`
}

// everyType has a field of every kind that an option can have.
type everyType struct {
	connection

	Text     string                    `ansible:"text,required" aliases:"txt,t" json:"text"`
	Mode     string                    `ansible:"mode" choices:"on,off" default:"on"`
	Flag     bool                      `ansible:"flag"`
	Tri      *bool                     `ansible:"tri"`
	Number   int                       `ansible:"number" choices:"1,2,3"`
	Small    uint8                     `ansible:"small"`
	Ratio    float64                   `ansible:"ratio" default:"1.5"`
	Secret   Secret                    `ansible:"secret" env:"X_SECRET"`
	Secrets  []Secret                  `ansible:"secrets"`
	Hidden   map[string]string         `ansible:"hidden,secret"`
	Pws      map[string]Secret         `ansible:"pws"`
	Words    []string                  `ansible:"words" choices:"a,b" default:"a,b"`
	Files    []Path                    `ansible:"files" default:"~/a,~/b"`
	Kept     []string                  `ansible:"kept" elements:"path"`
	Size     Bytes                     `ansible:"size" default:"1K"`
	Plain    int64                     `ansible:"plain" type:"bytes"`
	Rate     *Bits                     `ansible:"rate"`
	Doc      JSON                      `ansible:"doc"`
	Raw      any                       `ansible:"raw"`
	Anything []any                     `ansible:"anything"`
	Waits    []Duration                `ansible:"waits"`
	Config   map[string]string         `ansible:"config"`
	Free     map[string]any            `ansible:"free" default:"{\"a\": 1}"`
	Nested   map[string]map[string]any `ansible:"nested"`
	Address  netip.Addr                `ansible:"address"`
	Disk     disk                      `ansible:"disk,apply_defaults"`
	Maybe    *disk                     `ansible:"maybe"`
	Disks    []disk                    `ansible:"disks"`
	Devices  map[string]disk           `ansible:"devices"`
	Old      string                    `ansible:"old" removed_at:"2030-01-01" removed_from:"t.bin" deprecated_aliases:"older=2029-01-01"`
	NotOne   int                       `ansible:"-"`

	//lint:ignore U1000 what Normalize would fill is no option
	normalised string
}

type disk struct {
	Path  Path     `ansible:"path" aliases:"dev"`
	Size  Bytes    `ansible:"size" default:"1G"`
	Key   Secret   `ansible:"key" aliases:"pass"`
	After Duration `ansible:"after"`
	Parts []part   `ansible:"parts"`
}

// ArgumentRules says that a key needs a path.
func (disk) ArgumentRules() Rules { return Rules{RequiredBy: map[string][]string{"key": {"path"}}} }

type part struct {
	Number int `ansible:"number,required"`
}

func everySpec(t *testing.T) *Spec {
	t.Helper()

	spec, err := SpecOf(everyType{}, Rules{})
	require.NoError(t, err)

	return spec
}

func TestSpecOfEveryType(t *testing.T) {
	spec := everySpec(t)

	types := map[string]string{
		"socket": "path", "timeout": "str", "text": "str", "mode": "str", "flag": "bool", "tri": "bool", "number": "int",
		"small": "int", "ratio": "float", "secret": "str", "secrets": "list/str", "hidden": "dict", "pws": "dict",
		"words": "list/str", "files": "list/path", "kept": "list/path", "size": "bytes", "plain": "bytes", "rate": "bits",
		"doc": "json", "raw": "raw", "anything": "list", "waits": "list/str", "config": "dict", "free": "dict",
		"nested": "dict", "address": "str", "disk": "dict", "maybe": "dict", "disks": "list/dict", "devices": "dict", "old": "str",
	}
	for name, option := range spec.Options {
		got := option.Type
		if option.Elements != "" {
			got += "/" + option.Elements
		}

		assert.Equal(t, types[name], got, name)
	}

	assert.Len(t, spec.Options, len(types))
	assert.Equal(t, []string{"socket", "timeout", "text"}, []string{spec.Order[0].Name, spec.Order[1].Name, spec.Order[2].Name},
		"embedded options stand where they are embedded")
	assert.True(t, spec.SupportsCheckMode)

	assert.Equal(t, []string{"txt", "t"}, spec.Options["text"].Aliases)
	assert.Equal(t, []string{"X_DIR", "X_SOCKET"}, spec.Options["socket"].Env)
	assert.Equal(t, []any{int64(1), int64(2), int64(3)}, spec.Options["number"].Choices)
	assert.Equal(t, []DeprecatedAlias{{Name: "older", Date: "2029-01-01", CollectionName: "t.bin"}}, spec.Options["old"].DeprecatedAliases)

	for name, want := range map[string]any{
		"timeout": "5m", "ratio": 1.5, "words": []any{"a", "b"}, "files": []any{"~/a", "~/b"}, "size": "1K",
		"free": map[string]any{"a": int64(1)},
	} {
		assert.Equal(t, want, spec.Options[name].Default, name)
		assert.True(t, spec.Options[name].HasDefault, name)
	}

	for name, secret := range map[string]bool{"secret": true, "secrets": true, "hidden": true, "pws": true, "config": false} {
		assert.Equal(t, secret, spec.Options[name].Secret, name)
	}

	devices := spec.Options["devices"]
	assert.Nil(t, devices.Options)
	assert.Equal(t, spec.Options["disks"].Options, devices.Values)
	assert.Equal(t, []string{"path"}, devices.Values.Rules.RequiredBy["key"])
	assert.NotNil(t, devices.Values.Options["parts"].Options.Options["number"])
}

type selfish struct {
	Again []selfish `ansible:"again"`
}

func TestSpecOfRefuses(t *testing.T) {
	tests := map[string]struct {
		args  any
		rules Rules
		want  string
	}{
		"no struct": {5, Rules{}, "arguments are a struct, not int"},
		"nothing":   {nil, Rules{}, "arguments are a struct, not <nil>"},
		"no tag":    {struct{ A string }{}, Rules{}, `options are exported fields with an "ansible" tag`},
		"tag, but not exported": {struct {
			a string `ansible:"a"`
		}{}, Rules{}, `options are exported fields with an "ansible" tag`},
		"no name": {struct {
			A string `ansible:",required"`
		}{}, Rules{}, `"" is not a name for an option`},
		"internal name": {struct {
			A string `ansible:"_ansible_x"`
		}{}, Rules{}, `"_ansible_x" is not a name for an option`},
		"misspelt word": {struct {
			A string `ansible:"a,requierd"`
		}{}, Rules{}, `the word "requierd" is unknown`},
		"misspelt key": {struct {
			A string `ansible:"a" defualt:"x"`
		}{}, Rules{}, `tag key "defualt" is unknown`},
		"Go type": {struct {
			A chan int `ansible:"a"`
		}{}, Rules{}, "chan int is no type for an option"},
		"keys": {struct {
			A map[int]string `ansible:"a"`
		}{}, Rules{}, "the keys of a dict are text"},
		"two levels of free keys": {struct {
			A map[string]map[string]part `ansible:"a"`
		}{}, Rules{}, "only one level of free keys"},
		"list of free keys": {struct {
			A []map[string]part `ansible:"a"`
		}{}, Rules{}, "a list of dicts with free keys"},
		"type": {struct {
			A string `ansible:"a" type:"int"`
		}{}, Rules{}, `type "int" does not fit the Go type`},
		"unknown type": {struct {
			A any `ansible:"a" type:"integer"`
		}{}, Rules{}, `type "integer" does not fit the Go type`},
		"elements of no list": {struct {
			A string `ansible:"a" elements:"str"`
		}{}, Rules{}, `elements "str" does not fit the Go type`},
		"default of another type": {struct {
			A int `ansible:"a" default:"x"`
		}{}, Rules{}, `default: "'x'" cannot be converted to an int`},
		"default is no choice": {struct {
			A string `ansible:"a" choices:"x,y" default:"z"`
		}{}, Rules{}, "default: value of a must be one of: x, y, got: z"},
		"default duration": {struct {
			A time.Duration `ansible:"a" default:"soon"`
		}{}, Rules{}, `default: "soon" is not a duration`},
		"default and required": {struct {
			A string `ansible:"a,required" default:"x"`
		}{}, Rules{}, "a required option has no default"},
		"choice of another type": {struct {
			A int `ansible:"a" choices:"1,b"`
		}{}, Rules{}, `choice "b"`},
		"the same name": {struct {
			A string `ansible:"a"`
			B string `ansible:"a"`
		}{}, Rules{}, `option "a" occurs twice`},
		"alias of another": {struct {
			A string `ansible:"a" aliases:"b"`
			B string `ansible:"b"`
		}{}, Rules{}, `the name "b" is taken twice`},
		"deprecated alias": {struct {
			A string `ansible:"a" deprecated_aliases:"b"`
		}{}, Rules{}, `not of the form "name=version"`},
		"apply_defaults": {struct {
			A string `ansible:"a,apply_defaults"`
		}{}, Rules{}, "apply_defaults needs sub-options"},
		"inside itself":    {selfish{}, Rules{}, "contains itself"},
		"pointer embedded": {struct{ *connection }{}, Rules{}, "an embedded field is a struct"},
		"in sub-options": {struct {
			A struct{ B int } `ansible:"a"`
		}{}, Rules{}, `options are exported fields`},
		"rule about nothing": {part{}, Rules{RequiredOneOf: [][]string{{"number", "nothing"}}}, `a rule names "nothing"`},
		"rule needs nothing": {part{}, Rules{RequiredBy: map[string][]string{"number": {"nothing"}}}, `a rule names "nothing"`},
		"rule about no choice": {everyType{}, Rules{RequiredIf: []RequiredIf{{Option: "mode", Value: "up", Needs: []string{"text"}}}},
			"value of mode must be one of: on, off, got: up"},
		"rule with a Go type": {everyType{}, Rules{RequiredIf: []RequiredIf{{Option: "text", Value: Path("x"), Needs: []string{"mode"}}}},
			"holds a Go value of type ansible.Path"},
	}

	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := SpecOf(test.args, test.rules)
			assert.ErrorContains(t, err, test.want)
		})
	}
}

func TestMalformedTag(t *testing.T) {
	for _, tag := range []string{`ansible:"a" default:x`, `ansible`, `ansible:"a`, `:"a"`} {
		_, err := parseTag(tag)
		assert.ErrorContains(t, err, "is malformed", tag)
	}
}
