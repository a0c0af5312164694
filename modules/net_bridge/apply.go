// SPDX-License-Identifier: Apache-2.0

package netbridge

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/armed"
	"github.com/thinkube/infra/modules/internal/netconfig"
	"github.com/thinkube/infra/modules/internal/netprobe"
	"github.com/thinkube/infra/modules/internal/plan"
)

// grace is how long after its time an unconfirmed change may take to be undone.
const grace = 10 * time.Second

// Apply does one step of the plan.
func (h *host) Apply(ctx context.Context, step plan.Step) error {
	switch do := step.Do.(type) {
	case change:
		return h.change(ctx, do, step)
	case confirm:
		return h.confirm(ctx, do.Ticket)
	case rollback:
		return h.rollback(ctx, do.Ticket)
	case finish:
		err := store.Finish(do.Ticket)
		if err != nil {
			return err
		}

		return ansible.ErrChanged // what was asked for is planned now
	case forget:
		return store.Forget(do.Ticket)
	}

	return ansible.Fail(ansible.CodeInternal, "", "unknown step")
}

// change stages the change and, unless that was all, arms it. From then on the guard has it; this process only looks on.
func (h *host) change(ctx context.Context, do change, step plan.Step) error {
	made := do.Change
	made.ID, made.Made = h.ticket(), time.Now().UTC().Format(time.RFC3339)

	if after, ok := step.After.(map[string]any); ok {
		h.steps, _ = after["steps"].([]string)
	}

	err := netconfig.Check(ctx, netconfig.Judged{
		Manager: made.New.Name, Changes: made.Files, Expect: made.New.Expect, Links: made.After.Links, Up: made.New.Up,
	})
	if err != nil {
		return ansible.Fail(CodeInvalidConfig, "nothing was touched", "%w", err)
	}

	made.Probes, err = h.probes(ctx, made)
	if err != nil {
		return err
	}

	err = store.Stage(&made)
	if errors.Is(err, armed.ErrOutrun) {
		return ansible.ErrChanged
	}

	if err != nil || !do.Arm {
		return err
	}

	err = store.Arm(ctx, made.ID)
	if err != nil {
		return errors.Join(err, store.Forget(made.ID))
	}

	if made.Timeout == 0 {
		return h.lookOn(ctx, made.ID) // a new connection would prove nothing to anybody
	}

	err = h.task.Reconnect(made.ID, made.Timeout+grace)
	if err != nil {
		return err // this process is over; the next one goes on
	}

	return h.lookOn(ctx, made.ID)
}

// lookOn waits until the change is made. Without a new connection, confirming is left to another task.
func (h *host) lookOn(ctx context.Context, id string) error {
	now, err := h.await(ctx, id)
	if errors.Is(err, armed.ErrOutrun) {
		return nil // confirmed by itself, since nobody had to
	}

	if err != nil {
		return err
	}

	h.task.Warn("change %s is made and will be undone in %s unless a task over a new connection confirms it (phase: confirm)",
		id, time.Duration(now.Deadline-armed.Now()).Round(time.Second))

	return nil
}

// await waits until the change is made. That it was undone, or is left alone, is an error.
func (h *host) await(ctx context.Context, id string) (*armed.Change, error) {
	now, err := store.Await(ctx, id)

	switch {
	case errors.Is(err, armed.ErrUnguarded):
		return nil, inTheWay(show(now, false), "the host")
	case err != nil:
		return nil, err
	case now.Phase == armed.Stuck:
		return nil, undone(show(now, false))
	case now.Phase == armed.RolledBack:
		// It is told to whom it concerns, and can be forgotten.
		return nil, errors.Join(undone(show(now, false)), store.Forget(now.ID))
	}

	return now, nil
}

// probes completes the probes and drops those that fail already. What the user asked for by address is not dropped.
func (h *host) probes(ctx context.Context, made armed.Change) ([]netprobe.Probe, error) {
	var candidates, asked []netprobe.Probe

	for _, probe := range made.Probes {
		switch {
		case probe.Why == "controller":
			if from := armed.FindSession().From; from != "" {
				candidates = append(candidates, netprobe.Probe{Kind: netprobe.TCP, Target: net.JoinHostPort(from, "22"), Why: "controller"})
			}
		case probe.Listens:
			asked = append(asked, probe)
		default:
			candidates = append(candidates, probe)
		}
	}

	old := gateways(made)
	// A new gateway cannot be asked for yet; it must answer afterwards.
	kept := slices.DeleteFunc(slices.Clone(candidates), func(probe netprobe.Probe) bool {
		return probe.Kind != netprobe.Neighbour || slices.Contains(old, probe.Target)
	})
	known := slices.DeleteFunc(candidates, func(probe netprobe.Probe) bool { return slices.Contains(kept, probe) })

	return slices.Concat(netprobe.Passing(ctx, known, armed.Uplink(made.Before)), kept, asked), ctx.Err()
}

// gateways are those of the state before the change.
func gateways(made armed.Change) []string {
	var found []string

	for _, route := range made.Before.Routes {
		if route.Default() {
			found = append(found, route.Via)
		}
	}

	return found
}

// confirm waits for the change if it is not made yet, and makes it stay.
func (h *host) confirm(ctx context.Context, id string) error {
	now, err := h.await(ctx, id)
	if errors.Is(err, armed.ErrOutrun) {
		return nil // nobody had to confirm it
	}

	if err != nil {
		return err
	}

	if why := h.noProof(); why != "" {
		return ansible.Fail(CodeOldConnection, "confirm it over ssh; nothing is confirmed yet", "this connection proves nothing about the network: %s", why)
	}

	session := armed.FindSession()
	if session.SSH && session.Started < now.AppliedAt {
		// The change may have been made just after this connection was.
		err = h.task.Reconnect(id+" applied", time.Duration(now.Deadline-armed.Now())+grace)
		if err != nil {
			return err
		}

		return ansible.Fail(CodeOldConnection, "add a task \"ansible.builtin.meta: reset_connection\" before it; nothing is confirmed yet",
			"this connection is older than the change, and proves nothing about a new one")
	}

	err = store.Confirm(id)
	if !errors.Is(err, armed.ErrOutrun) {
		return err
	}

	// Somebody else decided in the last moment.
	_, err = h.await(ctx, id)
	if errors.Is(err, armed.ErrOutrun) {
		return nil
	}

	return err
}

// rollback has the guard undo the change; where there is none any more, this process does.
func (h *host) rollback(ctx context.Context, id string) error {
	err := store.Undo(ctx, id, "asked for")
	if errors.Is(err, armed.ErrOutrun) {
		return ansible.ErrChanged // confirmed, or gone
	}

	if err != nil {
		return err
	}

	return store.Forget(id)
}
