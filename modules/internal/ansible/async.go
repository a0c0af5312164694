// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// asyncChild is the mode in which the program runs a task that nobody waits for.
const asyncChild = "async-child"

// startAsync starts a detached copy of this program and answers at once. Core's async_status module reads the file.
func startAsync(_ context.Context, _ []Runner, env envelope) []byte {
	path, err := jobFile(env)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o700)
	}

	started := map[string]any{"started": 1, "finished": 0, "ansible_job_id": env.Async.JobID}
	if err == nil {
		err = writeJob(path, (&Task{mask: NewMasker()}).encode(started))
	}

	if err == nil {
		err = detach(env)
	}

	if err != nil {
		return refuse("starting the asynchronous task: " + err.Error())
	}

	started["results_file"] = path
	started["changed"] = true // as core's async_wrapper says while nothing is known yet

	return (&Task{mask: NewMasker()}).encode(started)
}

// detach runs this program again in a session of its own and gives it the envelope.
func detach(env envelope) error {
	text, err := json.Marshal(env)
	if err != nil {
		return err
	}

	self, err := os.Executable()
	if err != nil {
		return err
	}

	child := exec.Command(self, asyncChild)
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}

	input, err := child.StdinPipe()
	if err != nil {
		return err
	}

	err = child.Start()
	if err != nil {
		return err
	}

	_, err = input.Write(text)

	return errors.Join(err, input.Close(), child.Process.Release())
}

// runAsync runs the task to its end or its time limit and leaves the result in the job's file.
func runAsync(_ context.Context, runners []Runner, env envelope) []byte {
	path, err := jobFile(env)
	if err != nil {
		return refuse(err.Error())
	}

	limit := time.Duration(env.Async.Seconds) * time.Second

	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()

	done := make(chan []byte, 1)

	go func() {
		runner := find(runners, env.Module)
		if runner == nil {
			done <- refuse(fmt.Sprintf("this program has no module %q", env.Module))

			return
		}

		done <- finish(ctx, runner, newTask(env.Module, env.Args), env.Args)
	}()

	var result []byte

	select {
	case result = <-done:
	case <-time.After(limit + time.Second): // the module had its chance to stop by itself
		result = overdue(env)
	}

	err = writeJob(path, result)
	if err != nil {
		return refuse(err.Error())
	}

	return nil
}

// overdue is the result of a task that had to be ended. What it was doing is not known, so it counts as changed.
func overdue(env envelope) []byte {
	return (&Task{mask: NewMasker()}).encode(map[string]any{
		"changed": true, "failed": true, "failure": map[string]any{"code": string(CodeTimeout)},
		"msg":  fmt.Sprintf("the task was still running after its time limit of %d seconds and was ended", env.Async.Seconds),
		"hint": "give async more seconds; run the task again to see what is left to do",
	})
}

// jobFile gives the place of the job's file. Core chooses the job's name; nothing else may become a path.
func jobFile(env envelope) (string, error) {
	if env.Async.JobID == "" || strings.ContainsAny(env.Async.JobID, "/\x00") || env.Async.JobID[0] == '.' {
		return "", fmt.Errorf("job id %q: must be a file name", env.Async.JobID)
	}

	dir := env.Async.Dir
	if dir == "" {
		dir = "~/.ansible_async"
	}

	if rest, ok := strings.CutPrefix(dir, "~/"); ok {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}

		dir = filepath.Join(home, rest)
	}

	return filepath.Join(dir, env.Async.JobID), nil
}

// writeJob replaces the file in one step, so that a reader never sees half of it.
func writeJob(path string, text []byte) error {
	temporary := path + ".tmp"

	err := os.WriteFile(temporary, bytes.TrimSpace(text), 0o600)
	if err != nil {
		return err
	}

	return os.Rename(temporary, path)
}
