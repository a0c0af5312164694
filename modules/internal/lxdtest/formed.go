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
	cluster.Form(n)

	return cluster
}

// Form makes the first n hosts one cluster; the others stay outside.
func (c *Cluster) Form(n int) {
	c.Hosts[0].init(fmt.Sprintf("config: {core.https_address: %q}\ncluster: {server_name: %s, enabled: true}\n",
		c.Hosts[0].Address+":8443", c.Hosts[0].Name))

	for _, host := range c.Hosts[1:n] {
		host.JoinCluster()
	}
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
