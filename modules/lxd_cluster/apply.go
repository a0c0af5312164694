// SPDX-License-Identifier: Apache-2.0

package lxdcluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/canonical/lxd/shared/api"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
	"github.com/thinkube/infra/modules/internal/plan"
)

// originRecord is the one record of this module on a host.
const originRecord = "server"

// pollEvery is how often a member's or daemon's return is looked for: LXD tells by no event.
const pollEvery = 100 * time.Millisecond

// Apply does one step of the plan.
func (h *host) Apply(ctx context.Context, step plan.Step) error {
	switch do := step.Do.(type) {
	case setAddress:
		err := h.keepOrigin()
		if err != nil {
			return err
		}

		return h.setConfig(ctx, map[string]string{"core.https_address": do.HTTPS, "cluster.https_address": do.Cluster})
	case bootstrap:
		return h.bootstrap(ctx, do.Name)
	case nameCluster:
		return h.setConfig(ctx, map[string]string{lxdapi.ClusterNameKey: do.Name})
	case join:
		err := h.keepOrigin()
		if err != nil {
			return err
		}

		return h.join(ctx, do.Keys)
	case updateMember:
		return h.updateMember(ctx, do)
	case removeMember:
		return h.removeMember(ctx, do)
	case disable:
		return h.disable(ctx)
	case restore:
		return h.setConfig(ctx, map[string]string{
			"core.https_address": do.Original.HTTPSAddress, "cluster.https_address": do.Original.ClusterAddress,
		})
	case unrecord:
		return h.records.Forget(originRecord)
	}

	return ansible.Fail(ansible.CodeInternal, "", "unknown step %T", step.Do)
}

// keepOrigin records the addresses of the stand-alone server before the first change.
func (h *host) keepOrigin() error {
	server := h.readServer()

	return h.records.Keep(originRecord, Original{server.HTTPSAddress, server.ClusterAddress})
}

// setConfig changes keys of the server's configuration and leaves the others. An empty value unsets a key.
func (h *host) setConfig(ctx context.Context, config map[string]string) error {
	return h.server.Send(ctx, http.MethodPatch, lxdapi.Path(), map[string]any{"config": config}, "")
}

func (h *host) bootstrap(ctx context.Context, name string) error {
	err := h.keepOrigin()
	if err != nil {
		return err
	}

	return h.server.Send(ctx, http.MethodPut, lxdapi.Path("cluster"), api.ClusterPut{Cluster: api.Cluster{ServerName: name, Enabled: true}}, "")
}

// join takes a token just before it is used and waits until the cluster sees this server online.
func (h *host) join(ctx context.Context, keys []memberKey) error {
	secret, err := h.joinToken(ctx)
	if err != nil {
		return err
	}

	token, inner, err := decodeToken(secret)
	if err != nil {
		return ansible.Fail(CodeToken, "", "%w", err)
	}

	h.task.Hide(inner)

	address, certificate, err := trusted(ctx, token)
	if err != nil {
		return err
	}

	request := api.ClusterPut{
		Cluster:        api.Cluster{ServerName: h.args.Name, Enabled: true, MemberConfig: makeMemberConfig(keys)},
		ServerAddress:  h.args.Address,
		ClusterAddress: address, ClusterCertificate: certificate,
	}

	// Servers before LXD 5.19 take the token as the trust password.
	if h.server.Has("explicit_trust_token") {
		request.ClusterToken = secret.Reveal()
	} else {
		request.ClusterPassword = secret.Reveal()
	}

	err = h.server.Send(ctx, http.MethodPut, lxdapi.Path("cluster"), request, "")
	if err != nil {
		return err
	}

	err = h.awaitOnline(ctx)
	if err != nil || h.args.Cluster == "" || h.server.ConfigText(lxdapi.ClusterNameKey) == h.args.Cluster {
		return err
	}

	// A daemon of LXD 5.0 that has just joined shows the cluster's configuration only after its next change: write the
	// name, which the plan has compared with the cluster's, once more.
	return h.setConfig(ctx, map[string]string{lxdapi.ClusterNameKey: h.args.Cluster})
}

