// SPDX-License-Identifier: Apache-2.0

package lxdprofile

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
	"github.com/thinkube/infra/modules/internal/plan"
)

// The effects; apply.go does them.
type (
	createProfile struct {
		Profile Profile
		Marks   lxdapi.Marks
	}
	updateProfile struct {
		Profile Profile
		Marks   lxdapi.Marks
		etag    string
	}
	deleteProfile struct{}
)

func makePlan(args Args, current State) (plan.Plan[State], error) {
	if args.State == "absent" {
		return planAbsent(args, current)
	}

	out := plan.Plan[State]{After: current}
	object := fmt.Sprintf("profile %q", args.Name)
	wanted := makeWanted(args, current.Profile)
	reportKeys(&out, object, wanted)

	if current.Profile == nil {
		out.After.Profile, out.After.Marks = &wanted, lxdapi.Marks{Created: true}
		out.Add(plan.Create, object, createProfile{wanted, out.After.Marks}, "%s", summary(wanted)).After = wanted

		return out, nil
	}

	before, after := flatten(*current.Profile), flatten(wanted)
	if maps.Equal(before, after) {
		return out, nil
	}

	planUpdate(&out, object, current, wanted, current.Marks.Changed(before, after), "")

	return out, nil
}

// planUpdate adds the one request that gives a profile all its new fields.
func planUpdate(out *plan.Plan[State], object string, current State, wanted Profile, marks lxdapi.Marks, why string) {
	out.After.Profile, out.After.Marks = &wanted, marks
	lines := strings.Join(lxdapi.Differences(flatten(*current.Profile), flatten(wanted)), ", ")
	step := out.Add(plan.Change, object, updateProfile{wanted, marks, current.etag}, "%s(%s)", why, lines)
	step.Before, step.After = *current.Profile, wanted
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
		// `eth1: {}`, null, or null for all that it has, asks for its removal.
		combined := combine(wanted.Devices[name], device)
		if len(device) == 0 || len(combined) == 0 {
			delete(wanted.Devices, name)
		} else {
			wanted.Devices[name] = combined
		}
	}

	return wanted
}

// planAbsent undoes what this module did: a profile that it made is deleted, one that it changed gets back what it had,
// and one that it never touched is left alone. force deletes in every case.
func planAbsent(args Args, current State) (plan.Plan[State], error) {
	out := plan.Plan[State]{After: current}
	object := fmt.Sprintf("profile %q", args.Name)

	switch {
	case current.Profile == nil:
		return out, nil
	case !args.Force && len(current.Marks.Undo) > 0:
		fields, foreign := current.Marks.Restore(flatten(*current.Profile))
		for _, field := range foreign {
			out.Add(plan.Report, object, nil, "%s was changed by somebody else since and stays as it is", field)
		}

		planUpdate(&out, object, current, unflatten(args.Name, fields), lxdapi.Marks{}, "back to what it was before this module changed it ")

		return out, nil
	case !args.Force && !current.Marks.Created:
		out.Add(plan.Report, object, nil, "was not made by this module and is left alone; force: true deletes it")

		return out, nil
	case args.Name == "default":
		return out, ansible.Fail(CodeBuiltIn, "set state: present with the config you want", "%s: LXD never deletes it", object)
	case len(current.UsedBy) > 0:
		return out, ansible.Fail(CodeInUse, "remove it from these instances first", "%s is used by %q", object, current.UsedBy)
	}

	out.After = State{}
	out.Add(plan.Delete, object, deleteProfile{}, "").Before = *current.Profile

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

// flatten gives a profile's fields as texts: "description", "limits.cpu", "device eth0: network".
func flatten(profile Profile) lxdapi.Config {
	fields := maps.Clone(profile.Config)
	if fields == nil {
		fields = lxdapi.Config{}
	}

	if profile.Description != "" {
		fields["description"] = profile.Description
	}

	for name, device := range profile.Devices {
		for key, value := range device {
			fields["device "+name+": "+key] = value
		}
	}

	return fields
}

// unflatten is the way back. No config key has a blank in it, so the two cannot be mistaken for each other.
func unflatten(name string, fields lxdapi.Config) Profile {
	profile := Profile{Name: name, Config: lxdapi.Config{}, Devices: map[string]lxdapi.Config{}}

	for field, value := range fields {
		device, key, isDevice := strings.Cut(strings.TrimPrefix(field, "device "), ": ")

		switch {
		case field == "description":
			profile.Description = value
		case !isDevice:
			profile.Config[field] = value
		default:
			if profile.Devices[device] == nil {
				profile.Devices[device] = lxdapi.Config{}
			}

			profile.Devices[device][key] = value
		}
	}

	return profile
}
