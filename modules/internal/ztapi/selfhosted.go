// SPDX-License-Identifier: Apache-2.0

package ztapi

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"

	"github.com/thinkube/infra/modules/internal/ansible"
)

// selfHosted is the controller in a zerotier-one.
type selfHosted struct{ caller }

// memberJSON is a member's form in a zerotier-one, and in the config of Central v1.
type memberJSON struct {
	ID              string   `json:"id"`
	Authorized      bool     `json:"authorized"`
	Name            string   `json:"name"`
	Addresses       []string `json:"ipAssignments"`
	NoAutoAssignIPs bool     `json:"noAutoAssignIps"`
	ActiveBridge    bool     `json:"activeBridge"`
	Tags            [][]any  `json:"tags"`
	Capabilities    []int64  `json:"capabilities"`
}

func (j memberJSON) make() Member {
	made := Member{
		Node: j.ID, Authorized: j.Authorized, Name: j.Name, Addresses: SameAddresses(j.Addresses),
		NoAutoAssignIPs: j.NoAutoAssignIPs, ActiveBridge: j.ActiveBridge, Tags: map[string]int64{}, Capabilities: append([]int64{}, j.Capabilities...),
	}

	for _, tag := range j.Tags {
		if len(tag) != 2 {
			continue
		}

		made.Tags[fmt.Sprint(tag[0])] = TagWithoutValue
		if value, isNumber := tag[1].(float64); isNumber {
			made.Tags[fmt.Sprint(tag[0])] = int64(value)
		}
	}

	slices.Sort(made.Capabilities)

	return made
}

// body makes the request: only what is to change, and real booleans, since "yes" would be stored as false.
func (c MemberChange) body() map[string]any {
	body := map[string]any{}

	put(body, "authorized", c.Authorized)
	put(body, "name", c.Name)
	put(body, "ipAssignments", c.Addresses)
	put(body, "noAutoAssignIps", c.NoAutoAssignIPs)
	put(body, "activeBridge", c.ActiveBridge)
	put(body, "capabilities", c.Capabilities)

	if c.Tags != nil {
		tags := [][]any{}

		for _, id := range slices.Sorted(maps.Keys(*c.Tags)) {
			number, _ := strconv.ParseInt(id, 10, 64)

			value := any((*c.Tags)[id])
			if value == int64(TagWithoutValue) {
				value = false
			}

			tags = append(tags, []any{number, value})
		}

		body["tags"] = tags
	}

	return body
}

func put[T any](body map[string]any, key string, value *T) {
	if value != nil {
		body[key] = *value
	}
}

// present tells a controller's 404 from that of a zerotier-one without controller, which knows no such path: both have no
// body.
func (c *selfHosted) present(ctx context.Context) error {
	got, err := c.do(ctx, http.MethodGet, "/controller", nil, false)
	if err == nil && got.status == http.StatusNotFound {
		err = ansible.Fail(CodeControllerMissing, "install zerotier-one 1.14.2, or a build with the controller",
			"the zerotier-one at %s has no controller (builds of 1.16 and later leave it out)", c.base)
	}

	return err
}

func (c *selfHosted) call(ctx context.Context, method, path string, body, into any) (bool, error) {
	got, err := c.do(ctx, method, path, body, false)

	switch {
	case err != nil:
		return false, err
	case got.status == http.StatusNotFound:
		return false, nil
	case got.status != http.StatusOK:
		return false, c.refused(method, path, got)
	}

	return true, c.read(path, got, into)
}

func networkPath(network string) string { return "/controller/network/" + network }

// Node reads the id of the zerotier-one.
func (c *selfHosted) Node(ctx context.Context) (string, error) {
	var status Status

	found, err := c.call(ctx, http.MethodGet, "/status", nil, &status)
	if err == nil && !found {
		err = c.refused(http.MethodGet, "/status", answer{status: http.StatusNotFound})
	}

	if err == nil && !nodeIDPattern.MatchString(status.Address) {
		err = ansible.Fail(CodeUnexpectedAnswer, "look whether the URL is that of a ZeroTier service", "GET /status of %s at %s: %q is no node id", c.what, c.base, status.Address)
	}

	return status.Address, err
}

