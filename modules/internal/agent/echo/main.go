// SPDX-License-Identifier: Apache-2.0

// Echo stands in for the bundle in the tests of the transport. It speaks the contract of the action plugin and does
// what the option "do" says, also what no real module must ever do: print junk, panic, end without an answer.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/thinkube/infra/modules/internal/agent"
)

type envelope struct {
	Module  string         `json:"module"`
	Args    map[string]any `json:"args"`
	Key     string         `json:"key"`
	Answers map[string]any `json:"answers"`
	Resume  string         `json:"resume"`
	Peer    string         `json:"peer"`
	Request map[string]any `json:"request"`
	Async   struct {
		JobID string `json:"jid"`
		Dir   string `json:"dir"`
	} `json:"async"`
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "echo: bad call:", os.Args)
		os.Exit(2)
	}

	if os.Args[1] == "agent" {
		serve()

		return
	}

	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(2)
	}

	switch os.Args[1] {
	case "exec":
		_, _ = os.Stdout.Write(run(context.Background(), decode(text)))
	case "peer":
		_, _ = os.Stdout.Write(answerPeer(decode(text)))
	case "async":
		_, _ = os.Stdout.Write(start(decode(text), text))
	case "job":
		call := decode(text)
		path := jobFile(call)

		err = os.WriteFile(path+".part", run(context.Background(), call), 0o600)
		if err == nil {
			err = os.Rename(path+".part", path)
		}

		if err != nil {
			os.Exit(5)
		}
	}
}

