// SPDX-License-Identifier: Apache-2.0

// Package lxdinfo reads what an LXD server and its cluster are and hold, as typed facts. It changes nothing.
package lxdinfo

import (
	"context"
	"errors"
	"slices"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
)

// Args are the module's options.
type Args struct {
	Gather    []string `ansible:"gather" choices:"server,cluster,storage_pools,networks,profiles" default:"server,cluster,storage_pools,networks,profiles"`
	MissingOK bool     `ansible:"missing_ok" default:"false"`
	lxdapi.Options
}

// Module is lxd_info.
var Module = ansible.Module[Args, Values, Values]{
	Name:   "lxd_info",
	Codes:  lxdapi.Codes(nil),
	Open:   open,
	Result: func(_ Args, final Values) Values { return final },
}

func open(ctx context.Context, _ *ansible.Task, args Args) (ansible.Host[Values], error) {
	server, err := lxdapi.Connect(ctx, args.Options)

	var failure *ansible.Failure
	if errors.As(err, &failure) && failure.Code == lxdapi.CodeNotInstalled && args.MissingOK {
		return &host{args: args}, nil
	}

	if err != nil {
		return nil, err
	}

	return &host{args: args, server: server}, nil
}

func (a Args) wants(part string) bool { return slices.Contains(a.Gather, part) }
