// SPDX-License-Identifier: Apache-2.0

package netprobe

import (
	"context"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sh runs commands in the test's namespace: a child starts in its parent thread's.
func sh(t *testing.T, script string) {
	t.Helper()

	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	require.NoError(t, err, "%s\n%s", script, out)
}

// namespace gives the test a network namespace of its own, on a thread that ends with it, with a link and its other end.
func namespace(t *testing.T) {
	t.Helper()

	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("network namespaces need root")
		}

		t.Skip("network namespaces need root")
	}

	runtime.LockOSThread()
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))
	sh(t, `
ip link set lo up
ip link add eth0 address 02:00:00:00:00:01 type veth peer name cable
ip link set eth0 addrgenmode none up
ip link set cable addrgenmode none up
ip -6 addr add fe80::1/64 dev eth0 nodad
ip -6 addr add fe80::53/64 dev cable nodad`)
}

// answer makes a name server and a listener at the other end.
func answer(t *testing.T) {
	t.Helper()

	server, err := net.ListenPacket("udp", "[fe80::53%cable]:53")
	require.NoError(t, err)
	t.Cleanup(func() { _ = server.Close() })

	listener, err := net.Listen("tcp", "[fe80::53%cable]:22")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })

	go func() {
		question := make([]byte, 512)

		for {
			n, from, err := server.ReadFrom(question)
			if err != nil {
				return
			}

			question[2] |= 0x80 // an answer (RFC 1035, 4.1.1)
			_, _ = server.WriteTo(question[:n], from)
		}
	}()
}

// TestLinkLocalTargetsFollowTheirLink asks a name server and a controller that are known by a link, before and after that
// is in a bridge, and before and after the bridge is gone.
func TestLinkLocalTargetsFollowTheirLink(t *testing.T) {
	namespace(t)
	answer(t)

	link, err := netlink.LinkByName("eth0")
	require.NoError(t, err)

	number := strconv.Itoa(link.Attrs().Index)

	ask := func(zone, dev string) {
		t.Helper()

		// A link that has just left its bridge needs a moment.
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()

		require.NoError(t, Await(ctx, []Probe{
			{Kind: DNS, Target: "fe80::53%" + zone, Why: "name server"},
			{Kind: TCP, Target: "[fe80::53%" + zone + "]:22", Why: "controller", Listens: true},
		}, dev))
	}

	ask("eth0", "eth0")
	ask(number, "eth0")

	sh(t, `
ip link add br0 address 02:00:00:00:00:01 type bridge forward_delay 0
ip link set br0 addrgenmode none up
ip -6 addr flush dev eth0
ip link set eth0 master br0
ip -6 addr add fe80::1/64 dev br0 nodad`)

	ask("eth0", "br0")
	ask(number, "br0")
	ask("br0", "br0")

	sh(t, `
ip link delete br0
ip -6 addr add fe80::1/64 dev eth0 nodad`)

	ask("br0", "eth0")
	require.Error(t, Run(t.Context(), Probe{Kind: DNS, Target: "fe80::53%lo", Why: "name server"}, "eth0"), "on another link, which is there")
}
