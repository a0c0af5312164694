// SPDX-License-Identifier: Apache-2.0

package lxdinfo

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/canonical/lxd/shared/api"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
)

// Values are what is read and returned. Parts that were not asked for are null.
type Values struct {
	Installed    bool      `json:"installed"`
	Server       *Server   `json:"server"`
	Cluster      *Cluster  `json:"cluster"`
	StoragePools []Pool    `json:"storage_pools"`
	Networks     []Network `json:"networks"`
	Profiles     []Profile `json:"profiles"`
}

// Server is the local server.
type Server struct {
	Product                string   `json:"product"` // LXD or Incus
	Version                string   `json:"version"`
	Name                   string   `json:"name"`
	Socket                 string   `json:"socket"`
	HTTPSAddress           string   `json:"https_address"`
	ClusterAddress         string   `json:"cluster_address"`
	Clustered              bool     `json:"clustered"`
	CertificateFingerprint string   `json:"certificate_fingerprint"`
	StorageDrivers         []string `json:"storage_drivers"`
	APIExtensions          int      `json:"api_extensions"`
}

// Cluster is the cluster that the server is in.
type Cluster struct {
	Enabled bool            `json:"enabled"`
	Name    string          `json:"name"`
	Members []lxdapi.Member `json:"members"`
	Quorum  lxdapi.Quorum   `json:"quorum"`
}

// Pool is a storage pool on every member. A stand-alone server counts as one member of its own name.
type Pool struct {
	Name        string                `json:"name"`
	Driver      string                `json:"driver"`
	Status      string                `json:"status"`
	Description string                `json:"description"`
	Config      lxdapi.Config         `json:"config"`
	UsedBy      []string              `json:"used_by"`
	Members     map[string]PoolMember `json:"members"`
}

// PoolMember is a storage pool on one member. Sizes are in bytes.
type PoolMember struct {
	Status     string        `json:"status"`
	Config     lxdapi.Config `json:"config"`
	SpaceTotal uint64        `json:"space_total"`
	SpaceUsed  uint64        `json:"space_used"`
	Usable     bool          `json:"usable"`
	Error      string        `json:"error"`
}

// Network is a managed network on every member.
type Network struct {
	Name        string                   `json:"name"`
	Type        string                   `json:"type"`
	Status      string                   `json:"status"`
	Description string                   `json:"description"`
	Config      lxdapi.Config            `json:"config"`
	UsedBy      []string                 `json:"used_by"`
	Members     map[string]NetworkMember `json:"members"`
}

// NetworkMember is a network on one member.
type NetworkMember struct {
	Status    string        `json:"status"`
	Config    lxdapi.Config `json:"config"`
	State     string        `json:"state"` // of the interface: up or down
	Addresses []string      `json:"addresses"`
	Usable    bool          `json:"usable"`
	Error     string        `json:"error"`
}

// Profile is a profile of the default project.
type Profile struct {
	Name        string                   `json:"name"`
	Description string                   `json:"description"`
	Config      lxdapi.Config            `json:"config"`
	Devices     map[string]lxdapi.Config `json:"devices"`
	UsedBy      []string                 `json:"used_by"`
}

type host struct {
	ansible.ReadOnly
	args   Args
	server *lxdapi.Server // nil: there is none, and missing_ok is set
}

// Read gathers the parts that were asked for.
func (h *host) Read(context.Context) (Values, error) {
	var values Values

	if h.server == nil {
		return values, nil
	}

	values.Installed = true

	members, err := h.server.Members()
	if err != nil {
		return values, err
	}

	if h.args.wants("server") {
		values.Server = h.readServer()
	}

	if h.args.wants("cluster") {
		values.Cluster = &Cluster{
			Enabled: h.server.Clustered(), Name: h.server.ConfigText(lxdapi.ClusterNameKey),
			Members: append([]lxdapi.Member{}, members...), Quorum: lxdapi.MakeQuorum(members),
		}
	}

	if h.args.wants("storage_pools") {
		values.StoragePools, err = h.readPools(members)
	}

	if err == nil && h.args.wants("networks") {
		values.Networks, err = h.readNetworks(members)
	}

	if err == nil && h.args.wants("profiles") {
		values.Profiles, err = h.readProfiles()
	}

	return values, err
}

func (h *host) readServer() *Server {
	environment := h.server.Info.Environment
	server := &Server{
		Product: h.server.Product(), Version: environment.ServerVersion, Name: environment.ServerName, Socket: h.server.Socket,
		HTTPSAddress: h.server.ConfigText("core.https_address"), ClusterAddress: h.server.ConfigText("cluster.https_address"),
		Clustered: h.server.Clustered(), CertificateFingerprint: environment.CertificateFingerprint,
		StorageDrivers: []string{}, APIExtensions: len(h.server.Info.APIExtensions),
	}

	for _, driver := range environment.StorageSupportedDrivers {
		server.StorageDrivers = append(server.StorageDrivers, driver.Name)
	}

	slices.Sort(server.StorageDrivers)

	return server
}

// place is where an object is looked at: a member, or the stand-alone server itself.
type place struct {
	name   string
	target string // what requests name; empty on a stand-alone server
	online bool
}

func (h *host) places(members []lxdapi.Member) []place {
	if !h.server.Clustered() {
		return []place{{h.server.Info.Environment.ServerName, "", true}}
	}

	var places []place
	for _, member := range members {
		places = append(places, place{member.Name, member.Name, member.Online})
	}

	return places
}

