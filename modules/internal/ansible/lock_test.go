// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// lockHolder is the variable of the environment that makes the test program a task that holds the lock for ever. Its
// value is the folder of the lock.
const lockHolder = "THINKUBE_TEST_LOCK_HOLDER"

// holdLock is that program: it says "held" when it has the lock.
func holdLock(folder string) {
	lockFolder = func() string { return folder }

	world := &toyWorld{lock: "toy", apply: func(context.Context, *toyWorld, string) error {
		fmt.Println("held")
		time.Sleep(time.Hour)

		return nil
	}}

	execute(context.Background(), []Runner{world.module()}, decodeEnvelope(with(items("a"), "timeout", "1h")))
}

// decodeEnvelope is the envelope of a task as the program has it.
func decodeEnvelope(args map[string]any) (decoded envelope) {
	text, err := json.Marshal(makeEnvelope(args))
	if err == nil {
		err = decodeJSON(string(text), &decoded)
	}

	if err != nil {
		panic(err)
	}

	return decoded
}

// startHolder starts a process that holds the toy's lock, and gives what kills it.
func startHolder(t *testing.T) (pid int, kill func()) {
	t.Helper()

	holder := exec.Command(os.Args[0])
	holder.Env = append(os.Environ(), lockHolder+"="+lockFolder())

	out, err := holder.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, holder.Start())

	kill = sync.OnceFunc(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	t.Cleanup(kill)

	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "held\n", line)

	return holder.Process.Pid, kill
}

// mostAtOnce runs tasks at the same time and counts how many of them were at work at once.
func mostAtOnce(t *testing.T, lock string) int64 {
	t.Helper()

	var (
		working, most atomic.Int64
		done          sync.WaitGroup
	)

	for range 20 {
		world := &toyWorld{lock: lock}
		world.open = func(*Task, toyArgs) error {
			now := working.Add(1)
			for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
			}

			return nil
		}
		world.apply = func(context.Context, *toyWorld, string) error {
			time.Sleep(2 * time.Millisecond)
			working.Add(-1)

			return nil
		}

		done.Add(1)

		go func() {
			defer done.Done()
			assert.Equal(t, true, world.task(t, items("a"))["changed"])
		}()
	}

	done.Wait()

	return most.Load()
}

func TestTasksWithOneLockRunOneAfterTheOther(t *testing.T) {
	assert.EqualValues(t, 1, mostAtOnce(t, "toy"))
	assert.Greater(t, mostAtOnce(t, ""), int64(1), "without a lock tasks run side by side")
}

func TestLocksOfOtherNamesAreNotWaitedFor(t *testing.T) {
	release, err := takeLock(t.Context(), "other", "toy")
	require.NoError(t, err)

	defer release()

	assert.Equal(t, true, (&toyWorld{lock: "toy"}).task(t, items("a"))["changed"])
}

func TestTasksThatChangeNothingTakeNoLock(t *testing.T) {
	release, err := takeLock(t.Context(), "toy", "toy")
	require.NoError(t, err)

	defer release()

	short := with(items("a"), "timeout", "50ms")
	assert.Equal(t, true, (&toyWorld{lock: "toy"}).task(t, with(short, "_ansible_check_mode", true))["changed"])
	assert.Equal(t, false, (&toyWorld{lock: "toy", readOnly: true}).task(t, short)["changed"])

	result := (&toyWorld{lock: "toy"}).task(t, short)
	assertFailed(t, result, CodeTimeout,
		fmt.Sprintf(`waiting for lock "toy", held by module "toy" in process %d: context deadline exceeded`, os.Getpid()))
	assert.Contains(t, result["hint"], "timeout")
	assert.Equal(t, false, result["changed"])
}

// assertFree tells that nobody holds the toy's lock.
func assertFree(t *testing.T, after string) {
	t.Helper()

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()

	release, err := takeLock(ctx, "toy", "toy")
	if assert.NoError(t, err, after) {
		release()
	}
}

