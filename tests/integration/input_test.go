// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/ansible219"
)

// TestBadInput gives the playbooks what they must refuse, and looks that no host was touched.
func TestBadInput(t *testing.T) {
	s := needSite(t)
	s.restore(t, pristine)

	cases := []struct {
		name   string
		change func(t *testing.T, all map[string]any)
		host   string
		says   string
		late   bool // only noticed after something was done, except in check mode
	}{
		{
			"missing site values, all at once and before any host is touched",
			func(t *testing.T, all map[string]any) {
				delete(hostVars(t, all, "n2"), "lan_ip")
				delete(at(t, all, "vars"), "lxd_storage_driver")
			},
			"n2", "missing required arguments: lan_ip, lxd_storage_driver", false,
		},
		{
			"a driver that there is not",
			func(t *testing.T, all map[string]any) { at(t, all, "vars")["lxd_storage_driver"] = "ext4" },
			"n1", "value of lxd_storage_driver must be one of: dir, btrfs, zfs, lvm, got: ext4", false,
		},
		{
			"an address that is not on the host",
			func(t *testing.T, all map[string]any) { hostVars(t, all, "n1")["lan_ip"] = "10.9.9.9" },
			"n1", `address 10\.9\.9\.9 is not on this host.*this host has \["10\.177\.92\.11"\]`, false,
		},
		{
			"a wildcard address",
			func(t *testing.T, all map[string]any) { hostVars(t, all, "n1")["lan_ip"] = "0.0.0.0" },
			"n1", "is a wildcard", false,
		},
		{
			"a primary that there is not",
			func(t *testing.T, all map[string]any) {
				at(t, all, "children", "lxd_cluster", "children", "lxd_primary")["hosts"] = map[string]any{}
			},
			"n2", "group lxd_primary has 0 hosts: it must have one", false,
		},
		{
			"a name that LXD refuses",
			func(t *testing.T, all map[string]any) { at(t, all, "vars")["lxd_storage_pool"] = "a/b" },
			"n1", `name "a/b"`, true,
		},
	}

	for _, bad := range cases {
		t.Run(bad.name, func(t *testing.T) {
			inventory := s.variant(t, func(all map[string]any) { bad.change(t, all) })

			s.playWith(t, "10", playOptions{inventory: inventory, args: []string{"--check"}}).failedWith(t, bad.host, bad.says)

			if !bad.late {
				s.playWith(t, "10", playOptions{inventory: inventory}).failedWith(t, bad.host, bad.says)
			}

			s.sameAs(t, pristine, three...)
		})
	}
}

// TestNewerCore goes the way once on ansible-core 2.19.
func TestNewerCore(t *testing.T) {
	s := needSite(t)
	s.restore(t, pristine)

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()

	environ, err := ansible219.Environment(ctx, os.Environ())
	if err != nil && os.Getenv("CI") != "true" {
		t.Skip(err)
	}

	require.NoError(t, err)

	play := func(t *testing.T, number string, args ...string) playRun {
		t.Helper()

		return s.playWith(t, number, playOptions{args: args, environ: environ})
	}

	step(t, "10 in check mode", func(t *testing.T) {
		assert.Positive(t, play(t, "10", "--check", "--diff").succeeded(t).changed())
		s.sameAs(t, pristine, three...)
	})
	step(t, "10, without a token at -vvvv", func(t *testing.T) {
		assert.Empty(t, play(t, "10", "-vvvv").succeeded(t).grep(t, tokenStart))
		s.noTokens(t)
	})
	step(t, "10 again, 18", func(t *testing.T) {
		play(t, "10").unchanged(t, three...)
		play(t, "18").unchanged(t, three...)
	})
	step(t, "20, 20 again, 28", func(t *testing.T) {
		play(t, "20").succeeded(t)
		play(t, "20").unchanged(t, "n1")
		play(t, "28").unchanged(t, "n1")
	})
	step(t, "18 and 28 fail where they must", func(t *testing.T) {
		s.run(t, "n1", "lxc network set lxdbr0 ipv4.nat false && lxc profile set vm-base boot.autostart false")
		play(t, "18").failedWith(t, "n1", "Setup would change nothing of the network")
		play(t, "28").failedWith(t, "n1", "Setup would change nothing")
	})
	step(t, "19 without and with confirm", func(t *testing.T) {
		play(t, "19").succeeded(t)
		play(t, "10").succeeded(t)
		play(t, "18").unchanged(t, three...)
		play(t, "19", "-e", "confirm=lab").succeeded(t)
		s.sameAs(t, pristine, three...)
		play(t, "18").failedWith(t, "n1", "in no cluster")
	})
}
