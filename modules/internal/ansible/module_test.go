// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/plan"
)

func TestTaskAppliesAndSecondFindsNothingToDo(t *testing.T) {
	world := &toyWorld{items: []string{"a"}}

	result := world.task(t, items("a", "b", "c"))
	assert.Equal(t, true, result["changed"])
	assert.NotContains(t, result, "failed")
	assert.Equal(t, lines("create item b", "create item c"), result["plan"])
	assert.Equal(t, lines("a", "b", "c"), result["items"])
	assert.Equal(t, []string{"b", "c"}, world.applied)

	again := world.task(t, items("a", "b", "c"))
	assert.Equal(t, false, again["changed"])
	assert.Equal(t, lines(), again["plan"])
	assert.NotContains(t, again, "diff")
	assert.Equal(t, []string{"b", "c"}, world.applied)
}

func TestCheckModeNeverApplies(t *testing.T) {
	world := &toyWorld{items: []string{"a"}}

	result := world.task(t, with(items("a", "b"), "_ansible_check_mode", true))
	assert.Equal(t, true, result["changed"])
	assert.Equal(t, lines("create item b"), result["plan"])
	assert.Equal(t, lines("a", "b"), result["items"], "the future state")
	assert.Empty(t, world.applied)

	unchanged := world.task(t, with(items("a"), "_ansible_check_mode", true))
	assert.Equal(t, false, unchanged["changed"])
	assert.Equal(t, lines(), unchanged["plan"])
}

func TestDiffIsFromTheFirstStateToTheLast(t *testing.T) {
	want := map[string]any{
		"before": map[string]any{"items": lines("a")},
		"after":  map[string]any{"items": lines("a", "b")},
	}

	for _, check := range []bool{true, false} {
		world := &toyWorld{items: []string{"a"}}
		assert.Equal(t, want, world.task(t, with(items("a", "b"), "_ansible_check_mode", check))["diff"])
	}

	world := &toyWorld{items: []string{"a"}}
	assert.NotContains(t, world.task(t, with(items("a", "b"), "_ansible_diff", false)), "diff")
}

func TestFailureNamesTheStepAndWhatWasDone(t *testing.T) {
	world := &toyWorld{apply: func(_ context.Context, _ *toyWorld, item string) error {
		if item == "c" {
			return Fail(toyCode, "mend it", "no room for %q", item)
		}

		return nil
	}}

	result := world.task(t, items("a", "b", "c", "d"))
	assertFailed(t, result, toyCode, `create item c: no room for "c"`)
	assert.Equal(t, true, result["changed"], "a and b were made")
	assert.Equal(t, "mend it", result["hint"])
	assert.Equal(t, map[string]any{
		"code": "toy", "step": "create item c", "done": lines("create item a", "create item b"),
	}, result["failure"])
	assert.Equal(t, []string{"a", "b"}, world.applied)
	assert.NotContains(t, result, "diff")
	assert.NotContains(t, result, "plan")

	world.apply = nil
	assert.Equal(t, lines("create item c", "create item d"), world.task(t, items("a", "b", "c", "d"))["plan"], "goes on where it stopped")
}

func TestFailureBeforeTheFirstStepChangedNothing(t *testing.T) {
	world := &toyWorld{apply: func(context.Context, *toyWorld, string) error { return errors.New("refused") }}

	result := world.task(t, items("a"))
	assertFailed(t, result, CodeFailed, "create item a: refused")
	assert.Equal(t, false, result["changed"])
	assert.NotContains(t, result, "hint")
}

func TestReadingFailsLoudly(t *testing.T) {
	world := &toyWorld{read: func(*toyWorld) error { return errors.New("reading items: permission denied") }}

	result := world.task(t, items("a"))
	assertFailed(t, result, CodeFailed, "reading items: permission denied")
	assert.Equal(t, map[string]any{"code": "failed"}, result["failure"], "no step was begun")
	assert.Empty(t, world.applied)
}

func TestObjectThatSomebodyElseChangesIsPlannedAnew(t *testing.T) {
	world := &toyWorld{}
	world.apply = func(_ context.Context, world *toyWorld, item string) error {
		if item == "b" && len(world.items) == 1 {
			world.items = append(world.items, "b", "foreign")

			return fmt.Errorf("item b: %w", ErrChanged)
		}

		return nil
	}

	result := world.task(t, items("a", "b", "c"))
	assert.NotContains(t, result, "failed")
	assert.Equal(t, lines("create item a", "create item c"), result["plan"], "b is there by now and not overwritten")
	assert.Equal(t, lines("a", "b", "foreign", "c"), result["items"])
}

