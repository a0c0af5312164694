// SPDX-License-Identifier: Apache-2.0

package gpuvfio

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/initramfs"
	"github.com/thinkube/infra/modules/internal/ownfile"
	"github.com/thinkube/infra/modules/internal/pci"
	"github.com/thinkube/infra/modules/internal/plan"
	"github.com/thinkube/infra/modules/internal/vfio"
)

// The effects.
type (
	// prepare has the host do it when it starts: files, and the initramfs images that have to be made again.
	prepare struct {
		Records []Record          `json:"records,omitempty"`
		Changes []ownfile.Change  `json:"changes,omitempty"`
		Images  []initramfs.Image `json:"images,omitempty"`
		Rule    string            `json:"rule,omitempty"` // what the images are to have of it; empty: no rule
		Modules []string          `json:"modules,omitempty"`
		Folders []string          `json:"folders,omitempty"` // to be recorded: they are made for the files
	}
	// sweep removes what a run that was killed has left.
	sweep struct {
		Paths []string `json:"paths"`
	}
	// bind moves the functions of a card to VFIO.
	bind struct {
		Records []Record    `json:"records,omitempty"`
		Moves   []vfio.Move `json:"moves"`
		// Prepared tells that the next start of the host does it as well.
		Prepared bool `json:"prepared,omitempty"`
	}
	// release gives the functions of a card back.
	release struct {
		Moves   []vfio.Move `json:"moves"`
		Modules []string    `json:"modules,omitempty"` // of the drivers, in the same order
	}
	// forget removes the records.
	forget struct {
		Addresses []string `json:"addresses,omitempty"`
		Folders   []string `json:"folders,omitempty"`
	}
)

func makePlan(args Args, current State) (plan.Plan[State], error) {
	planned := plan.Plan[State]{After: copyState(current)}

	if args.State == "absent" {
		args.Stage = stageOf(current.Boot) // what stays is done as it was; the option is for what is wanted
	}

	targets, err := findTargets(args, &current)
	if err != nil {
		return planned, err
	}

	err = checkFiles(args, current, targets)
	if err != nil {
		return planned, err
	}

	addSweep(current, &planned)
	reportTaken(args, current, targets, &planned)
	addStale(current, targets, &planned)
	reportBuiltIn(args, current, targets, &planned)

	// What is prepared for the next start comes first: if making an initramfs fails, nothing has moved yet.
	err = addPrepare(args, current, targets, &planned)
	if err == nil {
		err = addReleases(args, current, targets, &planned)
	}

	if err != nil {
		return planned, err
	}

	addForgetFolders(&planned)

	// To take something back is no reason to move what stays.
	if args.State == "present" {
		err = addBinds(args, current, targets, &planned)
		reportNoUse(args, targets, &planned)
	}

	return planned, err
}

// copyState copies as deep as the plan changes it.
func copyState(state State) State {
	state.PCI.Devices = slices.Clone(state.PCI.Devices)
	state.PCI.VFIOGroups = slices.Clone(state.PCI.VFIOGroups)
	state.Records = slices.Clone(state.Records)
	state.Boot.Files = slices.Clone(state.Boot.Files)
	state.Boot.Images = slices.Clone(state.Boot.Images)

	return state
}

// findTargets gives all functions that are to be reserved, in order, each with its driver.
func findTargets(args Args, current *State) ([]target, error) {
	var cards []string

	var err error

	switch {
	case args.State == "absent":
		return keptTargets(args, current), nil
	case args.Select != nil:
		err = checkKept(current)
		if err == nil {
			cards, err = selectCards(args, current)
		}
	default:
		cards, err = findCards(args.Devices, current)
	}

	if err != nil || len(cards) == 0 {
		return nil, err
	}

	err = checkCards(args, current, cards)
	if err != nil {
		return nil, err
	}

	return makeTargets(args, current, cards), nil
}

func makeTargets(args Args, current *State, cards []string) []target {
	var targets []target

	for _, card := range cards {
		for _, address := range members(args, &current.PCI, card) {
			if slices.ContainsFunc(targets, func(each target) bool { return each.Address == address }) {
				continue
			}

			targets = append(targets, target{
				makeRecord(args, current, address, card), driverOf(args, current.Aliases)(*current.PCI.Device(address)), args.AllowBootDisplay,
			})
		}
	}

	slices.SortFunc(targets, func(a, b target) int { return pci.Compare(a.Address, b.Address) })

	return targets
}

