// SPDX-License-Identifier: Apache-2.0

package lxdcluster

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
	"github.com/thinkube/infra/modules/internal/plan"
	"github.com/thinkube/infra/modules/internal/record"
)

// The effects; apply.go does them.
type (
	setAddress   struct{ HTTPS, Cluster string }
	bootstrap    struct{ Name string }
	nameCluster  struct{ Name string }
	join         struct{ Keys []memberKey }
	updateMember struct {
		Name          string
		Description   string
		FailureDomain string
		Groups, Roles []string
		etag          string
	}
	removeMember struct {
		Name        string
		Force, Self bool
	}
	disable  struct{}
	restore  struct{ Original Original }
	unrecord struct{}
)

// maxSkew is what clocks may differ by, in seconds. LXD's heartbeats take a member for offline after 20 seconds, and
// tokens and certificates are judged by the local clock.
const maxSkew = 5

func makePlan(args Args, current State) (plan.Plan[State], error) {
	switch {
	case args.State == "absent":
		return planAbsent(args, current)
	case current.Server.Clustered:
		return planMember(args, current)
	case args.Bootstrap:
		return planBootstrap(args, current)
	}

	return planJoin(args, current)
}

// planMember keeps a server that is in a cluster already.
func planMember(args Args, current State) (plan.Plan[State], error) {
	out := plan.Plan[State]{After: current}

	err := checkMembership(args, current)
	if err != nil {
		return out, err
	}

	if args.Cluster != "" && current.Cluster == "" {
		addName(&out, args.Cluster)
	}

	out.After.Members = slices.Clone(current.Members)
	member := findMember(out.After.Members, args.Name)
	addAttributes(&out, args, member, current.etag)

	for _, member := range current.Members {
		if !member.Online {
			out.Add(plan.Report, fmt.Sprintf("cluster member %q", member.Name), nil, "is %s: %s", strings.ToLower(member.Status), member.Message)
		}
	}

	return out, nil
}

// checkMembership refuses a server that is in the wrong cluster, or in the right one as something else.
func checkMembership(args Args, current State) error {
	server := current.Server

	switch target := current.Target; {
	case args.Cluster != "" && current.Cluster != "" && args.Cluster != current.Cluster:
		return ansible.Fail(CodeOtherCluster, "take it out of that cluster first (state: absent), or correct the option cluster",
			"this server is in the cluster %q, not in %q", current.Cluster, args.Cluster)
	case target != nil && target.Problem != "":
		return ansible.Fail(CodeOtherCluster, "this host cannot join what does not exist; is via the right host?",
			"this server is in a cluster already, but host %q is not: %s", args.Via, target.Problem)
	case target != nil && target.Clustered && target.Fingerprint != server.Fingerprint:
		return ansible.Fail(CodeOtherCluster, "take it out of its cluster first (state: absent)",
			"this server is in another cluster than %q: certificate %.12s here, %.12s there", args.Via, server.Fingerprint, target.Fingerprint)
	case findMember(current.Members, args.Name) == nil || server.Name != args.Name:
		return ansible.Fail(CodeName, "LXD members cannot be renamed while they run; use that name, or remove the member and let it join again",
			"this server is the cluster member %q, not %q", server.Name, args.Name)
	case server.ClusterAddress != args.Address:
		return ansible.Fail(CodeAddress, "a member's address cannot be changed; use this one, or remove the member and let it join again",
			"cluster member %q has the address %q, not %q", server.Name, server.ClusterAddress, args.Address)
	}

	return nil
}

func planBootstrap(args Args, current State) (plan.Plan[State], error) {
	out := plan.Plan[State]{After: current}

	err := checkAddress(args, current.Server)
	if err != nil {
		return out, err
	}

	server := &out.After.Server
	keepOrigin(&out)

	https := server.HTTPSAddress
	if https == "" {
		https = args.Address
	}

	if https != server.HTTPSAddress || server.ClusterAddress != args.Address {
		step := out.Add(plan.Change, "server address", setAddress{https, args.Address}, "to %s", args.Address)
		step.Before = Original{server.HTTPSAddress, server.ClusterAddress}
		step.After = Original{https, args.Address}
		server.HTTPSAddress, server.ClusterAddress = https, args.Address
	}

	out.Add(plan.Create, "cluster", bootstrap{args.Name}, "with this server as its first member %q", args.Name)
	server.Clustered, server.Name = true, args.Name
	out.After.Members = []lxdapi.Member{futureMember(args.Name, args.Address)}

	if args.Cluster != "" {
		addName(&out, args.Cluster)
	}

	addAttributes(&out, args, &out.After.Members[0], "")

	return out, nil
}

