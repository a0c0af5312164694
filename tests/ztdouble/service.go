// SPDX-License-Identifier: Apache-2.0

package ztdouble

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// reply is an answer; body nil sends none.
type reply struct {
	status int
	body   any
}

var (
	nothing  = reply{http.StatusNotFound, nil}
	empty404 = reply{http.StatusNotFound, object{}}
)

func ok(body any) reply { return reply{http.StatusOK, body} }

// ServeHTTP is the service's port. The bytes between doubles come over the same port, under /double/.
func (n *Node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/double/ask" {
		n.answerNode(w, r)
		return
	}

	face := "service"
	if strings.Contains(r.URL.Path, "/controller") {
		face = "controller"
	}

	n.world.note(n.Address, face, r)

	if n.world.Intercept != nil && n.world.Intercept(face, w, r) {
		return
	}

	body, _ := io.ReadAll(r.Body)

	n.Advance()

	var answer reply

	n.world.Lock(func() { answer = n.handle(r, body) })
	send(w, r, answer)

	n.Advance() // a change at the controller reaches nodes at once
}

func send(w http.ResponseWriter, r *http.Request, answer reply) {
	w.Header().Set("Keep-Alive", "timeout=5, max=5")

	if answer.body == nil {
		w.Header()["Content-Type"] = nil
		w.WriteHeader(answer.status)

		return
	}

	text, err := json.Marshal(answer.body)
	if err != nil {
		panic(err)
	}

	w.Header().Set("Content-Type", "application/json")

	if r.Method == http.MethodHead {
		w.Header().Set("Accept-Ranges", "bytes")
	}

	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(answer.status)

	if r.Method != http.MethodHead {
		_, _ = w.Write(text)
	}
}

func (n *Node) handle(r *http.Request, body []byte) reply {
	path := strings.Trim(r.URL.Path, "/")

	if path == "health" {
		return ok(object{"clock": n.world.millis(), "online": n.online, "version": version, "versionBuild": 0, "versionMajor": 1, "versionMinor": 14, "versionRev": 1})
	}

	if !n.trusted(r) {
		return reply{http.StatusUnauthorized, object{}}
	}

	words := strings.Split(path, "/")
	reading := r.Method == http.MethodGet || r.Method == http.MethodHead

	switch {
	case words[0] == "controller" || words[0] == "unstable":
		return n.handleController(r.Method, words, body)
	case words[0] == "network":
		return n.handleNetwork(r.Method, words[1:], body)
	case !reading:
		return nothing
	case path == "status":
		return ok(n.status())
	case path == "config":
		return ok(object{"settings": object{"allowTcpFallbackRelay": false, "portMappingEnabled": false, "softwareUpdate": "disable"}})
	case path == "moon":
		return ok([]any{})
	case words[0] == "peer":
		return n.handlePeer(words[1:])
	}

	return nothing
}

// trusted tells whether the caller may: from where, and with which token. The real answer is the same for both.
func (n *Node) trusted(r *http.Request) bool {
	host, _, err := net.SplitHostPort(r.RemoteAddr)

	addr, parseErr := netip.ParseAddr(host)
	if err != nil || parseErr != nil {
		return false
	}

	allowed := addr.IsLoopback()

	for _, text := range n.AllowFrom {
		prefix, err := netip.ParsePrefix(text)
		allowed = allowed || err == nil && prefix.Contains(addr)
	}

	token := r.Header.Get("X-ZT1-Auth")
	if token == "" {
		token = r.URL.Query().Get("auth")
	}

	if kind, given, found := strings.Cut(r.Header.Get("Authorization"), " "); found && strings.EqualFold(kind, "bearer") {
		token = given
	}

	return allowed && token != "" && subtle.ConstantTimeCompare([]byte(token), []byte(n.Token)) == 1
}

