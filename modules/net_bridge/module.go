// SPDX-License-Identifier: Apache-2.0

// Package netbridge moves a host's uplink into a bridge, and back, without losing the host: see package armed.
package netbridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/armed"
	"github.com/thinkube/infra/modules/internal/netstate"
)

// Args are the module's options.
type Args struct {
	Name           string           `ansible:"name,required"`
	State          string           `ansible:"state" choices:"present,absent" default:"present"`
	Ports          []string         `ansible:"ports" default:"auto"`
	Addresses      []string         `ansible:"addresses" default:"inherit"`
	Gateway4       string           `ansible:"gateway4" default:"inherit"`
	Gateway6       string           `ansible:"gateway6" default:"inherit"`
	Nameservers    *[]string        `ansible:"nameservers"`
	Search         *[]string        `ansible:"search"`
	Routes         []RouteArg       `ansible:"routes"`
	MTU            *int             `ansible:"mtu"`
	MAC            string           `ansible:"mac" default:"port"`
	STP            bool             `ansible:"stp" default:"false"`
	ForwardDelay   *int             `ansible:"forward_delay"`
	VLANFiltering  bool             `ansible:"vlan_filtering" default:"false"`
	IPv6           string           `ansible:"ipv6" choices:"inherit,ra,static,off" default:"inherit"`
	Manager        string           `ansible:"manager" choices:"auto,netplan,networkd,networkmanager,ifupdown" default:"auto"`
	Exclusive      bool             `ansible:"exclusive" default:"true"`
	Phase          string           `ansible:"phase" choices:"plan,stage,apply,confirm,rollback" default:"apply"`
	ConfirmTimeout ansible.Duration `ansible:"confirm_timeout" default:"90s"`
	Probes         []string         `ansible:"probes" default:"gateway,controller,dns"`
	Ticket         string           `ansible:"ticket"`

	wanted string // stands for what was asked for, however it is to be brought about
}

// RouteArg is a static route.
type RouteArg struct {
	To     string `ansible:"to,required"`
	Via    string `ansible:"via"`
	Table  int    `ansible:"table" default:"0"`
	Metric int    `ansible:"metric" default:"0"`
	OnLink bool   `ansible:"on_link" default:"false"`
}

// Values are what the module returns.
type Values struct {
	Bridge  *Bridge  `json:"bridge"`
	Manager string   `json:"manager"`
	Steps   []string `json:"steps"`
	Files   []string `json:"files"`
	Armed   *Armed   `json:"armed"`
}

// Bridge is the bridge as users see it.
type Bridge struct {
	Name      string   `json:"name"`
	MAC       string   `json:"mac"`
	MTU       int      `json:"mtu"`
	Ports     []string `json:"ports"`
	Addresses []string `json:"addresses"`
	Gateways  []string `json:"gateways"`
	STP       bool     `json:"stp"`
}

// Armed is a change that is not confirmed yet, or was undone.
type Armed struct {
	Ticket  string `json:"ticket"`
	Bridge  string `json:"bridge"`
	Phase   string `json:"phase"`
	Summary string `json:"summary"`
	Guarded bool   `json:"guarded"`
	Reason  string `json:"reason,omitempty"`
	Failed  string `json:"failed,omitempty"`

	Wanted string `json:"wanted"`
	Ours   bool   `json:"ours,omitempty"` // armed by this very task, which goes on over a new connection
	// Provable tells that this task's connection is newer than the change, or that a newer one can be had.
	Provable bool `json:"provable,omitempty"`
}

// Failure codes of this module.
const (
	CodeNameTaken     ansible.Code = "name_taken"
	CodeForeignBridge ansible.Code = "foreign_bridge"
	CodePort          ansible.Code = "port"
	CodeAmbiguous     ansible.Code = "ambiguous_port"
	CodeAddress       ansible.Code = "address"
	CodeAddressInUse  ansible.Code = "address_in_use"
	CodeManager       ansible.Code = "manager"
	CodeUnsupported   ansible.Code = "unsupported"
	CodeReadOnly      ansible.Code = "read_only"
	CodeArmed         ansible.Code = "armed_change"
	CodeRolledBack    ansible.Code = "rolled_back"
	CodeNotUndone     ansible.Code = "not_undone"
	CodeOldConnection ansible.Code = "old_connection"
	CodeInUse         ansible.Code = "in_use"
	CodeFilesChanged  ansible.Code = "files_changed"
	CodeInvalidConfig ansible.Code = "invalid_config"
)

