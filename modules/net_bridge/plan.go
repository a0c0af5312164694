// SPDX-License-Identifier: Apache-2.0

package netbridge

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/armed"
	"github.com/thinkube/infra/modules/internal/netconfig"
	"github.com/thinkube/infra/modules/internal/netprobe"
	"github.com/thinkube/infra/modules/internal/netstate"
	"github.com/thinkube/infra/modules/internal/plan"
)

// The effects.
type (
	// change is staged, and with Arm also armed and applied.
	change struct {
		Change armed.Change `json:"change"`
		Arm    bool         `json:"arm"`
	}
	// confirm makes an applied change stay.
	confirm struct {
		Ticket string `json:"ticket"`
	}
	// rollback undoes an open change.
	rollback struct {
		Ticket string `json:"ticket"`
	}
	// finish does what is left of a change that was confirmed.
	finish struct {
		Ticket string `json:"ticket"`
	}
	// forget removes what is left of a change that is over.
	forget struct {
		Ticket string `json:"ticket"`
	}
)

// wantedHash stands for what the task is to bring about, whatever its phase.
func wantedHash(args Args) string {
	args.Phase, args.Ticket, args.ConfirmTimeout, args.Probes = "", "", 0, nil

	text, err := json.Marshal(args)
	if err != nil {
		panic("arguments cannot be encoded: " + err.Error()) // a defect; the SDK turns it into a failure
	}

	sum := sha256.Sum256(text)

	return hex.EncodeToString(sum[:8])
}

func makePlan(args Args, current State) (plan.Plan[State], error) {
	out := plan.Plan[State]{After: current}
	object := fmt.Sprintf("bridge %q", args.Name)

	done, err := planArmed(&out, args, current, object)
	if done || err != nil {
		return out, err
	}

	var wanted *armed.Change

	if args.State == "absent" {
		wanted, err = absent(args, current)
	} else {
		wanted, err = present(args, current)
	}

	if err != nil {
		return out, err
	}

	if wanted == nil {
		if old := current.Armed; old != nil && (args.State == "absent" || old.Phase == string(armed.Staged)) && args.Phase != "plan" {
			// What was only staged is done, or what is told of an undone change is of no use any more.
			out.Add(plan.Delete, object, forget{old.Ticket}, "what is left of change %s", old.Ticket)
			out.After.Armed = nil
		}

		return out, nil
	}

	if args.Phase == "apply" && args.ConfirmTimeout > 0 && current.NoProof != "" {
		return out, ansible.Fail(CodeOldConnection, "set ansible_connection: ssh and ansible_host for this host, or, if you sit in front of it, confirm_timeout: 0",
			"%s: the change could not be confirmed and would be undone: %s; nothing was touched", object, current.NoProof)
	}

	addChange(&out, args, current, wanted, object)

	return out, nil
}

// planArmed deals with a change that is under way. It reports true when there is nothing else to plan.
func planArmed(out *plan.Plan[State], args Args, current State, object string) (bool, error) {
	old := current.Armed

	phase := armed.Phase("")
	if old != nil {
		phase = armed.Phase(old.Phase)
	}

	open := phase.Open()

	switch {
	case phase == armed.Confirmed && args.Phase != "plan":
		// It was decided; whoever did was cut off before all was written down. What was asked for is planned after that.
		out.Add(plan.Change, object, finish{old.Ticket}, "finish the confirmed change %s", old.Ticket)
		out.After.Armed = nil

		return true, nil
	case phase == armed.RolledBack && old.Ours, phase == armed.Stuck && args.Phase != "rollback" && args.Phase != "plan":
		return true, undone(*old)
	case args.Phase == "confirm":
		return true, planConfirm(out, args, old, open, object)
	case args.Phase == "rollback":
		if open {
			out.Add(plan.Change, object, rollback{old.Ticket}, "undo change %s: %s", old.Ticket, old.Summary)
			out.After.Armed = nil
		}

		return true, nil
	case !open || args.Phase == "plan":
		return false, nil
	case old.Ours && old.Bridge == args.Name:
		out.Steps = append(out.Steps, plan.Step{Verb: plan.Change, Object: object, Line: old.Summary, Do: confirm{old.Ticket}})
		out.After.Armed = nil

		return true, nil
	case phase == armed.Applied && old.Provable && old.Wanted == args.wanted && args.Phase == "apply":
		// Who asked for it was cut off. The connection of now is the proof that was missing.
		out.Add(plan.Change, object, confirm{old.Ticket}, "confirm change %s: %s", old.Ticket, old.Summary)
		out.After.Armed = nil

		return true, nil
	case phase == armed.Applied && old.Guarded && old.Wanted == args.wanted && args.Phase == "apply":
		out.Add(plan.Report, object, nil, "change %s waits to be confirmed over a new connection (phase: confirm)", old.Ticket)

		return true, nil
	}

	return true, inTheWay(*old, object)
}