func planJoin(args Args, current State) (plan.Plan[State], error) {
	out := plan.Plan[State]{After: current}
	target := current.Target

	errs := []error{checkAddress(args, current.Server), checkEmpty(current)}

	if target.Problem != "" {
		// Only the join itself fails on this: a check run before the first host is set up shows the whole way.
		out.Add(plan.Report, fmt.Sprintf("host %q", args.Via), nil,
			"%s; whether this host can join is checked when there is a cluster", target.Problem)
	} else {
		errs = append(errs, checkTarget(args, current)...)
	}

	err := firstOf(errs)
	if err != nil {
		return out, err
	}

	keepOrigin(&out)

	address := target.Address
	if address == "" {
		address = args.Via
	}

	for _, key := range args.keys {
		if !slices.ContainsFunc(target.Keys, func(k memberKey) bool { return k.Entity == key.Entity && k.Name == key.Name }) && args.Via != "" && target.Problem == "" {
			out.Add(plan.Report, "member_config", nil, "the cluster has no %s %q", key.entityWord(), key.Name)
		}
	}

	out.Add(plan.Create, fmt.Sprintf("cluster member %q", args.Name), join{args.keys}, "by joining the cluster of %s", address)
	out.After.Members = append(slices.Clone(target.Members), futureMember(args.Name, args.Address))
	server := &out.After.Server
	server.Clustered, server.Name, server.ClusterAddress, server.Fingerprint = true, args.Name, args.Address, target.Fingerprint

	out.After.Cluster = orWord(target.Cluster, args.Cluster)
	out.After.Target, out.After.Token, out.After.Held = nil, nil, nil

	addAttributes(&out, args, &out.After.Members[len(out.After.Members)-1], "")

	return out, nil
}

// checkAddress refuses an address that this host does not have: LXD would fail to listen, in the middle of a join.
func checkAddress(args Args, server Server) error {
	ip, _, _ := net.SplitHostPort(args.Address)
	if slices.Contains(server.Addresses, ip) {
		return nil
	}

	return ansible.Fail(CodeAddress, fmt.Sprintf("this host has %q", server.Addresses), "address %s is not on this host", ip)
}

// checkEmpty refuses a server that holds anything: a join replaces its whole database.
func checkEmpty(current State) error {
	if len(current.Held) == 0 {
		return nil
	}

	return ansible.Fail(CodeHoldsData, "move or delete these first; this module never does", "a join would destroy what this server holds: %s", strings.Join(current.Held, ", "))
}

// checkTarget looks for every reason why the join would fail or go to the wrong place.
func checkTarget(args Args, current State) []error {
	target, server := current.Target, current.Server

	errs := []error{checkToken(args, current.Token)}

	if target.There.Problem != "" {
		errs = append(errs, ansible.Fail(CodeNotReachable, "check address, routes and firewalls between the two hosts",
			"this host cannot connect to %s: %s", orWord(target.Address, "the cluster"), target.There.Problem))
	}

	if target.Back != "" {
		errs = append(errs, ansible.Fail(CodeNotReachable, "check address, routes and firewalls between the two hosts",
			"cluster member %q cannot connect to %s: %s", target.Name, args.Address, target.Back))
	}

	if there := target.There.Fingerprint; there != "" && there != target.Fingerprint {
		errs = append(errs, ansible.Fail(CodeToken, "is the token of this cluster, and the address that of its member?",
			"the server at %s shows the certificate %.12s, not the cluster's %.12s", target.Address, there, target.Fingerprint))
	}

	if skew := target.There.Skew; skew > maxSkew || skew < -maxSkew {
		errs = append(errs, ansible.Fail(CodeClockSkew, "set the clocks right on both hosts (timedatectl set-ntp true)",
			"the clock of %s is %+.0f s off this host's; at most %d s are allowed", target.Address, skew, maxSkew))
	}

	if target.Version != "" && (target.Extensions != server.Extensions || target.Product != server.Product) {
		errs = append(errs, ansible.Fail(CodeVersionSkew, "bring both to one version (snap: snap refresh lxd --channel=... --cohort=+ on every host)",
			"%s %s with %d API extensions here, %s %s with %d on %q: LXD refuses to mix them", server.Product, server.Version,
			server.Extensions, target.Product, target.Version, target.Extensions, target.Name))
	}

	if taken := findMember(target.Members, args.Name); taken != nil {
		errs = append(errs, ansible.Fail(CodeName, "choose another name; or, if it is what an interrupted join left, remove it: state: absent, force: true, on another member",
			"the cluster has a member %q already (%s, %s)", args.Name, taken.Address, taken.Status))
	}

	if args.Cluster != "" && target.Cluster != "" && args.Cluster != target.Cluster {
		errs = append(errs, ansible.Fail(CodeOtherCluster, "correct via or cluster", "host %q is in the cluster %q, not in %q", args.Via, target.Cluster, args.Cluster))
	}

	return append(errs, checkKeys(args, target), checkGroups(args, target))
}

