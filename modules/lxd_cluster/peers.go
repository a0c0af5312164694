// SPDX-License-Identifier: Apache-2.0

package lxdcluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/canonical/lxd/shared/api"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
	"github.com/thinkube/infra/modules/internal/record"
)

// These functions run on the host that a joining one names in via.

type describeRequest struct {
	Joining   string `json:"joining"`   // the address that the new member will have
	Clustered bool   `json:"clustered"` // it is a member already and only asks which cluster this is
}

type tokenRequest struct {
	Name    string        `json:"name"`
	Timeout time.Duration `json:"timeout"` // how long the joining task may take
}

type issuedToken struct {
	Sealed string `json:"sealed"`
}

// peerTimeout bounds a peer's calls to its own server.
const peerTimeout = time.Minute

// describe tells a joining host what it must know of the cluster. That there is none yet is an answer, not an error.
func describe(ctx context.Context, _ *ansible.Task, request json.RawMessage) (any, *ansible.Finally, error) {
	var asked describeRequest

	err := json.Unmarshal(request, &asked)
	if err != nil {
		return nil, nil, err
	}

	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()

	server, err := lxdapi.Connect(ctx, lxdapi.Options{})

	var failure *ansible.Failure
	if errors.As(err, &failure) && failure.Code == lxdapi.CodeNotInstalled {
		return Target{Problem: "LXD is not installed there yet"}, nil, nil
	}

	if err != nil {
		return nil, nil, err
	}

	if !server.Clustered() {
		return Target{Problem: "its server is in no cluster yet"}, nil, nil
	}

	target, err := makeTarget(server)
	if err == nil && !asked.Clustered {
		target.Back = reachable(ctx, asked.Joining)
	}

	return target, nil, err
}

func makeTarget(server *lxdapi.Server) (Target, error) {
	environment := server.Info.Environment
	target := Target{
		Clustered: true, Cluster: server.ConfigText(lxdapi.ClusterNameKey), Product: server.Product(), Version: environment.ServerVersion,
		Extensions: len(server.Info.APIExtensions), Name: environment.ServerName,
		Address: server.ConfigText("cluster.https_address"), Fingerprint: environment.CertificateFingerprint,
	}

	var err error

	target.Members, err = server.Members()
	if err != nil {
		return target, err
	}

	var cluster api.Cluster

	_, err = server.Get(lxdapi.Path("cluster"), &cluster)
	if err != nil {
		return target, fmt.Errorf("reading the cluster: %w", err)
	}

	for _, key := range cluster.MemberConfig {
		target.Keys = append(target.Keys, memberKey{Entity: key.Entity, Name: key.Name, Key: key.Key})
	}

	slices.SortFunc(target.Keys, func(a, b memberKey) int { return compareText(a.String(), b.String()) })

	if !server.Has("clustering_groups") {
		return target, nil
	}

	var groups []api.ClusterGroup

	_, err = server.Get(lxdapi.Path("cluster", "groups")+"?recursion=1", &groups)
	if err != nil {
		return target, fmt.Errorf("reading cluster groups: %w", err)
	}

	target.Groups = []string{}
	for _, group := range groups {
		target.Groups = append(target.Groups, group.Name)
	}

	return target, nil
}

// issueToken waits for its turn (two joins at once break each other) and makes a token for one member. When the asking
// task has ended, revokeToken is called in any case.
func issueToken(ctx context.Context, task *ansible.Task, request json.RawMessage) (any, *ansible.Finally, error) {
	var asked tokenRequest

	err := json.Unmarshal(request, &asked)
	if err != nil {
		return nil, nil, err
	}

	ctx, cancel := context.WithTimeout(ctx, asked.Timeout)
	defer cancel()

	server, err := lxdapi.Connect(ctx, lxdapi.Options{})
	if err != nil {
		return nil, nil, err
	}

	if !server.Clustered() {
		return nil, nil, ansible.Fail(CodeNotClustered, "run the module there first, with bootstrap: true", "its server is in no cluster")
	}

	err = takeTurn(ctx, server, asked)
	if err != nil {
		return nil, nil, err
	}

	secret, err := makeToken(ctx, server, asked.Name)
	if err == nil {
		var sealed string

		sealed, err = task.Seal(secret)
		if err == nil {
			return issuedToken{Sealed: sealed}, &ansible.Finally{Peer: "revoke_token", Request: asked}, nil
		}
	}

	return nil, nil, errors.Join(err, endTurn(asked.Name))
}

// makeToken asks LXD for a token. It is the metadata of an operation that lives until the token is used or revoked.
func makeToken(ctx context.Context, server *lxdapi.Server, name string) (ansible.Secret, error) {
	operation, err := server.Start(ctx, http.MethodPost, lxdapi.Path("cluster", "members"), api.ClusterMembersPost{ServerName: name}, "", false)
	if err != nil {
		return ansible.Secret{}, err
	}

	if operation == nil {
		return ansible.Secret{}, ansible.Fail(CodeToken, "", "the server made no token")
	}

	token, err := operation.ToClusterJoinToken()
	if err != nil {
		return ansible.Secret{}, ansible.Fail(CodeToken, "", "the server's answer holds no token")
	}

	return ansible.NewSecret(token.String()), nil
}

