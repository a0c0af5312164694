// SPDX-License-Identifier: Apache-2.0

// Package zerotiernetwork manages a network at its controller: what its members get from it, never its members.
package zerotiernetwork

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/ztapi"
)

// Args are the module's options.
type Args struct {
	NetworkID     string                  `ansible:"network_id"`
	NetworkNumber string                  `ansible:"network_number"`
	State         string                  `ansible:"state" choices:"present,absent" default:"present"`
	Controller    ztapi.ControllerOptions `ansible:"controller,apply_defaults"`
	ztapi.ServiceOptions
	Name                 *string           `ansible:"name"`
	Description          *string           `ansible:"description"`
	Private              *bool             `ansible:"private"`
	Broadcast            *bool             `ansible:"broadcast"`
	MTU                  *int              `ansible:"mtu"`
	MulticastLimit       *int              `ansible:"multicast_limit"`
	ConfirmMulticastZero bool              `ansible:"confirm_multicast_zero" default:"false"`
	Pools                *[]Pool           `ansible:"pools"`
	Routes               *[]Route          `ansible:"routes"`
	Exact                bool              `ansible:"exact" default:"false"`
	V4Assign             *bool             `ansible:"v4_assign"`
	V6Assign             *V6Assign         `ansible:"v6_assign"`
	DNS                  *DNS              `ansible:"dns"`
	Rules                *[]map[string]any `ansible:"rules"`
	FlowRules            *string           `ansible:"flow_rules"`
	Force                bool              `ansible:"force" default:"false"`
}

// Pool is a range of addresses.
type Pool struct {
	Start string `ansible:"start,required"`
	End   string `ansible:"end,required"`
}

// Route is a route that members get.
type Route struct {
	Target string  `ansible:"target,required"`
	Via    *string `ansible:"via"`
}

// V6Assign says which IPv6 addresses members get; what is not given stays.
type V6Assign struct {
	Pools    *bool `ansible:"zt"`
	RFC4193  *bool `ansible:"rfc4193"`
	SixPlane *bool `ansible:"sixplane"`
}

// DNS is what members are told of names.
type DNS struct {
	Domain  string   `ansible:"domain" default:""`
	Servers []string `ansible:"servers"`
}

// Values are what the module returns.
type Values struct {
	NetworkID string         `json:"network_id"`
	Network   *ztapi.Network `json:"network"`
}

// CodeInUse is the failure code of this module.
const CodeInUse ansible.Code = "in_use"

// Module is zerotier_network.
var Module = ansible.Module[Args, State, Values]{
	Name: "zerotier_network",
	Rules: ansible.Rules{
		MutuallyExclusive: [][]string{{"network_id", "network_number"}, {"rules", "flow_rules"}},
	},
	Codes: ztapi.Codes(map[ansible.Code]string{
		CodeInUse:                 "the network has members",
		ztapi.CodeStoredOtherwise: "the controller took a change and stored something else",
	}),
	Normalize: normalize,
	Open:      open,
	Plan:      makePlan,
	Result: func(_ Args, final State) Values {
		return Values{NetworkID: final.ID, Network: final.Network}
	},
}

func normalize(args *Args) error {
	var err error

	errs := []error{args.ServiceOptions.Check(), args.Controller.Check(), args.checkKind(), args.checkNumbers()}

	if args.NetworkID != "" {
		args.NetworkID, err = ztapi.ParseNetworkID(args.NetworkID)
		if err != nil {
			errs = append(errs, fmt.Errorf("network_id: %w", err))
		}
	}

	args.NetworkNumber = strings.ToLower(args.NetworkNumber)
	if args.NetworkNumber != "" && !numberPattern.MatchString(args.NetworkNumber) {
		errs = append(errs, fmt.Errorf("network_number: %q is not 6 hexadecimal digits", args.NetworkNumber))
	}

	return errors.Join(append(errs, args.checkRoutes(), args.checkPools(), args.checkDNS(), args.checkRules())...)
}

var numberPattern = regexp.MustCompile(`^[0-9a-f]{6}$`)

func (a Args) checkKind() error {
	var errs []error

	refuse := func(given bool, option, why string) {
		if given {
			errs = append(errs, fmt.Errorf("%s: %s", option, why))
		}
	}

	kind := a.Controller.Kind
	central := kind != ztapi.KindSelfHosted

	refuse(kind == ztapi.KindNone, "controller.kind", "one of self_hosted, central_v1, central_v2 is needed")
	refuse(!central && a.NetworkID == "" && a.NetworkNumber == "", "network_id", "that or network_number is needed")
	refuse(central && a.NetworkNumber != "", "network_number", "is for self-hosted controllers; Central chooses the id of a new network")
	refuse(central && a.NetworkID == "" && (a.Name == nil || *a.Name == ""), "name", "is what a network without network_id is found by")
	refuse(kind == ztapi.KindCentralV2 && a.NetworkID == "" && a.Controller.Group == "", "controller.network_group", "is needed for a network without network_id")
	refuse(a.Description != nil && !central, "description", "a self-hosted controller has none")
	refuse(a.Rules != nil && central, "rules", "are for self-hosted controllers; Central v1 has flow_rules")
	refuse(a.FlowRules != nil && kind != ztapi.KindCentralV1, "flow_rules", "only those of Central v1 are supported; a self-hosted controller has rules")

	return errors.Join(errs...)
}

