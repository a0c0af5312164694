// SPDX-License-Identifier: Apache-2.0

package lxdprofile

import (
	"context"
	"fmt"
	"net/url"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
	"github.com/thinkube/infra/modules/internal/record"
)

// State is a profile as it is now, and as it was before this module changed it.
type State struct {
	Profile *Profile               `json:"profile"`           // nil: there is none
	Origin  record.Origin[Profile] `json:"origin"`            // whose it is, and what it was before us
	UsedBy  []string               `json:"used_by,omitempty"` // API paths of the instances that use it

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
	args    Args
	task    *ansible.Task
	server  *lxdapi.Server
	records record.Store
}

// Read gets the profile. A profile that does not exist is a state, any other refusal an error.
func (h *host) Read(context.Context) (State, error) {
	var state State

	var profile struct {
		Profile
		UsedBy []string `json:"used_by"`
	}

	etag, err := h.server.Get(h.path(h.args.Name), &profile)
	if err != nil && !lxdapi.NotFound(err) {
		return state, fmt.Errorf("reading profile %q: %w", h.args.Name, err)
	}

	if err == nil {
		state.Profile, state.UsedBy, state.etag = &profile.Profile, profile.UsedBy, etag
	}

	state.Origin, err = record.ReadOrigin[Profile](h.records, h.record())

	return state, err
}

func (h *host) path(name string) string {
	path := lxdapi.Path("profiles")
	if name != "" {
		path = lxdapi.Path("profiles", name)
	}

	return path + "?project=" + url.QueryEscape(h.args.Project)
}

func (h *host) record() string { return h.args.Project + "/" + h.args.Name }