func members(args Args, system *pci.System, card string) []string {
	if args.Companions == "slot" {
		return vfio.Members(system, card, nil)
	}

	return slices.DeleteFunc(vfio.Members(system, card, args.AllowGroupMembers), func(address string) bool { return system.Device(address).Bridge })
}

// makeRecord gives what is known of a function from before, or what it is now.
func makeRecord(args Args, current *State, address, card string) Record {
	device := current.PCI.Device(address)
	if known := current.record(address); known != nil && known.is(device) {
		return *known
	}

	made := Record{Address: address, ID: device.ID, Path: device.Path, Card: card, Driver: device.Driver, Module: device.Module, Override: device.Override}

	if args.root() != "" {
		// Which driver a system that does not run gives to it is not known.
		made.Driver, made.Module, made.Override = vfio.AnyDriver, "", ""
	}

	return made
}

// driverOf gives the function that picks a driver.
func driverOf(args Args, aliases []vfio.Alias) func(pci.Device) string {
	return func(device pci.Device) string {
		if args.Driver != "auto" {
			return args.Driver
		}

		return vfio.DriverFor(device, aliases)
	}
}

// keptTargets gives what stays reserved when some cards, or all, are given back: what is in the files of the others. A
// card that is not there may come back; one in whose place another is now stays reserved no longer.
func keptTargets(args Args, current *State) []target {
	if args.Devices == nil {
		return nil
	}

	gone := map[string]bool{}

	for _, address := range args.Devices {
		known := slices.IndexFunc(current.Records, func(record Record) bool { return pci.Slot(record.Address) == pci.Slot(address) })
		if known >= 0 {
			gone[current.Records[known].Card] = true
		}
	}

	for _, record := range current.Records {
		if device := current.PCI.Device(record.Address); device != nil && !record.is(device) {
			gone[record.Card] = true
		}
	}

	var kept []target

	for _, record := range current.Records {
		if !gone[record.Card] {
			kept = append(kept, target{record, keptDriver(current, record), !guarded(current.Boot, record.Card)})
		}
	}

	return kept
}

// keptDriver gives the driver that a function is reserved with: that of the rule, or the one that it is set to have.
func keptDriver(current *State, record Record) string {
	if rule := current.Boot.file(rulePath); rule != nil {
		_, after, found := strings.Cut(rule.Content, "ATTR{[pci/"+record.Address+"]driver_override}=\"")
		if driver, _, ends := strings.Cut(after, `"`); found && ends {
			return driver
		}
	}

	if device := current.PCI.Device(record.Address); device != nil && pci.IsVFIO(device.Override) {
		return device.Override
	}

	return vfio.DefaultDriver
}

// stageOf tells from the files at which stage the cards are reserved.
func stageOf(boot Boot) string {
	switch {
	case boot.file(hookPath) != nil || boot.file(dracutPath) != nil:
		return "initramfs"
	case boot.file(rulePath) != nil:
		return "udev"
	}

	return "none"
}

// guarded tells whether the rule that is there leaves a card alone once the host's display is on it.
func guarded(boot Boot, card string) bool {
	rule := boot.file(rulePath)

	return rule == nil || strings.Contains(rule.Content, renderGuard(card, card))
}

// findCards gives the GPUs of addresses.
func findCards(addresses []string, current *State) ([]string, error) {
	if refusal := vfio.Find(&current.PCI, addresses); refusal != nil {
		return nil, ansible.Fail(codes[refusal.Kind], refusal.Hint, "%s", refusal.Reason)
	}

	return addresses, nil
}