func TestLockIsGivenUpHoweverTheTaskEnds(t *testing.T) {
	paused := (&toyWorld{lock: "toy"}).task(t, with(items("a"), "from", "n2"))
	require.Contains(t, paused, "_thinkube_ask")
	assertFree(t, "a pause")

	failing := &toyWorld{lock: "toy", apply: func(context.Context, *toyWorld, string) error { return errors.New("broken") }}
	assert.Equal(t, true, failing.task(t, items("a"))["failed"])
	assertFree(t, "a failure")

	panicking := &toyWorld{lock: "toy", apply: func(context.Context, *toyWorld, string) error { panic("broken") }}
	assert.Contains(t, panicking.task(t, items("a")), "exception")
	assertFree(t, "a panic")

	assert.Equal(t, true, (&toyWorld{lock: "toy"}).task(t, with(with(items("a"), "sleep", "1h"), "timeout", "10ms"))["failed"])
	assertFree(t, "a time-out")
}

func TestLockHoldsBetweenProcessesAndDiesWithItsHolder(t *testing.T) {
	pid, kill := startHolder(t)

	held := fmt.Sprintf(`waiting for lock "toy", held by module "toy" in process %d: `, pid)
	assertFailed(t, (&toyWorld{lock: "toy"}).task(t, with(items("a"), "timeout", "50ms")), CodeTimeout, held+"context deadline exceeded")

	// Behind the one that has stopped waiting, which the kernel still keeps in its queue.
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(errors.New("the controller is gone")) })

	world := &toyWorld{lock: "toy"}
	result := decodeAnswer(t, string(execute(ctx, []Runner{world.module()}, decodeEnvelope(items("a")))))
	assertFailed(t, result, CodeFailed, held+"the controller is gone")
	assert.Empty(t, world.applied)

	waiting := make(chan map[string]any)

	go func() { waiting <- (&toyWorld{lock: "toy"}).task(t, items("a")) }()

	select {
	case result = <-waiting:
		assert.Fail(t, "the task did not wait", result)
	case <-time.After(100 * time.Millisecond):
	}

	kill() // with SIGKILL

	select {
	case result = <-waiting:
		assert.Equal(t, true, result["changed"], result)
	case <-time.After(10 * time.Second):
		assert.Fail(t, "the lock of a killed process is held")
	}
}

// useFolder gives locks another folder until the test ends.
func useFolder(t *testing.T, folder string) {
	t.Helper()

	usual := lockFolder
	lockFolder = func() string { return folder }

	t.Cleanup(func() { lockFolder = usual })
}

func TestTaskDoesNotRunWithoutItsLock(t *testing.T) {
	folder := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(folder, "file"), nil, 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(folder, "open"), 0o700))
	require.NoError(t, os.Chmod(filepath.Join(folder, "open"), 0o770))
	require.NoError(t, os.Mkdir(filepath.Join(folder, "private"), 0o700))
	require.NoError(t, os.Symlink("private", filepath.Join(folder, "link")))
	require.NoError(t, os.Symlink("/nowhere/else", filepath.Join(folder, "private", "toy.lock")))

	for name, msg := range map[string]string{
		"file":    "nobody else can write to",
		"open":    "nobody else can write to",
		"link":    "nobody else can write to",
		"none/in": "no such file or directory",
		"private": "too many levels of symbolic links",
	} {
		useFolder(t, filepath.Join(folder, name))

		world := &toyWorld{lock: "toy"}
		result := world.task(t, items("a"))
		assert.Equal(t, true, result["failed"], name)
		assert.Contains(t, result["msg"], msg, name)
		assert.Empty(t, world.applied, name)
	}
}

func TestFolderOfAnotherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: gives a folder to another user")
	}

	folder := t.TempDir()
	require.NoError(t, os.Chown(folder, 65534, 65534))
	useFolder(t, folder)

	assert.Contains(t, (&toyWorld{lock: "toy"}).task(t, items("a"))["msg"], "must be a folder that belongs to user 0")
}

func TestLockFolderIsMadeForThisUserAlone(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "locks")
	useFolder(t, folder)
	assert.Equal(t, true, (&toyWorld{lock: "toy"}).task(t, items("a"))["changed"])

	for path, mode := range map[string]os.FileMode{folder: 0o700, filepath.Join(folder, "toy.lock"): 0o600} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		assert.Equal(t, mode, info.Mode().Perm(), path)
	}
}
