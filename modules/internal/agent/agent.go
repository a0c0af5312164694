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
	closed       context.CancelFunc

	mu      sync.Mutex
	running map[uint32]context.CancelFunc

	calling sync.WaitGroup
	ended   chan struct{} // has one when a call has ended since the loop looked
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

	s := &server{calls: calls, out: out, running: map[uint32]context.CancelFunc{}, ended: make(chan struct{}, 1)}
	s.tasks = ctx
	s.peers, s.closed = context.WithCancel(ctx)

	defer s.closed()

	err = s.loop(reader, idle)
	s.closed()
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

// loop takes frames until there are no more.
func (s *server) loop(reader io.Reader, idle time.Duration) error {
	frames := make(chan frame)
	broken := make(chan error, 1)

	go func() {
		for {
			next, err := readFrame(reader)
			if err != nil {
				broken <- err

				return
			}

			select {
			case frames <- next:
			case <-s.peers.Done():
				return
			}
		}
	}()

	timer := time.NewTimer(idle)
	defer timer.Stop()

	for {
		select {
		case next := <-frames:
			err := s.take(next)
			if err != nil {
				return err
			}
		case err := <-broken:
			if errors.Is(err, io.EOF) {
				return nil
			}

			return fmt.Errorf("reading a request: %w", err)
		case <-s.ended:
		case <-timer.C:
			if s.count() == 0 {
				return nil
			}
		case <-s.tasks.Done():
			return nil
		}

		timer.Reset(idle)
	}
}

func (s *server) take(next frame) error {
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
	s.running[request.id] = cancel
	s.mu.Unlock()

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
		s.mu.Unlock()

		select {
		case s.ended <- struct{}{}:
		default:
		}
	}()
}

func (s *server) cancel(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()

	if cancel, ok := s.running[id]; ok {
		cancel()
	}
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()

	return len(s.running)
}

// send drops what cannot be sent: the loop learns from its own end of the channel that it is broken.
func (s *server) send(f frame) {
	text := appendFrame(make([]byte, 0, headerSize+len(f.payload)), f)

	s.writing.Lock()
	defer s.writing.Unlock()

	_, _ = s.out.Write(text)
}