// Module is net_bridge.
var Module = ansible.Module[Args, State, Values]{
	Name: "net_bridge",
	Lock: "net_bridge", // a host has one change at a time
	Codes: map[ansible.Code]string{
		CodeNameTaken:     "a link of the bridge's name exists and is no bridge",
		CodeForeignBridge: "a bridge of that name was made by somebody else and is not as asked for",
		CodePort:          "a port does not exist, or cannot or must not become one",
		CodeAmbiguous:     "which link is the uplink cannot be told; there is no default route, or several lead over different links",
		CodeAddress:       "an address or gateway does not fit the others",
		CodeAddressInUse:  "another host answers for an address that the bridge is to have",
		CodeManager:       "nobody, or more than one, manages the port's network",
		CodeUnsupported:   "the network's manager cannot say what is asked for, or its files would have to be changed for other links too",
		CodeReadOnly:      "the manager's files cannot be written",
		CodeArmed:         "an earlier change is neither confirmed nor undone",
		CodeRolledBack:    "the change was made and undone again, by the host or by somebody else; msg says why",
		CodeNotUndone:     "the change was made and could not be undone altogether; what was there before is kept on the host",
		CodeOldConnection: "a confirmation has to come over an ssh connection that was opened after the change",
		CodeInUse:         "the bridge has ports of others, such as virtual machines",
		CodeFilesChanged:  "a file that this module wrote was changed by somebody else since",
		CodeInvalidConfig: "the files that were to be written would be refused or misread; nothing was touched",
	},
	Normalize: normalize,
	Open:      open,
	Plan:      makePlan,
	Result:    makeValues,
	Services: map[string]func(context.Context) error{
		"guard": func(ctx context.Context) error { return store.Guard(ctx) },
		"apply": func(ctx context.Context) error { return store.Apply(ctx) },
		"boot":  func(ctx context.Context) error { return store.Boot(ctx) },
	},
}

var store = armed.Store{Dir: armed.DefaultDir}

const (
	inherit = "inherit"
	none    = "none"
	auto    = "auto"
)

// maxName is the kernel's limit (IFNAMSIZ less the terminating zero).
const maxName = 15

// validDomain also takes systemd-resolved's "~example.org", a domain that is only routed by (systemd.network(5), Domains=).
var validDomain = regexp.MustCompile(`^~?[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})$|^~?\.$`)

// validName is less than the kernel takes: a name also stands in files and, with ifupdown, in commands.
var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

var validTicket = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

func normalize(args *Args) error {
	var errs []error

	add := func(format string, values ...any) { errs = append(errs, fmt.Errorf(format, values...)) }

	if len(args.Name) > maxName || !validName.MatchString(args.Name) {
		add("name %q: must have 1 to %d letters, digits, dots, hyphens and underscores, a letter or digit first", args.Name, maxName)
	}

	if args.Ticket != "" && !validTicket.MatchString(args.Ticket) {
		add("ticket %q: must be up to 64 letters, digits, dots, hyphens and underscores", args.Ticket)
	}

	errs = append(errs, checkPorts(args), checkAddresses(args), checkGateways(args), checkRoutes(args), checkProbes(args))

	if args.Nameservers != nil {
		for _, server := range *args.Nameservers {
			if _, err := netip.ParseAddr(server); err != nil {
				add("nameservers: %q is no address", server)
			}
		}
	}

	if args.Search != nil {
		for _, domain := range *args.Search {
			if !validDomain.MatchString(domain) {
				add("search: %q is no domain", domain)
			}
		}
	}

	// IPv4's least is 68 (RFC 791), and 1280 where there is IPv6 (RFC 8200, 5).
	if args.MTU != nil && (*args.MTU < 68 || *args.MTU > 65535) {
		add("mtu %d: must be 68 to 65535", *args.MTU)
	}

	if args.MAC != "port" {
		mac, err := net.ParseMAC(args.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			add("mac %q: must be \"port\", or the address of one host, for example 02:00:00:00:00:01", args.MAC)
		} else {
			args.MAC = mac.String()
		}
	}

	if args.ForwardDelay == nil {
		delay := 0
		if args.STP {
			delay = 15
		}

		args.ForwardDelay = &delay
	}

	// The kernel takes any delay without spanning tree, and with it what IEEE 802.1D allows.
	if delay := *args.ForwardDelay; delay < 0 || delay > 30 || args.STP && delay < 2 {
		add("forward_delay %d: must be 0 to 30 seconds, and at least 2 with stp", delay)
	}

	if limit := args.ConfirmTimeout; args.STP && limit > 0 && limit < 2*time.Duration(*args.ForwardDelay)*time.Second+10*time.Second {
		add("confirm_timeout %s: a port with stp forwards only after twice the forward_delay of %ds; allow at least 10s more", limit, *args.ForwardDelay)
	}

	if limit := args.ConfirmTimeout; limit != 0 && (limit < 10*time.Second || limit > time.Hour) {
		add("confirm_timeout %s: must be 10s to 1h, or 0 for a change that nobody needs to confirm", limit)
	}

	args.wanted = wantedHash(*args)

	return errors.Join(errs...)
}

