// SPDX-License-Identifier: Apache-2.0

package armed

import (
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestProgramThatCannotBeStartedIsFoundFirst keeps the program where nothing may be started.
func TestProgramThatCannotBeStartedIsFoundFirst(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("mounting needs root")
		}

		t.Skip("mounting needs root")
	}

	store := Store{Dir: t.TempDir()}
	require.NoError(t, store.keepProgram())
	require.NoError(t, os.Remove(store.Program()))

	runtime.LockOSThread() // a thread with mounts of its own, which ends with the test
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNS))
	require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	require.NoError(t, unix.Mount("tmpfs", store.Dir, "tmpfs", unix.MS_NOEXEC, ""))
	t.Cleanup(func() { _ = unix.Unmount(store.Dir, 0) })

	require.ErrorContains(t, store.keepProgram(), "is mounted noexec")
	require.NoError(t, unix.Mount("", store.Dir, "", unix.MS_REMOUNT, ""))
	require.NoError(t, store.keepProgram())
}
