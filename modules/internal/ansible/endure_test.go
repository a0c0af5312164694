// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/thinkube/infra/modules/internal/endure"
	"github.com/thinkube/infra/modules/internal/plan"
)

// The worker is a module that holds something while a task runs: a goroutine, memory and a lock. Its tasks end in all
// the ways there are.
type workerArgs struct {
	End     string   `ansible:"end"`
	Token   Secret   `ansible:"token"`
	Timeout Duration `ansible:"timeout" default:"1m"`
}

func (a workerArgs) TaskTimeout() time.Duration { return a.Timeout }

type workerState struct {
	Done bool   `json:"done"`
	Bulk string `json:"bulk"`
}

type workerHost struct {
	args  workerArgs
	task  *Task
	state workerState
}

func openWorker(ctx context.Context, task *Task, args workerArgs) (Host[workerState], error) {
	host := &workerHost{args: args, task: task, state: workerState{Bulk: strings.Repeat("x", 4<<10)}}

	// As what listens to a server's events does.
	go func() {
		<-ctx.Done()
		runtime.KeepAlive(host)
	}()

	return host, nil
}

func (h *workerHost) Read(context.Context) (workerState, error) { return h.state, nil }

func (h *workerHost) Apply(ctx context.Context, _ plan.Step) error {
	switch h.args.End {
	case "failure":
		return errors.New("broken with " + h.args.Token.Reveal())
	case "panic":
		panic("broken with " + h.args.Token.Reveal())
	case "pause":
		return h.task.Ask(ctx, "n2", "give", toyRequest{"one"}, nil)
	case "timeout", "cancel":
		<-ctx.Done()

		return ctx.Err()
	}

	h.state.Done = true

	return nil
}

// worker gives the module; its tasks take the lock, if it has a name.
func worker(lock string) Runner {
	return Module[workerArgs, workerState, workerState]{
		Name: "worker" + lock, Lock: lock,
		Open: openWorker,
		Plan: func(_ workerArgs, now workerState) (plan.Plan[workerState], error) {
			out := plan.Plan[workerState]{After: now}
			if !now.Done {
				out.Add(plan.Change, "work", nil, "")
				out.After.Done = true
			}

			return out, nil
		},
		Result: func(_ workerArgs, final workerState) workerState { return final },
	}
}

// endings are what tasks of the worker come to, and what their answers have then.
var endings = []struct{ end, has string }{
	{"success", `"changed":true`},
	{"success", `"changed":true`},
	{"failure", `"msg":"change work: broken with ********"`},
	{"panic", `"exception":"panic: `},
	{"pause", `"_thinkube_ask":`},
	{"timeout", `"code":"timeout"`},
	{"cancel", `"failed":true`},
}

// work runs one task of the worker. Secrets differ: what they leave behind would add up.
func work(t *testing.T, runners []Runner, number int) {
	ending := endings[number%len(endings)]
	args := map[string]any{"end": ending.end, "token": fmt.Sprintf("secret-%d", number), "_ansible_diff": true}

	if ending.end == "timeout" {
		args["timeout"] = "1ms"
	}

	ctx := t.Context() // which outlives the task, as an agent does

	if ending.end == "cancel" {
		canceled, cancel := context.WithCancel(ctx)
		time.AfterFunc(time.Millisecond, cancel)

		ctx = canceled
	}

	name := runners[number/len(endings)%len(runners)].ModuleName()
	answer := string(execute(ctx, runners, envelope{Module: name, Args: args, Key: testKey}))

	if !strings.Contains(answer, ending.has) || strings.Contains(answer, "secret-") || !json.Valid([]byte(answer)) {
		t.Errorf("task %d, which ends by %s, answers %s", number, ending.end, answer)
	}
}

// TestTenThousandTasksLeaveNothingBehind is what an agent does in a long play: tasks of several modules, eight at once.
func TestTenThousandTasksLeaveNothingBehind(t *testing.T) {
	runners := []Runner{worker(""), worker("one"), worker("two")}

	run := func(tasks int) {
		endure.Parallel(8, tasks, func(number int) { work(t, runners, number) })
	}

	idle := endure.Held(t)

	run(500)

	before := endure.Settled(t, idle)

	run(10_000)
	endure.NoMore(t, before, endure.Settled(t, before))
}
