// SPDX-License-Identifier: Apache-2.0

// Package lxdprofile manages one LXD profile: its description, config and devices.
package lxdprofile

import (
	"context"
	"errors"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
)

// Args are the module's options.
type Args struct {
	Name        string                    `ansible:"name,required"`
	State       string                    `ansible:"state" choices:"present,absent" default:"present"`
	Description *string                   `ansible:"description"`
	Config      map[string]any            `ansible:"config"`
	Devices     map[string]map[string]any `ansible:"devices"`
	Mode        string                    `ansible:"mode" choices:"merge,replace" default:"merge"`
	Project     string                    `ansible:"project" default:"default"`
	Force       bool                      `ansible:"force" default:"false"`
	lxdapi.Options

	config  lxdapi.Config
	devices map[string]lxdapi.Config
}

// Values are what the module returns.
type Values struct {
	Profile *Profile `json:"profile"`
}

// Failure codes of this module.
const (
	CodeInUse   ansible.Code = "in_use"
	CodeBuiltIn ansible.Code = "built_in"
)

// Module is lxd_profile.
var Module = ansible.Module[Args, State, Values]{
	Name: "lxd_profile",
	Lock: lxdapi.Lock,
	Codes: lxdapi.Codes(map[ansible.Code]string{
		CodeInUse:   "the profile is to be deleted and instances still use it",
		CodeBuiltIn: "the profile is the built-in one, which LXD never deletes",
	}),
	Normalize: normalize,
	Open:      open,
	Plan:      makePlan,
	Result:    func(_ Args, final State) Values { return Values{Profile: final.Profile} },
}

func normalize(args *Args) error {
	errs := []error{lxdapi.CheckObjectName("name", args.Name), lxdapi.CheckObjectName("project", args.Project)}

	config, err := lxdapi.MakeConfig("config", args.Config)
	errs = append(errs, err)
	args.config = config
	args.devices = map[string]lxdapi.Config{}

	for name, device := range args.Devices {
		config, err := lxdapi.MakeConfig("devices["+name+"]", device)
		if err == nil && len(device) > 0 && config["type"] == "" && args.Mode == "replace" {
			err = errors.New("devices[" + name + "]: type is missing, for example type: nic")
		}

		errs = append(errs, err)
		args.devices[name] = config
	}

	return errors.Join(errs...)
}

func open(ctx context.Context, _ *ansible.Task, args Args) (ansible.Host[State], error) {
	server, err := lxdapi.Connect(ctx, args.Options)
	if err != nil {
		return nil, err
	}

	return &host{args: args, server: server}, nil
}
