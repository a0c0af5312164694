// SPDX-License-Identifier: Apache-2.0

// Package dnsclient makes a host ask given DNS servers for given domains, through whatever resolver it has, and makes sure
// that it does.
package dnsclient

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/dnswire"
	"github.com/thinkube/infra/modules/internal/record"
	"github.com/thinkube/infra/modules/internal/records"
)

// Args are the module's options.
type Args struct {
	Name           string           `ansible:"name" default:"10-thinkube"`
	State          string           `ansible:"state" choices:"present,absent" default:"present"`
	Servers        []string         `ansible:"servers"`
	RoutingDomains []string         `ansible:"routing_domains"`
	SearchDomains  []string         `ansible:"search_domains"`
	Fallback       []string         `ansible:"fallback"`
	Manager        string           `ansible:"manager" choices:"auto,resolved,networkmanager,resolvconf" default:"auto"`
	Verify         bool             `ansible:"verify" default:"true"`
	Settle         ansible.Duration `ansible:"settle" default:"10s"`
	Timeout        ansible.Duration `ansible:"timeout" default:"60s"`
}

// TaskTimeout bounds the whole task.
func (a Args) TaskTimeout() time.Duration { return a.Timeout }

// Values are what the module returns.
type Values struct {
	Client Client `json:"client"`
}

// Client is how the host resolves names, as users see it.
type Client struct {
	Manager      string   `json:"manager"`
	File         string   `json:"file"`
	Managed      bool     `json:"managed"`
	OverruledBy  []string `json:"overruled_by"`
	NotResolving []string `json:"not_resolving"`
}

// Failure codes of this module.
const (
	CodeUnsupported ansible.Code = "unsupported"
	CodeWildcard    ansible.Code = "wildcard_search"
	CodeChanged     ansible.Code = "files_changed"
	CodeService     ansible.Code = "service"
	// CodeNotResolving tells that a setting was taken back.
	CodeNotResolving ansible.Code = "not_resolving"
)

// Module is dns_client.
var Module = ansible.Module[Args, State, Values]{
	Name: "dns_client",
	Lock: "dns_client",
	Codes: dnswire.WithCodes(map[ansible.Code]string{
		CodeUnsupported:  "nobody, or somebody whom this module does not know, manages the host's resolver, or cannot do what is asked for",
		CodeWildcard:     "a search domain has a wildcard, so that every name would be found in it",
		CodeChanged:      "the file was changed by somebody else since this module wrote it",
		CodeService:      "systemd-resolved cannot be restarted, or NetworkManager not reloaded",
		CodeNotResolving: "with the new setting the host did not resolve the domains, so it has the former one again",
	}),
	Normalize: normalize,
	Open:      open,
	Plan:      makePlan,
	Result:    func(_ Args, final State) Values { return Values{makeClient(final)} },
}

func makeClient(state State) Client {
	client := Client{
		Manager: state.Manager, File: state.Path, Managed: state.Origin.Recorded,
		OverruledBy: slices.Clone(state.Overruled), NotResolving: slices.Clone(state.NotResolving),
	}

	if client.OverruledBy == nil {
		client.OverruledBy = []string{}
	}

	if client.NotResolving == nil {
		client.NotResolving = []string{}
	}

	return client
}

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$`)

func normalize(args *Args) error {
	var errs []error

	if !validName.MatchString(args.Name) {
		errs = append(errs, fmt.Errorf("name %q: must be up to 61 letters, digits, dots, hyphens and underscores", args.Name))
	}

	errs = append(errs, checkAddresses("servers", args.Servers), checkAddresses("fallback", args.Fallback),
		checkDomains("routing_domains", args.RoutingDomains), checkDomains("search_domains", args.SearchDomains))

	if args.State == "present" && len(args.Servers) == 0 {
		errs = append(errs, errors.New("servers: there must be one"))
	}

	return errors.Join(errs...)
}

func checkAddresses(option string, list []string) error {
	var errs []error

	for i, text := range list {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %q is no address", option, text))

			continue
		}

		list[i] = addr.String()

		if slices.Contains(list[:i], list[i]) {
			errs = append(errs, fmt.Errorf("%s: %q comes twice", option, text))
		}
	}

	return errors.Join(errs...)
}

func checkDomains(option string, list []string) error {
	var errs []error

	for i, text := range list {
		if strings.HasPrefix(text, "~") {
			errs = append(errs, fmt.Errorf("%s: %q: without the ~; which domains are for routing and which for searching is told by the option", option, text))

			continue
		}

		name := "."

		if text != "." || option == "search_domains" {
			var err error

			name, err = domainName(text)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", option, err))

				continue
			}
		}

		list[i] = name

		if slices.Contains(list[:i], name) {
			errs = append(errs, fmt.Errorf("%s: %q comes twice", option, text))
		}
	}

	return errors.Join(errs...)
}

// domainName reads a domain, or the prefix whose reverse zone is meant.
func domainName(text string) (string, error) {
	if strings.Contains(text, "/") {
		return records.ReverseZone(text)
	}

	return records.CheckZoneName(text)
}

func open(_ context.Context, _ *ansible.Task, args Args) (ansible.Host[State], error) {
	return &host{args: args, store: record.Open(record.DefaultRoot, "dns_client"), port: 53}, nil
}
