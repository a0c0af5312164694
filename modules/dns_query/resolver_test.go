// SPDX-License-Identifier: Apache-2.0

package dnsquery

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestTheHostsOwnResolver(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	h := &host{resolvConf: file}

	_, err := h.servers()
	require.ErrorContains(t, err, file)

	for text, want := range map[string][]string{
		"nameserver 192.0.2.1\nsearch example.com\nnameserver 2001:db8::1\n": {"192.0.2.1:53", "[2001:db8::1]:53"},
		"# nothing\n": {"127.0.0.1:53"},
	} {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))

		servers, err := h.servers()
		require.NoError(t, err)

		var got []string
		for _, server := range servers {
			got = append(got, server.Address)
		}

		assert.Equal(t, want, got)
	}
}
