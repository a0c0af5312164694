// SPDX-License-Identifier: Apache-2.0

package lxdtest

import (
	"fmt"
	"strings"
	"testing"
)

// StartCluster starts n daemons and makes them one cluster with LXD's own means: for tests of what lives in a cluster.
func StartCluster(t *testing.T, n int) *Cluster {
	t.Helper()

	cluster := Start(t, n)
	cluster.Hosts[0].init(fmt.Sprintf("config: {core.https_address: %q}\ncluster: {server_name: %s, enabled: true}\n",
		cluster.Hosts[0].Address+":8443", cluster.Hosts[0].Name))

	for _, host := range cluster.Hosts[1:] {
		host.JoinCluster()
	}

	return cluster
}

// JoinCluster makes the host a member of the first host's cluster. memberConfig are entries of the preseed's list of
// the same name, in YAML.
func (h *Host) JoinCluster(memberConfig ...string) {
	said := h.cluster.Hosts[0].LXC("cluster", "add", h.Name)
	words := strings.Fields(said)
	token := words[len(words)-1]

	h.init(fmt.Sprintf("cluster: {enabled: true, server_address: %q, cluster_token: %s, member_config: [%s]}\n",
		h.Address+":8443", token, strings.Join(memberConfig, ", ")))
}

// init gives the daemon its first configuration.
func (h *Host) init(preseed string) {
	h.cluster.t.Helper()
	h.Run("sh", "-c", `printf '%s' "$1" | lxd init --preseed`, "init", preseed)
}
