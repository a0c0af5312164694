// SPDX-License-Identifier: Apache-2.0

package zerotiermember

import (
	"context"
	"time"

	"github.com/thinkube/infra/modules/internal/ansible"
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
	stored *ztapi.Member // what the controller said that it has, after a change by this task
	undo   undo
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

	return state, h.rollBack(ctx, err)
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

	return err
}

// lookAtController makes few requests: Central answers twenty a second. Routes and the addresses of others are looked at
// once, and only when addresses are given; after a change its answer says what is stored, until the node is there.
func (h *host) lookAtController(ctx context.Context, state *State) error {
	if h.first != nil {
		state.Others, state.Managed = h.first.Others, h.first.Managed
	}

	if h.stored != nil && h.service != nil && h.args.Wait {
		state.Member = h.stored
		return nil
	}

	var err error

	selfHosted := h.args.Controller.Kind == ztapi.KindSelfHosted
	if selfHosted && h.first == nil && h.args.Addresses != nil && len(*h.args.Addresses) > 0 && h.args.State == "present" {
		return h.lookAtNetwork(ctx, state)
	}

	state.Member, err = h.controller.Member(ctx, h.args.NetworkID, state.Node)
	if err != nil || state.Member != nil || selfHosted || !h.task.Check {
		return err
	}

	// Central's 404 does not say what it lacks. Without check mode, the change is answered.
	network, err := h.controller.Network(ctx, h.args.NetworkID)
	if err == nil && network == nil {
		err = ztapi.UnknownNetwork(h.args.NetworkID, "of kind "+h.args.Controller.Kind)
	}

	return err
}

func (h *host) lookAtNetwork(ctx context.Context, state *State) error {
	network, err := h.controller.Network(ctx, h.args.NetworkID)
	if err == nil && network == nil {
		err = ztapi.UnknownNetwork(h.args.NetworkID, "of kind "+h.args.Controller.Kind)
	}

	if err != nil {
		return err
	}

	state.Managed = network.Routes

	members, err := h.controller.Members(ctx, h.args.NetworkID)
	if err != nil {
		return err
	}

	state.Others = map[string]string{}

	for _, member := range members {
		if member.Node == state.Node {
			state.Member = &member
			continue
		}

		for _, address := range member.Addresses {
			state.Others[address] = member.Node
		}
	}

	return nil
}
