// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// rounds of the comparison; the best of each side counts, since whatever else the machine does only makes it slower.
const rounds = 2

// TestSpeed makes the same cluster on the same hosts with the playbook and with plain `lxd init`, side by side.
func TestSpeed(t *testing.T) {
	s := needSite(t)
	plain, first, second := time.Hour, time.Hour, time.Hour

	for range rounds {
		s.restore(t, pristine)
		plain = min(plain, s.plainCluster(t))
		s.restore(t, pristine)
		first = min(first, s.timed(t, "10"))
		second = min(second, s.timed(t, "10"))
	}

	t.Logf("three hosts with LXD to a cluster, seconds: lxd init %.1f, playbook 10 %.1f (%.1f times that), again %.1f",
		plain.Seconds(), first.Seconds(), first.Seconds()/plain.Seconds(), second.Seconds())

	assert.Less(t, first, 3*plain, "playbook 10 takes three times as long as lxd init or more")
	assert.Less(t, second, 5*time.Second, "the second run takes too long")
}

// timed runs a playbook as users do, without ansible-runner.
func (s *site) timed(t *testing.T, number string) time.Duration {
	t.Helper()

	ctx, cancel := context.WithTimeout(t.Context(), playbookTimeout)
	defer cancel()

	play := exec.CommandContext(ctx, "ansible-playbook", "-i", s.inventory, s.playbook(t, number))
	play.Dir = s.root
	play.Env = s.environ(os.Environ())

	start := time.Now()
	output, err := play.CombinedOutput()
	took := time.Since(start)

	require.NoError(t, err, "%s", output)

	return took
}

// plainCluster makes the cluster of the inventory by `lxd init` and nothing else, and returns how long its calls took.
func (s *site) plainCluster(t *testing.T) time.Duration {
	t.Helper()

	start := time.Now()

	s.preseed(t, "n1", `config:
  core.https_address: `+s.address(t, "n1")+`:8443
cluster: {enabled: true, server_name: n1}
storage_pools:
- {name: default, driver: dir}
networks:
- {name: lxdbr0, type: bridge, config: {ipv4.address: 10.111.0.1/24, ipv4.nat: "true", ipv6.address: none}}
`)

	for _, name := range three[1:] {
		token := strings.TrimSpace(s.run(t, "n1", "lxc cluster add "+name+" | tail -1"))
		s.preseed(t, name, fmt.Sprintf(`cluster:
  enabled: true
  server_name: %s
  server_address: %s:8443
  cluster_token: %s
  member_config:
  - {entity: storage-pool, name: default, key: source, value: ""}
`, name, s.address(t, name), token))
	}

	took := time.Since(start)

	require.Equal(t, "3", strings.TrimSpace(s.run(t, "n1", "lxc cluster list -f csv | grep -c ONLINE")))

	return took
}

func (s *site) preseed(t *testing.T, name, text string) {
	t.Helper()

	host, err := s.lab.Host(name)
	require.NoError(t, err)

	_, err = host.RunInput(t.Context(), strings.NewReader(text), "lxd init --preseed")
	require.NoError(t, err)
}

func (s *site) address(t *testing.T, name string) string {
	t.Helper()

	host, err := s.lab.Host(name)
	require.NoError(t, err)

	return host.Address().String()
}
