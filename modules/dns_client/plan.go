// SPDX-License-Identifier: Apache-2.0

package dnsclient

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/ownfile"
	"github.com/thinkube/infra/modules/internal/plan"
	"github.com/thinkube/infra/modules/internal/records"
)

// Put writes the file and has the resolver read it.
type Put struct {
	Manager string `json:"manager"`
	ownfile.Change
	Unanswered []string `json:"unanswered,omitempty"` // why the wanted servers are of no use
	First      bool     `json:"first,omitempty"`      // nothing is recorded yet
}

// Back gives the host the file that it had before, or none.
type Back struct {
	Manager string `json:"manager"`
	ownfile.Change
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

	if args.Verify {
		current.Unanswered = append(slices.Clone(current.Unanswered), current.Unproven...)
	} else {
		for _, each := range current.Unproven {
			out.Add(plan.Report, "resolver", nil, "whether every name exists in a search domain is not known: %s", each)
		}
	}

	wanted := render(args, current)

	switch {
	case current.File == nil || *current.File != *wanted:
		planPut(args, current, wanted, &out)
	case len(current.NotResolving) > 0:
		out.Add(plan.Change, "resolver "+current.Manager, Restart{current.Manager}, "(it does not resolve %s)", strings.Join(current.NotResolving, "; "))
	}

	out.After.NotResolving, out.After.Unanswered, out.After.Unproven = nil, nil, nil

	return out, nil
}

func planPut(args Args, current State, wanted *ownfile.File, out *plan.Plan[State]) {
	for _, each := range current.Unanswered {
		out.Add(plan.Report, "resolver", nil, "the host will not be made to ask servers that do not answer: %s", each)
	}

	do := Put{
		Manager: current.Manager, Unanswered: current.Unanswered, First: !current.Origin.Recorded,
		Change: ownfile.Change{Path: current.Path, Before: current.File, After: wanted},
	}
	verb := plan.Change

	if current.File == nil {
		verb = plan.Create
	}

	step := out.Add(verb, "resolver "+current.Manager, do, "(%s: %s)", current.Path, describe(args))
	step.Before, step.After = show(current.File), show(wanted)
	out.After.File = wanted
	out.After.Origin.Recorded = true
}

// show is what users see of a file.
func show(file *ownfile.File) any {
	switch {
	case file == nil:
		return nil
	case file.Link != "":
		return "link to " + file.Link + "\n"
	}

	return file.Content
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

// note is the first line of a file of this module. It has the sum of those below it, so that it can be told from one in which
// somebody has changed a line.
const note = "# Written by thinkube.infra.dns_client; sum of what follows: %x\n"

func sign(body string) string {
	sum := sha256.Sum256([]byte(body))

	return fmt.Sprintf(note, sum[:8]) + body
}

// isOurs tells whether a file is as this module has written it.
func isOurs(file *ownfile.File) bool {
	_, body, _ := strings.Cut(file.Content, "\n")

	return file.Link == "" && file.Content == sign(body)
}

// render makes the file. Its owner stays: root, where there was none.
func render(args Args, current State) *ownfile.File {
	file := &ownfile.File{Path: current.Path, Mode: 0o644}
	if current.File != nil {
		file.UID, file.GID = current.File.UID, current.File.GID
	}

	switch current.Manager {
	case Resolved:
		file.Content = sign(renderDropIn(args))
	case NetworkManager:
		file.Content = sign(renderGlobalDNS(args))
	default:
		file.Content = sign(renderResolvConf(args, current.Options))
	}

	return file
}

// renderDropIn tells resolved which domains are for routing (~) and which for searching (resolved.conf(5)).
func renderDropIn(args Args) string {
	var out strings.Builder

	out.WriteString("[Resolve]\n")
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

// firstServers are those that the C library asks. They are asked for all names.
func firstServers(args Args) []string {
	servers := append(slices.Clone(args.Servers), args.Fallback...)

	return servers[:min(mostServers, len(servers))]
}

func trimAll(domains []string) []string {
	out := make([]string, len(domains))
	for i, domain := range domains {
		out[i] = trim(domain)
	}

	return out
}

// renderGlobalDNS has NetworkManager use the servers in place of those of its connections (NetworkManager.conf(5)).
func renderGlobalDNS(args Args) string {
	var out strings.Builder

	out.WriteString("[global-dns]\n")

	if len(args.SearchDomains) > 0 {
		fmt.Fprintf(&out, "searches=%s\n", strings.Join(trimAll(args.SearchDomains), ","))
	}

	fmt.Fprintf(&out, "[global-dns-domain-*]\nservers=%s\n", strings.Join(firstServers(args), ","))

	return out.String()
}

// renderResolvConf keeps what the file said about how to ask.
func renderResolvConf(args Args, options []string) string {
	var out strings.Builder

	for _, server := range firstServers(args) {
		fmt.Fprintf(&out, "nameserver %s\n", server)
	}

	if len(args.SearchDomains) > 0 {
		fmt.Fprintf(&out, "search %s\n", strings.Join(trimAll(args.SearchDomains), " "))
	}

	for _, line := range options {
		out.WriteString(line + "\n")
	}

	return out.String()
}

// planAbsent gives back what was there before.
func planAbsent(current State, out *plan.Plan[State]) error {
	origin := current.Origin
	if !origin.Recorded || origin.Original == nil {
		return nil
	}

	before := origin.Original.Before
	again := current.File == nil && before == nil || current.File != nil && before != nil && *current.File == *before

	if !again && (current.File == nil || !isOurs(current.File)) {
		return ansible.Fail(CodeChanged, "put it right by hand, and remove the record in /var/lib/thinkube/dns_client",
			"%q was changed by somebody else since this module wrote it", origin.Original.Path)
	}

	do := Back{Manager: current.Manager, Change: *origin.Original}
	do.Before, do.After = current.File, before
	verb, what := plan.Change, "as it was before"

	if before == nil {
		verb, what = plan.Delete, "there was none before"
	}

	step := out.Add(verb, "resolver "+current.Manager, do, "(%s: %s)", do.Path, what)
	step.Before, step.After = show(current.File), show(before)
	out.After.File = before
	out.After.Origin.Recorded, out.After.Origin.Original = false, nil

	return nil
}
