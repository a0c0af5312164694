// SPDX-License-Identifier: Apache-2.0

package zerotierinfo_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/thinkube/infra/modules/internal/zttest"
	zerotierinfo "github.com/thinkube/infra/modules/zerotier_info"
)

type dict = zttest.Dict

func TestReadsNodeAndController(t *testing.T) {
	w := zttest.New(t)
	a := w.Nodes[zttest.NodeA]
	a.Call(t, "POST", "/network/"+zttest.Network, "{}")
	w.Controller("POST", "/controller/network/"+zttest.Network+"/member/"+zttest.NodeB, `{"name":"b","ipAssignments":["10.147.17.9"]}`)
	w.Requests()

	read := zttest.OK(t, zerotierinfo.Module, dict{"home": a.Home, "peers": true, "network_id": zttest.Network, "controller": w.SelfHosted()}).Dict
	assert.Equal(t, true, read["installed"])
	assert.Equal(t, zttest.NodeA, read["node_id"])
	assert.Equal(t, "1.14.1", read["version"])

	network := read["networks"].([]any)[0].(dict)
	assert.Equal(t, zttest.Network, network["id"])
	assert.NotEmpty(t, network["status"])
	assert.Equal(t, []any{}, network["kernel_addresses"])
	assert.Equal(t, zttest.Controller, read["peers"].([]any)[0].(dict)["address"])
	assert.Equal(t, "lab", read["network"].(dict)["name"])

	members := map[any]any{}
	for _, member := range read["members"].([]any) {
		members[member.(dict)["node_id"]] = member.(dict)["ip_assignments"]
	}

	assert.Equal(t, []any{"10.147.17.9"}, members[zttest.NodeB])

	for _, one := range w.Requests() {
		assert.Equal(t, http.MethodGet, one.Method)
	}
}

// TestOnlyTheController is asked from a host whose own service is of no concern.
func TestOnlyTheController(t *testing.T) {
	w := zttest.New(t)
	read := zttest.OK(t, zerotierinfo.Module, dict{
		"home": t.TempDir(), "service": false, "network_id": zttest.Network, "controller": w.SelfHosted(),
	}).Dict
	assert.Equal(t, false, read["installed"])
	assert.Equal(t, "lab", read["network"].(dict)["name"])
}

func TestHostWithoutService(t *testing.T) {
	read := zttest.OK(t, zerotierinfo.Module, dict{"home": "/nonexistent"}).Dict
	assert.Equal(t, false, read["installed"])
	assert.Equal(t, []any{}, read["networks"])

	// A home without token is no host without service.
	assert.Equal(t, "service_missing", zttest.Run(t, zerotierinfo.Module, dict{"home": t.TempDir()}).Code())
	assert.Equal(t, "invalid_argument", zttest.Run(t, zerotierinfo.Module, dict{"network_id": "x"}).Code())
}
