// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/transport/farm"
)

// TestTenThousandTasks looks at the memory and the file descriptors of broker and agent, early and late.
func TestTenThousandTasks(t *testing.T) {
	f := hosts(t)
	log := f.emptyLog(t, "count")
	way := ssh(farm.Plain, 1, map[string]any{"log": log, "count": 11000})
	play := f.start(t, os.Environ(), "count", inventory{hosts: map[string]map[string]any{"host": way}}, setup{})

	f.await(t, log, "\n1000\n")

	early := f.usage(t)

	require.Eventually(t, func() bool {
		text, err := os.ReadFile(log)

		return err == nil && strings.HasSuffix(string(text), "\n10990\n")
	}, 10*time.Minute, time.Millisecond)

	late := f.usage(t)
	require.Equal(t, 0, play.wait().code)

	for name, was := range early {
		t.Logf("%s: %d at 1,000 tasks, %d at 11,000", name, was, late[name])
	}

	for _, process := range []string{"broker", "agent"} {
		assert.Less(t, late[process+" KiB"]-early[process+" KiB"], 10*1024, "%s grows", process)
		assert.LessOrEqual(t, late[process+" files"], early[process+" files"]+2, "%s keeps files", process)
		assert.LessOrEqual(t, late[process+" threads"], early[process+" threads"]+4, "%s has ever more threads", process)
	}

	f.nothingLeft(t)
}

// usage is what the only broker and the only agent need.
func (f *testHosts) usage(t *testing.T) map[string]int {
	t.Helper()

	brokers, agents := f.brokers(t), f.onHosts(t)
	require.Len(t, brokers, 1)
	require.Len(t, agents, 1)

	script := `p=/proc/%d; awk '/^VmRSS/{print $2} /^Threads/{print $2}' $p/status; ls $p/fd | wc -l`
	output, err := exec.Command("sh", "-c", fmt.Sprintf(script, brokers[0])).Output()
	require.NoError(t, err)

	usage := map[string]int{}

	for process, text := range map[string]string{"broker": string(output), "agent": f.inside(t, fmt.Sprintf(script, agents[0]))} {
		numbers := strings.Fields(text)
		require.Len(t, numbers, 3)

		for i, what := range []string{" KiB", " threads", " files"} {
			usage[process+what], err = strconv.Atoi(numbers[i])
			require.NoError(t, err)
		}
	}

	return usage
}

// TestTwentyFreshHosts has twenty hosts that have no program yet: each gets it once.
func TestTwentyFreshHosts(t *testing.T) {
	f := hosts(t)
	f.forget(t)

	ways := map[string]map[string]any{}
	for i := 1; i <= 20; i++ {
		ways[fmt.Sprint("host", i)] = ssh(farm.Owner(i), i, nil)
	}

	play := f.play(t, os.Environ(), "carried", inventory{hosts: ways}, setup{args: []string{"-vvv"}, env: []string{"ANSIBLE_FORKS=20"}})
	require.Equal(t, 0, play.code, play.output)
	assert.Equal(t, 20, strings.Count(play.output, "uploading thinkube_linux_"), "one upload for each host")

	for i := 1; i <= 20; i++ {
		name := fmt.Sprint("host", i)
		assert.Equal(t, play.of(t, name, "carried").text("pid"), play.of(t, name, "carried once more").text("pid"), name)
	}

	f.nothingLeft(t)
}
