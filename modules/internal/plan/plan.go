// SPDX-License-Identifier: Apache-2.0

// Package plan holds what every module computes before it touches anything: ordered steps that lead from the current
// state to the wanted one. It knows no host, no clock and no I/O.
package plan

import "fmt"

// Verb says what a step does to its object.
type Verb string

// The verbs. Report is a step without effect: nothing to do, but something to say. The user sees it as a warning.
const (
	Create Verb = "create"
	Change Verb = "change"
	Delete Verb = "delete"
	Report Verb = "report"
)

// Step is one effect. The same arguments and state give the same steps, byte for byte.
type Step struct {
	Verb   Verb   `json:"verb"`
	Object string `json:"object"` // what it acts on, as people call it: `profile "vm-base"`
	Line   string `json:"line"`   // one line for people
	Before any    `json:"before,omitempty"`
	After  any    `json:"after,omitempty"`
	// Do is the effect as typed data; the module's Apply switches on its type. It holds no secrets.
	Do any `json:"-"`
}

// Plan is the way to the wanted state and that state itself.
type Plan[S any] struct {
	Steps []Step
	// After is the state that is expected once all steps are done. Check mode shows it; after a real run the state
	// that was read back is shown instead.
	After S
}

// Add appends a step whose line is built from its verb, its object and the given words. The pointer, for setting Before
// and After, is good until the next Add.
func (p *Plan[S]) Add(verb Verb, object string, do any, format string, args ...any) *Step {
	line := string(verb) + " " + object
	if verb == Report {
		line = object + ":"
	}

	if format != "" {
		line += " " + fmt.Sprintf(format, args...)
	}

	p.Steps = append(p.Steps, Step{Verb: verb, Object: object, Line: line, Do: do})

	return &p.Steps[len(p.Steps)-1]
}

// Changes returns the steps that have an effect: all but the reports.
func (p *Plan[S]) Changes() []Step {
	var changes []Step

	for _, step := range p.Steps {
		if step.Verb != Report {
			changes = append(changes, step)
		}
	}

	return changes
}

// Lines returns the human lines of the steps.
func Lines(steps []Step) []string {
	lines := make([]string, 0, len(steps))
	for _, step := range steps {
		lines = append(lines, step.Line)
	}

	return lines
}