// Member reads one member. The controller's 404 does not say whether it lacks the member or the network.
func (c *selfHosted) Member(ctx context.Context, network, node string) (*Member, error) {
	var read memberJSON

	found, err := c.call(ctx, http.MethodGet, networkPath(network)+"/member/"+node, nil, &read)
	if err == nil && !found {
		return nil, c.known(ctx, network)
	}

	if err != nil {
		return nil, err
	}

	made := read.make()

	return &made, c.about(networkPath(network)+"/member/"+node, node, read.ID)
}

// known is an error unless the controller has the network.
func (c *selfHosted) known(ctx context.Context, network string) error {
	found, err := c.Network(ctx, network)
	if err == nil && found == nil {
		err = UnknownNetwork(network, c.base)
	}

	return err
}

// Members reads all in one request where the service can (1.12 and later), else one by one.
func (c *selfHosted) Members(ctx context.Context, network string) ([]Member, error) {
	var read struct {
		Data *[]memberJSON `json:"data"`
	}

	path := "/unstable" + networkPath(network) + "/member"

	found, err := c.call(ctx, http.MethodGet, path, nil, &read)

	switch {
	case err != nil:
		return nil, err
	case !found:
		return c.eachMember(ctx, network)
	case read.Data == nil:
		return nil, ansible.Fail(CodeUnexpectedAnswer, "", "%s of %s at %s: the answer has no list of members", path, c.what, c.base)
	}

	members := []Member{}
	for _, one := range *read.Data {
		members = append(members, one.make())
	}

	return c.checked(members, nil)
}

func (c *selfHosted) eachMember(ctx context.Context, network string) ([]Member, error) {
	var ids map[string]int64

	members := []Member{}

	found, err := c.call(ctx, http.MethodGet, networkPath(network)+"/member", nil, &ids)
	if err == nil && !found {
		err = c.known(ctx, network)
	}

	if err == nil && found && ids == nil {
		err = ansible.Fail(CodeUnexpectedAnswer, "", "%s/member of %s at %s: the answer has no list of members", networkPath(network), c.what, c.base)
	}

	for _, id := range slices.Sorted(maps.Keys(ids)) {
		if err != nil {
			return nil, err
		}

		var one *Member

		one, err = c.Member(ctx, network, id)
		if one != nil {
			members = append(members, *one)
		}
	}

	return members, err
}

// SetMember sends all fields in one request: two changes of addresses within a second leave the older ones on the node's
// interface.
func (c *selfHosted) SetMember(ctx context.Context, network, node string, change MemberChange, _ bool) (Member, error) {
	var read memberJSON

	found, err := c.call(ctx, http.MethodPost, networkPath(network)+"/member/"+node, change.body(), &read)
	if err == nil && !found {
		err = c.known(ctx, network)
		if err == nil {
			err = c.refused(http.MethodPost, "member "+node, answer{status: http.StatusNotFound})
		}
	}

	if err == nil {
		err = c.about(networkPath(network)+"/member/"+node, node, read.ID)
	}

	return read.make(), err
}

// DeleteMember removes a member's record.
func (c *selfHosted) DeleteMember(ctx context.Context, network, node string) error {
	var read memberJSON

	_, err := c.call(ctx, http.MethodDelete, networkPath(network)+"/member/"+node, nil, &read)

	return err
}

// networkJSON is a network's form in a zerotier-one, and in the config of Central v1.
type networkJSON struct {
	ID             string           `json:"id"`
	Name           string           `json:"name"`
	Private        bool             `json:"private"`
	Broadcast      bool             `json:"enableBroadcast"`
	MTU            int              `json:"mtu"`
	MulticastLimit int              `json:"multicastLimit"`
	Pools          []poolJSON       `json:"ipAssignmentPools"`
	Routes         []routeJSON      `json:"routes"`
	V4             v4JSON           `json:"v4AssignMode"`
	V6             v6JSON           `json:"v6AssignMode"`
	DNS            DNS              `json:"dns"`
	Rules          []map[string]any `json:"rules"`
}

