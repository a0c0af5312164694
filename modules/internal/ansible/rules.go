// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// given counts the options that are among the arguments; null counts as given.
func given(params map[string]any, names []string) int {
	count := 0

	for _, name := range names {
		if _, ok := params[name]; ok {
			count++
		}
	}

	return count
}

// exclusive looks for options that exclude each other.
func (r Rules) exclusive(params map[string]any) error {
	var broken []string

	for _, names := range r.MutuallyExclusive {
		if given(params, names) > 1 {
			broken = append(broken, strings.Join(names, "|"))
		}
	}

	if broken == nil {
		return nil
	}

	return fmt.Errorf("parameters are mutually exclusive: %s", strings.Join(broken, ", "))
}

// dependent looks for options that need others.
func (r Rules) dependent(params map[string]any) error {
	for _, names := range r.RequiredTogether {
		if count := given(params, names); count > 0 && count < len(names) {
			return fmt.Errorf("parameters are required together: %s", strings.Join(names, ", "))
		}
	}

	for _, names := range r.RequiredOneOf {
		if given(params, names) == 0 {
			return fmt.Errorf("one of the following is required: %s", strings.Join(names, ", "))
		}
	}

	for _, rule := range r.RequiredIf {
		err := rule.check(params)
		if err != nil {
			return err
		}
	}

	for _, name := range slices.Sorted(maps.Keys(r.RequiredBy)) {
		err := requiredBy(params, name, r.RequiredBy[name])
		if err != nil {
			return err
		}
	}

	return nil
}

func (r RequiredIf) check(params map[string]any) error {
	want, err := plain(deepCopy(r.Value), 0)
	if err != nil {
		return fmt.Errorf("a rule about %q %w", r.Option, err) // Spec.check has seen to that
	}

	value, ok := params[r.Option]
	if !ok || !pyEqual(value, want) {
		return nil
	}

	var missing []string

	for _, name := range r.Needs {
		if given(params, []string{name}) == 0 {
			missing = append(missing, name)
		}
	}

	quantity := "all"
	if r.Any {
		quantity = "any"
	}

	if len(missing) == 0 || r.Any && len(missing) < len(r.Needs) {
		return nil
	}

	return fmt.Errorf("%s is %s but %s of the following are missing: %s",
		r.Option, pyText(want), quantity, strings.Join(missing, ", "))
}

func requiredBy(params map[string]any, name string, needs []string) error {
	if params[name] == nil {
		return nil
	}

	var missing []string

	for _, need := range needs {
		if params[need] == nil {
			missing = append(missing, need)
		}
	}

	if missing == nil {
		return nil
	}

	return fmt.Errorf("missing parameter(s) required by '%s': %s", name, strings.Join(missing, ", "))
}
