// SPDX-License-Identifier: Apache-2.0

package ztdouble

import (
	"reflect"
	"slices"
	"strings"
	"time"
)

// Links is where a node's devices are; nil where there are none.
type Links interface {
	// Set makes the device be there with these addresses and routes.
	Set(device Device) error
	// Remove removes it.
	Remove(name string) error
}

// Device is a network's device on a node.
type Device struct {
	Name, MAC string
	Network   string
	MTU       int
	Addresses []string // with prefix length
	Routes    [][2]string
	Keep      []string // addresses that are left although they are no longer assigned: see staleWithin
}

// Node is one zerotier-one.
type Node struct {
	Address  string
	Identity string
	Token    string
	Home     string
	Links    Links
	// AllowFrom are prefixes of addresses that may call besides loopback: settings.allowManagementFrom.
	AllowFrom []string
	// Root says that others have it as their planet.
	Root bool
	// NoTun says that no network device can be made.
	NoTun bool
	// NoController says that the build has none.
	NoController bool
	// Stopped says that it does not run: nobody who asks it gets an answer.
	Stopped bool
	// Ask reaches controllers that are not in this world; nil: there are none.
	Ask func(controller string, q Question) (Config, bool)
	// RootUp tells whether a root can be reached; nil: any other node of this world that runs is one, or itself.
	RootUp func() bool
	// StaleWithin is the time in which two changes of addresses leave the older ones on the device; 0: the real service's,
	// scaled.
	StaleWithin time.Duration
	// Authenticate is where a person signs in to join a network; then its status is AUTHENTICATION_REQUIRED.
	Authenticate map[string]string

	world      *World
	started    time.Time
	online     bool
	joined     map[string]*joined
	controller *controller
}

// joined is a network on a node.
type joined struct {
	id, status string
	config     *Config // the last good one, which stays
	allow      map[string]bool
	next       time.Time // of the next question
	probed     bool
	readdress  time.Time // when the addresses last changed
	stale      []string
}

// AddNode makes a node that starts now. The root is the first node of a world unless RootUp says otherwise.
func (w *World) AddNode(address, token string) *Node {
	node := &Node{
		Address: address, Token: token, Home: "/var/lib/zerotier-one", Identity: address + ":0:" + strings.Repeat("ab", 64),
		world: w, joined: map[string]*joined{}, controller: newController(w, address),
	}

	w.Lock(func() {
		node.started = w.Now()
		w.nodes[address] = node
	})

	return node
}

// Restart stops a node and starts it again: it comes up with the configuration that it had.
func (n *Node) Restart() {
	n.world.Lock(func() {
		n.Stopped, n.online, n.started = false, false, n.world.Now()

		for _, one := range n.joined {
			one.next = n.started.Add(n.world.scaled(toOnline))
		}
	})
}

// Preseed joins a network as a file in networks.d does at the start.
func (n *Node) Preseed(id string) { n.world.Lock(func() { n.join(id) }) }

// Advance brings a node to the present. The world's lock is not held.
func (n *Node) Advance() { n.world.Lock(n.advance) }

func (n *Node) advance() {
	now := n.world.Now()

	if n.Stopped {
		return
	}

	if !n.online && !now.Before(n.started.Add(n.world.scaled(toOnline))) && n.rootUp() {
		n.online = true
	}

	for _, one := range n.joined {
		for rounds := 0; !one.next.After(now) && rounds < 100; rounds++ {
			n.question(one)
		}

		if one.config != nil {
			n.push(one)
		}
	}
}

func (n *Node) rootUp() bool {
	if n.RootUp != nil {
		return n.RootUp()
	}

	for _, other := range n.world.nodes {
		if !other.Stopped && (other != n || len(n.world.nodes) == 1) {
			return true
		}
	}

	return false
}

// ask reaches the controller of a network: the one whose id the network's begins with.
func (n *Node) ask(q Question) (Config, bool) {
	owner := n.world.nodes[q.Network[:10]]

	switch {
	case owner != nil && !owner.Stopped && !owner.NoController:
		return owner.controller.ask(q), true
	case owner == nil && n.Ask != nil:
		return n.Ask(q.Network[:10], q)
	}

	return Config{}, false
}

// question is one question at the time that it was due, and what comes of it.
func (n *Node) question(one *joined) {
	world, due := n.world, one.next

	kind := "config"
	if !one.probed && one.config == nil {
		kind = "probe"
	}

	config, reached := n.ask(Question{one.id, n.Address, n.Identity, kind})

	switch {
	case !reached:
		one.next = due.Add(world.scaled(retrySilent))
	case config.Result == "not_found":
		one.status, one.next, one.probed = "NOT_FOUND", due.Add(world.scaled(retryRefused)), true
	case kind == "probe":
		one.probed, one.next = true, due.Add(world.scaled(toFirst-toNotFound))
	case n.Authenticate[one.id] != "":
		one.status, one.next = "AUTHENTICATION_REQUIRED", due.Add(world.scaled(retryRefused))
	case config.Result == "denied":
		one.status, one.next = "ACCESS_DENIED", due.Add(world.scaled(retryRefused))
	default:
		one.next = due.Add(world.scaled(refresh))
		n.take(one, config)
	}
}

