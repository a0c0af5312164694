// SPDX-License-Identifier: Apache-2.0

// Package zttest gives tests a world of ZeroTier nodes (the double of tests/ztdouble) and runs modules against it.
//
// Its own tests run the modules as programs against services with real links: by default the double in network namespaces,
// which needs root; with ZT_HOME (and ZT_URL) set, the scenarios against the zerotier-one of that home folder, which must
// have a controller (`make test-zerotier ZT_HOME=/var/lib/zerotier-one`).
package zttest

import (
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/tests/ztdouble"
)

// Dict is a task's arguments, or a result.
type Dict = map[string]any

// Scale is how fast the double is: a join takes 29 ms in place of 2.9 s.
const Scale = 0.01

// Network is the id of the network that World makes.
const Network = "6eabbc719100beef"

// Node ids.
const (
	Controller = "6eabbc7191"
	NodeA      = "680bbfa232"
	NodeB      = "00d52687fd"
)

// Token is every node's; CentralToken is Central's.
const (
	Token        = "s3cr3t-of-a-node-0123456"
	CentralToken = "s3cr3t-of-central-abcdefg"
)

// World is nodes with their homes and ports.
type World struct {
	*ztdouble.World
	T     testing.TB
	Nodes map[string]*Node
}

// Node is one node with its port.
type Node struct {
	*ztdouble.Node
	Home   string
	Server *httptest.Server
}

// New makes a world with a controller and the two nodes, and one network with a route.
func New(t testing.TB) *World {
	t.Helper()

	return NewScaled(t, Scale)
}

// NewScaled is New with another factor of the real service's times.
func NewScaled(t testing.TB, scale float64) *World {
	t.Helper()

	w := &World{World: ztdouble.NewWorld(scale), T: t, Nodes: map[string]*Node{}}

	for _, address := range []string{Controller, NodeA, NodeB} {
		w.Add(address)
	}

	w.Nodes[Controller].Root = true
	w.Nodes[Controller].RootUp = func() bool { return true }
	w.Controller("POST", "/controller/network/"+Network, `{"name":"lab","routes":[{"target":"10.147.17.0/24"}],"v4AssignMode":{"zt":true},
		"ipAssignmentPools":[{"ipRangeStart":"10.147.17.10","ipRangeEnd":"10.147.17.200"}]}`)
	w.Requests()

	return w
}

// Add makes a node with a home folder and a port.
func (w *World) Add(address string) *Node {
	made := &Node{Node: w.AddNode(address, Token), Home: w.T.TempDir()}
	made.Server = httptest.NewServer(made.Node)
	w.T.Cleanup(made.Server.Close)
	made.WriteHome(w.T)

	w.Nodes[address] = made

	return made
}

// WriteHome writes the files that a service has in its home folder.
func (n *Node) WriteHome(t testing.TB) {
	t.Helper()

	port := n.Server.URL[strings.LastIndex(n.Server.URL, ":")+1:]
	require.NoError(t, os.WriteFile(filepath.Join(n.Home, "zerotier-one.port"), []byte(port), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(n.Home, "authtoken.secret"), []byte(n.Token), 0o600))
}

// Controller makes a request of the controller, as its administrator does, and gives the answer.
func (w *World) Controller(method, path, body string) Dict {
	w.T.Helper()

	return w.Nodes[Controller].Call(w.T, method, path, body)
}

// Call makes a request of a node.
func (n *Node) Call(t testing.TB, method, path, body string) Dict {
	t.Helper()

	request := httptest.NewRequest(method, path, strings.NewReader(body))
	request.RemoteAddr = "127.0.0.1:1"
	request.Header.Set("X-ZT1-Auth", n.Token)

	answer := httptest.NewRecorder()
	n.ServeHTTP(answer, request)

	result := Dict{}
	_ = json.Unmarshal(answer.Body.Bytes(), &result)

	return result
}

// Member reads a member's record; empty when there is none.
func (w *World) Member(node string) Dict {
	return w.Controller("GET", "/controller/network/"+Network+"/member/"+node, "")
}

// Central serves a face of Central and gives what a task says of it.
func (w *World) Central(version int) (*ztdouble.Central, Dict) {
	w.T.Helper()

	central := &ztdouble.Central{Node: w.Nodes[Controller].Node, Version: version, Token: CentralToken}
	server := httptest.NewServer(central)
	w.T.Cleanup(server.Close)

	path := map[int]string{1: "/api/v1", 2: "/api/v2"}[version]

	return central, Dict{"kind": map[int]string{1: "central_v1", 2: "central_v2"}[version], "url": server.URL + path, "token": CentralToken}
}

// SelfHosted is what a task says of the world's controller.
func (w *World) SelfHosted() Dict {
	return Dict{"kind": "self_hosted", "url": w.Nodes[Controller].Server.URL, "token": Token}
}

// Result is what a module said.
type Result struct {
	Dict
	Text string
}

// Code is the failure's.
func (r Result) Code() string {
	failure, _ := r.Dict["failure"].(Dict)
	code, _ := failure["code"].(string)

	return code
}

// Msg is the failure's message and hint.
func (r Result) Msg() string {
	msg, _ := r.Dict["msg"].(string)
	hint, _ := r.Dict["hint"].(string)

	return msg + "\n" + hint
}

// Lines is the plan.
func (r Result) Lines() []string {
	lines := []string{}

	list, _ := r.Dict["plan"].([]any)
	for _, line := range list {
		lines = append(lines, line.(string))
	}

	return lines
}

var runs sync.Mutex

// Run runs a module as stock Ansible does. No token may be in what it says.
func Run(t testing.TB, module ansible.Runner, args ...Dict) Result {
	t.Helper()

	all := Dict{"_ansible_verbosity": 4, "_ansible_diff": true}

	for _, some := range args {
		for key, value := range some {
			all[key] = value
		}
	}

	text, err := json.Marshal(all)
	require.NoError(t, err)

	runs.Lock()
	file := filepath.Join(t.TempDir(), "args.json")
	runs.Unlock()
	require.NoError(t, os.WriteFile(file, text, 0o600))

	var stdout, stderr bytes.Buffer

	ansible.Standalone(module, []string{module.ModuleName(), file}, &stdout, &stderr)

	result := Result{Dict: Dict{}, Text: stdout.String()}
	require.NoError(t, json.Unmarshal(stdout.Bytes(), &result.Dict), stdout.String())

	for _, secret := range []string{Token, CentralToken} {
		require.NotContains(t, stdout.String()+stderr.String(), secret)
	}

	return result
}

// OK runs a module that must succeed.
func OK(t testing.TB, module ansible.Runner, args ...Dict) Result {
	t.Helper()

	result := Run(t, module, args...)
	require.NotEqual(t, true, result.Dict["failed"], result.Text)

	return result
}

// Check is a task in check mode.
var Check = Dict{"_ansible_check_mode": true}
