// SPDX-License-Identifier: Apache-2.0

package lxdnetwork_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/lxdtest"
)

const module = "lxd_network"

type dict = map[string]any

// addInterface gives a host an interface without an address: one end of a cable whose other end is with it.
func addInterface(host *lxdtest.Host, name string) {
	host.Run("ip", "link", "add", name, "type", "veth", "peer", "name", "peer-"+name)
}

func TestBridgeOnAllMembers(t *testing.T) {
	cluster := lxdtest.StartCluster(t, 3)
	host := cluster.Hosts[0]

	for _, member := range cluster.Hosts {
		addInterface(member, "ext0")
	}

	args := dict{
		"name": "lxdbr0", "description": "for all",
		"config":  dict{"ipv4.address": "10.99.0.1/24", "ipv4.nat": true, "ipv6.address": "none"},
		"members": dict{"n2": dict{"bridge.external_interfaces": "ext0"}},
	}

	result := host.Converges(module, args)
	assert.Equal(t, []string{
		`create network "lxdbr0" on member "n1" (define it)`,
		`create network "lxdbr0" on member "n2" (define it, bridge.external_interfaces=ext0)`,
		`create network "lxdbr0" on member "n3" (define it)`,
		`create network "lxdbr0" (type bridge, ipv4.address=10.99.0.1/24, ipv4.nat=true, ipv6.address=none)`,
		`change network "lxdbr0" (description "for all")`,
	}, result.Plan)

	network := result.Raw["network"].(dict)
	assert.Equal(t, "Created", network["status"])
	assert.Equal(t, "bridge", network["type"])
	assert.Equal(t, dict{"ipv4.address": "10.99.0.1/24", "ipv4.nat": "true", "ipv6.address": "none"}, network["config"])
	assert.Equal(t, dict{"bridge.external_interfaces": "ext0"}, network["members"].(dict)["n2"].(dict)["config"])

	for _, member := range cluster.Hosts {
		assert.Contains(t, member.Run("ip", "addr", "show", "lxdbr0"), "10.99.0.1/24")
		member.Unchanged(module, args)
	}

	assert.Contains(t, cluster.Hosts[1].Run("ip", "link", "show", "ext0"), "master lxdbr0")

	args["config"] = dict{"ipv4.address": "10.98.0.1/24", "ipv4.nat": nil}
	args["members"] = dict{"n2": dict{"bridge.external_interfaces": nil}, "n3": dict{"bridge.external_interfaces": "ext0"}}
	result = host.Converges(module, args)
	assert.Equal(t, []string{
		`change network "lxdbr0" (ipv4.address=10.98.0.1/24 (was 10.99.0.1/24), remove ipv4.nat)`,
		`change network "lxdbr0" on member "n2" (remove bridge.external_interfaces)`,
		`change network "lxdbr0" on member "n3" (bridge.external_interfaces=ext0)`,
	}, result.Plan)
	assert.NotContains(t, cluster.Hosts[1].Run("ip", "link", "show", "ext0"), "master")
	assert.Contains(t, cluster.Hosts[2].Run("ip", "link", "show", "ext0"), "master lxdbr0")
	assert.Contains(t, cluster.Hosts[2].Run("ip", "addr", "show", "lxdbr0"), "10.98.0.1/24")

	host.LXC("profile", "device", "add", "default", "eth0", "nic", "network=lxdbr0")

	used := host.Module(module, dict{"name": "lxdbr0", "state": "absent"})
	assert.Equal(t, "in_use", used.Code)
	assert.Contains(t, used.Msg, "/1.0/profiles/default")

	host.LXC("profile", "device", "remove", "default", "eth0")
	host.Converges(module, dict{"name": "lxdbr0", "state": "absent"})

	for _, member := range cluster.Hosts {
		assert.NotContains(t, member.Run("ip", "-oneline", "link"), "lxdbr0")
	}
}

