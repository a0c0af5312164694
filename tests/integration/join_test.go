// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"strings"
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

	step(t, "check mode goes through when the first member has no LXD either", func(t *testing.T) {
		inventory := s.variant(t, func(all map[string]any) {
			hosts := at(t, all, "children", "baremetal", "children", "headless", "hosts")
			address := s.address(t, "n4")
			hosts["n4"] = map[string]any{"ansible_host": address, "lan_ip": address}
			cluster := at(t, all, "children", "lxd_cluster", "children")
			cluster["lxd_primary"] = map[string]any{"hosts": map[string]any{"n4": nil}}
			cluster["lxd_secondary"] = map[string]any{"hosts": map[string]any{"n2": nil}}
		})
		run := s.playWith(t, "10", playOptions{inventory: inventory, args: []string{"--check", "--diff"}}).succeeded(t)
		assert.Contains(t, run.Stdout, "LXD is not installed yet on n4. After that, n4 starts cluster lab at")
		assert.Contains(t, run.Stdout, "LXD is not installed yet on n4. After that, n2 joins cluster lab at")
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

// snap stands in for Ubuntu's: it does what the role asks of it, with the packages that the host can get, and keeps a log.
const snap = `#!/bin/sh
set -e
echo "$*" >>/var/log/snap
case $1 in
install)
	[ "$2" = lxd ]
	DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 install lxd nftables >/dev/null
	mkdir -p /snap/lxd/current /snap/bin
	ln -sf /usr/bin/lxd /snap/bin/lxd ;;
remove)
	systemctl stop lxd.socket lxd.service
	rm -r /snap/lxd /snap/bin/lxd
	dpkg --purge lxd 2>/dev/null
	rm -rf /var/lib/lxd ;;
esac
`

// TestUbuntu goes the way of Ubuntu on a host that says it is one. There is no real snapd in the lab.
func TestUbuntu(t *testing.T) {
	s := needSite(t)
	s.addBareHost(t)
	s.restore(t, bare)

	host, err := s.lab.Host("n4")
	require.NoError(t, err)

	_, err = host.RunInput(t.Context(), strings.NewReader(snap), "cat >/usr/bin/snap && chmod 755 /usr/bin/snap && "+
		`rm /etc/os-release /etc/debian_version && printf 'NAME="Ubuntu"\nID=ubuntu\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n' >/etc/os-release`)
	require.NoError(t, err)

	inventory := s.alone(t, "n4")
	play := func(t *testing.T, number string, args ...string) playRun {
		t.Helper()

		return s.playWith(t, number, playOptions{inventory: inventory, args: args})
	}

	step(t, "check mode announces the snap", func(t *testing.T) {
		assert.Positive(t, play(t, "10", "--check").succeeded(t).changed())
		s.run(t, "n4", "! [ -e /var/log/snap ]")
	})

	step(t, "it is installed from the channel, in the cohort, and held", func(t *testing.T) {
		play(t, "10").succeeded(t)
		play(t, "10").unchanged(t, "n4")
		play(t, "18").unchanged(t, "n4")
		assert.Equal(t, "install lxd --channel=5.21/stable --cohort=+\nrefresh --hold lxd\n", s.run(t, "n4", "cat /var/log/snap"))
	})

	step(t, "a cluster of one goes, and the snap with it", func(t *testing.T) {
		play(t, "19").succeeded(t)
		s.run(t, "n4", "[ -d /snap/lxd ]")
		play(t, "19", "-e", "confirm=lab").succeeded(t)
		assert.Equal(t, "remove --purge lxd", strings.TrimSpace(s.run(t, "n4", "tail -1 /var/log/snap; ! [ -e /var/lib/thinkube ]")))
		play(t, "18").failedWith(t, "n4", "no LXD socket found")
	})

	step(t, "another distribution is refused", func(t *testing.T) {
		s.run(t, "n4", `printf 'NAME="Alpine Linux"\nID=alpine\nVERSION_ID=3.20\n' >/etc/os-release && echo 3.20 >/etc/alpine-release`)
		play(t, "10").failedWith(t, "n4", "there is no LXD on this host, and how to install it on Alpine 3.20 is not known")
	})
}

// alone is an inventory of a cluster of one host.
func (s *site) alone(t *testing.T, name string) string {
	t.Helper()

	return s.variant(t, func(all map[string]any) {
		address := s.address(t, name)
		at(t, all, "children", "baremetal", "children", "headless")["hosts"] = map[string]any{
			name: map[string]any{"ansible_host": address, "lan_ip": address},
		}
		cluster := at(t, all, "children", "lxd_cluster", "children")
		cluster["lxd_primary"] = map[string]any{"hosts": map[string]any{name: nil}}
		cluster["lxd_secondary"] = map[string]any{"hosts": map[string]any{}}
		at(t, all, "children", "management")["hosts"] = map[string]any{name: nil}
	})
}
