// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Everywhere else the transport is the default: over ssh, that is the agent.
const (
	byAgent = "thinkube_transport=agent"
	byExec  = "thinkube_transport=exec"
)

// testSameResults runs every module in both ways and compares what they give, task by task.
func (s *site) testSameResults(t *testing.T) {
	agent := s.play(t, "both", "-e", byAgent).succeeded(t)
	exec := s.play(t, "both", "-e", byExec).succeeded(t)
	theirs, ours := agent.results(), exec.results()

	seen := map[string]int{}
	for task, result := range ours {
		seen[result.outcome()]++
		assert.Equal(t, result, theirs[task], task)
	}

	assert.Len(t, theirs, len(ours))

	// Each user has a program of its own. Only this play has any that is not root.
	for _, name := range []string{"n1", "n2"} {
		s.run(t, name, "rm -r /home/admin/.cache /home/ops/.cache")
	}

	for _, outcome := range []string{"unchanged", "changed", "failed"} {
		assert.GreaterOrEqual(t, seen[outcome], 15, "the play has too little of %s: %v", outcome, seen)
	}
}

// result is what a task gave on a host.
type result struct {
	Event string
	Res   map[string]any
}

func (r result) outcome() string {
	changed, _ := r.Res["changed"].(bool)

	switch {
	case r.Event == "runner_on_failed":
		return "failed"
	case changed:
		return "changed"
	default:
		return "unchanged"
	}
}

// results are those of all tasks, by task and host.
func (r playRun) results() map[string]result {
	all := map[string]result{}

	for _, one := range r.Events {
		switch one.Event {
		case "runner_on_ok", "runner_on_failed", "runner_on_skipped", "runner_on_unreachable":
			forget(one.Data.Res)
			all[one.Data.Task+" on "+one.Data.Host] = result{one.Event, one.Data.Res}
		}
	}

	return all
}

// forget takes out of a result how much room disks have: the hosts share the machine's, and it never stands still.
func forget(value any) {
	switch value := value.(type) {
	case map[string]any:
		delete(value, "free")
		delete(value, "space_used")

		for _, each := range value {
			forget(each)
		}
	case []any:
		for _, each := range value {
			forget(each)
		}
	}
}

// TestReboot takes hosts away in the middle of plays.
func TestReboot(t *testing.T) {
	s := needSite(t)
	s.restore(t, pristine)

	step(t, "a host that reboots between two tasks is no matter", s.testReboot)

	for _, death := range deaths {
		step(t, "a host dies while a task runs: "+death.name, func(t *testing.T) { s.testDeath(t, death.vanish, death.vars) })
	}
}

// prompt is how long a task may take on a host that has just come back: a new login and a daemon that is starting.
const prompt = 10 // seconds

func (s *site) testReboot(t *testing.T) {
	run := s.playWith(t, "reboot", playOptions{
		args:    []string{"-e", byAgent, "-e", "lab=" + s.labCommand(t)},
		environ: append(os.Environ(), "THINKUBE_LAB_DIR="+labConfig.Dir),
	}).succeeded(t)
	found := 0

	for _, one := range run.Events {
		if one.Event == "runner_on_ok" && strings.HasPrefix(one.Data.Task, "after ") {
			found++

			assert.Less(t, one.Data.Duration, float64(prompt), one.Data.Task)
		}
	}

	assert.Equal(t, 3, found, run.Stdout)
}

// labCommand builds the lab's own command.
func (s *site) labCommand(t *testing.T) string {
	t.Helper()

	program := filepath.Join(t.TempDir(), "lab")
	build := exec.Command("go", "build", "-o", program, "./tests/lab/cmd")
	build.Dir = s.root

	output, err := build.CombinedOutput()
	require.NoError(t, err, "%s", output)

	return program
}

// deaths are the ways in which a host dies. Without a word, nobody here can know unless ssh asks now and then.
var deaths = []struct {
	name   string
	vanish []string // a command on this machine, before the plug is pulled
	vars   string
}{
	{name: "its connections end", vanish: []string{"true"}, vars: "{}"},
	{
		name:   "without a word",
		vanish: []string{"ip", "link", "set", labConfig.Name + "-n2", "down"},
		// Not over the connection that the play before has left.
		vars: `{"ansible_control_path_dir": "` + filepath.Join(dir, "alive") + `", "ansible_ssh_extra_args": "-oServerAliveInterval=1 -oServerAliveCountMax=2"}`,
	},
}

// testDeath lets LXD on n2 hang, so that the task there is in the middle of it when the plug is pulled.
func (s *site) testDeath(t *testing.T, vanish []string, vars string) {
	host, err := s.lab.Host("n2")
	require.NoError(t, err)
	s.run(t, "n2", "systemctl start lxd.service && systemctl kill --signal=STOP lxd.service")

	run := s.playWith(t, "ask", playOptions{args: []string{"-e", byAgent, "-e", "'" + vars + "'"}, meanwhile: func() {
		s.eventually(t, "n2", "ss -xp | grep -q thinkube")

		for _, process := range []string{"/broker.py ", "thinkube_linux_"} {
			assert.Contains(t, s.agents(t), process, "agentsEnd looks for something else")
		}

		require.NoError(t, exec.Command(vanish[0], vanish[1:]...).Run())
		require.NoError(t, host.Kill(t.Context()))
	}})

	run.failedWith(t, "n2", "the connection to the host broke while the task ran")
	assert.Equal(t, hostStats{Failed: 1}, run.Stats["n2"])
	assert.Equal(t, hostStats{OK: 2}, run.Stats["n1"], "the others go on")
	assert.Equal(t, hostStats{OK: 2}, run.Stats["n3"], "the others go on")
	assert.Less(t, run.Took, 30*time.Second)

	require.NoError(t, host.Start(t.Context()))
	s.play(t, "ask", "-e", byAgent).unchanged(t, three...)
}

// agentsEnd fails the test unless all processes of agents end, here and on the hosts.
func (s *site) agentsEnd(t *testing.T) {
	t.Helper()

	var left string

	// The broker gives an ssh whose host is gone some seconds.
	assert.Eventually(t, func() bool {
		left = s.agents(t)

		return left == ""
	}, 15*time.Second, 100*time.Millisecond)
	assert.Empty(t, left)
}

// agents lists the brokers of these tests, and the agents on the hosts that run.
func (s *site) agents(t *testing.T) string {
	t.Helper()

	found, _ := exec.Command("pgrep", "-af", "plugin_utils/broker.py .*"+s.home).Output() // its code says that there is none
	all := string(found)

	for _, host := range s.lab.Hosts() {
		if !host.Running() {
			continue
		}

		output, err := host.Run(context.Background(), "pgrep -af '[t]hinkube_linux_[^ ]* agent' || true")
		require.NoError(t, err)

		all += output
	}

	return all
}
