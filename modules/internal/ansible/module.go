// SPDX-License-Identifier: Apache-2.0

// Package ansible turns a typed Go value into an Ansible module: arguments in, one JSON object out. It owns check and
// diff mode, secrets, failures and the order read, plan, apply, verify. It knows no domain.
//
// A module is a Module value. Its package holds the argument struct and that value (module.go), the State and the code
// that reads it (state.go), the pure plan (plan.go) and the effects (apply.go).
package ansible

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"time"

	"github.com/thinkube/infra/modules/internal/plan"
)

// Module is one Ansible module. Args is a struct with option tags (see SpecOf), State is plain data that marshals to
// JSON, Values is the struct of what the module returns to the user.
type Module[Args, State, Values any] struct {
	Name  string // without the collection: "lxd_profile"
	Rules Rules  // what options need or exclude each other
	// Codes are the failure codes beyond CommonCodes, with what each means.
	Codes map[Code]string
	// Details are the names of what its failures tell besides (Failure.Details), in order.
	Details []string

	// Normalize checks and completes what needs no I/O, and reports all errors at once (errors.Join). May be nil.
	Normalize func(args *Args) error
	// Lock names what changes by this module exclude each other by: of all tasks on a host whose modules name the same
	// lock, in this process and in others of the user, one at a time reads, plans and applies. It is waited for as long as
	// the task may take, so a module with a lock has an option timeout. Check mode and modules without Plan take none, and
	// a pause gives it up. Empty: tasks may run side by side.
	Lock string

	// Open reaches what the module manages. It changes nothing. The context ends when the task is over, in whatever way
	// (also by a pause or a panic): what is opened or started here must end with it, since the process goes on.
	Open func(ctx context.Context, task *Task, args Args) (Host[State], error)
	// Plan is pure. Modules that only read have none.
	Plan func(args Args, current State) (plan.Plan[State], error)
	// Result picks the returned values from the final state; in check mode that is the planned one.
	Result func(args Args, final State) Values

	// Peers are functions that this module's tasks on other hosts call here (see Task.Ask). They take no lock.
	Peers map[string]Peer

	// Services are what the program does on the host outside of any task, such as undoing a change that nobody confirmed:
	// the program is started again as `PROGRAM service MODULE NAME`. The error goes to the program's log.
	Services map[string]func(ctx context.Context) error
}

// Host is what a module reads from and works on, for one task.
type Host[State any] interface {
	// Read gives the current state. What it cannot read is an error, never an absence.
	Read(ctx context.Context) (State, error)
	// Apply does one step: no decisions, and safe to repeat.
	Apply(ctx context.Context, step plan.Step) error
}

// ReadOnly is embedded in the Host of modules that only read.
type ReadOnly struct{}

// Apply is never reached: a module without Plan has no steps.
func (ReadOnly) Apply(context.Context, plan.Step) error {
	return Fail(CodeInternal, "", "a read-only module was asked to change something")
}

// Peer answers a question of the same module's task on another host. What it returns as answer travels through the
// controller: secrets in it must be sealed (Task.Seal).
type Peer struct {
	Changes bool // it is refused in check mode
	Call    func(ctx context.Context, task *Task, request json.RawMessage) (answer any, finally *Finally, err error)
}

// Finally is a peer call that is made when the asking task has ended, in whatever way.
type Finally struct {
	Peer    string `json:"peer"`
	Request any    `json:"request"`
}

// Runner is a Module whose types are hidden: what the bundle keeps a list of.
type Runner interface {
	ModuleName() string
	ArgSpec() (*Spec, error)
	FailureCodes() map[Code]string
	FailureDetails() []string
	ReturnType() reflect.Type
	run(ctx context.Context, task *Task, raw map[string]any) (map[string]any, error)
	peer(name string) Peer
	service(name string) func(ctx context.Context) error
}

// ModuleName gives the name without the collection.
func (m Module[A, S, V]) ModuleName() string { return m.Name }

// ArgSpec gives the option table.
func (m Module[A, S, V]) ArgSpec() (*Spec, error) {
	var args A

	return SpecOf(args, m.Rules)
}

// FailureCodes gives the codes that only this module has.
func (m Module[A, S, V]) FailureCodes() map[Code]string { return m.Codes }

// FailureDetails gives the names of what only this module's failures tell.
func (m Module[A, S, V]) FailureDetails() []string { return m.Details }

// ReturnType gives the struct of the returned values, for the documentation test.
func (m Module[A, S, V]) ReturnType() reflect.Type { return reflect.TypeFor[V]() }

func (m Module[A, S, V]) peer(name string) Peer { return m.Peers[name] }

func (m Module[A, S, V]) service(name string) func(ctx context.Context) error {
	return m.Services[name]
}

// replans bounds how often a task plans again because somebody else changed the same object.
const replans = 3

// run is one pass of a task.
func (m Module[A, S, V]) run(ctx context.Context, task *Task, raw map[string]any) (map[string]any, error) {
	args, err := m.decode(task, raw)
	if err != nil {
		return nil, err
	}

	ctx, cancel, err := limit(ctx, task, args)
	if err != nil {
		return nil, err
	}

	defer cancel()

	if m.Lock != "" && m.Plan != nil && !task.Check {
		release, err := takeLock(ctx, m.Lock, m.Name)
		if err != nil {
			return nil, err
		}

		defer release()
		defer cancel() // before the next task has its turn
	}

	return m.work(ctx, task, args)
}

