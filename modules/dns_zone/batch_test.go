// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/plan"
	"github.com/thinkube/infra/modules/internal/records"
)

// planned plans from a zone of a name server and more records.
func planned(more []records.Set, wanted ...any) (plan.Plan[State], error) {
	sets := append([]records.Set{
		{Name: "example.com.", Type: "NS", TTL: 3600, Values: []string{"ns1.example.com."}},
		{Name: "ns1.example.com.", Type: "A", TTL: 3600, Values: []string{"192.0.2.53"}},
	}, more...)
	records.SortSets(sets)

	state := State{Zone: "example.com.", Sets: sets, SOA: &records.SOA{Primary: "ns1.example.com.", Mail: "h.example.com.", Serial: 1, TTL: 60}}

	return Module.PlanCase(map[string]any{"name": "example.com", "force": true, "records": wanted}, state)
}

func item(name, kind string, values ...any) map[string]any {
	return map[string]any{"name": name, "type": kind, "values": values}
}

// updates gives the messages of a plan, each of which must be one that can be sent.
func updates(t *testing.T, planned plan.Plan[State]) []Update {
	t.Helper()

	var list []Update

	for _, step := range planned.Steps {
		if update, ok := step.Do.(Update); ok {
			msg, err := message(update)
			require.NoError(t, err)
			assert.Less(t, msg.Len(), dns.MaxMsgSize-512)

			list = append(list, update)
		}
	}

	return list
}

// TestManyDelegationsToOneNameServer has more of them than one message can have.
func TestManyDelegationsToOneNameServer(t *testing.T) {
	var wanted []any

	for i := range 5000 {
		wanted = append(wanted, item(fmt.Sprintf("sub-%d", i), "NS", "ns1"))
	}

	// The name server is there.
	result, err := planned(nil, wanted...)
	require.NoError(t, err)
	assert.Greater(t, len(updates(t, result)), 2)

	// It is made, and so goes first. What else is changed goes along.
	wanted[17] = item("sub-17", "NS", "z-ns", "ns1")
	for i := range 4000 {
		wanted[i+100] = item(fmt.Sprintf("sub-%d", i+100), "NS", "z-ns")
	}

	result, err = planned(nil, append(wanted, item("z-ns", "A", "192.0.2.54"), item("z-ns", "AAAA", "2001:db8::54"))...)
	require.NoError(t, err)

	at := map[string]int{}

	for i, update := range updates(t, result) {
		for _, change := range update.Changes {
			at[change.New.String()] = i
		}
	}

	assert.Len(t, at, 5002)
	assert.Equal(t, at["z-ns.example.com A"], at["z-ns.example.com AAAA"])

	for name, i := range at {
		if strings.Contains(name, "sub-17 ") || strings.Contains(name, "sub-100.") {
			assert.GreaterOrEqual(t, i, at["z-ns.example.com A"], name)
		}
	}

	assert.GreaterOrEqual(t, at["sub-4099.example.com NS"], at["z-ns.example.com A"])
}

// TestASetThatNoMessageHolds is refused before anything is sent, and all such are named.
func TestASetThatNoMessageHolds(t *testing.T) {
	text := func(first byte, count int) []any {
		var values []any
		for i := range count {
			values = append(values, fmt.Sprintf("%c%05d%s", first, i, strings.Repeat("x", 200)))
		}

		return values
	}

	var old []records.Set

	for _, name := range []string{"a.example.com.", "b.example.com."} {
		set := records.Set{Name: name, Type: "TXT", TTL: 3600}
		for _, value := range text('o', 170) {
			set.Values = append(set.Values, fmt.Sprintf("%q", value))
		}

		old = append(old, set)
	}

	_, err := planned(old, item("a", "TXT", text('n', 170)...), item("b", "TXT", text('n', 170)...))

	var failure *ansible.Failure

	require.ErrorAs(t, err, &failure)
	assert.Equal(t, CodeRules, failure.Code)
	assert.Contains(t, err.Error(), "a.example.com TXT: message-size: ")
	assert.Contains(t, err.Error(), "b.example.com TXT: message-size: ")

	// One that looks too large and is not goes by itself.
	result, err := planned(old, item("a", "TXT", text('n', 110)...), item("c", "A", "192.0.2.1"))
	require.NoError(t, err)
	assert.Len(t, updates(t, result), 2)
}
