// SPDX-License-Identifier: Apache-2.0

package lxdcluster_test

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/thinkube/infra/modules/internal/lxdtest"
)

// atOnce runs tasks on a host at the same time, each in a process of its own.
func atOnce(host *lxdtest.Host, n int, module string, args map[string]any) []lxdtest.Result {
	results := make([]lxdtest.Result, n)

	var wait sync.WaitGroup
	for i := range results {
		wait.Add(1)

		go func() {
			defer wait.Done()

			results[i] = host.Module(module, args)
		}()
	}

	wait.Wait()

	return results
}

func TestTasksForOneServerDoNotMeet(t *testing.T) {
	cluster := lxdtest.Start(t, 2)
	n1, n2 := cluster.Hosts[0], cluster.Hosts[1]

	changed := 0

	for _, result := range atOnce(n1, 4, "lxd_cluster", bootstrapArgs(n1)) {
		assert.False(t, result.Failed, result.Msg)

		if result.Changed {
			changed++
		}
	}

	assert.Equal(t, 1, changed, "one task makes the cluster, the others find it made")

	// A join empties the server: what another task makes there is made before it, and found by it, or after it.
	profile := make(chan lxdtest.Result)

	go func() { profile <- n2.Module("lxd_profile", map[string]any{"name": "precious"}) }()

	joined, made := n2.Module("lxd_cluster", joinArgs(n2)), <-profile
	assert.False(t, made.Failed, made.Msg)
	assert.Contains(t, n2.LXC("profile", "list", "--format=csv"), "precious", joined.Msg)

	if joined.Failed {
		assert.Equal(t, "holds_data", joined.Code, joined.Msg)
	}
}
