// SPDX-License-Identifier: Apache-2.0

package zerotiernetwork

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/plan"
	"github.com/thinkube/infra/modules/internal/ztapi"
)

// State is what the controller says of the network.
type State struct {
	ID      string         `json:"network_id"` // empty: Central will choose it
	Network *ztapi.Network `json:"network"`    // nil: there is none
	Members []string       `json:"members,omitempty"`
}

type host struct {
	args       Args
	controller ztapi.Controller
	id         string // once it is known
	before     *ztapi.Network
}

// Read finds the network, and its members where it is to go.
func (h *host) Read(ctx context.Context) (State, error) {
	err := h.find(ctx)
	state := State{ID: h.id}

	if err != nil || h.id == "" {
		return state, err
	}

	state.Network, err = h.controller.Network(ctx, h.id)
	h.before = state.Network

	if err != nil || state.Network == nil || h.args.State != "absent" {
		return state, err
	}

	members, err := h.controller.Members(ctx, h.id)
	for _, member := range members {
		state.Members = append(state.Members, member.Node)
	}

	slices.Sort(state.Members)

	return state, err
}

// find makes the network's id out of the options.
func (h *host) find(ctx context.Context) error {
	switch {
	case h.id != "":
		return nil
	case h.args.Controller.Kind == ztapi.KindSelfHosted:
		return h.findOwn(ctx)
	case h.args.NetworkID != "":
		h.id = h.args.NetworkID
		return nil
	}

	ids, err := h.controller.Named(ctx, *h.args.Name)

	switch {
	case err != nil:
		return err
	case len(ids) > 1:
		return ansible.Fail(ansible.CodeInvalidArgument, "give network_id", "name: networks %s all have the name %q", strings.Join(ids, ", "), *h.args.Name)
	case len(ids) == 1:
		h.id = ids[0]
	}

	return nil
}

// findOwn refuses a network of another controller: this one would make one of that id, which no node could join.
func (h *host) findOwn(ctx context.Context) error {
	node, err := h.controller.Node(ctx)
	if err != nil {
		return err
	}

	h.id = h.args.NetworkID
	if h.id == "" {
		h.id = node + h.args.NetworkNumber
	}

	if h.id[:10] != node {
		return ansible.Fail(ansible.CodeInvalidArgument, "ask that controller, or give network_number",
			"network_id: %s belongs to controller %s, and this one is %s", h.id, h.id[:10], node)
	}

	return nil
}

// Apply does one step, and looks what the controller stored.
func (h *host) Apply(ctx context.Context, step plan.Step) error {
	switch do := step.Do.(type) {
	case setNetwork:
		stored, err := h.controller.SetNetwork(ctx, h.id, do.Change, do.New)
		if err != nil {
			return err
		}

		if h.id == "" {
			h.id = stored.ID
		}

		return h.judge(ctx, do, stored)
	case deleteNetwork:
		return h.controller.DeleteNetwork(ctx, h.id)
	}

	return ansible.Fail(ansible.CodeInternal, "", "unknown step %T", step.Do)
}

// judge compares what the controller stored. What is not what it was given is taken back: it may be open to everyone.
func (h *host) judge(ctx context.Context, do setNetwork, stored ztapi.Network) error {
	differs := compare(do.Change, stored)
	if len(differs) == 0 {
		return nil
	}

	err := h.takeBack(ctx, do)
	if err != nil {
		return ansible.Fail(ztapi.CodeStoredOtherwise, "look at the network", "the controller stored something else than it was given: %s; and it could not be put back: %w",
			strings.Join(differs, "; "), err)
	}

	return ansible.Fail(ztapi.CodeStoredOtherwise, "", "the controller stored something else than it was given: %s; what was before was put back", strings.Join(differs, "; "))
}

// takeBack deletes a network that this task made, or gives one the values back that it had.
func (h *host) takeBack(ctx context.Context, do setNetwork) error {
	if do.New {
		return h.controller.DeleteNetwork(ctx, h.id)
	}

	change := do.Change.Of(*h.before)

	stored, err := h.controller.SetNetwork(ctx, h.id, change, false)
	if err != nil {
		return err
	}

	if differs := compare(change, stored); len(differs) > 0 {
		return fmt.Errorf("the controller stored %s", strings.Join(differs, "; "))
	}

	return nil
}

// compare lists every field that was stored otherwise than it was sent.
func compare(sent ztapi.NetworkChange, stored ztapi.Network) []string {
	var differs []string

	check := func(name string, given bool, want, have any, same bool) {
		if given && !same {
			differs = append(differs, fmt.Sprintf("%s: %v in place of %v", name, have, want))
		}
	}

	checkOne(check, "name", sent.Name, stored.Name)
	checkOne(check, "description", sent.Description, stored.Description)
	checkOne(check, "private", sent.Private, stored.Private)
	checkOne(check, "broadcast", sent.Broadcast, stored.Broadcast)
	checkOne(check, "mtu", sent.MTU, stored.MTU)
	checkOne(check, "multicast_limit", sent.MulticastLimit, stored.MulticastLimit)
	checkSet(check, "pools", sent.Pools, stored.Pools)
	checkSet(check, "routes", sent.Routes, stored.Routes)
	checkOne(check, "v4_assign", sent.V4Assign, stored.V4Assign)
	checkOne(check, "v6_assign", sent.V6Assign, stored.V6Assign)
	checkOne(check, "dns", sent.DNS, stored.DNS)
	checkOne(check, "flow_rules", sent.FlowRules, stored.FlowRules)

	if sent.Rules != nil {
		check("rules", true, *sent.Rules, stored.Rules, sameRules(*sent.Rules, stored.Rules))
	}

	return differs
}

// checkSet is checkOne of a list whose order says nothing: a controller may have another.
func checkSet[T comparable](check func(string, bool, any, any, bool), name string, want *[]T, have []T) {
	if want != nil {
		check(name, true, *want, have, sameSet(*want, have))
	}
}

func checkOne[T any](check func(string, bool, any, any, bool), name string, want *T, have T) {
	if want != nil {
		check(name, true, *want, have, reflect.DeepEqual(*want, have))
	}
}