// inTheWay refuses to begin something beside a change that is not over.
func inTheWay(old Armed, object string) error {
	state, hint := "is being made; it ends by itself", "wait until it is over, or run the module with phase: rollback"
	if !old.Guarded {
		state, hint = "was cut off, and nobody is left to undo it", "run the module with phase: rollback"
	}

	if old.Phase == string(armed.Applied) {
		hint = "run the module with phase: confirm if the host is as you want it, or with phase: rollback"
	}

	return ansible.Fail(CodeArmed, hint, "%s: change %s (%s) %s: it is %s", object, old.Ticket, old.Summary, state, old.Phase)
}

// undone tells why a change was undone, or could not be.
func undone(old Armed) error {
	if old.Phase == string(armed.Stuck) {
		return ansible.Fail(CodeNotUndone,
			"mend what stood in the way and run the module with phase: rollback; all that was there is kept under "+armed.DefaultDir,
			"change %s was to be undone (%s), and that failed: %s", old.Ticket, old.Reason, old.Failed)
	}

	return ansible.Fail(CodeRolledBack, "the host is as it was before", "the change was undone: %s", old.Reason)
}

func planConfirm(out *plan.Plan[State], args Args, old *Armed, open bool, object string) error {
	switch {
	case old != nil && args.Ticket != "" && old.Ticket != args.Ticket:
		return ansible.Fail(CodeArmed, "", "%s: the change is %s, not %s", object, old.Ticket, args.Ticket)
	case open && !old.Guarded && old.Phase != string(armed.Applied):
		return inTheWay(*old, object)
	case open:
		out.Add(plan.Change, object, confirm{old.Ticket}, "confirm change %s: %s", old.Ticket, old.Summary)
		out.After.Armed = nil
	case old != nil && old.Phase == string(armed.RolledBack):
		return undone(*old)
	}

	return nil
}

// addChange makes a change the plan's step.
func addChange(out *plan.Plan[State], args Args, current State, wanted *armed.Change, object string) {
	for _, op := range netstate.Ops(current.Net, wanted.After) {
		out.After.Steps = append(out.After.Steps, op.String())
	}

	for _, file := range wanted.Files {
		out.After.Steps = append(out.After.Steps, describeFile(file))
	}

	if args.Phase == "plan" {
		return
	}

	wanted.Bridge, wanted.Wanted, wanted.Timeout = args.Name, args.wanted, args.ConfirmTimeout

	verb := plan.Change

	switch {
	case args.State == "absent" && wanted.After.Link(args.Name) == nil:
		verb = plan.Delete
	case current.Net.Link(args.Name) == nil:
		verb = plan.Create
	}

	staged := current.Armed != nil && current.Armed.Phase == string(armed.Staged) && current.Armed.Wanted == args.wanted
	if args.Phase == "stage" && staged {
		return // it is there
	}

	step := out.Add(verb, object, nil, "%s", wanted.Summary)
	if args.Phase == "stage" {
		step.Line = "stage: " + step.Line
	}

	wanted.Summary = step.Line
	step.Before, step.After = nil, map[string]any{"steps": out.After.Steps}
	step.Do = change{Change: *wanted, Arm: args.Phase == "apply"}

	if args.Phase == "stage" {
		out.After.Armed = &Armed{Bridge: args.Name, Phase: string(armed.Staged), Summary: step.Line, Wanted: args.wanted}

		return
	}

	if ports := current.Net.Ports(args.Name); args.State == "present" && !args.STP && len(wanted.After.Links) > 2 && len(ports) < 2 {
		out.Add(plan.Report, object, nil, "several ports without stp: where two of them lead to the same network, frames go round without end")
	}

	if args.ConfirmTimeout == 0 {
		out.Add(plan.Report, object, nil, "confirm_timeout is 0: once the change is made, nothing will undo it")
	}

	out.After.Net = netstate.Simulate(current.Net, wanted.After)
	out.After.Armed = nil
	out.After.Record = nil

	if len(wanted.Record) > 0 {
		var record armed.Record
		if json.Unmarshal(wanted.Record, &record) == nil {
			out.After.Record = &record
			out.After.Files = nil

			for _, file := range record.Files {
				if file.After != nil {
					out.After.Files = append(out.After.Files, *file.After)
				}
			}
		}
	}
}

func describeFile(file netconfig.Change) string {
	switch {
	case file.After == nil:
		return fmt.Sprintf("remove file %q", file.Path)
	case file.Before == nil:
		return fmt.Sprintf("write file %q", file.Path)
	}

	return fmt.Sprintf("change file %q", file.Path)
}

