// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// controller stands in for the action plugin: it carries questions and answers.
type controller struct {
	world *toyWorld
	other *toyWorld // the host that is asked
	// What was carried, as Ansible would show it at the highest verbosity.
	seen    strings.Builder
	passes  int
	finally []any
}

// run runs a task to its end.
func (c *controller) run(t *testing.T, args map[string]any) map[string]any {
	t.Helper()

	envelope := makeEnvelope(args)
	answers, _ := envelope["answers"].(map[string]any)

	for range 10 {
		c.passes++

		result := c.process(t, c.world, "exec", envelope)

		question, ok := result["_thinkube_ask"].(map[string]any)
		if !ok {
			return result
		}

		assert.Equal(t, "n2", question["host"])

		id, _ := question["id"].(string)
		require.NotContains(t, answers, id, "an answered question is asked again")

		reply := c.process(t, c.other, "peer", map[string]any{
			"module": envelope["module"], "key": envelope["key"], "peer": question["peer"], "request": question["request"],
			"args": map[string]any{"_ansible_check_mode": args["_ansible_check_mode"]},
		})
		answers[id] = reply
		envelope["resume"] = result["_thinkube_resume"]

		if undo, ok := reply["finally"]; ok {
			c.finally = append(c.finally, undo)
		}
	}

	require.Fail(t, "the task asks without end")

	return nil
}

// process runs one process and notes what goes over the wire.
func (c *controller) process(t *testing.T, world *toyWorld, mode string, envelope map[string]any) map[string]any {
	t.Helper()

	text, err := json.Marshal(envelope)
	require.NoError(t, err)

	out := said(t, world, mode, text)
	c.seen.WriteString(out)

	return decodeAnswer(t, out)
}

func TestTaskGoesOnAfterAQuestion(t *testing.T) {
	c := &controller{world: &toyWorld{items: []string{"x"}}, other: &toyWorld{}}

	result := c.run(t, with(items("a"), "from", "n2"))
	assert.NotContains(t, result, "failed", "%v", result["msg"])
	assert.Equal(t, 2, c.passes)
	assert.Equal(t, true, result["changed"])
	assert.Equal(t, lines("create item a", "create item asked"), result["plan"], "what was done before the question counts")
	assert.Equal(t, map[string]any{"items": lines("x")}, result["diff"].(map[string]any)["before"], "the state before the first pass")
	assert.Equal(t, []string{"a", "asked, 21 letters"}, c.world.applied, "a was made once")
	assert.Equal(t, []any{map[string]any{"peer": "take_back", "request": map[string]any{"what": "one more"}}}, c.finally)

	noTrace(t, c.seen.String())
}

func TestTaskThatFailsAfterAQuestionTellsWhatWasDoneBefore(t *testing.T) {
	c := &controller{world: &toyWorld{}, other: &toyWorld{}}
	c.world.apply = func(_ context.Context, world *toyWorld, item string) error {
		if item == "asked" && c.passes == 2 {
			return Fail(toyCode, "", "broken meanwhile")
		}

		return nil
	}

	result := c.run(t, with(items("a"), "from", "n2"))
	assertFailed(t, result, toyCode, "create item asked: broken meanwhile")
	assert.Equal(t, true, result["changed"])
	assert.Equal(t, lines("create item a"), result["failure"].(map[string]any)["done"])
}

func TestWarningsSurviveAQuestion(t *testing.T) {
	c := &controller{world: &toyWorld{}, other: &toyWorld{}}
	c.world.open = func(task *Task, _ toyArgs) error {
		if c.passes == 1 {
			task.Warn("seen in the first pass")
			task.Deprecate("2.0.0", "old")
		}

		return nil
	}

	result := c.run(t, with(items(), "from", "n2"))
	assert.Equal(t, lines("seen in the first pass"), result["warnings"])
	assert.Len(t, result["deprecations"], 1)
}

// A secret that only the first pass saw, as in a file that is gone afterwards, stays hidden in what is told of before.
func TestHiddenStaysHiddenAfterAQuestion(t *testing.T) {
	const found = "passphrase found on the host"

	c := &controller{world: &toyWorld{items: []string{"x, with " + found}}, other: &toyWorld{}}
	c.world.open = func(task *Task, _ toyArgs) error {
		if c.passes == 1 {
			task.Hide(NewSecret(found))
			task.Warn("seen: %s", found)
		}

		return nil
	}

	result := c.run(t, with(items("a"), "from", "n2"))
	assert.NotContains(t, result, "failed", "%v", result["msg"])
	assert.Equal(t, 2, c.passes)
	assert.Equal(t, map[string]any{"items": lines("x, with ********")}, result["diff"].(map[string]any)["before"])
	assert.Equal(t, lines("seen: ********"), result["warnings"])
	assert.NotContains(t, c.seen.String(), found)
}

