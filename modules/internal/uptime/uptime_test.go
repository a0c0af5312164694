// SPDX-License-Identifier: Apache-2.0

package uptime_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/uptime"
)

func TestWhetherTheHostHasStartedSince(t *testing.T) {
	folder := t.TempDir()
	stat, older, newer := filepath.Join(folder, "stat"), filepath.Join(folder, "older"), filepath.Join(folder, "newer")
	started := time.Now().Add(-time.Hour)

	require.NoError(t, os.WriteFile(stat, fmt.Appendf(nil, "cpu  1 2\nbtime %d\nprocesses 3\n", started.Unix()), 0o600))

	for path, made := range map[string]time.Time{older: started.Add(-time.Second), newer: started.Add(time.Second)} {
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		require.NoError(t, os.Chtimes(path, made, made))
	}

	for _, each := range []struct {
		paths []string
		since bool
	}{
		{[]string{older}, true},
		{[]string{older, newer}, false},
		{[]string{newer}, false},
		{[]string{"grubby"}, false},
		{nil, false},
	} {
		since, err := uptime.StartedSince(stat, each.paths)
		require.NoError(t, err)
		assert.Equal(t, each.since, since, "%v", each.paths)
	}

	require.NoError(t, os.WriteFile(stat, []byte("cpu  1 2\n"), 0o600))

	_, err := uptime.StartedSince(stat, nil)
	require.ErrorContains(t, err, "does not say when the kernel was started")
}
