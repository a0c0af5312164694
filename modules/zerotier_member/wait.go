// SPDX-License-Identifier: Apache-2.0

package zerotiermember

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/ztapi"
)

const (
	// firstPoll and lastPoll bound the time between looks; in between it is a tenth of what has passed, so that no wait
	// is more than about a tenth longer than it has to be.
	firstPoll = 20 * time.Millisecond
	lastPoll  = time.Second
	// notFoundFor is how long a controller has to say that there is no such network: one that was just made may need a
	// node's next question, which comes after five seconds.
	notFoundFor = 10 * time.Second
	// lingerFor is how long an address that this task took away has to go: one that stays is only warned of.
	lingerFor = 2 * time.Second
)

// settle waits for the node, then tests.
func (h *host) settle(ctx context.Context, state State) (State, error) {
	start := time.Now()

	state, err := h.await(ctx, state)
	state.waited = time.Since(start)

	if err != nil {
		return state, err
	}

	state, err = h.again(ctx, state)
	if err != nil {
		return state, err
	}

	h.warn(state)

	state.tests, err = h.probe(ctx, state)

	return state, err
}

// again looks what the controller has now, and sends once more what it lost when the node came, as Central v1 may.
func (h *host) again(ctx context.Context, state State) (State, error) {
	if h.stored == nil {
		return state, nil
	}

	member, err := h.controller.Member(ctx, h.args.NetworkID, state.Node)
	if err != nil {
		return state, err
	}

	state.Member = member

	planned, err := makePlan(h.args, state)
	if err != nil || h.args.Controller.Kind != ztapi.KindCentralV1 {
		return state, err
	}

	for _, step := range planned.Changes() {
		do, ok := step.Do.(setMember)
		if !ok || do.New {
			continue
		}

		err = h.set(ctx, do)
		if err != nil {
			return state, err
		}

		state.Member = h.stored
	}

	return state, nil
}

// await polls the node, and only the node: the controller has nothing to add.
func (h *host) await(ctx context.Context, state State) (State, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(h.args.WaitTimeout))
	defer cancel()

	start := time.Now()

	var (
		missing  time.Time // since when the status is NOT_FOUND
		trouble  error
		lastGood = state
	)

	for {
		reason := h.reason(lastGood)
		if reason == nil && trouble == nil && (!h.lingers(lastGood) || time.Since(start) > lingerFor) {
			return lastGood, nil
		}

		if lastGood.Joined == nil || lastGood.Joined.Status != "NOT_FOUND" {
			missing = time.Time{}
		} else if missing.IsZero() {
			missing = time.Now()
		}

		if final(lastGood) || !missing.IsZero() && time.Since(missing) > notFoundFor {
			return lastGood, reason
		}

		select {
		case <-ctx.Done():
			if reason == nil && trouble == nil {
				return lastGood, nil
			}

			return lastGood, waitedTooLong(reason, trouble, time.Since(start))
		case <-time.After(min(max(time.Since(start)/10, firstPoll), lastPoll)):
		}

		next := lastGood
		err := h.lookAgain(ctx, &next)

		switch {
		case err == nil:
			lastGood, trouble = next, nil
		case ctx.Err() == nil: // else it is only our own time that ended
			trouble = err
		}
	}
}

// lookAgain reads the node. A service that was started anew may have another port and another token.
func (h *host) lookAgain(ctx context.Context, state *State) error {
	state.Joined = nil

	err := h.lookAtNode(ctx, state)
	if err == nil {
		return nil
	}

	h.reopenService(ctx)

	if h.args.Controller.Kind == ztapi.KindSelfHosted && h.args.Controller.URL == "" { // it is the same service
		h.reopenController(ctx)
	}

	return err
}

func waitedTooLong(reason, trouble error, waited time.Duration) error {
	err := reason
	if trouble != nil {
		err = trouble
	}

	var failure *ansible.Failure
	if !errors.As(err, &failure) {
		return err
	}

	return ansible.Fail(failure.Code, failure.Hint, "after %s: %w", waited.Round(100*time.Millisecond), err)
}

// final tells of statuses that waiting does not change.
func final(state State) bool {
	return state.Joined != nil && slices.Contains([]string{"AUTHENTICATION_REQUIRED", "PORT_ERROR", "CLIENT_TOO_OLD"}, state.Joined.Status)
}

