// SPDX-License-Identifier: Apache-2.0

package zttest_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// number is the last digits of the network that the scenarios make and delete.
const number = "7e57ed"

// scenarioPlace gives the host to run on and how it speaks to the controller: one service that is both.
func scenarioPlace(t *testing.T) (*place, dict) {
	t.Helper()

	home := os.Getenv("ZT_HOME")
	if home == "" {
		s := newSite(t)

		return s.c, dict{"kind": "self_hosted"}
	}

	p := &place{dir: t.TempDir(), args: dict{"home": home}}
	if url := os.Getenv("ZT_URL"); url != "" {
		p.args["api_url"] = url
	}

	return p, dict{"kind": "self_hosted"}
}

// TestScenarios is what a service with a controller must do, the double as well as a real one.
func TestScenarios(t *testing.T) {
	p, controller := scenarioPlace(t)
	own := dict{"controller": controller, "network_number": number}

	made := p.ok(t, "zerotier_network", own, dict{"name": "scenario", "routes": []dict{{"target": "10.231.7.0/24"}}})
	id := made["network_id"].(string)

	t.Cleanup(func() {
		p.run(t, "zerotier_member", dict{"network_id": id, "state": "absent", "controller": controller, "member_on_absent": "delete"})
		p.run(t, "zerotier_network", own, dict{"state": "absent", "force": true})
	})

	member := dict{"network_id": id, "controller": controller, "name": "scenario-node", "ip_assignments": []string{"10.231.7.5"}, "no_auto_assign_ips": true}

	planned := p.ok(t, "zerotier_member", member, dict{"_ansible_check_mode": true})
	assert.Equal(t, true, planned["changed"])
	assert.Empty(t, p.ok(t, "zerotier_info", dict{"network_id": id})["networks"], "check mode changes nothing")

	start := time.Now()
	result := p.ok(t, "zerotier_member", member)
	t.Logf("from nothing to the address in the kernel: %s (waited %v s)", time.Since(start).Round(time.Millisecond), result["waited_s"])
	assert.Equal(t, planned["plan"], result["plan"])
	assert.Equal(t, "OK", result["status"])
	assert.Equal(t, []any{"10.231.7.5/24"}, result["kernel_addresses"])

	device := result["device"].(string)
	assert.Contains(t, p.ip(t, "-o -4 addr show dev "+device), "10.231.7.5/24")
	assert.Equal(t, false, p.ok(t, "zerotier_member", member)["changed"])

	member["ip_assignments"] = []string{"10.231.7.6", "10.231.7.7"}
	time.Sleep(1500 * time.Millisecond) // two changes within a second would leave the older address
	result = p.ok(t, "zerotier_member", member)
	assert.ElementsMatch(t, []any{"10.231.7.6/24", "10.231.7.7/24"}, result["kernel_addresses"])

	result = p.ok(t, "zerotier_member", member, dict{"allow_managed": false})
	assert.Equal(t, "OK", result["status"], "without managed addresses there are none to wait for")
	require.Eventually(t, func() bool {
		return len(p.ok(t, "zerotier_info", dict{"network_id": id})["networks"].([]any)[0].(dict)["kernel_addresses"].([]any)) == 0
	}, 5*time.Second, 200*time.Millisecond)
	p.ok(t, "zerotier_member", member, dict{"allow_managed": true})

	failed := p.run(t, "zerotier_member", member, dict{"wait_addresses": []string{"10.231.7.99"}, "wait_timeout": "2s", "ip_assignments": []string{"10.231.7.9"}})
	assert.Equal(t, "address_missing", code(failed), "%v", failed)

	info := p.ok(t, "zerotier_info", dict{"network_id": id, "controller": controller})
	assert.Equal(t, []any{"10.231.7.6", "10.231.7.7"}, info["members"].([]any)[0].(dict)["ip_assignments"], "put back")

	p.ok(t, "zerotier_member", dict{"network_id": id, "state": "absent", "controller": controller, "member_on_absent": "delete"})
	assert.NotContains(t, p.ip(t, "-o link"), device)
	assert.Equal(t, false, p.ok(t, "zerotier_member", dict{"network_id": id, "state": "absent"})["changed"])
	assert.Equal(t, true, p.ok(t, "zerotier_network", own, dict{"state": "absent"})["changed"])

	// It is not waited for what does not come.
	start = time.Now()
	unknown := p.run(t, "zerotier_member", dict{"network_id": id, "wait_timeout": "2m"})
	assert.Equal(t, "network_not_found", code(unknown), "%v", unknown)
	assert.Less(t, time.Since(start), 30*time.Second)
	assert.NotContains(t, unknown["msg"], "after ")
	assert.Empty(t, p.ok(t, "zerotier_info", dict{"network_id": id})["networks"], "left again")
}

