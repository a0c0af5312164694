// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// controller is the other end of a channel, and what Serve ended with.
type controller struct {
	t       *testing.T
	to      *io.PipeWriter
	from    *bufio.Reader
	hangUp  func() // nobody reads the agent's output any more
	ended   chan error
	stopped context.CancelFunc
}

// serve starts an agent that was greeted and is ready. It stays for a second without a request.
func serve(t *testing.T, calls Calls) *controller {
	t.Helper()

	c := connect(t, calls)
	_, err := io.WriteString(c.to, "THINKUBE-HELLO n0nce 1\n")
	require.NoError(t, err)

	line, err := c.from.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "THINKUBE-AGENT n0nce\n", line)

	return c
}

func connect(t *testing.T, calls Calls) *controller {
	t.Helper()

	in, to := io.Pipe()
	from, out := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	c := &controller{t: t, to: to, from: bufio.NewReader(from), hangUp: func() { from.Close() }, ended: make(chan error, 1), stopped: cancel}

	go func() {
		c.ended <- Serve(ctx, in, out, calls)

		in.Close()
		out.Close()
	}()

	t.Cleanup(cancel)

	return c
}

func (c *controller) send(k kind, id uint32, payload string) {
	c.t.Helper()

	_, err := c.to.Write(appendFrame(nil, frame{id: id, kind: k, payload: []byte(payload)}))
	require.NoError(c.t, err)
}

// expect reads the next frame.
func (c *controller) expect(k kind, id uint32, payload string) {
	c.t.Helper()

	got, err := readFrame(c.from)
	require.NoError(c.t, err)
	assert.Equal(c.t, fmt.Sprintf("%c %d %s", k, id, payload), fmt.Sprintf("%c %d %s", got.kind, got.id, got.payload))
}

// echoes answers with the request; requests that begin with "wait" do so when their context ends.
var echoes = Calls{Task: echo, Peer: echo}

func echo(ctx context.Context, request []byte) []byte {
	if bytes.HasPrefix(request, []byte("wait")) {
		<-ctx.Done()

		return append([]byte("cancelled "), request...)
	}

	return request
}

func TestTasksAreAnsweredByTheirIDs(t *testing.T) {
	c := serve(t, echoes)

	c.send(kindTask, 7, "wait 7")
	c.send(kindPeer, 8, "a peer")
	c.expect(kindAnswer, 8, "a peer")
	c.send(kindTask, 9, "wait 9")

	c.send(kindCancel, 7, "")
	c.expect(kindAnswer, 7, "cancelled wait 7")
	c.send(kindCancel, 7, "") // too late, and no harm to 9
	c.send(kindPing, 3, "")
	c.expect(kindPong, 3, "")
	c.send(kindCancel, 9, "")
	c.expect(kindAnswer, 9, "cancelled wait 9")

	require.NoError(t, c.to.Close())
	assert.NoError(t, <-c.ended)
}

// TestBrokenChannel is what makes no orphans: tasks come to their end, peers are cancelled, then the agent ends.
func TestBrokenChannel(t *testing.T) {
	work := make(chan struct{})
	peer := make(chan struct{})
	c := serve(t, Calls{
		Task: func(ctx context.Context, _ []byte) []byte {
			<-work
			assert.NoError(t, ctx.Err(), "a task that was begun is not cancelled")

			return nil
		},
		Peer: func(ctx context.Context, _ []byte) []byte {
			<-ctx.Done()
			close(peer)

			return nil
		},
	})

	c.send(kindTask, 1, "")
	c.send(kindPeer, 2, "")
	c.hangUp()
	require.NoError(t, c.to.Close())
	<-peer

	time.Sleep(1200 * time.Millisecond)
	require.Empty(t, c.ended, "it waits for the task, longer than for requests")

	close(work)
	assert.NoError(t, <-c.ended)
}

