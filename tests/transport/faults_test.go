// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/transport/farm"
)

// victim is a process between a task and its host.
type victim struct {
	name string
	// kill sends the signal to all of its kind.
	kill func(t *testing.T, f *testHosts, signal syscall.Signal)
	// words are what a task that was hit says.
	words []string
	// ends: the task itself ends with it.
	ends bool
}

var victims = []victim{
	{name: "broker", kill: func(t *testing.T, f *testHosts, signal syscall.Signal) { kill(f.brokers(t), signal) },
		words: []string{"the broker on the controller ended while the task ran", "may still be running on the host"}},
	{name: "ssh", kill: func(t *testing.T, f *testHosts, signal syscall.Signal) { kill(f.sshClients(t), signal) },
		words: []string{"the connection to the host broke while the task ran", "may still be running on the host"}},
	{name: "sshd", kill: func(t *testing.T, f *testHosts, signal syscall.Signal) {
		f.killInside(t, signal, `grep -lE '^Name:[[:space:]]*sshd' /proc/[0-9]*/status | while read s; do
[ $(awk '/^PPid/{print $2}' $s) = 1 ] || echo $s | tr -dc '0-9\n'; done`)
	}, words: []string{"the connection to the host broke while the task ran", "may still be running on the host"}},
	{name: "agent", kill: func(t *testing.T, f *testHosts, signal syscall.Signal) {
		for _, number := range f.onHosts(t) {
			_, _ = f.Inside(fmt.Sprintf("kill -%d %d", signal, number)) // it may have ended
		}
	}, words: []string{"MODULE FAILURE"}, ends: true},
}

func kill(numbers []int, signal syscall.Signal) {
	for _, number := range numbers {
		_ = syscall.Kill(number, signal) // it may have ended
	}
}

func (f *testHosts) killInside(t *testing.T, signal syscall.Signal, list string) {
	t.Helper()

	_, err := f.Inside(fmt.Sprintf("for p in $({ %s; } 2>/dev/null); do kill -%d $p 2>/dev/null || :; done", list, signal))
	require.NoError(t, err)
}

// TestKilled kills each process between a task and its host, while a task runs and while none does.
func TestKilled(t *testing.T) {
	eachCore(t, func(t *testing.T, f *testHosts, environ []string) {
		for _, victim := range victims {
			t.Run(victim.name, func(t *testing.T) {
				log := f.emptyLog(t, "killed")
				ways := map[string]map[string]any{"plain": ssh(farm.Plain, 1, map[string]any{"log": log})}
				play := f.start(t, environ, "fault", inventory{hosts: ways}, setup{})

				f.await(t, log, "began")
				victim.kill(t, f, syscall.SIGKILL)

				killed := time.Now()

				f.await(t, log, "quiet")
				assert.Less(t, time.Since(killed), 3*time.Second, "a task that was hit ends at once")
				victim.kill(t, f, syscall.SIGKILL)
				require.NoError(t, os.WriteFile(log+".go", nil, 0o644))

				ended := play.wait()
				hit := ended.of(t, "plain", "hit")
				assert.Equal(t, "failed", hit.Event)

				for _, words := range victim.words {
					assert.Contains(t, hit.text("msg")+hit.text("hint"), words)
				}

				seen := map[string]bool{}

				for _, task := range []string{"before", "after", "after quiet"} {
					got := ended.of(t, "plain", task)
					assert.Equal(t, "ok", got.Event, "%s: %v", task, got.Result)

					seen[got.text("pid")] = true
				}

				assert.Len(t, seen, 3, "each time there was a new agent")

				if victim.ends {
					assert.EqualValues(t, 137, hit.Result["rc"])
				} else {
					f.await(t, log, "ended") // half-done is worse
				}

				f.nothingLeft(t)
			})
		}
	})
}

// TestControllerKilled is Ansible itself: tasks that run go on to their end, and then nothing is left.
func TestControllerKilled(t *testing.T) {
	eachCore(t, func(t *testing.T, f *testHosts, environ []string) {
		log := f.emptyLog(t, "controller")
		ways := map[string]map[string]any{"plain": ssh(farm.Plain, 1, map[string]any{"log": log}),
			"root": ssh(farm.Sudo, 2, map[string]any{"log": log, "ansible_become": true, "ansible_become_password": farm.Password})}
		play := f.start(t, environ, "fault", inventory{hosts: ways}, setup{})

		require.Eventually(t, func() bool {
			text, err := os.ReadFile(log)

			return err == nil && strings.Count(string(text), "began") == 2
		}, 20*time.Second, 10*time.Millisecond)
		require.NotEmpty(t, f.brokers(t))
		play.kill()
		assert.Equal(t, -1, play.wait().code)
		f.await(t, log, "\n") // the tasks are cancelled: nobody waits for them
		f.nothingLeft(t)

		text, err := os.ReadFile(log)
		require.NoError(t, err)
		assert.Equal(t, map[string]int{"began": 2, "cancelled": 2}, countWords(string(text)))
	})
}

