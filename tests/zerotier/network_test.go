// SPDX-License-Identifier: Apache-2.0

package zerotier

import (
	"fmt"
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
	s.changesPlaces()
	s.hasTwins()

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

// changesPlaces has two hosts exchange their addresses, and the ingresses' addresses move, in one run.
func (s *site) changesPlaces() {
	s.Helper()

	other := []string{"-e", "zerotier_ingress_host=n3", "-e",
		s.vars(`{"zerotier_ip": "{{ {'n1': '10.147.17.1', 'n2': '10.147.17.3', 'n3': '10.147.17.2'}[inventory_hostname] }}"}`)}

	assert.Positive(s, s.passes("10", append(other, "--check", "--diff")...).changed)
	assert.Contains(s, s.sh("n2", "ip -o -4 addr"), "10.147.17.201/24", "check mode changes nothing")

	s.passes("10", other...)
	assert.Zero(s, s.passes("10", other...).changed)
	s.passes("18", other...)

	for host, wanted := range map[string][]string{"n2": {"10.147.17.3/24"}, "n3": {"10.147.17.2/24", "10.147.17.200/24", "10.147.17.201/24"}} {
		have := s.sh(host, "ip -o -4 addr")
		assert.Equal(s, len(wanted), strings.Count(have, "inet 10.147.17."), have)

		for _, address := range wanted {
			assert.Contains(s, have, address)
		}
	}

	// One that a host outside the play has is refused, as any other member's.
	taken := s.play("10", "--limit", "n3")
	require.NotZero(s, taken.code, taken.output)
	require.Contains(s, taken.output, "already has address 10.147.17.3")
	s.passes("10")
}

// hasTwins has a host that was cloned: it has the identity of another.
func (s *site) hasTwins() {
	s.Helper()

	identity := func(from, to string) {
		s.sh(byHand, fmt.Sprintf("sed -i 's/-address %s/-address %s/' /etc/systemd/system/zerotier-one.service && systemctl daemon-reload && systemctl restart zerotier-one", from, to))
		s.awaitService(byHand)
	}

	identity(nodes[byHand], nodes["n3"])

	twins := s.play("10")
	require.NotZero(s, twins.code, twins.output)
	require.Contains(s, twins.output, byHand+" has the identity "+nodes["n3"]+" of n3: one is a clone of the other")
	assert.Zero(s, twins.changed)

	identity(nodes["n3"], nodes[byHand])
	require.Eventually(s, func() bool { return strings.Contains(s.sh(byHand, "ip -o -4 addr"), "10.147.17.2/24") }, 20*time.Second, 200*time.Millisecond)
}