// inLab is a member's task in the namespaces.
func inLab(address string, more dict) dict {
	all := dict{
		"network_id": network, "ip_assignments": []string{address}, "no_auto_assign_ips": true, "wait_timeout": "20s",
		"controller": dict{"kind": "self_hosted", "url": "http://10.77.0.1:9993", "token": token, "allow_insecure": true},
	}
	for key, value := range more {
		all[key] = value
	}

	return all
}

// TestMembersReachEachOther has two hosts whose packets really go over the network's links.
func TestMembersReachEachOther(t *testing.T) {
	s := newSite(t)
	s.a.ok(t, "zerotier_member", inLab("10.147.17.1", nil))
	sh(t, "ip netns exec "+s.a.space+" sysctl -qw net.ipv4.ip_forward=1")

	result := s.b.ok(t, "zerotier_member", inLab("10.147.17.2", dict{"test": []dict{{"address": "10.147.17.1"}, {"address": "10.147.17.250", "required": false, "timeout": "300ms"}}}))
	tests := result["tests"].([]any)
	assert.Equal(t, true, tests[0].(dict)["ok"])
	assert.Equal(t, false, tests[1].(dict)["ok"])
	assert.Contains(t, fmt.Sprint(result["warnings"]), "10.147.17.250")
	assert.Contains(t, s.b.ip(t, "route"), "192.168.50.0/24 via 10.147.17.1")

	// A route that somebody took out of the kernel is missed, although the service lists it. The host that it leads over has none.
	routes := dict{"wait_routes": []dict{{"target": "10.147.17.0/24"}, {"target": "192.168.50.0/24", "via": "10.147.17.1"}}, "wait_timeout": "300ms"}
	s.a.ok(t, "zerotier_member", inLab("10.147.17.1", routes))
	s.b.ok(t, "zerotier_member", inLab("10.147.17.2", routes))
	s.b.ip(t, "route del 192.168.50.0/24")

	missed := s.b.run(t, "zerotier_member", inLab("10.147.17.2", routes))
	assert.Equal(t, "route_missing", code(missed), "%v", missed)
	assert.Contains(t, missed["msg"], "route 192.168.50.0/24 via 10.147.17.1 does not lead over device")
	s.b.ip(t, "route add 192.168.50.0/24 via 10.147.17.1")

	for name, probe := range map[string]dict{
		"an address of the host itself":      {"address": "10.147.17.2"},
		"a way that is not the network's":    {"address": "10.77.0.1"},
		"a port at which nobody listens":     {"address": "10.147.17.1", "port": 81, "timeout": "300ms"},
		"an address at which nobody is":      {"address": "10.147.17.77", "timeout": "300ms"},
		"a port of the host, by its address": {"address": "10.147.17.2", "port": 9993},
	} {
		result := s.b.run(t, "zerotier_member", inLab("10.147.17.2", dict{"test": []dict{probe}}))
		assert.Equal(t, "test_failed", code(result), "%s: %v", name, result)
	}

	// A service that is bound to the network's address answers.
	result = s.b.ok(t, "zerotier_member", inLab("10.147.17.2", dict{"test": []dict{{"address": "10.147.17.1", "port": 9993}}}))
	assert.Equal(t, false, result["changed"])

	// Packets that do not come through are noticed.
	s.a.ip(t, "link set eth0 down")

	result = s.b.run(t, "zerotier_member", inLab("10.147.17.2", dict{"test": []dict{{"address": "10.147.17.1", "timeout": "1s"}}}))
	assert.Equal(t, "test_failed", code(result), "%v", result)
}

