// SPDX-License-Identifier: Apache-2.0

package kernelcmdline

import (
	"fmt"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/bootloader"
	"github.com/thinkube/infra/modules/internal/ownfile"
	"github.com/thinkube/infra/modules/internal/plan"
)

// The effects.
type (
	// change writes the file and has the entries made anew.
	change struct {
		Loader  string           `json:"loader"`
		Changes []ownfile.Change `json:"changes,omitempty"`
		// Add and Remove are for loaders that are changed by their tool.
		Add      []string  `json:"add,omitempty"`
		Remove   []string  `json:"remove,omitempty"`
		Own      []string  `json:"own,omitempty"`      // those of Add that some entries have by themselves
		Original *Original `json:"original,omitempty"` // to be recorded
		Added    []string  `json:"added,omitempty"`    // these too, with those that are known
		Removed  []string  `json:"removed,omitempty"`
		// Present and Absent are what the entries must be like afterwards.
		Present []string `json:"present,omitempty"`
		Absent  []string `json:"absent,omitempty"`
	}
	// forget removes records.
	forget struct {
		All     bool     `json:"all,omitempty"`
		Added   []string `json:"added,omitempty"`
		Removed []string `json:"removed,omitempty"`
	}
)

func header(name string) string {
	return "# Written by thinkube.infra.kernel_cmdline (" + name + "); state: absent removes it.\n"
}

func makePlan(args Args, current State) (plan.Plan[State], error) {
	planned := plan.Plan[State]{After: current}
	planned.After.Entries = slices.Clone(current.Entries)

	for _, finding := range findings(args, current) {
		planned.Add(plan.Report, "kernel command line", nil, "%s", finding)
	}

	if args.State == "absent" && current.Original == nil {
		return planned, nil
	}

	err := checkLoader(args, current)
	if err == nil && args.State == "present" {
		err = checkQuoted(current, args.Absent)
	}

	if err != nil {
		return planned, err
	}

	if current.Loader == bootloader.GRUB {
		err = planDropIn(args, current, &planned)
	} else {
		planLine(args, current, &planned)
	}

	if err != nil {
		return planned, err
	}

	if current.ReadOnly && len(planned.Changes()) > 0 {
		return planned, ansible.Fail(CodeReadOnly, "mount it for writing", "/etc is read-only, and the boot loader's files are written there")
	}

	return planned, nil
}

func checkLoader(args Args, current State) error {
	if current.Loader == "" {
		found := strings.Join(current.Found, ", ")
		if found == "" {
			found = "none of " + strings.Join(bootloader.Names, ", ")
		}

		return ansible.Fail(CodeNoBootLoader, "set the parameters by hand, or name the boot loader", "boot loader %q is not found; there is: %s", args.BootLoader, found)
	}

	if current.Original != nil && current.Original.Loader != current.Loader {
		return ansible.Fail(CodeOtherLoader, "run it with state: absent and boot_loader: "+current.Original.Loader+" first",
			"the parameters were set for boot loader %q, and now %q is in charge", current.Original.Loader, current.Loader)
	}

	if len(current.Entries) == 0 && args.State == "present" {
		return ansible.Fail(CodeNoBootLoader, "have its tool make the entries first", "boot loader %q has no entry that starts Linux", current.Loader)
	}

	return nil
}

// lacks says what of the entries is not as wanted.
func lacks(entries []bootloader.Entry, present, absent []string) []string {
	var all []string

	for _, entry := range entries {
		for _, lack := range bootloader.Lacks(entry.Line, present, absent) {
			if !slices.Contains(all, lack) {
				all = append(all, lack)
			}
		}
	}

	return all
}

