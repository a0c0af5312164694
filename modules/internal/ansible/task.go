// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/thinkube/infra/modules/internal/plan"
)

// Task is one run of a module: what Ansible says about it, and what it has to tell. It belongs to one goroutine; a module
// that starts others must not let them panic, since only the task's own panics are caught and masked.
type Task struct {
	Module    string // as the user wrote it: "thinkube.infra.lxd_profile"
	Check     bool
	Diff      bool
	Verbosity int

	mask         *Masker
	params       map[string]any
	inject       bool // return the arguments as `invocation`
	warnings     []string
	deprecations []Deprecation

	read    bool            // a state was read, in this pass or an earlier one
	before  json.RawMessage // the first that was read, in diff mode alone; kept over pauses
	diff    map[string]any
	planned []string  // lines of what is to be done
	done    []string  // lines of the steps that were done, kept over pauses
	until   time.Time // when the task's time is over, kept over pauses
	step    string    // line of the step that is being done

	exchange   *exchange // nil where no other host can be asked
	connection string
}

// Connection is the name of Ansible's connection plugin, for example "ssh" or "local"; empty where nothing is known of it.
func (t *Task) Connection() string { return t.connection }

// newTask takes what the `_ansible_*` keys say; those it does not know are ignored, as later cores add some.
func newTask(name string, raw map[string]any) *Task {
	task := &Task{Module: name, mask: NewMasker(), inject: true}

	if full, ok := raw["_ansible_module_name"].(string); ok && full != "" {
		task.Module = full
	}

	task.Check, _ = raw["_ansible_check_mode"].(bool)
	task.Diff, _ = raw["_ansible_diff"].(bool)

	if number, ok := raw["_ansible_verbosity"].(json.Number); ok {
		verbosity, _ := number.Int64()
		task.Verbosity = int(verbosity)
	}

	// ansible-core 2.21 and later say whether they want the arguments back; earlier ones always do.
	if inject, ok := raw["_ansible_inject_invocation"].(bool); ok {
		task.inject = inject
	}

	return task
}

// Warn shows a warning to the user. The task goes on.
func (t *Task) Warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)

	for _, known := range t.warnings {
		if known == text {
			return // a state that is read twice warns once
		}
	}

	t.warnings = append(t.warnings, text)
}

// Deprecate tells the user what will go away, and in which version of the collection.
func (t *Task) Deprecate(version, format string, args ...any) {
	t.deprecations = append(t.deprecations, Deprecation{
		Msg: fmt.Sprintf(format, args...), Version: version, CollectionName: "thinkube.infra",
	})
}

// Hide makes sure that the secret appears in nothing that leaves this process.
func (t *Task) Hide(secret Secret) {
	if secret.IsSet() {
		t.mask.Add(secret.Reveal())
	}
}

// remember keeps the first state that was read, as `diff.before`. It is encoded before a plan or a step could change it.
func (t *Task) remember(state any) error {
	first := !t.read
	t.read = true

	if !first || !t.Diff {
		return nil
	}

	text, err := json.Marshal(state)
	if err != nil {
		return Fail(CodeInternal, "", "encoding the state: %w", err)
	}

	t.before = text

	return nil
}

// willDo takes the plan: its reports become warnings.
func (t *Task) willDo(planned []plan.Step) {
	for _, step := range planned {
		if step.Verb == plan.Report {
			t.Warn("%s", step.Line)
		} else {
			t.planned = append(t.planned, step.Line)
		}
	}
}

func (t *Task) did(step plan.Step) {
	t.done = append(t.done, step.Line)
	t.step = ""
	faultPoint(len(t.done))
}

// changed is true when something was done, or in check mode would be.
func (t *Task) changed() bool {
	if t.Check {
		return len(t.planned) > 0
	}

	return len(t.done) > 0
}

// showDiff sets the diff from the first state to the final one.
func (t *Task) showDiff(final any) error {
	if !t.Diff || !t.changed() {
		return nil
	}

	after, err := json.Marshal(final)
	if err != nil {
		return Fail(CodeInternal, "", "encoding the state: %w", err)
	}

	t.diff = map[string]any{"before": t.before, "after": json.RawMessage(after)}

	return nil
}

// answer makes the result: the module's values and what the SDK adds, or the failure.
func (t *Task) answer(values map[string]any, err error) map[string]any {
	result := maps.Clone(values)
	if result == nil {
		result = map[string]any{}
	}

	result["changed"] = t.changed()

	if err != nil {
		t.addFailure(result, failureOf(err))
	}

	if t.read && err == nil {
		result["plan"] = t.lines()
	}

	if t.diff != nil {
		result["diff"] = t.diff
	}

	if len(t.warnings) > 0 {
		result["warnings"] = t.warnings
	}

	if len(t.deprecations) > 0 {
		result["deprecations"] = t.deprecations
	}

	if t.inject && t.params != nil {
		result["invocation"] = map[string]any{"module_args": t.params}
	}

	return result
}

// lines are what the user sees of the plan: what would be done in check mode, what was done otherwise.
func (t *Task) lines() []string {
	if t.Check {
		return append([]string{}, t.planned...)
	}

	return append([]string{}, t.done...)
}

// addFailure tells what failed, what to do, and how far the task came.
func (t *Task) addFailure(result map[string]any, failure *Failure) {
	result["failed"] = true
	result["msg"] = failure.Error()

	if t.step != "" {
		result["msg"] = t.step + ": " + failure.Error()
	}

	if failure.Hint != "" {
		result["hint"] = failure.Hint
	}

	detail := map[string]any{}
	maps.Copy(detail, failure.Details)
	// The code is one of a documented list; a program must be able to rely on it.
	detail["code"] = fixedText(failure.Code)

	if t.step != "" {
		detail["step"] = t.step
	}

	if t.read {
		detail["done"] = append([]string{}, t.done...)
	}

	result["failure"] = detail
}

// fixedKeys are the keys that the SDK itself nests in a result.
var fixedKeys = []string{"before", "after", "module_args", "collection_name", "version", "request"}

// encode gives the one line that leaves the process: masked, valid UTF-8, keys in order.
func (t *Task) encode(result map[string]any) []byte {
	// The names of results and options are no secrets, even where a secret is equal to one.
	keep := slices.Concat(slices.Collect(maps.Keys(result)), slices.Collect(maps.Keys(t.params)), fixedKeys)

	text, err := t.mask.AppendJSON(nil, result, keep...)
	if err != nil {
		// Only a defect could come here. The error's text may hold a secret, its type cannot.
		text, _ = json.Marshal(map[string]any{
			"failed": true, "msg": "encoding the result failed: " + reflect.TypeOf(err).String(),
			"failure": map[string]any{"code": CodeInternal},
		})
	}

	return append(text, '\n')
}
