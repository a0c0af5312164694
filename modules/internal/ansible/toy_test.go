// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/plan"
)

// The toy is a module that puts items into a world. It is what the tests of the SDK's flow run.
type toyArgs struct {
	Items   []string `ansible:"items"`
	Token   Secret   `ansible:"token"`
	From    string   `ansible:"from"` // host that is asked for one more item
	Sleep   Duration `ansible:"sleep" default:"0s"`
	Timeout Duration `ansible:"timeout" default:"5m"`
}

func (a toyArgs) TaskTimeout() time.Duration { return a.Timeout }

// toyState is what the module reads.
type toyState struct {
	Items []string `json:"items"`
}

type toyValues struct {
	Items []string `json:"items"`
}

const toyCode Code = "toy"

// toyWorld is what the module changes. The hooks may be nil.
type toyWorld struct {
	items   []string
	applied []string

	normalize func(args *toyArgs) error
	open      func(task *Task, args toyArgs) error
	read      func(world *toyWorld) error
	plan      func(out *plan.Plan[toyState]) error
	apply     func(ctx context.Context, world *toyWorld, item string) error
	result    func(final toyState) toyValues
	readOnly  bool
	lock      string
}

type toyHost struct {
	world *toyWorld
	args  toyArgs
	task  *Task
}

type addItem struct{ item string }

func (h *toyHost) Read(context.Context) (toyState, error) {
	if h.world.read != nil {
		err := h.world.read(h.world)
		if err != nil {
			return toyState{}, err
		}
	}

	return toyState{Items: append([]string{}, h.world.items...)}, nil
}

func (h *toyHost) Apply(ctx context.Context, step plan.Step) error {
	item := step.Do.(addItem).item

	if h.world.apply != nil {
		err := h.world.apply(ctx, h.world, item)
		if err != nil {
			return err
		}
	}

	if item == "asked" {
		var answer toyAnswer

		err := h.task.Ask(ctx, h.args.From, "give", toyRequest{"one more"}, &answer)
		if err != nil {
			return fmt.Errorf("getting it: %w", err)
		}

		secret, err := h.task.Unseal(answer.Sealed)
		if err != nil {
			return err
		}

		item = fmt.Sprintf("asked, %d letters", len(secret.Reveal()))
	}

	select {
	case <-time.After(h.args.Sleep):
	case <-ctx.Done():
		return ctx.Err()
	}

	h.world.items = append(h.world.items, item)
	h.world.applied = append(h.world.applied, item)

	return nil
}

type toyRequest struct {
	What string `json:"what"`
}

type toyAnswer struct {
	Sealed string `json:"sealed"`
}

// peerSecret is what the peer function gives, sealed.
const peerSecret = "the-peer's-own-secret"

func givePeer(_ context.Context, task *Task, request json.RawMessage) (any, *Finally, error) {
	var asked toyRequest

	err := json.Unmarshal(request, &asked)
	if err != nil {
		return nil, nil, err
	}

	switch asked.What {
	case "panic":
		task.Hide(NewSecret(peerSecret))
		panic("in the peer, with " + peerSecret)
	case "fail":
		return nil, nil, Fail(toyCode, "try another", "nothing to give, not even %s", peerSecret)
	}

	sealed, err := task.Seal(NewSecret(peerSecret))

	return toyAnswer{sealed}, &Finally{Peer: "take_back", Request: asked}, err
}

func (w *toyWorld) wanted(args toyArgs) []string {
	wanted := slices.Clone(args.Items)
	if args.From != "" {
		wanted = append(wanted, "asked")
	}

	return wanted
}

// module is the toy as a module value.
func (w *toyWorld) module() Module[toyArgs, toyState, toyValues] {
	module := Module[toyArgs, toyState, toyValues]{
		Name:  "toy",
		Lock:  w.lock,
		Codes: map[Code]string{toyCode: "the toy is broken"},
		Normalize: func(args *toyArgs) error {
			if w.normalize != nil {
				return w.normalize(args)
			}

			return nil
		},
		Open: func(_ context.Context, task *Task, args toyArgs) (Host[toyState], error) {
			if w.open != nil {
				err := w.open(task, args)
				if err != nil {
					return nil, err
				}
			}

			return &toyHost{w, args, task}, nil
		},
		Plan:   w.makePlan,
		Result: w.makeValues,
		Peers:  map[string]Peer{"give": {Call: givePeer}, "put": {Changes: true, Call: givePeer}},
	}

	if w.readOnly {
		module.Plan = nil
	}

	return module
}

