// SPDX-License-Identifier: Apache-2.0

package netbridge_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/hosttest"
)

// confirmTimeout is the least that the module takes.
const confirmTimeout = 10 * time.Second

// args are those of the change that these tests make.
func args(more map[string]any) map[string]any {
	all := map[string]any{"name": "br0", "confirm_timeout": confirmTimeout.String()}
	for key, value := range more {
		all[key] = value
	}

	return all
}

// phase is how far the host's change is; empty when there is none.
func phase(t *testing.T, host *hosttest.Host) string {
	t.Helper()

	return strings.TrimSpace(host.Sh(t, `sed -n 's/^ "phase": "\(.*\)",$/\1/p' /var/lib/thinkube/net_bridge/armed.json 2>/dev/null || true`))
}

// guards are the guards that run: process, parent, session.
func guards(t *testing.T, host *hosttest.Host) []string {
	t.Helper()

	return strings.Fields(host.Sh(t, `ps -eo pid=,ppid=,sid=,args= | sed -n 's/ *\([0-9]*\) *\([0-9]*\) *\([0-9]*\) .*service net_bridge guard$/\1:\2:\3/p'`))
}

// isBack waits until the host is as it was and nobody is at work any more.
func isBack(t *testing.T, host *hosttest.Host, limit time.Duration, before string) {
	t.Helper()

	hosttest.Eventually(t, limit, "the change is undone", func() bool { return phase(t, host) == "rolled_back" && len(guards(t, host)) == 0 })
	require.Equal(t, before, host.Shown(t))
}

// TestWithoutSystemd has changes cut off on a host that has no systemd to start the guard, or to start it again.
func TestWithoutSystemd(t *testing.T) {
	program := hosttest.Build(t, "./cmd", "faultinject")

	// promise is when an unconfirmed change must be undone.
	const promise = confirmTimeout + 10*time.Second

	t.Run("nobody confirms", func(t *testing.T) {
		t.Parallel()

		host := hosttest.New(t, hosttest.Uplink)
		before := host.Shown(t)
		begin := time.Now()

		got := host.Run(t, program, args(nil))
		require.False(t, got.Failed, got.Msg)
		assert.True(t, got.Changed)
		assert.Contains(t, strings.Join(got.Warnings, "\n"), "will be undone in")

		assert.Equal(t, "applied", phase(t, host))
		assert.Contains(t, host.Sh(t, "ip -br addr show dev br0"), "10.1.0.11/24")

		running := guards(t, host)
		require.Len(t, running, 1)

		ids := strings.Split(running[0], ":")
		assert.Equal(t, "1", ids[1], "nobody waits for it")
		assert.Equal(t, ids[0], ids[2], "it has a session of its own")

		isBack(t, host, time.Until(begin.Add(promise)), before)
		assert.GreaterOrEqual(t, time.Since(begin), confirmTimeout, "not before its time")
		assert.Contains(t, host.Sh(t, "cat /var/lib/thinkube/net_bridge/armed.json"), `"reason": "nobody confirmed it within 10s"`)
	})

	t.Run("somebody confirms, and later takes it back", func(t *testing.T) {
		t.Parallel()

		host := hosttest.New(t, hosttest.Uplink)
		before := host.Shown(t)

		for _, state := range []string{"present", "absent"} {
			got := host.Run(t, program, args(map[string]any{"state": state, "ticket": state}))
			require.False(t, got.Failed, got.Msg)
			require.True(t, got.Changed)

			got = host.Run(t, program, args(map[string]any{"state": state, "phase": "confirm", "ticket": state}))
			require.False(t, got.Failed, got.Msg)
			require.True(t, got.Changed)
			hosttest.Eventually(t, 2*time.Second, "the guard has ended", func() bool { return len(guards(t, host)) == 0 })
			assert.Empty(t, phase(t, host))

			got = host.Run(t, program, args(map[string]any{"state": state}))
			require.False(t, got.Failed, got.Msg)
			require.False(t, got.Changed, got.Steps)
		}

		require.Equal(t, before, host.Shown(t))
		assert.Empty(t, host.Sh(t, "ls /var/lib"))
	})

	// The module, and all that came with its connection, is killed while the change is made.
	for _, at := range []string{"applying", "kernel", "settled"} {
		t.Run("module killed at "+at, func(t *testing.T) {
			t.Parallel()

			host := hosttest.New(t, hosttest.Uplink+fmt.Sprintf("echo '%s pause' >/run/thinkube-fault\n", at))
			before := host.Shown(t)
			begin := time.Now()
			task := host.Start(t, program, args(nil))

			hosttest.Eventually(t, 5*time.Second, at, func() bool { return host.Sh(t, "ls /run/thinkube-fault."+at+" 2>/dev/null || true") != "" })
			task.Kill()
			require.Len(t, guards(t, host), 1, "the guard is no part of it")
			hosttest.Eventually(t, 10*time.Second, "the change is made all the same", func() bool { return phase(t, host) == "applied" })
			isBack(t, host, time.Until(begin.Add(promise)), before)
		})
	}

	t.Run("applier killed", func(t *testing.T) {
		t.Parallel()

		host := hosttest.New(t, hosttest.Uplink+"echo 'kernel kill' >/run/thinkube-fault\n")
		before := host.Shown(t)

		got := host.Run(t, program, args(nil))
		assert.True(t, got.Failed)
		assert.Equal(t, "rolled_back", got.Failure.Code, got.Msg)
		require.Equal(t, before, host.Shown(t))
	})

	// Nobody starts a guard again that was killed. What it leaves is told of and can be resolved.
	for _, each := range []struct{ at, fault string }{
		{"before it ran", "armed kill"}, {"while the change was made", "kernel guard"}, {"while it waited", ""},
	} {
		t.Run("guard killed "+each.at, func(t *testing.T) {
			t.Parallel()

			host := hosttest.New(t, hosttest.Uplink+fmt.Sprintf("echo '%s' >/run/thinkube-fault\n", each.fault))
			before := host.Shown(t)
			task := host.Start(t, program, args(nil))

			if each.fault == "" {
				require.False(t, task.Wait(t).Failed)
				host.Sh(t, "kill -9 "+strings.Split(guards(t, host)[0], ":")[0])
				time.Sleep(200 * time.Millisecond) // until all of its threads are gone
			} else {
				point, _, _ := strings.Cut(each.fault, " ")
				hosttest.Eventually(t, 5*time.Second, point, func() bool { return host.Sh(t, "ls /run/thinkube-fault."+point+" 2>/dev/null || true") != "" })
				time.Sleep(200 * time.Millisecond) // for the signal to arrive
				task.Kill()
			}

			require.Empty(t, guards(t, host))

			got := host.Run(t, program, args(nil))
			assert.Equal(t, "armed_change", got.Failure.Code, got.Msg)
			assert.Contains(t, got.Msg, "nobody is left to undo it")

			got = host.Run(t, program, args(map[string]any{"phase": "rollback"}))
			require.False(t, got.Failed, got.Msg)
			assert.True(t, got.Changed)
			require.Equal(t, before, host.Shown(t))
			assert.Empty(t, host.Sh(t, "ls /var/lib"))
		})
	}
}

