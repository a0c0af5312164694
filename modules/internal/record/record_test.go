// SPDX-License-Identifier: Apache-2.0

package record

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestTheFirstRecordIsKept(t *testing.T) {
	root := filepath.Join(t.TempDir(), "thinkube")
	store := Open(root, "net_bridge")

	origin, err := ReadOrigin[string](store, "a/b")
	require.NoError(t, err)
	assert.False(t, origin.Recorded)

	require.NoError(t, store.Keep("a/b", "first"))
	require.NoError(t, store.Keep("a/b", "second"))

	origin, err = ReadOrigin[string](store, "a/b")
	require.NoError(t, err)
	assert.True(t, origin.Recorded)
	assert.Equal(t, "first", *origin.Original)

	files, err := filepath.Glob(filepath.Join(root, "*", "*"))
	require.NoError(t, err)
	require.Len(t, files, 1)

	info, err := os.Stat(files[0])
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())

	require.NoError(t, store.Forget("a/b"))
	require.NoError(t, store.Forget("a/b"))
	assert.NoDirExists(t, root, "nothing is left behind")
}

func TestARecordIsReplaced(t *testing.T) {
	root := t.TempDir()
	store := Open(root, "m")

	for _, value := range []string{"first", "second"} {
		require.NoError(t, store.Replace("o", value))

		origin, err := ReadOrigin[string](store, "o")
		require.NoError(t, err)
		assert.Equal(t, value, *origin.Original)
	}

	files, err := filepath.Glob(filepath.Join(root, "m", "*"))
	require.NoError(t, err)
	assert.Equal(t, []string{store.path("o")}, files)
}

func TestADamagedRecordIsAnError(t *testing.T) {
	store := Open(t.TempDir(), "m")
	require.NoError(t, store.Keep("o", 1))
	require.NoError(t, os.WriteFile(store.path("o"), nil, 0o600))

	_, err := ReadOrigin[int](store, "o")
	assert.ErrorContains(t, err, store.path("o"))
}
