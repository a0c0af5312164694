// SPDX-License-Identifier: Apache-2.0

package gpuinfo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/thinkube/infra/modules/internal/ansible"
)

// unit is what computes: a card, or an instance of one that is divided.
type unit struct {
	card *Card
	uuid string
	err  error
}

// compute has every card compute that is not reserved, all at the same time, each in a process of its own. The first
// failure that matters most is the task's, with all others in its text.
func (h *host) compute(ctx context.Context, values *Values) error {
	units, err := unitsOf(values)
	if err != nil {
		return err
	}

	var all sync.WaitGroup

	for i := range units {
		all.Add(1)

		go func() {
			defer all.Done()

			units[i].err = h.computeOn(ctx, units[i])
		}()
	}

	all.Wait()

	return verdict(units)
}

// unitsOf lists what has to compute. A card of which that cannot be said is an error: nobody would know what it can do.
func unitsOf(values *Values) ([]unit, error) {
	var (
		units   []unit
		cannot  []string
		problem = values.Problem
	)

	for i := range values.Cards {
		card := &values.Cards[i]

		switch {
		case card.State == CardReserved:
		case card.State != CardOK:
			cannot = append(cannot, fmt.Sprintf("card %s: %s", card.Address, *card.Reason))
		case card.MIG != nil && card.MIG.Enabled && len(card.MIG.Devices) == 0:
			cannot = append(cannot, fmt.Sprintf("card %s: MIG is on, and it is divided into no instance that could compute", card.Address))
		case card.MIG != nil && card.MIG.Enabled:
			for _, device := range card.MIG.Devices {
				units = append(units, unit{card: card, uuid: device.UUID})
			}
		default:
			units = append(units, unit{card: card, uuid: *card.UUID})
		}
	}

	switch {
	case problem != nil:
		return nil, ansible.Fail(CodeNotChecked, problem.Hint, "nothing was computed: %s", problem.Text)
	case len(cannot) > 0:
		return nil, ansible.Fail(CodeCUDAFailed, "nothing was computed on the others either; leave out cuda_check to see all cards",
			"not every card can compute: %s", strings.Join(cannot, "; "))
	case len(units) == 0:
		return nil, ansible.Fail(CodeNotChecked, "to use a card here, give it back first", "nothing was computed: every card is reserved for a guest")
	}

	return units, nil
}

func (h *host) computeOn(ctx context.Context, unit unit) error {
	reply, err := h.ask(ctx, ServiceCompute, Request{Root: h.root, Address: unit.card.Address, UUID: unit.uuid})

	name := unit.card.Address
	if unit.uuid != *unit.card.UUID {
		name += " (" + unit.uuid + ")"
	}

	switch {
	case err != nil:
		return fmt.Errorf("card %s: %w", name, err)
	case reply.Wrong != "":
		return ansible.Fail(CodeWrongResult, "do not trust this card: look for its ECC and Xid errors in the kernel's log, and have it checked",
			"card %s computed wrong: %s", name, reply.Wrong)
	case reply.Problem != nil:
		return ansible.Fail(CodeCUDAFailed, reply.Problem.Hint, "card %s did not compute: %s", name, reply.Problem.Text)
	case reply.Failed != "":
		return ansible.Fail(CodeCUDAFailed, "run the task without cuda_check to see the card's state; look for Xid errors in the kernel's log",
			"card %s did not compute: %s", name, reply.Failed)
	}

	return nil
}

// verdict marks the cards that computed, or gives all failures as one: a wrong result before a hang before the others.
func verdict(units []unit) error {
	var (
		failed []error
		worst  *ansible.Failure
	)

	yes := true

	for _, unit := range units {
		if unit.err == nil {
			unit.card.ComputeVerified = &yes

			continue
		}

		failed = append(failed, unit.err)

		var failure *ansible.Failure
		if !errors.As(unit.err, &failure) {
			return unit.err // the task was called off
		}

		if worst == nil || rank(failure.Code) < rank(worst.Code) {
			worst = failure
		}
	}

	if worst == nil {
		return nil
	}

	texts := make([]string, 0, len(failed))
	for _, each := range failed {
		texts = append(texts, each.Error())
	}

	return &ansible.Failure{Code: worst.Code, Hint: worst.Hint, Err: errors.New(strings.Join(texts, "; "))}
}

func rank(code ansible.Code) int {
	switch code {
	case CodeWrongResult:
		return 0
	case ansible.CodeTimeout:
		return 1
	default:
		return 2
	}
}
