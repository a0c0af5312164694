// SPDX-License-Identifier: Apache-2.0

package zerotiernetwork_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/thinkube/infra/modules/internal/zttest"
	zerotiernetwork "github.com/thinkube/infra/modules/zerotier_network"
)

type dict = zttest.Dict

var module = zerotiernetwork.Module

func task(w *zttest.World, more dict) dict {
	all := dict{"controller": w.SelfHosted(), "network_number": "00c0de", "home": "/nonexistent"}
	for key, value := range more {
		all[key] = value
	}

	return all
}

const id = "6eabbc719100c0de"

func TestMadeChangedAndDeleted(t *testing.T) {
	w := zttest.New(t)
	wanted := task(w, dict{
		"name": "lab", "routes": []dict{{"target": "10.60.0.0/24"}, {"target": "192.168.9.0/24", "via": "10.60.0.1"}},
		"pools": []dict{{"start": "10.60.0.10", "end": "10.60.0.99"}}, "v4_assign": true, "v6_assign": dict{"rfc4193": true},
		"dns": dict{"domain": "zt.example", "servers": []string{"10.60.0.1"}}, "mtu": 1400,
		"rules": []dict{{"type": "MATCH_ETHERTYPE", "etherType": 2048, "not": true}, {"type": "ACTION_DROP"}, {"type": "ACTION_ACCEPT"}},
	})

	planned := zttest.OK(t, module, wanted, zttest.Check)

	for _, one := range w.Requests() {
		assert.Equal(t, http.MethodGet, one.Method)
	}

	result := zttest.OK(t, module, wanted)
	assert.Equal(t, planned.Lines(), result.Lines())
	assert.Equal(t, id, result.Dict["network_id"])
	assert.Equal(t, true, result.Dict["network"].(dict)["private"], "private unless it is said")

	before := w.Controller("GET", "/controller/network/"+id, "")
	assert.Equal(t, false, zttest.OK(t, module, wanted).Dict["changed"])
	assert.Equal(t, before["revision"], w.Controller("GET", "/controller/network/"+id, "")["revision"])

	// Additive: routes and pools of others stay; modes are merged; exact replaces.
	zttest.OK(t, module, task(w, dict{"routes": []dict{{"target": "10.61.0.0/24"}}, "v6_assign": dict{"sixplane": true}}))

	live := w.Controller("GET", "/controller/network/"+id, "")
	assert.Len(t, live["routes"], 3)
	assert.Equal(t, dict{"zt": false, "rfc4193": true, "6plane": true}, live["v6AssignMode"])
	zttest.OK(t, module, task(w, dict{"routes": []dict{{"target": "10.60.0.0/24"}}, "exact": true, "dns": dict{}}))

	live = w.Controller("GET", "/controller/network/"+id, "")
	assert.Len(t, live["routes"], 1)
	assert.Equal(t, dict{"domain": "", "servers": []any{}}, live["dns"], "null would not clear it")

	result = zttest.OK(t, module, task(w, dict{"private": false}))
	assert.Equal(t, false, result.Dict["network"].(dict)["private"])
	assert.Contains(t, fmt.Sprint(zttest.OK(t, module, task(w, dict{"private": true})).Dict["warnings"]), "stays authorised")

	// Members are not touched, and keep a network from being deleted.
	w.Controller("POST", "/controller/network/"+id+"/member/"+zttest.NodeA, `{"authorized":true}`)
	assert.Equal(t, "in_use", zttest.Run(t, module, task(w, dict{"state": "absent"})).Code())
	zttest.OK(t, module, task(w, dict{"state": "absent", "force": true}))
	assert.Equal(t, false, zttest.OK(t, module, task(w, dict{"state": "absent"})).Dict["changed"])
}

