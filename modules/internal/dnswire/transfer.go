// SPDX-License-Identifier: Apache-2.0

package dnswire

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Record is a resource record as it came: its octets may refer to names elsewhere in the message.
type Record struct {
	dns.RR_Header

	msg   []byte
	begin int // of the data
}

// Raw gives the data's octets as they stand in the message.
func (r Record) Raw() []byte { return r.msg[r.begin : r.begin+int(r.Rdlength)] }

// RR reads the data as its type says.
func (r Record) RR() (dns.RR, error) {
	rr, _, err := dns.UnpackRRWithHeader(r.RR_Header, r.msg[:r.begin+int(r.Rdlength)], r.begin)

	return rr, err
}

// walked is what a pass over a message finds.
type walked struct {
	header    dns.MsgHdr
	question  []dns.Question
	answers   int
	tsig      *dns.TSIG
	tsigBegin int
}

// walk goes over the records of a message. Only their headers are read, so that data of a type that cannot be read does not
// hide the others. Each answer is given to a function.
func walk(msg []byte, answer func(Record) error) (walked, error) {
	var w walked

	if len(msg) < headerSize {
		return w, fmt.Errorf("%w: it has %d octets", errMalformed, len(msg))
	}

	bits := binary.BigEndian.Uint16(msg[2:])
	w.header = dns.MsgHdr{
		Id: binary.BigEndian.Uint16(msg), Response: bits>>15 == 1, Opcode: int(bits>>11) & 0xf, Truncated: bits>>9&1 == 1, Rcode: int(bits & 0xf),
	}

	offset := headerSize

	for range binary.BigEndian.Uint16(msg[4:]) {
		name, next, err := dns.UnpackDomainName(msg, offset)
		if err != nil || next+4 > len(msg) {
			return w, fmt.Errorf("%w: its question is cut off", errMalformed)
		}

		w.question = append(w.question, dns.Question{Name: name, Qtype: binary.BigEndian.Uint16(msg[next:]), Qclass: binary.BigEndian.Uint16(msg[next+2:])})
		offset = next + 4
	}

	w.answers = int(binary.BigEndian.Uint16(msg[6:]))
	total := w.answers + int(binary.BigEndian.Uint16(msg[8:])) + int(binary.BigEndian.Uint16(msg[10:]))

	for i := range total {
		record, next, err := readRecord(msg, offset)
		if err != nil {
			return w, fmt.Errorf("%w: record %d of %d: %w", errMalformed, i+1, total, err)
		}

		if i < w.answers && answer != nil {
			err = answer(record)
		} else if record.Rrtype == dns.TypeTSIG && i == total-1 {
			err = w.takeTSIG(record, offset)
		}

		if err != nil {
			return w, err
		}

		offset = next
	}

	return w, nil
}

func (w *walked) takeTSIG(record Record, begin int) error {
	rr, err := record.RR()
	if err != nil {
		return fmt.Errorf("%w: its signature: %w", errMalformed, err)
	}

	w.tsig, w.tsigBegin = rr.(*dns.TSIG), begin

	return nil
}

func readRecord(msg []byte, offset int) (Record, int, error) {
	name, next, err := dns.UnpackDomainName(msg, offset)
	if err != nil {
		return Record{}, 0, err
	}

	if next+10 > len(msg) {
		return Record{}, 0, fmt.Errorf("it is cut off")
	}

	record := Record{
		RR_Header: dns.RR_Header{
			Name: name, Rrtype: binary.BigEndian.Uint16(msg[next:]), Class: binary.BigEndian.Uint16(msg[next+2:]),
			Ttl: binary.BigEndian.Uint32(msg[next+4:]), Rdlength: binary.BigEndian.Uint16(msg[next+8:]),
		},
		msg: msg, begin: next + 10,
	}

	end := record.begin + int(record.Rdlength)
	if end > len(msg) {
		return Record{}, 0, fmt.Errorf("its data is cut off")
	}

	return record, end, nil
}

// Transfer reads a whole zone (AXFR, RFC 5936), giving each record but the last, which repeats the first, to a function. The
// first is the SOA. It fails unless the transfer is complete, so that half a zone is never taken for all of it: what the
// function has been given before an error is worth nothing.
func (s Server) Transfer(ctx context.Context, zone string, each func(Record) error) error {
	msg := new(dns.Msg)
	msg.SetAxfr(zone)

	t, err := s.ask(ctx, "tcp", msg)
	if err != nil {
		return err
	}

	defer t.close()

	in := &transfer{talk: t, zone: dns.CanonicalName(zone), each: each}
	done := make(chan struct{})
	messages := t.readAhead(done)

	defer close(done)

	for !in.complete {
		next := <-messages

		err := next.err
		if err == nil {
			err = in.take(next.packed)
		}

		if err != nil {
			return fmt.Errorf("transferring zone %q: %w", zone, t.explain(err))
		}
	}

	return nil
}

