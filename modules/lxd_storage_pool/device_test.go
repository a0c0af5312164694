// SPDX-License-Identifier: Apache-2.0

package lxdstoragepool

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestSignatures(t *testing.T) {
	assert.Empty(t, signaturesIn(make([]byte, headLength)))
	assert.Empty(t, signaturesIn(nil), "an empty device")
	assert.Empty(t, signaturesIn([]byte("old text that is no format")))

	for _, sign := range signatures {
		head := make([]byte, headLength)
		copy(head[sign.offset:], sign.text)
		assert.Contains(t, signaturesIn(head), sign.name)
		assert.NotContains(t, signaturesIn(head[:sign.offset+len(sign.text)-1]), sign.name, "cut off within it")
	}

	for _, number := range uberblocks {
		head := make([]byte, headLength)
		copy(head[(128+4)<<10:], number)
		assert.Equal(t, []string{"a ZFS pool"}, signaturesIn(head))
	}
}

func TestMountsOf(t *testing.T) {
	mountinfo := `22 1 8:17 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 8:16 / /mnt/a\040b rw,relatime shared:2 - xfs /dev/sdb rw
31 22 0:40 / /srv rw,relatime - btrfs /dev/sdc rw
broken line
`
	assert.Equal(t, []string{"mounted at /mnt/a b"}, mountsOf(mountinfo, "8:16", "/dev/sdb"))
	assert.Equal(t, []string{"mounted at /srv"}, mountsOf(mountinfo, "8:32", "/dev/sdc"), "a file system with a number of its own")
	assert.Empty(t, mountsOf(mountinfo, "8:48", "/dev/sdd"))
}

func TestLookAt(t *testing.T) {
	folder := t.TempDir()

	source, err := lookAt(folder)
	require.NoError(t, err)
	assert.Equal(t, Source{Path: folder, Kind: "folder", Empty: true}, source)

	for _, name := range []string{"a", "b", "c", "d"} {
		require.NoError(t, os.WriteFile(filepath.Join(folder, name), nil, 0o600))
	}

	source, err = lookAt(folder)
	require.NoError(t, err)
	assert.Equal(t, Source{Path: folder, Kind: "folder", Holds: []string{"a", "b", "c"}}, source)

	source, err = lookAt(filepath.Join(folder, "a"))
	require.NoError(t, err)
	assert.Equal(t, "file", source.Kind)

	source, err = lookAt(filepath.Join(folder, "none"))
	require.NoError(t, err)
	assert.Equal(t, "none", source.Kind)

	_, err = lookAt(filepath.Join(folder, "a", "below-a-file"))
	require.Error(t, err, "what cannot be looked at is not absent")
}