// selectCards picks cards: those that are reserved already first, so that a second run picks the same.
func selectCards(args Args, current *State) ([]string, error) {
	var candidates []string

	for _, address := range current.PCI.GPUs() {
		device := current.PCI.Device(address)
		sameSlot := func(other string) bool { return pci.Slot(other) == pci.Slot(address) }

		switch {
		case !strings.HasPrefix(device.ID, args.Select.ID), slices.ContainsFunc(args.HostDevices, sameSlot), slices.ContainsFunc(candidates, sameSlot):
		case args.Select.AllExcept != "" && showsHost(current, address):
		case args.Select.ID == "" && !current.PCI.IsCard(address): // nobody who says "all" means the processor's own
		default:
			candidates = append(candidates, address)
		}
	}

	if candidates == nil && args.Select.ID != "" {
		return nil, ansible.Fail(CodeNotFound, "its GPUs are: "+vfio.DescribeAll(&current.PCI, current.PCI.GPUs()), "the host has no GPU %q that may be reserved", args.Select.ID)
	}

	if args.Select.Count == nil {
		return candidates, nil // those that cannot be reserved are refused
	}

	slices.SortStableFunc(candidates, func(a, b string) int {
		return reservedFirst(current, a) - reservedFirst(current, b)
	})

	var picked, reasons []string

	for _, address := range candidates {
		// That the IOMMU is off says nothing of which cards are meant.
		refusals := slices.DeleteFunc(vfio.Check(&current.PCI, address, wishOf(args, current, nil)), func(refusal vfio.Refusal) bool {
			return refusal.Kind == vfio.IOMMUOffKernel || refusal.Kind == vfio.IOMMUOffFirmware
		})

		switch {
		case len(picked) == *args.Select.Count:
		case len(refusals) > 0:
			reasons = append(reasons, refusals[0].Reason)
		default:
			picked = append(picked, address)
		}
	}

	if len(picked) < *args.Select.Count {
		if reasons == nil {
			reasons = []string{"its GPUs are: " + vfio.DescribeAll(&current.PCI, current.PCI.GPUs())}
		}

		return nil, ansible.Fail(CodeTooFew, "", "%d of the %d cards asked for can be reserved: %s", len(picked), *args.Select.Count, strings.Join(reasons, "; "))
	}

	slices.SortFunc(picked, pci.Compare)

	return picked, nil
}

// checkKept refuses to pick while a reserved card is away: it would be given up for another, or for none.
func checkKept(current *State) error {
	for _, record := range current.Records {
		device := current.PCI.Device(record.Address)
		if record.Address == record.Card && (device == nil || device.Lost) {
			return ansible.Fail(CodeLost, "restart the host; or give the card up, with state: absent and devices: [\""+record.Address+"\"]",
				"card %s (%s) is reserved, and is not there or does not answer", record.Address, record.ID)
		}
	}

	return nil
}

func reservedFirst(current *State, address string) int {
	if current.record(address) != nil {
		return 0
	}

	return 1
}

func showsHost(current *State, address string) bool {
	return slices.ContainsFunc(current.PCI.Functions(pci.Slot(address)), func(function string) bool {
		return vfio.ShowsHost(*current.PCI.Device(function)) != ""
	})
}

// wishOf says what is wanted of a card, whose group may be shared by others that are reserved along with it.
func wishOf(args Args, current *State, cards []string) vfio.Wish {
	wish := vfio.Wish{
		AllowBootDisplay: args.AllowBootDisplay, AllowMembers: slices.Clone(args.AllowGroupMembers), Driver: driverOf(args, current.Aliases), Later: !args.live(),
	}

	for _, card := range cards {
		wish.AllowMembers = append(wish.AllowMembers, current.PCI.Functions(pci.Slot(card))...)
	}

	return wish
}

// checkCards refuses what cannot or must not be reserved, with all reasons.
func checkCards(args Args, current *State, cards []string) error {
	var all []vfio.Refusal

	for _, card := range cards {
		for _, refusal := range vfio.Check(&current.PCI, card, wishOf(args, current, cards)) {
			if !slices.Contains(all, refusal) {
				all = append(all, refusal)
			}
		}
	}

	all = append(all, checkDrivers(args, current, cards)...)

	if current.Desktop && !args.AllowBootDisplay && leftover(args, current, cards) == 0 {
		all = append(all, vfio.NoneLeft(&current.PCI, cards))
	}

	// The gravest of all cards decides: nobody may restart the host for a card that is held while another is in use.
	slices.SortStableFunc(all, func(a, b vfio.Refusal) int { return vfio.CompareGravity(a.Kind, b.Kind) })

	if len(all) > 0 {
		var reasons []string
		for _, refusal := range all {
			reasons = append(reasons, refusal.Reason)
		}

		return ansible.Fail(codes[all[0].Kind], all[0].Hint, "%s", strings.Join(reasons, "; "))
	}

	return nil
}

// leftover counts the GPUs with a display that the host has and keeps, and those that it gets back.
func leftover(args Args, current *State, cards []string) int {
	var taken []string
	for _, card := range cards {
		taken = append(taken, members(args, &current.PCI, card)...)
	}

	after := current.PCI
	after.Devices = slices.Clone(after.Devices)

	for i := range after.Devices {
		if record := current.record(after.Devices[i].Address); record != nil && record.is(&after.Devices[i]) {
			after.Devices[i].Driver = record.Driver
		}
	}

	return len(slices.DeleteFunc(vfio.Displays(&after), func(address string) bool { return slices.Contains(taken, address) }))
}