// planDropIn is for boot loaders with a place for additions.
func planDropIn(args Args, current State, planned *plan.Plan[State]) error {
	if current.File != nil && !strings.HasPrefix(current.File.Content, header(args.Name)) {
		return ansible.Fail(CodeForeignFile, "remove it, or choose another name", "file %q was not written by this module", current.File.Path)
	}

	do := change{Loader: current.Loader, Present: args.Present, Absent: args.Absent}
	path := bootloader.DropIn(current.Loader, args.Name)

	var wanted *ownfile.File
	if args.State == "present" {
		wanted = &ownfile.File{Path: path, Content: bootloader.RenderGRUB(header(args.Name), args.Present, args.Absent), Mode: 0o644}
	} else {
		do.Present, do.Absent = nil, nil
	}

	left := lacks(current.Entries, do.Present, do.Absent)
	if args.State == "present" && current.File == nil && current.Original == nil && len(left) == 0 {
		return nil // somebody else has seen to it
	}

	if !same(current.File, wanted) {
		made := current.NoFolder || current.Original != nil && current.Original.MadeFolder
		do.Changes = []ownfile.Change{{Path: path, Before: current.File, After: wanted, MadeFolder: made}}
	}

	if do.Changes == nil && len(left) == 0 && args.State == "present" {
		return nil
	}

	// With absent, the entries are made anew also when the file is gone already: a run may have ended in between.

	if current.Original == nil {
		do.Original = &Original{Loader: current.Loader, MadeFolder: current.NoFolder}
		planned.After.Original = do.Original
	}

	addChange(planned, args, do, left)
	planned.After.File, planned.After.NoFolder = wanted, false

	for i, entry := range planned.After.Entries {
		planned.After.Entries[i].Line = bootloader.Edit(entry.Line, do.Present, do.Absent)
	}

	if args.State == "absent" {
		addForget(planned, forget{All: true}, args.Name)
	}

	return nil
}

// checkQuoted refuses to leave out what has a space in quotes where the loader's file or tool takes lines for words.
func checkQuoted(current State, absent []string) error {
	if bootloader.LineFile(current.Loader) != "" {
		return nil // that file is read and written here
	}

	for _, entry := range current.Entries {
		for _, parameter := range entry.Line {
			quoted := strings.ContainsAny(parameter, `"' `)
			if quoted && len(bootloader.Lacks([]string{parameter}, nil, absent)) > 0 {
				return ansible.Fail(CodeQuoted, "take it out by hand, where the boot loader has it from",
					"%s: %s has a space in quotes, and boot loader %q cannot be told to leave that out", entry.Source, parameter, current.Loader)
			}
		}
	}

	return nil
}

func same(a, b *ownfile.File) bool { return a == nil && b == nil || a != nil && b != nil && *a == *b }

func addChange(planned *plan.Plan[State], args Args, do change, left []string) {
	planned.After.StartedSince = false
	verb := plan.Change

	switch {
	case args.State == "absent":
		verb = plan.Delete
	case do.Original != nil:
		verb = plan.Create
	}

	var parts []string

	for _, each := range do.Changes {
		if each.After == nil {
			parts = append(parts, "remove "+each.Path)
		} else {
			parts = append(parts, "write "+each.Path)
		}
	}

	parts = append(parts, left...)
	parts = append(parts, "have "+do.Loader+" take it")

	step := planned.Add(verb, fmt.Sprintf("kernel parameters %q", args.Name), do, "(%s)", strings.Join(parts, ", "))
	if len(planned.After.Entries) > 0 {
		step.Before = strings.Join(planned.After.Entries[0].Line, " ")
	}
}

func addForget(planned *plan.Plan[State], do forget, name string) {
	planned.Add(plan.Delete, fmt.Sprintf("record of kernel parameters %q", name), do, "")

	if do.All {
		planned.After.Original, planned.After.Added, planned.After.Removed = nil, nil, nil

		return
	}

	planned.After.Added = without(planned.After.Added, do.Added)
	planned.After.Removed = without(planned.After.Removed, do.Removed)
}

// without leaves out of a list what is in another.
func without(list, gone []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(each string) bool { return slices.Contains(gone, each) })
}