func (a Args) inherits() bool { return slices.Equal(a.Addresses, []string{inherit}) }

func (a Args) auto() bool { return slices.Equal(a.Ports, []string{auto}) }

func checkPorts(args *Args) error {
	var errs []error

	for i, port := range args.Ports {
		if mac, err := net.ParseMAC(port); err == nil {
			args.Ports[i] = mac.String()
		}

		if slices.Contains(args.Ports[:i], args.Ports[i]) {
			errs = append(errs, fmt.Errorf("ports: %q comes twice", port))
		}

		if port == args.Name {
			errs = append(errs, fmt.Errorf("ports: %q is the bridge itself", port))
		}

		if port == auto && len(args.Ports) > 1 {
			errs = append(errs, errors.New("ports: auto is one port and stands alone"))
		}
	}

	if len(args.Ports) == 0 && args.inherits() && args.State == "present" {
		errs = append(errs, errors.New("ports: there must be one whose addresses are inherited; or give addresses"))
	}

	if len(args.Ports) == 0 && !args.inherits() {
		errs = append(errs, errors.New("ports: a bridge without ports is no uplink; this module moves one"))
	}

	return errors.Join(errs...)
}

func checkAddresses(args *Args) error {
	if args.inherits() {
		return nil
	}

	var errs []error

	for i, text := range args.Addresses {
		prefix, err := netip.ParsePrefix(text)
		if text == inherit {
			errs = append(errs, errors.New("addresses: inherit stands alone: it means all that the port has"))

			continue
		}

		if err != nil {
			errs = append(errs, fmt.Errorf("addresses: %q: must be an address with its prefix length, for example 192.168.1.10/24", text))

			continue
		}

		if prefix.Bits() < prefix.Addr().BitLen()-1 && prefix.Masked().Addr() == prefix.Addr() {
			errs = append(errs, fmt.Errorf("addresses: %q is the address of the subnet itself", text))
		}

		if prefix.Addr().Is6() && args.IPv6 == "off" {
			errs = append(errs, fmt.Errorf("addresses: %q with ipv6 off", text))
		}

		args.Addresses[i] = prefix.String()

		if slices.Contains(args.Addresses[:i], prefix.String()) {
			errs = append(errs, fmt.Errorf("addresses: %q comes twice", text))
		}
	}

	if len(args.Addresses) == 0 {
		errs = append(errs, errors.New("addresses: there must be one, or the host is lost"))
	}

	return errors.Join(errs...)
}

// onLink tells whether one of the prefixes has the address. A link-local gateway is on every link.
func onLink(prefixes []string, gateway netip.Addr) bool {
	return gateway.Is6() && gateway.IsLinkLocalUnicast() || slices.ContainsFunc(prefixes, func(text string) bool {
		prefix, err := netip.ParsePrefix(text)

		return err == nil && prefix.Contains(gateway)
	})
}

