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
	// create makes the object on all members. Once an attempt has begun, it has no config.
	create struct {
		Type        string
		Description string
		Config      lxdapi.Config
	}
	// changeOwn sets keys of one member; an empty value removes one.
	changeOwn struct {
		Member string
		Set    lxdapi.Config
		etag   string // empty: it will not be what it was when this was planned
	}
	// change sets what all members share, and on a stand-alone server everything.
	change struct {
		Description string
		Set         lxdapi.Config
		Marks       lxdapi.Marks
		etag        string
	}
	// remove deletes the object from all members.
	remove struct{}
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
		return t.make(ctx, t.collection(do.Member), t.body(do.Type, "", do.Config))
	case create:
		return t.make(ctx, t.collection(""), t.body(do.Type, do.Description, do.Config))
	case changeOwn:
		return t.write(ctx, t.path(do.Member), do.etag, func(got answer) (string, lxdapi.Config, error) {
			return got.Description, lxdapi.Merge(got.Config, do.Set), nil
		})
	case change:
		return t.write(ctx, t.path(""), do.etag, func(got answer) (string, lxdapi.Config, error) {
			plain, _, err := lxdapi.SplitMarks(got.Config)

			return do.Description, do.Marks.Into(lxdapi.Merge(plain, do.Set)), err
		})
	case remove:
		return t.Server.Send(ctx, http.MethodDelete, t.path(""), nil, "")
	}

	return ansible.Fail(ansible.CodeInternal, "", "unknown step %T", step.Do)
}

func (t Target) body(typ, description string, config lxdapi.Config) map[string]any {
	return map[string]any{"name": t.Name, t.Kind.TypeField: typ, "description": description, "config": config}
}

func (t Target) make(ctx context.Context, path string, body map[string]any) error {
	err := t.Server.Send(ctx, http.MethodPost, path, body, "")

	// An earlier run may have been cut while the server worked on: the server holds this call until that is over, and
	// then says so. The texts are those of LXD's storage_pools.go and networks.go.
	if err != nil && (strings.Contains(err.Error(), "already defined on member") || strings.Contains(err.Error(), "is already created")) {
		return fmt.Errorf("%w: %w", ansible.ErrChanged, err)
	}

	return err
}

// write reads the object, puts the new settings in and writes it back, provided that it still is what was planned from.
func (t Target) write(ctx context.Context, path, planned string, settings func(answer) (string, lxdapi.Config, error)) error {
	var got answer

	etag, err := t.Server.Get(path, &got)
	if err != nil {
		return err
	}

	if planned != "" && planned != etag {
		return ansible.ErrChanged
	}

	description, config, err := settings(got)
	if err != nil {
		return err
	}

	return t.Server.Send(ctx, http.MethodPut, path, map[string]any{"description": description, "config": config}, etag)
}
