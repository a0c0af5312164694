// SPDX-License-Identifier: Apache-2.0

package lxdprofile

import (
	"context"
	"net/http"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
	"github.com/thinkube/infra/modules/internal/plan"
)

// Apply does one step of the plan.
func (h *host) Apply(ctx context.Context, step plan.Step) error {
	switch do := step.Do.(type) {
	case createProfile:
		return h.server.Send(ctx, http.MethodPost, h.path(""), marked(do.Profile, do.Marks), "")
	case updateProfile:
		return h.server.Send(ctx, http.MethodPut, h.path(h.args.Name), marked(do.Profile, do.Marks), do.etag)
	case deleteProfile:
		return h.server.Send(ctx, http.MethodDelete, h.path(h.args.Name), nil, "")
	}

	return ansible.Fail(ansible.CodeInternal, "", "unknown step %T", step.Do)
}

// marked gives the profile as it is sent.
func marked(profile Profile, marks lxdapi.Marks) Profile {
	profile.Config = marks.Into(profile.Config)

	return profile
}
