// SPDX-License-Identifier: Apache-2.0

package ztdouble

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

type object = map[string]any

// controller is the database of a node's controller. The world's lock guards it.
type controller struct {
	world    *World
	address  string
	networks map[string]*network
}

type network struct {
	fields  object
	members map[string]*member // by id in lower case
}

type member struct {
	fields object
	known  bool   // a configuration was given to the node since it started
	hidden bool   // Central only
	text   string // Central's description
	reject bool   // Central v2: not authorised, for good
}

func newController(world *World, address string) *controller {
	return &controller{world: world, address: address, networks: map[string]*network{}}
}

func (c *controller) newNetwork(id string) *network {
	return &network{members: map[string]*member{}, fields: object{
		"authTokens": []any{nil}, "authorizationEndpoint": "", "capabilities": []any{}, "clientId": "", "creationTime": c.world.millis(),
		"dns": []any{}, "enableBroadcast": true, "id": id, "ipAssignmentPools": []any{}, "mtu": 2800, "multicastLimit": 32, "name": "",
		"nwid": id, "objtype": "network", "private": true, "remoteTraceLevel": 0, "remoteTraceTarget": nil, "revision": 0, "routes": []any{},
		"rules": []any{object{"not": false, "or": false, "type": "ACTION_ACCEPT"}}, "rulesSource": "", "ssoEnabled": false, "tags": []any{},
		"v4AssignMode": object{"zt": false}, "v6AssignMode": object{"6plane": false, "rfc4193": false, "zt": false},
	}}
}

func (c *controller) newMember(network, id string) *member {
	return &member{fields: object{
		"activeBridge": false, "address": id, "authenticationExpiryTime": 0, "authorized": false, "capabilities": []any{},
		"creationTime": c.world.millis(), "id": id, "ipAssignments": []any{}, "lastAuthorizedCredential": nil,
		"lastAuthorizedCredentialType": nil, "lastAuthorizedTime": 0, "lastDeauthorizedTime": 0, "noAutoAssignIps": false,
		"nwid": network, "objtype": "member", "remoteTraceLevel": 0, "remoteTraceTarget": nil, "revision": 0, "ssoExempt": false,
		"tags": []any{}, "vMajor": -1, "vMinor": -1, "vProto": -1, "vRev": -1,
	}}
}

// canonical gives fields the form that JSON has, so that they compare.
func canonical(fields object) object {
	text, _ := json.Marshal(fields)
	made := object{}
	_ = json.Unmarshal(text, &made)

	return made
}

// changed raises the revision when the fields are other than before.
func changed(before, fields object) {
	before, after := canonical(before), canonical(fields)
	for _, unseen := range []string{"revision", "lastAuthorizedTime", "lastDeauthorizedTime"} {
		delete(before, unseen)
		delete(after, unseen)
	}

	if !reflect.DeepEqual(before, after) {
		fields["revision"] = int(asNumber(fields["revision"])) + 1
	}
}

// setNetwork takes what was sent as the real controller does: nearly anything, and something else of it.
func (c *controller) setNetwork(id string, sent object) *network {
	one := c.networks[id]
	fresh := one == nil

	if fresh {
		one = c.newNetwork(id)
		c.networks[id] = one
	}

	before := maps.Clone(one.fields)
	if fresh {
		before = object{}
	}

	for key, value := range sent {
		takeNetworkField(one.fields, key, value)
	}

	changed(before, one.fields)

	return one
}

func takeNetworkField(fields object, key string, value any) {
	switch key {
	case "name":
		fields[key] = asText(value)
	case "private", "enableBroadcast":
		fields[key] = asBool(value)
	case "mtu":
		fields[key] = min(max(int(asNumber(value)), 1280), 10000)
	case "multicastLimit":
		fields[key] = int(asNumber(value))
	case "v4AssignMode":
		takeV4(fields, value)
	case "v6AssignMode":
		if given, ok := value.(object); ok {
			modes := object{}
			for mode, on := range given {
				modes[mode] = asBool(on)
			}

			fields[key] = modes
		}
	case "routes":
		takeList(fields, key, value, makeRoute)
	case "ipAssignmentPools":
		takeList(fields, key, value, makePool)
	case "rules":
		takeList(fields, key, value, makeRule)
	case "dns":
		if given, ok := value.(object); ok {
			fields[key] = object{"domain": asText(given["domain"]), "servers": asList(given["servers"])}
		}
	}
}

