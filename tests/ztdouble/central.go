// SPDX-License-Identifier: Apache-2.0

package ztdouble

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Central is a face of ZeroTier Central over the controller of a node. It is written from documents; no answer of the
// real Central was seen.
type Central struct {
	Node    *Node
	Version int // 1 or 2
	Token   string
	// Limit is how many requests a second are answered, as documented for v1: 20 on a free plan. 0: all.
	Limit int
	// ForgetNames loses the name that is given to a member before its node asked for the first time, as users report of v1.
	ForgetNames bool

	mu      sync.Mutex
	second  int64
	used    int
	Refused int // how many requests were over the limit
}

// ServeHTTP answers under /api/v1 or /api/v2.
func (c *Central) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	world := c.Node.world
	face := "central_v" + strconv.Itoa(c.Version)

	world.note(c.Node.Address, face, r)

	if world.Intercept != nil && world.Intercept(face, w, r) {
		return
	}

	if !c.admit(w) {
		return
	}

	body, _ := io.ReadAll(r.Body)

	var answer reply

	world.Lock(func() { answer = c.handle(r, body) })
	send(w, r, answer)

	for _, node := range world.all() {
		node.Advance()
	}
}

func (w *World) all() []*Node {
	w.mu.Lock()
	defer w.mu.Unlock()

	return slices.Collect(maps.Values(w.nodes))
}

// admit counts the requests of each second, and says so in the answer's headers.
func (c *Central) admit(w http.ResponseWriter) bool {
	if c.Limit == 0 {
		return true
	}

	c.mu.Lock()
	defer c.mu.Unlock()

	now := time.Now()
	if now.Unix() != c.second {
		c.second, c.used = now.Unix(), 0
	}

	c.used++

	w.Header().Set("X-Ratelimit-Limit", strconv.Itoa(c.Limit))
	w.Header().Set("X-Ratelimit-Remaining", strconv.Itoa(max(c.Limit-c.used, 0)))
	w.Header().Set("X-Ratelimit-Reset", time.Unix(c.second+1, 0).UTC().Format(http.TimeFormat))

	if c.used <= c.Limit {
		return true
	}

	c.Refused++
	w.WriteHeader(http.StatusTooManyRequests)

	return false
}

func (c *Central) handle(r *http.Request, body []byte) reply {
	kind, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if token != c.Token || c.Version == 2 && kind != "Bearer" {
		return reply{http.StatusUnauthorized, object{"type": "external", "message": "unauthorized"}}
	}

	path, found := strings.CutPrefix(r.URL.Path, "/api/v"+strconv.Itoa(c.Version)+"/")
	if !found {
		return nothing
	}

	var sent any

	if len(body) > 0 && json.Unmarshal(body, &sent) != nil {
		return reply{http.StatusBadRequest, object{"details": []any{object{"field": "", "message": "no JSON"}}}}
	}

	words := strings.Split(path, "/")

	if list := path == "network" && c.Version == 1 || words[0] == "network-group" && len(words) == 3 && c.Version == 2; list && r.Method == http.MethodGet {
		return c.listNetworks()
	}

	if words[0] == "network-group" && len(words) == 3 && c.Version == 2 || path == "network" && c.Version == 1 && r.Method == http.MethodPost {
		words = []string{"network", c.Node.Address + c.Node.world.NextID()}

		fields, _ := sent.(object)

		return c.setNetwork(words[1], fields)
	}

	if words[0] != "network" || len(words) < 2 {
		return nothing
	}

	one := c.Node.controller.networks[words[1]]

	switch {
	case one == nil:
		return nothing
	case len(words) == 2:
		return c.handleNetwork(r.Method, words[1], one, sent)
	case words[2] != "member":
		return nothing
	case len(words) == 3:
		return c.handleMembers(r.Method, one, sent)
	}

	return c.handleMember(r.Method, one, words[3:], sent)
}

func (c *Central) handleNetwork(method, id string, one *network, sent any) reply {
	switch method {
	case http.MethodPost:
		fields, _ := sent.(object)

		return c.setNetwork(id, fields)
	case http.MethodDelete:
		delete(c.Node.controller.networks, id)

		return ok(object{})
	}

	return ok(c.showNetwork(one))
}

// v2Names are the names of v2's fields in place of v1's.
var v2Names = map[string]string{"v4AssignmentMode": "v4AssignMode", "v6AssignmentMode": "v6AssignMode", "v4IpAssignmentPools": "ipAssignmentPools"}

func (c *Central) setNetwork(id string, sent object) reply {
	config, _ := sent["config"].(object)
	fields := maps.Clone(config)

	if fields == nil {
		fields = object{}
	}

	for from, to := range v2Names {
		if value, given := fields[from]; given && c.Version == 2 {
			fields[to] = value
		}
	}

	if name, given := sent["name"]; given && c.Version == 2 {
		fields["name"] = name
	}

	delete(fields, "rules")

	one := c.Node.controller.setNetwork(id, fields)

	for _, extra := range []string{"description", "rulesSource"} {
		if value, given := sent[extra]; given {
			one.fields[extra] = value
		}
	}

	return ok(c.showNetwork(one))
}

