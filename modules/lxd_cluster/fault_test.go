// SPDX-License-Identifier: Apache-2.0

package lxdcluster_test

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/lxdtest"
)

// TestKilledAfterEveryStep kills the program after each step of a bootstrap, a join and the partings, and runs it again.
func TestKilledAfterEveryStep(t *testing.T) {
	cluster := lxdtest.Start(t, 2)
	n1, n2 := cluster.Hosts[0], cluster.Hosts[1]

	join := joinArgs(n2)
	join["description"] = "second"

	for _, stage := range []struct {
		host *lxdtest.Host
		args map[string]any
	}{
		{n1, bootstrapArgs(n1)},
		{n2, join},
		{n2, map[string]any{"name": "n2", "state": "absent"}},
		{n1, map[string]any{"name": "n1", "state": "absent", "confirm": "lab"}},
	} {
		steps := len(stage.host.Module("lxd_cluster", stage.args, lxdtest.Task{Check: true}).Plan)
		require.NotZero(t, steps)

		// Each run does one step and is killed, so that every state between two steps is resumed from.
		for step := 1; step <= steps; step++ {
			killed := stage.host.Module("lxd_cluster", stage.args, lxdtest.Task{KillAfterStep: 1})
			require.True(t, killed.Killed, "step %d of %d on %s: %q %s", step, steps, stage.host.Name, killed.Plan, killed.Msg)
		}

		stage.host.Unchanged("lxd_cluster", stage.args)
	}

	for _, host := range cluster.Hosts {
		host.Run("sh", "-c", "! ls /var/lib/thinkube 2>/dev/null")
	}
}

func TestTwoHostsJoinAtOnce(t *testing.T) {
	cluster := lxdtest.Start(t, 3)
	n1, n2, n3 := cluster.Hosts[0], cluster.Hosts[1], cluster.Hosts[2]
	n1.OK("lxd_cluster", bootstrapArgs(n1))

	var wait sync.WaitGroup
	for _, host := range []*lxdtest.Host{n2, n3} {
		wait.Add(1)

		go func() {
			defer wait.Done()

			result := host.Module("lxd_cluster", joinArgs(host))
			assert.False(t, result.Failed, "%s: %s", host.Name, result.Msg)
		}()
	}

	wait.Wait()
	assert.Equal(t, "n1:Online n2:Online n3:Online", members(n1.Unchanged("lxd_cluster", bootstrapArgs(n1))))
	n1.Run("sh", "-c", "! ls /var/lib/thinkube/lxd_cluster/joining* 2>/dev/null")
}

func TestJoinAsksForWhatDiffersByMember(t *testing.T) {
	cluster := lxdtest.Start(t, 2)
	n1, n2 := cluster.Hosts[0], cluster.Hosts[1]
	n1.OK("lxd_cluster", bootstrapArgs(n1))
	n1.LXC("storage", "create", "local", "dir")

	args := joinArgs(n2)
	refused := n2.Module("lxd_cluster", args, lxdtest.Task{Check: true})
	assert.Equal(t, "member_config", refused.Code)
	assert.Contains(t, refused.Msg, `source of storage pool "local"`)

	args["member_config"] = map[string]any{"storage_pools": map[string]any{"local": map[string]any{"source": nil}}}
	n2.Converges("lxd_cluster", args)
	assert.Contains(t, n2.LXC("query", "/1.0/storage-pools/local?target=n2"), `"status": "Created"`)

	// A member with something on it stays, and says what that is.
	n2.LXC("storage", "volume", "create", "local", "data", "--target", "n2")

	held := n2.Module("lxd_cluster", map[string]any{"name": "n2", "state": "absent"})
	assert.Equal(t, "holds_data", held.Code)
	assert.Contains(t, held.Msg, `volume "data" in storage pool "local"`)
}

func TestJoinRefusesAHostThatHoldsData(t *testing.T) {
	cluster := lxdtest.Start(t, 2)
	n1, n2 := cluster.Hosts[0], cluster.Hosts[1]
	n1.OK("lxd_cluster", bootstrapArgs(n1))
	n2.LXC("storage", "create", "mine", "dir")
	n2.LXC("profile", "create", "precious")

	refused := n2.Module("lxd_cluster", joinArgs(n2))
	assert.Equal(t, "holds_data", refused.Code)
	assert.Contains(t, refused.Msg, `storage pool "mine", profile "precious"`)
	assert.Contains(t, n2.LXC("profile", "list", "--format=csv"), "precious")
}

