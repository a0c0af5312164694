// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/thinkube/infra/modules/internal/agent"
)

// envelope is what the collection's action plugin sends on stdin, once a pass.
type envelope struct {
	Module  string               `json:"module"`
	Args    map[string]any       `json:"args"`
	Key     string               `json:"key"`
	Answers map[string]answerMsg `json:"answers"`
	Resume  string               `json:"resume"`

	Connection string `json:"connection"` // the connection plugin's name

	Peer    string          `json:"peer"`    // in mode "peer": the function to call
	Request json.RawMessage `json:"request"` // and what to call it with

	Async struct {
		JobID   string `json:"jid"`
		Seconds int    `json:"timeout"`
		Dir     string `json:"dir"`
	} `json:"async"`
}

// caller is a mode: it answers an envelope with one JSON object.
type caller func(ctx context.Context, runners []Runner, env envelope) []byte

// maxInput bounds an envelope or an arguments file: far above any task, far below what would hurt the host.
const maxInput = agent.MaxPayload

// Bundle is the program with all modules, for the collection's action plugin. It returns the exit code: 0 whenever an
// answer was printed, also that of a failed task.
func Bundle(runners []Runner, argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(argv) == 4 && argv[1] == serviceMode {
		return runService(runners, argv[2], argv[3], stderr)
	}

	if len(argv) != 2 {
		fmt.Fprintln(stderr, "usage: thinkube agent|exec|peer|async; called by the thinkube.infra collection")

		return 2
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()

	var call caller

	switch argv[1] {
	case "agent":
		return serve(ctx, runners, stderr)
	case "exec":
		call = execute
	case "peer":
		call = answerPeer

		// A task goes on when its controller has gone, since half-done is worse; a peer may be waiting for its turn and
		// must not take it for a task that is gone.
		var release context.CancelFunc

		ctx, release = whileRead(ctx, stdout)
		defer release()
	case "async":
		call = startAsync
	case asyncChild:
		// It outlives the connection that started it.
		ctx = context.Background()
		call = runAsync
	default:
		fmt.Fprintf(stderr, "unknown mode %q: must be agent, exec, peer or async\n", argv[1])

		return 2
	}

	_, err := stdout.Write(answerInput(ctx, runners, stdin, call))
	if err != nil {
		return 1
	}

	return 0
}

// answerInput reads the one envelope of this process and answers it.
func answerInput(ctx context.Context, runners []Runner, input io.Reader, call caller) []byte {
	text, err := readInput(input)
	if err != nil {
		return refuseInput(err)
	}

	return answerWhole(ctx, runners, text, call)
}

// answerWhole decodes an envelope and answers it.
func answerWhole(ctx context.Context, runners []Runner, text string, call caller) []byte {
	var env envelope

	err := decodeJSON(text, &env)
	if err != nil {
		return refuseInput(err)
	}

	return call(ctx, runners, env)
}

func refuseInput(err error) []byte { return refuse("reading the task from stdin: " + err.Error()) }

// serve takes tasks until the controller has no more. It returns the exit code.
func serve(ctx context.Context, runners []Runner, stderr io.Writer) int {
	in, out, err := agent.Channel()
	if err == nil {
		err = agent.Serve(ctx, in, out, agentCalls(runners))
	}

	if err != nil {
		fmt.Fprintln(stderr, "thinkube agent:", err)

		return 1
	}

	return 0
}

// agentCalls are the modes exec and peer as calls of one process.
func agentCalls(runners []Runner) agent.Calls {
	return agent.Calls{
		Task: func(ctx context.Context, text []byte) []byte { return answerText(ctx, runners, text, execute) },
		Peer: func(ctx context.Context, text []byte) []byte { return answerText(ctx, runners, text, answerPeer) },
	}
}

// answerText lets no panic through, which would end the tasks of others. Those of modules do not come here.
func answerText(ctx context.Context, runners []Runner, text []byte, call caller) (answer []byte) {
	defer func() {
		if recover() != nil { // its text may hold secrets that no masker knows
			answer = refuse("a defect in the program: panic outside of a module")
		}
	}()

	return answerWhole(ctx, runners, string(text), call)
}

// Standalone is a program with one module, as stock Ansible runs it from a library/ folder: the arguments file is the
// first argument, the result goes to stdout.
func Standalone(runner Runner, argv []string, stdout, stderr io.Writer) int {
	if len(argv) == 4 && argv[1] == serviceMode {
		return runService([]Runner{runner}, argv[2], argv[3], stderr)
	}

	if len(argv) != 2 {
		fmt.Fprintf(stderr, "usage: %s ARGUMENTS_FILE (a JSON object); this is an Ansible module\n", runner.ModuleName())

		return 2
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()

	args, err := readArgs(argv[1])
	if err != nil {
		_, _ = stdout.Write(refuse("reading the arguments file: " + err.Error()))

		return 1
	}

	task := newTask(runner.ModuleName(), args)

	_, err = stdout.Write(finish(ctx, runner, task, args))
	if err != nil {
		return 1
	}

	return 0
}

// serviceMode is the mode in which the program does something for a module outside of any task.
const serviceMode = "service"

// ServiceArgs is how a program with the module in it is told to run one of the module's services.
func ServiceArgs(module, name string) []string { return []string{serviceMode, module, name} }

// runService runs a service. What it has to say goes to stderr, which whoever started it keeps.
func runService(runners []Runner, module, name string, stderr io.Writer) int {
	var service func(context.Context) error

	if runner := find(runners, module); runner != nil {
		service = runner.service(name)
	}

	if service == nil {
		fmt.Fprintf(stderr, "this program has no service %q of module %q\n", name, module)

		return 2
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	err := service(ctx)
	if err != nil {
		fmt.Fprintln(stderr, err)

		return 1
	}

	return 0
}

func readArgs(path string) (map[string]any, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}

	defer func() { _ = file.Close() }()

	text, err := readInput(file)
	if err != nil {
		return nil, err
	}

	value, _ := readJSON(text)
	if args, ok := value.(map[string]any); ok {
		return args, nil
	}

	var args map[string]any

	err = decodeJSON(text, &args)

	return args, err
}

// readInput reads the one task of this process.
func readInput(reader io.Reader) (string, error) {
	var input strings.Builder

	if file, ok := reader.(*os.File); ok {
		if info, err := file.Stat(); err == nil && info.Mode().IsRegular() {
			input.Grow(int(min(info.Size(), maxInput)))
		}
	}

	_, err := io.Copy(&input, io.LimitReader(reader, maxInput+1))
	text := input.String()

	if err == nil && len(text) > maxInput {
		err = fmt.Errorf("more than %d bytes", maxInput)
	}

	if len(text) > manyArguments {
		// Nearly all of it is needed until the end: looking for what is not, each time that the heap has doubled, would take a
		// third of the time. No task needs more than this many times its input, unless what it reads is larger.
		debug.SetGCPercent(400)
		debug.SetMemoryLimit(max(300<<20, int64(len(text))*50))
	}

	return text, err
}

// manyArguments is from how many bytes of input on a program takes more memory to be faster.
const manyArguments = 1 << 20

// decodeJSON reads exactly one JSON value. Its errors never quote the input, which may hold secrets.
func decodeJSON(text string, into any) error {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()

	err := decoder.Decode(into)

	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Errorf("not JSON (at byte %d of %d)", syntax.Offset, len(text))
	}

	if err != nil {
		return fmt.Errorf("not the expected JSON object (%d bytes)", len(text))
	}

	// Not decoder.More, which takes a closing bracket for the end of the input.
	_, err = decoder.Token()
	if !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}

	return nil
}