// checkFiles refuses what the files stand against.
func checkFiles(args Args, current State, targets []target) error {
	for _, file := range current.Boot.Files {
		if !ours(file) {
			return ansible.Fail(CodeForeignFile, "remove it, or move it to another name", "file %q was not written by this module", file.Path)
		}
	}

	if len(targets) == 0 {
		return checkImagesSeen(current.Boot)
	}

	if args.Stage != "initramfs" {
		return nil
	}

	if current.Boot.Generator == "" {
		return ansible.Fail(CodeNoInitramfs, "install initramfs-tools or dracut, or set stage: udev if no driver of these cards is in the initramfs",
			"neither initramfs-tools nor dracut is found, so nothing can be put into the initramfs")
	}

	if len(current.Boot.Images) == 0 {
		return ansible.Fail(CodeNoInitramfs, "make one (update-initramfs -c -k all), or set stage: udev for a host that starts without",
			"no initramfs is found in /boot for a kernel whose modules are in /lib/modules")
	}

	return nil
}

// checkDrivers refuses drivers that are not there, before anything is written: a function that is set to one has no driver at
// all from the next start on, of the host's or another.
func checkDrivers(args Args, current *State, cards []string) []vfio.Refusal {
	kernel := "no kernel that is installed has it"
	if args.live() {
		kernel = "the kernel that runs does not have it"
	}

	for _, each := range makeTargets(args, current, cards) {
		loaded := args.live() && slices.Contains(current.PCI.Drivers, each.wanted)
		if !loaded && slices.Contains(current.Missing, vfio.ModuleName(each.wanted)) {
			return []vfio.Refusal{{
				Kind: vfio.NoDriver, Reason: fmt.Sprintf("%s is to have driver %q, and %s", each.Address, each.wanted, kernel), Hint: vfio.NoDriverHint,
			}}
		}
	}

	return nil
}

// checkImagesSeen refuses to take files back when the images that have them cannot be seen: they would go on reserving.
func checkImagesSeen(boot Boot) error {
	if stageOf(boot) != "initramfs" || len(boot.Images) > 0 {
		return nil
	}

	return ansible.Fail(CodeNoInitramfs, "mount /boot; or, if the host starts without an initramfs by now, remove "+hookPath+" or "+dracutPath,
		"the reservation is in the initramfs as well, and no initramfs is found in /boot for a kernel whose modules are in /lib/modules")
}

func addSweep(current State, planned *plan.Plan[State]) {
	if current.Boot.Leftovers == nil || len(current.Boot.ReadOnly) > 0 {
		return
	}

	planned.Add(plan.Delete, "left-overs of a run that was killed", sweep{current.Boot.Leftovers}, "(%s)", strings.Join(current.Boot.Leftovers, ", "))
	planned.After.Boot.Leftovers = nil
}

// reportTaken warns of cards that are with VFIO before they are recorded: that is what they are given back to.
func reportTaken(args Args, current State, targets []target, planned *plan.Plan[State]) {
	if args.State != "present" || args.root() != "" {
		return
	}

	for _, each := range targets {
		if each.Address == each.Card && current.record(each.Address) == nil && pci.IsVFIO(each.Driver) {
			planned.Add(plan.Report, "card "+each.Card, nil, "it is with %s already: a virtual machine of LXD's has it, or somebody else reserved it; state: absent will leave it there", each.Driver)
		}
	}
}

// reportBuiltIn warns of functions that nobody moves at the start.
func reportBuiltIn(args Args, current State, targets []target, planned *plan.Plan[State]) {
	if args.Stage == "none" || current.Boot.Systemd {
		return
	}

	for _, each := range targets {
		if each.builtIn() {
			driver := "its driver is part of the kernel"
			if each.Driver == vfio.AnyDriver {
				driver = "its driver may be part of the kernel"
			}

			planned.Add(plan.Report, each.Address, nil, "%s, which then has it before udev runs, and there is no systemd for a unit that moves it: see after a start whether it is reserved", driver)
		}
	}
}

