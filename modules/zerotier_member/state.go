// SPDX-License-Identifier: Apache-2.0

package zerotiermember

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/plan"
	"github.com/thinkube/infra/modules/internal/ztapi"
)

// State is what the host and the controller say of the membership.
type State struct {
	Node   string        `json:"node_id"` // empty where no service is installed
	Online bool          `json:"online"`
	Joined *ztapi.Joined `json:"network"`          // nil: not joined
	Kernel []string      `json:"kernel_addresses"` // on the network's device, with prefix lengths
	Member *ztapi.Member `json:"member"`           // nil: the controller has no record, or is not asked
	// Others are the addresses of other members, and whose they are, where that was looked at.
	Others map[string]string `json:"others,omitempty"`
	// Managed are the network's routes, where they were looked at.
	Managed []ztapi.Route `json:"managed_routes,omitempty"`
	// Given are the families, IPv4 and IPv6, of which the controller gives members addresses by itself, where that was
	// looked at.
	Given []string `json:"given_by_itself,omitempty"`

	routes []ztapi.Route // of the kernel, over the network's device, where they are waited for
	before *ztapi.Member
	waited time.Duration
	tests  []ProbeResult
}

type host struct {
	args       Args
	task       *ansible.Task
	service    *ztapi.Service   // nil: none on this host, or not concerned
	controller ztapi.Controller // nil: not concerned

	first  *State        // what was there before the task did anything
	last   State         // what was seen last
	stored *ztapi.Member // what the controller said that it has, after a change by this task
	// promised is the name of a record that this task made at Central v1, which may show it only when the node has asked.
	promised string
	undo     undo
}

// Read gives the state. When nothing is left to do for it, the node is given its time to get there, and is tested: a
// membership that is written down is not yet one that works.
func (h *host) Read(ctx context.Context) (State, error) {
	state, err := h.look(ctx)

	if err == nil && h.first == nil {
		first := state
		h.first = &first
	}

	if err == nil && h.mustWait(state) {
		state, err = h.settle(ctx, state)
	}

	state.before = nil
	if h.first != nil {
		state.before = h.first.Member
	}

	h.last = state

	if err == nil {
		err = h.holds(state)
	}

	return state, h.rollBack(ctx, err)
}

// holds fails when something that this task changed did not stay: what it did besides is put back then.
func (h *host) holds(state State) error {
	if h.undo == (undo{}) {
		return nil
	}

	planned, err := makePlan(h.args, state)
	if err != nil || len(planned.Changes()) == 0 {
		return err
	}

	return ansible.Fail(ansible.CodeNotConverged, "something changes it back: a controller gives addresses by itself unless no_auto_assign_ips is true, and an old service ignores settings that it does not know",
		"every step was done, but this is still to do: %q", plan.Lines(planned.Changes()))
}

// mustWait tells whether everything is said and the node is to follow.
func (h *host) mustWait(state State) bool {
	if h.task.Check || h.service == nil || !h.args.Wait || h.args.State != "present" {
		return false
	}

	if h.args.Authorized != nil && !*h.args.Authorized {
		return false // there is nothing to wait for
	}

	planned, err := makePlan(h.args, state)

	return err == nil && len(planned.Changes()) == 0
}

// look reads the state as it is now.
func (h *host) look(ctx context.Context) (State, error) {
	state := State{Kernel: []string{}}

	if h.args.NodeID != nil {
		state.Node = *h.args.NodeID
	}

	if h.service != nil {
		err := h.lookAtNode(ctx, &state)
		if err != nil {
			return state, err
		}
	}

	if h.controller == nil || state.Node == "" {
		return state, nil
	}

	return state, h.lookAtController(ctx, &state)
}

func (h *host) lookAtNode(ctx context.Context, state *State) error {
	status, err := h.service.Status(ctx)
	if err != nil {
		return err
	}

	state.Node, state.Online = status.Address, status.Online

	state.Joined, err = h.service.Network(ctx, h.args.NetworkID)
	if err == nil && state.Joined != nil {
		state.Kernel, err = ztapi.KernelAddresses(state.Joined.Device)
	}

	if err == nil && state.Joined != nil && len(h.args.WaitRoutes) > 0 {
		state.routes, err = ztapi.KernelRoutes(state.Joined.Device)
	}

	return err
}

// lookAtController makes few requests: Central answers twenty a second. Routes and the addresses of others are looked at
// once, and only when addresses are given; after a change its answer says what is stored, until the node is there.
func (h *host) lookAtController(ctx context.Context, state *State) error {
	if h.first != nil {
		state.Others, state.Managed, state.Given = h.first.Others, h.first.Managed, h.first.Given
	}

	// The answer to a change is the record as it is stored. Only a name that Central may lose has to be looked at again.
	if h.stored != nil && (h.service != nil && h.args.Wait || h.service == nil && h.promised == "") {
		state.Member = h.stored
		return nil
	}

	if h.first == nil && h.args.Addresses != nil && h.args.State == "present" {
		return h.lookAtOthers(ctx, state)
	}

	var err error

	state.Member, err = h.controller.Member(ctx, h.args.NetworkID, state.Node)
	if err == nil && state.Member != nil && state.Member.Name == "" && h.promised != "" {
		h.task.Warn("the name of member %s is not there yet: Central loses it until the node has asked for the first time; run this task again when it has", state.Node)

		state.Member.Name = h.promised
	}

	if err != nil || state.Member != nil || h.args.Controller.Kind == ztapi.KindSelfHosted || !h.task.Check {
		return err
	}

	// Central's 404 does not say what it lacks. Without check mode, the change is answered.
	network, err := h.controller.Network(ctx, h.args.NetworkID)
	if err == nil && network == nil {
		err = ztapi.UnknownNetwork(h.args.NetworkID, "of kind "+h.args.Controller.Kind)
	}

	return err
}

// lookAtOthers reads all members in place of one, to see whose addresses are whose. The network is read only from a
// self-hosted controller: every request of Central counts.
func (h *host) lookAtOthers(ctx context.Context, state *State) error {
	if h.args.Controller.Kind == ztapi.KindSelfHosted {
		err := h.lookAtNetwork(ctx, state)
		if err != nil {
			return err
		}
	}

	members, err := h.controller.Members(ctx, h.args.NetworkID)
	if err != nil {
		return err
	}

	state.Others = map[string]string{}

	for _, member := range members {
		if strings.EqualFold(member.Node, state.Node) {
			state.Member = &member
			continue
		}

		for _, address := range member.Addresses {
			state.Others[address] = member.Node
		}
	}

	return nil
}

func (h *host) lookAtNetwork(ctx context.Context, state *State) error {
	network, err := h.controller.Network(ctx, h.args.NetworkID)
	if err == nil && network == nil {
		err = ztapi.UnknownNetwork(h.args.NetworkID, "of kind "+h.args.Controller.Kind)
	}

	if err != nil {
		return err
	}

	state.Managed, state.Given = network.Routes, nil

	for _, pool := range network.Pools {
		addr, err := netip.ParseAddr(pool.Start)

		family, on := "IPv4", network.V4Assign
		if err == nil && addr.Is6() {
			family, on = "IPv6", network.V6Assign.Pools
		}

		if err == nil && on && !slices.Contains(state.Given, family) {
			state.Given = append(state.Given, family)
		}
	}

	return nil
}