// TestAddressThatTheServiceForgot has two changes within a second: the service leaves the older address on the device,
// where it answers pings.
func TestAddressThatTheServiceForgot(t *testing.T) {
	s := newSite(t, "-stale-within", "30s")
	s.a.ok(t, "zerotier_member", inLab("10.147.17.1", nil))

	for _, address := range []string{"10.147.17.11", "10.147.17.12"} {
		s.c.ok(t, "zerotier_member", dict{"network_id": network, "node_id": s.a.id, "controller": dict{"kind": "self_hosted"}, "ip_assignments": []string{address}})
		require.Eventually(t, func() bool {
			read := s.a.ok(t, "zerotier_info", dict{"network_id": network})["networks"].([]any)[0].(dict)

			return assert.ObjectsAreEqual([]any{address + "/24"}, read["assigned"])
		}, 5*time.Second, 100*time.Millisecond)
	}

	result := s.a.ok(t, "zerotier_member", dict{"network_id": network, "wait_timeout": "5s"})
	assert.Contains(t, fmt.Sprint(result["warnings"]), "which is not assigned to node 680bbfa232")
}

// TestKilledService has the service end in the middle: what it lists is not what the kernel has.
func TestKilledService(t *testing.T) {
	s := newSite(t)
	s.a.ok(t, "zerotier_member", inLab("10.147.17.1", nil))
	s.a.kill(t)
	assert.Equal(t, "service_unreachable", code(s.a.run(t, "zerotier_member", inLab("10.147.17.1", nil))))
	s.a.start(t)

	result := s.a.ok(t, "zerotier_member", inLab("10.147.17.1", nil))
	assert.Equal(t, false, result["changed"])
	assert.Equal(t, []any{"10.147.17.1/24"}, result["kernel_addresses"])

	// An address that somebody took off the device is missed, although the service lists it.
	s.a.ip(t, "addr del 10.147.17.1/24 dev "+result["device"].(string))

	result = s.a.run(t, "zerotier_member", inLab("10.147.17.1", dict{"wait_timeout": "500ms"}))
	assert.Equal(t, "address_missing", code(result), "%v", result)
}

// TestAddressesByItself has a network that gives addresses from a pool, and others made of the node's id: they are waited for,
// in the kernel, and one that was taken away is not in the result.
func TestAddressesByItself(t *testing.T) {
	s := newSite(t)
	s.c.ok(t, "zerotier_network", dict{
		"network_id": network, "controller": dict{"kind": "self_hosted"}, "v4_assign": true, "v6_assign": dict{"rfc4193": true, "sixplane": true},
		"pools": []dict{{"start": "10.147.17.100", "end": "10.147.17.110"}},
	})

	task := inLab("", nil)
	delete(task, "ip_assignments")
	delete(task, "no_auto_assign_ips")

	result := s.a.ok(t, "zerotier_member", task)
	have := result["kernel_addresses"]
	assert.Len(t, have, 3)
	assert.Contains(t, have, fmt.Sprint(result["rfc4193_address"])+"/88")
	assert.Contains(t, have, fmt.Sprint(result["sixplane_address"])+"/40")
	assert.Contains(t, fmt.Sprint(have), "10.147.17.1")
	assert.ElementsMatch(t, have, result["assigned_addresses"])

	// One that somebody took off the device is missed, although the record has none of them.
	s.a.ip(t, fmt.Sprintf("-6 addr del %s/88 dev %s", result["rfc4193_address"], result["device"]))

	missed := s.a.run(t, "zerotier_member", task, dict{"wait_timeout": "300ms"})
	assert.Equal(t, "address_missing", code(missed), "%v", missed)
	assert.Contains(t, missed["msg"], result["rfc4193_address"])

	s.b.ok(t, "zerotier_member", inLab("10.147.17.2", nil))
	time.Sleep(1500 * time.Millisecond) // two changes within a second would leave the older address

	none := inLab("", nil)
	none["ip_assignments"] = []string{}
	result = s.b.ok(t, "zerotier_member", none)
	assert.Empty(t, result["kernel_addresses"])
	assert.Empty(t, result["assigned_addresses"])
	assert.Empty(t, result["warnings"])
}
