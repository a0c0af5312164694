// SPDX-License-Identifier: Apache-2.0

package gpuinfo

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/pci"
)

// Values are what is read and returned.
type Values struct {
	Driver Driver `json:"driver"`
	Cards  []Card `json:"cards"`
	// Problem is why the driver says nothing about its cards; null when it does.
	Problem *Problem `json:"problem"`
}

// Driver is NVIDIA's driver. What is null is not known.
type Driver struct {
	Loaded      bool    `json:"loaded"`       // the kernel module nvidia
	Version     *string `json:"version"`      // of the kernel module
	NVMLVersion *string `json:"nvml_version"` // of the library
	Library     *string `json:"library"`      // the file that was used
	CUDAVersion *string `json:"cuda_version"` // the newest that the driver can do
}

// Problem is what keeps the driver from answering, in a word for programs and in a sentence.
type Problem struct {
	Code string `json:"code"`
	Text string `json:"text"`
	Hint string `json:"hint"`
}

// Codes of problems.
const (
	ProblemNoCard         = "no_card"
	ProblemNotLoaded      = "driver_not_loaded"
	ProblemLibraryMissing = "library_missing"
	ProblemMismatch       = "version_mismatch"
	ProblemNoPermission   = "no_permission"
	ProblemDriverFailed   = "driver_failed"
	ProblemDriverCrashed  = "driver_crashed"
)

// States of a card.
const (
	CardOK       = "ok"       // the driver answers for it
	CardReserved = "reserved" // bound to a VFIO driver, for a guest
	CardLost     = "lost"     // fallen off the bus
	CardUnknown  = "unknown"  // the driver was not asked or did not answer; reason says why
)

// Card is one card. What is null is not known, or the card has no such thing: NotSupported names the latter, Errors tells
// of what could not be read.
type Card struct {
	Address         string       `json:"address"` // dddd:bb:dd.f
	KernelDriver    *string      `json:"kernel_driver"`
	State           string       `json:"state"`
	Reason          *string      `json:"reason"`
	Index           *int         `json:"index"` // NVML's
	Minor           *int         `json:"minor"` // of /dev/nvidiaN
	UUID            *string      `json:"uuid"`
	Name            *string      `json:"name"`
	Memory          *Memory      `json:"memory"`
	Utilization     *Utilization `json:"utilization"`
	PersistenceMode *bool        `json:"persistence_mode"`
	ECC             *ECC         `json:"ecc"`
	MIG             *MIG         `json:"mig"`
	Processes       []Process    `json:"processes"` // nil when unknown
	NotSupported    []string     `json:"not_supported"`
	Errors          []string     `json:"errors"`
	ComputeVerified *bool        `json:"compute_verified"` // null unless it was asked for
	lost            bool         // nobody answers at its address
}

// Memory is a card's memory, in bytes.
type Memory struct {
	Total uint64 `json:"total"`
	Used  uint64 `json:"used"`
	Free  uint64 `json:"free"`
}

// Utilization is how much of the last sample period, in percent, something ran or the memory was read or written.
type Utilization struct {
	GPU    uint32 `json:"gpu"`
	Memory uint32 `json:"memory"`
}

// ECC is the memory's error correction: now, after the next reboot, and the errors since the last one.
type ECC struct {
	Enabled     bool    `json:"enabled"`
	Pending     bool    `json:"pending"`
	Corrected   *uint64 `json:"corrected"`
	Uncorrected *uint64 `json:"uncorrected"`
}

// MIG is whether the card is divided into instances, now and after the next reset, and into which.
type MIG struct {
	Enabled bool        `json:"enabled"`
	Pending bool        `json:"pending"`
	Devices []MIGDevice `json:"devices"`
}

// MIGDevice is an instance of a divided card.
type MIGDevice struct {
	UUID   string  `json:"uuid"`
	Name   *string `json:"name"`
	Memory *Memory `json:"memory"`
}

// Process is a process that uses a card.
type Process struct {
	PID    uint32  `json:"pid"`
	Name   *string `json:"name"`
	Type   string  `json:"type"`   // compute, graphics or mps
	Memory *uint64 `json:"memory"` // in bytes
}

type host struct {
	ansible.ReadOnly
	args Args
	root string
	ask  func(ctx context.Context, service string, request Request) (Reply, error)
}

