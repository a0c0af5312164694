// SPDX-License-Identifier: Apache-2.0

package dnswire

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var key = &Key{Name: "k.", Algorithm: "hmac-sha256", secret: []byte("secret")}

// TestTheLibraryAgrees has signatures checked by somebody else's code, and somebody else's signatures by ours.
func TestTheLibraryAgrees(t *testing.T) {
	msg := new(dns.Msg)
	msg.SetQuestion("example.com.", dns.TypeSOA)

	packed, err := msg.Pack()
	require.NoError(t, err)

	signed, mac, err := key.sign(packed, time.Now())
	require.NoError(t, err)
	require.NoError(t, dns.TsigVerify(bytes.Clone(signed), "c2VjcmV0", "", false))

	answer := new(dns.Msg)
	answer.SetReply(msg)
	answer.SetTsig("k.", dns.HmacSHA256, 300, time.Now().Unix())

	reply, _, err := dns.TsigGenerate(answer, "c2VjcmV0", hexOf(mac), false)
	require.NoError(t, err)

	w, err := walk(reply, nil)
	require.NoError(t, err)

	check := func(msg []byte, now time.Time) error {
		v := &verifier{key: key, previous: mac}

		return v.check(msg, w.tsig, w.tsigBegin, now)
	}

	require.NoError(t, check(reply, time.Now()))
	require.ErrorIs(t, check(reply, time.Now().Add(time.Hour)), errSignature, "an old answer that comes again")

	for i := range w.tsigBegin {
		if i >= 2 && (i < 10 || i > 11) { // the ID is that in the signature, the count is changed by it
			wrong := bytes.Clone(reply)
			wrong[i] ^= 1
			require.ErrorIs(t, check(wrong, time.Now()), errSignature, "octet %d", i)
		}
	}
}

func hexOf(octets []byte) string {
	const digits = "0123456789abcdef"

	var out strings.Builder
	for _, octet := range octets {
		out.WriteByte(digits[octet>>4])
		out.WriteByte(digits[octet&15])
	}

	return out.String()
}

// TestStreamsMayBeSignedNowAndThen has a transfer in which only some messages are signed (RFC 8945, 5.3.1).
func TestStreamsMayBeSignedNowAndThen(t *testing.T) {
	request := []byte("request's MAC")
	plain := func(id byte) []byte { return append([]byte{0, id, 0x80, 0}, make([]byte, 8)...) }

	// signed gives a message whose MAC covers those before it.
	signed := func(previous []byte, between [][]byte, msg []byte, timersOnly bool) ([]byte, *dns.TSIG, []byte) {
		s := stamp{time: uint64(time.Now().Unix()), fudge: 300, timersOnly: timersOnly}
		variables, err := key.variables(s)
		require.NoError(t, err)

		mac := key.mac(binary.BigEndian.AppendUint16(nil, uint16(len(previous))), previous, bytes.Join(between, nil), msg, variables)
		whole := bytes.Clone(msg)
		whole[11]++ // as if the record followed

		return whole, &dns.TSIG{
			Hdr: dns.RR_Header{Name: "k."}, Algorithm: "hmac-sha256.", TimeSigned: s.time, Fudge: 300, MAC: hexOf(mac), OrigId: binary.BigEndian.Uint16(msg),
		}, mac
	}

	first, firstSig, firstMAC := signed(request, nil, plain(1), false)
	last, lastSig, _ := signed(firstMAC, [][]byte{plain(2), plain(3)}, plain(4), true)

	v := &verifier{key: key, previous: request}
	require.NoError(t, v.check(first, firstSig, 12, time.Now()))
	require.NoError(t, v.check(plain(2), nil, 0, time.Now()))
	require.NoError(t, v.check(plain(3), nil, 0, time.Now()))
	require.NoError(t, v.check(last, lastSig, 12, time.Now()))

	// One of those in between is exchanged.
	v = &verifier{key: key, previous: request}
	require.NoError(t, v.check(first, firstSig, 12, time.Now()))
	require.NoError(t, v.check(plain(2), nil, 0, time.Now()))
	require.NoError(t, v.check(plain(9), nil, 0, time.Now()))
	require.ErrorIs(t, v.check(last, lastSig, 12, time.Now()), errSignature)

	// The first must be signed, and not too many may go without.
	require.ErrorIs(t, (&verifier{key: key}).check(plain(1), nil, 0, time.Now()), errSignature)

	v = &verifier{key: key, started: true}
	for range mostUnsigned {
		require.NoError(t, v.check(plain(1), nil, 0, time.Now()))
	}

	require.ErrorIs(t, v.check(plain(1), nil, 0, time.Now()), errSignature)
}

// FuzzWalk reads anything without a panic, and nothing beyond its end.
func FuzzWalk(f *testing.F) {
	msg := new(dns.Msg)
	msg.SetQuestion("example.com.", dns.TypeAXFR)
	msg.SetTsig("k.", dns.HmacSHA256, 300, 1)

	packed, err := msg.Pack()
	require.NoError(f, err)
	f.Add(packed)

	f.Fuzz(func(t *testing.T, octets []byte) {
		_, err := walk(octets, func(r Record) error {
			_, _ = r.RR()
			assert.Len(t, r.Raw(), int(r.Rdlength))

			return nil
		})
		if err != nil {
			require.ErrorIs(t, err, errMalformed)
		}
	})
}

// FuzzKeyFile quotes no secret in its errors.
func FuzzKeyFile(f *testing.F) {
	f.Add("key \"a\" { algorithm hmac-sha256; secret \"c2VjcmV0\"; };")
	f.Add("# hmac-sha256:a:c2VjcmV0\n")
	f.Add("c2VjcmV0\n")

	f.Fuzz(func(t *testing.T, text string) {
		found, err := parseKeyFile(text)
		if err != nil {
			require.False(t, len(text) > 20 && strings.Contains(err.Error(), text))

			return
		}

		_, _ = decodeSecret(found.secret)
	})
}