// TestStopped has an agent that does not answer any more.
func TestStopped(t *testing.T) {
	f := hosts(t)
	log := f.emptyLog(t, "stopped")
	ways := map[string]map[string]any{"plain": ssh(farm.Plain, 1, map[string]any{"log": log, "ansible_timeout": 2})}
	play := f.start(t, os.Environ(), "fault", inventory{hosts: ways}, setup{})

	f.await(t, log, "quiet")

	stopped := f.onHosts(t)
	require.Len(t, stopped, 1)
	f.inside(t, fmt.Sprintf("kill -STOP %d", stopped[0]))
	time.Sleep(2200 * time.Millisecond) // one that was heard just now is not asked
	require.NoError(t, os.WriteFile(log+".go", nil, 0o644))

	ended := play.wait()
	assert.Equal(t, "ok", ended.of(t, "plain", "after quiet").Event)
	assert.NotEqual(t, fmt.Sprint(stopped[0]), ended.of(t, "plain", "after quiet").text("pid"))
	assert.Eventually(t, func() bool { return len(f.brokers(t)) == 0 && len(f.sshClients(t)) == 0 }, 8*time.Second, 50*time.Millisecond,
		"an ssh that would wait for the host is ended")
	f.inside(t, fmt.Sprintf("kill -CONT %d || :", stopped[0]))
	f.nothingLeft(t)
}

// TestSilentHost has a host that says nothing any more while its task runs, as one without power.
func TestSilentHost(t *testing.T) {
	f := hosts(t)
	log := f.emptyLog(t, "silent")
	ways := map[string]map[string]any{"plain": ssh(farm.Plain, 1, map[string]any{"log": log, "ansible_timeout": 2, "thinkube_agent_silence": 2})}
	play := f.start(t, os.Environ(), "fault", inventory{hosts: ways}, setup{})

	f.await(t, log, "began")

	stopped := f.onHosts(t)
	require.Len(t, stopped, 1)
	f.inside(t, fmt.Sprintf("kill -STOP %d", stopped[0]))

	silent := time.Now()

	f.await(t, log, "quiet")
	assert.Less(t, time.Since(silent), 6*time.Second)
	require.NoError(t, os.WriteFile(log+".go", nil, 0o644))

	ended := play.wait()
	assert.Equal(t, "failed", ended.of(t, "plain", "hit").Event)
	assert.Contains(t, ended.of(t, "plain", "hit").text("msg"), "the connection to the host broke while the task ran")
	assert.Equal(t, "ok", ended.of(t, "plain", "after").Event)
	f.inside(t, fmt.Sprintf("kill -CONT %d || :", stopped[0]))
	f.nothingLeft(t)
}

// TestKilledAtAnyMoment kills whatever it finds, again and again, while tasks run one after the other. Each task either
// did its work once and is ok, or failed and says so; none is done twice.
func TestKilledAtAnyMoment(t *testing.T) {
	eachCore(t, func(t *testing.T, f *testHosts, environ []string) {
		const count = 300

		log := f.emptyLog(t, "any")
		way := ssh(farm.Plain, 1, map[string]any{"log": log, "count": count})
		play := f.start(t, environ, "count", inventory{hosts: map[string]map[string]any{"host": way}}, setup{})
		done := make(chan run, 1)

		go func() { done <- play.wait() }()

		f.await(t, log, "1")

		var ended run

		kills := map[string]int{}

		for running := true; running; {
			select {
			case ended = <-done:
				running = false
			case <-time.After(time.Duration(rand.IntN(200)) * time.Millisecond):
				victim := victims[rand.IntN(len(victims))]
				victim.kill(t, f, syscall.SIGKILL)
				kills[victim.name]++
			}
		}

		text, err := os.ReadFile(log)
		require.NoError(t, err)

		counted := countWords(string(text))
		for item, times := range counted {
			assert.Equal(t, 1, times, "item %s was done more than once", item)
		}

		results, _ := ended.of(t, "host", "count").Result["results"].([]any)
		require.Len(t, results, count)

		failed := 0

		for i, one := range results {
			item := result{Result: one.(map[string]any)}
			if item.Result["failed"] == true || item.Result["unreachable"] == true {
				failed++

				assert.NotEmpty(t, item.text("msg"))

				continue
			}

			assert.Equal(t, 1, counted[fmt.Sprint(i)], "item %d says it was done", i)
		}

		t.Logf("kills %v, failed tasks %d of %d", kills, failed, count)
		require.NotEmpty(t, kills, "the test's own condition")
		assert.Less(t, failed, count/2, "most tasks are not hit")
		f.nothingLeft(t)
	})
}