// refuse is the answer when there is no task to answer for.
func refuse(msg string) []byte {
	return (&Task{mask: NewMasker()}).encode(map[string]any{
		"changed": false, "failed": true, "msg": msg, "failure": map[string]any{"code": fixedText(CodeInternal)},
	})
}

func find(runners []Runner, name string) Runner {
	for _, runner := range runners {
		if runner.ModuleName() == name {
			return runner
		}
	}

	return nil
}

// execute runs one pass of a task.
func execute(ctx context.Context, runners []Runner, env envelope) []byte {
	runner := find(runners, env.Module)
	if runner == nil {
		return refuse(fmt.Sprintf("this program has no module %q; build the collection again", env.Module))
	}

	exchange, err := newExchange(env.Key, env.Answers)
	if err != nil {
		return refuse(err.Error())
	}

	task := newTask(env.Module, env.Args)
	task.exchange, task.connection = exchange, env.Connection

	err = task.resume(env.Resume)
	if err != nil {
		return refuse("taking up the task after a question: " + err.Error())
	}

	return finish(ctx, runner, task, env.Args)
}

// finish runs the module and makes whatever came of it one line of JSON: also an error, a pause or a panic.
func finish(ctx context.Context, runner Runner, task *Task, args map[string]any) []byte {
	values, err := guarded(ctx, runner, task, args)

	var asked *pause
	if errors.As(err, &asked) {
		paused, err := task.pauseAnswer(asked)
		if err == nil {
			return append(paused, '\n')
		}

		return task.encode(task.answer(nil, err))
	}

	return task.encode(task.answer(values, err))
}

// guarded turns a panic of the module into a failure with its stack in `exception`.
func guarded(ctx context.Context, runner Runner, task *Task, args map[string]any) (values map[string]any, err error) {
	defer func() {
		cause := recover()
		if cause == nil {
			return
		}

		values = map[string]any{"exception": fmt.Sprintf("panic: %v\n\n%s", cause, debug.Stack())}
		err = Fail(CodeInternal, "this is a defect in the module: report it with the text of exception (run with -vvv)", "panic: %v", cause)
	}()

	return runner.run(ctx, task, args)
}

// answerPeer answers the question of a task on another host.
func answerPeer(ctx context.Context, runners []Runner, env envelope) []byte {
	task := newTask(env.Module, env.Args)

	answer, finally, err := callPeer(ctx, runners, env, task)
	if err != nil {
		return task.encode(task.answer(nil, err))
	}

	result := map[string]any{"answer": answer}
	if finally != nil {
		result["finally"] = finally
	}

	return task.encode(result)
}

func callPeer(ctx context.Context, runners []Runner, env envelope, task *Task) (answer any, finally *Finally, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = Fail(CodeInternal, "", "panic: %v", cause)
		}
	}()

	var peer Peer

	if runner := find(runners, env.Module); runner != nil {
		peer = runner.peer(env.Peer)
	}

	if peer.Call == nil {
		return nil, nil, Fail(CodeInternal, "", "this program cannot answer %q of module %q", env.Peer, env.Module)
	}

	if peer.Changes && task.Check {
		return nil, nil, Fail(CodeInternal, "", "%q changes something and was called in check mode", env.Peer)
	}

	task.exchange, err = newExchange(env.Key, nil)
	if err != nil {
		return nil, nil, err
	}

	return peer.Call(ctx, task, env.Request)
}
