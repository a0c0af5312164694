// SPDX-License-Identifier: Apache-2.0

package lxdnetwork

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/canonical/lxd/shared/api"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
	"github.com/thinkube/infra/modules/internal/lxdtwophase"
)

// State is a network as it is now. What is only of use before it gets its address is read only then.
type State struct {
	lxdtwophase.State

	// Unmanaged are members that have an interface of the network's name, which is none of the server's networks.
	Unmanaged []string `json:"unmanaged,omitempty"`
	// Missing are the interfaces that members do not have and the network is to use there, by member.
	Missing map[string][]string `json:"missing,omitempty"`
	// Subnets are those that are in use already.
	Subnets []Subnet `json:"subnets,omitempty"`
}

// Subnet is a subnet and who has it.
type Subnet struct {
	Subnet string `json:"subnet"`
	Owner  string `json:"owner"` // in words: `interface "eth0" of member "n1"`
}

type host struct {
	args   Args
	task   *ansible.Task
	server *lxdapi.Server
	target lxdtwophase.Target
}

// Read gets the network, and what stands in the way of making it.
func (h *host) Read(context.Context) (State, error) {
	shared, err := h.target.Read()
	state := State{State: shared}
	h.hideSecrets(state.Object)

	if err != nil || h.args.State == "absent" {
		return state, err
	}

	made := state.Object != nil && state.Object.Status == lxdtwophase.StatusCreated
	if !made {
		err = errors.Join(h.readUnmanaged(&state), h.readMissing(&state))
	}

	if err == nil && (!made || len(newSubnets(h.args, state)) > 0) {
		err = h.readSubnets(&state)
	}

	return state, err
}

// hideSecrets keeps passwords of BGP peers out of everything that is shown.
func (h *host) hideSecrets(object *lxdtwophase.Object) {
	configs := []lxdapi.Config{h.args.wanted.Config}
	if object != nil {
		configs = append(configs, object.Config)
	}

	for _, config := range configs {
		for key, value := range config {
			if isSecret(key) {
				h.task.Hide(ansible.NewSecret(value))
			}
		}
	}
}

// on gives the member that a request is for: none on a stand-alone server.
func on(state *State, member string) string {
	if !state.Clustered {
		return ""
	}

	return member
}

// readUnmanaged looks for an interface of the network's name on members where the network is not made yet. Whether a
// defined network's interface exists is not told by the network, but by its state.
func (h *host) readUnmanaged(state *State) error {
	for _, member := range state.Members {
		if !member.Online() || state.Object != nil && state.Object.Members[member.Name].Status == lxdtwophase.StatusCreated {
			continue
		}

		found, err := h.interfaceState(on(state, member.Name), h.args.Name)
		if err != nil {
			return fmt.Errorf("looking for an interface %q on member %q: %w", h.args.Name, member.Name, err)
		}

		if found != nil {
			state.Unmanaged = append(state.Unmanaged, member.Name)
		}
	}

	return nil
}

// readMissing looks for the interfaces that the network is to use on each member.
func (h *host) readMissing(state *State) error {
	for _, member := range state.Members {
		if !member.Online() {
			continue
		}

		for _, name := range usedInterfaces(kind.Own(h.args.wanted, state.State, member.Name)) {
			found, err := h.interfaceState(on(state, member.Name), name)
			if err != nil {
				return fmt.Errorf("looking for interface %q on member %q: %w", name, member.Name, err)
			}

			if found == nil {
				if state.Missing == nil {
					state.Missing = map[string][]string{}
				}

				state.Missing[member.Name] = append(state.Missing[member.Name], name)
			}
		}
	}

	return nil
}

// usedInterfaces are those that a member's own keys name. An entry of external_interfaces with slashes is one that the
// server makes itself.
func usedInterfaces(own lxdapi.Config) []string {
	var names []string

	for _, name := range append(strings.Split(own["bridge.external_interfaces"], ","), own["parent"]) {
		name = strings.TrimSpace(name)
		if name != "" && !strings.Contains(name, "/") {
			names = append(names, name)
		}
	}

	return names
}

// interfaceState gives an interface's addresses; nil if there is no such interface.
func (h *host) interfaceState(member, name string) (*api.NetworkState, error) {
	var found api.NetworkState

	_, err := h.server.Get(lxdapi.On(member, lxdapi.Path("networks", name, "state")), &found)
	if lxdapi.NotFound(err) {
		return nil, nil
	}

	return &found, err
}

// readSubnets collects the subnets of the server's other networks and of the members' interfaces.
func (h *host) readSubnets(state *State) error {
	var networks []api.Network

	_, err := h.server.Get("/1.0/networks?recursion=1", &networks)
	if err != nil {
		return fmt.Errorf("reading the other networks: %w", err)
	}

	var names []string

	for _, network := range networks {
		if network.Name == h.args.Name {
			continue
		}

		names = append(names, network.Name)

		if network.Managed {
			state.add(network.Config["ipv4.address"], fmt.Sprintf("network %q", network.Name))
			state.add(network.Config["ipv6.address"], fmt.Sprintf("network %q", network.Name))
		}
	}

	for _, member := range state.Members {
		if !member.Online() {
			continue
		}

		err := h.readInterfaces(state, member, names)
		if err != nil {
			return err
		}
	}

	slices.SortFunc(state.Subnets, func(a, b Subnet) int { return strings.Compare(a.Owner+a.Subnet, b.Owner+b.Subnet) })
	state.Subnets = slices.Compact(state.Subnets)

	return nil
}

// readInterfaces asks a member for the addresses of its interfaces. A server lists its own only (GET /1.0/networks knows
// no target), so other members are asked for interfaces of the names that this one has and for their network cards; the
// address that they have in the cluster is known in any case.
func (h *host) readInterfaces(state *State, member lxdtwophase.ClusterMember, names []string) error {
	if address, err := netip.ParseAddrPort(member.Address); err == nil {
		state.add(netip.PrefixFrom(address.Addr(), address.Addr().BitLen()).String(), fmt.Sprintf("the address of member %q", member.Name))
	}

	if member.Name != state.Server {
		cards, err := h.cards(member.Name)
		if err != nil {
			return err
		}

		names = append(slices.Clone(names), cards...)
	}

	slices.Sort(names)

	for _, name := range slices.Compact(names) {
		found, err := h.interfaceState(on(state, member.Name), name)
		if err != nil {
			return fmt.Errorf("reading interface %q of member %q: %w", name, member.Name, err)
		}

		if found == nil {
			continue
		}

		for _, address := range found.Addresses {
			if address.Scope == "global" {
				state.add(address.Address+"/"+address.Netmask, fmt.Sprintf("interface %q of member %q", name, member.Name))
			}
		}
	}

	return nil
}

// cards lists the network cards of a member.
func (h *host) cards(member string) ([]string, error) {
	var resources api.Resources

	_, err := h.server.Get(lxdapi.On(member, "/1.0/resources"), &resources)
	if err != nil {
		return nil, fmt.Errorf("reading the network cards of member %q: %w", member, err)
	}

	var names []string

	for _, card := range resources.Network.Cards {
		for _, port := range card.Ports {
			if port.ID != "" {
				names = append(names, port.ID)
			}
		}
	}

	return names, nil
}

// add notes a subnet; "none" and an unset address are none.
func (s *State) add(text, owner string) {
	prefix, err := netip.ParsePrefix(text)
	if err == nil {
		s.Subnets = append(s.Subnets, Subnet{prefix.Masked().String(), owner})
	}
}
