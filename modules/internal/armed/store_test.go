// SPDX-License-Identifier: Apache-2.0

package armed

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinkube/infra/modules/internal/netconfig"
	"github.com/thinkube/infra/modules/internal/netstate"
)

func staged(t *testing.T) Store {
	t.Helper()

	store := Store{filepath.Join(t.TempDir(), "thinkube/net_bridge")}
	require.NoError(t, store.Stage(&Change{ID: "one", Bridge: "br0", Timeout: time.Minute, Record: json.RawMessage(`{"mac":"x"}`)}))

	return store
}

func TestOneDecidesWhatBecomesOfAChange(t *testing.T) {
	store := staged(t)

	_, err := store.turn("one", []Phase{Staged}, Applied, nil)
	require.NoError(t, err)

	var (
		won   atomic.Int32
		group sync.WaitGroup
	)

	for _, to := range []Phase{Confirmed, Restoring, Confirmed, Restoring} {
		group.Add(1)

		go func() {
			defer group.Done()

			_, err := store.turn("one", []Phase{Applied}, to, nil)
			if err == nil {
				won.Add(1)
			} else {
				assert.ErrorIs(t, err, ErrOutrun)
			}
		}()
	}

	group.Wait()
	assert.EqualValues(t, 1, won.Load())
}

func TestOpenChangeIsNotOverwritten(t *testing.T) {
	store := staged(t)
	require.NoError(t, store.Stage(&Change{ID: "two"}), "what was only staged may be")

	for _, phase := range []Phase{Armed, Applying, Applied, Restoring, Confirmed} {
		require.NoError(t, store.save(&Change{ID: "two", Phase: phase}))
		require.ErrorIs(t, store.Stage(&Change{ID: "three"}), ErrOutrun, phase)
	}

	require.NoError(t, store.save(&Change{ID: "two", Phase: RolledBack}))
	require.NoError(t, store.Stage(&Change{ID: "three"}), "what was undone as well")
	require.NoError(t, store.Forget("three"))
	assert.NoDirExists(t, filepath.Dir(store.Dir), "nothing is left")
}

func TestConfirmedChangeLeavesItsRecord(t *testing.T) {
	store := staged(t)

	require.ErrorIs(t, store.Confirm("one"), ErrOutrun, "it was not made yet")

	_, err := store.turn("one", []Phase{Staged}, Confirmed, nil) // and cut off here
	require.NoError(t, err)
	require.NoError(t, store.Finish("one"))
	require.NoError(t, store.Finish("one"), "again")

	record, err := store.ReadRecord("br0")
	require.NoError(t, err)
	assert.Equal(t, "x", record.MAC)
	assert.NoFileExists(t, store.path())

	// A change without a record takes it away.
	require.NoError(t, store.Stage(&Change{ID: "two", Bridge: "br0"}))
	_, err = store.turn("two", []Phase{Staged}, Confirmed, nil)
	require.NoError(t, err)
	require.NoError(t, store.Finish("two"))
	assert.NoDirExists(t, filepath.Dir(store.Dir))
}