func takeV4(fields object, value any) {
	switch given := value.(type) {
	case string:
		fields["v4AssignMode"] = object{"zt": strings.Contains(given, "zt")}
	case object:
		fields["v4AssignMode"] = object{"zt": asBool(given["zt"])}
	}
}

// takeList keeps of a list what can be read; something that is no list is ignored.
func takeList(fields object, key string, value any, make func(object) (object, bool)) {
	list, ok := value.([]any)
	if !ok {
		return
	}

	kept := []any{}

	for _, item := range list {
		given, ok := item.(object)
		if !ok {
			continue
		}

		if made, ok := make(given); ok {
			kept = append(kept, made)
		}
	}

	fields[key] = kept
}

func makeRoute(given object) (object, bool) {
	text, bits, _ := strings.Cut(asText(given["target"]), "/")

	addr, ok := asAddress(text)
	length, _ := strconv.Atoi(bits)

	if !ok || length > addr.BitLen() {
		return nil, false
	}

	made := object{"target": fmt.Sprintf("%s/%d", addr, length), "via": nil}

	hop, _, _ := strings.Cut(asText(given["via"]), "/")
	if via, ok := asAddress(hop); ok {
		made["via"] = via.String()
	}

	return made, true
}

func makePool(given object) (object, bool) {
	start, ok1 := asAddress(asText(given["ipRangeStart"]))
	end, ok2 := asAddress(asText(given["ipRangeEnd"]))

	return object{"ipRangeStart": start.String(), "ipRangeEnd": end.String()}, ok1 && ok2
}

// makeRule knows the types that the tests use.
func makeRule(given object) (object, bool) {
	kind := asText(given["type"])
	made := object{"type": kind}

	switch kind {
	case "ACTION_ACCEPT", "ACTION_DROP", "ACTION_BREAK":
	case "MATCH_ETHERTYPE":
		made["etherType"], made["not"], made["or"] = int(asNumber(given["etherType"])), asBool(given["not"]), asBool(given["or"])
	default:
		return nil, false
	}

	return made, true
}

// setMember makes or changes a member.
func (c *controller) setMember(one *network, id string, sent object) *member {
	key := strings.ToLower(id)
	node := one.members[key]
	before := object{}

	if node == nil {
		node = c.newMember(asText(one.fields["id"]), id)
		one.members[key] = node
	} else {
		before = maps.Clone(node.fields)
	}

	for field, value := range sent {
		c.takeMemberField(node.fields, field, value)
	}

	changed(before, node.fields)

	return node
}

func (c *controller) takeMemberField(fields object, key string, value any) {
	switch key {
	case "activeBridge", "noAutoAssignIps":
		fields[key] = asBool(value)
	case "authorized":
		c.authorize(fields, asBool(value), "api")
	case "name":
		fields[key] = asText(value)
	case "ipAssignments":
		if list, ok := value.([]any); ok {
			fields[key] = makeAssignments(list)
		}
	case "tags":
		fields[key] = makeTags(asList(value))
	case "capabilities":
		fields[key] = makeCapabilities(asList(value))
	}
}

func (c *controller) authorize(fields object, on bool, credential string) {
	if on == fields["authorized"] {
		return
	}

	fields["authorized"] = on

	if on {
		fields["lastAuthorizedTime"], fields["lastAuthorizedCredentialType"] = c.world.millis(), credential
	} else {
		fields["lastDeauthorizedTime"] = c.world.millis()
	}
}