// present plans the bridge. Nothing to do gives nil.
func present(args Args, current State) (*armed.Change, error) {
	link := current.Net.Link(args.Name)
	if link != nil && link.Kind != "bridge" {
		return nil, ansible.Fail(CodeNameTaken, "give the bridge another name", "link %q exists and is a %s, no bridge", args.Name, kindOf(*link))
	}

	ports, err := findPorts(args, current)
	if err != nil {
		return nil, err
	}

	ports, err = checkSamePorts(args, current, ports)
	if err != nil {
		return nil, err
	}

	for _, port := range ports {
		err = errors.Join(err, checkPort(args, current, port))
	}

	err = errors.Join(err, checkMAC(args, current, ports))
	if err != nil {
		return nil, first(err)
	}

	if link != nil && current.Record == nil {
		foreign, err := foreignBridge(args, current, ports)
		if foreign || err != nil {
			return nil, err
		}
	}

	return makeChange(args, current, ports)
}

// first gives joined failures the code and hint of the first of them.
func first(err error) error {
	var failure *ansible.Failure
	if errors.As(err, &failure) {
		return ansible.Fail(failure.Code, failure.Hint, "%w", err)
	}

	return err
}

// foreignBridge judges a bridge that somebody else made. One that is as asked for is left alone; an empty one may be what
// an earlier try left, and is used; anything else is refused.
func foreignBridge(args Args, current State, ports []string) (bool, error) {
	have := current.Net.Ports(args.Name)
	link := current.Net.Link(args.Name)
	addrs := current.Net.AddrsOf(args.Name)

	if len(have) == 0 && len(addrs) == 0 {
		return false, nil
	}

	var differs []string

	for _, port := range ports {
		if !slices.Contains(have, port) {
			differs = append(differs, fmt.Sprintf("%q is no port of it", port))
		}
	}

	if left := current.Net.AddrsOf(ports...); len(left) > 0 {
		differs = append(differs, fmt.Sprintf("port %q has address %s", left[0].Link, left[0].Prefix))
	}

	if !args.inherits() {
		for _, address := range args.Addresses {
			if !slices.ContainsFunc(addrs, func(addr netstate.Addr) bool { return addr.Prefix == address }) {
				differs = append(differs, "it does not have address "+address)
			}
		}
	}

	if link.Bridge != nil && (link.Bridge.STP != args.STP || link.Bridge.VLANFiltering != args.VLANFiltering) {
		differs = append(differs, fmt.Sprintf("it has stp %t and vlan_filtering %t", link.Bridge.STP, link.Bridge.VLANFiltering))
	}

	if args.MTU != nil && *args.MTU != link.MTU {
		differs = append(differs, fmt.Sprintf("its MTU is %d", link.MTU))
	}

	if differs == nil {
		return true, nil
	}

	return false, ansible.Fail(CodeForeignBridge, "change it by the means it was made with, or remove it first; this module only changes bridges that it made",
		"bridge %q was made by somebody else: %s", args.Name, strings.Join(differs, "; "))
}

func makeChange(args Args, current State, ports []string) (*armed.Change, error) {
	source, original := current.Config, netstate.Capture(current.Net, args.Name, ports)
	if current.Record != nil {
		source, original = current.Record.Source, current.Record.Original
	}

	err := errors.Join(checkManager(args, source, ports), checkOdd(original), checkFurther(args, original, ports))
	if err != nil {
		return nil, first(err)
	}

	before := netstate.Capture(current.Net, args.Name, ports)

	after, ip, err := wantedTarget(args, current, original, before, ports)
	if err != nil {
		return nil, err
	}

	bridge := after.Links[0]
	wanted := netconfig.Wanted{
		Bridge: args.Name, Ports: ports, MAC: bridge.MAC, STP: args.STP, ForwardDelay: *args.ForwardDelay,
		VLANFiltering: args.VLANFiltering, IP: ip,
	}

	if args.MTU != nil {
		wanted.MTU = *args.MTU
	}

	rendered, err := netconfig.Render(source, wanted)
	if errors.Is(err, netconfig.ErrUnsupported) {
		return nil, ansible.Fail(CodeUnsupported, "", "%s: %w", source.Manager, err)
	}

	if err != nil {
		return nil, err
	}

	files, record := fileChanges(current, source, rendered)

	err = checkFiles(args, current, files)
	if err != nil {
		return nil, err
	}

	if len(netstate.Ops(current.Net, compared(after, current))) == 0 && len(files) == 0 {
		return nil, nil
	}

	if len(current.Taken) > 0 {
		return nil, ansible.Fail(CodeAddressInUse, "give the host an address of its own", "addresses: another host answers for %s", strings.Join(current.Taken, ", "))
	}

	expect, err := netconfig.Expect(source, wanted)
	if err != nil {
		return nil, err
	}

	text, err := json.Marshal(armed.Record{Ports: ports, Source: source, Original: original, Files: record, Applied: after, MAC: bridge.MAC})

	return &armed.Change{
		Summary: summary(args, after, ports),
		Before:  before, After: after, Files: files, Resolv: current.Resolv, Record: text,
		Old: managerNow(current, ports),
		New: armed.Manager{
			Name: source.Manager, Renderer: source.Renderer, Expect: expect, Profiles: netconfig.Profiles(source, wanted),
			Up: []string{args.Name}, Dynamic: dynamicLink(after.Addrs),
		},
		Probes: wantedProbes(args, current, after),
	}, err
}

