// SPDX-License-Identifier: Apache-2.0

package ztapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
)

// centralV1 is Central as its document of 2025-08 has it (https://docs.zerotier.com/api/central/v1/). No answer of it was
// seen.
type centralV1 struct{ caller }

// centralCall reads an answer; false when it is 404.
func (c *caller) centralCall(ctx context.Context, method, path string, body, into any, once bool) (bool, error) {
	got, err := c.do(ctx, method, path, body, once)

	switch {
	case err != nil:
		return false, err
	case got.status == http.StatusNotFound:
		return false, nil
	case got.status == http.StatusBadRequest:
		return false, c.refused(method, path, got)
	case into == nil:
		return true, nil
	}

	return true, c.read(path, got, into)
}

// Node is empty: Central's controllers are many.
func (*centralV1) Node(context.Context) (string, error) { return "", nil }

type memberV1 struct {
	Node        string     `json:"nodeId"`
	Name        string     `json:"name"`
	Description string     `json:"description"`
	Hidden      bool       `json:"hidden"`
	Config      memberJSON `json:"config"`
}

func (j memberV1) make() Member {
	made := j.Config.make()
	made.Node, made.Name, made.Description, made.Hidden = j.Node, j.Name, j.Description, j.Hidden

	return made
}

func (c *centralV1) Member(ctx context.Context, network, node string) (*Member, error) {
	var read memberV1

	path := "/network/" + network + "/member/" + node

	found, err := c.centralCall(ctx, http.MethodGet, path, nil, &read, false)
	if err != nil || !found {
		return nil, err
	}

	made := read.make()

	return &made, c.about(path, node, read.Node)
}

func (c *centralV1) Members(ctx context.Context, network string) ([]Member, error) {
	var read list[memberV1]

	found, err := c.centralCall(ctx, http.MethodGet, "/network/"+network+"/member", nil, &read, false)
	if err == nil && !found {
		err = UnknownNetwork(network, c.base)
	}

	members := []Member{}
	for _, one := range read {
		members = append(members, one.make())
	}

	return c.checked(members, err)
}

func (c *centralV1) SetMember(ctx context.Context, network, node string, change MemberChange, _ bool) (Member, error) {
	var read memberV1

	config, body := change.body(), map[string]any{}
	delete(config, "name")
	put(body, "name", change.Name)
	put(body, "description", change.Description)
	put(body, "hidden", change.Hidden)

	if len(config) > 0 {
		body["config"] = config
	}

	path := "/network/" + network + "/member/" + node

	found, err := c.centralCall(ctx, http.MethodPost, path, body, &read, false)
	if err == nil && !found {
		err = UnknownNetwork(network, c.base)
	}

	if err == nil {
		err = c.about(path, node, read.Node)
	}

	return read.make(), err
}

func (c *centralV1) DeleteMember(ctx context.Context, network, node string) error {
	_, err := c.centralCall(ctx, http.MethodDelete, "/network/"+network+"/member/"+node, nil, nil, false)

	return err
}

type networkV1 struct {
	ID          string      `json:"id"`
	Description string      `json:"description"`
	FlowRules   string      `json:"rulesSource"`
	Config      networkJSON `json:"config"`
}

func (j networkV1) make() Network {
	made := j.Config.make()
	made.ID, made.Description, made.FlowRules, made.Rules = j.ID, j.Description, j.FlowRules, nil

	return made
}

func (c *centralV1) Network(ctx context.Context, network string) (*Network, error) {
	var read networkV1

	path := "/network/" + network

	found, err := c.centralCall(ctx, http.MethodGet, path, nil, &read, false)
	if err != nil || !found {
		return nil, err
	}

	made := read.make()

	return &made, c.about(path, network, read.ID)
}

