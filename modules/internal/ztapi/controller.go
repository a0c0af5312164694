// SPDX-License-Identifier: Apache-2.0

package ztapi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/thinkube/infra/modules/internal/ansible"
)

// The kinds of controllers.
const (
	KindNone       = "none"
	KindSelfHosted = "self_hosted"
	KindCentralV1  = "central_v1"
	KindCentralV2  = "central_v2"
)

// ControllerOptions say which controller a task speaks to. It is never guessed: that would send the token to the wrong
// place.
type ControllerOptions struct {
	Kind          string           `ansible:"kind" choices:"none,self_hosted,central_v1,central_v2" default:"none"`
	URL           string           `ansible:"url"`
	Token         ansible.Secret   `ansible:"token"`
	TokenFile     ansible.Path     `ansible:"token_file"`
	Group         string           `ansible:"network_group"`
	CAPath        ansible.Path     `ansible:"ca_path"`
	ValidateCerts bool             `ansible:"validate_certs" default:"true"`
	AllowInsecure bool             `ansible:"allow_insecure" default:"false"`
	Timeout       ansible.Duration `ansible:"timeout" default:"10s"`
	Deadline      ansible.Duration `ansible:"deadline" default:"2m"`
	Retries       int              `ansible:"retries" default:"6"`
}

// Check judges the options without I/O.
func (o *ControllerOptions) Check() error {
	var errs []error

	given := o.URL != "" || o.Token.IsSet() || o.TokenFile != ""

	switch {
	case o.Kind == KindNone && given:
		errs = append(errs, errors.New("controller.kind: is needed with controller.url, token or token_file: one of self_hosted, central_v1, central_v2"))
	case o.Token.IsSet() && o.TokenFile != "":
		errs = append(errs, errors.New("controller: token and token_file exclude each other"))
	case o.Kind != KindNone && o.Kind != KindSelfHosted && !o.Token.IsSet() && o.TokenFile == "":
		errs = append(errs, fmt.Errorf("controller: kind %s needs token or token_file", o.Kind))
	}

	if o.URL != "" {
		errs = append(errs, checkURL("controller.url", o.URL, o.AllowInsecure))
	}

	if o.Timeout <= 0 {
		errs = append(errs, errors.New("controller.timeout: must be more than 0"))
	}

	if o.Deadline <= 0 {
		errs = append(errs, errors.New("controller.deadline: must be more than 0"))
	}

	if o.Retries < 0 || o.Retries > 20 {
		errs = append(errs, fmt.Errorf("controller.retries: %d is not between 0 and 20", o.Retries))
	}

	return errors.Join(errs...)
}

// Member is a node as a controller has it.
type Member struct {
	Node            string           `json:"node_id"`
	Authorized      bool             `json:"authorized"`
	Name            string           `json:"name"`
	Description     string           `json:"description,omitempty"` // Central only
	Hidden          bool             `json:"hidden,omitempty"`      // Central v1 only
	Addresses       []string         `json:"ip_assignments"`        // as stored, in a fixed order
	NoAutoAssignIPs bool             `json:"no_auto_assign_ips"`
	ActiveBridge    bool             `json:"active_bridge"`
	Rejected        bool             `json:"rejected,omitempty"` // Central v2 only: not authorised, for good
	Tags            map[string]int64 `json:"tags"`
	Capabilities    []int64          `json:"capabilities"`
}

// TagWithoutValue is the value of a tag for which Central gives false.
const TagWithoutValue = -1

// MemberChange is what to change of a member; nil leaves it.
type MemberChange struct {
	Authorized      *bool             `json:"authorized,omitempty"`
	Rejected        bool              `json:"rejected,omitempty"` // with Authorized false; Central v2 only
	Name            *string           `json:"name,omitempty"`
	Description     *string           `json:"description,omitempty"`
	Hidden          *bool             `json:"hidden,omitempty"`
	Addresses       *[]string         `json:"ip_assignments,omitempty"`
	NoAutoAssignIPs *bool             `json:"no_auto_assign_ips,omitempty"`
	ActiveBridge    *bool             `json:"active_bridge,omitempty"`
	Tags            *map[string]int64 `json:"tags,omitempty"`
	Capabilities    *[]int64          `json:"capabilities,omitempty"`
}

// Pool is a range of addresses that a controller gives out.
type Pool struct {
	Start string `json:"start"`
	End   string `json:"end"`
}

// V6Assign says which IPv6 addresses members get.
type V6Assign struct {
	Pools    bool `json:"zt"`
	RFC4193  bool `json:"rfc4193"`
	SixPlane bool `json:"sixplane"`
}

// Network is a network as its controller has it.
type Network struct {
	ID             string   `json:"id"`
	Name           string   `json:"name"`
	Description    string   `json:"description,omitempty"` // Central only
	Private        bool     `json:"private"`
	Broadcast      bool     `json:"broadcast"`
	MTU            int      `json:"mtu"`
	MulticastLimit int      `json:"multicast_limit"`
	Pools          []Pool   `json:"pools"`
	Routes         []Route  `json:"routes"`
	V4Assign       bool     `json:"v4_assign"`
	V6Assign       V6Assign `json:"v6_assign"`
	DNS            DNS      `json:"dns"`
	// Rules are those of a self-hosted controller, FlowRules the text of Central v1.
	Rules     []map[string]any `json:"rules,omitempty"`
	FlowRules string           `json:"flow_rules,omitempty"`
}

