// SPDX-License-Identifier: Apache-2.0

// Package dnswire talks to one DNS server: questions, transfers and updates, with TSIG. What is no proper answer is an
// error, never an empty one.
package dnswire

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"strconv"
	"time"

	"github.com/miekg/dns"

	"github.com/thinkube/infra/modules/internal/ansible"
)

// Failure codes that talking to a server gives.
const (
	CodeUnreachable ansible.Code = "unreachable"
	CodeRefused     ansible.Code = "refused"
	CodeKey         ansible.Code = "tsig"
	CodeMalformed   ansible.Code = "malformed_answer"
)

// Codes says what they mean.
var Codes = map[ansible.Code]string{
	CodeUnreachable: "the server cannot be reached, or ends the connection",
	CodeRefused:     "the server refuses; msg has its response code",
	CodeKey:         "the TSIG key cannot be read, the server does not take it, or the answer's signature is wrong",
	CodeMalformed:   "the server's answer breaks the protocol, so nothing of it is believed",
}

// WithCodes adds these to a module's own codes.
func WithCodes(own map[ansible.Code]string) map[ansible.Code]string {
	maps.Copy(own, Codes)

	return own
}

var (
	errSignature = errors.New("signature")
	errMalformed = errors.New("not a proper answer")
)

// Server is a DNS server. Without a key, messages are neither signed nor checked.
type Server struct {
	Address string // host:port
	Key     *Key
}

// NewServer puts an address together.
func NewServer(host string, port int, key *Key) Server {
	return Server{Address: net.JoinHostPort(host, strconv.Itoa(port)), Key: key}
}

// Exchange sends a message over the network ("tcp" or "udp") and gives the answer, whatever its response code is: see
// Rcode. The message's ID is set here.
func (s Server) Exchange(ctx context.Context, network string, msg *dns.Msg) (*dns.Msg, error) {
	talk, err := s.ask(ctx, network, msg)
	if err != nil {
		return nil, err
	}

	defer talk.close()

	for {
		packed, err := talk.read()
		if err != nil {
			return nil, talk.explain(err)
		}

		// A datagram that is no answer to this question may be anybody's; only a stream cannot have others.
		if network == "udp" && (len(packed) < headerSize || binary.BigEndian.Uint16(packed) != talk.id) {
			continue
		}

		answer, err := talk.parse(packed)
		if err != nil {
			return nil, talk.explain(err)
		}

		return answer, nil
	}
}

const headerSize = 12

// talk is one connection with one question.
type talk struct {
	server   Server
	ctx      context.Context
	conn     net.Conn
	stop     func() bool
	stream   bool
	id       uint16
	question dns.Question
	opcode   int
	verifier *verifier
}

// ask connects and sends.
func (s Server) ask(ctx context.Context, network string, msg *dns.Msg) (*talk, error) {
	t := &talk{server: s, ctx: ctx, stream: network == "tcp", id: randomID(), question: msg.Question[0], opcode: msg.Opcode, stop: func() bool { return true }}
	msg.Id = t.id

	packed, err := msg.Pack()
	if err != nil {
		return nil, ansible.Fail(ansible.CodeInternal, "", "packing the message: %w", err)
	}

	if s.Key != nil {
		var mac []byte

		packed, mac, err = s.Key.sign(packed, time.Now())
		if err != nil {
			return nil, ansible.Fail(ansible.CodeInternal, "", "signing the message: %w", err)
		}

		t.verifier = &verifier{key: s.Key, previous: mac}
	}

	var dialer net.Dialer

	t.conn, err = dialer.DialContext(ctx, network, s.Address)
	if err != nil {
		return nil, t.explain(err)
	}

	// A read that waits ends with the context, whatever ends it.
	t.stop = context.AfterFunc(ctx, func() { _ = t.conn.SetDeadline(time.Unix(1, 0)) })

	err = t.write(packed)
	if err != nil {
		t.close()

		return nil, t.explain(err)
	}

	return t, nil
}

func randomID() uint16 {
	var id [2]byte

	_, _ = rand.Read(id[:])

	return binary.BigEndian.Uint16(id[:])
}

func (t *talk) close() {
	t.stop()
	_ = t.conn.Close()
}

func (t *talk) write(packed []byte) error {
	if t.stream {
		if len(packed) > dns.MaxMsgSize {
			return fmt.Errorf("the message has %d octets, more than %d", len(packed), dns.MaxMsgSize)
		}

		packed = append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...)
	}

	_, err := t.conn.Write(packed)

	return err
}