// push is what a controller sends by itself to a node that has a configuration.
func (n *Node) push(one *joined) {
	config, reached := n.ask(Question{one.id, n.Address, n.Identity, "push"})
	if !reached || config.Result != "ok" || one.has(config) {
		return
	}

	one.next = n.world.Now().Add(n.world.scaled(refresh))
	n.take(one, config)
}

// canonicalConfig gives a configuration the form that it has after its way between processes.
func canonicalConfig(config Config) object {
	config.Peers = nil

	return canonical(object{"config": config})
}

// has tells whether the configuration is the one that is in effect. The real service also does nothing about that
// (node/Network.cpp, setConfiguration).
func (j *joined) has(config Config) bool {
	return j.status == "OK" && j.config != nil && reflect.DeepEqual(canonicalConfig(*j.config), canonicalConfig(config))
}

// take puts a configuration into effect.
func (n *Node) take(one *joined, config Config) {
	now := n.world.Now()

	if one.has(config) {
		one.config.Peers = config.Peers

		return
	}

	if one.config != nil && !slices.Equal(one.config.Assigned, config.Assigned) {
		within := n.StaleWithin
		if within == 0 {
			within = n.world.scaled(staleWithin)
		}

		if now.Sub(one.readdress) < within {
			for _, old := range one.config.Assigned {
				if !slices.Contains(config.Assigned, old) {
					one.stale = append(one.stale, old)
				}
			}
		}

		one.readdress = now
	}

	one.config, one.status = &config, "OK"
	n.plug(one)
}

func (n *Node) plug(one *joined) {
	if n.Links == nil {
		return
	}

	device := Device{Name: deviceName(one.id), MAC: macAddress(one.id, n.Address), Network: one.id, MTU: 2800}

	if one.config != nil {
		device.MTU = one.config.MTU
	}

	if one.config != nil && one.allow["allowManaged"] {
		device.Addresses, device.Keep = one.config.Assigned, one.stale

		for _, route := range one.config.Routes {
			device.Routes = append(device.Routes, [2]string{asText(route["target"]), asText(route["via"])})
		}
	}

	_ = n.Links.Set(device) // what the kernel refuses is seen by who looks at it, as with the real service
}

func (n *Node) join(id string) *joined {
	one := n.joined[id]
	if one == nil {
		one = &joined{id: id, status: "REQUESTING_CONFIGURATION", allow: map[string]bool{"allowManaged": true}}
		one.next = n.world.Now().Add(n.world.scaled(toNotFound))
		n.joined[id] = one
		n.plug(one)
	}

	return one
}

func (n *Node) leave(id string) bool {
	if n.joined[id] == nil {
		return false
	}

	delete(n.joined, id)

	if n.Links != nil {
		_ = n.Links.Remove(deviceName(id))
	}

	return true
}

// show gives a network as the service shows it.
func (n *Node) show(one *joined) object {
	shown := object{
		"allowDNS": one.allow["allowDNS"], "allowDefault": one.allow["allowDefault"], "allowGlobal": one.allow["allowGlobal"],
		"allowManaged": one.allow["allowManaged"], "assignedAddresses": []string{}, "bridge": false, "broadcastEnabled": false,
		"dhcp": false, "dns": object{"domain": "", "servers": []any{}}, "id": one.id, "mac": macAddress(one.id, n.Address), "mtu": 2800,
		"multicastSubscriptions": []any{}, "name": "", "netconfRevision": 0, "nwid": one.id, "portDeviceName": deviceName(one.id),
		"portError": 0, "routes": []any{}, "status": one.status, "type": "PRIVATE",
	}

	if url := n.Authenticate[one.id]; url != "" && one.status == "AUTHENTICATION_REQUIRED" {
		shown["authenticationURL"] = url
	}

	if one.config == nil {
		return shown
	}

	shown["assignedAddresses"], shown["bridge"], shown["broadcastEnabled"] = one.config.Assigned, one.config.Bridge, one.config.Broadcast
	shown["dns"], shown["mtu"], shown["name"] = one.config.DNS, one.config.MTU, one.config.Name
	shown["netconfRevision"], shown["routes"] = one.config.Revision, one.config.Routes

	if !one.config.Private {
		shown["type"] = "PUBLIC"
	}

	return shown
}

// Joined are the ids of the networks that the node has joined.
func (n *Node) Joined() []string {
	ids := []string{}

	n.world.Lock(func() {
		for id := range n.joined {
			ids = append(ids, id)
		}
	})

	return ids
}

// MakeNetwork makes or changes a network of the node's controller.
func (n *Node) MakeNetwork(id string, fields map[string]any) {
	n.world.Lock(func() { n.controller.setNetwork(id, canonical(fields)) })
}

// Unplug removes a network's device and leaves everything else, as the end of the service does.
func (n *Node) Unplug(id string) {
	if n.Links != nil {
		_ = n.Links.Remove(deviceName(id))
	}
}
