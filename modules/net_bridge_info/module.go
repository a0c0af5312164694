// SPDX-License-Identifier: Apache-2.0

// Package netbridgeinfo reads a host's bridges and how they are written down. It changes nothing.
package netbridgeinfo

import (
	"context"

	"github.com/thinkube/infra/modules/internal/ansible"
)

// Args are the module's options.
type Args struct {
	Name  *string `ansible:"name"`
	Probe bool    `ansible:"probe" default:"false"`
}

// Values are what the module returns.
type Values struct {
	Bridges []Bridge `json:"bridges"`
	Armed   *Armed   `json:"armed"`
}

// Module is net_bridge_info.
var Module = ansible.Module[Args, State, Values]{
	Name: "net_bridge_info",
	Open: func(_ context.Context, _ *ansible.Task, args Args) (ansible.Host[State], error) {
		return &host{args: args}, nil
	},
	Result: func(_ Args, read State) Values { return Values(read) },
}
