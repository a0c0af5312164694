// SPDX-License-Identifier: Apache-2.0

package lxdapi_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/endure"
	"github.com/thinkube/infra/modules/internal/lxdtest"
	lxdinfo "github.com/thinkube/infra/modules/lxd_info"
	lxdprofile "github.com/thinkube/infra/modules/lxd_profile"
)

// tasks runs tasks in this process, four at once.
func tasks(t *testing.T, number int, module ansible.Runner, args func(number int) map[string]any) {
	t.Helper()

	endure.Parallel(4, number, func(number int) { task(t, module, args(number)) })
}

func task(t *testing.T, module ansible.Runner, args map[string]any) {
	text, err := json.Marshal(map[string]any{
		"module": module.ModuleName(), "args": args, "key": base64.StdEncoding.EncodeToString(make([]byte, 32)),
	})
	if err != nil {
		t.Error(err)

		return
	}

	var out bytes.Buffer

	code := ansible.Bundle([]ansible.Runner{module}, []string{"thinkube", "exec"}, bytes.NewReader(text), &out, io.Discard)
	if code != 0 || bytes.Contains(out.Bytes(), []byte(`"failed":true`)) {
		t.Errorf("%s with %v: %s", module.ModuleName(), args, out.String())
	}
}

// TestThousandsOfTasksLeaveNothingBehind runs them in one process, as an agent does: no connection to the server, no
// goroutine, no memory may add up.
func TestThousandsOfTasksLeaveNothingBehind(t *testing.T) {
	if testing.Short() {
		t.Skip("runs thousands of tasks on a real server")
	}

	host := lxdtest.Start(t, 1).Hosts[0]
	socket := filepath.Join(host.Root(), "var/lib/lxd/unix.socket")

	info := func(int) map[string]any { return map[string]any{"socket": socket, "gather": "server,profiles"} }
	profile := func(number int) map[string]any {
		args := map[string]any{"socket": socket, "name": fmt.Sprintf("p%d", number%8), "description": fmt.Sprint(number)}
		if number%5 == 0 {
			args["state"] = "absent"
			args["force"] = true
		}

		return args
	}
	run := func(infos, profiles int) {
		tasks(t, infos, lxdinfo.Module, info)
		tasks(t, profiles, lxdprofile.Module, profile)
	}

	run(100, 20)

	before := endure.Settled(t, endure.Burden{})
	began := time.Now()

	run(2000, 300)
	t.Logf("2000 lxd_info and 300 lxd_profile in %s", time.Since(began).Round(time.Millisecond))

	endure.NoMore(t, before, endure.Settled(t, before))
}
