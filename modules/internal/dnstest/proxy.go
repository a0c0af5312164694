// SPDX-License-Identifier: Apache-2.0

package dnstest

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
)

// Exchange is one question on a connection to a server that does not behave.
type Exchange struct {
	Query *dns.Msg
	Raw   []byte

	conn     net.Conn
	upstream string
}

// Misbehave listens on a loopback port and gives every message that comes over TCP to a function. upstream is a server that the
// function can pass messages on to, and may be empty.
func Misbehave(t *testing.T, upstream string, handle func(e *Exchange)) (port int) {
	t.Helper()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)

	var running sync.WaitGroup

	ended := make(chan struct{})

	t.Cleanup(func() {
		close(ended)

		_ = listener.Close()

		running.Wait()
	})

	running.Add(1)

	go func() {
		defer running.Done()

		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}

			running.Add(1)

			go func() {
				defer running.Done()

				serve(conn, upstream, handle, ended)
			}()
		}
	}()

	return listener.Addr().(*net.TCPAddr).Port
}

func serve(conn net.Conn, upstream string, handle func(e *Exchange), ended <-chan struct{}) {
	defer func() { _ = conn.Close() }()

	done := make(chan struct{})
	defer close(done)

	go func() {
		select {
		case <-ended:
			_ = conn.SetDeadline(time.Unix(1, 0))
		case <-done:
		}
	}()

	for {
		raw, err := readFrame(conn)
		if err != nil {
			return
		}

		query := new(dns.Msg)
		if query.Unpack(raw) != nil {
			return
		}

		handle(&Exchange{Query: query, Raw: raw, conn: conn, upstream: upstream})
	}
}

func readFrame(conn net.Conn) ([]byte, error) {
	var length [2]byte

	_, err := io.ReadFull(conn, length[:])
	if err != nil {
		return nil, err
	}

	raw := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err = io.ReadFull(conn, raw)

	return raw, err
}

// Write sends octets as one message.
func (e *Exchange) Write(raw []byte) {
	_, _ = e.conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(raw))), raw...))
}

// Answer sends a message as it is.
func (e *Exchange) Answer(msg *dns.Msg) {
	raw, err := msg.Pack()
	if err == nil {
		e.Write(raw)
	}
}

// Reply makes an answer with a response code and records in zone-file form.
func (e *Exchange) Reply(rcode int, records ...string) *dns.Msg {
	msg := new(dns.Msg)
	msg.SetRcode(e.Query, rcode)

	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			panic(err) // a mistake in the test
		}

		msg.Answer = append(msg.Answer, rr)
	}

	return msg
}

// Close ends the connection.
func (e *Exchange) Close() { _ = e.conn.Close() }

// Updates tells whether the question is an update.
func (e *Exchange) Updates() bool { return e.Query.Opcode == dns.OpcodeUpdate }

// Pass gives the question to the server behind, and every message of its answer to a function, which may change or swallow it.
func (e *Exchange) Pass(each func(n int, raw []byte) []byte) {
	conn, err := net.Dial("tcp", e.upstream)
	if err != nil {
		return
	}

	defer func() { _ = conn.Close() }()

	_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(e.Raw))), e.Raw...))

	for n := 0; ; n++ {
		// What follows the last message of a transfer is silence.
		patience := 300 * time.Millisecond
		if n == 0 {
			patience = 20 * time.Second
		}

		_ = conn.SetReadDeadline(time.Now().Add(patience))

		raw, err := readFrame(conn)
		if err != nil {
			return
		}

		if each != nil {
			raw = each(n, raw)
		}

		if raw != nil {
			e.Write(raw)
		}

		if e.Updates() {
			return
		}
	}
}