func checkGateways(args *Args) error {
	var errs []error

	for _, each := range []struct {
		name, value string
		v6          bool
	}{{"gateway4", args.Gateway4, false}, {"gateway6", args.Gateway6, true}} {
		if each.value == inherit || each.value == none {
			continue
		}

		addr, err := netip.ParseAddr(each.value)

		switch {
		case err != nil || addr.Is6() != each.v6:
			errs = append(errs, fmt.Errorf("%s %q: must be inherit, none, or an address of that family", each.name, each.value))
		case !args.inherits() && !onLink(args.Addresses, addr):
			errs = append(errs, fmt.Errorf("%s %q: is in none of the prefixes %s, so it cannot be reached", each.name, each.value, strings.Join(args.Addresses, ", ")))
		case slices.ContainsFunc(args.Addresses, func(text string) bool { return strings.HasPrefix(text, each.value+"/") }):
			errs = append(errs, fmt.Errorf("%s %q: is the host's own address", each.name, each.value))
		}
	}

	return errors.Join(errs...)
}

func checkRoutes(args *Args) error {
	var errs []error

	for i, route := range args.Routes {
		to, err := netip.ParsePrefix(route.To)
		if err != nil {
			errs = append(errs, fmt.Errorf("routes: to %q: must be a prefix, for example 10.0.0.0/8", route.To))

			continue
		}

		args.Routes[i].To = to.Masked().String()

		if to.Bits() == 0 && route.Table == 0 {
			errs = append(errs, fmt.Errorf("routes: %q is a default route: give it as gateway4 or gateway6, or a table", route.To))
		}

		if via, err := netip.ParseAddr(route.Via); route.Via != "" && (err != nil || via.Is6() != to.Addr().Is6()) {
			errs = append(errs, fmt.Errorf("routes: via %q: must be an address of the family of %q", route.Via, route.To))
		}

		if route.Table < 0 || route.Metric < 0 || route.Table == netstate.TableLocal {
			errs = append(errs, fmt.Errorf("routes: table %d, metric %d: must not be negative, and table 255 is the kernel's", route.Table, route.Metric))
		}
	}

	return errors.Join(errs...)
}

func checkProbes(args *Args) error {
	var errs []error

	for _, probe := range args.Probes {
		if target, ok := strings.CutPrefix(probe, "tcp:"); ok {
			_, err := netip.ParseAddrPort(target)
			if err != nil {
				errs = append(errs, fmt.Errorf("probes: %q: must be tcp:ADDRESS:PORT", probe))
			}
		} else if !slices.Contains([]string{"gateway", "controller", "dns"}, probe) {
			errs = append(errs, fmt.Errorf("probes: %q: must be gateway, controller, dns, or tcp:ADDRESS:PORT", probe))
		}
	}

	return errors.Join(errs...)
}

func makeValues(_ Args, final State) Values {
	values := Values{Manager: final.Config.Manager, Steps: final.Steps, Files: []string{}, Armed: final.Armed}

	if values.Steps == nil {
		values.Steps = []string{}
	}

	if final.Record != nil {
		values.Manager = final.Record.Source.Manager

		for _, file := range final.Record.Files {
			values.Files = append(values.Files, file.Path)
		}
	}

	values.Bridge = makeBridge(final.Net, final.Name)

	return values
}

// makeBridge shows a bridge; nil when there is none.
func makeBridge(state netstate.Net, name string) *Bridge {
	link := state.Link(name)
	if link == nil || link.Kind != "bridge" {
		return nil
	}

	bridge := &Bridge{
		Name: name, MAC: link.MAC, MTU: link.MTU, Ports: state.Ports(name), Addresses: []string{}, Gateways: []string{},
		STP: link.Bridge != nil && link.Bridge.STP,
	}

	if bridge.Ports == nil {
		bridge.Ports = []string{}
	}

	for _, addr := range state.AddrsOf(name) {
		bridge.Addresses = append(bridge.Addresses, addr.Prefix)
	}

	for _, route := range state.RoutesOf(name) {
		if route.Default() && route.Via != "" {
			bridge.Gateways = append(bridge.Gateways, route.Via)
		}
	}

	return bridge
}