// TestKilledAfterEveryStep cuts the module at each of its steps and runs it again.
func TestKilledAfterEveryStep(t *testing.T) {
	host := lxdtest.StartCluster(t, 3).Hosts[0]
	args := dict{"name": "lxdbr0", "description": "for all", "config": dict{"ipv4.address": "10.99.0.1/24", "ipv4.nat": nil, "ipv6.address": "none"}}
	absent := dict{"name": "lxdbr0", "state": "absent"}

	for step := 1; step <= 5; step++ {
		killed := host.Module(module, args, lxdtest.Task{KillAfterStep: step})
		require.True(t, killed.Killed, "step %d: %s", step, killed.Stdout)

		result := host.OK(module, args)
		assert.Len(t, result.Plan, 5-step)
		assert.Equal(t, "for all", result.Raw["network"].(dict)["description"])
		host.Unchanged(module, args)
		host.Converges(module, absent)
	}

	// What is left half-made can be deleted as well.
	killed := host.Module(module, args, lxdtest.Task{KillAfterStep: 2})
	require.True(t, killed.Killed)
	host.Converges(module, absent)
}

// TestAutomaticAddresses leaves the choice to the server.
func TestAutomaticAddresses(t *testing.T) {
	host := lxdtest.StartCluster(t, 2).Hosts[0]
	args := dict{"name": "lxdbr0", "config": dict{"ipv4.address": "auto", "ipv4.nat": nil}}

	result := host.Converges(module, args)
	assert.Equal(t, `change network "lxdbr0" (remove ipv4.nat)`, result.Plan[len(result.Plan)-1])

	config := result.Raw["network"].(dict)["config"].(dict)
	assert.Regexp(t, `^10\.\d+\.\d+\.1/24$`, config["ipv4.address"])

	args["config"] = dict{"ipv4.address": "none", "ipv4.nat": nil}
	host.Converges(module, args)

	args["config"] = dict{"ipv4.address": "auto"}
	host.Converges(module, args)
}

func TestRefusals(t *testing.T) {
	cluster := lxdtest.StartCluster(t, 2)
	host, other := cluster.Hosts[0], cluster.Hosts[1]
	host.OK(module, dict{"name": "first", "config": dict{"ipv4.address": "10.99.0.1/24", "ipv6.address": "none"}})
	other.Run("ip", "link", "add", "taken", "type", "bridge")
	other.Run("ip", "addr", "add", "10.55.0.9/16", "dev", "eth0")
	addInterface(host, "extra1")
	host.Run("ip", "addr", "add", "fd00:5::1/64", "dev", "extra1")

	none := dict{"ipv4.address": "none", "ipv6.address": "none"}
	subnet := func(address string) dict { return dict{"ipv4.address": address, "ipv6.address": "none"} }

	for _, refused := range []struct {
		code, msg string
		args      dict
	}{
		{"invalid_argument", `name "a-name-of-seventeen"`, dict{"name": "a-name-of-seventeen"}},
		{"invalid_argument", `ipv4.address "10.1.0.1"`, dict{"name": "new", "config": subnet("10.1.0.1")}},
		{"invalid_argument", `ipv4.address "10.1.0.0/24": is the address of the subnet itself`, dict{"name": "new", "config": subnet("10.1.0.0/24")}},
		{"invalid_argument", `ipv4.address "fd00::1/64"`, dict{"name": "new", "config": subnet("fd00::1/64")}},
		{"invalid_argument", "to have none say none", dict{"name": "new", "config": dict{"ipv4.address": nil}}},
		{"invalid_argument", `members["n9"]: there is no such member`, dict{"name": "new", "config": none, "members": dict{"n9": dict{}}}},
		{"invalid_argument", `"ipv4.nat" is a key that all members share`, dict{"name": "new", "config": none, "members": dict{"n1": dict{"ipv4.nat": true}}}},
		{"unmanaged", `interface "taken" exists on members ["n2"]`, dict{"name": "taken", "config": none}},
		{"unmanaged", `interface "eth0" exists on members ["n1" "n2"]`, dict{"name": "eth0", "config": none}},
		{"overlap", `10.99.0.0/16 overlaps with 10.99.0.0/24 of network "first"`, dict{"name": "new", "config": subnet("10.99.0.2/16")}},
		{"overlap", `10.78.0.0/24 of interface "eth0" of member "n2"`, dict{"name": "new", "config": subnet("10.78.0.201/30")}},
		{"overlap", `10.55.0.0/16 of interface "eth0" of member "n2"`, dict{"name": "new", "config": subnet("10.55.7.1/24")}},
		{"overlap", `fd00:5::/64 of interface "extra1" of member "n1"`, dict{"name": "new", "config": dict{"ipv4.address": "none", "ipv6.address": "fd00:5::9/64"}}},
		{"overlap", `10.55.0.0/16 of interface "eth0" of member "n2"`, dict{"name": "first", "config": subnet("10.55.7.1/24")}},
		{"no_interface", `on member "n2": there is no interface ["extra1"]`, dict{"name": "new", "type": "macvlan", "config": dict{"parent": "extra1"}}},
		{"immutable", `type is "bridge" and cannot become "macvlan"`, dict{"name": "first", "type": "macvlan"}},
		{"failed", "no.such.key", dict{"name": "first", "config": dict{"no.such.key": 1}}},
	} {
		before := host.LXC("network", "list", "--format=csv")
		result := host.Module(module, refused.args)
		assert.Equal(t, refused.code, result.Code, "%v: %s", refused.args, result.Msg)
		assert.Contains(t, result.Msg, refused.msg)
		assert.False(t, result.Changed, result.Msg)
		assert.Equal(t, before, host.LXC("network", "list", "--format=csv"))
	}

	assert.Contains(t, other.Run("ip", "link", "show", "taken"), "taken", "what is not ours is still there")
}

