// SPDX-License-Identifier: Apache-2.0

package zerotiermember_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/zttest"
)

// TestKilledAfterEveryStep cuts the program at each of its steps and runs the task again.
func TestKilledAfterEveryStep(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program")
	}

	folder := t.TempDir()
	program := filepath.Join(folder, "zerotier_member")

	out, err := exec.Command("go", "build", "-tags", "faultinject", "-o", program, "./cmd").CombinedOutput()
	require.NoError(t, err, "%s", out)

	for step := 1; step <= 2; step++ {
		w := zttest.New(t)
		task := managed(w, dict{"name": "node-a", "ip_assignments": []string{"10.147.17.60"}, "no_auto_assign_ips": true})

		text, err := json.Marshal(task)
		require.NoError(t, err)

		file := filepath.Join(folder, "args.json")
		require.NoError(t, os.WriteFile(file, text, 0o600))

		killed := exec.Command(program, file)
		killed.Env = append(os.Environ(), fmt.Sprintf("THINKUBE_TEST_KILL_AFTER_STEP=%d", step))
		require.ErrorContains(t, killed.Run(), "killed")
		assert.Equal(t, "node-a", w.Member(zttest.NodeA)["name"])
		assert.Len(t, w.Nodes[zttest.NodeA].Joined(), step-1)

		result := zttest.OK(t, module, task)
		assert.Len(t, result.Lines(), 2-step)
		assert.Equal(t, "OK", result.Dict["status"])
		assert.Equal(t, false, zttest.OK(t, module, task).Dict["changed"])

		absent := managed(w, dict{"state": "absent", "member_on_absent": "delete"})

		text, err = json.Marshal(absent)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, text, 0o600))

		killed = exec.Command(program, file)
		killed.Env = append(os.Environ(), fmt.Sprintf("THINKUBE_TEST_KILL_AFTER_STEP=%d", step))
		require.ErrorContains(t, killed.Run(), "killed")
		assert.Len(t, zttest.OK(t, module, absent).Lines(), 2-step)
		assert.Empty(t, w.Member(zttest.NodeA))
	}
}