// addPrepare adds the step that has the host reserve the cards when it starts.
func addPrepare(args Args, current State, targets []target, planned *plan.Plan[State]) error {
	files := renderFiles(args, current.Boot, targets)
	do := prepare{Modules: wantedModules(targets)}

	for _, path := range ownPaths {
		var after *ownfile.File
		if i := slices.IndexFunc(files, func(file ownfile.File) bool { return file.Path == path }); i >= 0 {
			after = &files[i]
		}

		before := current.Boot.file(path)
		if before == nil && after == nil || before != nil && after != nil && *before == *after {
			continue
		}

		do.change(current, path, before, after)
	}

	if len(files) > 0 && args.Stage == "initramfs" {
		do.Rule = files[0].Content
	}

	do.Images = staleImages(args, current.Boot, do, len(files) > 0)
	reportImages(planned, current.Boot.Images, do)

	if do.Changes == nil && do.Images == nil {
		return nil
	}

	if len(current.Boot.ReadOnly) > 0 {
		return ansible.Fail(CodeReadOnly, "mount it for writing", "%q is read-only, and what the host does when it starts is written there", current.Boot.ReadOnly[0])
	}

	do.Records = newRecords(planned.After, targets)
	step := planned.Add(prepareVerb(current, files), "boot configuration of reserved GPUs", do, "%s", describePrepare(do))
	step.Before, step.After = plainFiles(current.Boot.Files), plainFiles(files)

	planned.After.Boot.Files, planned.After.Boot.StartedSince = files, false
	planned.After.Folders = append(slices.Clone(current.Folders), do.Folders...)
	planned.After.Boot.NoFolders = slices.DeleteFunc(slices.Clone(current.Boot.NoFolders), func(folder string) bool { return slices.Contains(do.Folders, folder) })

	for i := range planned.After.Boot.Images {
		image := &planned.After.Boot.Images[i]
		if slices.ContainsFunc(do.Images, func(stale initramfs.Image) bool { return stale.Path == image.Path }) {
			*image = freshImage(*image, do)
		}
	}

	addRecords(&planned.After, do.Records)

	return nil
}

// change adds a change of a file, whose folder is made with it and goes with it.
func (p *prepare) change(current State, path string, before, after *ownfile.File) {
	folder := filepath.Dir(path)
	known := slices.Contains(current.Folders, folder)
	made := known || slices.Contains(current.Boot.NoFolders, folder)
	p.Changes = append(p.Changes, ownfile.Change{Path: path, Before: before, After: after, MadeFolder: made})

	if after != nil && made && !known && !slices.Contains(p.Folders, folder) {
		p.Folders = append(p.Folders, folder)
	}
}

// staleImages gives the images that do not have what the files say, whatever the reason.
//
// One that cannot be read is made again where it has to have something, or may have something that has to go.
func staleImages(args Args, boot Boot, do prepare, wanted bool) []initramfs.Image {
	var stale []initramfs.Image

	for _, image := range boot.Images {
		rule, has := image.Rules[filepath.Base(rulePath)]
		lacks := slices.ContainsFunc(do.Modules, func(module string) bool { return lacks(image, module) })

		switch {
		case image.Problem != "":
			if do.Rule != "" || stageOf(boot) == "initramfs" {
				stale = append(stale, image)
			}
		case do.Rule != "" && (rule != do.Rule || lacks):
			stale = append(stale, image)
		case !wanted && has:
			stale = append(stale, image)
		case wanted && args.Stage == "udev" && has && !hasRule(do, rule):
			stale = append(stale, image) // initramfs-tools takes the rule along, and now has an older one
		}
	}

	return stale
}

// lacks tells whether an image lacks a module that its kernel has.
func lacks(image initramfs.Image, module string) bool {
	return !slices.Contains(image.Modules, module) && !slices.Contains(image.Lacking, module)
}

// reportImages says what of the images is not as it should be, and no failure.
func reportImages(planned *plan.Plan[State], images []initramfs.Image, do prepare) {
	for _, image := range images {
		made := slices.ContainsFunc(do.Images, func(other initramfs.Image) bool { return other.Path == image.Path })
		if image.Problem != "" && !made {
			planned.Add(plan.Report, image.Path, nil, "it cannot be read, which is no matter here: %s", image.Problem)
		}

		for _, module := range do.Modules {
			if do.Rule != "" && slices.Contains(image.Lacking, module) {
				planned.Add(plan.Report, image.Path, nil, "kernel %s does not have module %s: while it runs, the cards are the host's", image.Release, module)
			}
		}
	}
}

// hasRule tells whether the rule that is written is the same.
func hasRule(do prepare, rule string) bool {
	return !slices.ContainsFunc(do.Changes, func(change ownfile.Change) bool {
		return change.Path == rulePath && change.After != nil && change.After.Content != rule
	})
}