// TestFailedCreation has a member refuse in the second phase.
func TestFailedCreation(t *testing.T) {
	cluster := lxdtest.StartCluster(t, 2)
	host, other := cluster.Hosts[0], cluster.Hosts[1]
	args := dict{"name": "lxdbr0", "description": "second", "config": dict{"ipv4.address": "10.99.0.1/24", "ipv6.address": "none"}}

	other.Run("mount", "--bind", "/dev/null", "/usr/sbin/dnsmasq") // as if it was not installed

	failed := host.Module(module, args)
	assert.Equal(t, "tool_missing", failed.Code, failed.Msg)
	assert.Contains(t, failed.Hint, "apt install dnsmasq-base")
	assert.True(t, failed.Changed)
	assert.Contains(t, host.LXC("network", "show", "lxdbr0"), "status: Errored")
	require.True(t, host.Module(module, args).Failed)

	other.Run("umount", "/usr/sbin/dnsmasq")

	result := host.Converges(module, args)
	assert.Equal(t, []string{
		`create network "lxdbr0" (go on where an earlier attempt stopped)`,
		`change network "lxdbr0" (description "second")`,
	}, result.Plan)
	assert.Contains(t, other.Run("ip", "addr", "show", "lxdbr0"), "10.99.0.1/24")
	host.Converges(module, dict{"name": "lxdbr0", "state": "absent"})

	// Corrected instead: the server takes another address only anew.
	other.Run("mount", "--bind", "/dev/null", "/usr/sbin/dnsmasq")
	require.True(t, host.Module(module, args).Failed)
	other.Run("umount", "/usr/sbin/dnsmasq")

	args["config"] = dict{"ipv4.address": "10.98.0.1/24", "ipv6.address": "none"}
	result = host.Converges(module, args)
	assert.Equal(t, `delete network "lxdbr0" (half-made by an earlier attempt that cannot be ended with these settings)`, result.Plan[0])
}