// TestIdle is for a controller that vanished without a word.
func TestIdle(t *testing.T) {
	c := serve(t, Calls{Task: func(context.Context, []byte) []byte {
		time.Sleep(1500 * time.Millisecond)

		return nil
	}})
	begin := time.Now()

	time.Sleep(500 * time.Millisecond)
	c.send(kindTask, 1, "")
	c.expect(kindAnswer, 1, "")

	answered := time.Now()
	assert.GreaterOrEqual(t, answered.Sub(begin), 2*time.Second, "it does not end while a task runs")

	assert.NoError(t, <-c.ended)
	assert.GreaterOrEqual(t, time.Since(answered), 900*time.Millisecond, "the time begins anew with the end of a task")
}

func TestStopped(t *testing.T) {
	c := serve(t, echoes)
	c.send(kindTask, 1, "wait")
	c.send(kindPing, 2, "")
	c.expect(kindPong, 2, "")
	c.stopped() // SIGTERM
	c.expect(kindAnswer, 1, "cancelled wait")
	assert.NoError(t, <-c.ended)
}

func TestWhatIsNoChannel(t *testing.T) {
	for _, greeting := range []string{"", "\n", "GET / HTTP/1.0\n", "THINKUBE-HELLO\n", "THINKUBE-HELLO n0nce\n", "THINKUBE-HELLO n0nce 0\n",
		"THINKUBE-HELLO n0nce -5\n", "THINKUBE-HELLO n0nce x\n", strings.Repeat("x", 100000)} {
		c := connect(t, echoes)
		_, _ = io.WriteString(c.to, greeting)
		c.to.Close()
		assert.ErrorContains(t, <-c.ended, "greeting", "%.40q", greeting)
	}

	for text, words := range map[string]string{
		"\xff\xff\xff\xff\x00\x00\x00\x01x": "a frame of 4294967295 bytes: at most 67108864",
		"\x00\x00\x00\x01\x00\x00\x00\x01x": "unexpected EOF",
		"\x00\x00":                          "unexpected EOF",
		"\x00\x00\x00\x00\x00\x00\x00\x01z": "unknown kind 'z'",
	} {
		c := serve(t, echoes)
		_, _ = io.WriteString(c.to, text)
		c.to.Close()
		assert.ErrorContains(t, <-c.ended, words, "%q", text)
	}
}

func TestAnswerThatIsTooLarge(t *testing.T) {
	c := serve(t, Calls{Task: func(context.Context, []byte) []byte { return make([]byte, MaxPayload+1) }})
	c.send(kindTask, 1, "")
	c.expect(kindAnswer, 1, `{"failed":true,"msg":"the module's answer has 67108865 bytes: at most 67108864"}`)
	c.to.Close()
	assert.NoError(t, <-c.ended)
}

// TestTenThousandTasks looks for what a task leaves behind.
func TestTenThousandTasks(t *testing.T) {
	c := serve(t, echoes)
	run := func(count int) (goroutines int, heap uint64) {
		for i := range count {
			c.send(kindTask, uint32(i), "a task")
			c.expect(kindAnswer, uint32(i), "a task")
		}

		time.Sleep(10 * time.Millisecond) // the last call's goroutine ends after its answer

		var memory runtime.MemStats

		runtime.GC()
		runtime.ReadMemStats(&memory)

		return runtime.NumGoroutine(), memory.HeapAlloc
	}

	goroutines, heap := run(1000)
	moreGoroutines, moreHeap := run(10000)

	assert.LessOrEqual(t, moreGoroutines, goroutines)
	assert.Less(t, moreHeap, heap+1<<20)
	c.to.Close()
	assert.NoError(t, <-c.ended)
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02\x00\x00\x00\x01xab"))
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x01i"))
	f.Add([]byte("\xff\x00\x00\x00"))

	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) >= 4 && text[0] > 0 {
			return // large frames cost only time
		}

		reader := bytes.NewReader(text)

		for {
			got, err := readFrame(reader)
			if err != nil {
				assert.Equal(t, errors.Is(err, io.EOF), reader.Len() == 0 && err == io.EOF)

				return
			}

			again, err := readFrame(bytes.NewReader(appendFrame(nil, got)))
			require.NoError(t, err)
			assert.Equal(t, got, again)
		}
	})
}
