// SPDX-License-Identifier: Apache-2.0

package netbridge

import (
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"
)

// TestRoleKnowsAllOptions compares the role network_bridge with the module: whoever uses the role can ask for all of it.
func TestRoleKnowsAllOptions(t *testing.T) {
	const role = "../../roles/network_bridge/"

	var (
		tasks []map[string]any
		specs struct {
			Specs map[string]struct{ Options map[string]any } `yaml:"argument_specs"`
		}
	)

	for path, into := range map[string]any{"tasks/bridge.yaml": &tasks, "meta/argument_specs.yml": &specs} {
		text, err := os.ReadFile(role + path)
		require.NoError(t, err)
		require.NoError(t, yaml.Unmarshal(text, into), path)
	}

	passed, ok := tasks[0]["thinkube.infra.net_bridge"].(map[string]any)
	require.True(t, ok)

	spec, err := Module.ArgSpec()
	require.NoError(t, err)

	for _, option := range slices.Sorted(maps.Keys(spec.Options)) {
		switch {
		case slices.Contains([]string{"state", "ticket"}, option):
			continue // the role's other tasks; and a name that nobody needs to give
		case assert.Contains(t, passed, option) && option != "phase": // the role's own
			assert.Contains(t, specs.Specs["setup"].Options, "network_bridge_"+option)
		}
	}
}
