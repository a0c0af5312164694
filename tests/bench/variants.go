// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// variant is one way to run a task that does nothing. The collection's module is called without the option that it
// needs: the real program is started, reads its arguments and says so, and touches nothing.
type variant struct {
	name   string
	module string
	says   string // what a result contains when the module itself was reached
	env    []string
	vars   map[string]any
	pace   pace
}

// pace decides how many tasks a play has, so that no variant takes all the time.
type pace int

const (
	quick pace = iota
	middling
	slow
)

// The variant that others are compared with.
const (
	nothing   = "nothing"
	pipelined = "ping pipelined"
	mitogen   = "mitogen ping"
)

const (
	ownModule = "thinkube.infra.lxd_profile"
	ping      = "ansible.builtin.ping"
	complaint = "missing required arguments"
)

func allVariants() []variant {
	return []variant{
		{name: nothing, module: "nothing"},
		{name: "nothing in a collection", module: "thinkube.infra.nothing"},
		{name: "agent", module: ownModule, says: complaint, vars: map[string]any{"thinkube_transport": "agent"}},
		{name: "exec", module: ownModule, says: complaint, vars: map[string]any{"thinkube_transport": "exec"}},
		{name: pipelined, module: ping, says: "pong", env: []string{"ANSIBLE_PIPELINING=1"}, pace: middling},
		{name: "ping", module: ping, says: "pong", env: []string{"ANSIBLE_PIPELINING=0"}, pace: slow},
		{name: "stock binary", module: "lxd_profile", says: complaint, pace: slow},
	}
}

// chosen gives the variants that the user wants: all, or those named. checkout is what MITOGEN says.
func chosen(only, checkout string) ([]variant, error) {
	variants := allVariants()
	names := []string{}

	if checkout != "" {
		v, err := ofMitogen(checkout)
		if err != nil {
			return nil, err
		}

		variants = append(variants, v)
	}

	for _, v := range variants {
		names = append(names, v.name)
	}

	if only == "" {
		return variants, nil
	}

	wanted := strings.Split(only, ",")
	for _, name := range wanted {
		if name == mitogen && checkout == "" {
			return nil, fmt.Errorf("-only: %q needs MITOGEN to name a checkout of Mitogen for Ansible", name)
		}

		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("-only: no variant %q: there are %s", name, strings.Join(names, ", "))
		}
	}

	return slices.DeleteFunc(variants, func(v variant) bool { return !slices.Contains(wanted, v.name) }), nil
}

// ofMitogen is the variant of a checkout of Mitogen for Ansible, or of a folder with its packages ansible_mitogen and
// mitogen in it.
func ofMitogen(checkout string) (variant, error) {
	root, err := filepath.Abs(checkout)
	if err != nil {
		return variant{}, err
	}

	plugins := filepath.Join(root, "ansible_mitogen/plugins/strategy")

	for _, path := range []string{filepath.Join(plugins, "mitogen_linear.py"), filepath.Join(root, "mitogen/__init__.py")} {
		_, statErr := os.Stat(path)
		err = errors.Join(err, statErr)
	}

	if err != nil {
		return variant{}, fmt.Errorf("MITOGEN=%s is no checkout of Mitogen for Ansible: %w", checkout, err)
	}

	return variant{name: mitogen, module: ping, says: "pong", env: []string{
		"ANSIBLE_STRATEGY_PLUGINS=" + plugins, "ANSIBLE_STRATEGY=mitogen_linear",
	}}, nil
}

// mitogenNote says which Mitogen was measured, or why none was.
func mitogenNote(variants []variant, checkout string) string {
	if checkout == "" {
		return "mitogen: not measured (set MITOGEN to a checkout)"
	}

	if !slices.ContainsFunc(variants, func(v variant) bool { return v.name == mitogen }) {
		return "mitogen: not measured (left out by -only)"
	}

	text, _ := os.ReadFile(filepath.Join(checkout, "mitogen/__init__.py"))

	version := regexp.MustCompile(`(?m)^__version__ = \(([^)]*)\)`).FindSubmatch(text)
	if version == nil {
		return "mitogen: of " + checkout
	}

	return "mitogen: " + strings.ReplaceAll(string(version[1]), ", ", ".")
}
