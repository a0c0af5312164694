// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/thinkube/infra/tests/transport/farm"
)

// TestBackground is async: with Python on the host, and without.
func TestBackground(t *testing.T) {
	eachCore(t, func(t *testing.T, f *testHosts, environ []string) {
		python := map[string]any{"ansible_python_interpreter": "/usr/bin/python3"}
		play := f.play(t, environ, "background", inventory{hosts: map[string]map[string]any{
			"plain": ssh(farm.Plain, 1, python),
			"root":  ssh(farm.Plain, 2, map[string]any{"ansible_python_interpreter": "auto_silent", "ansible_become": true}),
			"bare":  ssh(farm.Plain, 3, nil),
		}}, setup{})

		for _, host := range []string{"plain", "root"} {
			assert.Equal(t, true, play.of(t, host, "waited for").Result["slept"], host)
			assert.Equal(t, "ok", play.of(t, host, "came to an end").Event, host)
			assert.Equal(t, true, play.of(t, host, "came to an end").Result["slept"], host)

			started := play.of(t, host, "started")
			assert.Equal(t, "1", started.text("started"))
			assert.Equal(t, true, started.Result["changed"], "as ansible-core says of what it started")
		}

		for _, task := range []string{"waited for", "started"} {
			got := play.of(t, "bare", task)
			assert.Equal(t, "failed", got.Event)
			assert.Equal(t, "async needs Python on the host, which has none of /nonexistent/python; nothing was started", got.text("msg"))
			assert.Contains(t, got.text("hint"), "run the task without async")
		}
	})
}
