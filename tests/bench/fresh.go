// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// fresh measures the first task on hosts that have nothing of ours yet, with the connection and the upload in it: once
// for the time, and once, since looking costs time, for the memory that the controller takes at most.
func (b *bench) fresh(hosts, rounds int, variants []variant) ([]sample, error) {
	variants = slices.DeleteFunc(slices.Clone(variants), func(v variant) bool { return v.pace == slow })
	times, peaks := make([]sample, len(variants)), make([]sample, len(variants))

	for round := range rounds {
		for i, v := range variants {
			fmt.Printf("%d fresh hosts, round %d: %s\n", hosts, round+1, v.name)

			first, err := b.firstTask(play{variant: v, hosts: hosts, tasks: 1, fresh: true}, nil)
			if err != nil {
				return nil, err
			}

			watch := b.watchMemory()

			_, err = b.firstTask(play{variant: v, hosts: hosts, tasks: 1, fresh: true}, watch.start)
			if err != nil {
				return nil, err
			}

			times[i] = times[i].add(firstTask, v, hosts, first)
			peaks[i] = peaks[i].add(peakMemory, v, hosts, watch.stop())
		}
	}

	return append(times, peaks...), nil
}

func (b *bench) firstTask(p play, during func()) (float64, error) {
	_, err := b.Inside("rm -rf /home/*/.cache /home/*/.ansible")
	if err != nil {
		return 0, err
	}

	times, err := b.run(p, during)
	if err != nil {
		return 0, err
	}

	return times[0], nil
}

// memory is the most that all processes of the controller had together.
type memory struct {
	bench *bench
	peak  float64
	done  chan struct{}
	ended chan struct{}
}

func (b *bench) watchMemory() *memory {
	return &memory{bench: b, done: make(chan struct{}), ended: make(chan struct{})}
}

// Often enough for an upload, which takes seconds.
const memoryInterval = 50 * time.Millisecond

func (m *memory) start() {
	go func() {
		defer close(m.ended)

		for {
			m.peak = max(m.peak, m.bench.controllerMemory())

			select {
			case <-m.done:
				return
			case <-time.After(memoryInterval):
			}
		}
	}()
}

// stop gives the peak in MB.
func (m *memory) stop() float64 {
	close(m.done)
	<-m.ended

	return m.peak
}

// controllerMemory sums up the memory (PSS, in which what processes share counts once) of ansible-playbook, its
// workers, ssh and what else they started, also as daemons: all have the play's environment, but for the broker, which
// runs from the play's collections.
func (b *bench) controllerMemory() float64 {
	processes, _ := filepath.Glob("/proc/[0-9]*")
	clock, collections := []byte("CLOCK_TO="+b.Path("clock")), []byte(b.Path("collections"))
	sum := 0.0

	for _, process := range processes {
		environment, _ := os.ReadFile(process + "/environ") // the process may be gone
		arguments, _ := os.ReadFile(process + "/cmdline")

		if bytes.Contains(environment, clock) || bytes.Contains(arguments, collections) {
			sum += pss(process)
		}
	}

	return sum
}

func pss(process string) float64 {
	text, _ := os.ReadFile(process + "/smaps_rollup")

	for line := range bytes.Lines(text) {
		var kilobytes float64

		_, err := fmt.Sscanf(string(line), "Pss: %f kB", &kilobytes)
		if err == nil {
			return kilobytes * 1024 / 1e6
		}
	}

	return 0
}
