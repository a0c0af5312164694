// SPDX-License-Identifier: Apache-2.0

package armed

import (
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinkube/infra/modules/internal/netstate"
)

func TestSpanningTreeGetsItsTime(t *testing.T) {
	bridge := func(stp bool, delay uint32) netstate.Target {
		return netstate.Target{Bridge: "br0", Links: []netstate.Link{{Name: "br0", Bridge: &netstate.Bridge{STP: stp, ForwardDelay: delay}}}}
	}

	assert.Equal(t, 20*time.Second, settleTime(netstate.Target{Bridge: "br0"}), "back to the port")
	assert.Equal(t, 20*time.Second, settleTime(bridge(false, 1500)))
	assert.Equal(t, 50*time.Second, settleTime(bridge(true, 1500)))
	assert.Equal(t, "15", profileWait(settleTime(bridge(false, 0))))
	assert.Equal(t, "45", profileWait(settleTime(bridge(true, 1500))))
}

// TestPortOfASpanningTreeIsWaitedFor has a real port listen and learn for longer than a change without it may take.
func TestPortOfASpanningTreeIsWaitedFor(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("network namespaces need root")
		}

		t.Skip("network namespaces need root")
	}

	t.Parallel()
	runtime.LockOSThread() // a thread with a namespace of its own, which ends with the test
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))

	out, err := exec.Command("sh", "-ec", `
ip link set lo up
ip link add eth0 type veth peer name cable
ip link set cable up
ip link set eth0 up
ip addr add 10.1.0.11/24 dev eth0`).CombinedOutput()
	require.NoError(t, err, string(out))

	before, err := netstate.Read()
	require.NoError(t, err)

	const delay = 1100 // 11 s, and that twice is more than settleLimit

	bridge := netstate.Link{
		Name: "br0", Kind: "bridge", MAC: before.Link("eth0").MAC, MTU: 1500, Up: true, Carrier: true, Bridge: &netstate.Bridge{STP: true, ForwardDelay: delay},
	}
	target := netstate.Move(netstate.Capture(before, "br0", []string{"eth0"}), bridge, []string{"eth0"})

	begin := time.Now()

	require.NoError(t, netstate.Execute(t.Context(), target))
	require.NoError(t, settleKernel(t.Context(), target, Manager{}))
	assert.Greater(t, time.Since(begin), settleLimit)

	after, err := netstate.Read()
	require.NoError(t, err)
	assert.Equal(t, "forwarding", after.Link("eth0").PortState)
	assert.True(t, after.Link("br0").Carrier)
}