// The time limit is the task's, not that of each pass.
func TestTimeLimitHoldsOverAQuestion(t *testing.T) {
	c := &controller{world: &toyWorld{}, other: &toyWorld{}}
	c.world.apply = func(ctx context.Context, _ *toyWorld, item string) error {
		if item == "asked" && c.passes == 2 {
			<-ctx.Done()
		}

		return ctx.Err()
	}

	result := c.run(t, with(with(items("a"), "from", "n2"), "timeout", "300ms"))
	assertFailed(t, result, CodeTimeout, "create item asked: context deadline exceeded")
}

func TestShortSecretDoesNotDamageTheQuestion(t *testing.T) {
	for range 20 { // what is sealed is another text each time
		c := &controller{world: &toyWorld{}, other: &toyWorld{}}

		result := c.run(t, with(with(items("b"), "from", "n2"), "token", "A"))
		require.NotContains(t, result, "failed", "%v", result["msg"])
	}
}

func TestFailedAnswerIsTheTasksFailure(t *testing.T) {
	var answer map[string]any

	task := newTask("toy", nil)
	task.exchange = mustExchange(t, testKey, nil)

	var asked *pause

	err := task.Ask(context.Background(), "n2", "give", toyRequest{"fail"}, &answer)
	require.ErrorAs(t, err, &asked)
	assert.Equal(t, `asking "give" on host "n2"`, asked.Error())

	reply := call(t, &toyWorld{}, "peer", map[string]any{"module": "toy", "key": testKey, "peer": "give", "request": toyRequest{"fail"}})
	assertFailed(t, reply, toyCode, "nothing to give, not even "+peerSecret)

	task.exchange.answers = map[string]answerMsg{asked.ID: decodedAnswer(t, reply)}

	failure := failureOf(task.Ask(context.Background(), "n2", "give", toyRequest{"fail"}, &answer))
	assert.Equal(t, toyCode, failure.Code)
	assert.Equal(t, "try another", failure.Hint)
	assert.Equal(t, `on host "n2": nothing to give, not even `+peerSecret, failure.Error())

	// The plugin's own failures, when it does not reach the host, have no code.
	task.exchange.answers[asked.ID] = answerMsg{Failed: true, Msg: "no route"}
	assert.Equal(t, CodeFailed, failureOf(task.Ask(context.Background(), "n2", "give", toyRequest{"fail"}, &answer)).Code)
}

func decodedAnswer(t *testing.T, reply map[string]any) answerMsg {
	t.Helper()

	text, err := json.Marshal(reply)
	require.NoError(t, err)

	var answer answerMsg

	require.NoError(t, json.Unmarshal(text, &answer))

	return answer
}

func mustExchange(t *testing.T, key string, answers map[string]answerMsg) *exchange {
	t.Helper()

	made, err := newExchange(key, answers)
	require.NoError(t, err)

	return made
}

// Questions differ by host, function, request and by what was done before.
func TestQuestionsAreToldApart(t *testing.T) {
	task := newTask("toy", nil)
	task.exchange = mustExchange(t, testKey, nil)

	seen := map[string]bool{}
	ask := func(host, peer, what string) {
		var asked *pause

		require.ErrorAs(t, task.Ask(context.Background(), host, peer, toyRequest{what}, nil), &asked)
		assert.False(t, seen[asked.ID], "%s %s %s", host, peer, what)
		seen[asked.ID] = true
	}

	ask("n2", "give", "a")
	ask("n3", "give", "a")
	ask("n2", "take", "a")
	ask("n2", "give", "b")

	task.done = append(task.done, "a step")

	ask("n2", "give", "a")
}

