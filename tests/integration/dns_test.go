// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestDNS sets up the site's DNS and takes it away again. n1 has a BIND with zones that somebody made, n3 has none: both become
// servers. n2 resolves by systemd-resolved, the others by a plain resolv.conf.
func TestDNS(t *testing.T) {
	s := needSite(t)
	s.restore(t, pristine)
	s.run(t, "n1", usedBIND)
	s.run(t, "n2", "DEBIAN_FRONTEND=noninteractive apt-get -qq -y install systemd-resolved >/dev/null 2>&1 && systemctl is-active systemd-resolved")
	// What is installed by itself and needed by nothing stays, too.
	s.run(t, "n3", "export DEBIAN_FRONTEND=noninteractive; { apt-get -qq -y --autoremove purge bind9 bind9-utils bind9-dnsutils bind9-host bind9-libs; "+
		"apt-get -qq -y install libndp0; } >/dev/null 2>&1 && apt-mark auto libndp0 && apt-get --simulate autoremove | grep '^Remv libndp0'")

	packages := func(t *testing.T) []string {
		t.Helper()

		return strings.Fields(s.run(t, "n3", "dpkg-query -W -f '${Package}\n'"))
	}
	atFirst := packages(t)

	const before = "before-dns"

	require.NoError(t, s.lab.Snapshot(t.Context(), before))
	s.restore(t, before)

	site := func(more map[string]any, changes ...func(all map[string]any)) string {
		return s.variant(t, func(all map[string]any) {
			vars := at(t, all, "vars")
			vars["domain_name"], vars["primary_ingress_ip"], vars["secondary_ingress_ip"] = "lab.example", "10.177.92.200", "10.177.92.201"
			vars["network_cidr"] = "10.177.92.0/23" // two reverse zones
			vars["dns_dnssec_validation"] = "no"    // the lab has no way to the root's keys
			vars["dns_take_over"] = true
			vars["dns_records"] = []any{
				dnsRecord("@", "TXT", "v=spf1 -all"), dnsRecord("@", "mx", "10 mail"), dnsRecord("_sip._tcp", "SRV", "1 2 5060 mail"),
				dnsRecord("www", "CNAME", "mail"), dnsRecord("mail", "A", "10.177.93.25"), dnsRecord("mail", "A", "10.177.93.26"),
				map[string]any{"name": "mail", "type": "AAAA", "state": "absent"},
			}
			at(t, all, "children", "dns_servers")["hosts"] = map[string]any{"n1": map[string]any{}, "n3": map[string]any{}}

			for key, value := range more {
				vars[key] = value
			}

			for _, change := range changes {
				change(all)
			}
		})
	}
	inventory := site(nil)
	play := func(t *testing.T, number string, args ...string) playRun {
		t.Helper()

		return s.playWith(t, "30_networking/"+number, playOptions{inventory: inventory, args: args})
	}
	// update changes a zone on one server behind the playbooks' back.
	update := func(t *testing.T, host string, lines ...string) {
		t.Helper()
		s.run(t, host, fmt.Sprintf("printf 'server 127.0.0.1\\n%s\\nsend\\n' | nsupdate -k /etc/bind/thinkube/update.key", strings.Join(lines, `\n`)))
	}
	othersServed := func(t *testing.T) {
		t.Helper()

		for _, zone := range []string{"local.example", "added.example"} {
			assert.Equal(t, "192.0.2.7", strings.TrimSpace(s.run(t, "n1", "dig +short @127.0.0.1 www."+zone)), zone)
		}
	}

	step(t, "the test fails before there is anything", func(t *testing.T) {
		failed := play(t, "28")
		failed.failedWith(t, "n1", "named.conf is not as setup makes it")
		failed.failedWith(t, "n3", "named is .*not there|named is inactive")
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

	step(t, "so it does with values that cannot be", func(t *testing.T) {
		wrong := site(map[string]any{"dns_networks": []any{"10.177.92.0/24", "0.0.0.0/0"}, "dns_reverse_prefixes": []any{"10.177.92.0/23"}})
		s.playWith(t, "30_networking/20", playOptions{inventory: wrong}).failedWith(t, "n3", "0.0.0.0/0 is everybody.*10.177.92.0/23 is no reverse zone")

		halves := site(map[string]any{"dns_networks": []any{"10.177.92.0/24", "0.0.0.0/1", "128.0.0.0/1"}}, func(all map[string]any) {
			all["hosts"] = map[string]any{"kn": map[string]any{"lan_ip": "10.177.92.99"}, "n5.elsewhere.example": map[string]any{"lan_ip": "10.177.92.98"}}
		})
		s.playWith(t, "30_networking/20", playOptions{inventory: halves, args: []string{"--limit=n3"}}).
			failedWith(t, "n3", "0.0.0.0/1 is more than any site has.*128.0.0.0/1 is more.*n5.elsewhere.example has a name with dots.*kn cannot have the name kn")
		s.sameAs(t, before, three...)
	})

	step(t, "a BIND that is in use is left alone", func(t *testing.T) {
		careful := site(map[string]any{"dns_take_over": false})
		s.playWith(t, "30_networking/20", playOptions{inventory: careful, args: []string{"--limit=n1"}}).
			failedWith(t, "n1", "zone local.example; /etc/bind/named.conf.local was changed; /etc/bind/named.conf.options was changed; .*_default.nzd has zones")
		s.sameAs(t, before, "n1")
	})

	step(t, "set-up", func(t *testing.T) { play(t, "20").succeeded(t) })
	step(t, "set-up again changes nothing", func(t *testing.T) { play(t, "20").unchanged(t, three...) })
	step(t, "somebody comes to need what set-up brought", func(t *testing.T) {
		require.NotContains(t, atFirst, "bind9-libs")
		s.run(t, "n3", "DEBIAN_FRONTEND=noninteractive apt-get -qq -y install bind9-dnsutils >/dev/null 2>&1 && dig -v")
	})
	step(t, "the test passes", func(t *testing.T) { play(t, "28").unchanged(t, three...) })
	step(t, "zones of others are still served", othersServed)

	step(t, "the distribution's files are as they were", func(t *testing.T) {
		assert.Empty(t, s.run(t, "n3", "dpkg --verify bind9 | grep /etc/bind || true"))
		assert.Contains(t, s.run(t, "n3", "stat -c '%a %U:%G' /etc/bind/thinkube/update.key"), "640 root:bind")
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

	step(t, "port 53 of a bridge for virtual machines is left to it", func(t *testing.T) {
		s.run(t, "n1", "ip link add lxdbr0 type bridge && ip address add 192.168.100.1/24 dev lxdbr0 && ip link set lxdbr0 up && rndc scan")
		// As at the start of a host, where named comes first.
		s.run(t, "n1", "systemctl restart named && until rndc status >/dev/null 2>&1; do sleep 0.1; done")
		assert.NotContains(t, s.run(t, "n1", "ss -Hlntu 'sport = 53'"), "192.168.100.1:53")
		assert.Contains(t, s.run(t, "n1", "ss -Hlntu 'sport = 53'"), "10.177.92.11:53")
		s.run(t, "n1", "ip link delete lxdbr0")
	})

	step(t, "a host's own name in its /etc/hosts is no fault, a contradiction is", func(t *testing.T) {
		s.run(t, "n2", "cp -p /etc/hosts /etc/aside && printf '127.0.1.1 n2.lab.example n2\\n' >>/etc/hosts && hostname n2.lab.example && systemctl restart systemd-resolved")
		assert.Contains(t, s.run(t, "n2", "dig +short @127.0.0.53 n2.lab.example"), "127.0.1.1", "it does overrule")
		told := play(t, "28")
		told.unchanged(t, three...)
		assert.Contains(t, told.Stdout, "127.0.1.1 n2.lab.example n2")

		s.run(t, "n2", "printf '192.0.2.66 n3.lab.example\\n' >>/etc/hosts")
		play(t, "28", "--limit=n2").failedWith(t, "n2", "None of them leads programs astray: .*192.0.2.66 n3.lab.example")
		s.run(t, "n2", "mv /etc/aside /etc/hosts && hostname n2 && systemctl restart systemd-resolved")
	})

	step(t, "an address that changes in the inventory is known at once", func(t *testing.T) {
		moved := site(nil, func(all map[string]any) { hostVars(t, all, "n2")["lan_ip"] = "10.177.93.12" })
		for _, each := range []string{moved, inventory} {
			s.playWith(t, "30_networking/20", playOptions{inventory: each}).succeeded(t)
			s.playWith(t, "30_networking/28", playOptions{inventory: each}).unchanged(t, three...)
		}
	})

	step(t, "a host may be named with the domain", func(t *testing.T) {
		named := site(nil, func(all map[string]any) {
			hosts := at(t, all, "children", "baremetal", "children", "headless", "hosts")
			hosts["n2.lab.example"] = hosts["n2"]
			delete(hosts, "n2")
		})
		s.playWith(t, "30_networking/28", playOptions{inventory: named, args: []string{"--limit=n2.lab.example"}}).unchanged(t, "n2.lab.example")
	})

	step(t, "sabotage of each host is found", func(t *testing.T) {
		update(t, "n1", "zone lab.example", "update delete n2.lab.example A", "update add n2.lab.example 60 A 192.0.2.66")
		s.run(t, "n2", "rm /etc/systemd/resolved.conf.d/10-thinkube.conf && systemctl restart systemd-resolved")
		s.run(t, "n3", "sed -i 's/allow-recursion .*/allow-recursion { any; };/' /etc/bind/thinkube/named.conf && rndc reconfig")

		failed := play(t, "28")
		failed.failedWith(t, "n1", `n2\.lab\.example`)
		failed.failedWith(t, "n2", "create resolver resolved")
		failed.failedWith(t, "n3", "named.conf is not as setup makes it")

		play(t, "20").succeeded(t)
	})

	step(t, "a configuration that BIND does not run with is found", func(t *testing.T) {
		// As after a run that was cut between the file and the service.
		s.run(t, "n1", "touch /etc/bind/thinkube/named.conf")
		s.run(t, "n3", "cd /etc/systemd/system && mv named.service.d aside && systemctl daemon-reload && systemctl restart named && "+
			"mv aside named.service.d && systemctl daemon-reload && echo nameserver 10.177.92.1 >/etc/resolv.conf")

		failed := play(t, "28", "--limit=dns_servers")
		failed.failedWith(t, "n1", "named.conf is newer than what BIND has read")
		failed.failedWith(t, "n3", "BIND runs with another configuration")

		stats := play(t, "20").succeeded(t).Stats
		assert.Equal(t, 1, stats["n1"].Changed, "it reads its files again")
		assert.Equal(t, 2, stats["n3"].Changed, "it is started again, and resolv.conf is put right")
		play(t, "28").unchanged(t, three...)
	})

	step(t, "an answer that is wrong is found, by whatever asks for it", func(t *testing.T) {
		for _, each := range []struct {
			says        string
			servers     []string
			wrong, back []string
		}{
			{
				`The host gets every answer: n3\.lab\.example`, []string{"n1", "n3"},
				[]string{"zone lab.example", "update delete n3.lab.example A", "update add n3.lab.example 60 A 192.0.2.66"},
				[]string{"zone lab.example", "update delete n3.lab.example A", "update add n3.lab.example 3600 A 10.177.92.13"},
			},
			{
				`The host gets every answer: any-name\.kn\.lab\.example`, []string{"n1", "n3"},
				[]string{"zone kn.lab.example", "update delete *.kn.lab.example A"},
				[]string{"zone kn.lab.example", "update add *.kn.lab.example 3600 A 10.177.92.201"},
			},
			{
				`The host gets every answer: lab\.example TXT`, []string{"n1", "n3"},
				[]string{"zone lab.example", "update add lab.example 3600 TXT other"},
				[]string{"zone lab.example", "update delete lab.example TXT other"},
			},
			{
				`The host gets every answer: lab\.example MX`, []string{"n1", "n3"},
				[]string{"zone lab.example", "update delete lab.example MX", "update add lab.example 60 MX 10 other.lab.example."},
				[]string{"zone lab.example", "update delete lab.example MX", "update add lab.example 3600 MX 10 mail.lab.example."},
			},
			{
				`The host gets every answer: _sip\._tcp\.lab\.example SRV`, []string{"n1", "n3"},
				[]string{"zone lab.example", "update delete _sip._tcp.lab.example SRV"},
				[]string{"zone lab.example", "update add _sip._tcp.lab.example 3600 SRV 1 2 5060 mail.lab.example."},
			},
			{
				`The host gets every answer: mail\.lab\.example AAAA`, []string{"n1", "n3"},
				[]string{"zone lab.example", "update add mail.lab.example 60 AAAA 2001:db8::1"},
				[]string{"zone lab.example", "update delete mail.lab.example AAAA"},
			},
			{
				`Every server gives every answer: www\.lab\.example CNAME`, []string{"n3"},
				[]string{"zone lab.example", "update add www.lab.example 60 CNAME other.lab.example."},
				[]string{"zone lab.example", "update add www.lab.example 3600 CNAME mail.lab.example."},
			},
			{
				`Every server gives every answer: n3\.lab\.example`, []string{"n3"},
				[]string{"zone lab.example", "update delete n3.lab.example A"},
				[]string{"zone lab.example", "update add n3.lab.example 3600 A 10.177.92.13"},
			},
			{
				`The host gets every answer: 25\.93\.177\.10\.in-addr\.arpa PTR .*mail\.lab\.example`, []string{"n1", "n3"},
				[]string{"zone 93.177.10.in-addr.arpa", "update delete 25.93.177.10.in-addr.arpa PTR"},
				[]string{"zone 93.177.10.in-addr.arpa", "update add 25.93.177.10.in-addr.arpa 3600 PTR mail.lab.example."},
			},
			{
				`Every server gives every answer: 12\.92\.177\.10\.in-addr\.arpa PTR .*n2\.lab\.example`, []string{"n3"},
				[]string{"zone 92.177.10.in-addr.arpa", "update delete 12.92.177.10.in-addr.arpa PTR"},
				[]string{"zone 92.177.10.in-addr.arpa", "update add 12.92.177.10.in-addr.arpa 3600 PTR n2.lab.example."},
			},
		} {
			for _, server := range each.servers {
				update(t, server, each.wrong...)
			}

			s.run(t, "n2", "resolvectl flush-caches")
			play(t, "28", "--limit=n2").failedWith(t, "n2", each.says)

			for _, server := range each.servers {
				update(t, server, each.back...)
			}
		}
	})

	step(t, "a server that is off is found, and an answer that is overruled on one host", func(t *testing.T) {
		s.run(t, "n1", "systemctl stop named")
		s.run(t, "n2", "printf '[Resolve]\\nDNS=\\nDNS=10.177.92.1\\n' >/etc/systemd/resolved.conf.d/20-other.conf && systemctl restart systemd-resolved")

		failed := play(t, "28")
		failed.failedWith(t, "n1", "named is inactive")
		failed.failedWith(t, "n2", "lab.example")
		failed.failedWith(t, "n3", `Every server answers: .*10\.177\.92\.11`)

		s.run(t, "n1", "systemctl start named")
		s.run(t, "n2", "rm /etc/systemd/resolved.conf.d/20-other.conf && systemctl restart systemd-resolved")
	})

	step(t, "a zone that the inventory does not name any more goes with others' records only if that is meant", func(t *testing.T) {
		update(t, "n1", "zone 93.177.10.in-addr.arpa", "update add _acme-challenge.93.177.10.in-addr.arpa 60 TXT theirs")

		fewer := map[string]any{"dns_reverse_prefixes": []any{"10.177.92.0/24"}}
		args := []string{"--limit=n1"}
		s.playWith(t, "30_networking/20", playOptions{inventory: site(fewer), args: args}).failedWith(t, "n1", "records that ignore leaves to others would be deleted")
		assert.Contains(t, s.run(t, "n1", "dig +short @127.0.0.1 _acme-challenge.93.177.10.in-addr.arpa TXT"), "theirs")

		fewer["dns_force"] = true
		s.playWith(t, "30_networking/20", playOptions{inventory: site(fewer), args: args}).succeeded(t)
		assert.Empty(t, s.run(t, "n1", "dig +norecurse +short @127.0.0.1 93.177.10.in-addr.arpa SOA"))
	})

	step(t, "a domain that the inventory does not name any more is gone", func(t *testing.T) {
		renamed := site(map[string]any{"domain_name": "new.example", "dns_force": true}) // the reverse zones' SOA and NS change, too
		s.playWith(t, "30_networking/20", playOptions{inventory: renamed}).succeeded(t)
		s.playWith(t, "30_networking/28", playOptions{inventory: renamed}).unchanged(t, three...)
		assert.NotContains(t, s.run(t, "n1", "ls /var/lib/bind; dig +norecurse +short @127.0.0.1 lab.example SOA"), "lab.example")
	})

	step(t, "the folder of the configuration stays where it is", func(t *testing.T) {
		other := site(map[string]any{"dns_config_folder": "/etc/bind/other"})
		s.playWith(t, "30_networking/20", playOptions{inventory: other, args: []string{"--limit=n1"}}).failedWith(t, "n1", "set up with /etc/bind/thinkube")
	})

	step(t, "roll-back leaves nothing behind", func(t *testing.T) {
		// It needs neither the server nor its configuration, and takes what was made from the record.
		s.run(t, "n3", "systemctl stop named && rm /etc/bind/thinkube/update.key && echo broken >/etc/bind/thinkube/named.conf")
		other := site(map[string]any{"dns_config_folder": "/etc/bind/other"})
		s.playWith(t, "30_networking/29", playOptions{inventory: other}).succeeded(t)

		left := slices.DeleteFunc(packages(t), func(name string) bool { return slices.Contains(atFirst, name) })
		assert.Subset(t, left, []string{"bind9-dnsutils", "bind9-libs"})
		assert.NotContains(t, left, "bind9")
		s.run(t, "n3", "dig -v && DEBIAN_FRONTEND=noninteractive apt-get -qq -y purge "+strings.Join(left, " ")+" >/dev/null 2>&1")
		s.sameAs(t, before, three...)
		othersServed(t)
		play(t, "29").unchanged(t, three...)
		play(t, "28").failedWith(t, "n1", "named.conf is not as setup makes it")
	})
}

func dnsRecord(name, kind string, values ...any) map[string]any {
	return map[string]any{"name": name, "type": kind, "values": values}
}

// usedBIND is a BIND with zones of its own: in its configuration, and made by rndc.
const usedBIND = `set -e
printf '$TTL 60\n@ SOA ns admin 1 60 60 600 60\n@ NS ns\nns A 192.0.2.1\nwww A 192.0.2.7\n' >/etc/bind/db.others
echo 'zone "local.example" { type primary; file "/etc/bind/db.others"; };' >>/etc/bind/named.conf.local
sed -i 's/dnssec-validation auto;/dnssec-validation no; allow-new-zones yes;/' /etc/bind/named.conf.options
systemctl -q enable --now named
until rndc status >/dev/null 2>&1; do sleep 0.1; done
rndc addzone added.example '{ type primary; file "/etc/bind/db.others"; };'
test "$(dig +short @127.0.0.1 www.added.example)" = 192.0.2.7
`

// TestDNSOfNetworkManager has a host that resolves names by NetworkManager ask another server, and gives it its own back.
func TestDNSOfNetworkManager(t *testing.T) {
	s := needSite(t)
	s.restore(t, pristine)
	s.run(t, "n1", usedBIND)
	s.run(t, "n2", `set -e
DEBIAN_FRONTEND=noninteractive apt-get -qq -y install network-manager >/dev/null 2>&1
f=/etc/NetworkManager/system-connections/uplink.nmconnection
printf '[connection]\nid=uplink\nuuid=11111111-2222-3333-4444-555555555555\ntype=ethernet\ninterface-name=eth0\n\n[ipv4]\nmethod=manual\naddress1=10.177.92.12/24,10.177.92.1\ndns=10.177.92.1\n\n[ipv6]\nmethod=disabled\n' >$f
chmod 600 $f; rm /etc/systemd/network/*; systemctl -q disable --now systemd-networkd systemd-networkd.socket
systemctl restart NetworkManager; nmcli connection up uplink; grep NetworkManager /etc/resolv.conf`)

	client := func(t *testing.T, args ...string) playRun {
		t.Helper()

		return s.playWith(t, "dns_client", playOptions{args: args})
	}
	files := func(t *testing.T) string {
		t.Helper()

		return s.run(t, "n2", "cat /etc/resolv.conf; ls -R /etc/NetworkManager /var/lib/thinkube 2>&1 || true")
	}
	before := files(t)
	require.Contains(t, before, "nameserver 10.177.92.1\n")

	step(t, "servers that do not answer change nothing", func(t *testing.T) {
		client(t, "-e", "server=10.177.92.1").failedWith(t, "n2", "connection refused")
		assert.Equal(t, before, files(t))
	})

	step(t, "the host asks the server", func(t *testing.T) {
		client(t).succeeded(t)
		client(t).unchanged(t, "n2")
		assert.Regexp(t, `(?s)Generated by NetworkManager.*search added.example\nnameserver 10.177.92.11\n/etc`, files(t))
		assert.Contains(t, s.run(t, "n2", "getent hosts www.local.example www"), "192.0.2.7")
	})

	step(t, "what overrules it is told", func(t *testing.T) {
		s.run(t, "n2", "printf '[global-dns-domain-*]\nservers=10.177.92.1\n' >/etc/NetworkManager/conf.d/90-other.conf && systemctl reload NetworkManager")
		run := client(t, "--check")
		assert.Equal(t, 1, run.succeeded(t).Stats["n2"].Changed)
		assert.Contains(t, run.Stdout, "90-other.conf")
		s.run(t, "n2", "rm /etc/NetworkManager/conf.d/90-other.conf && systemctl reload NetworkManager")
	})

	step(t, "the host does as before", func(t *testing.T) {
		client(t, "-e", "state=absent").succeeded(t)
		assert.Equal(t, before, files(t))
		client(t, "-e", "state=absent").unchanged(t, "n2")
	})
}