// TestBadInputTouchesNothing asks real hosts for what cannot be.
func TestBadInputTouchesNothing(t *testing.T) {
	program := hosttest.Build(t, "./cmd")

	for name, each := range map[string]struct {
		prepare string
		args    map[string]any
		code    string
		says    string
	}{
		"name too long":    {"", map[string]any{"name": "a-name-that-is-too-long"}, "invalid_argument", `name "a-name-that-is-too-long": must have 1 to 15`},
		"name for a shell": {"", map[string]any{"name": "br0;reboot"}, "invalid_argument", `name "br0;reboot": must`},
		"name of another kind of link": {
			"ip link add br0 type veth peer name other", nil, "name_taken", `link "br0" exists and is a veth, no bridge`,
		},
		"address without prefix": {
			"", map[string]any{"addresses": []string{"10.1.0.20"}}, "invalid_argument", `"10.1.0.20": must be an address with its prefix length`,
		},
		"wrong prefix": {
			"", map[string]any{"addresses": []string{"10.1.0.20/33"}}, "invalid_argument", `"10.1.0.20/33": must be an address with its prefix length`,
		},
		"prefix that leaves the gateway out": {
			"", map[string]any{"addresses": []string{"10.1.0.21/30"}}, "address", "gateway4 inherit: the gateway 10.1.0.1 is in none of the prefixes 10.1.0.21/30",
		},
		"gateway outside every inherited prefix": {
			"", map[string]any{"gateway4": "192.0.2.1"}, "address", `gateway4 "192.0.2.1": is in none of the prefixes`,
		},
		"gateway outside every given prefix": {
			"", map[string]any{"addresses": []string{"10.1.0.20/24"}, "gateway4": "192.0.2.1"}, "invalid_argument", `gateway4 "192.0.2.1": is in none of the prefixes 10.1.0.20/24`,
		},
		"address of another host": {
			"", map[string]any{"addresses": []string{"10.1.0.77/24"}, "gateway6": "none"}, "address_in_use", "another host answers for 10.1.0.77",
		},
		"two default routes": {
			"ip link add eth1 type veth peer name cable1; ip link set eth1 up; ip addr add 10.2.0.1/24 dev eth1; ip route append default via 10.2.0.2 dev eth1 onlink",
			nil, "ambiguous_port", `default routes lead over links ["eth0" "eth1"]`,
		},
		"no default route": {"ip route del default; ip -6 route del default", nil, "ambiguous_port", "there is no default route"},
		"duplicate MAC": {
			"ip link add eth1 address 02:00:00:00:00:07 type veth peer name cable1", map[string]any{"mac": "02:00:00:00:00:07"}, "invalid_argument",
			`mac "02:00:00:00:00:07": link "eth1" has it already`,
		},
		"MAC of a group":          {"", map[string]any{"mac": "01:00:5e:00:00:01"}, "invalid_argument", `mac "01:00:5e:00:00:01": must be`},
		"MTU that no link can do": {"", map[string]any{"mtu": 70000}, "invalid_argument", "mtu 70000: must be 68 to 65535"},
		// A tap's frames have to fit into 65535 bytes with their headers (drivers/net/tun.c).
		"MTU that the port cannot do": {
			"ip tuntap add tap0 mode tap", map[string]any{"ports": []string{"tap0"}, "mtu": 65530}, "port", `port "tap0": can have an MTU of`,
		},
		"empty ports with inherit": {"", map[string]any{"ports": []string{}}, "invalid_argument", "ports: there must be one whose addresses are inherited"},
		"no such port":             {"", map[string]any{"ports": []string{"eth9"}}, "port", `port "eth9": there is no link of that name`},
		"port of another bridge": {
			"ip link add br9 type bridge; ip link set eth0 master br9", map[string]any{"ports": []string{"eth0"}}, "port", `port "eth0": is a port of "br9" already`,
		},
		"unknown manager":          {"", map[string]any{"manager": "wicked"}, "invalid_argument", "got: wicked"},
		"not the link's manager":   {"", map[string]any{"manager": "netplan"}, "manager", `link "eth0" is configured by none of netplan`},
		"a link without a manager": {"rm /run/network/ifstate", nil, "manager", `link "eth0" is configured by none of`},
		"search domain that is none": {
			"", map[string]any{"search": []string{"example.org\nup reboot"}}, "invalid_argument", `search: "example.org\nup reboot" is no domain`,
		},
		"read-only /etc": {"mount -o remount,ro /etc", nil, "read_only", `file "/etc/network/interfaces" cannot be written: "/etc`},
		"paragraph that cannot be moved": {
			"sed -i 's/eth0 inet static/eth0 inet ppp/' /etc/network/interfaces", nil, "unsupported", `is of a kind that a bridge cannot take over`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			host := hosttest.New(t, hosttest.Uplink+each.prepare)
			before := host.Shown(t)

			got := host.Run(t, program, args(each.args))
			assert.True(t, got.Failed)
			assert.Equal(t, each.code, got.Failure.Code, got.Msg)
			assert.Contains(t, got.Msg, each.says)
			assert.Equal(t, before, host.Shown(t))
			assert.Empty(t, host.Sh(t, "ls /var/lib"))
		})
	}
}

