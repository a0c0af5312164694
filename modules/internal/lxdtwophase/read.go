// SPDX-License-Identifier: Apache-2.0

package lxdtwophase

import (
	"fmt"
	"maps"
	"net/url"
	"slices"

	"github.com/canonical/lxd/shared/api"

	"github.com/thinkube/infra/modules/internal/lxdapi"
)

// Target is one object on one server: what is read and worked on for a task.
type Target struct {
	Kind   Kind
	Name   string
	Server *lxdapi.Server
	// Explain gives the server's refusals the module's codes and hints.
	Explain func(error) error
}

// answer is the object as the API gives it; a pool has a driver, a network a type.
type answer struct {
	Name        string        `json:"name"`
	Driver      string        `json:"driver"`
	Type        string        `json:"type"`
	Managed     *bool         `json:"managed"` // networks only: false for an interface that the server merely sees
	Status      string        `json:"status"`
	Description string        `json:"description"`
	Config      lxdapi.Config `json:"config"`
	Locations   []string      `json:"locations"`
	UsedBy      []string      `json:"used_by"`
}

// Read gets the object from every member. What does not exist is a state, any other refusal an error.
func (t Target) Read() (State, error) {
	state := State{
		Server: t.Server.Info.Environment.ServerName, Clustered: t.Server.Clustered(), etags: map[string]string{},
	}

	err := t.readMembers(&state)
	if err != nil {
		return state, err
	}

	err = t.readObject(&state)
	if err != nil {
		return state, fmt.Errorf("reading %s %q: %w", t.Kind.Noun, t.Name, err)
	}

	return state, nil
}

func (t Target) readMembers(state *State) error {
	if !state.Clustered {
		state.Members = []ClusterMember{{Name: state.Server, Status: "Online"}}

		return nil
	}

	members, err := t.Server.Members()
	if err != nil {
		return err
	}

	for _, member := range members {
		state.Members = append(state.Members, ClusterMember{member.Name, member.Status, member.Address})
	}

	var cluster api.Cluster

	_, err = t.Server.Get("/1.0/cluster", &cluster)
	if err != nil {
		return fmt.Errorf("reading the cluster's member keys: %w", err)
	}

	for _, key := range cluster.MemberConfig {
		if key.Entity == t.Kind.Entity && !slices.Contains(state.MemberKeys, key.Key) {
			state.MemberKeys = append(state.MemberKeys, key.Key)
		}
	}

	slices.Sort(state.MemberKeys)

	return nil
}

func (t Target) readObject(state *State) error {
	var got answer

	etag, err := t.Server.Get(t.path(""), &got)
	if lxdapi.NotFound(err) || err == nil && got.Managed != nil && !*got.Managed {
		return nil
	}

	if err != nil {
		return err
	}

	plain, marks, err := lxdapi.SplitMarks(got.Config)
	if err != nil {
		return err
	}

	state.Marks, state.UsedBy, state.etags[""] = marks, got.UsedBy, etag
	state.Object = &Object{
		Name: got.Name, Type: got.Driver + got.Type, Status: got.Status, Description: got.Description,
		Config: lxdapi.Config{}, Members: map[string]Member{},
	}

	global, own := t.split(*state, plain)
	state.Object.Config = global

	if !state.Clustered {
		state.Object.Members[state.Server] = Member{got.Status, own}

		return nil
	}

	for _, member := range state.Members {
		if !slices.Contains(got.Locations, member.Name) {
			continue
		}

		err := t.readMember(state, member)
		if err != nil {
			return fmt.Errorf("on member %q: %w", member.Name, err)
		}
	}

	return nil
}

// readMember asks one member. Its answer mixes the cluster's keys with its own.
func (t Target) readMember(state *State, member ClusterMember) error {
	if !member.Online() {
		state.Object.Members[member.Name] = Member{StatusOffline, lxdapi.Config{}}

		return nil
	}

	var got answer

	etag, err := t.Server.Get(t.path(member.Name), &got)
	if err != nil {
		return err
	}

	_, own := t.split(*state, got.Config)
	state.Object.Members[member.Name] = Member{got.Status, own}
	state.etags[member.Name] = etag

	return nil
}

// split parts a member's answer into what all share and what is its own.
func (t Target) split(state State, config lxdapi.Config) (global, own lxdapi.Config) {
	global, own = lxdapi.Config{}, lxdapi.Config{}
	maps.Copy(global, config)

	for key, value := range config {
		if t.Kind.ForMember(key, state) {
			own[key] = value
			delete(global, key)
		}
	}

	return global, own
}

// path of the object; with a member, as that member has it.
func (t Target) path(member string) string {
	return lxdapi.On(member, lxdapi.Path(t.Kind.Collection, t.Name))
}

// collection is where objects are made; with a member, where they are defined.
func (t Target) collection(member string) string {
	path := lxdapi.Path(t.Kind.Collection)
	if member == "" {
		return path
	}

	return path + "?target=" + url.QueryEscape(member)
}