func checkToken(args Args, token *Token) error {
	switch {
	case token == nil:
		return nil
	case token.ServerName != args.Name:
		return ansible.Fail(CodeToken, "make a token for this member: lxc cluster add "+args.Name, "the join token is for member %q, not %q", token.ServerName, args.Name)
	case token.Expired:
		return ansible.Fail(CodeTokenExpired, "make a new one: lxc cluster add "+args.Name, "the join token expired at %s", token.ExpiresAt.UTC().Format("2006-01-02 15:04:05 MST"))
	}

	return nil
}

// checkKeys asks for every member-specific key that the cluster wants to know.
func checkKeys(args Args, target *Target) error {
	var missing []memberKey

	for _, wanted := range target.Keys {
		given := slices.ContainsFunc(args.keys, func(k memberKey) bool {
			return k.Entity == wanted.Entity && k.Name == wanted.Name && k.Key == wanted.Key
		})
		if !given {
			missing = append(missing, wanted)
		}
	}

	if missing == nil {
		return nil
	}

	return ansible.Fail(CodeMemberConfig, "give each a value in member_config; null asks for LXD's default", "member_config lacks %s", strings.Join(keyNames(missing), ", "))
}

func checkGroups(args Args, target *Target) error {
	for _, group := range args.Groups {
		if target.Groups != nil && !slices.Contains(target.Groups, group) {
			return ansible.Fail(ansible.CodeInvalidArgument, "make it first: lxc cluster group create "+group, "the cluster has no group %q, only %q", group, target.Groups)
		}
	}

	return nil
}

// planAbsent takes the member out of its cluster, and afterwards gives the server the addresses it had before.
func planAbsent(args Args, current State) (plan.Plan[State], error) {
	out := plan.Plan[State]{After: current}
	self := args.Name == current.Server.Name || !current.Server.Clustered

	if current.Server.Clustered && self && !current.Origin.Recorded && !args.Force {
		out.Add(plan.Report, fmt.Sprintf("cluster member %q", args.Name), nil, "was not made a member by this module and stays one; force: true takes it out")

		return out, nil
	}

	if current.Server.Clustered {
		err := planRemoval(&out, args, current)
		if err != nil || !self || findMember(current.Members, args.Name) == nil {
			return out, err
		}
	}

	origin := current.Origin
	out.After.Origin = record.Origin[Original]{}

	if origin.Original == nil {
		return out, nil
	}

	server := &out.After.Server
	if server.HTTPSAddress != origin.Original.HTTPSAddress || server.ClusterAddress != origin.Original.ClusterAddress {
		step := out.Add(plan.Change, "server address", restore{*origin.Original}, "back to %q, as before this module changed it", origin.Original.HTTPSAddress)
		step.Before, step.After = Original{server.HTTPSAddress, server.ClusterAddress}, *origin.Original
		server.HTTPSAddress, server.ClusterAddress = origin.Original.HTTPSAddress, origin.Original.ClusterAddress
	}

	out.Add(plan.Delete, "record of the server's earlier address", unrecord{}, "")

	return out, nil
}

func planRemoval(out *plan.Plan[State], args Args, current State) error {
	member := findMember(current.Members, args.Name)
	object := fmt.Sprintf("cluster member %q", args.Name)

	if member == nil {
		return nil
	}

	if len(current.Held) > 0 {
		return ansible.Fail(CodeHoldsData, "move or delete these first; this module never does", "removing %s would destroy %s", object, strings.Join(current.Held, ", "))
	}

	if len(current.Members) == 1 {
		return planLast(out, args, current)
	}

	err := checkRemoval(args, current, *member)
	if err != nil {
		return err
	}

	step := out.Add(plan.Delete, object, removeMember{args.Name, args.Force && !member.Online, args.Name == current.Server.Name}, "")
	step.Before = *member

	out.After.Members = slices.DeleteFunc(slices.Clone(current.Members), func(m lxdapi.Member) bool { return m.Name == args.Name })
	if args.Name == current.Server.Name {
		out.After.Members, out.After.Server.Clustered, out.After.Cluster = nil, false, ""
	}

	return nil
}

