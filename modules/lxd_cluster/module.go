// SPDX-License-Identifier: Apache-2.0

// Package lxdcluster makes a server a member of an LXD cluster, keeps what can be set of a member, and takes it out
// again. It runs on every host for that host; a host that joins asks a member for the join token by itself.
package lxdcluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
	"github.com/thinkube/infra/modules/internal/record"
)

// Args are the module's options.
type Args struct {
	Name            string         `ansible:"name,required"`
	State           string         `ansible:"state" choices:"present,absent" default:"present"`
	Address         string         `ansible:"address"`
	Cluster         string         `ansible:"cluster"`
	Bootstrap       bool           `ansible:"bootstrap" default:"false"`
	Via             string         `ansible:"via"`
	JoinToken       ansible.Secret `ansible:"join_token"`
	MemberConfig    MemberConfig   `ansible:"member_config"`
	Description     *string        `ansible:"description"`
	FailureDomain   *string        `ansible:"failure_domain"`
	Groups          []string       `ansible:"groups"`
	Roles           []string       `ansible:"roles"`
	Force           bool           `ansible:"force" default:"false"`
	AllowQuorumLoss bool           `ansible:"allow_quorum_loss" default:"false"`
	Confirm         string         `ansible:"confirm"`
	lxdapi.Options

	keys  []memberKey // MemberConfig, flat
	token *Token      // what the join token says, without its secret
}

// MemberConfig gives a joining member what differs from member to member.
type MemberConfig struct {
	StoragePools map[string]map[string]any `ansible:"storage_pools"`
	Networks     map[string]map[string]any `ansible:"networks"`
}

// memberKey is one member-specific configuration key, as LXD's join wants it.
type memberKey struct {
	Entity string `json:"entity"` // "storage-pool" or "network"
	Name   string `json:"name"`
	Key    string `json:"key"`
	Value  string `json:"value"`
}

func (k memberKey) String() string { return fmt.Sprintf("%s of %s %q", k.Key, k.entityWord(), k.Name) }

// entityWord is the entity as people write it.
func (k memberKey) entityWord() string { return strings.ReplaceAll(k.Entity, "-", " ") }

// Values are what the module returns.
type Values struct {
	Member  *lxdapi.Member `json:"member"`
	Cluster ClusterValues  `json:"cluster"`
}

// ClusterValues describe the cluster that the server is in.
type ClusterValues struct {
	Enabled bool            `json:"enabled"`
	Name    string          `json:"name"`
	Members []lxdapi.Member `json:"members"`
	Quorum  lxdapi.Quorum   `json:"quorum"`
}

// Failure codes of this module.
const (
	CodeAddress       ansible.Code = "address"
	CodeOtherCluster  ansible.Code = "other_cluster"
	CodeName          ansible.Code = "name"
	CodeHoldsData     ansible.Code = "holds_data"
	CodeNotClustered  ansible.Code = "not_clustered"
	CodeVersionSkew   ansible.Code = "version_skew"
	CodeClockSkew     ansible.Code = "clock_skew"
	CodeNotReachable  ansible.Code = "not_reachable"
	CodeMemberConfig  ansible.Code = "member_config"
	CodeToken         ansible.Code = "token"
	CodeTokenExpired  ansible.Code = "token_expired"
	CodeQuorum        ansible.Code = "quorum"
	CodeConfirm       ansible.Code = "confirm"
	CodeJoinInProcess ansible.Code = "join_in_progress"
)

// Module is lxd_cluster.
var Module = ansible.Module[Args, State, Values]{
	Name: "lxd_cluster",
	Lock: lxdapi.Lock,
	Rules: ansible.Rules{
		MutuallyExclusive: [][]string{{"via", "join_token"}},
		RequiredIf:        []ansible.RequiredIf{{Option: "state", Value: "present", Needs: []string{"address"}}},
	},
	Codes: lxdapi.Codes(map[ansible.Code]string{
		CodeAddress:       "the address is not on this host, or not the one that the member has in its cluster",
		CodeOtherCluster:  "the server is a member of another cluster",
		CodeName:          "the server is a member under another name, or another member has the name",
		CodeHoldsData:     "the server holds data that the change would destroy",
		CodeNotClustered:  "the host named in via is in no cluster",
		CodeVersionSkew:   "the two servers are not of one version",
		CodeClockSkew:     "the two hosts' clocks differ too much",
		CodeNotReachable:  "one of the two hosts cannot connect to the other",
		CodeMemberConfig:  "the cluster needs a configuration key for the new member that member_config does not give",
		CodeToken:         "the join token is no token, is for another member or another cluster, or was refused",
		CodeTokenExpired:  "the join token has expired",
		CodeQuorum:        "the cluster's database would lose its quorum",
		CodeConfirm:       "removing the last member needs the cluster's name in confirm",
		CodeJoinInProcess: "another host is joining and did not end in time",
	}),
	Normalize: normalize,
	Open:      open,
	Plan:      makePlan,
	Result:    makeValues,
	Peers: map[string]ansible.Peer{
		"describe":     {Call: describe},
		"issue_token":  {Call: issueToken, Changes: true},
		"revoke_token": {Call: revokeToken, Changes: true},
	},
}