// message is one as it came, or why there is none.
type message struct {
	packed []byte
	err    error
}

// ahead is how many messages may wait to be looked at.
const ahead = 256

// readAhead takes messages from the server as fast as they come, until one cannot be read: some servers end a transfer whose
// client is slow, such as Knot after half a second.
func (t *talk) readAhead(done <-chan struct{}) <-chan message {
	messages := make(chan message, ahead)

	go func() {
		for {
			packed, err := t.read()

			select {
			case messages <- message{packed, err}:
			case <-done:
				return
			}

			if err != nil {
				return
			}
		}
	}()

	return messages
}

// transfer is one that is under way.
type transfer struct {
	*talk

	zone     string
	each     func(Record) error
	soa      []byte // the first record's data, names written out
	complete bool
}

// take goes over one message of a transfer. What it holds is believed only when the signature over it, here or in one of the
// next messages, is right: the last one must be signed.
func (in *transfer) take(packed []byte) error {
	if len(packed) >= headerSize {
		if rcode := int(packed[3] & 0xf); rcode != dns.RcodeSuccess {
			return in.refused(packed, rcode)
		}
	}

	w, err := walk(packed, in.record)
	if err == nil {
		err = in.checkHeader(w.header, w.question)
	}

	switch {
	case err != nil:
		return err
	case w.header.Truncated:
		return fmt.Errorf("%w: it is marked as truncated", errMalformed)
	case w.answers == 0:
		return fmt.Errorf("%w: a message of the transfer is empty", errMalformed)
	case in.verifier == nil:
		return nil
	case in.complete && w.tsig == nil:
		return fmt.Errorf("%w: the last message is not signed", errSignature)
	}

	return in.verifier.check(packed, w.tsig, w.tsigBegin, time.Now())
}

// refused makes an error of a refusal, which is signed unless the key is what is refused.
func (in *transfer) refused(packed []byte, rcode int) error {
	w, err := walk(packed, nil)
	if err == nil {
		err = in.checkHeader(w.header, w.question)
	}

	if err == nil && w.tsig != nil && in.verifier != nil {
		err = in.verifier.check(packed, w.tsig, w.tsigBegin, time.Now())
	}

	if err != nil {
		return err
	}

	return in.server.Refusal("the transfer", rcode)
}

func (in *transfer) record(r Record) error {
	if in.complete {
		return fmt.Errorf("%w: records follow the end of the transfer", errMalformed)
	}

	name := dns.CanonicalName(r.Name)
	if r.Class != dns.ClassINET || !in.has(name) {
		return fmt.Errorf("%w: record %q is not of this zone", errMalformed, r.Name)
	}

	if r.Rrtype == dns.TypeSOA {
		return in.takeSOA(name, r)
	}

	if in.soa == nil {
		return fmt.Errorf("%w: the transfer does not begin with the SOA", errMalformed)
	}

	return in.each(r)
}

// has tells whether a name is the zone or below it.
func (in *transfer) has(name string) bool {
	// For most names their end says so; one with escapes may have an escaped dot there.
	if strings.HasSuffix(name, "."+in.zone) && !strings.Contains(name, `\`) {
		return true
	}

	return dns.IsSubDomain(in.zone, name)
}

// takeSOA marks the beginning and, when it comes again, the end. Another SOA at the end means that the zone was changed
// while it was sent (RFC 5936, 2.2).
func (in *transfer) takeSOA(name string, r Record) error {
	rr, err := r.RR()
	if err != nil {
		return fmt.Errorf("%w: SOA: %w", errMalformed, err)
	}

	if name != in.zone {
		return fmt.Errorf("%w: it has the SOA of %q", errMalformed, r.Name)
	}

	data := make([]byte, dns.Len(rr)+1)

	end, err := dns.PackRR(rr, data, 0, nil, false)
	if err != nil {
		return fmt.Errorf("%w: SOA: %w", errMalformed, err)
	}

	if in.soa == nil {
		in.soa = data[:end]

		return in.each(r)
	}

	in.complete = true

	if !bytes.Equal(in.soa, data[:end]) {
		return fmt.Errorf("%w: the SOA at the end is not that of the beginning", errMalformed)
	}

	return nil
}
