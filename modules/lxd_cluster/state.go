// SPDX-License-Identifier: Apache-2.0

package lxdcluster

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/canonical/lxd/shared/api"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
	"github.com/thinkube/infra/modules/internal/record"
)

// State is the server as it is now and, where it is to join, the cluster as a member of it sees it.
type State struct {
	Server  Server          `json:"server"`
	Cluster string          `json:"cluster"` // the name that this collection gave the cluster
	Members []lxdapi.Member `json:"members"`

	// Held lists what would be lost: by a join, everything on this server; by a removal, what lies on the member.
	Held []string `json:"held,omitempty"`

	Target *Target `json:"target,omitempty"` // the cluster that via or the token leads to
	Token  *Token  `json:"token,omitempty"`

	Origin record.Origin[Original] `json:"origin"`

	etag string // of the member, for changes to it
}

// Server is this host's server.
type Server struct {
	Product        string   `json:"product"`
	Version        string   `json:"version"`
	Extensions     int      `json:"extensions"` // number of API extensions
	Name           string   `json:"name"`
	Clustered      bool     `json:"clustered"`
	HTTPSAddress   string   `json:"https_address"`   // core.https_address
	ClusterAddress string   `json:"cluster_address"` // cluster.https_address
	Fingerprint    string   `json:"fingerprint"`     // of the certificate that it shows: in a cluster, the cluster's
	Addresses      []string `json:"addresses"`       // of this host
}

// Original is what a stand-alone server had before this module made it a member.
type Original struct {
	HTTPSAddress   string `json:"https_address"`
	ClusterAddress string `json:"cluster_address"`
}

// Target is the cluster to join, as one of its members describes it, and the way between it and this host.
type Target struct {
	Problem     string          `json:"problem,omitempty"` // why there is no cluster to join yet
	Clustered   bool            `json:"clustered"`
	Cluster     string          `json:"cluster"`
	Product     string          `json:"product"`
	Version     string          `json:"version"`
	Extensions  int             `json:"extensions"`
	Name        string          `json:"name"`
	Address     string          `json:"address"`
	Fingerprint string          `json:"fingerprint"`
	Members     []lxdapi.Member `json:"members"`
	Groups      []string        `json:"groups"`
	Keys        []memberKey     `json:"keys"`            // member-specific keys that a new member must give
	Back        string          `json:"back,omitempty"`  // why the member cannot connect to this host
	There       Probe           `json:"there,omitempty"` // what this host sees at the member's address
}

// Probe is what a connection to a server's address showed.
type Probe struct {
	Problem     string  `json:"problem,omitempty"`
	Fingerprint string  `json:"fingerprint,omitempty"`
	Skew        float64 `json:"skew,omitempty"` // seconds that the other clock is ahead; exact to about one second
}

type host struct {
	args    Args
	task    *ansible.Task
	server  *lxdapi.Server
	records record.Store
}

// Read asks this server and, when it is to join, a member of the cluster.
func (h *host) Read(ctx context.Context) (State, error) {
	var state State

	err := h.awaitJoin(ctx)
	if err != nil {
		return state, err
	}

	err = h.server.Refresh()
	if err != nil {
		return state, err
	}

	state.Cluster = h.server.ConfigText(lxdapi.ClusterNameKey)
	state.Server = h.readServer()

	state.Server.Addresses, err = localAddresses()
	if err != nil {
		return state, err
	}

	state.Members, err = h.server.Members()
	if err != nil {
		return state, err
	}

	state.Origin, err = record.ReadOrigin[Original](h.records, originRecord)
	if err != nil {
		return state, err
	}

	if member := findMember(state.Members, h.args.Name); member != nil {
		var ignored api.ClusterMember

		state.etag, err = h.server.Get(lxdapi.Path("cluster", "members", h.args.Name), &ignored)
		if err != nil {
			return state, fmt.Errorf("reading cluster member %q: %w", h.args.Name, err)
		}
	}

	err = h.readHeld(&state)
	if err != nil {
		return state, err
	}

	return state, h.readTarget(ctx, &state)
}

func (h *host) readServer() Server {
	environment := h.server.Info.Environment

	return Server{
		Product: h.server.Product(), Version: environment.ServerVersion, Extensions: len(h.server.Info.APIExtensions),
		Name: environment.ServerName, Clustered: h.server.Clustered(), Fingerprint: environment.CertificateFingerprint,
		HTTPSAddress: h.server.ConfigText("core.https_address"), ClusterAddress: h.server.ConfigText("cluster.https_address"),
	}
}

// readHeld lists what a join or a removal would destroy.
func (h *host) readHeld(state *State) error {
	var err error

	last := len(state.Members) == 1 && state.Members[0].Name == h.args.Name
	joins := !state.Server.Clustered && h.args.State == "present" && !h.args.Bootstrap
	leaves := state.Server.Clustered && h.args.State == "absent"

	switch {
	case joins, leaves && last:
		state.Held, err = h.server.Holdings("")
	case leaves:
		member := findMember(state.Members, h.args.Name)
		if member != nil && member.Online {
			state.Held, err = h.server.Holdings(h.args.Name)
		}
	}

	return err
}

// readTarget asks the cluster that this server is to join. A server that is in the named cluster already has no need to.
func (h *host) readTarget(ctx context.Context, state *State) error {
	settled := state.Server.Clustered && (h.args.Cluster != "" && h.args.Cluster == state.Cluster || h.args.JoinToken.IsSet())
	if h.args.State == "absent" || h.args.Bootstrap || settled {
		return nil
	}

	if h.args.JoinToken.IsSet() {
		token := *h.args.token
		token.Expired = !time.Now().Before(token.ExpiresAt)
		state.Token = &token
		state.Target = &Target{Clustered: true, Fingerprint: token.Fingerprint}
		state.Target.Address, state.Target.There = probeAny(ctx, token.Addresses)

		return nil
	}

	target := Target{}

	err := h.task.Ask(ctx, h.args.Via, "describe", describeRequest{Joining: h.args.Address, Clustered: state.Server.Clustered}, &target)
	if err != nil {
		return err
	}

	state.Target = &target
	if target.Clustered && !state.Server.Clustered {
		target.There = probe(ctx, target.Address)
	}

	return nil
}

// awaitJoin waits for a join that an earlier, interrupted task started: LXD goes on with it by itself.
func (h *host) awaitJoin(ctx context.Context) error {
	var byStatus map[string][]api.Operation

	_, err := h.server.Get("/1.0/operations?recursion=1", &byStatus)
	if err != nil {
		return fmt.Errorf("reading running operations: %w", err)
	}

	for _, operation := range byStatus["running"] {
		description := strings.ToLower(operation.Description)
		if strings.Contains(description, "joining cluster") || strings.Contains(description, "bootstrapping cluster") {
			// How it ended shows in the state that is read next.
			_, _ = h.server.Wait(ctx, operation.ID)
		}
	}

	return nil
}

func findMember(members []lxdapi.Member, name string) *lxdapi.Member {
	for i := range members {
		if members[i].Name == name {
			return &members[i]
		}
	}

	return nil
}

// localAddresses lists the host's IP addresses.
func localAddresses() ([]string, error) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("reading this host's addresses: %w", err)
	}

	var texts []string

	for _, address := range addresses {
		if prefix, ok := address.(*net.IPNet); ok && !prefix.IP.IsLoopback() && !prefix.IP.IsLinkLocalUnicast() {
			texts = append(texts, prefix.IP.String())
		}
	}

	slices.Sort(texts)

	return texts, nil
}

func compareText(a, b string) int { return cmp.Compare(a, b) }

func trimBrackets(host string) string {
	return strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
}