func TestObjectThatAlwaysChangesIsAConflict(t *testing.T) {
	tries := 0
	world := &toyWorld{apply: func(context.Context, *toyWorld, string) error {
		tries++

		return fmt.Errorf("item: %w", ErrChanged)
	}}

	result := world.task(t, items("a"))
	assertFailed(t, result, CodeConflict, "create item a: item: changed by somebody else since it was read")
	assert.Equal(t, replans, tries)
	assert.Equal(t, false, result["changed"])
}

// When the task plans anew, the step that was outrun is over: a failure after it is none of that step.
func TestFailureAfterAnOutrunStepDoesNotNameIt(t *testing.T) {
	reads := 0
	world := &toyWorld{
		apply: func(context.Context, *toyWorld, string) error { return ErrChanged },
		read: func(*toyWorld) error {
			reads++
			if reads > 1 {
				return errors.New("the server has gone")
			}

			return nil
		},
	}

	result := world.task(t, items("a"))
	assertFailed(t, result, CodeFailed, "the server has gone")
	assert.NotContains(t, result["failure"], "step")
}

func TestStateThatIsNotTheWantedOneAfterwardsIsAFailure(t *testing.T) {
	world := &toyWorld{}
	world.apply = func(_ context.Context, world *toyWorld, item string) error {
		if item == "b" {
			world.items = nil // what was done before is undone by something else
		}

		return nil
	}

	result := world.task(t, items("a", "b"))
	assertFailed(t, result, CodeNotConverged, `every step was done, but this is still to do: ["create item a"]`)
	assert.Equal(t, true, result["changed"])
	assert.Equal(t, lines("create item a", "create item b"), result["failure"].(map[string]any)["done"])
}

func TestReportsAreWarningsAndNoChange(t *testing.T) {
	world := &toyWorld{plan: func(out *plan.Plan[toyState]) error {
		out.Add(plan.Report, "item x", nil, "is not ours")

		return nil
	}}

	for _, check := range []bool{true, false} {
		result := world.task(t, with(items(), "_ansible_check_mode", check))
		assert.Equal(t, false, result["changed"])
		assert.Equal(t, lines(), result["plan"])
		assert.Equal(t, lines("item x: is not ours"), result["warnings"])
	}

	// Planned twice, said once.
	assert.Equal(t, lines("item x: is not ours"), world.task(t, items("a"))["warnings"])
}

func TestReadOnlyModuleReturnsWhatItReads(t *testing.T) {
	world := &toyWorld{readOnly: true, items: []string{"a"}}

	for _, check := range []bool{true, false} {
		result := world.task(t, with(items("b"), "_ansible_check_mode", check))
		assert.Equal(t, false, result["changed"])
		assert.Equal(t, lines("a"), result["items"])
		assert.NotContains(t, result, "plan")
		assert.NotContains(t, result, "diff")
	}

	err := ReadOnly{}.Apply(context.Background(), plan.Step{})
	assert.ErrorContains(t, err, "read-only")
}

func TestBadArgumentsAreRefusedBeforeAnythingIsRead(t *testing.T) {
	read := false
	world := &toyWorld{read: func(*toyWorld) error { read = true; return nil }}

	result := world.task(t, with(items("a"), "colour", "red"))
	assertFailed(t, result, CodeInvalidArgument,
		"Unsupported parameters for (thinkube.infra.toy) module: colour. Supported parameters include: from, items, sleep, timeout, token.")

	world.normalize = func(*toyArgs) error { return errors.Join(errors.New("items: too few"), errors.New("token: too short")) }
	assertFailed(t, world.task(t, items("a")), CodeInvalidArgument, "items: too few\ntoken: too short")

	world.normalize = func(*toyArgs) error { return Fail(toyCode, "", "broken") }
	assertFailed(t, world.task(t, items("a")), toyCode, "broken")

	assert.False(t, read)
}

