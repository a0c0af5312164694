// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// three are the hosts that the lab comes up with.
var three = []string{"n1", "n2", "n3"}

// tokenStart is how a join token starts: the base64 text of {"server_name":
const tokenStart = "eyJzZXJ2ZXJfbmFtZSI"

// TestCluster goes the whole way on three hosts: from nothing to a cluster with profiles, through damage and repair, and
// back to hosts that are as they were.
func TestCluster(t *testing.T) {
	s := needSite(t)
	s.restore(t, pristine)

	step(t, "check mode shows everything and touches nothing", func(t *testing.T) {
		run := s.play(t, "10", "--check", "--diff").succeeded(t)

		assert.Equal(t, 3, run.Stats["n1"].Changed, "cluster, pool and network are announced:\n%s", run.Stdout)
		assert.Equal(t, 1, run.Stats["n2"].Changed, run.Stdout)
		assert.Equal(t, 1, run.Stats["n3"].Changed, run.Stdout)
		assert.Contains(t, run.Stdout, "10.111.0.1/24", "the diff shows the network's address")
		s.sameAs(t, pristine, three...)
	})

	step(t, "10 makes the cluster and no token is seen, written or left", func(t *testing.T) {
		run := s.play(t, "10", "-vvvv").succeeded(t)

		for _, name := range three {
			assert.Positive(t, run.Stats[name].Changed, name)
		}

		assert.Empty(t, run.grep(t, tokenStart))
		s.noTokens(t)
	})

	step(t, "10 again changes nothing", func(t *testing.T) {
		s.play(t, "10").unchanged(t, three...)
		s.play(t, "10", "-e", byExec).unchanged(t, three...)
		s.play(t, "10", "--check", "--diff").unchanged(t, three...)
		s.play(t, "10", "--limit", "n2").unchanged(t, "n2")
	})

	step(t, "18 passes", func(t *testing.T) {
		s.play(t, "18").unchanged(t, three...)
		s.play(t, "18", "-e", byExec).unchanged(t, three...)
	})

	for _, damage := range damages {
		step(t, "18 notices: "+damage.name, func(t *testing.T) { s.sabotage(t, damage) })
	}

	step(t, "profiles", s.testProfiles)
	step(t, "agent and exec give the same", s.testSameResults)
	step(t, "19 refuses while there are instances", s.testRefusedRollback)
	step(t, "19", s.testRollback)
}

// noTokens looks for join tokens on the hosts. A token that is made here shows that one would be recognised.
func (s *site) noTokens(t *testing.T) {
	t.Helper()

	for _, name := range three {
		found := s.run(t, name, "grep -rlE "+tokenStart+" /home /root /tmp /var/tmp /var/log /var/lib/thinkube /run/log 2>/dev/null || true")
		assert.Empty(t, found, name)
	}

	assert.Empty(t, strings.TrimSpace(s.run(t, "n1", "lxc cluster list-tokens -f csv")), "a token was left")

	token := s.run(t, "n1", "lxc cluster add other | tail -1; lxc cluster revoke-token other >/dev/null")
	assert.True(t, strings.HasPrefix(token, tokenStart), "tokens start with something else now")
}

// damage is something that 18 must notice.
type damage struct {
	name    string
	do      func(t *testing.T, s *site)
	host    string // where 18 says so
	says    string
	repair  func(t *testing.T, s *site) // nil: playbook 10 repairs it
	changes string                      // the host on which 10 does
	away    bool                        // a member is, and has to be found again
}

// After how many seconds without a heartbeat LXD takes a member for offline: the least that it can be told, and its own 20. They
// come each 10 seconds, so that with so little others may look as if they were away, too, for a moment.
const (
	awaySoon  = "lxc config set cluster.offline_threshold 11"
	awayAsWas = "lxc config unset cluster.offline_threshold"
)