func normalize(args *Args) error {
	errs := []error{lxdapi.CheckMemberName("name", args.Name)}

	if args.State == "present" {
		errs = append(errs, normalizeAddress(args), checkRole(args))
	}

	for entity, objects := range map[string]map[string]map[string]any{
		"storage-pool": args.MemberConfig.StoragePools, "network": args.MemberConfig.Networks,
	} {
		for name, values := range objects {
			config, err := lxdapi.MakeConfig("member_config "+name, values)
			errs = append(errs, err)

			for key, value := range config {
				args.keys = append(args.keys, memberKey{entity, name, key, value})
			}
		}
	}

	slices.SortFunc(args.keys, func(a, b memberKey) int { return compareText(a.String(), b.String()) })

	if args.JoinToken.IsSet() {
		token, _, err := decodeToken(args.JoinToken)
		errs = append(errs, err)
		args.token = token
	}

	slices.Sort(args.Groups)
	slices.Sort(args.Roles)

	if manual := lxdapi.ManualRoles(args.Roles); len(manual) != len(args.Roles) {
		errs = append(errs, fmt.Errorf("roles %q: LXD gives the database roles by itself; only %q remain", args.Roles, manual))
	}

	return errors.Join(errs...)
}

// normalizeAddress completes the port and refuses what no other member could reach.
func normalizeAddress(args *Args) error {
	host, port, err := net.SplitHostPort(args.Address)
	if err != nil {
		host, port = args.Address, "8443"
	}

	ip, err := netip.ParseAddr(trimBrackets(host))

	switch {
	case err != nil:
		return fmt.Errorf("address %q: must be an IP address of this host, with or without port", args.Address)
	case ip.IsUnspecified():
		return fmt.Errorf("address %q: is a wildcard; the other members need the one address that they reach this host at", args.Address)
	case ip.IsLoopback():
		return fmt.Errorf("address %q: is a loopback address, which no other member can reach", args.Address)
	}

	args.Address = net.JoinHostPort(ip.String(), port)

	_, err = netip.ParseAddrPort(args.Address)
	if err != nil {
		return fmt.Errorf("address %q: port must be 1 to 65535", args.Address)
	}

	return nil
}

// checkRole asks for exactly one way into a cluster.
func checkRole(args *Args) error {
	ways := 0

	for _, given := range []bool{args.Bootstrap, args.Via != "", args.JoinToken.IsSet()} {
		if given {
			ways++
		}
	}

	if ways != 1 {
		return errors.New("exactly one of bootstrap: true, via and join_token says how this host comes into the cluster")
	}

	return nil
}

func open(ctx context.Context, task *ansible.Task, args Args) (ansible.Host[State], error) {
	server, err := lxdapi.Connect(ctx, args.Options)
	if err != nil {
		return nil, err
	}

	return &host{args: args, task: task, server: server, records: record.Open(record.DefaultRoot, "lxd_cluster")}, nil
}

func makeValues(args Args, final State) Values {
	values := Values{Cluster: ClusterValues{
		Enabled: final.Server.Clustered, Name: final.Cluster, Members: final.Members, Quorum: lxdapi.MakeQuorum(final.Members),
	}}
	if values.Cluster.Members == nil {
		values.Cluster.Members = []lxdapi.Member{}
	}

	values.Member = findMember(final.Members, args.Name)

	return values
}

// keyNames lists the keys of a member_config entity, for messages.
func keyNames(keys []memberKey) []string {
	names := map[string]bool{}
	for _, key := range keys {
		names[key.String()] = true
	}

	return slices.Sorted(maps.Keys(names))
}
