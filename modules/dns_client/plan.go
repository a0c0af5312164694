// SPDX-License-Identifier: Apache-2.0

package dnsclient

import (
	"fmt"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/plan"
	"github.com/thinkube/infra/modules/internal/records"
)

// Put writes the file, or removes it when there is no content, and has the resolver read it.
type Put struct {
	Manager string  `json:"manager"`
	Path    string  `json:"path"`
	Before  *string `json:"before,omitempty"`
	Content *string `json:"content,omitempty"`
	Forget  bool    `json:"forget,omitempty"` // what was there before is there again
	Folder  bool    `json:"folder,omitempty"` // and the folder is to go with it
}

// Restart has the resolver read its files again.
type Restart struct {
	Manager string `json:"manager"`
}

func makePlan(args Args, current State) (plan.Plan[State], error) {
	out := plan.Plan[State]{After: current}

	if args.State == "absent" {
		return out, planAbsent(current, &out)
	}

	if len(current.Wildcards) > 0 {
		return out, ansible.Fail(CodeWildcard, "give them as routing_domains: then their names are asked for there, and no others are looked for in them",
			"search_domains: %s answers for every name (it has a wildcard), so that also other domains' names would be found in it",
			strings.Join(display(current.Wildcards), ", "))
	}

	for _, each := range current.Overruled {
		out.Add(plan.Report, "resolver", nil, "a setting elsewhere may overrule this one: %s", each)
	}

	wanted := render(args, current)
	if current.Content == nil || *current.Content != wanted {
		do := Put{Manager: current.Manager, Path: current.Path, Before: current.Content, Content: &wanted}
		verb := plan.Change

		if current.Content == nil {
			verb = plan.Create
		}

		step := out.Add(verb, "resolver "+current.Manager, do, "(%s: %s)", current.Path, describe(args))
		step.Before, step.After = current.Content, wanted
		out.After.Content = &wanted
		out.After.Origin.Recorded = true
	} else if len(current.NotResolving) > 0 {
		out.Add(plan.Change, "resolver "+current.Manager, Restart{current.Manager}, "(it does not resolve %s)", strings.Join(current.NotResolving, "; "))
	}

	out.After.NotResolving = nil

	return out, nil
}

func display(domains []string) []string {
	shown := make([]string, len(domains))
	for i, domain := range domains {
		shown[i] = records.Display(domain)
	}

	return shown
}

func describe(args Args) string {
	parts := []string{"servers " + strings.Join(args.Servers, ", ")}

	if len(args.RoutingDomains) > 0 {
		parts = append(parts, "for "+strings.Join(display(args.RoutingDomains), ", "))
	}

	if len(args.SearchDomains) > 0 {
		parts = append(parts, "searching "+strings.Join(display(args.SearchDomains), ", "))
	}

	return strings.Join(parts, "; ")
}

const note = "# Written by thinkube.infra.dns_client.\n"

func render(args Args, current State) string {
	if current.Manager == Resolved {
		return renderDropIn(args)
	}

	before := current.Content
	if current.Origin.Original != nil {
		before = current.Origin.Original.Content
	}

	return renderResolvConf(args, before)
}

// renderDropIn tells resolved which domains are for routing (~) and which for searching (resolved.conf(5)).
func renderDropIn(args Args) string {
	var out strings.Builder

	out.WriteString(note + "[Resolve]\n")
	fmt.Fprintf(&out, "DNS=%s\n", strings.Join(args.Servers, " "))

	if len(args.Fallback) > 0 {
		fmt.Fprintf(&out, "FallbackDNS=%s\n", strings.Join(args.Fallback, " "))
	}

	var domains []string

	for _, domain := range args.RoutingDomains {
		if !slices.Contains(args.SearchDomains, domain) {
			domains = append(domains, "~"+trim(domain))
		}
	}

	for _, domain := range args.SearchDomains {
		domains = append(domains, trim(domain)) // which routes, too
	}

	if len(domains) > 0 {
		fmt.Fprintf(&out, "Domains=%s\n", strings.Join(domains, " "))
	}

	return out.String()
}

func trim(domain string) string {
	if domain == "." {
		return domain
	}

	return strings.TrimSuffix(domain, ".")
}

// mostServers is how many the C library asks (resolv.conf(5)).
const mostServers = 3

// renderResolvConf has no routing: the servers are asked for all names. What else the file said about how to ask stays.
func renderResolvConf(args Args, before *string) string {
	var out strings.Builder

	out.WriteString(note)

	servers := append(slices.Clone(args.Servers), args.Fallback...)
	for _, server := range servers[:min(mostServers, len(servers))] {
		fmt.Fprintf(&out, "nameserver %s\n", server)
	}

	if len(args.SearchDomains) > 0 {
		search := make([]string, len(args.SearchDomains))
		for i, domain := range args.SearchDomains {
			search[i] = trim(domain)
		}

		fmt.Fprintf(&out, "search %s\n", strings.Join(search, " "))
	}

	if before != nil {
		for line := range strings.Lines(*before) {
			if words := strings.Fields(line); len(words) > 0 && (words[0] == "options" || words[0] == "sortlist") {
				out.WriteString(strings.Join(words, " ") + "\n")
			}
		}
	}

	return out.String()
}

// planAbsent gives back what was there before.
func planAbsent(current State, out *plan.Plan[State]) error {
	origin := current.Origin
	if !origin.Recorded || origin.Original == nil {
		return nil
	}

	before := *origin.Original
	ours := current.Content == nil && before.Content == nil || current.Content != nil && strings.HasPrefix(*current.Content, note)
	again := current.Content != nil && before.Content != nil && *current.Content == *before.Content

	if !ours && !again {
		return ansible.Fail(CodeChanged, "put it right by hand, and remove the record in /var/lib/thinkube/dns_client",
			"%q was changed by somebody else since this module wrote it", before.Path)
	}

	do := Put{Manager: current.Manager, Path: before.Path, Before: current.Content, Content: before.Content, Forget: true, Folder: before.Folder}
	verb, what := plan.Change, "as it was before"

	if before.Content == nil {
		verb, what = plan.Delete, "there was none before"
	}

	step := out.Add(verb, "resolver "+current.Manager, do, "(%s: %s)", before.Path, what)
	step.Before = current.Content

	if before.Content != nil {
		step.After = *before.Content
	}

	out.After.Content = before.Content
	out.After.Origin.Recorded, out.After.Origin.Original = false, nil

	return nil
}
