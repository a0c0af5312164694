// SPDX-License-Identifier: Apache-2.0

package zerotier

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// second is another network of the same controller.
const second = "6eabbc719100cafe"

// TestChangeOfNetwork has a site that moves to another network: setup refuses while hosts are in the first, and a rollback is
// of the network that setup was made with, and of no other.
func TestChangeOfNetwork(t *testing.T) {
	s := newSite(t)
	member := func(network string) string { return "/controller/network/" + network + "/member/" + nodes[byHand] }
	before := s.api("GET", member(network), "")

	s.api("POST", "/controller/network/"+second, `{"name":"second","routes":[{"target":"10.148.0.0/24"},{"target":"10.200.0.0/24","via":"10.148.0.9"}]}`)
	s.api("POST", member(second), `{"authorized":true,"name":"of the second","ipAssignments":["10.148.0.7"]}`)
	there := s.api("GET", member(second), "")
	routes := s.api("GET", "/controller/network/"+second, "")["routes"]

	s.passes("10")

	refused := s.play("10", "-e", "zerotier_network_id="+second)
	require.NotZero(t, refused.code, refused.output)
	require.Contains(t, refused.output, "is a member of network "+network+", which an earlier zerotier_network_id said")
	assert.Zero(t, refused.changed)

	// The inventory has the second by now; what was recorded is of the first.
	elsewhere := s.play("19", "-e", "zerotier_network_id="+strings.ToUpper(second), "-e", s.vars(`{"zerotier_controller": {"kind": "central_v1", "token": "x"}}`))
	require.NotZero(t, elsewhere.code, elsewhere.output)
	require.Contains(t, elsewhere.output, "which is not the one that zerotier_controller says")
	assert.Zero(t, elsewhere.changed)

	s.passes("19", "-e", "zerotier_network_id="+strings.ToUpper(second))
	s.isRecord(before)
	assert.Equal(t, []string{nodes[byHand]}, s.members())
	assert.Equal(t, there, s.api("GET", member(second), ""), "that was never ours")
	assert.Equal(t, routes, s.api("GET", "/controller/network/"+second, "")["routes"])
	assert.Len(t, s.api("GET", "/controller/network/"+network, "")["routes"], 1)
	s.isAsBefore()

	// Routes wait for the last host, whichever network that is in by then.
	s.passes("10", "--limit", "n1,"+byHand)
	s.passes("19", "--limit", byHand)
	assert.Len(t, s.api("GET", "/controller/network/"+network, "")["routes"], 2)
	require.Eventually(t, func() bool { return strings.Contains(s.sh(byHand, "ip -o -4 addr"), "10.147.17.50/24") }, 20*time.Second, 200*time.Millisecond)
	s.passes("19", "-e", "zerotier_network_id="+second)
	assert.Len(t, s.api("GET", "/controller/network/"+network, "")["routes"], 1)
	s.isAsBefore()
}