// NetworkChange is what to change of a network; nil leaves it.
type NetworkChange struct {
	Name           *string           `json:"name,omitempty"`
	Description    *string           `json:"description,omitempty"`
	Private        *bool             `json:"private,omitempty"`
	Broadcast      *bool             `json:"broadcast,omitempty"`
	MTU            *int              `json:"mtu,omitempty"`
	MulticastLimit *int              `json:"multicast_limit,omitempty"`
	Pools          *[]Pool           `json:"pools,omitempty"`
	Routes         *[]Route          `json:"routes,omitempty"`
	V4Assign       *bool             `json:"v4_assign,omitempty"`
	V6Assign       *V6Assign         `json:"v6_assign,omitempty"`
	DNS            *DNS              `json:"dns,omitempty"`
	Rules          *[]map[string]any `json:"rules,omitempty"`
	FlowRules      *string           `json:"flow_rules,omitempty"`
}

// Controller is what authorises the members of networks.
type Controller interface {
	// Member reads one; nil when the controller has no record of it. A self-hosted controller's failure CodeNetworkUnknown
	// tells of a network that it lacks; Central's answer is the same for both.
	Member(ctx context.Context, network, node string) (*Member, error)
	// Members reads all.
	Members(ctx context.Context, network string) ([]Member, error)
	// SetMember changes a member in as few requests as there can be, and gives what the controller then has. New says
	// that it has no record of it yet.
	SetMember(ctx context.Context, network, node string, change MemberChange, isNew bool) (Member, error)
	// DeleteMember removes the record; none is no error.
	DeleteMember(ctx context.Context, network, node string) error
	// Network reads one; nil when the controller lacks it.
	Network(ctx context.Context, network string) (*Network, error)
	// Named gives the ids of the networks with that name, in order.
	Named(ctx context.Context, name string) ([]string, error)
	// SetNetwork changes a network and gives what the controller then has. With new it is made: under its id by a
	// self-hosted controller, under an id of the controller's choice (network is empty) by Central.
	SetNetwork(ctx context.Context, network string, change NetworkChange, isNew bool) (Network, error)
	// DeleteNetwork removes a network; none is no error.
	DeleteNetwork(ctx context.Context, network string) error
	// Node is the controller's own node id, where it has one.
	Node(ctx context.Context) (string, error)
}

// OpenController makes a controller's client, which has the time of its option deadline for all its requests together. A self-hosted one without URL is that of the host's own service.
func OpenController(ctx context.Context, options ControllerOptions, service ServiceOptions, hide func(ansible.Secret)) (Controller, error) {
	made, err := openCaller(ctx, options, service, hide)
	if err != nil {
		return nil, err
	}

	switch options.Kind {
	case KindSelfHosted:
		return &selfHosted{made}, nil
	case KindCentralV1:
		return &centralV1{made}, nil
	case KindCentralV2:
		return &centralV2{made, options.Group}, nil
	}

	return nil, ansible.Fail(ansible.CodeInternal, "", "there is no controller of kind %q", options.Kind)
}

// bases are where Central is.
var bases = map[string]string{
	KindCentralV1: "https://api.zerotier.com/api/v1", KindCentralV2: "https://central.zerotier.com/api/v2",
}

func openCaller(ctx context.Context, options ControllerOptions, service ServiceOptions, hide func(ansible.Secret)) (caller, error) {
	made := caller{
		what: "the controller", header: "Authorization", prefix: "token ", retries: options.Retries, unreachable: CodeControllerUnreachable,
		left: time.Duration(options.Deadline), base: strings.TrimRight(options.URL, "/"), token: options.Token,
	}

	if made.base == "" {
		made.base = bases[options.Kind]
	}

	security, err := makeTLS(string(options.CAPath), options.ValidateCerts)
	if err != nil {
		return made, ansible.Fail(ansible.CodeInvalidArgument, "", "controller.ca_path: %w", err)
	}

	made.client = makeClient(ctx, time.Duration(options.Timeout), security)

	if options.Kind == KindCentralV2 {
		made.prefix = "Bearer "
	}

	if options.Kind == KindSelfHosted {
		made.header, made.prefix = serviceHeader, ""

		if made.base == "" {
			made.base, err = serviceURL(service)
			if err != nil {
				return made, err
			}
		}
	}

	if !made.token.IsSet() {
		made.token, err = controllerToken(options, service)
	}

	hide(made.token)

	return made, err
}

// controllerToken reads the token from its file. The token of the host's own service is only taken for that service.
func controllerToken(options ControllerOptions, service ServiceOptions) (ansible.Secret, error) {
	if options.TokenFile == "" && options.URL != "" {
		return ansible.Secret{}, ansible.Fail(ansible.CodeInvalidArgument, "", "controller: url needs token or token_file")
	}

	if options.TokenFile == "" {
		if service.AuthToken.IsSet() {
			return service.AuthToken, nil
		}

		return readToken(string(service.AuthTokenFile), string(service.Home))
	}

	text, err := os.ReadFile(string(options.TokenFile))
	if err == nil && strings.TrimSpace(string(text)) == "" {
		err = fmt.Errorf("%q is empty", options.TokenFile)
	}

	if err != nil {
		return ansible.Secret{}, ansible.Fail(ansible.CodeInvalidArgument, "the file is read on the host that the task runs on", "controller.token_file: %w", err)
	}

	return ansible.NewSecret(strings.TrimSpace(string(text))), nil
}

// UnknownNetwork is the failure of a network that a controller lacks.
func UnknownNetwork(network, where string) error {
	return ansible.Fail(CodeNetworkUnknown, "look at the network's id: its first ten digits are its controller's node id", "the controller at %s has no network %s", where, network)
}