func (c *centralV1) SetNetwork(ctx context.Context, network string, change NetworkChange, isNew bool) (Network, error) {
	var read networkV1

	config, body := change.body(), map[string]any{}
	put(config, "name", change.Name)
	put(body, "description", change.Description)
	put(body, "rulesSource", change.FlowRules)

	body["config"] = config

	path := "/network/" + network
	if isNew {
		path = "/network"
	}

	found, err := c.centralCall(ctx, http.MethodPost, path, body, &read, isNew)
	if err == nil && !found {
		err = UnknownNetwork(network, c.base)
	}

	if err == nil {
		err = c.aboutNetwork(path, network, read.ID, isNew)
	}

	return read.make(), err
}

func (c *centralV1) DeleteNetwork(ctx context.Context, network string) error {
	_, err := c.centralCall(ctx, http.MethodDelete, "/network/"+network, nil, nil, false)

	return err
}

// centralV2 is Central as it is since 2026, written from what a generated client says of its document. No answer of it was
// seen.
type centralV2 struct {
	caller
	group string
}

// Node is empty: Central's controllers are many.
func (*centralV2) Node(context.Context) (string, error) { return "", nil }

type memberV2 struct {
	Device          string   `json:"deviceId"`
	Status          string   `json:"status"` // authorized, not_authorized or rejected
	Name            string   `json:"name"`
	Description     string   `json:"description"`
	V4              []string `json:"ipv4Assignments"`
	V6              []string `json:"ipv6Assignments"`
	NoAutoAssignIPs bool     `json:"noAutoAssignIps"`
	ActiveBridge    bool     `json:"activeBridge"`
}

func (j memberV2) make() Member {
	return Member{
		Node: j.Device, Authorized: j.Status == "authorized", Rejected: j.Status == "rejected", Name: j.Name, Description: j.Description,
		Addresses: SameAddresses(slices.Concat(j.V4, j.V6)), NoAutoAssignIPs: j.NoAutoAssignIPs, ActiveBridge: j.ActiveBridge,
		Tags: map[string]int64{}, Capabilities: []int64{},
	}
}

func (c MemberChange) bodyV2() map[string]any {
	body := map[string]any{}
	put(body, "name", c.Name)
	put(body, "description", c.Description)
	put(body, "noAutoAssignIps", c.NoAutoAssignIPs)
	put(body, "activeBridge", c.ActiveBridge)

	if c.Addresses == nil {
		return body
	}

	v4, v6 := []string{}, []string{}

	for _, text := range *c.Addresses {
		addr, err := netip.ParseAddr(text)
		if err == nil && addr.Is6() {
			v6 = append(v6, text)
		} else {
			v4 = append(v4, text)
		}
	}

	body["ipv4Assignments"], body["ipv6Assignments"] = v4, v6

	return body
}

func memberPathV2(network, node string) string { return "/network/" + network + "/member/" + node }

func (c *centralV2) Member(ctx context.Context, network, node string) (*Member, error) {
	var read memberV2

	path := memberPathV2(network, node)

	found, err := c.centralCall(ctx, http.MethodGet, path, nil, &read, false)
	if err != nil || !found {
		return nil, err
	}

	made := read.make()

	return &made, c.about(path, node, read.Device)
}

// list reads a list in one of three forms: as it is, as {"items": [...]}, as {"members": [...]}. The documents at hand have
// the second for v2's networks and do not say what its members are in. Anything else is an error: a list that is not there
// is not empty.
type list[T any] []T

// UnmarshalJSON reads any of the forms.
func (l *list[T]) UnmarshalJSON(text []byte) error {
	if len(text) > 0 && text[0] == '[' {
		return json.Unmarshal(text, (*[]T)(l))
	}

	var wrapped struct {
		Items   *[]T `json:"items"`
		Members *[]T `json:"members"`
	}

	err := json.Unmarshal(text, &wrapped)
	if wrapped.Items == nil {
		wrapped.Items = wrapped.Members
	}

	if err == nil && wrapped.Items == nil {
		err = errors.New("there is no list in it")
	}

	if err == nil {
		*l = *wrapped.Items
	}

	return err
}

