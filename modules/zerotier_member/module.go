// SPDX-License-Identifier: Apache-2.0

// Package zerotiermember makes a node a member of a ZeroTier network: authorised at the controller, joined on the host,
// with its addresses in the kernel.
package zerotiermember

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/ztapi"
)

// Args are the module's options.
type Args struct {
	NetworkID string  `ansible:"network_id,required"`
	State     string  `ansible:"state" choices:"present,absent" default:"present"`
	NodeID    *string `ansible:"node_id"`
	ztapi.ServiceOptions
	AllowManaged *bool `ansible:"allow_managed"`
	AllowGlobal  *bool `ansible:"allow_global"`
	AllowDefault *bool `ansible:"allow_default"`
	AllowDNS     *bool `ansible:"allow_dns"`

	Controller      ztapi.ControllerOptions `ansible:"controller,apply_defaults"`
	Authorized      *bool                   `ansible:"authorized"`
	Name            *string                 `ansible:"name"`
	Description     *string                 `ansible:"description"`
	Hidden          *bool                   `ansible:"hidden"`
	Addresses       *[]string               `ansible:"ip_assignments"`
	AddressesState  string                  `ansible:"ip_assignments_state" choices:"exact,merge" default:"exact"`
	Duplicates      string                  `ansible:"duplicates" choices:"refuse,warn" default:"refuse"`
	NoAutoAssignIPs *bool                   `ansible:"no_auto_assign_ips"`
	ActiveBridge    *bool                   `ansible:"active_bridge"`
	Tags            *map[string]int64       `ansible:"tags"`
	Capabilities    *[]int64                `ansible:"capabilities"`
	MemberOnAbsent  string                  `ansible:"member_on_absent" choices:"keep,deauthorize,delete" default:"keep"`

	Wait          bool             `ansible:"wait" default:"true"`
	WaitTimeout   ansible.Duration `ansible:"wait_timeout" default:"90s"`
	WaitFor       string           `ansible:"wait_for" choices:"online,ok,addresses" default:"addresses"`
	WaitAddresses []string         `ansible:"wait_addresses"`
	WaitRoutes    []Route          `ansible:"wait_routes"`
	Test          []Probe          `ansible:"test"`
	Rollback      bool             `ansible:"rollback" default:"true"`
}

// Route is a route that the kernel is to have.
type Route struct {
	Target string  `ansible:"target,required"`
	Via    *string `ansible:"via"`
}

// Probe asks whether another member can be reached.
type Probe struct {
	Address  string           `ansible:"address,required"`
	Port     *int             `ansible:"port"`
	Timeout  ansible.Duration `ansible:"timeout" default:"10s"`
	Required bool             `ansible:"required" default:"true"`
}

// Values are what the module returns.
type Values struct {
	NodeID            string        `json:"node_id"`
	NetworkID         string        `json:"network_id"`
	Status            string        `json:"status"`
	Online            bool          `json:"online"`
	Type              string        `json:"type"`
	Device            string        `json:"device"`
	MAC               string        `json:"mac"`
	AssignedAddresses []string      `json:"assigned_addresses"`
	KernelAddresses   []string      `json:"kernel_addresses"`
	RFC4193Address    string        `json:"rfc4193_address"`
	SixPlaneAddress   string        `json:"sixplane_address"`
	Routes            []ztapi.Route `json:"routes"`
	DNS               ztapi.DNS     `json:"dns"`
	Member            MemberValues  `json:"member"`
	ControllerKind    string        `json:"controller_kind"`
	WaitedS           float64       `json:"waited_s"`
	Tests             []ProbeResult `json:"tests"`
}

// MemberValues are the controller's record before and after.
type MemberValues struct {
	Before *ztapi.Member `json:"before"`
	After  *ztapi.Member `json:"after"`
}

// ProbeResult is what came of a probe.
type ProbeResult struct {
	Address string  `json:"address"`
	Port    *int    `json:"port"`
	OK      bool    `json:"ok"`
	Reason  string  `json:"reason"`
	TookMS  float64 `json:"took_ms"`
}

// Failure codes of this module.
const (
	CodeAddressTaken    ansible.Code = "address_taken"
	CodeNotAuthorized   ansible.Code = "not_authorized"
	CodeNetworkNotFound ansible.Code = "network_not_found"
	CodeNotReached      ansible.Code = "controller_not_reached"
	CodeOffline         ansible.Code = "offline"
	CodeAuthentication  ansible.Code = "authentication_required"
	CodeRefusedByNode   ansible.Code = "refused_by_node"
	CodeAddressMissing  ansible.Code = "address_missing"
	CodeRouteMissing    ansible.Code = "route_missing"
	CodeTestFailed      ansible.Code = "test_failed"
)