func TestForeignNetwork(t *testing.T) {
	cluster := lxdtest.StartCluster(t, 2)
	host := cluster.Hosts[0]

	for _, member := range cluster.Hosts {
		addInterface(member, "ext0")
		host.LXC("network", "create", "foreign", "--target="+member.Name)
	}

	host.LXC("network", "create", "foreign", "ipv4.address=10.99.0.1/24", "ipv6.address=none")

	settings := func() string {
		// After the settings lxc shows the members, in a new order every time.
		global, _, _ := strings.Cut(host.LXC("network", "show", "foreign"), "locations:")
		own, _, _ := strings.Cut(host.LXC("network", "show", "foreign", "--target=n2"), "locations:")

		return global + own
	}
	before := settings()

	alone := host.Unchanged(module, dict{"name": "foreign", "state": "absent"})
	assert.Contains(t, alone.Raw["warnings"], `network "foreign": was not made by this module and is left alone; force: true deletes it`)

	result := host.Converges(module, dict{
		"name": "foreign", "description": "mine", "config": dict{"ipv4.nat": true}, "members": dict{"n2": dict{"bridge.external_interfaces": "ext0"}},
	})
	assert.Equal(t, []string{
		`change network "foreign" (description "mine", ipv4.nat=true)`,
		`change network "foreign" on member "n2" (bridge.external_interfaces=ext0)`,
	}, result.Plan)

	// A member's own key alone: what it was is noted in what all share.
	result = host.Converges(module, dict{"name": "foreign", "members": dict{"n1": dict{"bridge.external_interfaces": "ext0"}}})
	assert.Equal(t, []string{
		`change network "foreign" (note what members had before)`,
		`change network "foreign" on member "n1" (bridge.external_interfaces=ext0)`,
	}, result.Plan)

	host.Converges(module, dict{"name": "foreign", "config": dict{"user.note": "x"}})
	host.OK(module, dict{"name": "foreign", "state": "absent"})
	assert.Equal(t, before, settings())
	host.Converges(module, dict{"name": "foreign", "state": "absent", "force": true})
}

func TestStandAloneServer(t *testing.T) {
	host := lxdtest.Start(t, 1).Hosts[0]
	addInterface(host, "ext0")

	args := dict{"name": "lxdbr0", "description": "one", "config": dict{
		"ipv4.address": "10.99.0.1/24", "ipv6.address": "none", "bridge.external_interfaces": "ext0", "bgp.peers.a.address": "10.99.0.9",
		"bgp.peers.a.asn": 65000, "bgp.peers.a.password": "the-peers-secret",
	}}

	result := host.Converges(module, args)
	assert.NotContains(t, result.Stdout, "the-peers-secret")
	assert.Contains(t, host.Run("ip", "link", "show", "ext0"), "master lxdbr0")

	args["config"] = dict{"bridge.external_interfaces": nil, "user.note": 1}
	result = host.Converges(module, args)
	assert.NotContains(t, result.Stdout, "the-peers-secret")
	host.Converges(module, dict{"name": "lxdbr0", "state": "absent"})
}

func TestClusterOfOneMember(t *testing.T) {
	host := lxdtest.StartCluster(t, 1).Hosts[0]
	args := dict{"name": "lxdbr0", "description": "one", "config": dict{"ipv4.address": "10.99.0.1/24", "ipv6.address": "none"}}

	killed := host.Module(module, args, lxdtest.Task{KillAfterStep: 1})
	require.True(t, killed.Killed)
	host.Converges(module, args)

	args["config"] = dict{"ipv4.dhcp": false}
	host.Converges(module, args)
	host.Converges(module, dict{"name": "lxdbr0", "state": "absent"})
}

func TestMacvlan(t *testing.T) {
	cluster := lxdtest.StartCluster(t, 2)
	host := cluster.Hosts[0]
	args := dict{"name": "lan", "type": "macvlan", "config": dict{"parent": "eth0"}}

	host.Converges(module, args)
	addInterface(cluster.Hosts[1], "nic7")

	args["members"] = dict{"n2": dict{"parent": "nic7"}}
	assert.Equal(t, []string{`change network "lan" on member "n2" (parent=nic7 (was eth0))`}, host.Converges(module, args).Plan)
	host.Converges(module, dict{"name": "lan", "state": "absent"})
}