var damages = []damage{
	{
		name: "the network was deleted",
		do:   func(t *testing.T, s *site) { s.run(t, "n2", "lxc network delete lxdbr0") },
		host: "n1", says: "network lxdbr0 on member n1: is not there", changes: "n1",
	},
	{
		name: "the network was edited",
		do: func(t *testing.T, s *site) {
			// LXD starts dnsmasq anew, at times before the old one has let go of its address.
			s.eventually(t, "n2", "lxc network set lxdbr0 ipv4.nat false")
		},
		host: "n1", says: "Setup would change nothing of the network:.*ipv4.nat", changes: "n1",
	},
	{
		name:   "the network is down on one member",
		do:     func(t *testing.T, s *site) { s.run(t, "n2", "ip link set lxdbr0 down") },
		host:   "n1",
		says:   "network lxdbr0 on member n2: the interface is down",
		repair: func(t *testing.T, s *site) { s.run(t, "n2", "ip link set lxdbr0 up") },
	},
	{
		name:   "the pool is missing on one member",
		do:     func(t *testing.T, s *site) { s.run(t, "n3", "mv /var/lib/lxd/storage-pools/default /root/pool") },
		host:   "n1",
		says:   "pool default on member n3: ",
		repair: func(t *testing.T, s *site) { s.run(t, "n3", "mv /root/pool /var/lib/lxd/storage-pools/default") },
	},
	{
		name: "a member was removed",
		do: func(t *testing.T, s *site) {
			s.run(t, "n1", "lxc cluster remove n3 --yes")
			s.eventually(t, "n3", `! lxc query /1.0 | grep -q '"server_clustered": true' && lxc query /1.0 >/dev/null`)
		},
		host: "n1", says: "missing n3", changes: "n3",
	},
	{
		name:   "the cluster is another one",
		do:     func(t *testing.T, s *site) { s.run(t, "n1", "lxc config set user.thinkube.cluster other") },
		host:   "n1",
		says:   "LXD on n1 is in cluster other, not in lab",
		repair: func(t *testing.T, s *site) { s.run(t, "n1", "lxc config set user.thinkube.cluster lab") },
	},
	{
		name: "a member's daemon was stopped",
		do: func(t *testing.T, s *site) {
			s.run(t, "n1", awaySoon)
			s.run(t, "n3", "systemctl stop lxd.socket lxd.service")
			s.eventually(t, "n1", "lxc cluster list -f csv | grep n3 | grep -q OFFLINE")
		},
		host: "n1", says: "member n3 is Offline", away: true,
		repair: func(t *testing.T, s *site) {
			s.run(t, "n3", "systemctl start lxd.socket lxd.service lxd-containers.service && lxd waitready --timeout=60")
			s.eventually(t, "n1", "! lxc cluster list -f csv | grep -q OFFLINE")
			s.run(t, "n1", awayAsWas)
		},
	},
	{
		name: "a member's host was powered off",
		do: func(t *testing.T, s *site) {
			host, err := s.lab.Host("n2")
			require.NoError(t, err)
			s.run(t, "n1", awaySoon)
			require.NoError(t, host.Stop(t.Context()))
			s.eventually(t, "n1", "lxc cluster list -f csv | grep n2 | grep -q OFFLINE")
		},
		host: "n3", says: "member n2 is Offline", away: true,
		repair: func(t *testing.T, s *site) {
			host, err := s.lab.Host("n2")
			require.NoError(t, err)
			require.NoError(t, host.Start(t.Context()))
			s.eventually(t, "n1", "! lxc cluster list -f csv | grep -q OFFLINE")
			s.run(t, "n1", awayAsWas)
		},
	},
}

// sabotage damages the cluster, sees 18 notice, has it repaired, and sees 18 pass again. Where the test itself takes back what it
// did, the 18 that passes is that of a later damage.
func (s *site) sabotage(t *testing.T, damage damage) {
	damage.do(t, s)
	s.play(t, "18").failedWith(t, damage.host, damage.says)

	if damage.repair != nil {
		damage.repair(t, s)
	} else {
		run := s.play(t, "10").succeeded(t)
		assert.Positive(t, run.Stats[damage.changes].Changed, run.Stdout)
	}

	if damage.repair == nil || damage.away {
		s.play(t, "18").unchanged(t, three...)
	}
}