// planLine is for boot loaders that have one line only: a file that holds it, or a tool's own store.
func planLine(args Args, current State, planned *plan.Plan[State]) {
	present, absent := args.Present, args.Absent
	if args.State == "absent" {
		present, absent = nil, nil
	}

	// What an earlier run did and is no longer asked for is taken back.
	obsolete := without(current.Added, present)
	restored := slices.DeleteFunc(slices.Clone(current.Removed), func(parameter string) bool {
		return slices.ContainsFunc(absent, func(pattern string) bool { return bootloader.Matches(parameter, pattern) })
	})

	edit := func(line []string) []string {
		return bootloader.Edit(bootloader.Edit(without(line, obsolete), restored, nil), present, absent)
	}

	do := change{Loader: current.Loader, Present: present, Absent: absent}
	base := baseLine(current)
	wanted := edit(base)

	do.Add, do.Remove = without(wanted, base), without(base, wanted)
	for _, entry := range current.Entries {
		do.Add = union(do.Add, without(edit(entry.Line), entry.Line))
		do.Remove = union(do.Remove, without(entry.Line, edit(entry.Line)))
	}

	done := forget{Added: obsolete, Removed: restored, All: args.State == "absent"}

	if len(do.Add) == 0 && len(do.Remove) == 0 {
		if done.All || len(done.Added) > 0 || len(done.Removed) > 0 {
			addForget(planned, done, args.Name)
		}

		return
	}

	if path := bootloader.LineFile(current.Loader); path != "" {
		file := lineFile(current, path, wanted)
		if !same(current.File, file) {
			do.Changes = []ownfile.Change{{Path: path, Before: current.File, After: file, MadeFolder: current.NoFolder || current.Original != nil && current.Original.MadeFolder}}
		}

		planned.After.File = file
	}

	if current.Original == nil {
		do.Original = &Original{Loader: current.Loader, File: current.File, MadeFolder: current.NoFolder}
		if current.File == nil {
			do.Original.Base = base
		}

		planned.After.Original = do.Original
	}

	// What some entries had by themselves is not ours to take away from them.
	own := ofSomeEntries(current.Entries, do.Add)
	for _, parameter := range intersect(own, present) {
		planned.Add(plan.Report, "kernel command line", nil, "some entries of %s have %s by themselves, and the others get it: all of them keep it when this is taken back", do.Loader, parameter)
	}

	do.Own = own
	do.Added = without(without(intersect(do.Add, present), current.Added), own)
	do.Removed = without(slices.DeleteFunc(slices.Clone(do.Remove), func(parameter string) bool { return slices.Contains(obsolete, parameter) }), current.Removed)

	addChange(planned, args, do, describe(do))

	planned.After.Added, planned.After.Removed = sorted(union(current.Added, do.Added)), sorted(union(current.Removed, do.Removed))
	for i, entry := range planned.After.Entries {
		planned.After.Entries[i].Line = edit(entry.Line)
	}

	if done.All || len(done.Added) > 0 || len(done.Removed) > 0 {
		addForget(planned, done, args.Name)
	}
}

// ofSomeEntries gives those parameters that an entry has already; only where a loader's tool keeps a line for each kernel can
// others lack them.
func ofSomeEntries(entries []bootloader.Entry, parameters []string) []string {
	return slices.DeleteFunc(slices.Clone(parameters), func(parameter string) bool {
		return !slices.ContainsFunc(entries, func(entry bootloader.Entry) bool { return slices.Contains(entry.Line, parameter) })
	})
}

func describe(do change) []string {
	var parts []string
	for _, parameter := range do.Add {
		parts = append(parts, "add "+parameter)
	}

	for _, parameter := range do.Remove {
		parts = append(parts, "remove "+parameter)
	}

	return parts
}

func union(a, b []string) []string { return append(slices.Clone(a), without(b, a)...) }

func intersect(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(each string) bool { return !slices.Contains(b, each) })
}

func sorted(list []string) []string {
	slices.Sort(list)

	return list
}

// baseLine is the line as it is written down: in the file, or where there is none, what kernel-install would take, or what
// the newest entry has.
func baseLine(current State) []string {
	if current.File != nil {
		return bootloader.Split(current.File.Content)
	}

	base := current.Base
	if base == nil && len(current.Entries) > 0 {
		base = current.Entries[len(current.Entries)-1].Line
	}

	// kernel-install(8) puts the machine's id into each entry by itself.
	return slices.DeleteFunc(slices.Clone(base), func(parameter string) bool {
		return bootloader.Name(parameter) == "systemd.machine_id"
	})
}

// lineFile gives the file with the line. Once it says what it said at first, it is that file again, to the byte.
func lineFile(current State, path string, wanted []string) *ownfile.File {
	if current.Original != nil {
		original := current.Original.File
		if original != nil && slices.Equal(sorted(bootloader.Split(original.Content)), sorted(slices.Clone(wanted))) {
			return original
		}

		if original == nil && slices.Equal(sorted(slices.Clone(current.Original.Base)), sorted(slices.Clone(wanted))) {
			return nil
		}
	}

	file := ownfile.File{Path: path, Content: strings.Join(wanted, " ") + "\n", Mode: 0o644}
	if current.File != nil {
		file.Mode, file.UID, file.GID = current.File.Mode, current.File.UID, current.File.GID
	}

	return &file
}