func makeAssignments(list []any) []any {
	kept := []any{}

	for _, item := range list {
		text, _, _ := strings.Cut(asText(item), "/")
		if addr, ok := asAddress(text); ok {
			kept = append(kept, addr.String())
		}
	}

	return kept
}

func makeTags(list []any) []any {
	kept := []any{}

	for _, item := range list {
		if pair := asList(item); len(pair) == 2 {
			kept = append(kept, []any{int(asNumber(pair[0])), int(asNumber(pair[1]))})
		}
	}

	slices.SortFunc(kept, func(a, b any) int { return asList(a)[0].(int) - asList(b)[0].(int) })

	return kept
}

func makeCapabilities(list []any) []any {
	numbers := []int{}
	for _, item := range list {
		numbers = append(numbers, int(asNumber(item)))
	}

	slices.Sort(numbers)

	kept := []any{}
	for _, one := range slices.Compact(numbers) {
		kept = append(kept, one)
	}

	return kept
}

func asText(value any) string {
	switch v := value.(type) {
	case string:
		return v
	case nil:
		return ""
	}

	return fmt.Sprint(value)
}

// asBool reads text as the real controller does: by its first letter, so "yes" is false.
func asBool(value any) bool {
	switch v := value.(type) {
	case bool:
		return v
	case float64:
		return v != 0
	case string:
		return strings.HasPrefix(v, "t") || strings.HasPrefix(v, "T") || strings.HasPrefix(v, "1")
	}

	return false
}

func asNumber(value any) float64 {
	switch v := value.(type) {
	case float64:
		return v
	case int:
		return float64(v)
	case int64:
		return float64(v)
	case string:
		read, _ := strconv.ParseFloat(v, 64)

		return read
	}

	return 0
}

func asList(value any) []any {
	list, _ := value.([]any)
	if list == nil {
		return []any{}
	}

	return list
}

// asAddress reads an address as the real service does: what looks like one and is none becomes 0.0.0.0.
func asAddress(text string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(text)

	switch {
	case err == nil:
		return addr, true
	case strings.Contains(text, "."):
		return netip.IPv4Unspecified(), true
	case strings.Contains(text, ":"):
		return netip.IPv6Unspecified(), true
	}

	return addr, false
}

// Config is what a controller tells a node.
type Config struct {
	Result    string   `json:"result"` // ok, denied or not_found
	Name      string   `json:"name"`
	Private   bool     `json:"private"`
	Broadcast bool     `json:"broadcast"`
	MTU       int      `json:"mtu"`
	Revision  int      `json:"revision"`
	Bridge    bool     `json:"bridge"`
	Assigned  []string `json:"assigned"`
	Routes    []object `json:"routes"`
	DNS       object   `json:"dns"`
	// Peers are the other members that were given a configuration.
	Peers []string `json:"peers"`
}

// Question is what a node asks a controller.
type Question struct {
	Network  string `json:"network"`
	Node     string `json:"node"`
	Identity string `json:"identity"`
	// Kind is "probe" (whether there is such a network), "push" (whether there is something new for a node that has a
	// configuration), or "config".
	Kind string `json:"kind"`
}

// ask answers a node. A question of kind config makes a record, as in the real controller.
func (c *controller) ask(q Question) Config {
	one := c.networks[q.Network]
	if one == nil {
		return Config{Result: "not_found"}
	}

	node := one.members[q.Node]

	switch q.Kind {
	case "probe":
		return Config{Result: "ok"}
	case "push":
		if node == nil || !asBool(node.fields["authorized"]) {
			return Config{Result: "denied"}
		}

		return c.config(one, node, q)
	}

	before := object{}

	if node == nil {
		node = c.newMember(q.Network, q.Node)
		one.members[q.Node] = node
	} else {
		before = maps.Clone(node.fields)
	}

	node.fields["identity"] = q.Identity

	if !asBool(one.fields["private"]) {
		c.authorize(node.fields, true, "public")
	}

	granted := asBool(node.fields["authorized"])
	if granted {
		node.known = true
		node.fields["vMajor"], node.fields["vMinor"], node.fields["vRev"], node.fields["vProto"] = 1, 14, 1, 12
		c.assign(one, node)
	}

	changed(before, node.fields)

	if !granted {
		return Config{Result: "denied"}
	}

	return c.config(one, node, q)
}