type poolJSON struct {
	Start string `json:"ipRangeStart"`
	End   string `json:"ipRangeEnd"`
}

type routeJSON struct {
	Target string  `json:"target"`
	Via    *string `json:"via"`
}

type v4JSON struct {
	Pools bool `json:"zt"`
}

type v6JSON struct {
	Pools    bool `json:"zt"`
	RFC4193  bool `json:"rfc4193"`
	SixPlane bool `json:"6plane"`
}

func (j networkJSON) make() Network {
	made := Network{
		ID: j.ID, Name: j.Name, Private: j.Private, Broadcast: j.Broadcast, MTU: j.MTU, MulticastLimit: j.MulticastLimit,
		Pools: []Pool{}, Routes: []Route{}, V4Assign: j.V4.Pools, V6Assign: V6Assign(j.V6), DNS: j.DNS, Rules: j.Rules,
	}

	if made.DNS.Servers == nil {
		made.DNS.Servers = []string{}
	}

	for _, pool := range j.Pools {
		made.Pools = append(made.Pools, Pool{CanonicalAddress(pool.Start), CanonicalAddress(pool.End)})
	}

	for _, route := range j.Routes {
		one := Route{Target: CanonicalPrefix(route.Target)}
		if route.Via != nil {
			one.Via = CanonicalAddress(*route.Via)
		}

		made.Routes = append(made.Routes, one)
	}

	return made
}

// body makes the config part of a request.
func (c NetworkChange) body() map[string]any {
	body := map[string]any{}

	put(body, "private", c.Private)
	put(body, "enableBroadcast", c.Broadcast)
	put(body, "mtu", c.MTU)
	put(body, "multicastLimit", c.MulticastLimit)
	put(body, "dns", c.DNS)
	put(body, "rules", c.Rules)

	if c.V4Assign != nil {
		body["v4AssignMode"] = v4JSON{*c.V4Assign}
	}

	if c.V6Assign != nil {
		body["v6AssignMode"] = v6JSON(*c.V6Assign)
	}

	if c.Pools != nil {
		pools := []poolJSON{}
		for _, pool := range *c.Pools {
			pools = append(pools, poolJSON(pool))
		}

		body["ipAssignmentPools"] = pools
	}

	if c.Routes != nil {
		body["routes"] = routesBody(*c.Routes)
	}

	return body
}

func routesBody(routes []Route) []routeJSON {
	made := []routeJSON{}

	for _, route := range routes {
		one := routeJSON{Target: route.Target}
		if route.Via != "" {
			one.Via = &route.Via
		}

		made = append(made, one)
	}

	return made
}

// Network reads a network.
func (c *selfHosted) Network(ctx context.Context, network string) (*Network, error) {
	var read networkJSON

	found, err := c.call(ctx, http.MethodGet, networkPath(network), nil, &read)
	if err == nil && !found {
		return nil, c.present(ctx)
	}

	if err != nil {
		return nil, err
	}

	made := read.make()

	return &made, c.about(networkPath(network), network, read.ID)
}

// SetNetwork changes a network, or makes it: the controller does not tell the two apart.
func (c *selfHosted) SetNetwork(ctx context.Context, network string, change NetworkChange, _ bool) (Network, error) {
	var read networkJSON

	body := change.body()
	put(body, "name", change.Name)

	found, err := c.call(ctx, http.MethodPost, networkPath(network), body, &read)
	if err == nil && !found {
		err = c.present(ctx)
		if err == nil {
			err = UnknownNetwork(network, c.base)
		}
	}

	if err == nil {
		err = c.about(networkPath(network), network, read.ID)
	}

	return read.make(), err
}

// DeleteNetwork removes a network with its members' records.
func (c *selfHosted) DeleteNetwork(ctx context.Context, network string) error {
	var read networkJSON

	_, err := c.call(ctx, http.MethodDelete, networkPath(network), nil, &read)

	return err
}

// Named is not needed here: a network's id is chosen by who makes it.
func (*selfHosted) Named(context.Context, string) ([]string, error) { return nil, nil }
