// SPDX-License-Identifier: Apache-2.0

package lxdprofile

import (
	"context"
	"fmt"
	"net/url"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
)

// State is a profile as it is now.
type State struct {
	Profile *Profile     `json:"profile"`           // nil: there is none
	Marks   lxdapi.Marks `json:"marks,omitzero"`    // what this collection did to it
	UsedBy  []string     `json:"used_by,omitempty"` // API paths of the instances that use it

	etag string
}

// Profile is what can be set of a profile.
type Profile struct {
	Name        string                   `json:"name"`
	Description string                   `json:"description"`
	Config      lxdapi.Config            `json:"config"`
	Devices     map[string]lxdapi.Config `json:"devices"`
}

type host struct {
	args   Args
	server *lxdapi.Server
}

// Read gets the profile. A profile that does not exist is a state, any other refusal an error.
func (h *host) Read(context.Context) (State, error) {
	var state State

	err := h.checkProject()
	if err != nil {
		return state, err
	}

	var profile struct {
		Profile
		UsedBy []string `json:"used_by"`
	}

	etag, err := h.server.Get(h.path(h.args.Name), &profile)
	if lxdapi.NotFound(err) {
		return state, nil
	}

	if err == nil {
		profile.Config, state.Marks, err = lxdapi.SplitMarks(profile.Config)
	}

	if err != nil {
		return state, fmt.Errorf("reading profile %q: %w", h.args.Name, err)
	}

	state.Profile, state.UsedBy, state.etag = &profile.Profile, profile.UsedBy, etag

	return state, nil
}

// checkProject tells a project that does not exist from a profile that does not.
func (h *host) checkProject() error {
	var ignored struct{}

	_, err := h.server.Get(lxdapi.Path("projects", h.args.Project), &ignored)
	if lxdapi.NotFound(err) {
		return ansible.Fail(ansible.CodeInvalidArgument, "make it first: lxc project create "+h.args.Project, "project %q does not exist", h.args.Project)
	}

	return err
}

func (h *host) path(name string) string {
	path := lxdapi.Path("profiles")
	if name != "" {
		path = lxdapi.Path("profiles", name)
	}

	return path + "?project=" + url.QueryEscape(h.args.Project)
}