func (w *toyWorld) makePlan(args toyArgs, current toyState) (plan.Plan[toyState], error) {
	out := plan.Plan[toyState]{After: toyState{Items: slices.Clone(current.Items)}}

	for _, item := range w.wanted(args) {
		there := func(have string) bool { return have == item || strings.HasPrefix(have, item+",") }
		if !slices.ContainsFunc(current.Items, there) {
			out.Add(plan.Create, "item "+item, addItem{item}, "")
			out.After.Items = append(out.After.Items, item)
		}
	}

	if w.plan != nil {
		return out, w.plan(&out)
	}

	return out, nil
}

func (w *toyWorld) makeValues(_ toyArgs, final toyState) toyValues {
	if w.result != nil {
		return w.result(final)
	}

	return toyValues(final)
}

// testKey is a controller's key for a task.
var testKey = base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))

// makeEnvelope is what the action plugin sends for a task. Diff mode is on.
func makeEnvelope(args map[string]any) map[string]any {
	raw := map[string]any{"_ansible_diff": true, "_ansible_module_name": "thinkube.infra.toy"}
	maps.Copy(raw, args)

	return map[string]any{"module": "toy", "args": raw, "key": testKey, "answers": map[string]any{}, "resume": ""}
}

// said runs one process of the program and gives what it printed: one line.
func said(t testing.TB, world *toyWorld, mode string, stdin []byte) string {
	t.Helper()

	var stdout, stderr bytes.Buffer

	code := Bundle([]Runner{world.module()}, []string{"thinkube", mode}, bytes.NewReader(stdin), &stdout, &stderr)
	require.Zero(t, code, stderr.String())
	require.Empty(t, stderr.String())
	require.Equal(t, 1, strings.Count(stdout.String(), "\n"), "an answer is one line: %q", stdout.String())
	require.True(t, strings.HasSuffix(stdout.String(), "\n"))

	return stdout.String()
}

// call is said for an envelope, with the answer decoded.
func call(t testing.TB, world *toyWorld, mode string, envelope map[string]any) map[string]any {
	t.Helper()

	text, err := json.Marshal(envelope)
	require.NoError(t, err)

	return decodeAnswer(t, said(t, world, mode, text))
}

func decodeAnswer(t testing.TB, text string) map[string]any {
	t.Helper()

	var answer map[string]any

	require.NoError(t, json.Unmarshal([]byte(text), &answer), text)

	return answer
}

// task runs a task of the toy to its end, or to its first question.
func (w *toyWorld) task(t testing.TB, args map[string]any) map[string]any {
	t.Helper()

	return call(t, w, "exec", makeEnvelope(args))
}

// items are what a task wants.
func items(names ...string) map[string]any { return map[string]any{"items": names} }

// with adds to a task's arguments.
func with(args map[string]any, key string, value any) map[string]any {
	args = maps.Clone(args)
	args[key] = value

	return args
}

// lines makes a list as JSON gives it.
func lines(texts ...string) []any {
	list := []any{}
	for _, text := range texts {
		list = append(list, text)
	}

	return list
}

// assertFailed compares a failure with its code and its message.
func assertFailed(t testing.TB, result map[string]any, code Code, msg string) {
	t.Helper()

	assert.Equal(t, true, result["failed"])
	assert.Equal(t, msg, result["msg"])

	failure, ok := result["failure"].(map[string]any)
	require.True(t, ok, "%v", result)
	assert.Equal(t, string(code), failure["code"])
}

// TestMain lets the test program be the bundle, for modes that start it anew, and keeps locks out of the host's folder.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && (os.Args[1] == "async" || os.Args[1] == asyncChild) {
		os.Exit(Bundle([]Runner{(&toyWorld{}).module()}, os.Args, os.Stdin, os.Stdout, os.Stderr))
	}

	if folder := os.Getenv(lockHolder); folder != "" {
		holdLock(folder)
	}

	os.Exit(testAll(m))
}

func testAll(m *testing.M) int {
	folder, err := os.MkdirTemp("", "locks-") // mode 0700
	if err != nil {
		panic(err)
	}

	defer func() { _ = os.RemoveAll(folder) }()

	lockFolder = func() string { return folder }

	return m.Run()
}