func serve() {
	in, out, err := agent.Channel()
	if err == nil {
		err = agent.Serve(context.Background(), in, out, agent.Calls{
			Task: func(ctx context.Context, text []byte) []byte { return run(ctx, decode(text)) },
			Peer: func(_ context.Context, text []byte) []byte { return answerPeer(decode(text)) },
		})
	}

	if err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

func decode(text []byte) envelope {
	var call envelope

	err := json.Unmarshal(text, &call)
	if err != nil {
		panic(err)
	}

	return call
}

// start answers at once and leaves a process behind that runs the task.
func start(call envelope, text []byte) []byte {
	path := jobFile(call)
	err := os.MkdirAll(filepath.Dir(path), 0o700)

	started := map[string]any{"started": 1, "finished": 0, "ansible_job_id": call.Async.JobID, "results_file": path}
	if err == nil {
		state, _ := json.Marshal(started)
		err = os.WriteFile(path, state, 0o600)
	}

	child := exec.Command(os.Args[0], "job")
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	input, pipeErr := child.StdinPipe()
	err = errors.Join(err, pipeErr, child.Start())

	if err == nil {
		_, err = input.Write(text)
		err = errors.Join(err, input.Close())
	}

	if err != nil {
		return answer(map[string]any{"failed": true, "msg": err.Error()})
	}

	return answer(started)
}

func jobFile(call envelope) string {
	folder, inHome := strings.CutPrefix(call.Async.Dir, "~/")
	if inHome {
		folder = filepath.Join(os.Getenv("HOME"), folder)
	}

	return filepath.Join(folder, call.Async.JobID)
}

func run(ctx context.Context, call envelope) []byte {
	switch call.Args["do"] {
	case "nothing", nil:
		if call.Args["log"] != nil { // for the test that looks for them in Ansible's output
			note(fmt.Sprint(call.Args["log"]), call.Key)
		}

		return answer(map[string]any{"changed": false})
	case "env":
		return answer(map[string]any{"env": environment(), "user": os.Getuid(), "program": os.Args[0], "pid": os.Getpid()})
	case "count":
		note(fmt.Sprint(call.Args["log"]), fmt.Sprint(call.Args["item"]))

		return answer(map[string]any{"counted": call.Args["item"]})
	case "args":
		args := given(call.Args)
		return answer(map[string]any{"args": args, "invocation": map[string]any{"module_args": args}})
	case "change":
		return answer(map[string]any{"changed": true, "diff": map[string]any{"before": "a\n", "after": "b\n"},
			"checked": call.Args["_ansible_check_mode"]})
	case "sleep":
		return sleep(ctx, call)
	case "fail":
		return answer(map[string]any{"failed": true, "msg": "it did not work", "hint": "try again"})
	case "die":
		fmt.Fprintln(os.Stderr, "echo: last words")
		os.Exit(3)
	case "panic":
		panic("echo: a real panic")
	case "signal":
		self, _ := os.FindProcess(os.Getpid())
		_ = self.Kill()

		select {}
	case "junk":
		fmt.Println("a line before")
		return append(answer(map[string]any{"junk": true}), "a line after\n"...)
	case "results":
		return answer(map[string]any{"results": "text", "stdout": "one\ntwo\n", "stderr": "three\n", "_ansible_secret": "hidden-value"})
	case "latin1":
		return []byte("{\"text\": \"caf\xe9\"}\n")
	case "ask":
		return ask(call)
	default:
		return answer(map[string]any{"failed": true, "msg": fmt.Sprintf("echo cannot do %q", call.Args["do"])})
	}

	return nil
}

// sleep takes its time and notes how it ended.
func sleep(ctx context.Context, call envelope) []byte {
	seconds, _ := call.Args["seconds"].(float64)
	if seconds == 0 {
		seconds = 2
	}

	begin := time.Now()
	log, _ := call.Args["log"].(string)

	if log != "" {
		note(log, "began")
	}

	select {
	case <-time.After(time.Duration(seconds * float64(time.Second))):
	case <-ctx.Done():
		if log != "" {
			note(log, "cancelled")
		}

		return answer(map[string]any{"failed": true, "msg": "cancelled"})
	}

	if log != "" {
		note(log, "ended")
	}

	return answer(map[string]any{"slept": true, "began": begin.UnixMilli(), "ended": time.Now().UnixMilli(), "pid": os.Getpid()})
}

// ask pauses once for every host in "hosts", then answers with all that came back.
func ask(call envelope) []byte {
	hosts, _ := call.Args["hosts"].([]any)
	if len(call.Answers) == len(hosts) {
		if call.Args["then_sleep"] == true {
			time.Sleep(10 * time.Second)
		}

		return answer(map[string]any{"answers": call.Answers, "resume": call.Resume, "failed": call.Args["fail_after"] == true,
			"key_length": len(call.Key)})
	}

	id := fmt.Sprint(len(call.Answers) + 1)
	return answer(map[string]any{
		"_thinkube_ask": map[string]any{"id": id, "host": hosts[len(call.Answers)], "peer": "introduce",
			"request": map[string]any{"log": call.Args["log"], "undo_fails": call.Args["undo_fails"]}},
		"_thinkube_resume": call.Resume + id,
	})
}

// answerPeer tells who it is, on both of its functions also in the file "log" that the request names.
func answerPeer(call envelope) []byte {
	self := map[string]any{"module": call.Module, "peer": call.Peer, "uid": os.Getuid(), "env": environment(), "args": call.Args,
		"key_length": len(call.Key), "ssh": os.Getenv("SSH_CONNECTION")}

	if call.Request["log"] != nil {
		note(fmt.Sprint(call.Request["log"]), call.Peer+" "+os.Getenv("WHO"))
	}

	switch {
	case call.Peer == "undo" && call.Request["undo_fails"] == true:
		return answer(map[string]any{"failed": true, "msg": "the token could not be revoked"})
	case call.Peer == "undo":
		return answer(map[string]any{"answer": nil})
	default:
		return answer(map[string]any{"answer": self, "finally": map[string]any{"peer": "undo", "request": call.Request}})
	}
}

func note(path, line string) {
	file, err := os.OpenFile(filepath.Clean(path), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o666)
	if errors.Is(err, os.ErrNotExist) {
		return // a host that does not share the tests' folder
	}

	if err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(4)
	}
	defer file.Close()

	fmt.Fprintln(file, strings.TrimSpace(line))
}

// given is the options without what Ansible itself adds.
func given(args map[string]any) map[string]any {
	kept := map[string]any{}

	for name, value := range args {
		if !strings.HasPrefix(name, "_ansible_") {
			kept[name] = value
		}
	}

	return kept
}

func environment() map[string]string {
	all := map[string]string{}

	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		all[name] = value
	}

	return all
}

func answer(value map[string]any) []byte {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}

	return append(text, '\n')
}