func (n *Node) status() object {
	settings := object{
		"allowTcpFallbackRelay": false, "forceTcpRelay": false, "homeDir": n.Home, "listeningOn": []any{}, "portMappingEnabled": false,
		"primaryPort": 9993, "secondaryPort": 0, "softwareUpdate": "disable", "softwareUpdateChannel": "release", "surfaceAddresses": []any{},
		"tertiaryPort": 0,
	}

	if len(n.AllowFrom) > 0 {
		settings["allowManagementFrom"] = n.AllowFrom
	}

	return object{
		"address": n.Address, "clock": n.world.millis(), "config": object{"settings": settings}, "online": n.online,
		"planetWorldId": 475327656337, "planetWorldTimestamp": 1795374651878, "publicIdentity": n.Identity, "tcpFallbackActive": false,
		"version": version, "versionBuild": 0, "versionMajor": 1, "versionMinor": 14, "versionRev": 1,
	}
}

func (n *Node) handlePeer(words []string) reply {
	peers := []object{}

	seen := map[string]string{}
	for _, one := range n.joined {
		if one.config != nil && one.status == "OK" {
			for _, id := range one.config.Peers {
				seen[id] = "LEAF"
			}
		}
	}

	if root := n.root(); root != "" {
		seen[root] = "PLANET"
	}

	for _, id := range slices.Sorted(maps.Keys(seen)) {
		peers = append(peers, object{
			"address": id, "isBonded": false, "latency": 1, "paths": []any{}, "role": seen[id], "tunneled": false,
			"version": version, "versionMajor": 1, "versionMinor": 14, "versionRev": 1,
		})
	}

	if len(words) == 0 {
		return ok(peers)
	}

	if !isHex(words[0], 10) {
		return nothing
	}

	for _, peer := range peers {
		if peer["address"] == words[0] {
			return ok(peer)
		}
	}

	return ok(object{})
}

// root is another node that is a root, if there is one: the first that holds networks, as in the recordings.
func (n *Node) root() string {
	for _, id := range slices.Sorted(maps.Keys(n.world.nodes)) {
		other := n.world.nodes[id]
		if other != n && (other.Root || len(other.controller.networks) > 0) {
			return id
		}
	}

	return ""
}

func (n *Node) handleNetwork(method string, words []string, body []byte) reply {
	reading := method == http.MethodGet || method == http.MethodHead

	if len(words) == 0 && reading {
		list := []object{}
		if n.NoTun {
			return ok(list)
		}

		for _, id := range slices.Sorted(maps.Keys(n.joined)) {
			list = append(list, n.show(n.joined[id]))
		}

		return ok(list)
	}

	if len(words) != 1 || !isHex(words[0], 16) {
		return nothing
	}

	id := strings.ToLower(words[0])

	switch {
	case method == http.MethodDelete:
		if n.leave(id) {
			return ok(object{"result": true})
		}

		return ok(object{})
	case method == http.MethodPost, method == http.MethodPut:
		if n.NoTun {
			return ok(object{})
		}

		one := n.join(id)
		n.takeSettings(one, body)

		return ok(n.show(one))
	case !reading:
		return nothing
	case n.joined[id] == nil || n.NoTun:
		return empty404
	}

	return ok(n.show(n.joined[id]))
}

// takeSettings ignores what is no boolean, without a word.
func (n *Node) takeSettings(one *joined, body []byte) {
	var sent object

	if json.Unmarshal(body, &sent) != nil {
		return
	}

	for _, key := range []string{"allowManaged", "allowGlobal", "allowDefault", "allowDNS"} {
		if on, ok := sent[key].(bool); ok {
			one.allow[key] = on
		}
	}

	n.plug(one)
}

// answerNode is a node of another process that asks this one's controller.
func (n *Node) answerNode(w http.ResponseWriter, r *http.Request) {
	var q Question

	err := json.NewDecoder(r.Body).Decode(&q)
	if err != nil || len(q.Network) != 16 || n.Stopped || n.NoController {
		w.WriteHeader(http.StatusBadRequest)
		return
	}

	var config Config

	n.world.Lock(func() { config = n.controller.ask(q) })
	send(w, r, ok(config))
}

