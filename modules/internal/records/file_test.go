// SPDX-License-Identifier: Apache-2.0

package records

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const handwritten = `$TTL 1h
$ORIGIN com.
example SOA ns1.example hostmaster.example ( 2024010101 ; serial
	2h 15m 2w 5m )
	NS ns1.example
$ORIGIN example.com.
ns1 A 192.0.2.53
www 60 IN A 192.0.2.1
    60 IN A 192.0.2.2
    60 IN A 192.0.2.1
@ TXT "a;b" "c\"d"
odd TYPE65280 \# 4 0A00 0001
$GENERATE 1-2 h-$ A 192.0.2.$
`

func TestFilesAreReadAndWritten(t *testing.T) {
	soa, sets, err := ParseFile(handwritten, zone, 0)
	require.NoError(t, err)
	assert.Equal(t, SOA{Primary: "ns1.example.com.", Mail: "hostmaster.example.com.", Serial: 2024010101, Refresh: 7200, Retry: 900, Expire: 1209600, Minimum: 300, TTL: 3600}, *soa)
	assert.Equal(t, []Set{
		{Name: zone, Type: "NS", TTL: 3600, Values: []string{"ns1.example.com."}},
		{Name: zone, Type: "TXT", TTL: 3600, Values: []string{`"a;b" "c\"d"`}},
		{Name: "h-1.example.com.", Type: "A", TTL: 3600, Values: []string{"192.0.2.1"}},
		{Name: "h-2.example.com.", Type: "A", TTL: 3600, Values: []string{"192.0.2.2"}},
		{Name: "ns1.example.com.", Type: "A", TTL: 3600, Values: []string{"192.0.2.53"}},
		{Name: "odd.example.com.", Type: "TYPE65280", TTL: 3600, Values: []string{`\# 4 0a000001`}},
		{Name: "www.example.com.", Type: "A", TTL: 60, Values: []string{"192.0.2.1", "192.0.2.2"}},
	}, sets)

	text, err := RenderFile(zone, *soa, sets)
	require.NoError(t, err)
	assert.Equal(t, byte('\n'), text[len(text)-1])

	again, back, err := ParseFile(text, zone, 0)
	require.NoError(t, err)
	assert.Equal(t, soa, again)
	assert.Equal(t, sets, back)
}

// TestTTLsThatAreNotSaid are those with which BIND serves the file (lib/dns/master.c): the SOA's minimum, unless something was said
// before; and Knot, for which they are always the same.
func TestTTLsThatAreNotSaid(t *testing.T) {
	for text, want := range map[string][3]uint32{ // of the SOA, a, and b after a record with TTL 7
		"@ SOA ns h 1 2 3 4 60\na A 192.0.2.1\nx 7 A 192.0.2.1\nb A 192.0.2.1\n":             {60, 60, 60},
		"@ IN SOA ns h 1 2 3 4 60\na IN A 192.0.2.1\nx IN 7 A 192.0.2.1\nb IN A 192.0.2.1\n": {60, 60, 60},
		"@ 9 SOA ns h 1 2 3 4 60\na A 192.0.2.1\nx 7 A 192.0.2.1\nb A 192.0.2.1\n":           {9, 9, 7},
		"$TTL 8\n@ SOA ns h 1 2 3 4 60\na A 192.0.2.1\nx 7 A 192.0.2.1\nb A 192.0.2.1\n":     {8, 8, 8},
		"@ SOA ns h 1 2 3 4 60\na A 192.0.2.1\n$TTL 5\nx 7 A 192.0.2.1\nb A 192.0.2.1\n":     {60, 60, 5},
		"@ SOA ns h 1 2 3 4 0\na A 192.0.2.1\nx 7 A 192.0.2.1\nb A 192.0.2.1\n":              {0, 0, 0},
	} {
		soa, sets, err := ParseFile(text, zone, 0)
		require.NoError(t, err)
		assert.Equal(t, want, [3]uint32{soa.TTL, sets[0].TTL, sets[1].TTL}, text)
	}

	soa, sets, err := ParseFile("@ 9 SOA ns h 1 2 3 4 60\na A 192.0.2.1\n$TTL 5\nb A 192.0.2.1\n", zone, 3600)
	require.NoError(t, err)
	assert.Equal(t, [3]uint32{9, 3600, 5}, [3]uint32{soa.TTL, sets[0].TTL, sets[1].TTL})

	_, _, err = ParseFile("@ SOA ns h 1 2 3 4 60\na A nonsense\n", zone, 0)
	assert.ErrorContains(t, err, "line: 2")
}

func TestFilesThatAreNotUnderstoodAreRefused(t *testing.T) {
	const soa = "@ SOA a b 1 2 3 4 5\n"

	for name, text := range map[string]string{
		"nothing":        "",
		"no SOA":         "www A 192.0.2.1\n",
		"two SOA":        soa + soa,
		"an include":     soa + "$INCLUDE /etc/passwd\n",
		"another zone":   soa + "www.example.net. A 192.0.2.1\n",
		"another class":  soa + "www CH A 192.0.2.1\n",
		"a signature":    soa + "@ DNSKEY 257 3 13 AAAA\n",
		"what is no RR":  soa + "www A\n",
		"half a bracket": "@ SOA a b ( 1 2 3\n",
	} {
		_, _, err := ParseFile(text, zone, 0)
		assert.Error(t, err, name)
	}
}

// FuzzParseFile makes sure that what is read can be written, and is the same when it is read again.
func FuzzParseFile(f *testing.F) {
	f.Add(handwritten)
	f.Add("@ SOA a b 1 2 3 4 5\n@ HTTPS 1 . alpn=\"a\\,b\"\n\\046 LOC 1 N 1 E 0m\n")

	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 4096 {
			return // $GENERATE alone makes enough of a short one
		}

		soa, sets, err := ParseFile(text, zone, 0)
		if err != nil {
			return
		}

		written, err := RenderFile(zone, *soa, sets)
		require.NoError(t, err)

		again, back, err := ParseFile(written, zone, 0)
		require.NoError(t, err, written)
		require.Equal(t, soa, again)
		require.Len(t, back, len(sets))

		for i := range sets {
			require.True(t, sets[i].Same(back[i]), "%v and %v", sets[i], back[i])
		}
	})
}