func TestAwaitSeesTheTurn(t *testing.T) {
	store := staged(t)

	_, err := store.turn("one", []Phase{Staged}, Applying, nil)
	require.NoError(t, err)

	go func() {
		time.Sleep(50 * time.Millisecond)

		_, _ = store.turn("one", []Phase{Applying}, Applied, nil)
	}()

	start := time.Now()
	change, err := store.Await(t.Context(), "one")
	require.NoError(t, err)
	assert.Equal(t, Applied, change.Phase)
	assert.Less(t, time.Since(start), 900*time.Millisecond, "by the turn, and not by looking now and then")

	_, err = store.Await(t.Context(), "two")
	require.ErrorIs(t, err, ErrOutrun)

	_, err = store.turn("one", []Phase{Applied}, Applying, nil)
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()

	_, err = store.Await(ctx, "one")
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestFilesGoThereAndBack(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	file := func(name, content string, mode uint32) *netconfig.File {
		return &netconfig.File{Path: path(name), Content: content, Mode: mode, UID: os.Geteuid(), GID: os.Getegid()}
	}
	changes := []netconfig.Change{
		{Path: path("new/deep"), After: file("new/deep", "a", 0o644)},
		{Path: path("changed"), Before: file("changed", "old", 0o600), After: file("changed", "new", 0o640)},
		{Path: path("gone"), Before: file("gone", "x", 0o444)},
	}

	require.NoError(t, os.WriteFile(path("changed"), []byte("old"), 0o600))
	require.NoError(t, os.WriteFile(path("gone"), []byte("x"), 0o444))

	for range 2 { // each twice: it may be cut and repeated
		require.NoError(t, writeFiles(changes, true))
	}

	for _, change := range changes {
		have, err := netconfig.ReadFile("", change.Path)
		require.NoError(t, err)
		assert.Equal(t, change.After, have)
	}

	for range 2 {
		require.NoError(t, writeFiles(changes, false))
	}

	for _, change := range changes {
		have, err := netconfig.ReadFile("", change.Path)
		require.NoError(t, err)
		assert.Equal(t, change.Before, have)
	}
}

func TestStaticLeavesOutWhatIsLeased(t *testing.T) {
	target := netstate.Target{
		Addrs: []netstate.Addr{{Link: "br0", Prefix: "10.0.0.1/24"}, {Link: "br0", Prefix: "10.1.0.7/24", Valid: 600}},
		Routes: []netstate.Route{
			{Dst: "default", Proto: 4, Via: "10.0.0.254"}, {Dst: "10.9.0.0/16", Proto: netstate.ProtoDHCP},
			{Dst: "2001:db8::/32", Proto: netstate.ProtoRA}, {Dst: "10.1.0.0/24", Proto: netstate.ProtoKernel, Src: "10.1.0.7"},
		},
	}
	static := Static(target)
	assert.Equal(t, target.Addrs[:1], static.Addrs)
	assert.Equal(t, target.Routes[:1], static.Routes)
	assert.True(t, static.Lenient)
}

func TestOwnProcessIsYoungerThanTheHost(t *testing.T) {
	_, parent, started, err := readStat(os.Getpid())
	require.NoError(t, err)
	assert.Equal(t, os.Getppid(), parent)
	assert.Positive(t, started)
	assert.LessOrEqual(t, started, Now())
	assert.Less(t, Now()-started, (10 * time.Minute).Nanoseconds())
}

func TestAskingForTheGuardIsNotInItsWay(t *testing.T) {
	store := staged(t)

	guarded, err := store.Guarded()
	require.NoError(t, err)
	assert.False(t, guarded, "there is none, and no file of one")

	file, err := os.OpenFile(store.guardLock(), os.O_CREATE|os.O_RDWR, 0o600)
	require.NoError(t, err)

	guarded, err = store.Guarded()
	require.NoError(t, err)
	assert.False(t, guarded, "a file alone is no guard")

	asked := make(chan struct{})

	go func() {
		defer close(asked)

		for range 2000 {
			_, _ = store.Guarded()
		}
	}()

	for range 2000 {
		lock, free := guardsLock(), guardsLock()
		free.Type = unix.F_UNLCK

		require.NoError(t, unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock), "taken while others ask")
		require.NoError(t, unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &free))
	}

	<-asked

	lock := guardsLock()
	require.NoError(t, unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock))

	guarded, err = store.Guarded()
	require.NoError(t, err)
	assert.True(t, guarded)

	require.NoError(t, file.Close())

	guarded, err = store.Guarded()
	require.NoError(t, err)
	assert.False(t, guarded, "its death gives the lock back")
}

func TestConfirmedChangeIsNotUndoneAndNotForgotten(t *testing.T) {
	store := staged(t)

	_, err := store.turn("one", []Phase{Staged}, Confirmed, nil) // and cut off here
	require.NoError(t, err)

	require.ErrorIs(t, store.Undo(t.Context(), "one", "asked for"), ErrOutrun)
	require.NoError(t, store.Forget("one"))
	assert.FileExists(t, store.path(), "it has a record to leave")

	require.NoError(t, store.Finish("one"))
	assert.FileExists(t, store.recordPath("br0"))
}

func TestWhatCouldNotBeUndoneIsKept(t *testing.T) {
	store := staged(t)

	_, err := store.turn("one", []Phase{Staged}, Restoring, nil)
	require.NoError(t, err)

	failure := errors.New("the disk is gone")
	require.ErrorIs(t, store.restored("one", failure), failure)

	require.NoError(t, store.Forget("one"))
	require.ErrorIs(t, store.Stage(&Change{ID: "two"}), ErrOutrun, "it holds how the host was")

	change, err := store.Await(t.Context(), "one")
	require.NoError(t, err, "nobody is waited for")
	assert.Equal(t, Stuck, change.Phase)
	assert.Equal(t, "the disk is gone", change.Failed)
	assert.Contains(t, unfinished, change.Phase, "another try begins from there")
}

func TestAwaitDoesNotWaitForNobody(t *testing.T) {
	store := staged(t)

	_, err := store.turn("one", []Phase{Staged}, Applying, nil)
	require.NoError(t, err)

	_, err = store.Await(t.Context(), "one")
	require.ErrorIs(t, err, ErrUnguarded)
}

func TestBootLeavesWhatItCannotRead(t *testing.T) {
	store := staged(t)
	require.NoError(t, os.WriteFile(store.path(), []byte("{"), 0o600))
	require.Error(t, store.Boot(t.Context()))
	assert.FileExists(t, store.path())
}
