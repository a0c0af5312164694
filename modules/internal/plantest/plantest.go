// SPDX-License-Identifier: Apache-2.0

// Package plantest runs a module's plan cases: every folder testdata/plan/<sentence_as_name>/ holds args.yaml (a task's
// arguments), state.yaml (what was read) and want.yaml (the steps, or the failure). Run the tests with -update to
// write want.yaml anew, and read the difference.
package plantest

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/plan"
)

var update = flag.Bool("update", false, "write want.yaml anew")

// want is what a case expects: the future state and the steps towards it, or a failure.
type want struct {
	Steps   []wantedStep  `json:"steps"`
	After   any           `json:"after,omitempty"`
	Failure *wantedFailed `json:"failure,omitempty"`
}

// wantedStep shows the effect too, by its type.
type wantedStep struct {
	plan.Step
	Do map[string]any `json:"do,omitempty"`
}

type wantedFailed struct {
	Code ansible.Code `json:"code"`
	Msg  string       `json:"msg"`
	Hint string       `json:"hint,omitempty"`
}

// Run runs all cases of the package it is called from. Each is planned twice: the same input must give the same bytes.
func Run[A, S, V any](t *testing.T, module ansible.Module[A, S, V]) {
	t.Helper()

	folders, err := filepath.Glob("testdata/plan/*")
	require.NoError(t, err)
	require.NotEmpty(t, folders, "no plan cases in testdata/plan")

	for _, folder := range folders {
		t.Run(filepath.Base(folder), func(t *testing.T) {
			got := planCase(t, module, folder)
			require.Equal(t, got, planCase(t, module, folder), "the second plan differs")

			path := filepath.Join(folder, "want.yaml")
			if *update {
				require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
			}

			expected, err := os.ReadFile(path)
			require.NoError(t, err, "run with -update to write it")
			require.Equal(t, string(expected), got)
		})
	}
}

func planCase[A, S, V any](t *testing.T, module ansible.Module[A, S, V], folder string) string {
	t.Helper()

	var (
		args  map[string]any
		state S
	)

	load(t, filepath.Join(folder, "args.yaml"), &args)
	load(t, filepath.Join(folder, "state.yaml"), &state)

	planned, err := module.PlanCase(args, state)

	var result want

	var failure *ansible.Failure

	switch {
	case errors.As(err, &failure):
		result.Failure = &wantedFailed{failure.Code, err.Error(), failure.Hint}
	case err != nil:
		result.Failure = &wantedFailed{ansible.CodeFailed, err.Error(), ""}
	default:
		for _, step := range planned.Steps {
			shown := wantedStep{Step: step}
			if step.Do != nil {
				shown.Do = map[string]any{reflect.TypeOf(step.Do).Name(): step.Do}
			}

			result.Steps = append(result.Steps, shown)
		}

		result.After = planned.After
		checkSettled(t, module, args, planned)
	}

	text, err := json.Marshal(result)
	require.NoError(t, err)

	// JSON is YAML: decoding it as such gives plain values, which YAML writes with sorted keys.
	var plain any

	require.NoError(t, yaml.Unmarshal(text, &plain))

	out, err := yaml.Marshal(plain)
	require.NoError(t, err)

	return string(out)
}

// checkSettled plans from the planned state: nothing may be left to do there, or the real run could not converge either.
func checkSettled[A, S, V any](t *testing.T, module ansible.Module[A, S, V], args map[string]any, planned plan.Plan[S]) {
	t.Helper()

	again, err := module.PlanCase(args, planned.After)
	require.NoError(t, err, "planning from the planned state")
	require.Empty(t, plan.Lines(again.Changes()), "the planned state is not the wanted one")
}

// load reads YAML through JSON, so that the JSON tags of a state decide and unknown keys are refused.
func load(t *testing.T, path string, into any) {
	t.Helper()

	text, err := os.ReadFile(path)
	require.NoError(t, err)

	var plain any

	require.NoError(t, yaml.Unmarshal(text, &plain), path)

	asJSON, err := json.Marshal(plain)
	require.NoError(t, err)

	decoder := json.NewDecoder(bytes.NewReader(asJSON))
	decoder.UseNumber()
	decoder.DisallowUnknownFields()
	require.NoError(t, decoder.Decode(into), path)
}