// managerNow is who is to be told when files are put back to what they are now.
func managerNow(current State, ports []string) armed.Manager {
	manager := armed.Manager{Name: current.Config.Manager, Renderer: current.Config.Renderer, Expect: map[string]string{}}

	if current.Record == nil {
		manager.Expect, manager.Profiles = netconfig.InForce(current.Config, ports)
		manager.Up = append([]string{"-" + current.Name}, ports...)
	} else {
		manager.Name, manager.Renderer = current.Record.Source.Manager, current.Record.Source.Renderer
		manager.Up = []string{current.Name}
	}

	manager.Dynamic = dynamicLink(current.Net.AddrsOf(append(slices.Clone(ports), current.Name)...))

	return manager
}

// dynamicLink is the link that has an IPv4 address from a DHCP server.
func dynamicLink(addrs []netstate.Addr) string {
	for _, addr := range addrs {
		if addr.Dynamic() && addr.Addr4() {
			return addr.Link
		}
	}

	return ""
}

func summary(args Args, after netstate.Target, ports []string) string {
	var addrs []string

	for _, addr := range after.Addrs {
		if addr.Link == args.Name {
			addrs = append(addrs, addr.Prefix)
		}
	}

	if addrs == nil {
		addrs = []string{"no address"}
	}

	return fmt.Sprintf("with port %s: %s", strings.Join(ports, ", "), strings.Join(addrs, ", "))
}

// compared is the target as a later run compares it: the settings of links are their manager's, and a DHCP server's
// addresses come and go.
func compared(after netstate.Target, current State) netstate.Target {
	if current.Record == nil {
		return after
	}

	return armed.Static(after)
}

func checkManager(args Args, source netconfig.Config, ports []string) error {
	switch {
	case source.Manager == "":
		asked := "netplan, networkd, NetworkManager and ifupdown"
		if args.Manager != auto {
			asked = args.Manager
		}

		return ansible.Fail(CodeManager, "bring the link up with one of the managers first, so that the bridge outlives a restart", "link %q is configured by none of %s", ports[0], asked)
	case len(source.Others) > 0 && args.Manager == auto:
		return ansible.Fail(CodeManager, "name the right one with manager", "link %q is configured by %s and by %s", ports[0], source.Manager, strings.Join(source.Others, " and "))
	}

	for _, name := range ports[1:] {
		port := source.Ports[name]

		switch {
		case port.Manager != "" && port.Manager != source.Manager:
			return ansible.Fail(CodeManager, "have one manager configure all ports", "link %q is configured by %s, and link %q by %s", ports[0], source.Manager, name, port.Manager)
		case len(port.Others) > 0 && args.Manager == auto:
			return ansible.Fail(CodeManager, "name the right one with manager", "link %q is configured by %s and by %s", name, port.Manager, strings.Join(port.Others, " and "))
		}
	}

	return nil
}

// checkFurther refuses a second port with addresses or routes of its own: a bridge takes over what one port has, and those
// would be lost with the next restart of the host.
func checkFurther(args Args, original netstate.Target, ports []string) error {
	if !args.inherits() {
		return nil
	}

	const hint = "remove it, name that port first, or give the bridge's addresses"

	for _, addr := range original.Addrs {
		if slices.Contains(ports[1:], addr.Link) && !advertised(addr) {
			return ansible.Fail(CodePort, hint, "port %q has address %s, but the bridge takes over what its first port %q has", addr.Link, addr.Prefix, ports[0])
		}
	}

	for _, route := range original.Routes {
		if route.Proto != netstate.ProtoRA && slices.ContainsFunc(route.Devs(), func(dev string) bool { return slices.Contains(ports[1:], dev) }) {
			return ansible.Fail(CodePort, hint, "port %q has route %s, but the bridge takes over what its first port %q has", route.Devs()[0], route, ports[0])
		}
	}

	return nil
}

// advertised tells of an address that a router's advertisement gave, and gives to the bridge again.
func advertised(addr netstate.Addr) bool { return addr.Dynamic() && !addr.Addr4() }

