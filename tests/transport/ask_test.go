// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/transport/farm"
)

// TestAsk has a module on one host ask others, each of which has its own address, user, become and connection.
func TestAsk(t *testing.T) {
	eachWay(t, func(t *testing.T, f *testHosts, environ []string) {
		f.forget(t)

		log := f.Path("notes/asked")
		f.emptyNote(t, "asked")

		ways := map[string]map[string]any{
			"first": ssh(farm.Plain, 1, map[string]any{"log": log, "ansible_become_password": "of no other host"}),
			// The address and the user are templates of the host's own variables.
			"second":     {"ansible_host": "{{ own_address }}", "own_address": farm.Address(2), "ansible_user": "{{ own_user }}", "own_user": farm.Other},
			"privileged": ssh(farm.Sudo, 3, map[string]any{"ansible_become": true, "ansible_become_password": farm.Password}),
			"boxed":      {"ansible_connection": "container", "ansible_host": f.busyboxHost(t)},
			"gone":       ssh(farm.Plain, 1, map[string]any{"ansible_port": 9}),
			"mute":       {"ansible_connection": "terminal"},
		}
		play := f.play(t, environ, "ask", inventory{hosts: ways}, setup{})

		asked := play.of(t, "first", "ask")
		require.Equal(t, "ok", asked.Event, "%v", asked.Result)
		assert.Equal(t, "1234", asked.text("resume"))
		assert.EqualValues(t, 44, asked.Result["key_length"])

		for id, want := range map[string]struct {
			uid     int
			address string
		}{"1": {farm.UID(farm.Other), farm.Address(2)}, "2": {farm.UID(farm.Plain), farm.Address(1)}, "3": {0, ""}, "4": {0, ""}} {
			assert.Equal(t, fmt.Sprint(want.uid), asked.text("answers", id, "answer", "uid"), id)
			assert.Contains(t, asked.text("answers", id, "answer", "ssh"), want.address, id)
			assert.Equal(t, "44", asked.text("answers", id, "answer", "key_length"), id)
			assert.Equal(t, "lxd_info", asked.text("answers", id, "answer", "module"), id)
			assert.Equal(t, "introduce", asked.text("answers", id, "answer", "peer"), id)
		}

		delegated := play.of(t, "first", "ask on a delegated host")
		assert.Contains(t, delegated.text("answers", "1", "answer", "ssh"), farm.Address(2))
		assert.Contains(t, delegated.text("answers", "2", "answer", "ssh"), farm.Address(1))

		// become is a keyword of the task here. Second has no password for it, and is not given that of first.
		become := play.of(t, "first", "ask with become")
		assert.Equal(t, "true", become.text("answers", "1", "failed"))
		assert.Contains(t, become.text("answers", "1", "msg"), "issing sudo password")

		lines, err := os.ReadFile(log)
		require.NoError(t, err)
		assert.Equal(t, []string{"introduce", "introduce", "introduce", "undo", "undo", "undo", "introduce", "undo", "introduce", "undo"},
			strings.Fields(string(lines)), "what was asked is undone, also after a failure and a timeout")
		assert.Equal(t, "failed", play.of(t, "first", "ask and run out of time").Event)

		undo := play.of(t, "first", "undo fails")
		assert.Equal(t, "ok", undo.Event)
		assert.Contains(t, strings.Join(strings.Fields(play.output), " "), "undo on host second after the task failed: the token could not be revoked")

		silent := play.of(t, "first", "ask who cannot answer")
		require.Equal(t, "ok", silent.Event, "%v", silent.Result)

		for id, words := range map[string]string{"1": "host 'nobody' is not in the inventory", "2": "onnection refused", "3": "cannot pass data"} {
			assert.Equal(t, "true", silent.text("answers", id, "failed"), id)
			assert.Contains(t, silent.text("answers", id, "msg"), words)
		}

		assert.Equal(t, "ok", play.of(t, "first", "still reachable").Event, "a host that cannot be asked does not make this one unreachable")
	})
}