// TestWhatTheControllerWouldStoreOtherwise are the values that it takes with 200 and turns into something else.
func TestWhatTheControllerWouldStoreOtherwise(t *testing.T) {
	w := zttest.New(t)

	for name, more := range map[string]dict{
		"stored as a default route":     {"routes": []dict{{"target": "10.52.0.7"}}},
		"prefix too long":               {"routes": []dict{{"target": "10.0.0.0/99"}}},
		"host bits":                     {"routes": []dict{{"target": "10.9.9.5/24"}}},
		"via becomes null":              {"routes": []dict{{"target": "10.51.0.0/24", "via": "not-ip"}}},
		"via of the other family":       {"routes": []dict{{"target": "10.51.0.0/24", "via": "fd00::1"}}},
		"empties the list of pools":     {"pools": []dict{{"start": "notanip", "end": "10.0.0.9"}}},
		"reversed":                      {"pools": []dict{{"start": "10.0.0.9", "end": "10.0.0.1"}}},
		"no rule at all":                {"rules": []dict{{"type": "NOSUCH"}}},
		"drops everything":              {"rules": []dict{}},
		"clamped":                       {"mtu": 100},
		"clamped too":                   {"mtu": 99999},
		"ends IPv4":                     {"multicast_limit": 0},
		"stored as it is":               {"dns": dict{"domain": "x", "servers": []string{"bad"}}},
		"not stored":                    {"description": "x"},
		"text rules of Central":         {"flow_rules": "accept;"},
		"a useless network":             {"network_number": nil, "network_id": "deadbeef00000001"},
		"no boolean":                    {"rules": []dict{{"type": "ACTION_ACCEPT", "not": "yes"}}},
		"id of five digits":             {"network_number": "12345"},
		"neither of the ways to say it": {"network_number": nil},
	} {
		result := zttest.Run(t, module, task(w, more))
		assert.Equal(t, "invalid_argument", result.Code(), "%s: %s", name, result.Text)
	}

	for _, one := range w.Requests() {
		assert.Equal(t, http.MethodGet, one.Method)
	}

	// "yes" is a boolean in Ansible, and reaches the controller as one: as text it would open the network to everyone.
	zttest.OK(t, module, task(w, dict{"private": "yes"}))
	assert.Equal(t, true, w.Controller("GET", "/controller/network/"+id, "")["private"])

	before := w.Controller("GET", "/controller/network/"+id, "")

	var posts atomic.Int32

	w.Intercept = func(_ string, _ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost && posts.Add(1) == 1 {
			r.Body = io.NopCloser(strings.NewReader(`{"private":false,"routes":[{"target":"10.52.0.7/0"}]}`))
		}

		return false
	}

	result := zttest.Run(t, module, task(w, dict{"private": true, "mtu": 1500, "routes": []dict{{"target": "10.52.0.0/24"}}}))
	assert.Equal(t, "stored_otherwise", result.Code(), result.Text)
	assert.Contains(t, result.Msg(), "what was before was put back")

	after := w.Controller("GET", "/controller/network/"+id, "")
	assert.Equal(t, []any{}, after["routes"])
	assert.Equal(t, before["mtu"], after["mtu"])

	// A new one does not stay, least of all open to everyone.
	posts.Store(0)

	result = zttest.Run(t, module, task(w, dict{"network_number": "00c0df", "private": true, "name": "x"}))
	assert.Equal(t, "stored_otherwise", result.Code(), result.Text)
	assert.Empty(t, w.Controller("GET", "/controller/network/6eabbc719100c0df", ""))
}

// TestSpellingsAndOrder has what is the same in another spelling, and a controller that keeps lists in another order.
func TestSpellingsAndOrder(t *testing.T) {
	w := zttest.New(t)
	wanted := task(w, dict{
		"routes": []dict{{"target": "FD00:0::/64"}, {"target": "fd01::/64", "via": "FD00::0001"}, {"target": "10.60.0.0/24"}},
		"pools":  []dict{{"start": "FD00:0::A", "end": "fd00::00ff"}, {"start": "10.60.0.10", "end": "10.60.0.20"}},
		"dns":    dict{"domain": "x", "servers": []string{"FD00:0::1"}},
	})

	result := zttest.OK(t, module, wanted)
	assert.Equal(t, true, result.Dict["changed"])
	assert.Equal(t, false, zttest.OK(t, module, wanted).Dict["changed"], "%v", result.Text)
	assert.Len(t, w.Controller("GET", "/controller/network/"+id, "")["routes"], 3)

	_, controller := w.Central(1)
	w.Intercept = func(face string, _ http.ResponseWriter, r *http.Request) bool {
		if face == "central_v1" && r.Method == http.MethodPost {
			r.Body = io.NopCloser(strings.NewReader(`{"config":{"routes":[{"target":"10.62.0.0/24"},{"target":"10.61.0.0/24"}],
				"ipAssignmentPools":[{"ipRangeStart":"10.62.0.1","ipRangeEnd":"10.62.0.9"},{"ipRangeStart":"10.61.0.1","ipRangeEnd":"10.61.0.9"}]}}`))
		}

		return false
	}

	reordered := dict{
		"controller": controller, "network_id": id, "exact": true, "routes": []dict{{"target": "10.61.0.0/24"}, {"target": "10.62.0.0/24"}},
		"pools": []dict{{"start": "10.61.0.1", "end": "10.61.0.9"}, {"start": "10.62.0.1", "end": "10.62.0.9"}},
	}
	zttest.OK(t, module, reordered)
	assert.Equal(t, false, zttest.OK(t, module, reordered).Dict["changed"])
}

