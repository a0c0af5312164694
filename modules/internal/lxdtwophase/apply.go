// SPDX-License-Identifier: Apache-2.0

package lxdtwophase

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
	"github.com/thinkube/infra/modules/internal/plan"
)

// The effects. Each is one change of the server, so that a run that is cut between two steps leaves a state that this
// package knows.
type (
	// define tells a member about the object, with the keys of its own.
	define struct {
		Member string
		Type   string
		Config lxdapi.Config
	}
	// create makes the object on all members.
	create struct {
		Type        string
		Description string
		Config      lxdapi.Config
	}
	// change sets keys; an empty value removes one. Without a member it is for all, and sets the description too.
	change struct {
		Member      string
		Description string
		Set         lxdapi.Config
		Before      *Object // what to record as somebody else's; nil when the object is our own
		etag        string  // empty: the object was not there when this was planned
	}
	// giveBack is the last change of a restoration.
	giveBack struct{ change }
	// remove deletes the object from all members.
	remove struct{}
	// forget drops the record of an object that is gone already.
	forget struct{}
)

// Apply does one step of the plan.
func (t Target) Apply(ctx context.Context, step plan.Step) error {
	err := t.apply(ctx, step)
	if err != nil {
		return t.Explain(err)
	}

	return nil
}

func (t Target) apply(ctx context.Context, step plan.Step) error {
	switch do := step.Do.(type) {
	case define:
		body := t.body(do.Type, "", do.Config)

		return t.make(ctx, t.collection(do.Member), body)
	case create:
		return t.make(ctx, t.collection(""), t.body(do.Type, do.Description, do.Config))
	case change:
		err := t.Records.Keep(t.Name, do.Before)
		if err != nil {
			return err
		}

		return t.change(ctx, do)
	case giveBack:
		err := t.change(ctx, do.change)
		if err != nil {
			return err
		}

		return t.Records.Forget(t.Name)
	case remove:
		err := t.Server.Send(ctx, http.MethodDelete, t.path(""), nil, "")
		if err != nil && !lxdapi.NotFound(err) {
			return err
		}

		return t.Records.Forget(t.Name)
	case forget:
		return t.Records.Forget(t.Name)
	}

	return ansible.Fail(ansible.CodeInternal, "", "unknown step %s", fmt.Sprintf("%T", step.Do))
}

func (t Target) body(typ, description string, config lxdapi.Config) map[string]any {
	body := map[string]any{"name": t.Name, t.Kind.TypeField: typ, "config": config}
	if description != "" {
		body["description"] = description
	}

	return body
}

// make posts the object. It records first that nothing was there: a record of an earlier object of that name that
// somebody deleted would be given back instead of ours being deleted.
func (t Target) make(ctx context.Context, path string, body map[string]any) error {
	err := t.Records.Forget(t.Name)
	if err == nil {
		err = t.Records.Keep(t.Name, nil)
	}

	if err != nil {
		return err
	}

	err = t.Server.Send(ctx, http.MethodPost, path, body, "")

	// An earlier run may have been cut while the server worked on: the server holds this call until that is over, and
	// then says so. The texts are those of LXD's storage_pools.go and networks.go.
	if err != nil && (strings.Contains(err.Error(), "already defined on member") || strings.Contains(err.Error(), "is already created")) {
		return fmt.Errorf("%w: %w", ansible.ErrChanged, err)
	}

	return err
}

// change reads the object, puts the keys in and writes it back, provided that it still is what was planned from.
func (t Target) change(ctx context.Context, do change) error {
	var got answer

	etag, err := t.Server.Get(t.path(do.Member), &got)
	if err != nil {
		return err
	}

	if do.etag != "" && do.etag != etag {
		return ansible.ErrChanged
	}

	description := do.Description
	if do.Member != "" {
		description = got.Description
	}

	body := map[string]any{"description": description, "config": lxdapi.Merge(got.Config, do.Set)}

	return t.Server.Send(ctx, http.MethodPut, t.path(do.Member), body, etag)
}
