// SPDX-License-Identifier: Apache-2.0

package lxdapi

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/ansible"
)

// serve answers on a socket as a server of one version does; real servers of the other version are not to be had here.
func serve(t *testing.T, handler http.HandlerFunc) Options {
	t.Helper()

	socket := filepath.Join(t.TempDir(), "unix.socket")
	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)

	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Second}
	go func() { _ = server.Serve(listener) }()

	t.Cleanup(func() { _ = server.Close() })

	return Options{Socket: ansible.Path(socket), Timeout: 5 * time.Second}
}

func reply(w http.ResponseWriter, status int, kind string, metadata any, operation, failure string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"type": kind, "status_code": status, "metadata": metadata, "operation": operation, "error": failure, "error_code": status,
	})
}

var trusted = map[string]any{"auth": "trusted", "environment": map[string]any{"server": "lxd", "server_version": "6.2"}}

// operations plays a server whose changes are operations that end as given.
func operations(statusCode int, status, failure string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		operation := map[string]any{"id": "op1", "status": "Running", "status_code": 103}

		switch {
		case r.URL.Path == "/1.0":
			reply(w, 200, "sync", trusted, "", "")
		case r.Method != http.MethodGet:
			reply(w, 202, "async", operation, "/1.0/operations/op1", "")
		default:
			operation["status"], operation["status_code"], operation["err"] = status, statusCode, failure
			reply(w, 200, "sync", operation, "", "")
		}
	}
}

func TestChangesAreWaitedFor(t *testing.T) {
	for _, test := range []struct {
		name    string
		handler http.HandlerFunc
		want    string
	}{
		{"answered at once", func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				reply(w, 200, "sync", trusted, "", "")
			} else {
				reply(w, 200, "sync", nil, "", "")
			}
		}, ""},
		{"operation that succeeds", operations(200, "Success", ""), ""},
		{"operation that fails", operations(400, "Failure", "source not found"), "source not found"},
		{"operation that is still running", operations(103, "Running", ""), context.DeadlineExceeded.Error()},
	} {
		t.Run(test.name, func(t *testing.T) {
			server, err := Connect(t.Context(), serve(t, test.handler))
			require.NoError(t, err)

			err = server.Send(t.Context(), http.MethodPut, "/1.0/storage-pools/p", map[string]any{}, "")
			if test.want == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, test.want)
			}
		})
	}
}

func TestRefusalsHaveTheirCode(t *testing.T) {
	refuse := func(status int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/1.0" {
				reply(w, 200, "sync", trusted, "", "")
			} else {
				reply(w, status, "error", nil, "", text)
			}
		}
	}

	for _, test := range []struct {
		name    string
		handler http.HandlerFunc
		code    ansible.Code
		changed bool
	}{
		{"stale etag", refuse(412, "Precondition failed"), "", true},
		{"made by somebody else meanwhile", refuse(409, "The profile already exists"), "", true},
		{"disk full", refuse(500, "write /x: no space left on device"), CodeDiskFull, false},
		{"member offline", refuse(503, "Cluster member is offline"), CodeOffline, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			server, err := Connect(t.Context(), serve(t, test.handler))
			require.NoError(t, err)

			err = server.Send(t.Context(), http.MethodPost, "/1.0/profiles", map[string]any{}, "e")
			require.Error(t, err)
			assert.Equal(t, test.changed, errors.Is(err, ansible.ErrChanged))

			var failure *ansible.Failure
			if errors.As(err, &failure) {
				assert.Equal(t, test.code, failure.Code)
			} else {
				assert.Empty(t, test.code)
			}
		})
	}
}

func TestServersThatDoNotAnswer(t *testing.T) {
	closed := filepath.Join(t.TempDir(), "unix.socket")
	listener, err := net.Listen("unix", closed)
	require.NoError(t, err)

	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, listener.Close())

	silent := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	untrusted := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, "sync", map[string]any{"auth": "untrusted"}, "", "")
	})

	for _, test := range []struct {
		name   string
		socket ansible.Path
		code   ansible.Code
	}{
		{"no socket", "/nonexistent/unix.socket", CodeNotInstalled},
		{"nobody listens", ansible.Path(closed), CodeNotAnswering},
		{"the daemon hangs", silent.Socket, CodeNotAnswering},
		{"the user is not trusted", untrusted.Socket, CodePermission},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()

			_, err := Connect(ctx, Options{Socket: test.socket})

			var failure *ansible.Failure

			require.ErrorAs(t, err, &failure)
			assert.Equal(t, test.code, failure.Code, err)
			assert.NotEmpty(t, failure.Hint)
		})
	}
}

// TestSocketWithoutPermission becomes an unprivileged user, as the socket's mode means nothing to root.
func TestSocketWithoutPermission(t *testing.T) {
	options := serve(t, operations(200, "Success", ""))
	require.NoError(t, os.Chmod(string(options.Socket), 0))

	var err error

	if os.Getuid() == 0 {
		err = connectError(string(options.Socket), &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)})
	} else {
		_, err = Connect(t.Context(), options)
	}

	var failure *ansible.Failure

	require.ErrorAs(t, err, &failure)
	assert.Equal(t, CodePermission, failure.Code)
}