// TestIPv6ModesOfTheKernel goes through the ways to have IPv6 where the manager leaves router advertisements to the kernel.
func TestIPv6ModesOfTheKernel(t *testing.T) {
	t.Parallel()

	program := hosttest.Build(t, "./cmd")
	host := hosttest.New(t, hosttest.Uplink)
	before := host.Shown(t)

	run := func(more map[string]any) {
		more["confirm_timeout"] = "0"

		got := host.Run(t, program, args(more))
		require.False(t, got.Failed, got.Msg)
		require.True(t, got.Changed, more)

		got = host.Run(t, program, args(more))
		require.False(t, got.Failed, got.Msg)
		require.False(t, got.Changed, got.Steps)
	}

	for _, each := range []struct{ mode, addresses, setting, value string }{
		{"off", "", "disable_ipv6", "1"},
		{"static", "fd00:1::11/64", "accept_ra", "0"},
		{"ra", "fd00:1::11/64", "accept_ra", "1"},
		{"off", "", "disable_ipv6", "1"},
		{"inherit", "fd00:1::11/64", "disable_ipv6", "0"},
	} {
		run(map[string]any{"ipv6": each.mode})
		assert.Equal(t, each.addresses, strings.TrimSpace(host.Sh(t, "ip -o -6 addr show dev br0 scope global | sed 's/.*inet6 \\([^ ]*\\).*/\\1/'")), each.mode)
		assert.Equal(t, each.value, strings.TrimSpace(host.Sh(t, "cat /proc/sys/net/ipv6/conf/br0/"+each.setting)), each.mode)

		written := host.Sh(t, "cat /etc/network/interfaces")
		assert.Equal(t, each.mode != "off", strings.Contains(written, "iface br0 inet6 static"), each.mode)
		assert.Equal(t, each.mode != "inherit", strings.Contains(written, "pre-up echo "+each.value+" 2>/dev/null >/proc/sys/net/ipv6/conf/br0/"+each.setting), each.mode)
	}

	run(map[string]any{"state": "absent"})
	require.Equal(t, before, host.Shown(t))
}