// inherited is what the bridge takes over: what the first port has, and the rules of all.
func inherited(original netstate.Target, ports []string) netstate.Target {
	further := func(dev string) bool { return slices.Contains(ports[1:], dev) }

	original.Addrs = slices.DeleteFunc(slices.Clone(original.Addrs), func(addr netstate.Addr) bool { return further(addr.Link) })
	original.Routes = slices.DeleteFunc(slices.Clone(original.Routes), func(route netstate.Route) bool { return slices.ContainsFunc(route.Devs(), further) })

	return original
}

// checkSamePorts gives the ports in the order of the first change, and refuses others than it had: what a port had before is
// known of those alone.
func checkSamePorts(args Args, current State, ports []string) ([]string, error) {
	if current.Record == nil {
		return ports, nil
	}

	had := current.Record.Ports

	if len(ports) != len(had) || slices.ContainsFunc(ports, func(port string) bool { return !slices.Contains(had, port) }) {
		return nil, ansible.Fail(CodePort, "put the network back first (state: absent), and make the bridge anew",
			"ports %s: bridge %q was made with %s, and its ports cannot be changed", strings.Join(ports, ", "), args.Name, strings.Join(had, ", "))
	}

	return had, nil
}

// checkOdd refuses what could not be put back.
func checkOdd(original netstate.Target) error {
	for _, route := range original.Routes {
		if route.Odd != "" {
			return ansible.Fail(CodeUnsupported, "remove the route first", "route %s has %s, which this module cannot move", route, route.Odd)
		}
	}

	return nil
}

func checkFiles(args Args, current State, files []netconfig.Change) error {
	for _, file := range files {
		for _, folder := range current.ReadOnly {
			if strings.HasPrefix(file.Path, folder+"/") {
				return ansible.Fail(CodeReadOnly, "mount it writable", "file %q cannot be written: %q is read-only", file.Path, folder)
			}
		}

		if !args.Exclusive && file.Before != nil && current.Record == nil {
			return ansible.Fail(CodeUnsupported, "allow it with exclusive: true; absent puts it back", "file %q configures the port as well and would have to be changed", file.Path)
		}
	}

	return nil
}

// fileChanges compares what is to be written with what is there. The first list leads from now to then; the second, for
// the record, from before the first change to then.
func fileChanges(current State, source netconfig.Config, rendered []netconfig.Change) (now, record []netconfig.Change) {
	first := map[string]*netconfig.File{}
	then := map[string]*netconfig.File{}

	if current.Record != nil {
		for _, file := range current.Record.Files {
			first[file.Path] = file.Before
			then[file.Path] = file.Before // unless it is rendered again
		}
	}

	for _, file := range rendered {
		if _, known := first[file.Path]; !known {
			first[file.Path] = source.File(file.Path)
		}

		then[file.Path] = file.After
	}

	for _, path := range slices.Sorted(maps.Keys(then)) {
		have := currentFile(current, path)

		if !reflect.DeepEqual(have, then[path]) {
			now = append(now, netconfig.Change{Path: path, Before: have, After: then[path]})
		}

		if !reflect.DeepEqual(first[path], then[path]) {
			record = append(record, netconfig.Change{Path: path, Before: first[path], After: then[path]})
		}
	}

	return now, record
}

func currentFile(current State, path string) *netconfig.File {
	for i := range current.Files {
		if current.Files[i].Path == path {
			return &current.Files[i]
		}
	}

	known := func(file netconfig.Change) bool { return file.Path == path }
	if current.Record != nil && slices.ContainsFunc(current.Record.Files, known) {
		return nil
	}

	return current.Config.File(path)
}

// wantedTarget is the kernel as it is to be, and what of it has to be written down anew.
func wantedTarget(args Args, current State, original, before netstate.Target, ports []string) (netstate.Target, netconfig.IP, error) {
	bridge := makeBridgeLink(args, current, original, ports)

	source := current.Config
	if current.Record != nil {
		source = current.Record.Source
	}

	listenForRouters(args, source.Manager, &bridge)

	taken := inherited(original, ports)
	after := netstate.Move(taken, bridge, ports)

	if current.Record != nil {
		// Links as they are now; what DHCP gave the port then is over.
		after = armed.Static(after)
		after.Lenient = false
		after.Links = netstate.Move(before, bridge, ports).Links
	}

	if args.MTU != nil {
		for i := range after.Links {
			after.Links[i].MTU = *args.MTU
		}
	}

	ip, err := applyIP(args, &after, taken)
	if err != nil {
		return after, ip, err
	}

	if current.Record != nil {
		keepForeign(&after, netstate.Move(before, bridge, ports), current.Record.Applied)
		limitIPv6(args, &after)
	}

	return after, ip, nil
}