// joinToken gives the user's token, or asks the host in via for one. That host revokes it when this task has ended.
func (h *host) joinToken(ctx context.Context) (ansible.Secret, error) {
	if h.args.JoinToken.IsSet() {
		return h.args.JoinToken, nil
	}

	var issued issuedToken

	request := tokenRequest{Name: h.args.Name, Timeout: h.args.Timeout}

	err := h.task.Ask(ctx, h.args.Via, "issue_token", request, &issued)
	if err != nil {
		return ansible.Secret{}, err
	}

	return h.task.Unseal(issued.Sealed)
}

// trusted finds an address of the token at which the cluster itself answers: its certificate is the one that the token
// names.
func trusted(ctx context.Context, token *Token) (address, certificate string, err error) {
	err = errors.New("the token names no address")

	for _, address := range token.Addresses {
		var seen Probe

		seen, certificate, err = connect(ctx, address)
		if err == nil && seen.Fingerprint == token.Fingerprint {
			return address, certificate, nil
		}

		if err == nil {
			err = fmt.Errorf("shows the certificate %.12s, not the cluster's %.12s", seen.Fingerprint, token.Fingerprint)
		}

		err = fmt.Errorf("%s: %w", address, err)
	}

	return "", "", ansible.Fail(CodeNotReachable, "check address, routes and firewalls between the two hosts", "no address of the cluster answers: %w", err)
}

func makeMemberConfig(keys []memberKey) []api.ClusterMemberConfigKey {
	config := make([]api.ClusterMemberConfigKey, 0, len(keys))
	for _, key := range keys {
		config = append(config, api.ClusterMemberConfigKey{Entity: key.Entity, Name: key.Name, Key: key.Key, Value: key.Value})
	}

	return config
}

// awaitOnline waits for the first heartbeat: before it, the next member's join and cluster-wide changes are refused.
func (h *host) awaitOnline(ctx context.Context) error {
	return poll(ctx, fmt.Sprintf("cluster member %q to come online", h.args.Name), func() (bool, error) {
		err := h.server.Refresh()
		if err != nil {
			return false, err
		}

		members, err := h.server.Members()
		member := findMember(members, h.args.Name)

		return member != nil && member.Online, err
	})
}

// updateMember puts what people can set of a member. The first change after a join has no ETag: the member is read here.
func (h *host) updateMember(ctx context.Context, do updateMember) error {
	path := lxdapi.Path("cluster", "members", do.Name)

	var now api.ClusterMember

	etag, err := h.server.Get(path, &now)
	if err != nil {
		return err
	}

	if do.etag != "" {
		etag = do.etag
	}

	put := now.Writable()
	put.Description, put.FailureDomain, put.Groups = do.Description, do.FailureDomain, do.Groups

	automatic := slices.DeleteFunc(slices.Clone(now.Roles), func(role string) bool { return len(lxdapi.ManualRoles([]string{role})) > 0 })
	put.Roles = append(automatic, do.Roles...)
	put.Config = maps.Clone(now.Config)

	return h.server.Send(ctx, http.MethodPut, path, put, etag)
}

func (h *host) removeMember(ctx context.Context, do removeMember) error {
	path := lxdapi.Path("cluster", "members", do.Name)
	if do.Force {
		path += "?force=1"
	}

	err := h.server.Send(ctx, http.MethodDelete, path, nil, "")
	if !do.Self {
		return err
	}

	// The daemon that leaves starts anew, and may do so before its answer has gone out.
	gone := h.awaitStandalone(ctx)
	if gone != nil && err != nil {
		return err
	}

	return gone
}

func (h *host) disable(ctx context.Context) error {
	err := h.server.Send(ctx, http.MethodPut, lxdapi.Path("cluster"), api.ClusterPut{Cluster: api.Cluster{Enabled: false}}, "")
	if err != nil {
		return err
	}

	return h.awaitStandalone(ctx)
}

// awaitStandalone waits for the daemon to be back and in no cluster. While it starts, the socket refuses or hangs up.
func (h *host) awaitStandalone(ctx context.Context) error {
	steady := 0

	return poll(ctx, "the daemon to come back as a stand-alone server", func() (bool, error) {
		err := h.server.Refresh()
		if err != nil || h.server.Clustered() {
			steady = 0

			return false, nil
		}

		// One good answer may still be the old daemon's last.
		steady++

		return steady >= 3, nil
	})
}

// poll calls until true. Its deadline is the task's.
func poll(ctx context.Context, what string, ready func() (bool, error)) error {
	for {
		ok, err := ready()
		if ok || err != nil {
			return err
		}

		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-time.After(pollEvery):
		}
	}
}