// TestUnknownIsNotEmpty has controllers whose list of members cannot be read: no network is deleted.
func TestUnknownIsNotEmpty(t *testing.T) {
	for kind, face := range []string{"controller", "central_v1", "central_v2"} {
		for name, body := range map[string]string{"an object": `{}`, "nothing": "", "null": "null", "another list": `{"things":[]}`, "nobody": `[{}]`} {
			t.Run(face+": "+name, func(t *testing.T) {
				w := zttest.New(t)
				controller := w.SelfHosted()

				if kind > 0 {
					_, controller = w.Central(kind)
				}

				w.Intercept = func(_ string, out http.ResponseWriter, r *http.Request) bool {
					list := strings.HasSuffix(r.URL.Path, "/member")
					if list {
						fmt.Fprint(out, body)
					}

					return list
				}

				result := zttest.Run(t, module, dict{"controller": controller, "network_id": zttest.Network, "state": "absent", "home": "/nonexistent"})
				assert.Equal(t, "unexpected_answer", result.Code(), result.Text)

				w.Intercept = nil
				assert.NotEmpty(t, w.Controller("GET", "/controller/network/"+zttest.Network, ""))
			})
		}
	}

	// Nor is a controller that does not say who it is asked for a network of its own.
	w := zttest.New(t)
	w.Intercept = func(_ string, out http.ResponseWriter, _ *http.Request) bool {
		fmt.Fprint(out, "{}")

		return true
	}
	assert.Equal(t, "unexpected_answer", zttest.Run(t, module, task(w, nil)).Code())

	// A list of networks that is not there does not say that there is none of that name.
	for _, version := range []int{1, 2} {
		w := zttest.New(t)
		_, controller := w.Central(version)
		controller["network_group"] = "group-1"
		w.Intercept = func(_ string, out http.ResponseWriter, r *http.Request) bool {
			assert.Equal(t, http.MethodGet, r.Method, "nothing is made")
			out.WriteHeader(http.StatusNotFound)

			return true
		}

		result := zttest.Run(t, module, dict{"controller": controller, "name": "lab", "home": "/nonexistent"})
		assert.Equal(t, "unexpected_answer", result.Code(), result.Text)
	}
}

func TestCentral(t *testing.T) {
	for _, version := range []int{1, 2} {
		t.Run(fmt.Sprintf("v%d", version), func(t *testing.T) {
			w := zttest.New(t)
			_, controller := w.Central(version)
			controller["network_group"] = "group-1"
			wanted := dict{
				"controller": controller, "name": "new", "description": "for all", "routes": []dict{{"target": "10.60.0.0/24"}, {"target": "10.61.0.0/24", "via": "10.60.0.1"}},
				"pools": []dict{{"start": "10.60.0.10", "end": "10.60.0.20"}}, "v4_assign": true, "v6_assign": dict{"rfc4193": true},
			}

			result := zttest.OK(t, module, wanted)
			assert.Equal(t, true, result.Dict["changed"])
			made := result.Dict["network_id"]
			again := zttest.OK(t, module, wanted)
			assert.Equal(t, false, again.Dict["changed"], again.Text)
			assert.Equal(t, made, again.Dict["network_id"], "it is found by its name")
			zttest.OK(t, module, dict{"controller": controller, "network_id": made, "state": "absent"})
			assert.Empty(t, w.Controller("GET", "/controller/network/"+made.(string), ""))
		})
	}
}

func TestBuildWithoutController(t *testing.T) {
	w := zttest.New(t)
	w.Nodes[zttest.Controller].NoController = true
	result := zttest.Run(t, module, task(w, dict{"name": "x"}))
	assert.Equal(t, "controller_missing", result.Code(), result.Text)
}
