// SPDX-License-Identifier: Apache-2.0

package netbridge

import (
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinkube/infra/modules/internal/netstate"
)

// namespace gives the test a network namespace of its own, on a thread that ends with it, and runs commands there.
func namespace(t *testing.T, script string) {
	t.Helper()

	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("network namespaces need root")
		}

		t.Skip("network namespaces need root")
	}

	runtime.LockOSThread()
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))

	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	require.NoError(t, err, "%s\n%s", script, out)
}

// TestAddressIsOnlyFreeWhenItWasAskedFor tells "nobody answers" from "nobody could be asked".
func TestAddressIsOnlyFreeWhenItWasAskedFor(t *testing.T) {
	namespace(t, `
ip link set lo up
ip link add eth0 type veth peer name cable
ip link set cable up
ip link set eth0 up
ip link add down0 type veth peer name down1
sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1`)

	state, err := netstate.Read()
	require.NoError(t, err)

	ask := func(port string) ([]string, []string, error) {
		return takenAddresses(t.Context(), Args{Name: "br0", Addresses: []string{"10.0.0.9/24", "fd00::9/64"}}, state, port)
	}

	taken, unasked, err := ask("eth0")
	require.NoError(t, err)
	assert.Empty(t, taken, "nobody answers")
	assert.Equal(t, []string{"fd00::9"}, unasked, "IPv6 is off")

	_, unasked, err = ask("down0")
	require.NoError(t, err)
	assert.Equal(t, []string{"10.0.0.9", "fd00::9"}, unasked)

	out, err := exec.Command("ip", "link", "delete", "eth0").CombinedOutput()
	require.NoError(t, err, string(out))

	_, _, err = ask("eth0")
	require.ErrorContains(t, err, "asking whether another host has address 10.0.0.9")
}