// keepForeign adds to the target what is on the bridge now and was not made by this module: a DHCP server's address, and
// what somebody added by hand.
func keepForeign(after *netstate.Target, moved, applied netstate.Target) {
	for _, addr := range moved.Addrs {
		known := func(other netstate.Addr) bool { return other.Prefix == addr.Prefix }
		if !slices.ContainsFunc(after.Addrs, known) && (addr.Dynamic() || !slices.ContainsFunc(applied.Addrs, known)) {
			after.Addrs = append(after.Addrs, addr)
		}
	}

	for _, route := range moved.Routes {
		known := func(other netstate.Route) bool { return route.String() == other.String() && route.Src == other.Src }
		dynamic := route.Proto == netstate.ProtoDHCP || route.Proto == netstate.ProtoRA

		if !slices.ContainsFunc(after.Routes, known) && (dynamic || !slices.ContainsFunc(applied.Routes, known)) {
			after.Routes = append(after.Routes, route)
		}
	}

	for _, rule := range moved.Rules {
		known := func(other netstate.Rule) bool { return rule.String() == other.String() }
		if !slices.ContainsFunc(after.Rules, known) && !slices.ContainsFunc(applied.Rules, known) {
			after.Rules = append(after.Rules, rule)
		}
	}
}

func makeBridgeLink(args Args, current State, original netstate.Target, ports []string) netstate.Link {
	port := original.Link(ports[0])
	bridge := netstate.Link{
		Name: args.Name, Kind: "bridge", MAC: args.MAC, MTU: port.MTU, Up: true, Carrier: port.Carrier,
		Bridge: &netstate.Bridge{STP: args.STP, ForwardDelay: uint32(*args.ForwardDelay) * 100, VLANFiltering: args.VLANFiltering},
	}

	for _, name := range ports {
		if link := original.Link(name); link != nil {
			bridge.MTU = min(bridge.MTU, link.MTU) // a bridge can send no more than its least port
		}
	}

	if args.MAC == "port" {
		bridge.MAC = port.MAC
	}

	if current.Net.Link(args.Name) == nil {
		bridge.Sysctls = netstate.InheritedSysctls(*port)
	} else if value, ok := port.Sysctls[disableIPv6]; ok {
		bridge.Sysctls = map[string]string{disableIPv6: value} // it may have been off until now
	}

	return bridge
}

// applyIP replaces in the target what the user gave, and says what is to be written down.
func applyIP(args Args, after *netstate.Target, original netstate.Target) (netconfig.IP, error) {
	ip := netconfig.IP{IPv6: args.IPv6}

	if args.Nameservers != nil {
		ip.Nameservers = append([]string{}, *args.Nameservers...)
	}

	if args.Search != nil {
		ip.Search = append([]string{}, *args.Search...)
	}

	if !args.inherits() {
		ip.Addresses = args.Addresses
		setAddresses(args, after)
	}

	for _, family := range []struct {
		value string
		v6    bool
		write **string
	}{{args.Gateway4, false, &ip.Gateway4}, {args.Gateway6, true, &ip.Gateway6}} {
		gateway, written, err := pickGateway(args, family.value, family.v6, original)
		if err != nil {
			return ip, err
		}

		if written {
			*family.write = &gateway
			setGateway(args.Name, after, gateway, family.v6)
		}
	}

	for _, route := range args.Routes {
		ip.Routes = append(ip.Routes, netconfig.Route(route))
		after.Routes = append(after.Routes, makeRoute(args.Name, route))
	}

	limitIPv6(args, after)

	return ip, checkInherited(args, *after)
}

// limitIPv6 takes out of the target what the user does not want of IPv6.
func limitIPv6(args Args, after *netstate.Target) {
	switch args.IPv6 {
	case "off":
		dropIPv6(after)
	case "static":
		after.Addrs = slices.DeleteFunc(after.Addrs, func(addr netstate.Addr) bool { return !addr.Addr4() && addr.Dynamic() })
		after.Routes = slices.DeleteFunc(after.Routes, func(route netstate.Route) bool { return route.IPv6 && route.Proto == netstate.ProtoRA })
	}
}

// listenForRouters sets whether the kernel itself heeds router advertisements, where the manager leaves that to it.
func listenForRouters(args Args, manager string, bridge *netstate.Link) {
	value := map[string]string{"ra": "1", "static": "0"}[args.IPv6]
	if value == "" || manager != netconfig.Ifupdown {
		return
	}

	if bridge.Sysctls = maps.Clone(bridge.Sysctls); bridge.Sysctls == nil {
		bridge.Sysctls = map[string]string{}
	}

	bridge.Sysctls["ipv6/accept_ra"] = value
}

