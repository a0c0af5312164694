// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"encoding/json"
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAnsibleKeysAreReadAndUnknownOnesIgnored(t *testing.T) {
	seen := false
	world := &toyWorld{open: func(task *Task, _ toyArgs) error {
		seen = true

		assert.Equal(t, "thinkube.infra.toy", task.Module)
		assert.True(t, task.Check)
		assert.True(t, task.Diff)
		assert.Equal(t, 3, task.Verbosity)

		return nil
	}}

	result := world.task(t, with(with(with(with(items(),
		"_ansible_check_mode", true), "_ansible_verbosity", 3), "_ansible_of_the_future", map[string]any{"x": 1}), "_ansible_debug", false))
	assert.NotContains(t, result, "failed", "%v", result["msg"])
	assert.True(t, seen)
}

func TestModuleNameIsTheFullOneWhereAnsibleGivesIt(t *testing.T) {
	assert.Equal(t, "a.b.toy", newTask("toy", map[string]any{"_ansible_module_name": "a.b.toy"}).Module)
	assert.Equal(t, "toy", newTask("toy", map[string]any{"_ansible_module_name": 7}).Module)
	assert.Equal(t, "toy", newTask("toy", nil).Module)
}

func TestInvocationIsGivenUnlessAnsibleDoesNotWantIt(t *testing.T) {
	result := (&toyWorld{}).task(t, items("a"))
	assert.Equal(t, map[string]any{
		"items": lines("a"), "token": nil, "from": nil, "sleep": "0s", "timeout": "5m",
	}, result["invocation"].(map[string]any)["module_args"])

	assert.Contains(t, (&toyWorld{}).task(t, with(items(), "_ansible_inject_invocation", true)), "invocation")
	assert.NotContains(t, (&toyWorld{}).task(t, with(items(), "_ansible_inject_invocation", false)), "invocation")
}

func TestWarningsAndDeprecationsHaveAnsiblesForm(t *testing.T) {
	world := &toyWorld{open: func(task *Task, _ toyArgs) error {
		task.Warn("%d of %s", 1, "them")
		task.Warn("%d of %s", 1, "them")
		task.Warn("another")
		task.Deprecate("2.0.0", "option %q goes away", "old")

		return nil
	}}

	result := world.task(t, items())
	assert.Equal(t, lines("1 of them", "another"), result["warnings"])
	assert.Equal(t, []any{map[string]any{
		"msg": `option "old" goes away`, "version": "2.0.0", "collection_name": "thinkube.infra",
	}}, result["deprecations"])
}

func TestAnswerIsOneLineOfValidUTF8InAStableOrder(t *testing.T) {
	world := &toyWorld{items: []string{"line\nbreak \u2028", "bad \xff byte", "<&>"}}

	text, err := json.Marshal(makeEnvelope(items()))
	require.NoError(t, err)

	first := said(t, world, "exec", text)
	for range 10 {
		assert.Equal(t, first, said(t, world, "exec", text))
	}

	assert.Equal(t, lines("line\nbreak \u2028", "bad \ufffd byte", "<&>"), decodeAnswer(t, first)["items"])
}

func TestSizesKeepTheirDigits(t *testing.T) {
	type values struct {
		Bytes uint64 `json:"bytes"`
	}

	module := Module[struct{}, struct{}, values]{Result: func(struct{}, struct{}) values { return values{math.MaxUint64} }}
	task := newTask("toy", nil)

	assert.Contains(t, string(task.encode(task.answer(module.result(struct{}{}, struct{}{}), nil))), `"bytes":18446744073709551615`)
}

func TestValuesThatCannotBeEncodedAreADefect(t *testing.T) {
	type values struct {
		Number float64 `json:"number"`
	}

	module := Module[struct{}, struct{}, values]{Result: func(struct{}, struct{}) values { return values{math.NaN()} }}

	assert.PanicsWithValue(t, "returned values cannot be encoded: json: unsupported value: NaN", func() {
		module.result(struct{}{}, struct{}{})
	})
}

func TestNamesAreNoSecretsEvenWhereASecretEqualsOne(t *testing.T) {
	result := (&toyWorld{items: []string{"invocation"}}).task(t, with(items("a"), "token", "module_args"))

	assert.Contains(t, result["invocation"], "module_args")
	assert.Contains(t, result, "changed")
}

// countedState counts how often it is encoded, which for a state of many objects is a large part of a task.
type countedState struct{ encoded *int }

func (s countedState) MarshalJSON() ([]byte, error) {
	*s.encoded++

	return []byte("{}"), nil
}

func TestTheStateIsEncodedOnceAndOnlyForTheDiff(t *testing.T) {
	for _, diff := range []bool{false, true} {
		task := newTask("toy", map[string]any{"_ansible_diff": diff})
		encoded := 0

		for range 2 {
			require.NoError(t, task.remember(countedState{&encoded}))
		}

		assert.Equal(t, diff, encoded == 1, "%d times", encoded)
		assert.Equal(t, diff, task.before != nil)
		assert.Contains(t, task.answer(nil, nil), "plan", "it was read")
	}
}