func (n *Node) handleController(method string, words []string, body []byte) reply {
	if n.NoController {
		return nothing
	}

	reading := method == http.MethodGet
	writing := method == http.MethodPost || method == http.MethodPut

	unstable := words[0] == "unstable"
	if unstable {
		words = words[1:]
	}

	switch {
	case len(words) == 1 && reading:
		return ok(object{"controller": true, "apiVersion": 4, "clock": n.world.millis(), "databaseReady": true})
	case len(words) < 2 || words[0] != "controller" || words[1] != "network":
		return nothing
	case len(words) == 2 && reading && unstable:
		return ok(n.controller.listInFull())
	case len(words) == 2 && reading:
		return ok(append([]string{}, slices.Sorted(maps.Keys(n.controller.networks))...))
	}

	var sent object

	if writing {
		failed := decode(body, &sent)
		if failed != nil {
			return *failed
		}
	}

	if len(words) == 2 {
		words = append(words, n.Address+"______")
	}

	id := strings.ToLower(words[2])

	if strings.HasSuffix(id, "______") && writing {
		if !strings.HasPrefix(id, n.Address) {
			return reply{http.StatusBadRequest, nil}
		}

		id = n.Address + n.world.NextID()
	}

	if !isHex(id, 16) {
		return nothing
	}

	if len(words) == 3 {
		return n.controller.handleNetwork(method, id, sent, writing)
	}

	one := n.controller.networks[id]
	if words[3] != "member" || one == nil {
		return nothing
	}

	if len(words) == 4 {
		return one.list(reading, unstable)
	}

	return n.controller.handleMember(method, one, words[4], sent, writing)
}

// decode gives the real controller's words for what is no JSON, and for addresses that are no text.
func decode(body []byte, sent *object) *reply {
	var value any

	err := json.Unmarshal(body, &value)

	*sent, _ = value.(object)

	if err != nil {
		text := "parse_error.101] parse error at line 1, column 1: syntax error while parsing value - unexpected end of input; expected '[', '{', or a literal"
		if len(body) > 0 {
			text = fmt.Sprintf("parse_error.101] parse error at line 1, column 3: syntax error while parsing object key - invalid literal; last read: '%s'; expected string literal", body[:min(3, len(body))])
		}

		return &reply{http.StatusInternalServerError, object{"error": 500, "description": "[json.exception." + text}}
	}

	for _, item := range asList((*sent)["ipAssignments"]) {
		if _, isText := item.(string); !isText {
			return &reply{http.StatusInternalServerError, object{"error": 500, "description": "[json.exception.type_error.302] type must be string, but is number"}}
		}
	}

	return nil
}

func (c *controller) handleNetwork(method, id string, sent object, writing bool) reply {
	one := c.networks[id]

	switch {
	case writing:
		return ok(c.setNetwork(id, sent).fields)
	case one == nil:
		return nothing
	case method == http.MethodDelete:
		delete(c.networks, id)
	}

	return ok(one.fields)
}

func (c *controller) handleMember(method string, one *network, id string, sent object, writing bool) reply {
	key := strings.ToLower(id)

	switch {
	case !isHex(key, 10):
		return nothing
	case writing:
		return ok(c.setMember(one, id, sent).fields)
	case one.members[key] == nil:
		return nothing
	}

	fields := one.members[key].fields
	if method == http.MethodDelete {
		delete(one.members, key)
	}

	return ok(fields)
}

func (one *network) counts() (authorized, all int) {
	for _, node := range one.members {
		all++

		if asBool(node.fields["authorized"]) {
			authorized++
		}
	}

	return authorized, all
}

func (one *network) list(reading, unstable bool) reply {
	if !reading {
		return nothing
	}

	short, full := object{}, []any{}

	for _, id := range slices.Sorted(maps.Keys(one.members)) {
		fields := one.members[id].fields
		short[asText(fields["id"])] = fields["revision"]
		full = append(full, fields)
	}

	if !unstable {
		return ok(short)
	}

	authorized, all := one.counts()

	return ok(object{"data": full, "meta": object{"authorizedCount": authorized, "totalCount": all}})
}

func (c *controller) listInFull() object {
	data := []any{}

	for _, id := range slices.Sorted(maps.Keys(c.networks)) {
		authorized, all := c.networks[id].counts()
		fields := maps.Clone(c.networks[id].fields)
		fields["meta"] = object{"authorizedMemberCount": authorized, "totalMemberCount": all}
		data = append(data, fields)
	}

	return object{"data": data, "meta": object{"networkCount": len(data)}}
}
