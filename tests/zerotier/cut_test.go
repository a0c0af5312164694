// SPDX-License-Identifier: Apache-2.0

package zerotier

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestForwardingAfterACut has a host whose forwarding was undone, or made, by half: a rollback finishes it.
func TestForwardingAfterACut(t *testing.T) {
	s := newSite(t)

	// A member that newly gets something to forward to: check mode says so.
	s.passes("10", "--limit", packaged, "-e", s.vars(`{"zerotier_forward_to": []}`))

	check := s.passes("10", "--limit", packaged, "--check", "--diff")
	assert.Positive(t, check.changed)

	// The file was deleted, and the unit is active all the same.
	s.passes("10", "--limit", packaged)
	require.Contains(t, s.sh(packaged, "iptables -S FORWARD"), "thinkube-zerotier")
	s.sh(packaged, "rm /etc/systemd/system/thinkube-zerotier-forward.service; systemctl daemon-reload")
	s.passes("19", "--limit", packaged)
	s.passes("19")
	s.isAsBefore()

	// Nothing but the record and the program is there: the unit was not written yet, or is gone already.
	s.passes("10", "--limit", packaged)
	s.sh(packaged, `systemctl disable --now thinkube-zerotier-forward
rm /etc/systemd/system/thinkube-zerotier-forward.service; systemctl daemon-reload; systemctl reset-failed`)
	s.passes("19", "--limit", packaged)
	s.passes("19")
	s.isAsBefore()

	// It cannot be seen whether others need forwarding: it stays on, and that is said.
	s.passes("10", "--limit", packaged)
	s.sh(packaged, "mv /usr/sbin/nft /usr/sbin/nft.real; printf '#!/bin/sh\\necho netlink: Operation not permitted >&2; exit 1\\n' >/usr/sbin/nft; chmod 755 /usr/sbin/nft")
	blind := s.passes("19", "--limit", packaged)
	assert.Contains(t, blind.output, "the rules of the kernel could not be listed: netlink: Operation not permitted")
	assert.Equal(t, "1", strings.TrimSpace(s.sh(packaged, "cat /proc/sys/net/ipv4/ip_forward")))

	// Without that program, iptables knows its own.
	s.sh(packaged, "rm /usr/sbin/nft; sysctl -qw net.ipv4.ip_forward=0")
	s.passes("10", "--limit", packaged)
	s.sh(packaged, "iptables -t nat -A POSTROUTING -s 10.9.0.0/24 -j MASQUERADE")
	seen := s.passes("19", "--limit", packaged)
	assert.Contains(t, seen.output, "-s 10.9.0.0/24 -j MASQUERADE")
	assert.Equal(t, "1", strings.TrimSpace(s.sh(packaged, "cat /proc/sys/net/ipv4/ip_forward")))

	s.sh(packaged, "mv /usr/sbin/nft.real /usr/sbin/nft; nft delete table ip nat; sysctl -qw net.ipv4.ip_forward=0")
	s.passes("19")
	s.isAsBefore()
}