// assign gives a member an address from the pools, as the real controller chooses it: from the node's id on.
func (c *controller) assign(one *network, node *member) {
	modes, _ := one.fields["v4AssignMode"].(object)
	if asBool(node.fields["noAutoAssignIps"]) || !asBool(modes["zt"]) || len(asList(node.fields["ipAssignments"])) > 0 {
		return
	}

	taken := map[string]bool{}
	for _, other := range one.members {
		for _, addr := range asList(other.fields["ipAssignments"]) {
			taken[asText(addr)] = true
		}
	}

	for _, item := range asList(one.fields["ipAssignmentPools"]) {
		pool, _ := item.(object)
		start, _ := netip.ParseAddr(asText(pool["ipRangeStart"]))
		end, _ := netip.ParseAddr(asText(pool["ipRangeEnd"]))

		if !start.Is4() || !end.Is4() || end.Less(start) {
			continue
		}

		first, last := toNumber(start), toNumber(end)
		counter := uint32(number(asText(node.fields["id"])))

		for range last - first + 1 {
			addr := toAddress(first)
			if last > first {
				addr = toAddress(first + counter%(last-first))
			}

			counter++

			if !taken[addr.String()] && addr.As4()[3] != 0 && addr.As4()[3] != 255 {
				node.fields["ipAssignments"] = []any{addr.String()}

				return
			}
		}
	}
}

func toNumber(addr netip.Addr) uint32 {
	raw := addr.As4()

	return uint32(raw[0])<<24 | uint32(raw[1])<<16 | uint32(raw[2])<<8 | uint32(raw[3])
}

func toAddress(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

func (c *controller) config(one *network, node *member, q Question) Config {
	fields := one.fields
	config := Config{
		Result: "ok", Name: asText(fields["name"]), Private: asBool(fields["private"]), Broadcast: asBool(fields["enableBroadcast"]),
		MTU: int(asNumber(fields["mtu"])), Revision: int(asNumber(fields["revision"])), Bridge: asBool(node.fields["activeBridge"]),
		Assigned: []string{}, Routes: []object{}, DNS: object{"domain": "", "servers": []any{}},
	}

	if dns, ok := fields["dns"].(object); ok {
		config.DNS = dns
	}

	for _, item := range asList(fields["routes"]) {
		route, _ := item.(object)
		config.Routes = append(config.Routes, object{"flags": 0, "metric": 0, "target": route["target"], "via": route["via"]})
	}

	if modes, _ := fields["v6AssignMode"].(object); !asBool(node.fields["noAutoAssignIps"]) {
		if asBool(modes["rfc4193"]) {
			config.Assigned = append(config.Assigned, rfc4193(q.Network, q.Node))
		}

		if asBool(modes["6plane"]) {
			config.Assigned = append(config.Assigned, sixPlane(q.Network, q.Node))
		}
	}

	for _, item := range asList(node.fields["ipAssignments"]) {
		if prefix := covered(fields, asText(item)); prefix != "" && len(config.Assigned) < 32 {
			config.Assigned = append(config.Assigned, prefix)
		}
	}

	for _, id := range slices.Sorted(maps.Keys(one.members)) {
		if one.members[id].known && id != q.Node {
			config.Peers = append(config.Peers, id)
		}
	}

	return config
}

// covered gives an address the prefix length of the managed route on the link that has it; without one it never reaches
// the node.
func covered(fields object, text string) string {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return ""
	}

	for _, item := range asList(fields["routes"]) {
		route, _ := item.(object)

		prefix, err := netip.ParsePrefix(asText(route["target"]))
		if err == nil && route["via"] == nil && prefix.Masked().Contains(addr) {
			return fmt.Sprintf("%s/%d", addr, prefix.Bits())
		}
	}

	return ""
}