func (s *site) testProfiles(t *testing.T) {
	step(t, "28 fails without them", func(t *testing.T) { s.play(t, "28").failedWith(t, "n1", "there is no profile vm-base") })

	step(t, "check mode shows them", func(t *testing.T) {
		run := s.play(t, "20", "--check", "--diff").succeeded(t)
		assert.Contains(t, run.Stdout, `"cluster.evacuate": "stop"`)
		assert.Equal(t, "default", strings.TrimSpace(s.run(t, "n1", "lxc profile list -f csv | cut -d, -f1")))
	})

	step(t, "20, 20 again, 28", func(t *testing.T) {
		assert.Equal(t, 1, s.play(t, "20").succeeded(t).Stats["n1"].Changed)
		s.play(t, "20").unchanged(t, "n1")
		s.play(t, "28").unchanged(t, "n1")
		s.play(t, "28", "-e", byExec).unchanged(t, "n1")
		assert.Contains(t, s.run(t, "n3", "lxc profile show vm-networks"), "parent: br0")
	})

	for name, command := range map[string]string{
		"a value was edited":    "lxc profile set vm-base boot.autostart false",
		"a key was added":       "lxc profile set vm-resources limits.processes 10",
		"a device was edited":   "lxc profile device set vm-networks eth1 parent br9",
		"a profile was deleted": "lxc profile delete vm-gpu",
	} {
		step(t, "28 notices: "+name, func(t *testing.T) {
			s.run(t, "n2", command)
			s.play(t, "28").failedWith(t, "n1", "Every profile is there|Setup would change nothing")
			s.play(t, "20").succeeded(t)
			s.play(t, "28").unchanged(t, "n1")
		})
	}

	step(t, "29, 28 fails, 29 again", func(t *testing.T) {
		assert.Positive(t, s.play(t, "29").succeeded(t).changed())
		assert.Equal(t, "default", strings.TrimSpace(s.run(t, "n1", "lxc profile list -f csv | cut -d, -f1")))
		s.play(t, "28").failedWith(t, "n1", "there is no profile")
		s.play(t, "29").unchanged(t, "n1")
	})

	step(t, "29 gives back a profile that was there before", func(t *testing.T) {
		s.run(t, "n1", "lxc profile create container && lxc profile set container limits.cpu=7 user.mine=yes")
		before := s.run(t, "n1", "lxc profile show container")

		s.play(t, "20").succeeded(t)
		require.NotEqual(t, before, s.run(t, "n1", "lxc profile show container"))
		s.play(t, "29").succeeded(t)
		assert.Equal(t, before, s.run(t, "n1", "lxc profile show container"))
		s.run(t, "n1", "lxc profile delete container")
	})

	s.play(t, "20").succeeded(t)
}

func (s *site) testRefusedRollback(t *testing.T) {
	host, err := s.lab.Host("n1")
	require.NoError(t, err)
	require.NoError(t, host.ImportTestImage(t.Context(), "busybox"))
	s.run(t, "n1", "lxc init busybox c1 --profile container --target n3")

	for _, args := range [][]string{{}, {"-e", "confirm=lab"}} {
		s.play(t, "19", args...).failedWith(t, "n3", `would destroy instance "c1"`)
	}

	s.play(t, "29").failedWith(t, "n1", `container.*c1`)
	s.play(t, "18").unchanged(t, three...)
	s.play(t, "28").unchanged(t, "n1")
	s.run(t, "n1", "lxc delete c1 && lxc image delete busybox")
}

