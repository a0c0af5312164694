// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"context"
	"errors"
	"fmt"
)

// Code names a kind of failure. Each module documents its closed list; these are the ones that any module can give.
type Code string

// Failure codes of the SDK itself.
const (
	CodeInvalidArgument Code = "invalid_argument" // an option's value is refused before anything was read
	CodeInternal        Code = "internal"         // a defect in the module
	CodeTimeout         Code = "timeout"          // a deadline given by an option has passed
	CodeNotConverged    Code = "not_converged"    // all steps were done and the state is still not the wanted one
	CodeConflict        Code = "conflict"         // somebody else changed the object again and again while we did
	CodeNeedsCollection Code = "needs_collection" // the task needs another host, which only the collection's action plugin reaches
	CodeFailed          Code = "failed"           // an effect was refused; msg has the server's or the kernel's words
)

// CommonCodes says what the codes that every module can give mean.
var CommonCodes = map[Code]string{
	CodeInvalidArgument: "an option's value is refused; nothing was touched",
	CodeInternal:        "a defect in the module; please report it",
	CodeTimeout:         "a deadline has passed",
	CodeNotConverged:    "every step was done and the state is still not the wanted one",
	CodeConflict:        "somebody else changed the object while this task did",
	CodeNeedsCollection: "the task needs a second host; run it through the collection, not as a stand-alone program",
	CodeFailed:          "a step was refused; msg has the reason",
}

// Failure is an error that tells the user what failed, what to do, and a program which kind it is.
type Failure struct {
	Code Code
	Hint string
	Err  error
	// Details are further keys of the result's failure: those that the module names (Module.Details). May be nil.
	Details map[string]any
}

// Error gives what failed, without the hint.
func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap gives the cause.
func (f *Failure) Unwrap() error { return f.Err }

// Fail makes a Failure. The hint is what to do about it and may be empty; format may hold %w.
func Fail(code Code, hint, format string, args ...any) error {
	return &Failure{Code: code, Hint: hint, Err: fmt.Errorf(format, args...)}
}

// ErrChanged marks (by wrapping) a step that was refused because its object is no longer what the plan was made from.
// The SDK reads and plans again instead of overwriting somebody's work.
var ErrChanged = errors.New("changed by somebody else since it was read")

// failureOf finds the Failure in an error, or makes one for errors that carry none.
func failureOf(err error) *Failure {
	var failure *Failure
	if errors.As(err, &failure) {
		return &Failure{Code: failure.Code, Hint: failure.Hint, Err: err, Details: failure.Details}
	}

	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return &Failure{Code: CodeTimeout, Hint: "give the task more time with its timeout option, or look why the host is slow", Err: err}
	case errors.Is(err, ErrChanged):
		return &Failure{Code: CodeConflict, Hint: "run the task again when the other change is over", Err: err}
	}

	return &Failure{Code: CodeFailed, Err: err}
}