// freshImage is an image as it will be.
func freshImage(image initramfs.Image, do prepare) initramfs.Image {
	image.Rules, image.Problem = nil, ""
	if do.Rule == "" {
		return image
	}

	image.Rules = map[string]string{filepath.Base(rulePath): do.Rule}
	image.Modules = slices.Clone(image.Modules)

	for _, module := range do.Modules {
		if lacks(image, module) {
			image.Modules = append(image.Modules, module)
		}
	}

	slices.Sort(image.Modules)

	return image
}

func prepareVerb(current State, files []ownfile.File) plan.Verb {
	switch {
	case len(files) == 0:
		return plan.Delete
	case len(current.Boot.Files) == 0:
		return plan.Create
	}

	return plan.Change
}

func describePrepare(do prepare) string {
	var parts []string

	for _, change := range do.Changes {
		verb := "write "
		if change.After == nil {
			verb = "remove "
		}

		parts = append(parts, verb+change.Path)
	}

	for _, image := range do.Images {
		parts = append(parts, "make "+image.Path+" again")
	}

	return "(" + strings.Join(parts, ", ") + ")"
}

// plainFiles are files as the diff of a step shows them.
func plainFiles(files []ownfile.File) map[string]string {
	shown := map[string]string{}

	for _, file := range files {
		shown[file.Path] = file.Content
		if file.Link != "" {
			shown[file.Path] = "-> " + file.Link
		}
	}

	return shown
}

func newRecords(current State, targets []target) []Record {
	var records []Record

	for _, each := range targets {
		if current.record(each.Address) == nil {
			records = append(records, each.Record)
		}
	}

	return records
}

func addRecords(state *State, records []Record) {
	for _, each := range records {
		if state.record(each.Address) == nil {
			state.Records = append(state.Records, each)
		}
	}

	slices.SortFunc(state.Records, func(a, b Record) int { return pci.Compare(a.Address, b.Address) })
}

// addBinds adds a step for each card whose functions are not all where they are to be. Cards that share an IOMMU group are
// of use together only, and have one step.
func addBinds(args Args, current State, targets []target, planned *plan.Plan[State]) error {
	if !args.live() {
		return nil
	}

	for _, together := range shareGroups(&current.PCI, targets) {
		do := bind{Records: newRecords(planned.After, together), Prepared: planned.After.Boot.file(rulePath) != nil}

		var cards []string

		for _, each := range together {
			if !slices.Contains(cards, each.Card) {
				cards = append(cards, each.Card)
			}

			device := current.PCI.Device(each.Address)
			if device.Driver != each.wanted || device.Override != each.wanted {
				do.Moves = append(do.Moves, vfio.Move{Address: each.Address, Driver: each.wanted, Override: each.wanted})
			}
		}

		if do.Moves == nil {
			continue
		}

		if err := checkMoves(&current.PCI); err != nil {
			return err
		}

		object := "card " + strings.Join(cards, " and ")
		if drifted(current, cards[0], do.Moves) {
			// lxd/device/gpu_physical.go: at a virtual machine's stop, all functions but the first are probed again.
			planned.Add(plan.Report, object, nil, "some of its functions went back to the host, as LXD leaves them when a virtual machine stops; they are reserved again")
		}

		step := planned.Add(plan.Change, object, do, "(%s)", describeMoves(do.Moves))
		step.Before, step.After = driversBefore(current, do.Moves), driversAfter(do.Moves)

		applyMoves(&planned.After, do.Moves)
		addRecords(&planned.After, do.Records)
	}

	return nil
}

// drifted tells a card that is reserved and has functions that went back.
func drifted(current State, card string, moves []vfio.Move) bool {
	return pci.IsVFIO(current.PCI.Device(card).Driver) &&
		slices.ContainsFunc(moves, func(move vfio.Move) bool { return current.record(move.Address) != nil })
}

// shareGroups divides functions by cards, with cards that share an IOMMU group in one.
func shareGroups(system *pci.System, targets []target) [][]target {
	var sets [][]target

	for _, each := range targets {
		var merged, apart [][]target

		for _, set := range sets {
			if slices.ContainsFunc(set, func(other target) bool {
				return other.Card == each.Card || system.Device(other.Address).Group == system.Device(each.Address).Group
			}) {
				merged = append(merged, set)
			} else {
				apart = append(apart, set)
			}
		}

		sets = append(apart, append(slices.Concat(merged...), each))
	}

	return sets
}