// checkRemoval refuses what would leave the cluster without a working database.
func checkRemoval(args Args, current State, member lxdapi.Member) error {
	if !member.Online && !args.Force {
		return ansible.Fail(lxdapi.CodeOffline, "bring it back and remove it cleanly; or, if it is gone for good, set force: true (its own server must then be installed anew)",
			"cluster member %q is %s: %s", member.Name, strings.ToLower(member.Status), member.Message)
	}

	left := lxdapi.MakeQuorum(slices.DeleteFunc(slices.Clone(current.Members), func(m lxdapi.Member) bool { return m.Name == member.Name }))
	before := lxdapi.MakeQuorum(current.Members)

	// A member that is gone cannot hand its vote over: those that are left must be a majority of all voters.
	if !member.Online && member.Voter && left.OnlineVoters < before.Voters/2+1 && !args.AllowQuorumLoss {
		return ansible.Fail(CodeQuorum, "bring other voters back first; allow_quorum_loss: true goes on anyway",
			"forcing out %q would leave %d of %d voters online: the cluster's database would stand still", member.Name, left.OnlineVoters, before.Voters)
	}

	return nil
}

// planLast turns the last member back into a stand-alone server. Its database starts anew, so the name of the cluster
// must be given.
func planLast(out *plan.Plan[State], args Args, current State) error {
	name := current.Cluster
	if name == "" {
		name = args.Name
	}

	if args.Confirm != name {
		return ansible.Fail(CodeConfirm, fmt.Sprintf("set confirm: %q if that is what you want", name),
			"%q is the last member: removing it ends the cluster %q, and confirm is %q", args.Name, name, args.Confirm)
	}

	step := out.Add(plan.Delete, fmt.Sprintf("cluster %q", name), disable{}, "with its last member %q", args.Name)
	step.Before = current.Members
	out.After.Members, out.After.Server.Clustered, out.After.Cluster = nil, false, ""

	return nil
}

func addName(out *plan.Plan[State], name string) {
	out.Add(plan.Change, "cluster", nameCluster{name}, "to be called %q", name)
	out.After.Cluster = name
}

// addAttributes plans what can be set of a member, if it differs.
func addAttributes(out *plan.Plan[State], args Args, member *lxdapi.Member, etag string) {
	wanted := *member
	if args.Description != nil {
		wanted.Description = *args.Description
	}

	if args.FailureDomain != nil {
		wanted.FailureDomain = *args.FailureDomain
	}

	if args.Groups != nil {
		wanted.Groups = args.Groups
	}

	if args.Roles != nil {
		automatic := slices.DeleteFunc(slices.Clone(member.Roles), func(role string) bool { return len(lxdapi.ManualRoles([]string{role})) > 0 })
		wanted.Roles = slices.Sorted(slices.Values(append(automatic, args.Roles...)))
	}

	lines := attributeLines(*member, wanted)
	if lines == nil {
		return
	}

	do := updateMember{args.Name, wanted.Description, wanted.FailureDomain, wanted.Groups, lxdapi.ManualRoles(wanted.Roles), etag}
	step := out.Add(plan.Change, fmt.Sprintf("cluster member %q", args.Name), do, "(%s)", strings.Join(lines, ", "))
	step.Before, step.After = *member, wanted
	*member = wanted
}

func attributeLines(before, after lxdapi.Member) []string {
	var lines []string

	add := func(name string, a, b any) {
		if fmt.Sprint(a) != fmt.Sprint(b) {
			lines = append(lines, fmt.Sprintf("%s %q", name, b))
		}
	}

	add("description", before.Description, after.Description)
	add("failure domain", before.FailureDomain, after.FailureDomain)
	add("groups", before.Groups, after.Groups)
	add("roles", lxdapi.ManualRoles(before.Roles), lxdapi.ManualRoles(after.Roles))

	return lines
}

// futureMember is a member as LXD makes it.
func futureMember(name, address string) lxdapi.Member {
	return lxdapi.Member{
		Name: name, Address: address, Status: "Online", Online: true, Roles: []string{}, Groups: []string{"default"}, FailureDomain: "default",
	}
}

// keepOrigin notes in the planned state that the server's addresses are recorded.
func keepOrigin(out *plan.Plan[State]) {
	if !out.After.Origin.Recorded {
		server := out.After.Server
		out.After.Origin = record.Origin[Original]{Recorded: true, Original: &Original{server.HTTPSAddress, server.ClusterAddress}}
	}
}

// firstOf joins the errors and keeps the code and hint of the first.
func firstOf(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) == 0 {
		return nil
	}

	var failure *ansible.Failure
	if !errors.As(errs[0], &failure) {
		return errors.Join(errs...)
	}

	return &ansible.Failure{Code: failure.Code, Hint: failure.Hint, Err: errors.Join(errs...)}
}

func orWord(text, word string) string {
	if text == "" {
		return word
	}

	return text
}
