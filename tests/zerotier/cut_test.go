// SPDX-License-Identifier: Apache-2.0

package zerotier

import (
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
}