// checkMoves refuses to have drivers changed from within a container: without the right, or with it and no sight of who uses
// the host's cards.
func checkMoves(system *pci.System) error {
	const hint = "run it on the host itself, not in a container; or set apply_now: false and restart the host"

	switch {
	case system.ReadOnly:
		return ansible.Fail(CodeReadOnly, hint, "sysfs cannot be written, so no function can change its driver now")
	case system.Contained:
		refusal := vfio.OutOfSight()

		return ansible.Fail(CodeContained, refusal.Hint, "%s", refusal.Reason)
	}

	return nil
}

func describeMoves(moves []vfio.Move) string {
	var parts []string

	for _, move := range moves {
		driver := move.Driver

		switch driver {
		case "":
			driver = "no driver"
		case vfio.AnyDriver:
			driver = "the host's driver"
		}

		parts = append(parts, move.Address+" to "+driver)
	}

	return strings.Join(parts, ", ")
}

func driversBefore(current State, moves []vfio.Move) map[string]string {
	drivers := map[string]string{}
	for _, move := range moves {
		drivers[move.Address] = current.PCI.Device(move.Address).Driver
	}

	return drivers
}

func driversAfter(moves []vfio.Move) map[string]string {
	drivers := map[string]string{}
	for _, move := range moves {
		drivers[move.Address] = move.Driver
	}

	return drivers
}

// applyMoves is what the kernel will have made of it.
func applyMoves(state *State, moves []vfio.Move) {
	for _, move := range moves {
		device := state.PCI.Device(move.Address)
		device.Driver, device.Override, device.Users, device.Uses, device.Modeset = move.Driver, move.Override, nil, nil, false
		device.Persistence, device.PersistenceWhy = "", ""

		if move.Driver == vfio.AnyDriver {
			device.Driver = ""
		}

		state.PCI.VFIOGroups = slices.DeleteFunc(state.PCI.VFIOGroups, func(group string) bool { return group == device.Group })

		isVFIO := func(address string) bool { return pci.IsVFIO(state.PCI.Device(address).Driver) }
		if device.Group != "" && slices.ContainsFunc(state.PCI.GroupMembers(device.Group), isVFIO) {
			state.PCI.VFIOGroups = append(state.PCI.VFIOGroups, device.Group)
			slices.Sort(state.PCI.VFIOGroups)
		}
	}
}

// addStale forgets functions in whose place others are now: what these had before is not known from those.
func addStale(current State, targets []target, planned *plan.Plan[State]) {
	byCard := map[string][]Record{}

	for _, record := range current.Records {
		if slices.ContainsFunc(targets, func(each target) bool { return each.Address == record.Address && each.Record != record }) {
			byCard[record.Card] = append(byCard[record.Card], record)
		}
	}

	for _, card := range slices.SortedFunc(maps.Keys(byCard), pci.Compare) {
		addForget(planned, card, byCard[card])
	}
}

// addReleases adds a step for each card that is no longer to be reserved, and forgets it.
func addReleases(args Args, current State, targets []target, planned *plan.Plan[State]) error {
	byCard := map[string][]Record{}

	for _, record := range planned.After.Records {
		if !slices.ContainsFunc(targets, func(each target) bool { return each.Address == record.Address }) {
			byCard[record.Card] = append(byCard[record.Card], record)
		}
	}

	for _, card := range slices.SortedFunc(maps.Keys(byCard), pci.Compare) {
		do, err := makeRelease(args, &current, byCard[card])
		if err != nil {
			return err
		}

		if do.Moves != nil && !args.live() {
			continue // they are known until the host has started without them
		}

		if do.Moves != nil {
			if err := checkMoves(&current.PCI); err != nil {
				return err
			}

			step := planned.Add(plan.Change, fmt.Sprintf("card %s", card), do, "(%s)", describeMoves(do.Moves))
			step.Before, step.After = driversBefore(current, do.Moves), driversAfter(do.Moves)
			applyMoves(&planned.After, do.Moves)
		}

		addForget(planned, card, byCard[card])
	}

	return nil
}

