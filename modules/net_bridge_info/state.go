// SPDX-License-Identifier: Apache-2.0

package netbridgeinfo

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/armed"
	"github.com/thinkube/infra/modules/internal/netconfig"
	"github.com/thinkube/infra/modules/internal/netprobe"
	"github.com/thinkube/infra/modules/internal/netstate"
)

// State is what was read.
type State struct {
	Bridges []Bridge
	Armed   *Armed
}

// Bridge is one bridge of the host.
type Bridge struct {
	Name          string   `json:"name"`
	MAC           string   `json:"mac"`
	MTU           int      `json:"mtu"`
	Up            bool     `json:"up"`
	Carrier       bool     `json:"carrier"`
	STP           bool     `json:"stp"`
	ForwardDelay  int      `json:"forward_delay"` // seconds
	VLANFiltering bool     `json:"vlan_filtering"`
	Ports         []Port   `json:"ports"`
	Addresses     []string `json:"addresses"`
	Gateways      []string `json:"gateways"`
	// Answering are the gateways that are there when they are looked for, by ARP or neighbour discovery.
	Answering []string `json:"answering"`
	Routes    []string `json:"routes"`
	// Managed tells of a bridge that net_bridge made.
	Managed bool   `json:"managed"`
	Manager string `json:"manager"`
	Files   []File `json:"files"`
	// Agrees tells whether kernel and files are as they were written down; null for bridges of others.
	Agrees      *bool    `json:"agrees"`
	Differences []string `json:"differences"`
}

// Port is one port of a bridge.
type Port struct {
	Name    string `json:"name"`
	MAC     string `json:"mac"`
	Carrier bool   `json:"carrier"`
	State   string `json:"state"`
	Managed bool   `json:"managed"`
}

// File is a configuration file that has to do with a bridge.
type File struct {
	Path  string `json:"path"`
	Owner string `json:"owner"`
}

// Armed is a change that is under way, or was undone.
type Armed struct {
	Ticket  string `json:"ticket"`
	Bridge  string `json:"bridge"`
	Phase   string `json:"phase"`
	Summary string `json:"summary"`
	Guarded bool   `json:"guarded"`
	Reason  string `json:"reason"`
	Failed  string `json:"failed"`
}

type host struct {
	ansible.ReadOnly
	args Args
}

// Read reads the kernel, the records, and the files that those name.
func (h *host) Read(ctx context.Context) (State, error) {
	state := State{Bridges: []Bridge{}}
	store := armed.Store{Dir: armed.DefaultDir}

	current, err := netstate.Read()
	if err != nil {
		return state, err
	}

	for _, link := range current.Links {
		if link.Kind != "bridge" || h.args.Name != nil && *h.args.Name != link.Name {
			continue
		}

		bridge, err := readBridge(store, current, link)
		if err != nil {
			return state, err
		}

		if h.args.Probe {
			bridge.probe(ctx)
		}

		state.Bridges = append(state.Bridges, bridge)
	}

	change, err := store.Load()
	if err != nil || change == nil {
		return state, err
	}

	guarded, err := store.Guarded()
	if err == nil {
		state.Armed = &Armed{
			Ticket: change.ID, Bridge: change.Bridge, Phase: string(change.Phase), Summary: change.Summary,
			Guarded: guarded && change.BootID == armed.BootID(), Reason: change.Reason, Failed: change.Failed,
		}
	}

	return state, err
}

// probe looks for the gateways.
func (b *Bridge) probe(ctx context.Context) {
	for _, gateway := range b.Gateways {
		passed := netprobe.Passing(ctx, []netprobe.Probe{{Kind: netprobe.Neighbour, Target: gateway, Why: "gateway"}}, b.Name)
		if len(passed) > 0 {
			b.Answering = append(b.Answering, gateway)
		}
	}
}

func readBridge(store armed.Store, current netstate.Net, link netstate.Link) (Bridge, error) {
	bridge := makeBridge(current, link)

	record, err := store.ReadRecord(link.Name)
	if err != nil {
		return bridge, err
	}

	for i := range bridge.Ports {
		bridge.Ports[i].Managed = record != nil && slices.Contains(record.Ports, bridge.Ports[i].Name)
	}

	if record == nil {
		config, err := netconfig.Read("", link, link.Name, "auto")
		if err != nil {
			return bridge, err
		}

		bridge.Manager = config.Manager
		if config.Applied != "" {
			bridge.Files = append(bridge.Files, File{config.Applied, config.Manager})
		}

		return bridge, nil
	}

	bridge.Managed, bridge.Manager = true, record.Source.Manager

	return bridge, compare(&bridge, current, record)
}

func makeBridge(current netstate.Net, link netstate.Link) Bridge {
	bridge := Bridge{
		Name: link.Name, MAC: link.MAC, MTU: link.MTU, Up: link.Up, Carrier: link.Carrier,
		Ports: []Port{}, Addresses: []string{}, Gateways: []string{}, Answering: []string{}, Routes: []string{}, Files: []File{}, Differences: []string{},
	}

	if link.Bridge != nil {
		bridge.STP, bridge.VLANFiltering = link.Bridge.STP, link.Bridge.VLANFiltering
		bridge.ForwardDelay = int(link.Bridge.ForwardDelay / 100)
	}

	for _, name := range current.Ports(link.Name) {
		port := current.Link(name)
		bridge.Ports = append(bridge.Ports, Port{Name: name, MAC: port.MAC, Carrier: port.Carrier, State: port.PortState})
	}

	for _, addr := range current.AddrsOf(link.Name) {
		bridge.Addresses = append(bridge.Addresses, addr.Prefix)
	}

	for _, route := range current.RoutesOf(link.Name) {
		bridge.Routes = append(bridge.Routes, route.String())

		if route.Default() && route.Via != "" {
			bridge.Gateways = append(bridge.Gateways, route.Via)
		}
	}

	return bridge
}

// compare tells what of the kernel and the files is not as it was written down when the bridge was made.
func compare(bridge *Bridge, current netstate.Net, record *armed.Record) error {
	for _, op := range netstate.Ops(current, armed.Static(record.Applied)) {
		// What somebody added to it is no disagreement.
		if !strings.HasPrefix(string(op.Verb), "delete") {
			bridge.Differences = append(bridge.Differences, "missing: "+op.String())
		}
	}

	for _, change := range record.Files {
		if change.After != nil {
			bridge.Files = append(bridge.Files, File{change.Path, record.Source.Manager})
		}

		have, err := netconfig.ReadFile("", change.Path)
		if err != nil {
			return err
		}

		if !reflect.DeepEqual(have, change.After) {
			bridge.Differences = append(bridge.Differences, fmt.Sprintf("file %q is not as it was written", change.Path))
		}
	}

	agrees := len(bridge.Differences) == 0
	bridge.Agrees = &agrees

	return nil
}