// Module is zerotier_member.
var Module = ansible.Module[Args, State, Values]{
	Name: "zerotier_member",
	Codes: ztapi.Codes(map[ansible.Code]string{
		CodeAddressTaken:          "another member has an address that this one is to get",
		CodeNotAuthorized:         "the controller refuses the node (ACCESS_DENIED)",
		CodeNetworkNotFound:       "the network's controller says that there is no such network (NOT_FOUND)",
		CodeNotReached:            "the network's controller did not answer the node (REQUESTING_CONFIGURATION)",
		CodeOffline:               "the node reaches no root server, so what it says of its networks is old",
		CodeAuthentication:        "a person has to sign in (AUTHENTICATION_REQUIRED)",
		CodeRefusedByNode:         "the node itself cannot take part (PORT_ERROR, CLIENT_TOO_OLD)",
		CodeAddressMissing:        "an address of the member is not on its network device",
		CodeRouteMissing:          "a route of wait_routes does not lead over the network's device",
		ztapi.CodeStoredOtherwise: "the controller took a change and stored something else",
		CodeTestFailed:            "an address that is to be reached over the network is not",
	}),
	Details:   []string{"authentication_url", "rolled_back", "status", "tests", "waited_s"},
	Normalize: normalize,
	Open:      open,
	Plan:      makePlan,
	Result:    makeValues,
}

// managed tells whether the task has a controller side.
func (a Args) managed() bool { return a.Controller.Kind != ztapi.KindNone }

// local tells whether it has a side on the host: with node_id it has none.
func (a Args) local() bool { return a.NodeID == nil }

func normalize(args *Args) error {
	var err error

	errs := []error{args.ServiceOptions.Check(), args.Controller.Check()}

	args.NetworkID, err = ztapi.ParseNetworkID(args.NetworkID)
	errs = append(errs, label("network_id", err))

	if args.NodeID != nil {
		*args.NodeID, err = ztapi.ParseNodeID(*args.NodeID)
		errs = append(errs, label("node_id", err))
	}

	if args.Addresses != nil {
		*args.Addresses, err = ztapi.ParseAddresses("ip_assignments", *args.Addresses)
		errs = append(errs, err)
	}

	args.WaitAddresses, err = ztapi.ParseAddresses("wait_addresses", args.WaitAddresses)
	errs = append(errs, err, args.checkSides(), args.checkKind(), args.checkTags(), args.checkRoutes(), args.checkTest())

	if args.WaitTimeout <= 0 {
		errs = append(errs, errors.New("wait_timeout: must be more than 0"))
	}

	if args.Capabilities != nil {
		slices.Sort(*args.Capabilities)
		*args.Capabilities = slices.Compact(*args.Capabilities)
	}

	return errors.Join(errs...)
}

func label(option string, err error) error {
	if err == nil {
		return nil
	}

	return fmt.Errorf("%s: %w", option, err)
}

// given lists which of some options were given.
func given(options map[string]bool) []string {
	var names []string

	for name, set := range options {
		if set {
			names = append(names, name)
		}
	}

	slices.Sort(names)

	return names
}

// memberOptions are the options about the controller's record.
func (a Args) memberOptions() []string {
	return given(map[string]bool{
		"authorized": a.Authorized != nil, "name": a.Name != nil, "description": a.Description != nil, "hidden": a.Hidden != nil,
		"ip_assignments": a.Addresses != nil, "no_auto_assign_ips": a.NoAutoAssignIPs != nil, "active_bridge": a.ActiveBridge != nil,
		"tags": a.Tags != nil, "capabilities": a.Capabilities != nil, "member_on_absent": a.MemberOnAbsent != "keep",
	})
}

// checkSides refuses options of a side that the task does not have: ignored, they would seem to work.
func (a Args) checkSides() error {
	var errs []error

	if names := a.memberOptions(); !a.managed() && len(names) > 0 {
		errs = append(errs, fmt.Errorf("%q: need controller.kind", names))
	}

	if !a.managed() && !a.local() {
		errs = append(errs, errors.New("node_id: with it the task only speaks to a controller: controller.kind is needed"))
	}

	local := given(map[string]bool{
		"allow_managed": a.AllowManaged != nil, "allow_global": a.AllowGlobal != nil, "allow_default": a.AllowDefault != nil,
		"allow_dns": a.AllowDNS != nil, "wait_addresses": len(a.WaitAddresses) > 0, "wait_routes": len(a.WaitRoutes) > 0, "test": len(a.Test) > 0,
	})
	if !a.local() && len(local) > 0 {
		errs = append(errs, fmt.Errorf("%q: are about the host, and with node_id the task only speaks to a controller", local))
	}

	return errors.Join(errs...)
}