func (c *centralV2) Members(ctx context.Context, network string) ([]Member, error) {
	var read list[memberV2]

	found, err := c.centralCall(ctx, http.MethodGet, "/network/"+network+"/member", nil, &read, false)
	if err == nil && !found {
		err = UnknownNetwork(network, c.base)
	}

	members := []Member{}
	for _, one := range read {
		members = append(members, one.make())
	}

	return c.checked(members, err)
}

// SetMember makes or changes the fields, then the status, which is no field there.
func (c *centralV2) SetMember(ctx context.Context, network, node string, change MemberChange, isNew bool) (Member, error) {
	var (
		read  memberV2
		found = true
		err   error
	)

	body, path := change.bodyV2(), memberPathV2(network, node)

	switch {
	case isNew:
		var made list[memberV2]

		body["deviceId"] = node
		found, err = c.centralCall(ctx, http.MethodPost, "/network/"+network+"/member", []any{body}, &made, false)

		if len(made) > 0 {
			read = made[0]
		}
	case len(body) > 0:
		found, err = c.centralCall(ctx, http.MethodPost, path, body, &read, false)
	}

	if verb := change.verbV2(); err == nil && found && verb != "" {
		found, err = c.centralCall(ctx, http.MethodPost, path+verb, nil, &read, false)
	}

	if err == nil && !found {
		err = UnknownNetwork(network, c.base)
	}

	if err == nil {
		err = c.about(path, node, read.Device)
	}

	return read.make(), err
}

// verbV2 is what the status is changed by; empty leaves it.
func (c MemberChange) verbV2() string {
	switch {
	case c.Authorized == nil:
		return ""
	case *c.Authorized:
		return "/authorize"
	case c.Rejected:
		return "/reject"
	}

	return "/de-authorize"
}

func (c *centralV2) DeleteMember(ctx context.Context, network, node string) error {
	_, err := c.centralCall(ctx, http.MethodDelete, "/network/"+network+"/member", []map[string]string{{"deviceId": node}}, nil, false)

	return err
}

type networkV2 struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Description string `json:"description"`
	Config      struct {
		Private        bool        `json:"private"`
		Broadcast      bool        `json:"enableBroadcast"`
		MTU            int         `json:"mtu"`
		MulticastLimit int         `json:"multicastLimit"`
		V4Pools        []poolJSON  `json:"v4IpAssignmentPools"`
		V6Pools        []poolJSON  `json:"v6IpAssignmentPools"`
		Routes         []routeJSON `json:"routes"`
		V4             v4JSON      `json:"v4AssignmentMode"`
		V6             v6JSON      `json:"v6AssignmentMode"`
		DNS            DNS         `json:"dns"`
	} `json:"config"`
}

func (j networkV2) make() Network {
	config := j.Config
	made := networkJSON{
		ID: j.ID, Name: j.Name, Private: config.Private, Broadcast: config.Broadcast, MTU: config.MTU, MulticastLimit: config.MulticastLimit,
		Pools: slices.Concat(config.V4Pools, config.V6Pools), Routes: config.Routes, V4: config.V4, V6: config.V6, DNS: config.DNS,
	}.make()
	made.Description = j.Description

	for i, route := range made.Routes {
		if route.Via == "null" {
			made.Routes[i].Via = ""
		}
	}

	return made
}

func (c NetworkChange) bodyV2() map[string]any {
	config, body := c.body(), map[string]any{}
	delete(config, "rules")

	for from, to := range map[string]string{"v4AssignMode": "v4AssignmentMode", "v6AssignMode": "v6AssignmentMode"} {
		if value, given := config[from]; given {
			config[to] = value
			delete(config, from)
		}
	}

	if pools, given := config["ipAssignmentPools"].([]poolJSON); given {
		v4, v6 := []poolJSON{}, []poolJSON{}

		for _, pool := range pools {
			addr, err := netip.ParseAddr(pool.Start)
			if err == nil && addr.Is6() {
				v6 = append(v6, pool)
			} else {
				v4 = append(v4, pool)
			}
		}

		config["v4IpAssignmentPools"], config["v6IpAssignmentPools"] = v4, v6
		delete(config, "ipAssignmentPools")
	}

	put(body, "name", c.Name)
	put(body, "description", c.Description)

	body["config"] = config

	return body
}