func (s *site) testRollback(t *testing.T) {
	require.NoError(t, s.lab.Snapshot(t.Context(), "clustered"))

	step(t, "without confirm it shows everything and changes nothing", func(t *testing.T) {
		run := s.play(t, "19").succeeded(t)

		for _, name := range three {
			assert.Positive(t, run.Stats[name].Changed, "what would change on %s is shown", name)
		}

		assert.Contains(t, run.Stdout, "-e confirm=lab")
		s.sameAs(t, "clustered", three...)
		s.play(t, "18").unchanged(t, three...)
		s.play(t, "28").unchanged(t, "n1")
	})

	step(t, "with another name it refuses", func(t *testing.T) {
		s.play(t, "19", "-e", "confirm=prod").failedWith(t, "n1", "confirm is prod, but the cluster of this inventory is lab")
		s.play(t, "18").unchanged(t, three...)
	})

	step(t, "in check mode it changes nothing, also with confirm", func(t *testing.T) {
		s.play(t, "19", "--check", "-e", "confirm=lab").succeeded(t)
		s.sameAs(t, "clustered", three...)
	})

	step(t, "with confirm the hosts are as before", func(t *testing.T) {
		run := s.play(t, "19", "-e", "confirm=lab").succeeded(t)

		for _, name := range three {
			assert.Positive(t, run.Stats[name].Changed, name)
		}

		s.sameAs(t, pristine, three...)
	})

	step(t, "18 fails", func(t *testing.T) { s.play(t, "18").failedWith(t, "n1", "LXD on n1 is in no cluster, not in lab") })
	step(t, "again it changes nothing", func(t *testing.T) { s.play(t, "19", "-e", "confirm=lab").unchanged(t, three...) })
}

// TestSizesByMember makes a pool that is a file of another size on each member, one of them of LXD's choice.
func TestSizesByMember(t *testing.T) {
	s := needSite(t)
	s.restore(t, pristine)

	inventory := s.variant(t, func(all map[string]any) {
		at(t, all, "vars")["lxd_storage_driver"] = "btrfs"
		hostVars(t, all, "n1")["lxd_storage_size"] = "2GiB"
		hostVars(t, all, "n3")["lxd_storage_size"] = "3GiB"
	})

	s.playWith(t, "10", playOptions{inventory: inventory}).succeeded(t)
	s.playWith(t, "10", playOptions{inventory: inventory}).unchanged(t, three...)
	s.playWith(t, "18", playOptions{inventory: inventory}).unchanged(t, three...)

	for member, size := range map[string]string{"n1": "2GiB", "n3": "3GiB"} {
		assert.Contains(t, s.run(t, "n2", "lxc storage show default --target "+member), "size: "+size+"\n")
	}

	s.playWith(t, "19", playOptions{inventory: inventory, args: []string{"-e", "confirm=lab"}}).succeeded(t)
	s.sameAs(t, pristine, three...)
}

// TestInterrupted kills ansible in the middle of playbook 10, again and again: the next run goes on from there, also when
// what the last one started on the hosts is still at work.
func TestInterrupted(t *testing.T) {
	s := needSite(t)

	for first := 1500 * time.Millisecond; first < 2*time.Second; first += 250 * time.Millisecond {
		s.restore(t, pristine)

		cut := 0
		for after := first; s.cut(t, "10", after); after += 500 * time.Millisecond {
			cut++
		}

		assert.Positive(t, cut, "no run was long enough to be cut")
		s.play(t, "10").unchanged(t, three...)
		s.play(t, "18").unchanged(t, three...)
		s.noTokens(t)
	}
}

// cut runs a playbook and kills it with all its processes. It tells whether the playbook had not ended by itself.
func (s *site) cut(t *testing.T, number string, after time.Duration) bool {
	t.Helper()

	play := exec.Command("ansible-playbook", "-i", s.inventory, s.playbook(t, number))
	play.Dir = s.root
	play.Env = s.environ(os.Environ())
	play.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	play.WaitDelay = time.Second // for an ssh that outlives it, with its output still open

	var output bytes.Buffer

	play.Stdout, play.Stderr = &output, &output

	require.NoError(t, play.Start())

	ended := make(chan error, 1)
	go func() { ended <- play.Wait() }()

	select {
	case err := <-ended:
		require.NoError(t, err, "a run that goes on after a cut:\n%s", &output)

		return false
	case <-time.After(after):
		require.NoError(t, syscall.Kill(-play.Process.Pid, syscall.SIGKILL))
		<-ended

		return true
	}
}