func TestTimeLimitIsATimeout(t *testing.T) {
	world := &toyWorld{apply: func(ctx context.Context, _ *toyWorld, item string) error {
		if item == "a" {
			return nil
		}

		<-ctx.Done()

		return fmt.Errorf("waiting: %w", ctx.Err())
	}}

	result := world.task(t, with(items("a", "b"), "timeout", "20ms"))
	assertFailed(t, result, CodeTimeout, "create item b: waiting: context deadline exceeded")
	assert.NotEmpty(t, result["hint"])
	assert.Equal(t, true, result["changed"])
}

const token = "s3cret-token/with+signs"

// noTrace fails if the text has the token in any form that people could turn back.
func noTrace(t testing.TB, text string) {
	t.Helper()

	for _, form := range []string{token, peerSecret, base64.StdEncoding.EncodeToString([]byte(token)), base64.RawURLEncoding.EncodeToString([]byte(token))} {
		assert.NotContains(t, text, form)
	}
}

func TestPanicIsACleanFailureWithoutSecrets(t *testing.T) {
	boom := func() { panic("boom with " + token) }

	places := map[string]func(*toyWorld){
		"normalize": func(w *toyWorld) { w.normalize = func(*toyArgs) error { boom(); return nil } },
		"open":      func(w *toyWorld) { w.open = func(*Task, toyArgs) error { boom(); return nil } },
		"read":      func(w *toyWorld) { w.read = func(*toyWorld) error { boom(); return nil } },
		"plan":      func(w *toyWorld) { w.plan = func(*plan.Plan[toyState]) error { boom(); return nil } },
		"apply":     func(w *toyWorld) { w.apply = func(context.Context, *toyWorld, string) error { boom(); return nil } },
		"result":    func(w *toyWorld) { w.result = func(toyState) toyValues { boom(); return toyValues{} } },
	}

	for place, breakIt := range places {
		t.Run(place, func(t *testing.T) {
			world := &toyWorld{}
			breakIt(world)

			text, err := json.Marshal(makeEnvelope(with(items("a"), "token", token)))
			require.NoError(t, err)

			out := said(t, world, "exec", text)
			noTrace(t, out)

			result := decodeAnswer(t, out)
			assert.Equal(t, "internal", result["failure"].(map[string]any)["code"])
			assert.Contains(t, result["msg"], "panic: boom with ********")
			assert.Contains(t, result["exception"], "module_test.go", "the stack")
			assert.Equal(t, place == "result", result["changed"])
		})
	}
}

func TestNoSecretLeavesTheProcess(t *testing.T) {
	encoded := base64.StdEncoding.EncodeToString([]byte("user:" + token))

	world := &toyWorld{items: []string{"holds " + token}}
	world.open = func(task *Task, args toyArgs) error {
		assert.Equal(t, token, args.Token.Reveal())
		task.Warn("the token is %s", token)
		task.Deprecate("2.0.0", "do not send %s", encoded)

		return nil
	}
	world.plan = func(out *plan.Plan[toyState]) error {
		out.Add(plan.Report, "item", nil, "has %q", token)

		return nil
	}

	ways := map[string]func(context.Context, *toyWorld, string) error{
		"works": nil,
		"fails": func(context.Context, *toyWorld, string) error {
			return Fail(toyCode, "not with "+token, "server said: bad Authorization: Basic %s", encoded)
		},
	}

	for way, apply := range ways {
		t.Run(way, func(t *testing.T) {
			world.apply = apply

			text, err := json.Marshal(makeEnvelope(with(items("a", "new "+token), "token", token)))
			require.NoError(t, err)

			out := said(t, world, "exec", text)
			noTrace(t, out)
			assert.NotContains(t, out, encoded[8:len(encoded)-4], "base64 of a text with the token in it")
			assert.Contains(t, out, `"token":"VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"`, "the invocation")
			assert.Contains(t, out, "the token is ********")
		})
	}
}

func TestPlanCaseDecodesAndPlans(t *testing.T) {
	module := (&toyWorld{}).module()

	planned, err := module.PlanCase(rawArgs(t, `{"items": ["a", "b"]}`), toyState{Items: []string{"a"}})
	require.NoError(t, err)
	assert.Equal(t, []string{"create item b"}, plan.Lines(planned.Steps))

	_, err = module.PlanCase(rawArgs(t, `{"items": {}}`), toyState{})
	assert.Error(t, err)
}
