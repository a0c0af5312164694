// SPDX-License-Identifier: Apache-2.0

package lxdapi_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdtest"
	lxdinfo "github.com/thinkube/infra/modules/lxd_info"
	lxdprofile "github.com/thinkube/infra/modules/lxd_profile"
)

// tasks runs tasks in this process, four at once.
func tasks(t *testing.T, number int, module ansible.Runner, args func(number int) map[string]any) {
	t.Helper()

	numbers := make(chan int)

	var workers sync.WaitGroup
	for range 4 {
		workers.Add(1)

		go func() {
			defer workers.Done()

			for number := range numbers {
				task(t, module, args(number))
			}
		}()
	}

	for number := range number {
		numbers <- number
	}

	close(numbers)
	workers.Wait()
}

func task(t *testing.T, module ansible.Runner, args map[string]any) {
	text, err := json.Marshal(map[string]any{
		"module": module.ModuleName(), "args": args, "key": base64.StdEncoding.EncodeToString(make([]byte, 32)),
	})
	if err != nil {
		t.Error(err)

		return
	}

	var out bytes.Buffer

	code := ansible.Bundle([]ansible.Runner{module}, []string{"thinkube", "exec"}, bytes.NewReader(text), &out, io.Discard)
	if code != 0 || bytes.Contains(out.Bytes(), []byte(`"failed":true`)) {
		t.Errorf("%s with %v: %s", module.ModuleName(), args, out.String())
	}
}

// burden is what a process holds.
type burden struct {
	goroutines, files int
	heap              int64 // bytes
}

// held measures what this process holds. Connections that were closed take a moment to go.
func held(t *testing.T, most burden) (now burden) {
	t.Helper()

	for range 200 {
		runtime.GC()

		files, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)

		var memory runtime.MemStats

		runtime.ReadMemStats(&memory)

		now = burden{runtime.NumGoroutine(), len(files), int64(memory.HeapAlloc)}
		if now.goroutines <= most.goroutines && now.files <= most.files {
			break
		}

		time.Sleep(5 * time.Millisecond)
	}

	return now
}

// TestThousandsOfTasksLeaveNothingBehind runs them in one process, as an agent does: no connection to the server, no
// goroutine, no memory may add up.
func TestThousandsOfTasksLeaveNothingBehind(t *testing.T) {
	if testing.Short() {
		t.Skip("runs thousands of tasks on a real server")
	}

	host := lxdtest.Start(t, 1).Hosts[0]
	socket := filepath.Join(host.Root(), "var/lib/lxd/unix.socket")

	info := func(int) map[string]any { return map[string]any{"socket": socket, "gather": "server,profiles"} }
	profile := func(number int) map[string]any {
		args := map[string]any{"socket": socket, "name": fmt.Sprintf("p%d", number%8), "description": fmt.Sprint(number)}
		if number%5 == 0 {
			args["state"] = "absent"
			args["force"] = true
		}

		return args
	}
	run := func(infos, profiles int) {
		tasks(t, infos, lxdinfo.Module, info)
		tasks(t, profiles, lxdprofile.Module, profile)
	}

	run(100, 20)

	before := held(t, burden{})
	began := time.Now()

	run(2000, 300)
	t.Logf("2000 lxd_info and 300 lxd_profile in %s", time.Since(began).Round(time.Millisecond))

	after := held(t, before)
	t.Logf("before %+v, after %+v", before, after)

	assert.LessOrEqual(t, after.goroutines, before.goroutines)
	assert.LessOrEqual(t, after.files, before.files)
	assert.Less(t, after.heap-before.heap, int64(1<<20))
}
