// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestDNS sets up the site's DNS on hosts of both kinds, n2 with systemd-resolved and the others with a plain resolv.conf, and
// takes it away again.
func TestDNS(t *testing.T) {
	s := needSite(t)
	s.restore(t, pristine)
	s.run(t, "n2", "DEBIAN_FRONTEND=noninteractive apt-get -qq -y install systemd-resolved >/dev/null 2>&1 && systemctl is-active systemd-resolved")

	const before = "before-dns"

	require.NoError(t, s.lab.Snapshot(t.Context(), before))
	s.restore(t, before)

	inventory := s.variant(t, func(all map[string]any) {
		vars := at(t, all, "vars")
		vars["domain_name"], vars["primary_ingress_ip"], vars["secondary_ingress_ip"] = "lab.example", "10.177.92.200", "10.177.92.201"
		vars["dns_dnssec_validation"] = "no" // the lab has no way to the root's keys
		vars["dns_records"] = []any{map[string]any{"name": "@", "type": "TXT", "values": []any{"v=spf1 -all"}}}
		at(t, all, "children", "dns_servers")["hosts"] = map[string]any{"n1": map[string]any{}}
	})
	play := func(t *testing.T, number string, args ...string) playRun {
		t.Helper()

		return s.playWith(t, "30_networking/"+number, playOptions{inventory: inventory, args: args})
	}

	step(t, "the test fails before there is anything", func(t *testing.T) {
		play(t, "28").failedWith(t, "n1", "named is inactive")
	})

	step(t, "check mode tells and changes nothing", func(t *testing.T) {
		play(t, "20", "--check", "--diff", "--limit=dns_servers").succeeded(t)
		s.sameAs(t, before, three...)
	})

	step(t, "set-up without a site value says so before anything is done", func(t *testing.T) {
		incomplete := s.variant(t, func(all map[string]any) {
			at(t, all, "vars")["domain_name"] = "lab.example"
			at(t, all, "children", "dns_servers")["hosts"] = map[string]any{"n1": map[string]any{}}
		})
		s.playWith(t, "30_networking/20", playOptions{inventory: incomplete}).failedWith(t, "n1", "primary_ingress_ip, secondary_ingress_ip")
		s.sameAs(t, before, three...)
	})

	step(t, "set-up", func(t *testing.T) { play(t, "20").succeeded(t) })
	step(t, "set-up again changes nothing", func(t *testing.T) { play(t, "20").unchanged(t, three...) })
	step(t, "the test passes", func(t *testing.T) { play(t, "28").unchanged(t, three...) })

	step(t, "the distribution's files are as they were", func(t *testing.T) {
		assert.Empty(t, s.run(t, "n1", "cd /etc/bind; for f in named.conf named.conf.options named.conf.local; do "+
			"grep \" etc/bind/$f$\" /var/lib/dpkg/info/bind9.md5sums; done; dpkg --verify bind9 | grep /etc/bind || true"))
		assert.Contains(t, s.run(t, "n1", "stat -c '%a %U:%G' /etc/bind/thinkube/update.key"), "640 root:bind")
	})

	step(t, "nobody outside is answered", func(t *testing.T) {
		s.run(t, "n3", "ip address add 198.51.100.7/32 dev lo")
		s.run(t, "n1", "ip route add 198.51.100.7 via 10.177.92.13")

		for _, name := range []string{"n1.lab.example", "example.org", "version.bind CH TXT"} {
			assert.Contains(t, s.run(t, "n3", "dig +tries=1 -b 198.51.100.7 @10.177.92.11 "+name), "status: REFUSED", name)
		}

		assert.Contains(t, s.run(t, "n3", "dig +tries=1 @10.177.92.11 lab.example AXFR"), "Transfer failed")
		s.run(t, "n1", "ip route delete 198.51.100.7")
		s.run(t, "n3", "ip address delete 198.51.100.7/32 dev lo")
	})

	step(t, "sabotage of each host is found", func(t *testing.T) {
		s.run(t, "n1", `printf 'server 127.0.0.1\nzone lab.example\nupdate delete n2.lab.example A\nupdate add n2.lab.example 60 A 192.0.2.66\nsend\n' | nsupdate -k /etc/bind/thinkube/update.key`)
		s.run(t, "n2", "rm /etc/systemd/resolved.conf.d/10-thinkube.conf && systemctl restart systemd-resolved")
		s.run(t, "n3", "echo nameserver 10.177.92.1 >/etc/resolv.conf")

		failed := play(t, "28")
		failed.failedWith(t, "n1", `n2\.lab\.example`)
		failed.failedWith(t, "n2", "create resolver resolved")
		failed.failedWith(t, "n3", "change resolver resolvconf")

		play(t, "20").succeeded(t)
		play(t, "28").unchanged(t, three...)
	})

	step(t, "a server that is off is found", func(t *testing.T) {
		s.run(t, "n1", "systemctl stop named")
		failed := play(t, "28")
		failed.failedWith(t, "n1", "named is inactive")
		failed.failedWith(t, "n2", "lab.example")
		failed.failedWith(t, "n3", "lab.example")
		s.run(t, "n1", "systemctl start named")
	})

	step(t, "an answer that is overruled on one host is found", func(t *testing.T) {
		s.run(t, "n2", "printf '[Resolve]\\nDNS=\\nDNS=10.177.92.1\\n' >/etc/systemd/resolved.conf.d/20-other.conf && systemctl restart systemd-resolved")
		play(t, "28").failedWith(t, "n2", "lab.example")
		s.run(t, "n2", "rm /etc/systemd/resolved.conf.d/20-other.conf && systemctl restart systemd-resolved")
	})

	step(t, "roll-back leaves nothing behind", func(t *testing.T) {
		play(t, "29").succeeded(t)
		s.sameAs(t, before, three...)
		play(t, "29").unchanged(t, three...)
		play(t, "28").failedWith(t, "n1", "named is inactive")
	})
}