// checkInherited finds a gateway that the addresses do not reach. (One that the host has now is reached.)
func checkInherited(args Args, after netstate.Target) error {
	if args.Gateway4 == inherit && args.Gateway6 == inherit {
		return nil
	}

	var prefixes []string
	for _, addr := range after.Addrs {
		prefixes = append(prefixes, addr.Prefix)
	}

	for name, value := range map[string]string{"gateway4": args.Gateway4, "gateway6": args.Gateway6} {
		addr, err := netip.ParseAddr(value)
		if err == nil && !onLink(prefixes, addr) {
			return ansible.Fail(CodeAddress, "", "%s %q: is in none of the prefixes %s, so it cannot be reached", name, value, strings.Join(prefixes, ", "))
		}
	}

	return nil
}

// setAddresses puts the given addresses in the place of the port's. Routes that these were the way to go as well; those of
// other links stay.
func setAddresses(args Args, after *netstate.Target) {
	after.Addrs = slices.DeleteFunc(after.Addrs, func(addr netstate.Addr) bool { return addr.Link == args.Name })
	after.Routes = slices.DeleteFunc(after.Routes, func(route netstate.Route) bool { return slices.Contains(route.Devs(), args.Name) })

	for _, address := range args.Addresses {
		addr := netstate.Addr{Link: args.Name, Prefix: address}

		if prefix := netip.MustParsePrefix(address); prefix.Addr().Is4() && prefix.Bits() < 31 {
			addr.Broadcast = broadcast(prefix)
		}

		after.Addrs = append(after.Addrs, addr)
	}
}

func broadcast(prefix netip.Prefix) string {
	bytes := prefix.Masked().Addr().As4()
	for bit := prefix.Bits(); bit < 32; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}

	return netip.AddrFrom4(bytes).String()
}

// pickGateway gives the gateway of a family and whether it has to be written down: it has to when it is given, and when
// given addresses take the place of those that the old gateway came with.
func pickGateway(args Args, value string, v6 bool, original netstate.Target) (gateway string, written bool, err error) {
	switch {
	case value == none:
		return "", true, nil
	case value != inherit:
		return value, true, nil
	case args.inherits():
		return "", false, nil
	}

	var found []string

	for _, route := range original.Routes {
		if route.Default() && route.IPv6 == v6 && route.Via != "" && !slices.Contains(found, route.Via) {
			found = append(found, route.Via)
		}
	}

	if len(found) == 0 {
		return "", true, nil
	}

	option := map[bool]string{false: "gateway4", true: "gateway6"}[v6]

	if len(found) > 1 {
		return "", false, ansible.Fail(CodeAddress, "name the one with "+option, "%s inherit: there are default routes over %s", option, strings.Join(found, " and "))
	}

	addr, err := netip.ParseAddr(found[0])
	if err != nil || !onLink(args.Addresses, addr) {
		return "", false, ansible.Fail(CodeAddress, "give the new one with "+option+", or none",
			"%s inherit: the gateway %s is in none of the prefixes %s", option, found[0], strings.Join(args.Addresses, ", "))
	}

	return found[0], true, nil
}

func setGateway(bridge string, after *netstate.Target, gateway string, v6 bool) {
	after.Routes = slices.DeleteFunc(after.Routes, func(route netstate.Route) bool { return route.Default() && route.IPv6 == v6 })

	if gateway == "" {
		return
	}

	route := netstate.Route{Table: netstate.TableMain, Dst: "default", Type: 1, Dev: bridge, Via: gateway, Proto: 4, IPv6: v6}
	if v6 {
		route.Metric = 1024 // what the kernel makes of none (include/net/ip6_route.h, IP6_RT_PRIO_USER)
	}

	after.Routes = append(after.Routes, route)
}

func makeRoute(bridge string, arg RouteArg) netstate.Route {
	v6 := strings.Contains(arg.To, ":")
	route := netstate.Route{
		IPv6: v6, Table: arg.Table, Dst: arg.To, Type: 1, Dev: bridge, Via: arg.Via, Metric: arg.Metric, OnLink: arg.OnLink, Proto: 4,
	}

	if prefix := netip.MustParsePrefix(arg.To); prefix.Bits() == 0 {
		route.Dst = "default"
	}

	if route.Table == 0 {
		route.Table = netstate.TableMain
	}

	if v6 && route.Metric == 0 {
		route.Metric = 1024
	}

	if !v6 && arg.Via == "" {
		route.Scope = 253 // link (linux/rtnetlink.h), as every route without a gateway
	}

	return route
}

const disableIPv6 = "ipv6/disable_ipv6"

func dropIPv6(after *netstate.Target) {
	after.Addrs = slices.DeleteFunc(after.Addrs, func(addr netstate.Addr) bool { return !addr.Addr4() })
	after.Routes = slices.DeleteFunc(after.Routes, func(route netstate.Route) bool { return route.IPv6 })

	for i := range after.Links {
		sysctls := maps.Clone(after.Links[i].Sysctls)
		if sysctls != nil {
			sysctls[disableIPv6] = "1"
			after.Links[i].Sysctls = sysctls
		}
	}
}