func (a Args) checkNumbers() error {
	var errs []error

	// A controller would store the nearest that it allows.
	if a.MTU != nil && (*a.MTU < 1280 || *a.MTU > 10000) {
		errs = append(errs, fmt.Errorf("mtu: %d is not between 1280 and 10000", *a.MTU))
	}

	if a.MulticastLimit != nil && *a.MulticastLimit < 0 {
		errs = append(errs, fmt.Errorf("multicast_limit: %d is less than 0", *a.MulticastLimit))
	}

	if a.MulticastLimit != nil && *a.MulticastLimit == 0 && !a.ConfirmMulticastZero {
		errs = append(errs, errors.New("multicast_limit: 0 ends ARP and so IPv4 on the network: set confirm_multicast_zero if that is meant"))
	}

	return errors.Join(errs...)
}

// checkRoutes gives routes the form that a controller stores, as the two after it do with what they check.
func (a Args) checkRoutes() error {
	var errs []error

	for i, route := range value(a.Routes) {
		via := ""
		if route.Via != nil {
			via = *route.Via
		}

		made, err := ztapi.ParseRoute("routes", route.Target, via)
		errs = append(errs, err)

		(*a.Routes)[i].Target = made.Target
		if via != "" {
			(*a.Routes)[i].Via = &made.Via
		}
	}

	return errors.Join(errs...)
}

// checkPools refuses what would empty the whole list, and ranges from which no address would come.
func (a Args) checkPools() error {
	var errs []error

	for i, pool := range value(a.Pools) {
		(*a.Pools)[i] = Pool{ztapi.CanonicalAddress(pool.Start), ztapi.CanonicalAddress(pool.End)}

		start, err1 := netip.ParseAddr(pool.Start)
		end, err2 := netip.ParseAddr(pool.End)

		switch {
		case err1 != nil || err2 != nil || start.Is4() != end.Is4():
			errs = append(errs, fmt.Errorf("pools: %q to %q are not two addresses of one family", pool.Start, pool.End))
		case end.Less(start):
			errs = append(errs, fmt.Errorf("pools: %s is after %s", pool.Start, pool.End))
		}
	}

	return errors.Join(errs...)
}

func (a Args) checkDNS() error {
	if a.DNS == nil {
		return nil
	}

	var errs []error

	for i, server := range a.DNS.Servers {
		a.DNS.Servers[i] = ztapi.CanonicalAddress(server)

		_, err := netip.ParseAddr(server)
		if err != nil {
			errs = append(errs, fmt.Errorf("dns: server %q is not an IP address", server))
		}
	}

	return errors.Join(errs...)
}

// ruleTypes are those of zerotier-one 1.14 (controller/EmbeddedNetworkController.cpp). A controller drops what it does not
// know, and a rule set without rules drops everything.
var ruleTypes = []string{
	"ACTION_DROP", "ACTION_ACCEPT", "ACTION_TEE", "ACTION_WATCH", "ACTION_REDIRECT", "ACTION_BREAK", "ACTION_PRIORITY",
	"MATCH_SOURCE_ZEROTIER_ADDRESS", "MATCH_DEST_ZEROTIER_ADDRESS", "MATCH_VLAN_ID", "MATCH_VLAN_PCP", "MATCH_VLAN_DEI", "MATCH_MAC_SOURCE",
	"MATCH_MAC_DEST", "MATCH_IPV4_SOURCE", "MATCH_IPV4_DEST", "MATCH_IPV6_SOURCE", "MATCH_IPV6_DEST", "MATCH_IP_TOS", "MATCH_IP_PROTOCOL",
	"MATCH_ETHERTYPE", "MATCH_ICMP", "MATCH_IP_SOURCE_PORT_RANGE", "MATCH_IP_DEST_PORT_RANGE", "MATCH_CHARACTERISTICS",
	"MATCH_FRAME_SIZE_RANGE", "MATCH_RANDOM", "MATCH_TAGS_DIFFERENCE", "MATCH_TAGS_BITWISE_AND", "MATCH_TAGS_BITWISE_OR",
	"MATCH_TAGS_BITWISE_XOR", "MATCH_TAGS_EQUAL", "MATCH_TAG_SENDER", "MATCH_TAG_RECEIVER", "INTEGER_RANGE",
}

func (a Args) checkRules() error {
	if a.Rules == nil {
		return nil
	}

	if len(*a.Rules) == 0 {
		return errors.New("rules: an empty set drops everything: give at least {type: ACTION_ACCEPT}")
	}

	var errs []error

	for i, rule := range *a.Rules {
		kind, _ := rule["type"].(string)
		if !slices.Contains(ruleTypes, kind) {
			errs = append(errs, fmt.Errorf("rules[%d]: type %q is unknown", i, kind))
		}

		for _, key := range []string{"not", "or"} {
			if flag, given := rule[key]; given {
				if _, isBool := flag.(bool); !isBool {
					errs = append(errs, fmt.Errorf("rules[%d]: %s: %v is not true or false", i, key, flag))
				}
			}
		}
	}

	return errors.Join(errs...)
}

func value[T any](list *[]T) []T {
	if list == nil {
		return nil
	}

	return *list
}

func open(ctx context.Context, task *ansible.Task, args Args) (ansible.Host[State], error) {
	controller, err := ztapi.OpenController(ctx, args.Controller, args.ServiceOptions, task.Hide)

	return &host{args: args, controller: controller}, err
}
