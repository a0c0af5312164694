// SPDX-License-Identifier: Apache-2.0

// Package gpuinfo reads a host's NVIDIA cards and their driver, and can have every card compute. It changes nothing.
//
// This package needs no driver and no cgo: it reads sysfs, and asks the driver through a process of its own, which may
// hang or crash. What runs in that process is package nvidia.
package gpuinfo

import (
	"context"
	"time"

	"github.com/thinkube/infra/modules/internal/ansible"
)

// Args are the module's options.
type Args struct {
	CUDACheck bool             `ansible:"cuda_check" default:"false"`
	Timeout   ansible.Duration `ansible:"timeout" default:"60s"`
}

// TaskTimeout bounds the whole task; the SDK asks for it.
func (a Args) TaskTimeout() time.Duration { return a.Timeout }

// Failure codes of this module.
const (
	CodeWrongResult ansible.Code = "wrong_result" // a card computed, and wrongly
	CodeCUDAFailed  ansible.Code = "cuda_failed"  // a card did not compute
	CodeNotChecked  ansible.Code = "not_checked"  // there was nothing to compute on
)

// Name is the module's name without the collection, and the folder's.
const Name = "gpu_info"

// Module is gpu_info, without the services that ask the driver; package nvidia adds them.
var Module = ansible.Module[Args, Values, Values]{
	Name: Name,
	Codes: map[ansible.Code]string{
		CodeWrongResult: "a card computed something wrong; msg names it",
		CodeCUDAFailed:  "a card did not compute; msg has the reason",
		CodeNotChecked:  "nothing was computed: there is no card for that, or its driver cannot be asked",
	},
	Open: func(_ context.Context, _ *ansible.Task, args Args) (ansible.Host[Values], error) {
		return &host{args: args, root: "/", ask: askChild}, nil
	},
	Result: func(_ Args, read Values) Values { return read },
}
