// SPDX-License-Identifier: Apache-2.0

package lxdprofile

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
	"github.com/thinkube/infra/modules/internal/plan"
	"github.com/thinkube/infra/modules/internal/record"
)

// The effects; apply.go does them.
type (
	createProfile struct{ Profile Profile }
	updateProfile struct {
		Before, Profile Profile
		etag            string
	}
	restoreProfile struct {
		Profile Profile
		etag    string
	}
	deleteProfile struct{ Name string }
	forgetProfile struct{ Name string } // the profile is gone already; our record of it is not
)

func makePlan(args Args, current State) (plan.Plan[State], error) {
	if args.State == "absent" {
		return planAbsent(args, current)
	}

	out := plan.Plan[State]{After: current}
	object := fmt.Sprintf("profile %q", args.Name)
	wanted := makeWanted(args, current.Profile)
	out.After.Profile = &wanted

	reportKeys(&out, object, wanted)

	switch {
	case current.Profile == nil:
		step := out.Add(plan.Create, object, createProfile{wanted}, "%s", summary(wanted))
		step.After = wanted
	case !reflect.DeepEqual(*current.Profile, wanted):
		step := out.Add(plan.Change, object, updateProfile{*current.Profile, wanted, current.etag},
			"(%s)", strings.Join(differences(*current.Profile, wanted), ", "))
		step.Before, step.After = *current.Profile, wanted
	}

	return out, nil
}

// makeWanted puts the options on top of what is there (mode merge) or in its place (mode replace).
func makeWanted(args Args, current *Profile) Profile {
	wanted := Profile{Name: args.Name, Config: lxdapi.Config{}, Devices: map[string]lxdapi.Config{}}
	if current != nil {
		wanted.Description = current.Description
		wanted.Config = maps.Clone(current.Config)
		maps.Copy(wanted.Devices, current.Devices)
	}

	if args.Description != nil {
		wanted.Description = *args.Description
	}

	combine := lxdapi.Merge
	if args.Mode == "replace" {
		combine = lxdapi.Replace
	}

	// An option that is not given is not managed, in both modes.
	if args.Config != nil {
		wanted.Config = combine(wanted.Config, args.config)
	}

	if args.Devices == nil {
		return wanted
	}

	if args.Mode == "replace" {
		wanted.Devices = map[string]lxdapi.Config{}
	}

	for name, device := range args.devices {
		if len(device) == 0 {
			delete(wanted.Devices, name) // `eth1: {}` or null asks for its removal

			continue
		}

		wanted.Devices[name] = combine(wanted.Devices[name], device)
	}

	return wanted
}

// planAbsent undoes what this module did: what it made is deleted, what it changed is restored, and what it never
// touched is left alone unless force is set.
func planAbsent(args Args, current State) (plan.Plan[State], error) {
	out := plan.Plan[State]{After: current}
	object := fmt.Sprintf("profile %q", args.Name)
	origin := current.Origin
	out.After.Origin = record.Origin[Profile]{}

	switch {
	case current.Profile == nil && origin.Recorded:
		out.Add(plan.Delete, "record of "+object, forgetProfile{args.Name}, "")

		return out, nil
	case current.Profile == nil:
		return out, nil
	case origin.Original != nil:
		out.After.Profile = origin.Original
		step := out.Add(plan.Change, object, restoreProfile{*origin.Original, current.etag},
			"back to what it was before this module changed it (%s)", strings.Join(differences(*current.Profile, *origin.Original), ", "))
		step.Before, step.After = *current.Profile, *origin.Original

		return out, nil
	case !origin.Recorded && !args.Force:
		out.Add(plan.Report, object, nil, "was not made by this module on this host and is left alone; force: true deletes it")

		return out, nil
	case args.Name == "default":
		return out, ansible.Fail(CodeBuiltIn, "set state: present with the config you want", "%s: LXD never deletes it", object)
	case len(current.UsedBy) > 0:
		return out, ansible.Fail(CodeInUse, "remove it from these instances first", "%s is used by %q", object, current.UsedBy)
	}

	out.After.Profile = nil
	step := out.Add(plan.Delete, object, deleteProfile{args.Name}, "")
	step.Before = *current.Profile

	return out, nil
}

// reportKeys tells of config keys that LXD would ignore or refuse later, when an instance of the other type starts.
func reportKeys(out *plan.Plan[State], object string, wanted Profile) {
	var containers, machines []string

	for _, key := range slices.Sorted(maps.Keys(wanted.Config)) {
		switch lxdapi.InstanceTypeOf(key) {
		case lxdapi.ContainerOnly:
			containers = append(containers, key)
		case lxdapi.MachineOnly:
			machines = append(machines, key)
		case lxdapi.UnknownKey:
			out.Add(plan.Report, object, nil, "config key %q is no instance option of LXD 4.0 to 6; is it misspelt?", key)
		}
	}

	if containers != nil && machines != nil {
		out.Add(plan.Report, object, nil, "has keys that only containers take %q and keys that only virtual machines take %q", containers, machines)
	}
}

func summary(profile Profile) string {
	return fmt.Sprintf("with %d config keys and devices %q", len(profile.Config), slices.Sorted(maps.Keys(profile.Devices)))
}

func differences(a, b Profile) []string {
	var lines []string

	if a.Description != b.Description {
		lines = append(lines, fmt.Sprintf("description %q", b.Description))
	}

	lines = append(lines, lxdapi.Differences(a.Config, b.Config)...)

	names := maps.Clone(a.Devices)
	maps.Copy(names, b.Devices)

	for _, name := range slices.Sorted(maps.Keys(names)) {
		for _, line := range lxdapi.Differences(a.Devices[name], b.Devices[name]) {
			lines = append(lines, "device "+name+": "+line)
		}
	}

	return lines
}
