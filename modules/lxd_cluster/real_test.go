// SPDX-License-Identifier: Apache-2.0

package lxdcluster_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/lxdtest"
)

func bootstrapArgs(host *lxdtest.Host) map[string]any {
	return map[string]any{"name": host.Name, "address": host.Address, "bootstrap": true, "cluster": "lab"}
}

func joinArgs(host *lxdtest.Host) map[string]any {
	return map[string]any{"name": host.Name, "address": host.Address, "via": "n1", "cluster": "lab"}
}

func members(result lxdtest.Result) string {
	cluster, _ := result.Raw["cluster"].(map[string]any)
	list, _ := cluster["members"].([]any)

	names := []string{}
	for _, member := range list {
		member, _ := member.(map[string]any)
		names = append(names, member["name"].(string)+":"+member["status"].(string))
	}

	return strings.Join(names, " ")
}

func TestThreeHostsBecomeAClusterAndPartAgain(t *testing.T) {
	cluster := lxdtest.Start(t, 3)
	n1, n2, n3 := cluster.Hosts[0], cluster.Hosts[1], cluster.Hosts[2]
	before := map[*lxdtest.Host]string{}

	for _, host := range cluster.Hosts {
		before[host] = fresh(host)
	}

	// Before there is a cluster, check mode on a later member shows the way and the real task says what is missing.
	early := n2.Module("lxd_cluster", joinArgs(n2), lxdtest.Task{Check: true})
	require.False(t, early.Failed, early.Msg)
	assert.Contains(t, early.Raw["warnings"], `host "n1": its server is in no cluster yet; whether this host can join is checked when there is a cluster`)

	early = n2.Module("lxd_cluster", joinArgs(n2))
	require.True(t, early.Failed)
	assert.Equal(t, "not_clustered", early.Code)
	assert.False(t, early.Changed)

	n1.Converges("lxd_cluster", bootstrapArgs(n1))

	joined := n2.Converges("lxd_cluster", joinArgs(n2))
	assert.Equal(t, "n1:Online n2:Online", members(joined))

	args := joinArgs(n3)
	args["description"], args["failure_domain"] = "third", "rack2"
	joined = n3.Converges("lxd_cluster", args)
	assert.Equal(t, "n1:Online n2:Online n3:Online", members(joined))
	assert.Equal(t, "rack2", joined.Raw["member"].(map[string]any)["failure_domain"])

	for _, host := range cluster.Hosts {
		assert.Empty(t, liveTokens(host), "a join token is left")
	}

	n1.Unchanged("lxd_cluster", bootstrapArgs(n1))

	args["failure_domain"] = "rack3"
	n3.Converges("lxd_cluster", args)

	for _, host := range []*lxdtest.Host{n3, n2} {
		host.Converges("lxd_cluster", map[string]any{"name": host.Name, "state": "absent"})
	}

	refused := n1.Module("lxd_cluster", map[string]any{"name": "n1", "state": "absent", "confirm": "other"})
	assert.Equal(t, "confirm", refused.Code)
	n1.Converges("lxd_cluster", map[string]any{"name": "n1", "state": "absent", "confirm": "lab"})

	for _, host := range cluster.Hosts {
		assert.Equal(t, before[host], fresh(host), host.Name)
		host.Run("sh", "-c", "! ls /var/lib/thinkube 2>/dev/null")
	}

	// What was taken apart can be put together again.
	n1.Converges("lxd_cluster", bootstrapArgs(n1))
	n2.Converges("lxd_cluster", joinArgs(n2))
}

// fresh gives what a stand-alone server with nothing in it says of itself.
func fresh(host *lxdtest.Host) string {
	var server struct {
		Config      map[string]any `json:"config"`
		Environment struct {
			Addresses   []string `json:"addresses"`
			Fingerprint string   `json:"certificate_fingerprint"`
			Clustered   bool     `json:"server_clustered"`
			Name        string   `json:"server_name"`
		} `json:"environment"`
	}

	_ = json.Unmarshal([]byte(host.LXC("query", "/1.0")), &server)
	text, _ := json.Marshal(server)

	return string(text) + host.LXC("query", "/1.0/profiles?recursion=1") + host.LXC("query", "/1.0/certificates")
}

// liveTokens lists join tokens that could still be used.
func liveTokens(host *lxdtest.Host) []any {
	var operations map[string][]map[string]any

	_ = json.Unmarshal([]byte(host.LXC("query", "/1.0/operations?recursion=1")), &operations)

	var live []any

	for _, operation := range operations["running"] {
		if operation["class"] == "token" {
			live = append(live, operation)
		}
	}

	return live
}
