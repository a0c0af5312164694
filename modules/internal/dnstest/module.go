// SPDX-License-Identifier: Apache-2.0

package dnstest

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/ansible"
)

// Dict is how arguments and answers look.
type Dict = map[string]any

// Result is what a module answered.
type Result struct {
	Changed  bool
	Failed   bool
	Msg      string
	Hint     string
	Warnings []string
	Plan     []string
	Failure  struct {
		Code string
		Step string
		Done []string
	}
	Raw    Dict   `json:"-"`
	Stdout string `json:"-"`
}

// Run runs a module as stock Ansible does: a file of arguments in, one JSON object out.
func Run(t *testing.T, module ansible.Runner, args Dict) Result {
	t.Helper()

	text, err := json.Marshal(args)
	require.NoError(t, err)

	file := filepath.Join(t.TempDir(), "args")
	require.NoError(t, os.WriteFile(file, text, 0o600))

	var stdout, stderr bytes.Buffer

	ansible.Standalone(module, []string{"module", file}, &stdout, &stderr)

	result := Result{Stdout: stdout.String() + stderr.String()}
	require.NoError(t, json.Unmarshal(stdout.Bytes(), &result), "%s%s", &stdout, &stderr)
	require.NoError(t, json.Unmarshal(stdout.Bytes(), &result.Raw))

	return result
}

// With gives the arguments with others in their place.
func With(args Dict, more Dict) Dict {
	out := maps.Clone(args)
	maps.Copy(out, more)

	return out
}

// OK runs a module that must not fail.
func OK(t *testing.T, module ansible.Runner, args Dict) Result {
	t.Helper()

	result := Run(t, module, args)
	require.False(t, result.Failed, "%s %q", result.Msg, result.Plan)

	return result
}

// Converges runs a module in check mode, for real and again: it says the same before, and has nothing left to do afterwards.
func Converges(t *testing.T, module ansible.Runner, args Dict) Result {
	t.Helper()

	would := OK(t, module, With(args, Dict{"_ansible_check_mode": true, "_ansible_diff": true}))
	did := OK(t, module, args)
	require.Equal(t, would.Plan, did.Plan)
	require.True(t, did.Changed, "%s %q", did.Msg, did.Plan)
	Unchanged(t, module, args)

	return did
}

// Unchanged runs a module that must have nothing to do.
func Unchanged(t *testing.T, module ansible.Runner, args Dict) Result {
	t.Helper()

	result := OK(t, module, args)
	require.False(t, result.Changed, "%s %q", result.Msg, result.Plan)
	require.Empty(t, result.Plan)

	return result
}

// Fails runs a module that must fail with a code.
func Fails(t *testing.T, module ansible.Runner, code ansible.Code, args Dict) Result {
	t.Helper()

	result := Run(t, module, args)
	require.True(t, result.Failed, "%s %q", result.Msg, result.Plan)
	require.Equal(t, string(code), result.Failure.Code, "%s %q", result.Msg, result.Plan)

	return result
}
