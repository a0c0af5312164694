// SPDX-License-Identifier: Apache-2.0

package gpuinfo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/thinkube/infra/modules/internal/ansible"
)

// The services of the module that ask the driver, each in a process of its own.
const (
	ServiceRead    = "read"
	ServiceCompute = "compute"
)

// LostSuffix ends the errors that mean that a card is lost.
const LostSuffix = "(the card is lost)"

// Request is what a service is asked, as JSON on its stdin.
type Request struct {
	Root      string   `json:"root"`      // where /proc is looked for, to name processes
	Addresses []string `json:"addresses"` // read: the cards that the driver should know
	Address   string   `json:"address"`   // compute: the card
	UUID      string   `json:"uuid"`      // compute: the card, or the instance of it
}

// Reply is what a service answers: a line of JSON on its stdout, after lines with nothing but Doing.
type Reply struct {
	Doing   string   `json:"doing,omitempty"` // what it begins with now
	Done    bool     `json:"done,omitempty"`
	Driver  Driver   `json:"driver"`
	Cards   []Card   `json:"cards,omitempty"`
	Problem *Problem `json:"problem,omitempty"`
	// Failed is why a card did not compute; Wrong is what it computed wrongly. Both empty: it computed right.
	Failed string `json:"failed,omitempty"`
	Wrong  string `json:"wrong,omitempty"`
}

// grace is how long a process that was killed may take to end. One that hangs in the kernel does not end at all, and is
// left behind.
const grace = time.Second

// maxReply bounds what a service may say, in bytes.
const maxReply = 16 << 20

// child is a process that asks the driver.
type child struct {
	command *exec.Cmd
	stdout  io.Reader
	stderr  beginning
	doing   atomic.Pointer[string]
	ended   chan error
}

// beginning keeps the beginning of what a process writes.
type beginning struct {
	mu   sync.Mutex
	text []byte
}

func (b *beginning) Write(text []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()

	b.text = append(b.text, text[:min(4096-len(b.text), len(text))]...)

	return len(text), nil
}

// words are its first two lines: a library may greet its user before it fails.
func (b *beginning) words() string {
	b.mu.Lock()
	defer b.mu.Unlock()

	lines := strings.Split(strings.TrimSpace(string(b.text)), "\n")

	return strings.Join(lines[:min(2, len(lines))], "; ")
}

// askChild runs a service in a copy of this program. A hang there is a timeout here, and a crash a problem.
func askChild(ctx context.Context, service string, request Request) (Reply, error) {
	c, err := start(service, request)
	if err != nil {
		return Reply{}, fmt.Errorf("starting the process that asks the driver: %w", err)
	}

	type answer struct {
		reply Reply
		err   error
	}

	read := make(chan answer, 1)

	go func() {
		reply, err := c.read()
		read <- answer{reply, err}
	}()

	select {
	case got := <-read:
		return c.finish(got.reply, got.err), nil
	case <-ctx.Done():
		return Reply{}, c.abandon(ctx)
	}
}

func start(service string, request Request) (*child, error) {
	text, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}

	// By this name it is found even when its file was removed, as another build's upload does.
	c := &child{command: exec.Command("/proc/self/exe", ansible.ServiceArgs(Name, service)...), ended: make(chan error, 1)}
	c.begins("starting it")
	c.command.Args[0] = os.Args[0]
	c.command.Env = environment(os.Environ(), request)
	c.command.Dir = "/"
	c.command.Stdin = bytes.NewReader(text)
	c.command.Stderr = &c.stderr
	// Not with what ends the task: it is ended by this process, or left behind.
	c.command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}

	c.stdout, err = c.command.StdoutPipe()
	if err == nil {
		err = c.command.Start()
	}

	return c, err
}

// environment hides no card but those that are not meant, and lets CUDA write no cache.
func environment(outer []string, request Request) []string {
	env := []string{"CUDA_CACHE_DISABLE=1"}
	if request.UUID != "" {
		env = append(env, "CUDA_VISIBLE_DEVICES="+request.UUID)
	}

	for _, each := range outer {
		name, _, _ := strings.Cut(each, "=")
		if name != "CUDA_CACHE_DISABLE" && name != "CUDA_VISIBLE_DEVICES" {
			env = append(env, each)
		}
	}

	return env
}

func (c *child) begins(doing string) { c.doing.Store(&doing) }

// read takes the service's lines to the last, and notes what it is doing.
func (c *child) read() (Reply, error) {
	scanner := bufio.NewScanner(io.LimitReader(c.stdout, maxReply))
	scanner.Buffer(nil, maxReply)

	for scanner.Scan() {
		var next Reply

		err := json.Unmarshal(scanner.Bytes(), &next)
		if err != nil {
			return next, fmt.Errorf("%d bytes that are no answer: %w", len(scanner.Bytes()), err)
		}

		if next.Done {
			return next, nil
		}

		c.begins(next.Doing)
	}

	err := scanner.Err()
	if err == nil {
		err = io.EOF
	}

	return Reply{}, err
}

// finish waits for the process, which has nothing to do any more, and judges how it ended.
func (c *child) finish(reply Reply, err error) Reply {
	if err != nil && !errors.Is(err, io.EOF) {
		_ = c.command.Process.Kill()
	}

	go func() { c.ended <- c.command.Wait() }()

	var end error

	select {
	case end = <-c.ended:
	case <-time.After(grace):
		// The answer is there; what keeps it is the driver's matter, and not this task's.
		_ = c.command.Process.Kill()
	}

	if reply.Done {
		return reply
	}

	return Reply{Problem: c.crash(end, err)}
}

// crash is what to say about a process that ended without an answer.
func (c *child) crash(end, read error) *Problem {
	how := fmt.Sprint(read)
	if end != nil {
		how = end.Error()
	}

	if words := c.stderr.words(); words != "" {
		how += ": " + words
	}

	return &Problem{
		Code: ProblemDriverCrashed, Text: fmt.Sprintf("NVIDIA's library ended the process that asked it, %s: %s", *c.doing.Load(), how),
		Hint: "look into the kernel's log; install the driver again if its parts do not fit each other",
	}
}

// abandon kills the process, and leaves it behind if it does not end.
func (c *child) abandon(ctx context.Context) error {
	_ = c.command.Process.Kill()

	go func() { c.ended <- c.command.Wait() }()

	left := ""

	select {
	case <-c.ended:
	case <-time.After(grace):
		left = fmt.Sprintf("; process %d did not end when it was killed, and was left behind", c.command.Process.Pid)
	}

	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ctx.Err()
	}

	return ansible.Fail(ansible.CodeTimeout, "look for the driver's errors (Xid) in the kernel's log; a driver that hangs needs a reboot. "+
		"If the host is only slow, give the option timeout more", "NVIDIA's driver did not answer in time, %s%s", *c.doing.Load(), left)
}