// revokeToken removes what is left of a join: an unused token, and the turn.
func revokeToken(ctx context.Context, _ *ansible.Task, request json.RawMessage) (any, *ansible.Finally, error) {
	var asked tokenRequest

	err := json.Unmarshal(request, &asked)
	if err != nil {
		return nil, nil, err
	}

	// Also when the controller goes in the middle of it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), peerTimeout)
	defer cancel()

	server, err := lxdapi.Connect(ctx, lxdapi.Options{})
	if err == nil {
		err = revoke(ctx, server, asked.Name)
	}

	return map[string]any{}, nil, errors.Join(err, endTurn(asked.Name))
}

func revoke(ctx context.Context, server *lxdapi.Server, name string) error {
	tokens, err := liveTokens(server, name)
	if err != nil {
		return err
	}

	for _, token := range tokens {
		err = server.Send(ctx, http.MethodDelete, lxdapi.Path("operations", token.ID), nil, "")
		if err != nil && !lxdapi.NotFound(err) {
			return fmt.Errorf("revoking the join token of member %q: %w", name, err)
		}
	}

	return nil
}

// liveTokens are the join tokens of a member that were neither used nor revoked.
func liveTokens(server *lxdapi.Server, name string) ([]api.Operation, error) {
	var byStatus map[string][]api.Operation

	_, err := server.Get("/1.0/operations?recursion=1", &byStatus)
	if err != nil {
		return nil, fmt.Errorf("reading running operations: %w", err)
	}

	return slices.DeleteFunc(byStatus["running"], func(operation api.Operation) bool {
		_, isToken := operation.Metadata["secret"]

		return operation.Class != api.OperationClassToken || !isToken || operation.Metadata["serverName"] != name
	}), nil
}

// turn says who joins now. It lies on the host that gives out tokens. A controller that was killed in the middle leaves
// it behind: see lapsed.
type turn struct {
	Name    string    `json:"name"`
	Since   time.Time `json:"since"`
	Expires time.Time `json:"expires"`
}

const turnRecord = "joining"

// A task uses its token at once, so one that lies unused for this long belongs to a task that is gone.
const unusedAfter = 30 * time.Second

// The cluster lists a new member as online a moment before its join has ended.
const settledAfter = 10 * time.Second

func turns() record.Store { return record.Open(record.DefaultRoot, "lxd_cluster") }

// takeTurn waits until no other member joins. Keep writes only where nothing is, so of two that come at once one waits.
func takeTurn(ctx context.Context, server *lxdapi.Server, asked tokenRequest) error {
	for {
		err := turns().Keep(turnRecord, turn{asked.Name, time.Now(), time.Now().Add(asked.Timeout)})
		if err != nil {
			return err
		}

		var holder turn

		found, err := turns().Read(turnRecord, &holder)
		if err != nil {
			return err
		}

		if found && holder.Name == asked.Name {
			return nil
		}

		if found {
			err = endLapsed(ctx, server, holder)
		}

		if err != nil {
			return err
		}

		select {
		case <-ctx.Done():
			return ansible.Fail(CodeJoinInProcess, "wait for it, or give the task a longer timeout", "member %q has been joining all the time", holder.Name)
		case <-time.After(pollEvery):
		}
	}
}

// endLapsed ends a turn whose join is over though its task did not say so. A token that was not used is revoked first:
// whoever still has it must not join beside the next one.
func endLapsed(ctx context.Context, server *lxdapi.Server, holder turn) error {
	over, err := lapsed(server, holder, time.Now())
	if err != nil || !over {
		return err
	}

	err = revoke(ctx, server, holder.Name)
	if err != nil {
		return err
	}

	return endTurn(holder.Name)
}

func lapsed(server *lxdapi.Server, holder turn, now time.Time) (bool, error) {
	if now.After(holder.Expires) {
		return true, nil
	}

	members, err := server.Members()
	if err != nil {
		return false, err
	}

	tokens, err := liveTokens(server, holder.Name)
	if err != nil {
		return false, err
	}

	member, age := findMember(members, holder.Name), now.Sub(holder.Since)

	if len(tokens) > 0 {
		return age > unusedAfter, nil
	}

	return member != nil && member.Online && age > settledAfter, nil
}

// endTurn lets the next one join. Somebody else's turn is left alone.
func endTurn(name string) error {
	var holder turn

	found, err := turns().Read(turnRecord, &holder)
	if err != nil || !found || holder.Name != name {
		return err
	}

	return turns().Forget(turnRecord)
}
