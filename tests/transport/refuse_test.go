// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"encoding/base64"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/transport/farm"
)

// TestImpossibleWays has ways that cannot work, and must say so.
func TestImpossibleWays(t *testing.T) {
	eachWay(t, func(t *testing.T, f *testHosts, environ []string) {
		ways := map[string]map[string]any{
			"su":             ssh(farm.Sudo, 1, map[string]any{"ansible_become": true, "ansible_become_method": "su", "ansible_become_password": farm.Password}),
			"terminal":       {"ansible_connection": "terminal"},
			"closed":         ssh(farm.Plain, 1, map[string]any{"ansible_port": 9}),
			"wrong_password": ssh(farm.Sudo, 2, map[string]any{"ansible_become": true, "ansible_become_password": "wrong"}),
			"no_password":    ssh(farm.Sudo, 3, map[string]any{"ansible_become": true}),
		}
		play := f.play(t, environ, "one", one(nil, ways), setup{})

		for way, words := range map[string]string{"su": "use become_method: sudo", "terminal": "use ansible_connection: ssh"} {
			got := play.of(t, way, "one")
			assert.Equal(t, "failed", got.Event, way)
			assert.Contains(t, got.text("msg"), "cannot pass data to a program's stdin", way)
			assert.Contains(t, got.text("hint"), words, way)
		}

		assert.Equal(t, "unreachable", play.of(t, "closed", "one").Event)

		for way, words := range map[string]string{"wrong_password": "ncorrect sudo password", "no_password": "issing sudo password"} {
			got := play.of(t, way, "one")
			assert.Contains(t, []string{"failed", "unreachable"}, got.Event, way)
			assert.Contains(t, got.text("msg")+got.text("module_stderr"), words, way)
		}
	})
}

// TestNothingSecretIsShown looks for the arguments and the key of a task in all that Ansible can be made to print.
func TestNothingSecretIsShown(t *testing.T) {
	eachWay(t, func(t *testing.T, f *testHosts, environ []string) {
		f.forget(t)
		f.emptyNote(t, "key")

		secret := "correct horse battery staple"
		// The value is read where the play runs, so that Ansible's display of the variables does not have it.
		task := map[string]any{"do": "nothing", "log": f.Path("notes/key"), "password": "{{ lookup('env', 'THE_SECRET') }}"}
		ways := map[string]map[string]any{"host": ssh(farm.Plain, 1, nil), "root": ssh(farm.Plain, 2, map[string]any{"ansible_become": true})}

		for _, vars := range ways {
			vars["hidden"] = true
		}

		play := f.play(t, environ, "one", one(task, ways), setup{
			args: []string{"-vvvv"},
			env:  []string{"THE_SECRET=" + secret, "ANSIBLE_DEBUG=1", "ANSIBLE_LOG_PATH=" + f.Path("notes/ansible.log")},
		})
		require.Equal(t, 0, play.code, play.output)

		log, err := os.ReadFile(f.Path("notes/ansible.log"))
		require.NoError(t, err)

		keys, err := os.ReadFile(f.Path("notes/key"))
		require.NoError(t, err)
		require.Len(t, strings.Fields(string(keys)), 2)
		assert.Contains(t, play.output, "EXEC ssh", "the test's own condition")

		for _, text := range append(strings.Fields(string(keys)), secret, base64.StdEncoding.EncodeToString([]byte(secret))) {
			for _, output := range []string{play.output, string(log)} {
				assert.NotContains(t, output, text)
			}
		}

		first, second, _ := strings.Cut(strings.TrimSpace(string(keys)), "\n")
		assert.NotEqual(t, first, second, "each task has a key of its own")
	})
}