// reason says why the node is not yet where it is to be; nil when it is.
func (h *host) reason(state State) error {
	network, joined := h.args.NetworkID, state.Joined

	if joined == nil {
		return ansible.Fail(CodeRefusedByNode, "look who left it, and at the service's log", "the node %s is not in network %s any more", state.Node, network)
	}

	if !state.Online && h.args.WaitFor == "online" {
		return offline(state)
	}

	if h.args.WaitFor == "online" {
		return nil
	}

	switch joined.Status {
	case "OK":
	case "NOT_FOUND":
		return ansible.Fail(CodeNetworkNotFound, "look at the network's id", "network %s is not found: its controller %s says that there is none", network, network[:10])
	case "ACCESS_DENIED":
		return h.denied(state)
	case "REQUESTING_CONFIGURATION":
		return ansible.Fail(CodeNotReached, "look whether that controller runs, and whether UDP port 9993 of it or of a root server can be reached from here; a wrong network id looks the same",
			"node %s asks for network %s and gets no answer: controller %s not reached", state.Node, network, network[:10])
	case "AUTHENTICATION_REQUIRED":
		return ansible.Fail(CodeAuthentication, "sign in at "+joined.AuthenticationURL+" and run the task again; until then the node stays in the network", "network %s wants a person to sign in for node %s: %s", network, state.Node, joined.AuthenticationURL)
	default:
		return ansible.Fail(CodeRefusedByNode, "look at the service's log, and for a newer zerotier-one", "node %s has status %s in network %s", state.Node, joined.Status, network)
	}

	if !state.Online {
		return offline(state)
	}

	if missing := h.missingAddresses(state); h.args.WaitFor == "addresses" && len(missing) > 0 {
		return ansible.Fail(CodeAddressMissing, "look at the service's log, and whether a route of the network holds the address",
			"%s of node %s: not on device %s, which has %s", strings.Join(missing, " "), state.Node, joined.Device, show(state.Kernel))
	}

	if missing := h.missingRoutes(state); h.args.WaitFor == "addresses" && len(missing) > 0 {
		return ansible.Fail(CodeRouteMissing, "look whether the network has it; a default route needs allow_default, one to public addresses allow_global",
			"route %s does not lead over device %s of node %s", strings.Join(missing, ", "), joined.Device, state.Node)
	}

	return nil
}

func (h *host) denied(state State) error {
	hint := "authorise node " + state.Node + " in network " + h.args.NetworkID
	if state.Member != nil && state.Member.Authorized {
		hint = "the controller has it authorised: look whether it is the controller " + h.args.NetworkID[:10] + " of that network"
	}

	return ansible.Fail(CodeNotAuthorized, hint, "node %s is not authorised in network %s (ACCESS_DENIED)", state.Node, h.args.NetworkID)
}

func offline(state State) error {
	return ansible.Fail(CodeOffline, "look whether UDP port 9993 gets out of this host",
		"node %s is not online: it reaches no root server, and what it says of its networks can be old", state.Node)
}

// missingAddresses are those that the kernel should have and does not. What the service lists is no proof.
func (h *host) missingAddresses(state State) []string {
	have := hosts(state.Kernel)
	missing := []string{}

	for _, address := range slices.Concat(h.expected(state), h.args.WaitAddresses) {
		if !slices.Contains(have, address) && !slices.Contains(missing, address) {
			missing = append(missing, address)
		}
	}

	return missing
}

// lingers tells whether the node still has an address that this task took away.
func (h *host) lingers(state State) bool {
	if h.first == nil || h.first.Member == nil || h.stored == nil || state.Joined == nil || h.args.WaitFor != "addresses" {
		return false
	}

	have := slices.Concat(hosts(state.Joined.Assigned), hosts(state.Kernel))

	return slices.ContainsFunc(h.first.Member.Addresses, func(address string) bool {
		return !slices.Contains(h.stored.Addresses, address) && slices.Contains(have, address)
	})
}

// expected are what the service was assigned, which has the addresses that the member gets by itself too, and those of the
// member's record that a route covers, as many as reach a node: the node may not have heard of them yet.
func (h *host) expected(state State) []string {
	joined := state.Joined
	addresses := hosts(joined.Assigned)

	if state.Member != nil {
		covered := slices.DeleteFunc(slices.Clone(state.Member.Addresses), func(address string) bool { return !onLink(joined.Routes, address) })
		if len(covered) <= ztapi.MaxAddresses {
			addresses = append(addresses, covered...)
		}
	}

	return slices.DeleteFunc(addresses, func(text string) bool {
		addr, err := netip.ParseAddr(text)

		return err != nil || !ztapi.NodeTakes(addr, joined.Allow)
	})
}

// missingRoutes are those to wait for that the kernel does not have. A node makes none over itself.
func (h *host) missingRoutes(state State) []string {
	var missing []string

	for _, route := range h.args.WaitRoutes {
		want := ztapi.Route{Target: route.Target, Via: *route.Via}
		if slices.Contains(hosts(state.Kernel), want.Via) || ztapi.HasRoute(state.routes, want) {
			continue
		}

		text := want.Target
		if want.Via != "" {
			text += " via " + want.Via
		}

		missing = append(missing, text)
	}

	return missing
}

// hosts cuts the prefix lengths off.
func hosts(prefixes []string) []string {
	texts := []string{}

	for _, text := range prefixes {
		address, _, _ := strings.Cut(text, "/")
		texts = append(texts, address)
	}

	return texts
}

// warn says what the service and the kernel do not agree on.
func (h *host) warn(state State) {
	if state.Joined == nil || !state.Joined.Allow.Managed {
		return
	}

	assigned := hosts(state.Joined.Assigned)

	for _, address := range hosts(state.Kernel) {
		if !slices.Contains(assigned, address) {
			h.task.Warn("device %s has address %s, which is not assigned to node %s: an earlier one that the service left; it goes when the node leaves the network",
				state.Joined.Device, address, state.Node)
		}
	}

	if state.Member == nil {
		return
	}

	for _, address := range state.Member.Addresses {
		if !slices.Contains(assigned, address) && state.Managed == nil {
			h.task.Warn("address %s of member %s does not reach the node: no route of the network holds it, or there are more than %d", address, state.Node, ztapi.MaxAddresses)
		}
	}
}