func (t *talk) read() ([]byte, error) {
	if !t.stream {
		packed := make([]byte, dns.MaxMsgSize)
		n, err := t.conn.Read(packed)

		return packed[:n], err
	}

	var length [2]byte

	_, err := io.ReadFull(t.conn, length[:])
	if err != nil {
		return nil, err
	}

	packed := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err = io.ReadFull(t.conn, packed)

	return packed, err
}

// explain gives an error of the network or the protocol its code.
func (t *talk) explain(err error) error {
	var (
		failure *ansible.Failure
		network net.Error
	)

	// A dialer gives up a moment before the context ends whose deadline it has.
	if errors.As(err, &network) && network.Timeout() {
		select {
		case <-t.ctx.Done():
		case <-time.After(time.Second):
		}
	}

	cause := context.Cause(t.ctx)

	switch {
	case errors.As(err, &failure):
		return err
	case cause != nil:
		return fmt.Errorf("waiting for DNS server %s: %w", t.server.Address, cause)
	case errors.Is(err, errSignature):
		return ansible.Fail(CodeKey, "compare name, algorithm and secret of the key with the server's, and the clocks of both hosts", "DNS server %s: %w", t.server.Address, err)
	case errors.Is(err, errMalformed):
		return ansible.Fail(CodeMalformed, "look whether that is the server you mean, and what stands between", "DNS server %s: %w", t.server.Address, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = errors.New("it ended the connection before the answer was complete")
	}

	return ansible.Fail(CodeUnreachable, "is the server running, and does a packet filter let TCP port 53 pass?", "DNS server %s: %w", t.server.Address, err)
}

// parse reads a whole message and makes sure that it answers the question.
func (t *talk) parse(packed []byte) (*dns.Msg, error) {
	answer := new(dns.Msg)

	err := answer.Unpack(packed)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}

	err = t.checkHeader(answer.MsgHdr, answer.Question)
	if err != nil || t.verifier == nil {
		return answer, err
	}

	// The record and where it begins, from the octets that were signed.
	w, err := walk(packed, nil)
	if err == nil {
		err = t.verify(w, packed)
	}

	return answer, err
}

// verify tells a refusal of the key from an answer that somebody else has made.
func (t *talk) verify(w walked, packed []byte) error {
	if w.tsig == nil && int(packed[3]&0xf) == dns.RcodeNotAuth {
		return nil // unsigned, as an answer to a message that could not be verified is; it is an error in any case
	}

	return t.verifier.check(packed, w.tsig, w.tsigBegin, time.Now())
}

func (t *talk) checkHeader(header dns.MsgHdr, question []dns.Question) error {
	switch {
	case header.Id != t.id:
		return fmt.Errorf("%w: it has ID %d, the question had %d", errMalformed, header.Id, t.id)
	case !header.Response:
		return fmt.Errorf("%w: it is a question", errMalformed)
	case header.Opcode != t.opcode:
		return fmt.Errorf("%w: it has opcode %s", errMalformed, dns.OpcodeToString[header.Opcode])
	}

	// Servers may leave the question out of a refusal, of an answer to an update, and of all but the first message of a
	// transfer (RFC 5936, 2.2.1).
	for _, q := range question {
		if dns.CanonicalName(q.Name) != dns.CanonicalName(t.question.Name) || q.Qtype != t.question.Qtype || q.Qclass != t.question.Qclass {
			return fmt.Errorf("%w: it answers %q %s", errMalformed, q.Name, dns.TypeToString[q.Qtype])
		}
	}

	return nil
}

// Rcode makes an error of a response code that is none of the expected ones. "what" says what was asked for.
func (s Server) Rcode(answer *dns.Msg, what string, expected ...int) error {
	for _, code := range expected {
		if answer.Rcode == code {
			return nil
		}
	}

	return s.Refusal(what, answer.Rcode)
}

// Refusal makes an error of a response code that says what it means for whom it hits.
func (s Server) Refusal(what string, rcode int) error {
	name := dns.RcodeToString[rcode]
	if name == "" {
		name = strconv.Itoa(rcode)
	}

	hint := ""

	switch rcode {
	case dns.RcodeRefused:
		hint = "the server's configuration must allow this to the key or to this host's address"
	case dns.RcodeNotAuth:
		hint = "the server has no such zone, is not its primary, or does not know the TSIG key"
	case dns.RcodeNotImplemented:
		hint = "the server has no dynamic update for this zone; use mode: file on it"
	case dns.RcodeServerFailure:
		hint = "the server's log says why; a zone that could not be loaded is one reason"
	}

	return ansible.Fail(CodeRefused, hint, "DNS server %s answers %s to %s", s.Address, name, what)
}
