// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/lab"
)

// bare is the snapshot of a host that never had LXD.
const bare = "bare"

// addBareHost adds a fourth host, which has Python and a package source but no LXD.
func (s *site) addBareHost(t *testing.T) {
	t.Helper()

	host, err := s.lab.AddHost(t.Context(), "n4", lab.HostOptions{WithoutLXD: true})
	require.NoError(t, err)

	if len(host.Snapshots()) == 0 {
		require.NoError(t, host.Snapshot(t.Context(), bare))
	}
}

// TestFourthHost lets a host without LXD join a cluster that runs already, and leave it again.
func TestFourthHost(t *testing.T) {
	s := needSite(t)
	s.restore(t, pristine)

	s.play(t, "10").succeeded(t)
	s.addBareHost(t)

	// The lab's inventory has the fourth host from now on.
	play := func(t *testing.T, number string, args ...string) playRun {
		t.Helper()

		return s.playWith(t, number, playOptions{inventory: s.lab.InventoryFile(), args: args})
	}

	step(t, "18 notices that it is not in", func(t *testing.T) {
		run := play(t, "18")
		run.failedWith(t, "n1", "missing n4")
		run.failedWith(t, "n4", "no LXD socket found.*install LXD first")
	})

	step(t, "check mode announces the installation and touches nothing", func(t *testing.T) {
		run := play(t, "10", "--check", "--diff", "--limit", "n4").succeeded(t)
		assert.Positive(t, run.Stats["n4"].Changed, run.Stdout)
		assert.Contains(t, run.Stdout, "LXD is not installed yet on n4. After that, n4 joins cluster lab at")
		s.sameAs(t, bare, "n4")
	})

	step(t, "it is installed and joins", func(t *testing.T) {
		run := play(t, "10", "--limit", "n4", "-e", `'{"lxd_users": ["ops"]}'`).succeeded(t)
		assert.Positive(t, run.Stats["n4"].Changed)
		assert.Contains(t, s.run(t, "n4", "id ops"), "(lxd)")
		assert.NotContains(t, s.run(t, "n4", "stat -c %a /var/lib/lxd/unix.socket"), "666")
		play(t, "10", "-e", `'{"lxd_users": ["ops"]}'`, "--limit", "n4").unchanged(t, "n4")
		play(t, "10").unchanged(t, "n1", "n2", "n3", "n4")
		play(t, "18").unchanged(t, "n1", "n2", "n3", "n4")
	})

	step(t, "without confirm nothing is removed", func(t *testing.T) {
		run := play(t, "19", "--limit", "n4").succeeded(t)
		assert.GreaterOrEqual(t, run.Stats["n4"].Changed, 2, "leaving and uninstalling are shown:\n%s", run.Stdout)
		play(t, "18").unchanged(t, "n1", "n2", "n3", "n4")
	})

	step(t, "it leaves, and its packages too", func(t *testing.T) {
		play(t, "19", "--limit", "n4", "-e", "confirm=lab").succeeded(t)
		s.sameAs(t, bare, "n4")
		s.play(t, "18").unchanged(t, three...)
	})

	step(t, "it joins and leaves with all others", func(t *testing.T) {
		play(t, "10").succeeded(t)
		play(t, "18").unchanged(t, "n1", "n2", "n3", "n4")
		play(t, "19", "-e", "confirm=lab").succeeded(t)
		s.sameAs(t, pristine, three...)
		s.sameAs(t, bare, "n4")
	})
}
