// SPDX-License-Identifier: Apache-2.0

// Package agent is the long-lived program on a managed host: it takes tasks from one channel, the stdin and stdout that
// ssh gave it, and runs each in a goroutine. It listens on nothing and writes nothing to disk. It ends when the channel
// is closed, or when nothing came for a while. What a task is, is the caller's matter.
package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Calls are what the controller can ask for. Each takes an envelope and gives one JSON object; neither may panic.
type Calls struct {
	// Task runs a task. Its context ends when the controller cancels the task, not when the channel breaks: half-done
	// is worse than done with nobody to tell.
	Task func(ctx context.Context, envelope []byte) []byte
	// Peer answers a question of a task elsewhere. Its context ends with the channel too.
	Peer func(ctx context.Context, envelope []byte) []byte
}

// server is one channel.
type server struct {
	calls Calls

	writing sync.Mutex
	out     io.Writer

	tasks, peers context.Context // what calls run under

	mu      sync.Mutex
	running map[uint32]context.CancelFunc
	active  time.Time // when the last frame came or the last call ended
	stopped bool      // no call is begun any more
	calling sync.WaitGroup
}

// Serve answers the controller's requests until the channel ends, the context ends, or no request came for the time that
// the controller named in its greeting. It returns when no call runs any more. An error means that the channel was not
// what it should be.
func Serve(ctx context.Context, in io.Reader, out io.Writer, calls Calls) error {
	reader := bufio.NewReader(in)

	idle, err := greet(reader, out)
	if err != nil {
		return err
	}

	peers, closed := context.WithCancel(ctx)
	s := &server{calls: calls, out: out, tasks: ctx, peers: peers, running: map[uint32]context.CancelFunc{}, active: time.Now()}

	err = s.untilEnd(reader, idle)

	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()

	closed()
	s.calling.Wait()

	return err
}

// greet reads "THINKUBE-HELLO <nonce> <seconds>" and answers "THINKUBE-AGENT <nonce>": what login scripts print before
// that is told apart by the nonce. The agent speaks second, so that nothing of it is lost while the controller still
// waits for sudo. The seconds are how long it stays without a request; the controller closes the channel before that,
// unless it vanished without a word.
func greet(reader *bufio.Reader, out io.Writer) (idle time.Duration, err error) {
	line, err := reader.ReadSlice('\n')
	if err != nil {
		return 0, fmt.Errorf("reading the greeting: %w", err)
	}

	var (
		nonce   string
		seconds int
	)

	_, err = fmt.Sscanf(string(line), "THINKUBE-HELLO %64s %d\n", &nonce, &seconds)
	if err != nil || seconds < 1 {
		return 0, errors.New("the greeting is not that of the collection's action plugin")
	}

	_, err = fmt.Fprintf(out, "THINKUBE-AGENT %s\n", nonce)

	return time.Duration(seconds) * time.Second, err
}

// untilEnd waits for the end of the channel, of the context, or of the patience with a controller that says nothing.
func (s *server) untilEnd(reader io.Reader, idle time.Duration) error {
	ended := make(chan error, 1)

	// It starts the calls itself: every goroutine in between would cost a task a change of threads.
	go func() { ended <- s.takeAll(reader) }()

	timer := time.NewTimer(idle)
	defer timer.Stop()

	for {
		select {
		case err := <-ended:
			return err
		case <-s.tasks.Done():
			return nil
		case <-timer.C:
			left := s.patience(idle)
			if left <= 0 {
				return nil
			}

			timer.Reset(left)
		}
	}
}

// patience gives how much longer to wait for a request.
func (s *server) patience(idle time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()

	if len(s.running) > 0 {
		return idle
	}

	return idle - time.Since(s.active)
}

// takeAll takes frames until there are no more.
func (s *server) takeAll(reader io.Reader) error {
	for {
		next, err := readFrame(reader)
		if errors.Is(err, io.EOF) {
			return nil
		}

		if err != nil {
			return fmt.Errorf("reading a request: %w", err)
		}

		err = s.take(next)
		if err != nil {
			return err
		}
	}
}

func (s *server) take(next frame) error {
	s.mu.Lock()
	s.active = time.Now()
	s.mu.Unlock()

	switch next.kind {
	case kindTask:
		s.start(s.tasks, next, s.calls.Task)
	case kindPeer:
		s.start(s.peers, next, s.calls.Peer)
	case kindCancel:
		s.cancel(next.id)
	case kindPing:
		s.send(frame{id: next.id, kind: kindPong})
	default:
		return fmt.Errorf("a frame of unknown kind %q", next.kind)
	}

	return nil
}

// start runs a call beside the others.
func (s *server) start(ctx context.Context, request frame, call func(context.Context, []byte) []byte) {
	ctx, cancel := context.WithCancel(ctx)

	s.mu.Lock()
	defer s.mu.Unlock()

	if s.stopped {
		cancel()

		return
	}

	s.running[request.id] = cancel
	s.calling.Add(1)

	go func() {
		defer s.calling.Done()

		answer := call(ctx, request.payload)
		if len(answer) > MaxPayload {
			answer = fmt.Appendf(nil, `{"failed":true,"msg":"the module's answer has %d bytes: at most %d"}`, len(answer), MaxPayload)
		}

		s.send(frame{id: request.id, kind: kindAnswer, payload: answer})
		cancel()

		s.mu.Lock()
		delete(s.running, request.id)
		s.active = time.Now()
		s.mu.Unlock()
	}()
}

func (s *server) cancel(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()

	if cancel, ok := s.running[id]; ok {
		cancel()
	}
}

// send drops what cannot be sent: the loop learns from its own end of the channel that it is broken.
func (s *server) send(f frame) {
	text := appendFrame(make([]byte, 0, headerSize+len(f.payload)), f)

	s.writing.Lock()
	defer s.writing.Unlock()

	_, _ = s.out.Write(text)
}
