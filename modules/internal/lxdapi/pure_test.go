// SPDX-License-Identifier: Apache-2.0

package lxdapi

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMakeConfig(t *testing.T) {
	config, err := MakeConfig("config", map[string]any{
		"a": true, "b": json.Number("2"), "c": "x", "d": nil, "e": 1.5, "f": int64(9007199254740993),
	})
	require.NoError(t, err)
	assert.Equal(t, Config{"a": "true", "b": "2", "c": "x", "d": "", "e": "1.5", "f": "9007199254740993"}, config)

	_, err = MakeConfig("config", map[string]any{"b": []any{1}, "a": map[string]any{}})
	assert.EqualError(t, err, `config["a"]: must be text, a number or a boolean, got a list or dict; `+
		`config["b"]: must be text, a number or a boolean, got a list or dict`)
}

func TestMergeAndReplace(t *testing.T) {
	current := Config{"limits.cpu": "1", "user.x": "y", "volatile.uuid": "u"}
	wanted := Config{"limits.cpu": "2", "user.x": ""}

	assert.Equal(t, Config{"limits.cpu": "2", "volatile.uuid": "u"}, Merge(current, wanted))
	assert.Equal(t, Config{"limits.cpu": "2", "volatile.uuid": "u"}, Replace(current, wanted))
	assert.Equal(t, Config{"limits.cpu": "1", "user.x": "y", "volatile.uuid": "u"}, current, "the current state is not touched")
}

func TestDifferencesDoNotPrintDocuments(t *testing.T) {
	before := Config{"cloud-init.user-data": "password: hunter2", "limits.cpu": "1", "gone": "x", "long": "a"}
	after := Config{"cloud-init.user-data": "password: other", "limits.cpu": "2", "long": "a\nb"}
	assert.Equal(t, []string{"new cloud-init.user-data", "remove gone", "limits.cpu=2 (was 1)", "new long"}, Differences(before, after))
}

func TestMarks(t *testing.T) {
	foreign := Config{"a": "1", "b": "2"}
	first := Config{"a": "9", "b": "2", "c": "3"}
	marks := Marks{}.Changed(foreign, first)

	// A later change keeps the first original, also through the server and back.
	plain, marks, err := SplitMarks(marks.Into(first))
	require.NoError(t, err)
	assert.Equal(t, first, plain)

	second := Config{"a": "8", "b": "2", "c": "3"}
	marks = marks.Changed(first, second)

	restored, left := marks.Restore(second)
	assert.Equal(t, foreign, restored)
	assert.Empty(t, left)

	// What somebody else changed since stays, and so does what they added.
	restored, left = marks.Restore(Config{"a": "7", "b": "2", "c": "3", "d": "4"})
	assert.Equal(t, Config{"a": "7", "b": "2", "d": "4"}, restored)
	assert.Equal(t, []string{"a"}, left)

	// Back at the original, there is nothing to undo.
	assert.Empty(t, marks.Changed(second, foreign).Into(Config{}))
	assert.Equal(t, Marks{Created: true}, Marks{Created: true}.Changed(first, second), "what we made is ours as a whole")

	_, _, err = SplitMarks(Config{undoKey: "garbage"})
	assert.Error(t, err, "an unreadable mark is no missing mark")
}

func TestQuorum(t *testing.T) {
	member := func(voter, online bool) Member { return Member{Voter: voter, Online: online} }

	for _, test := range []struct {
		name    string
		members []Member
		margin  int
	}{
		{"one", []Member{member(true, true)}, 0},
		{"three", []Member{member(true, true), member(true, true), member(true, true)}, 1},
		{"one of three lost", []Member{member(true, true), member(true, true), member(true, false)}, 0},
		{"two of three lost", []Member{member(true, true), member(true, false), member(true, false)}, -1},
		{"others do not count", []Member{member(true, true), member(false, true), member(false, false)}, 0},
	} {
		assert.Equal(t, test.margin, MakeQuorum(test.members).Margin, test.name)
	}
}

func TestNames(t *testing.T) {
	for _, name := range []string{"n1", "node-1", "n1.example.com", "1st"} {
		assert.NoError(t, CheckMemberName("name", name))
	}

	for _, name := range []string{"", "none", "@all", "-n", "n_1", "n 1", "n/1", "n..1"} {
		assert.Error(t, CheckMemberName("name", name), name)
	}

	for _, name := range []string{"lxdbr0", "br-lan", "vlan.5"} {
		assert.NoError(t, CheckInterfaceName("name", name))
	}

	for _, name := range []string{"", "a", "sixteen-letters1", "br 0", "br/0", ".br"} {
		assert.Error(t, CheckInterfaceName("name", name), name)
	}
}

func TestInstanceTypeOf(t *testing.T) {
	for key, want := range map[string]Applies{
		"limits.cpu": AllInstances, "user.anything": AllInstances, "cloud-init.user-data": AllInstances, "boot.autostart": AllInstances,
		"security.nesting": ContainerOnly, "nvidia.runtime": ContainerOnly, "security.secureboot": MachineOnly, "raw.qemu": MachineOnly,
		"limits.cpus": UnknownKey,
	} {
		assert.Equal(t, want, InstanceTypeOf(key), key)
	}
}