func (c *centralV2) Network(ctx context.Context, network string) (*Network, error) {
	var read networkV2

	path := "/network/" + network

	found, err := c.centralCall(ctx, http.MethodGet, path, nil, &read, false)
	if err != nil || !found {
		return nil, err
	}

	made := read.make()

	return &made, c.about(path, network, read.ID)
}

func (c *centralV2) SetNetwork(ctx context.Context, network string, change NetworkChange, isNew bool) (Network, error) {
	var read networkV2

	path := "/network/" + network
	if isNew {
		path = "/network-group/" + c.group + "/network"
	}

	found, err := c.centralCall(ctx, http.MethodPost, path, change.bodyV2(), &read, isNew)
	if err == nil && !found {
		err = UnknownNetwork(network, c.base)
	}

	if err == nil {
		err = c.aboutNetwork(path, network, read.ID, isNew)
	}

	return read.make(), err
}

func (c *centralV2) DeleteNetwork(ctx context.Context, network string) error {
	_, err := c.centralCall(ctx, http.MethodDelete, "/network/"+network, nil, nil, false)

	return err
}

// Named looks through the networks that the token can see.
func (c *centralV1) Named(ctx context.Context, name string) ([]string, error) {
	var read list[networkV1]

	err := c.listed(ctx, "/network", &read)
	ids := []string{}

	for _, one := range read {
		if one.Config.Name == name {
			ids = append(ids, one.ID)
		}
	}

	slices.Sort(ids)

	return ids, err
}

// Named looks through the networks of the group.
func (c *centralV2) Named(ctx context.Context, name string) ([]string, error) {
	var read list[networkV2]

	err := c.listed(ctx, "/network-group/"+c.group+"/network", &read)
	ids := []string{}

	for _, one := range read {
		if one.Name == name {
			ids = append(ids, one.ID)
		}
	}

	slices.Sort(ids)

	return ids, err
}

// listed reads a list that is always there: 404 is no empty one.
func (c *caller) listed(ctx context.Context, path string, into any) error {
	found, err := c.centralCall(ctx, http.MethodGet, path, nil, into, false)
	if err == nil && !found {
		err = c.refused(http.MethodGet, path, answer{status: http.StatusNotFound})
	}

	return err
}

// about fails unless an answer is about who was asked about: what is made of another is no record without addresses, and
// would be written back as one.
func (c *caller) about(path, want, got string) error {
	if strings.EqualFold(want, got) {
		return nil
	}

	return ansible.Fail(CodeUnexpectedAnswer, "look whether the URL is that of ZeroTier's interface", "%s of %s at %s: the answer is about %q in place of %q", path, c.what, c.base, got, want)
}

// aboutNetwork is about, where a new network has an id of the controller's choice.
func (c *caller) aboutNetwork(path, want, got string, isNew bool) error {
	if isNew && want == "" && networkIDPattern.MatchString(got) {
		return nil
	}

	return c.about(path, want, got)
}

// checked fails unless every member of a list says who it is.
func (c *caller) checked(members []Member, err error) ([]Member, error) {
	for _, member := range members {
		if err == nil && !nodeIDPattern.MatchString(strings.ToLower(member.Node)) {
			err = ansible.Fail(CodeUnexpectedAnswer, "look whether the URL is that of ZeroTier's interface", "the members of %s at %s: %q is no node id", c.what, c.base, member.Node)
		}
	}

	return members, err
}