func TestUnreachableHosts(t *testing.T) {
	cluster := lxdtest.Start(t, 2)
	n1, n2 := cluster.Hosts[0], cluster.Hosts[1]
	n1.OK("lxd_cluster", bootstrapArgs(n1))

	n1.Run("nft", "add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in iifname eth0 tcp dport 8443 drop")

	refused := n2.Module("lxd_cluster", joinArgs(n2))
	assert.Equal(t, "not_reachable", refused.Code)
	assert.Contains(t, refused.Msg, "this host cannot connect to 10.78.0.11:8443: no answer within 5s")

	n1.Run("nft", "delete table inet t")
	n2.Run("nft", "add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in iifname eth0 tcp dport 8443 drop")

	refused = n2.Module("lxd_cluster", joinArgs(n2))
	assert.Equal(t, "not_reachable", refused.Code)
	assert.Contains(t, refused.Msg, `cluster member "n1" cannot connect to 10.78.0.12:8443`)
	assert.False(t, refused.Changed)
}

func TestJoinTokens(t *testing.T) {
	cluster := lxdtest.Start(t, 2)
	n1, n2 := cluster.Hosts[0], cluster.Hosts[1]
	n1.OK("lxd_cluster", bootstrapArgs(n1))

	token := strings.TrimSpace(lastLine(n1.LXC("cluster", "add", "n2", "--quiet")))
	args := map[string]any{"name": "n2", "address": n2.Address, "join_token": token}

	expired := map[string]any{"name": "n2", "address": n2.Address, "join_token": edited(t, token, "expires_at", "2020-01-01T00:00:00Z")}
	assert.Equal(t, "token_expired", n2.Module("lxd_cluster", expired).Code)

	foreign := map[string]any{"name": "n2", "address": n2.Address, "join_token": edited(t, token, "fingerprint", strings.Repeat("ab", 32))}
	assert.Equal(t, "token", n2.Module("lxd_cluster", foreign).Code)

	wrong := n2.Module("lxd_cluster", map[string]any{"name": "n2", "address": n2.Address, "join_token": edited(t, token, "secret", "0123456789abcdef")})
	assert.True(t, wrong.Failed)
	assert.NotContains(t, wrong.Stdout, "0123456789abcdef")

	result := n2.Converges("lxd_cluster", args)
	assert.NotContains(t, result.Stdout, token)
	assert.NotContains(t, result.Stdout, secretOf(t, token))
}

// TestTheTokenIsNeverPrinted looks at everything that every process of a join prints, on both hosts.
func TestTheTokenIsNeverPrinted(t *testing.T) {
	cluster := lxdtest.Start(t, 2)
	n1, n2 := cluster.Hosts[0], cluster.Hosts[1]
	n1.OK("lxd_cluster", bootstrapArgs(n1))

	result := n2.OK("lxd_cluster", joinArgs(n2))
	assert.Contains(t, result.Stdout, "sealed")
	assert.NotContains(t, result.Stdout, "eyJzZXJ2ZXJfbmFtZ", "a token begins with this")
	assert.NotContains(t, result.Stdout, `"secret"`)
}

func TestOfflineMemberAndQuorum(t *testing.T) {
	cluster := lxdtest.Start(t, 2)
	n1, n2 := cluster.Hosts[0], cluster.Hosts[1]
	n1.OK("lxd_cluster", bootstrapArgs(n1))
	n2.OK("lxd_cluster", joinArgs(n2))
	n1.LXC("config", "set", "cluster.offline_threshold", "11")

	n2.Signal(syscall.SIGKILL)
	require.Eventually(t, func() bool {
		return strings.Contains(members(n1.OK("lxd_cluster", bootstrapArgs(n1))), "n2:Offline")
	}, time.Minute, time.Second)

	absent := map[string]any{"name": "n2", "state": "absent"}
	assert.Equal(t, "member_offline", n1.Module("lxd_cluster", absent).Code)

	absent["force"] = true
	n1.Converges("lxd_cluster", absent)
	assert.Equal(t, "n1:Online", members(n1.OK("lxd_cluster", bootstrapArgs(n1))))
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")

	return lines[len(lines)-1]
}

func decoded(t *testing.T, token string) map[string]any {
	t.Helper()

	text, err := base64.StdEncoding.DecodeString(token)
	require.NoError(t, err, token)

	var fields map[string]any

	require.NoError(t, json.Unmarshal(text, &fields))

	return fields
}

func secretOf(t *testing.T, token string) string {
	t.Helper()

	return decoded(t, token)["secret"].(string)
}

func edited(t *testing.T, token, key string, value any) string {
	t.Helper()

	fields := decoded(t, token)
	fields[key] = value
	text, err := json.Marshal(fields)
	require.NoError(t, err)

	return base64.StdEncoding.EncodeToString(text)
}