// checkKind refuses what the kind of controller cannot do.
func (a Args) checkKind() error {
	lacks := map[string]map[string]bool{
		ztapi.KindSelfHosted: {"description": a.Description != nil, "hidden": a.Hidden != nil},
		ztapi.KindCentralV2:  {"hidden": a.Hidden != nil, "tags": a.Tags != nil, "capabilities": a.Capabilities != nil},
	}[a.Controller.Kind]

	if names := given(lacks); len(names) > 0 {
		return fmt.Errorf("%q: a controller of kind %s cannot set that", names, a.Controller.Kind)
	}

	return nil
}

func (a Args) checkTags() error {
	if a.Tags == nil {
		return nil
	}

	var errs []error

	for id, value := range *a.Tags {
		_, err := strconv.ParseUint(id, 10, 32)
		if err != nil || value < 0 || value > 1<<32-1 {
			errs = append(errs, fmt.Errorf("tags: %s: %d: both are numbers from 0 to 4294967295", id, value))
		}
	}

	return errors.Join(errs...)
}

// checkRoutes gives routes the form that the kernel's have.
func (a Args) checkRoutes() error {
	var errs []error

	for i, route := range a.WaitRoutes {
		via := ""
		if route.Via != nil {
			via = *route.Via
		}

		made, err := ztapi.ParseRoute("wait_routes", route.Target, via)
		errs = append(errs, err)
		a.WaitRoutes[i] = Route{made.Target, &made.Via}
	}

	return errors.Join(errs...)
}

func (a Args) checkTest() error {
	var errs []error

	for _, probe := range a.Test {
		addr, err := netip.ParseAddr(probe.Address)

		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("test: %q is not an IP address", probe.Address))
		case addr.IsUnspecified(), addr.IsMulticast(), addr.IsLoopback():
			errs = append(errs, fmt.Errorf("test: %q is not the address of another host", probe.Address))
		case probe.Port != nil && (*probe.Port < 1 || *probe.Port > 65535):
			errs = append(errs, fmt.Errorf("test: port %d is not between 1 and 65535", *probe.Port))
		case probe.Timeout <= 0:
			errs = append(errs, errors.New("test: timeout must be more than 0"))
		}
	}

	if len(a.Test) > 0 && (!a.Wait || a.State != "present") {
		errs = append(errs, errors.New("test: needs wait and state present"))
	}

	return errors.Join(errs...)
}

func open(ctx context.Context, task *ansible.Task, args Args) (ansible.Host[State], error) {
	made := &host{args: args, task: task}

	if args.local() {
		service, err := ztapi.OpenService(ctx, args.ServiceOptions, task.Hide)

		// A host where nothing is installed yet has nothing to leave, and check mode can still say what would come.
		missing := made.noService(err) && (task.Check || args.State == "absent")
		if err != nil && !missing {
			return nil, err
		}

		if err == nil {
			made.service = service
		}
	}

	if args.managed() && args.local() && made.service == nil && args.State == "absent" && args.MemberOnAbsent != "keep" {
		task.Warn("there is no ZeroTier service in %s, so which node it was is not known, and no record at the controller is touched; give node_id to deal with one", args.Home)
	}

	// A self-hosted controller without URL is the host's own service.
	if !args.managed() || args.local() && made.service == nil {
		return made, nil
	}

	controller, err := ztapi.OpenController(ctx, args.Controller, args.ServiceOptions, task.Hide)
	made.controller = controller

	return made, err
}

// noService tells an error about a service that was never there from one about a service that cannot be reached.
func (h *host) noService(err error) bool {
	var failure *ansible.Failure
	if !errors.As(err, &failure) || failure.Code != ztapi.CodeServiceMissing || h.args.APIURL != "" {
		return false
	}

	_, statErr := os.Stat(string(h.args.Home))

	return errors.Is(statErr, fs.ErrNotExist)
}

func makeValues(args Args, final State) Values {
	values := Values{
		NodeID: final.Node, NetworkID: args.NetworkID, Online: final.Online, AssignedAddresses: []string{}, KernelAddresses: final.Kernel,
		Routes: []ztapi.Route{}, DNS: ztapi.DNS{Servers: []string{}}, Member: MemberValues{final.before, final.Member},
		ControllerKind: args.Controller.Kind, WaitedS: final.waited.Seconds(), Tests: final.tests,
	}

	if final.Node != "" {
		values.RFC4193Address, values.SixPlaneAddress = ztapi.RFC4193(args.NetworkID, final.Node), ztapi.SixPlane(args.NetworkID, final.Node)
	}

	if joined := final.Joined; joined != nil {
		values.Status, values.Type, values.Device, values.MAC = joined.Status, joined.Type, joined.Device, joined.MAC
		values.AssignedAddresses, values.Routes, values.DNS = joined.Assigned, joined.Routes, joined.DNS
	}

	if values.KernelAddresses == nil {
		values.KernelAddresses = []string{}
	}

	if values.Tests == nil {
		values.Tests = []ProbeResult{}
	}

	return values
}
