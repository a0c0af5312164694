// SPDX-License-Identifier: Apache-2.0

// Package lxdtwophase manages objects that an LXD cluster makes in two phases: storage pools and networks. First the
// object is defined on every member, with the config keys that belong to that member alone; then it is created for the
// whole cluster, with the keys that all share. Each phase can be cut at any point, and the server keeps what was done:
// the half-made object is an ordinary state here, and the plan goes on from it. A stand-alone server makes the same
// object in one call.
//
// It owns how the object is read per member, planned, made, changed, given back and deleted. What the keys mean, and
// what must hold before anything is made, belongs to the modules.
package lxdtwophase

import (
	"maps"
	"slices"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
)

// Failure codes that modules of such objects share.
const (
	CodeImmutable       ansible.Code = "immutable"
	CodeMissingOnMember ansible.Code = "missing_on_member"
	CodeUnavailable     ansible.Code = "unavailable"
	CodeInUse           ansible.Code = "in_use"
)

// Codes says what they mean, for a module's list; own adds the module's own.
func Codes(own map[ansible.Code]string) map[ansible.Code]string {
	codes := map[ansible.Code]string{
		CodeImmutable:       "a value that is only taken at creation differs from what is there",
		CodeMissingOnMember: "the object is created and a cluster member does not have it",
		CodeUnavailable:     "the object exists and a cluster member could not bring it up",
		CodeInUse:           "the object is to be deleted and is still used",
	}
	maps.Copy(codes, own)

	return lxdapi.Codes(codes)
}

// The states an object has, for the cluster and on each member. StatusOffline is this package's: the object is defined
// on the member, and the member cannot be asked.
const (
	StatusPending     = "Pending"
	StatusCreated     = "Created"
	StatusErrored     = "Errored"
	StatusUnavailable = "Unavailable"
	StatusOffline     = "Offline"
)

// Kind is a kind of object.
type Kind struct {
	Noun       string   // as people call it: "storage pool"
	Collection string   // in API paths: "storage-pools"
	Entity     string   // in the cluster's list of what a joining member must tell: "storage-pool"
	TypeField  string   // the API field of its type: "driver"
	MemberKeys []string // config keys that every member has for itself, in all versions of the server
	// GlobalOnly tells of types that no member is told about beforehand: they are created in one call. May be nil.
	GlobalOnly func(typ string) bool
}

// State is such an object as it is now, with what is needed to plan for it.
type State struct {
	Object    *Object      `json:"object"`            // nil: there is none
	Marks     lxdapi.Marks `json:"marks,omitzero"`    // what this collection did to it
	UsedBy    []string     `json:"used_by,omitempty"` // API paths of what uses it
	Server    string       `json:"server"`            // name of the member that was asked
	Clustered bool         `json:"clustered"`
	// Members are the cluster's; a stand-alone server is its own only member.
	Members []ClusterMember `json:"members"`
	// MemberKeys are keys that the server itself says belong to a member. It says so for existing objects only.
	MemberKeys []string `json:"member_keys,omitempty"`

	etags map[string]string // by member; "" is the cluster's
}

// ClusterMember is a member, whether it has the object or not.
type ClusterMember struct {
	Name    string `json:"name"`
	Status  string `json:"status"`
	Address string `json:"address,omitempty"` // host:port that the other members use
}

// Online tells whether the member answers. An evacuated one does.
func (m ClusterMember) Online() bool { return m.Status == "Online" || m.Status == "Evacuated" }

// Object is the object's settings. Config has the keys that all members share, Members the rest.
type Object struct {
	Name        string            `json:"name"`
	Type        string            `json:"type"`
	Status      string            `json:"status"`
	Description string            `json:"description"`
	Config      lxdapi.Config     `json:"config"`
	Members     map[string]Member `json:"members"`
}

// Member is the object on one member. A member without an entry does not have it.
type Member struct {
	Status string        `json:"status"`
	Config lxdapi.Config `json:"config"`
}

// clone copies the object, so that a planned future shares nothing with the present.
func (o *Object) clone() *Object {
	if o == nil {
		return nil
	}

	twin := *o
	twin.Config = maps.Clone(o.Config)
	twin.Members = map[string]Member{}

	for name, member := range o.Members {
		twin.Members[name] = Member{member.Status, maps.Clone(member.Config)}
	}

	return &twin
}

// created tells whether the object is made: what is not can neither be used nor changed.
func (o *Object) created() bool { return o != nil && o.Status == StatusCreated }

// halfMade tells of an object that was announced to members, or whose creation failed on one. Any other status than this
// and "created" is that of an object that exists: a stand-alone server gives its own for it, such as "unavailable".
func (o *Object) halfMade() bool { return o.Status == StatusPending || o.Status == StatusErrored }

// begun tells whether an attempt to create the object got so far that the server took the keys that all members share.
func (o *Object) begun() bool { return o.Status == StatusErrored || len(o.Config) > 0 }

// fields gives the settings as texts by name: "description", "user.note", "member n2: size".
func (o *Object) fields() lxdapi.Config {
	fields := lxdapi.Config{}
	if o == nil {
		return fields
	}

	maps.Copy(fields, o.Config)

	if o.Description != "" {
		fields["description"] = o.Description
	}

	for name, member := range o.Members {
		for key, value := range member.Config {
			fields[memberField(name, key)] = value
		}
	}

	return fields
}

// memberField names a member's own key. No config key has a blank in it, so it cannot be mistaken for one.
func memberField(member, key string) string { return "member " + member + ": " + key }

// ForMember tells whether a key belongs to each member alone.
func (k Kind) ForMember(key string, state State) bool {
	return slices.Contains(k.MemberKeys, key) || slices.Contains(state.MemberKeys, key)
}

// twoPhases tells whether members are told about the object before it is created.
func (k Kind) twoPhases(typ string, state State) bool {
	return state.Clustered && (k.GlobalOnly == nil || !k.GlobalOnly(typ))
}

// names lists the members in their order.
func (s State) names() []string {
	var names []string
	for _, member := range s.Members {
		names = append(names, member.Name)
	}

	return names
}

// offline lists the members that do not answer.
func (s State) offline() []string {
	var names []string

	for _, member := range s.Members {
		if !member.Online() {
			names = append(names, member.Name)
		}
	}

	return names
}