func (c *Central) showNetwork(one *network) object {
	fields := one.fields
	if c.Version == 1 {
		return object{
			"id": fields["id"], "description": asText(fields["description"]), "rulesSource": fields["rulesSource"], "config": fields,
			"clock": c.Node.world.millis(),
		}
	}

	config := object{}
	for _, key := range []string{"private", "enableBroadcast", "mtu", "multicastLimit", "routes"} {
		config[key] = fields[key]
	}

	for to, from := range v2Names {
		config[to] = fields[from]
	}

	config["dns"], config["v6IpAssignmentPools"] = fields["dns"], []any{}

	return object{"id": fields["id"], "name": fields["name"], "description": asText(fields["description"]), "config": config}
}

func (c *Central) handleMembers(method string, one *network, sent any) reply {
	list, _ := sent.([]any)
	shown := []any{}

	switch {
	case c.Version == 2 && method == http.MethodDelete:
		for _, item := range list {
			delete(one.members, asText(item.(object)["deviceId"]))
		}

		return ok(object{"message": "ok"})
	case c.Version == 2 && method == http.MethodPost:
		for _, item := range list {
			fields, _ := item.(object)
			shown = append(shown, c.setMember(one, asText(fields["deviceId"]), fields))
		}

		return ok(shown)
	case method != http.MethodGet:
		return nothing
	}

	for _, id := range slices.Sorted(maps.Keys(one.members)) {
		shown = append(shown, c.showMember(one.members[id]))
	}

	return ok(shown)
}

func (c *Central) handleMember(method string, one *network, words []string, sent any) reply {
	id := words[0]
	node := one.members[id]
	fields, _ := sent.(object)

	switch {
	case !isHex(id, 10) || node == nil && (c.Version == 2 || method != http.MethodPost):
		return nothing
	case len(words) == 2 && c.Version == 2 && method == http.MethodPost:
		on, known := map[string]bool{"authorize": true, "de-authorize": false, "reject": false}[words[1]]
		if !known {
			return nothing
		}

		node = c.Node.controller.setMember(one, id, object{"authorized": on})
		node.reject = words[1] == "reject"
	case method == http.MethodPost:
		return ok(c.setMember(one, id, fields))
	case method == http.MethodDelete && c.Version == 1:
		delete(one.members, id)

		return ok(object{})
	}

	return ok(c.showMember(node))
}

// setMember takes v1's form, with the controller's fields in config, or v2's, which is flat.
func (c *Central) setMember(one *network, id string, sent object) object {
	fields, _ := sent["config"].(object)
	fields = maps.Clone(fields)

	if fields == nil {
		fields = object{}
	}

	fresh := one.members[id] == nil

	if name, given := sent["name"]; given && !(c.ForgetNames && fresh) {
		fields["name"] = name
	}

	if c.Version == 2 {
		for _, key := range []string{"noAutoAssignIps", "activeBridge"} {
			if value, given := sent[key]; given {
				fields[key] = value
			}
		}

		if sent["ipv4Assignments"] != nil || sent["ipv6Assignments"] != nil {
			fields["ipAssignments"] = append(slices.Clone(asList(sent["ipv4Assignments"])), asList(sent["ipv6Assignments"])...)
		}
	}

	node := c.Node.controller.setMember(one, id, fields)

	if text, given := sent["description"]; given {
		node.text = asText(text)
	}

	if on, given := sent["hidden"].(bool); given {
		node.hidden = on
	}

	return c.showMember(node)
}

func (c *Central) showMember(node *member) object {
	fields := node.fields
	if c.Version == 1 {
		return object{
			"id": asText(fields["nwid"]) + "-" + asText(fields["id"]), "networkId": fields["nwid"], "nodeId": fields["id"],
			"name": asText(fields["name"]), "description": node.text, "hidden": node.hidden, "config": fields,
		}
	}

	v4, v6 := []any{}, []any{}

	for _, item := range asList(fields["ipAssignments"]) {
		if addr, err := netip.ParseAddr(asText(item)); err == nil && addr.Is6() {
			v6 = append(v6, item)
		} else {
			v4 = append(v4, item)
		}
	}

	status := "not_authorized"
	if node.reject {
		status = "rejected"
	}

	if asBool(fields["authorized"]) {
		status = "authorized"
	}

	return object{
		"deviceId": fields["id"], "networkId": fields["nwid"], "status": status, "name": asText(fields["name"]), "description": node.text,
		"ipv4Assignments": v4, "ipv6Assignments": v6, "noAutoAssignIps": fields["noAutoAssignIps"], "activeBridge": fields["activeBridge"],
		"capabilities": []any{}, "tags": []any{}, "revision": fields["revision"],
	}
}

func (c *Central) listNetworks() reply {
	shown := []any{}

	for _, id := range slices.Sorted(maps.Keys(c.Node.controller.networks)) {
		shown = append(shown, c.showNetwork(c.Node.controller.networks[id]))
	}

	if c.Version == 2 {
		return ok(object{"items": shown})
	}

	return ok(shown)
}
