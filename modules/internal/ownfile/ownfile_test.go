// SPDX-License-Identifier: Apache-2.0

package ownfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/ownfile"
)

// tree gives all files below a folder with what they hold.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()

	found := map[string]string{}

	require.NoError(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}

		info, err := entry.Info()
		found[path] = info.Mode().String()

		if err == nil && info.Mode().IsRegular() {
			text, readErr := os.ReadFile(path)
			found[path] += " " + string(text)
			err = readErr
		}

		return err
	}))

	return found
}

func changes(t *testing.T, root string) []ownfile.Change {
	t.Helper()
	require.NoError(t, os.MkdirAll(root+"/etc/a.d", 0o755))
	require.NoError(t, os.WriteFile(root+"/etc/a.d/old", []byte("old"), 0o640))
	require.NoError(t, os.WriteFile(root+"/etc/a.d/gone", []byte("gone"), 0o600))

	old, err := ownfile.Read(root, "/etc/a.d/old")
	require.NoError(t, err)

	gone, err := ownfile.Read(root, "/etc/a.d/gone")
	require.NoError(t, err)

	fresh := *old
	fresh.Content, fresh.Mode = "new", 0o600

	return []ownfile.Change{
		{Path: "/etc/a.d/old", Before: old, After: &fresh},
		{Path: "/etc/a.d/gone", Before: gone},
		{Path: "/etc/b.d/made", After: &ownfile.File{Path: "/etc/b.d/made", Content: "made", Mode: 0o755, UID: old.UID, GID: old.GID}, MadeFolder: true},
		{Path: "/etc/a.d/link", After: &ownfile.File{Path: "/etc/a.d/link", Link: "old", UID: old.UID, GID: old.GID}},
	}
}

func TestChangesAreMadeAndUndone(t *testing.T) {
	root := t.TempDir()
	all := changes(t, root)
	before := tree(t, root)
	writer := ownfile.Writer{Root: root}

	require.NoError(t, writer.Apply(all))

	for _, change := range all {
		have, err := ownfile.Read(root, change.Path)
		require.NoError(t, err)
		assert.Equal(t, change.After, have, change.Path)
	}

	require.NoError(t, writer.Undo(all))
	assert.Equal(t, before, tree(t, root))
}

func TestAFailureAtEveryWriteLeavesEverythingAsItWas(t *testing.T) {
	for failed := range 4 {
		root := t.TempDir()
		all := changes(t, root)
		before := tree(t, root)

		var written []string

		writer := ownfile.Writer{Root: root, Fault: func(path string) error {
			written = append(written, path)
			if len(written) == failed+1 {
				return errors.New("injected failure")
			}

			return nil
		}}

		require.ErrorContains(t, writer.Apply(all), all[failed].Path)
		assert.Equal(t, before, tree(t, root))

		var reversed []string
		for i := failed - 1; i >= 0; i-- {
			reversed = append(reversed, all[i].Path)
		}

		assert.Equal(t, reversed, append([]string(nil), written[failed+1:]...), "the last first")
	}
}