func TestPeerCalls(t *testing.T) {
	peer := func(name string, request any, more map[string]any) map[string]any {
		envelope := map[string]any{"module": "toy", "key": testKey, "peer": name, "request": request, "args": more}

		return call(t, &toyWorld{}, "peer", envelope)
	}

	assertFailed(t, peer("none", nil, nil), CodeInternal, `this program cannot answer "none" of module "toy"`)
	assertFailed(t, peer("give", toyRequest{"panic"}, nil), CodeInternal, "panic: in the peer, with ********")
	assertFailed(t, peer("put", toyRequest{""}, map[string]any{"_ansible_check_mode": true}), CodeInternal, `"put" changes something and was called in check mode`)
	assert.Contains(t, peer("put", toyRequest{""}, nil), "answer")

	other := call(t, &toyWorld{}, "peer", map[string]any{"module": "other", "key": testKey, "peer": "give"})
	assertFailed(t, other, CodeInternal, `this program cannot answer "give" of module "other"`)
}

func TestBadKeysAreRefused(t *testing.T) {
	for _, key := range []string{"", "x", base64.StdEncoding.EncodeToString([]byte("short")), testKey + testKey} {
		for _, mode := range []string{"exec", "peer"} {
			envelope := makeEnvelope(items("a"))
			envelope["key"], envelope["peer"] = key, "give"

			world := &toyWorld{}
			assertFailed(t, call(t, world, mode, envelope), CodeInternal, "the envelope's key must be 32 bytes in base64")
			assert.Empty(t, world.applied)
		}
	}
}

func TestSealedAnswersNeedTheKey(t *testing.T) {
	task := newTask("toy", nil)
	task.exchange = mustExchange(t, testKey, nil)

	sealed, err := task.Seal(NewSecret(peerSecret))
	require.NoError(t, err)
	assert.NotContains(t, sealed, peerSecret)
	assert.NotContains(t, sealed, base64.StdEncoding.EncodeToString([]byte(peerSecret)))
	assert.Equal(t, "the secret is ********", task.mask.Text("the secret is "+peerSecret), "hidden where it is sealed")

	again, err := task.Seal(NewSecret(peerSecret))
	require.NoError(t, err)
	assert.NotEqual(t, sealed, again, "two that are equal cannot be told")

	receiver := newTask("toy", nil)
	receiver.exchange = mustExchange(t, testKey, nil)

	opened, err := receiver.Unseal(sealed)
	require.NoError(t, err)
	assert.Equal(t, peerSecret, opened.Reveal())
	assert.Equal(t, "the secret is ********", receiver.mask.Text("the secret is "+peerSecret), "hidden where it is opened")

	stranger := newTask("toy", nil)
	stranger.exchange = mustExchange(t, base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", 32))), nil)

	altered := []byte(sealed)
	altered[len(altered)/2] ^= 1

	for _, text := range []string{sealed[:len(sealed)-4], string(altered), "", "AAAA", "no base64"} {
		_, err := receiver.Unseal(text)
		assert.ErrorContains(t, err, "sealed answer", "%q", text)
	}

	_, err = stranger.Unseal(sealed)
	assert.ErrorContains(t, err, "sealed answer")

	alone := newTask("toy", nil)
	_, err = alone.Seal(NewSecret(peerSecret))
	assert.Error(t, err)
	_, err = alone.Unseal(sealed)
	assert.Error(t, err)
}

func TestResumeThatWasAlteredIsRefused(t *testing.T) {
	world := &toyWorld{}
	envelope := makeEnvelope(with(items("a"), "from", "n2"))
	paused := call(t, world, "exec", envelope)

	resume, ok := paused["_thinkube_resume"].(string)
	require.True(t, ok)

	raw, err := base64.StdEncoding.DecodeString(resume)
	require.NoError(t, err)
	assert.NotContains(t, string(raw), "create item", "sealed")

	raw[len(raw)-1] ^= 1
	envelope["resume"] = base64.StdEncoding.EncodeToString(raw)

	result := call(t, world, "exec", envelope)
	assert.Equal(t, true, result["failed"])
	assert.Contains(t, result["msg"], "taking up the task after a question")
	assert.Equal(t, []string{"a"}, world.applied, "the second pass did nothing")
}

func TestAnswerThatDoesNotFit(t *testing.T) {
	task := newTask("toy", nil)
	task.exchange = mustExchange(t, testKey, nil)

	var asked *pause

	require.ErrorAs(t, task.Ask(context.Background(), "n2", "give", nil, nil), &asked)
	task.exchange.answers = map[string]answerMsg{asked.ID: {Answer: json.RawMessage(`[1]`)}}

	var answer toyAnswer

	err := task.Ask(context.Background(), "n2", "give", nil, &answer)
	assert.ErrorContains(t, err, `answer of host "n2"`)
}