const memberOffline = "the member is offline"

func (h *host) readPools(members []lxdapi.Member) ([]Pool, error) {
	var answers []api.StoragePool

	_, err := h.server.Get("/1.0/storage-pools?recursion=1", &answers)
	if err != nil {
		return nil, fmt.Errorf("reading storage pools: %w", err)
	}

	pools := make([]Pool, 0, len(answers))

	for _, answer := range answers {
		pool := Pool{
			Name: answer.Name, Driver: answer.Driver, Status: answer.Status, Description: answer.Description,
			Config: plain(answer.Config), UsedBy: list(answer.UsedBy), Members: map[string]PoolMember{},
		}

		for _, place := range h.places(members) {
			pool.Members[place.name] = h.readPoolMember(answer.Name, place)
		}

		pools = append(pools, pool)
	}

	slices.SortFunc(pools, func(a, b Pool) int { return strings.Compare(a.Name, b.Name) })

	return pools, nil
}

// readPoolMember looks at a pool on one member. That it cannot be used there is what the caller wants to know, so it is
// part of the answer and not an error.
func (h *host) readPoolMember(name string, place place) PoolMember {
	member := PoolMember{Config: lxdapi.Config{}}

	if !place.online {
		member.Error = memberOffline

		return member
	}

	var pool api.StoragePool

	_, err := h.server.Get(lxdapi.On(place.target, lxdapi.Path("storage-pools", name)), &pool)
	if err != nil {
		member.Error = err.Error()

		return member
	}

	member.Status, member.Config = pool.Status, plain(pool.Config)

	var resources api.ResourcesStoragePool

	_, err = h.server.Get(lxdapi.On(place.target, lxdapi.Path("storage-pools", name, "resources")), &resources)
	if err != nil {
		member.Error = err.Error()

		return member
	}

	member.SpaceTotal, member.SpaceUsed = resources.Space.Total, resources.Space.Used
	member.Usable = pool.Status == api.StoragePoolStatusCreated

	if !member.Usable {
		member.Error = "the pool is " + strings.ToLower(pool.Status) + " there"
	}

	return member
}

func (h *host) readNetworks(members []lxdapi.Member) ([]Network, error) {
	var answers []api.Network

	_, err := h.server.Get("/1.0/networks?recursion=1", &answers)
	if err != nil {
		return nil, fmt.Errorf("reading networks: %w", err)
	}

	networks := []Network{}

	for _, answer := range answers {
		if !answer.Managed {
			continue
		}

		network := Network{
			Name: answer.Name, Type: answer.Type, Status: answer.Status, Description: answer.Description,
			Config: plain(answer.Config), UsedBy: list(answer.UsedBy), Members: map[string]NetworkMember{},
		}

		for _, place := range h.places(members) {
			network.Members[place.name] = h.readNetworkMember(answer.Name, place)
		}

		networks = append(networks, network)
	}

	slices.SortFunc(networks, func(a, b Network) int { return strings.Compare(a.Name, b.Name) })

	return networks, nil
}

// readNetworkMember looks at a network on one member; see readPoolMember about errors.
func (h *host) readNetworkMember(name string, place place) NetworkMember {
	member := NetworkMember{Config: lxdapi.Config{}, Addresses: []string{}}

	if !place.online {
		member.Error = memberOffline

		return member
	}

	var network api.Network

	_, err := h.server.Get(lxdapi.On(place.target, lxdapi.Path("networks", name)), &network)
	if err != nil {
		member.Error = err.Error()

		return member
	}

	member.Status, member.Config = network.Status, plain(network.Config)

	var state api.NetworkState

	_, err = h.server.Get(lxdapi.On(place.target, lxdapi.Path("networks", name, "state")), &state)
	if err != nil {
		member.Error = err.Error()

		return member
	}

	member.State = state.State

	for _, address := range state.Addresses {
		if address.Scope == "global" {
			member.Addresses = append(member.Addresses, address.Address+"/"+address.Netmask)
		}
	}

	slices.Sort(member.Addresses)

	switch {
	case network.Status != api.NetworkStatusCreated:
		member.Error = "the network is " + strings.ToLower(network.Status) + " there"
	case state.State != "up":
		member.Error = "the interface is " + state.State
	default:
		member.Usable = true
	}

	return member
}

func (h *host) readProfiles() ([]Profile, error) {
	var answers []api.Profile

	_, err := h.server.Get("/1.0/profiles?recursion=1", &answers)
	if err != nil {
		return nil, fmt.Errorf("reading profiles: %w", err)
	}

	profiles := make([]Profile, 0, len(answers))
	for _, answer := range answers {
		profiles = append(profiles, Profile{
			Name: answer.Name, Description: answer.Description, Config: plain(answer.Config), Devices: answer.Devices, UsedBy: list(answer.UsedBy),
		})
	}

	slices.SortFunc(profiles, func(a, b Profile) int { return strings.Compare(a.Name, b.Name) })

	return profiles, nil
}

// plain leaves out this collection's own marks.
func plain(config lxdapi.Config) lxdapi.Config {
	shown, _, err := lxdapi.SplitMarks(config)
	if err != nil {
		return config // somebody wrote into our mark: show it
	}

	return shown
}

// list makes an absent list an empty one.
func list(values []string) []string { return append([]string{}, values...) }