// Read reads sysfs, and asks the driver if it is loaded. That the driver cannot answer is what the caller wants to know,
// so it is part of the result; that it hangs is an error.
func (h *host) Read(ctx context.Context) (Values, error) {
	values := Values{}

	err := h.readDriver(&values.Driver)
	if err == nil {
		values.Cards, err = h.readCards()
	}

	if err != nil {
		return values, err
	}

	switch {
	case values.Driver.Loaded:
		err = h.askDriver(ctx, &values)
	case len(values.Cards) > 0:
		values.Problem = notLoaded(values.Cards)
	}

	if err != nil {
		return values, err
	}

	if values.Problem == nil && len(values.Cards) == 0 {
		values.Problem = &Problem{Code: ProblemNoCard, Text: "this host has no NVIDIA card on its PCI bus"}
	}

	for i := range values.Cards {
		values.Cards[i].judge(values.Problem)
	}

	if h.args.CUDACheck {
		err = h.compute(ctx, &values)
	}

	return values, err
}

func notLoaded(cards []Card) *Problem {
	problem := &Problem{
		Code: ProblemNotLoaded, Text: "NVIDIA's driver is not loaded: there is no kernel module nvidia",
		Hint: "install the driver, or load it with: modprobe nvidia",
	}

	if !slices.ContainsFunc(cards, func(c Card) bool { return !c.reserved() }) {
		problem.Hint = "every card is reserved for guests; to use one here, give it back first"
	}

	return problem
}

// askDriver has the driver asked, and adds what it says to the cards that sysfs has.
func (h *host) askDriver(ctx context.Context, values *Values) error {
	request := Request{Root: h.root}

	for _, card := range values.Cards {
		if card.KernelDriver != nil && *card.KernelDriver == nvidiaDriver {
			request.Addresses = append(request.Addresses, card.Address)
		}
	}

	reply, err := h.ask(ctx, ServiceRead, request)
	if err != nil {
		return err
	}

	values.Problem = reply.Problem
	if reply.Problem != nil && reply.Problem.Code == ProblemMismatch {
		values.Problem.Text += mismatched(values.Driver.Version, reply.Driver.Library)
	}

	loaded := values.Driver
	values.Driver = reply.Driver
	values.Driver.Loaded = true

	if loaded.Version != nil {
		values.Driver.Version = loaded.Version
	}

	for _, card := range reply.Cards {
		values.Cards = add(values.Cards, card)
	}

	slices.SortFunc(values.Cards, func(a, b Card) int { return strings.Compare(a.Address, b.Address) })

	return nil
}

func mismatched(version, library *string) string {
	text := ""
	if version != nil {
		text += fmt.Sprintf(": the kernel has %s", *version)
	}

	if library != nil {
		text += fmt.Sprintf(", the library is %s", *library)
	}

	return text
}

// add puts what the driver says about a card to what sysfs says about it.
func add(cards []Card, said Card) []Card {
	for i, card := range cards {
		if card.Address == said.Address {
			said.KernelDriver = card.KernelDriver
			said.lost = card.lost
			cards[i] = said

			return cards
		}
	}

	return append(cards, said)
}

// reserved tells of cards that are kept for guests: vfio-pci and its variants, such as nvgrace_gpu_vfio_pci.
func (c *Card) reserved() bool {
	return c.KernelDriver != nil && pci.IsVFIO(*c.KernelDriver)
}

// judge says in a word what there is to say about a card.
func (c *Card) judge(problem *Problem) {
	c.NotSupported = append([]string{}, c.NotSupported...)
	c.Errors = append([]string{}, c.Errors...)

	because := func(state, format string, args ...any) {
		reason := fmt.Sprintf(format, args...)
		c.State, c.Reason = state, &reason
	}

	switch {
	case c.lost || slices.ContainsFunc(c.Errors, isLost):
		because(CardLost, "it has fallen off the bus: reset it or reboot the host, and look for Xid 79 in the kernel's log")
	case c.reserved():
		because(CardReserved, "it is bound to %s, for a guest", *c.KernelDriver)
	case c.UUID != nil:
		c.State = CardOK
	case c.KernelDriver == nil:
		because(CardUnknown, "it has no driver")
	case *c.KernelDriver != nvidiaDriver:
		because(CardUnknown, "it is bound to %s", *c.KernelDriver)
	case problem != nil:
		because(CardUnknown, "%s", problem.Text)
	default:
		because(CardUnknown, "the driver does not answer for it: %s", strings.Join(c.Errors, "; "))
	}
}

func isLost(text string) bool { return strings.HasSuffix(text, LostSuffix) }