// wantedProbes are what must work after the change; those of the default that do not work before are dropped when it is
// armed.
func wantedProbes(args Args, current State, after netstate.Target) []netprobe.Probe {
	var probes []netprobe.Probe

	for _, name := range args.Probes {
		target, isTCP := strings.CutPrefix(name, "tcp:")

		switch {
		case isTCP:
			probes = append(probes, netprobe.Probe{Kind: netprobe.TCP, Target: target, Why: "asked for", Listens: true})
		case name == "gateway":
			for _, route := range after.Routes {
				if route.Default() && route.Via != "" {
					probes = append(probes, netprobe.Probe{Kind: netprobe.Neighbour, Target: route.Via, Why: "gateway"})
				}
			}
		case name == "dns":
			servers := current.DNS
			if args.Nameservers != nil {
				servers = *args.Nameservers
			}

			for _, server := range servers {
				probes = append(probes, netprobe.Probe{Kind: netprobe.DNS, Target: server, Why: "name server"})
			}
		case name == "controller":
			probes = append(probes, netprobe.Probe{Why: "controller"}) // its address is known to the session alone
		}
	}

	return probes
}

// absent plans the way back to what was there before the first change. Nothing to do gives nil.
func absent(args Args, current State) (*armed.Change, error) {
	record := current.Record
	if record == nil {
		return nil, nil // none, or somebody else's
	}

	var others []string

	for _, port := range current.Net.Ports(args.Name) {
		if !slices.Contains(record.Ports, port) {
			others = append(others, port)
		}
	}

	if len(others) > 0 {
		return nil, ansible.Fail(CodeInUse, "stop what uses the bridge, for example virtual machines", "bridge %q has ports of others: %s", args.Name, strings.Join(others, ", "))
	}

	var files []netconfig.Change

	for _, file := range record.Files {
		have := currentFile(current, file.Path)

		switch {
		case reflect.DeepEqual(have, file.Before):
			continue
		case !sameContent(have, file.After):
			return nil, ansible.Fail(CodeFilesChanged, "undo that change, or run the module with state: present once more; what was there before is in "+armed.DefaultDir,
				"file %q was changed by somebody else since this module wrote it", file.Path)
		}

		files = append(files, netconfig.Change{Path: file.Path, Before: have, After: file.Before})
	}

	err := checkFiles(Args{Exclusive: true}, current, files)
	if err != nil {
		return nil, err
	}

	before := netstate.Capture(current.Net, args.Name, record.Ports)
	after := backTarget(args.Name, record, before)

	old := managerNow(current, record.Ports)
	back := armed.Manager{
		Name: record.Source.Manager, Renderer: record.Source.Renderer, Up: append([]string{"-" + args.Name}, record.Ports...),
		Dynamic: dynamicLink(record.Original.Addrs),
	}
	back.Expect, back.Profiles = netconfig.InForce(record.Source, record.Ports)

	return &armed.Change{
		Summary: "and give all it has back to " + strings.Join(record.Ports, ", "),
		Before:  before, After: after, Files: files, Resolv: current.Resolv, Old: old, New: back,
		Probes: wantedProbes(args, current, after),
	}, nil
}

func sameContent(have, want *netconfig.File) bool {
	if have == nil || want == nil {
		return have == want
	}

	return bytes.Equal([]byte(have.Content), []byte(want.Content))
}

// backTarget is what the ports had, with the addresses that a DHCP server gave meanwhile in place of those it gave then.
func backTarget(bridge string, record *armed.Record, before netstate.Target) netstate.Target {
	after := record.Original
	dynamic := slices.ContainsFunc(after.Addrs, netstate.Addr.Dynamic)
	static := armed.Static(after)
	after.Addrs, after.Routes, after.Lenient = static.Addrs, static.Routes, true
	after.Links = slices.Clone(record.Original.Links) // with the bridge, if it was somebody's before, and empty

	for i := range after.Links {
		if now := before.Link(after.Links[i].Name); now != nil && now.Name != bridge {
			after.Links[i].Carrier = now.Carrier && after.Links[i].Up // one that is set down has none
		}
	}

	if !dynamic {
		return after
	}

	for _, addr := range before.Addrs {
		if addr.Dynamic() {
			addr.Link = record.Ports[0]
			after.Addrs = append(after.Addrs, addr)
		}
	}

	for _, route := range before.Routes {
		if (route.Proto == netstate.ProtoDHCP || route.Proto == netstate.ProtoRA) && len(route.Hops) == 0 {
			route.Dev = record.Ports[0]
			after.Routes = append(after.Routes, route)
		}
	}

	return after
}
