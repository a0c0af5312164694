// SPDX-License-Identifier: Apache-2.0

package lxdprofile

import (
	"context"
	"fmt"
	"net/http"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/plan"
)

// Apply does one step of the plan.
func (h *host) Apply(ctx context.Context, step plan.Step) error {
	switch do := step.Do.(type) {
	case createProfile:
		// "Nothing was there" is recorded as well: what we change later is still ours to delete.
		err := h.records.Keep(h.record(), nil)
		if err != nil {
			return err
		}

		return h.server.Send(ctx, http.MethodPost, h.path(""), do.Profile, "")
	case updateProfile:
		err := h.records.Keep(h.record(), do.Before)
		if err != nil {
			return err
		}

		return h.server.Send(ctx, http.MethodPut, h.path(h.args.Name), do.Profile, do.etag)
	case restoreProfile:
		err := h.server.Send(ctx, http.MethodPut, h.path(h.args.Name), do.Profile, do.etag)
		if err != nil {
			return err
		}

		return h.records.Forget(h.record())
	case forgetProfile:
		return h.records.Forget(h.record())
	case deleteProfile:
		err := h.server.Send(ctx, http.MethodDelete, h.path(do.Name), nil, "")
		if err != nil {
			return err
		}

		return h.records.Forget(h.record())
	}

	return ansible.Fail(ansible.CodeInternal, "", "unknown step %s", fmt.Sprintf("%T", step.Do))
}
