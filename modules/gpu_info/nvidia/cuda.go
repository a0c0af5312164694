// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package nvidia

/*
#include <stdlib.h>
#include "cuda.h"
*/
import "C"

import (
	_ "embed"
	"fmt"
	"math"
	"strings"
	"unsafe"

	gpuinfo "github.com/thinkube/infra/modules/gpu_info"
)

// cudaLibrary is the name by which the dynamic linker finds the driver's part of CUDA. No toolkit has to be installed.
const cudaLibrary = "libcuda.so.1"

//go:embed check.ptx
var kernel string

// How much is computed: enough threads for every processor of a card, and no more time than it takes to start one.
const (
	numbers = 1 << 18
	rounds  = 64
)

// compute has the card that the request names compute, and compares each result. CUDA sees no other card in this process.
func compute(request gpuinfo.Request, doing func(string)) gpuinfo.Reply {
	doing("computing on card " + request.Address)

	given := make([]uint32, numbers)
	for i := range given {
		given[i] = uint32(i) * 2654435761
	}

	got, outcome := onCard(given)

	failed := explain(outcome)
	if failed == "" {
		failed = assertCard(outcome, request)
	}

	if failed != "" {
		return gpuinfo.Reply{Failed: failed}
	}

	return gpuinfo.Reply{Wrong: compare(given, got)}
}

func onCard(given []uint32) ([]uint32, C.struct_outcome) {
	var outcome C.struct_outcome

	got := make([]uint32, len(given))
	library, text, name := C.CString(cudaLibrary), C.CString(kernel), C.CString("thinkube_check")

	defer func() {
		for _, each := range []*C.char{library, text, name} {
			C.free(unsafe.Pointer(each))
		}
	}()

	C.thinkube_compute(library, text, name, (*C.uint32_t)(&given[0]), (*C.uint32_t)(&got[0]),
		C.uint32_t(len(given)), rounds, &outcome)

	return got, outcome
}

// explain says which call failed and why; empty if none did.
func explain(outcome C.struct_outcome) string {
	if outcome.code == 0 {
		return ""
	}

	text := fmt.Sprintf("%s: %s", C.GoString(outcome.call), C.GoString(&outcome.text[0]))
	if log := strings.Join(strings.Fields(C.GoString(&outcome.log[0])), " "); log != "" {
		text += ": " + log
	}

	return text
}

// assertCard makes sure that it was the card in question.
func assertCard(outcome C.struct_outcome, request gpuinfo.Request) string {
	address, err := gpuinfo.ParseAddress(C.GoString(&outcome.address[0]))
	if err != nil {
		return err.Error()
	}

	if address != request.Address || outcome.devices != 1 {
		return fmt.Sprintf("CUDA was to see the card with UUID %s alone, and used %s (%s) of %d cards", request.UUID, address,
			C.GoString(&outcome.name[0]), outcome.devices)
	}

	return ""
}

// expected is what the kernel makes of a number: the same operations, in the same order.
func expected(x uint32) uint32 {
	f := float32(1)

	for range rounds {
		x = x*1664525 + 1013904223
		x ^= x >> 15
		m := math.Float32frombits(x&0x7fffff | 0x3f800000) // 1 <= m < 2
		// In float64 both operations are exact, so this rounds once, as the kernel's fma does.
		f = float32(float64(f)*0.25 + float64(m))
	}

	return x ^ math.Float32bits(f)
}

// compare gives what is wrong; empty if nothing is.
func compare(given, got []uint32) string {
	wrong, first := 0, -1

	for i := range given {
		if got[i] == expected(given[i]) {
			continue
		}

		wrong++

		if first < 0 {
			first = i
		}
	}

	if wrong == 0 {
		return ""
	}

	return fmt.Sprintf("%d of %d results; the first is number %d, %#08x instead of %#08x", wrong, len(given), first, got[first], expected(given[first]))
}