// work is the one flow of every module.
func (m Module[A, S, V]) work(ctx context.Context, task *Task, args A) (map[string]any, error) {
	host, err := m.Open(ctx, task, args)
	if err != nil {
		return nil, err
	}

	current, err := host.Read(ctx)
	if err != nil {
		return nil, err
	}

	if m.Plan == nil {
		return m.result(args, current), nil
	}

	err = task.remember(current)
	if err != nil {
		return nil, err
	}

	planned, err := m.Plan(args, current)
	if err != nil {
		return nil, err
	}

	final := planned.After

	if task.Check {
		task.willDo(planned.Steps)
	} else {
		final, err = m.converge(ctx, task, host, args, planned)
		if err != nil {
			return nil, err
		}
	}

	err = task.showDiff(final)
	if err != nil {
		return nil, err
	}

	return m.result(args, final), nil
}

// limit gives the task a context of its own, bounded from its first pass on by its option for that: arguments that have
// one implement TaskTimeout.
func limit(ctx context.Context, task *Task, args any) (context.Context, context.CancelFunc, error) {
	limited, ok := args.(interface{ TaskTimeout() time.Duration })
	if !ok {
		ctx, cancel := context.WithCancel(ctx)

		return ctx, cancel, nil
	}

	timeout := limited.TaskTimeout()
	if timeout <= 0 {
		return nil, nil, Fail(CodeInvalidArgument, "", "timeout: must be more than 0, for example \"5m\"")
	}

	if task.until.IsZero() {
		task.until = time.Now().Add(timeout)
	}

	ctx, cancel := context.WithDeadline(ctx, task.until)

	return ctx, cancel, nil
}

// decode turns the task's arguments into the typed struct and gives it to Normalize.
func (m Module[A, S, V]) decode(task *Task, raw map[string]any) (A, error) {
	var args A

	spec, err := SpecOf(args, m.Rules)
	if err != nil {
		return args, Fail(CodeInternal, "", "argument struct of %s: %w", m.Name, err)
	}

	decoded, err := spec.Decode(task.Module, raw)
	if decoded != nil {
		task.mask.Add(decoded.Secrets...)
		task.params = decoded.Params
		task.warnings = append(task.warnings, decoded.Warnings...)
		task.deprecations = append(task.deprecations, decoded.Deprecations...)
	}

	if err != nil {
		return args, Fail(CodeInvalidArgument, "", "%w", err)
	}

	err = Bind(decoded.Params, &args)
	if err == nil && m.Normalize != nil {
		err = m.Normalize(&args)
	}

	if err != nil {
		return args, invalid(err)
	}

	return args, nil
}

// invalid gives an error of Normalize its code, unless it has one.
func invalid(err error) error {
	var failure *Failure
	if errors.As(err, &failure) {
		return err
	}

	return Fail(CodeInvalidArgument, "", "%w", err)
}

// converge does the planned steps, then reads and plans again: that plan must be empty.
func (m Module[A, S, V]) converge(ctx context.Context, task *Task, host Host[S], args A, planned plan.Plan[S]) (S, error) {
	for try := 1; ; try++ {
		steps := planned.Changes()
		task.willDo(planned.Steps)

		err := applyAll(ctx, task, host, steps)
		if err == nil && len(steps) == 0 {
			return planned.After, nil
		}

		outrun := errors.Is(err, ErrChanged) && try < replans
		if err != nil && !outrun {
			return planned.After, err
		}

		task.step = "" // an outrun step is over: what fails from here on is none of it

		current, err := host.Read(ctx)
		if err != nil {
			return current, err
		}

		planned, err = m.Plan(args, current)
		if err != nil {
			return current, err
		}

		if outrun {
			continue
		}

		if left := planned.Changes(); len(left) > 0 {
			return current, Fail(CodeNotConverged, "run the task with --check --diff to see what differs",
				"every step was done, but this is still to do: %q", plan.Lines(left))
		}

		return current, nil
	}
}

// applyAll does the steps in order and stops at the first that fails.
func applyAll[S any](ctx context.Context, task *Task, host Host[S], steps []plan.Step) error {
	for _, step := range steps {
		task.step = step.Line

		err := host.Apply(ctx, step)
		if err != nil {
			return err
		}

		task.did(step)
	}

	return nil
}

// result turns the returned struct into top-level keys.
func (m Module[A, S, V]) result(args A, final S) map[string]any {
	values := map[string]any{}

	text, err := json.Marshal(m.Result(args, final))
	if err == nil {
		// Numbers stay as they are written: a float could not hold every size in bytes.
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.UseNumber()
		err = decoder.Decode(&values)
	}

	if err != nil {
		panic("returned values cannot be encoded: " + err.Error()) // a defect; the SDK turns it into a failure
	}

	return values
}

// PlanCase plans from arguments as a task gives them and a state: what plan test cases call.
func (m Module[A, S, V]) PlanCase(raw map[string]any, state S) (plan.Plan[S], error) {
	own := deepCopy(raw).(map[string]any)

	args, err := m.decode(newTask(m.Name, nil), own)
	if err != nil {
		return plan.Plan[S]{}, err
	}

	return m.Plan(args, state)
}
