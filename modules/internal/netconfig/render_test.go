// SPDX-License-Identifier: Apache-2.0

package netconfig

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/thinkube/infra/modules/internal/netstate"
)

var update = flag.Bool("update", false, "write the golden files anew")

// renderCase is case.yaml: how the port is configured, and the bridge.
type renderCase struct {
	Config Config `yaml:",inline"`
	Wanted Wanted
}

// readTree reads all files below a folder by their path in it.
func readTree(t *testing.T, root string) map[string]string {
	t.Helper()

	files := map[string]string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}

		text, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, root)] = string(text)

		return err
	})
	require.NoError(t, err)

	return files
}

// TestRender has the files of testdata/render/CASE/before become those of after. Run with -update to write after anew, and
// read the difference.
func TestRender(t *testing.T) {
	folders, err := filepath.Glob("testdata/render/*")
	require.NoError(t, err)
	require.NotEmpty(t, folders)

	for _, folder := range folders {
		t.Run(filepath.Base(folder), func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join(folder, "case.yaml"))
			require.NoError(t, err)

			var one renderCase

			decoder := yaml.NewDecoder(strings.NewReader(string(text)))
			decoder.KnownFields(true)
			require.NoError(t, decoder.Decode(&one))

			before := readTree(t, filepath.Join(folder, "before"))
			for path, content := range before {
				one.Config.Files = append(one.Config.Files, File{Path: path, Content: content, Mode: 0o640, UID: 7, GID: 8})
			}

			slices.SortFunc(one.Config.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })

			changes, err := Render(one.Config, one.Wanted)
			require.NoError(t, err)

			golden := filepath.Join(folder, "after")
			got := apply(t, before, changes)

			if *update {
				require.NoError(t, os.RemoveAll(golden))
				require.NoError(t, writeBelow(golden, got))
			}

			want := readTree(t, golden)
			shown := map[string]string{}

			for _, file := range got {
				shown[file.Path] = file.Content
			}

			require.Equal(t, want, shown)
			isTaken(t, filepath.Join(folder, "before"), one, changes)
		})
	}
}

// apply gives all files as they are after the changes. A file that was there keeps its owner and mode.
func apply(t *testing.T, before map[string]string, changes []Change) []File {
	t.Helper()

	var all Config
	for path, content := range before {
		all.Files = append(all.Files, File{Path: path, Content: content})
	}

	for _, change := range changes {
		if change.Before != nil && change.After != nil {
			assert.Equal(t, []int{0o640, 7, 8}, []int{int(change.After.Mode), change.After.UID, change.After.GID}, change.Path)
		}

		all.put(change)
	}

	return all.Files
}

// isTaken has the manager's own program, where it is installed, and what is worked out here judge the files.
func isTaken(t *testing.T, root string, one renderCase, changes []Change) {
	t.Helper()

	if one.Config.Manager == Netplan && lookProgram("netplan") == "" {
		return // tests/bridge has it
	}

	expect, err := Expect(one.Config, one.Wanted)
	require.NoError(t, err)

	links := []netstate.Link{{Name: one.Wanted.Bridge, Kind: "bridge", MAC: one.Wanted.MAC}}
	for _, port := range one.Wanted.Ports {
		links = append(links, netstate.Link{Name: port, MAC: one.Wanted.MAC})
	}

	require.NoError(t, check(t.Context(), root, Judged{
		Manager: one.Config.Manager, Changes: changes, Expect: expect, Links: links, Up: []string{one.Wanted.Bridge},
	}))
}