// makeRelease gives the moves that take a card back, the last function first.
func makeRelease(args Args, current *State, records []Record) (release, error) {
	var do release

	for _, record := range slices.Backward(records) {
		device := current.PCI.Device(record.Address)
		if !record.is(device) || device.Lost || !pci.IsVFIO(device.Driver) && !pci.IsVFIO(device.Override) {
			continue // gone, another card now, nobody to give back, or back already
		}

		if device.Driver == record.Driver && device.Override == record.Override {
			continue // it was so before
		}

		if args.root() != "" {
			continue // what does not run has no drivers; the next start is told by the files
		}

		if users := vfio.UsersOf(*device); len(users) > 0 && args.live() && device.Driver != record.Driver {
			return do, ansible.Fail(CodeInUse, "stop the virtual machine that has it, or set apply_now: false and restart the host",
				"%s cannot be given back, it is in use: %s", record.Address, strings.Join(users, ", "))
		}

		do.Moves = append(do.Moves, vfio.Move{Address: record.Address, Driver: record.Driver, Override: record.Override, Lenient: true})
		do.Modules = append(do.Modules, record.Module)
	}

	return do, nil
}

func addForget(planned *plan.Plan[State], card string, records []Record) {
	var do forget
	for _, record := range records {
		do.Addresses = append(do.Addresses, record.Address)
	}

	planned.Add(plan.Delete, fmt.Sprintf("record of card %s", card), do, "")
	planned.After.Records = slices.DeleteFunc(planned.After.Records, func(record Record) bool { return slices.Contains(do.Addresses, record.Address) })
}

// addForgetFolders forgets the folders in which nothing of ours is any more.
func addForgetFolders(planned *plan.Plan[State]) {
	var gone []string

	for _, folder := range planned.After.Folders {
		if !slices.ContainsFunc(planned.After.Boot.Files, func(file ownfile.File) bool { return filepath.Dir(file.Path) == folder }) {
			gone = append(gone, folder)
		}
	}

	if gone == nil {
		return
	}

	planned.Add(plan.Delete, "record of folders that were made", forget{Folders: gone}, "(%s)", strings.Join(gone, ", "))
	planned.After.Folders = slices.DeleteFunc(slices.Clone(planned.After.Folders), func(folder string) bool { return slices.Contains(gone, folder) })
}

// rebootReasons says why the host has to start again before it is as wanted; nothing when it is.
func rebootReasons(args Args, final State) []string {
	if args.root() != "" {
		return nil
	}

	targets, err := findTargets(later(args), &final)
	if err != nil {
		return []string{"whether it is as wanted cannot be told: " + err.Error()}
	}

	var reasons []string

	for _, each := range targets {
		device := final.PCI.Device(each.Address)
		if device == nil || args.State != "present" {
			continue
		}

		if device.Driver != each.wanted && !noUse(&final, each) {
			reasons = append(reasons, fmt.Sprintf("%s is with %s until then, and not with %s", each.Address, named(device.Driver), each.wanted))
		}
	}

	for _, record := range final.Records {
		if final.PCI.Device(record.Address) == nil {
			continue
		}

		if !slices.ContainsFunc(targets, func(each target) bool { return each.Address == record.Address }) {
			reasons = append(reasons, fmt.Sprintf("%s is with %s until then, and not with the host", record.Address, final.PCI.Device(record.Address).Driver))
		}
	}

	return reasons
}

// named says which driver it is.
func named(driver string) string {
	if driver == "" {
		return "no driver"
	}

	return driver
}

// noUse tells that another start of the host is of no use to a function: the last one was with the same files and images, and
// left all of its card with the host. (Of a card whose GPU is with VFIO, LXD gave the rest back after the start.)
func noUse(state *State, each target) bool {
	device, card := state.PCI.Device(each.Address), state.PCI.Device(each.Card)

	return state.Boot.StartedSince && device.Driver != each.wanted && (card == nil || !pci.IsVFIO(card.Driver))
}

// reportNoUse says why no restart is asked for although functions are not where they are to be.
func reportNoUse(args Args, targets []target, planned *plan.Plan[State]) {
	if args.live() || args.root() != "" {
		return
	}

	for _, each := range targets {
		if noUse(&planned.After, each) {
			planned.Add(plan.Report, each.Address, nil, "the host has started with these files, and still it is with %s and not with %s, so that another restart is of no use: "+
				"its driver may be in the initramfs and the rule not (stage: udev), something else may start the host, or the kernel does not have %s", named(planned.After.PCI.Device(each.Address).Driver), each.wanted, each.wanted)
		}
	}
}

// later asks for the same without moving anything now, so that users are not in the way of looking.
func later(args Args) Args {
	args.ApplyNow = false

	return args
}
