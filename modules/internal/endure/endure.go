// SPDX-License-Identifier: Apache-2.0

// Package endure helps tests to show that thousands of tasks in one process, as an agent runs them, leave nothing behind.
package endure

import (
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// maxGrowth is how much more heap, in bytes, a process may have after its tasks.
const maxGrowth = 1 << 20

// Burden is what a process holds.
type Burden struct {
	Goroutines, Files int
	Heap              int64 // bytes
}

// Held measures what this process holds now.
func Held(t *testing.T) Burden {
	t.Helper()

	runtime.GC()

	files, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)

	var memory runtime.MemStats

	runtime.ReadMemStats(&memory)

	return Burden{runtime.NumGoroutine(), len(files), int64(memory.HeapAlloc)}
}

// Settled measures what this process holds when it has come down to most, or after a second: what has just ended, like a
// connection, takes a moment to go.
func Settled(t *testing.T, most Burden) (now Burden) {
	t.Helper()

	for range 200 {
		now = Held(t)
		if now.Goroutines <= most.Goroutines && now.Files <= most.Files {
			break
		}

		time.Sleep(5 * time.Millisecond)
	}

	return now
}

// NoMore fails the test if the process holds more than before.
func NoMore(t *testing.T, before, after Burden) {
	t.Helper()
	t.Logf("before %+v, after %+v", before, after)

	assert.LessOrEqual(t, after.Goroutines, before.Goroutines)
	assert.LessOrEqual(t, after.Files, before.Files)
	assert.Less(t, after.Heap-before.Heap, int64(maxGrowth))
}

// Parallel does something for every number below count, so many at once.
func Parallel(atOnce, count int, do func(number int)) {
	numbers := make(chan int)

	var workers sync.WaitGroup
	for range atOnce {
		workers.Add(1)

		go func() {
			defer workers.Done()

			for number := range numbers {
				do(number)
			}
		}()
	}

	for number := range count {
		numbers <- number
	}

	close(numbers)
	workers.Wait()
}
