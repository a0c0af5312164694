// SPDX-License-Identifier: Apache-2.0

// Package lxdapi speaks to a local LXD server over its unix socket. It owns how a server is found, how its errors read,
// how answers and operations are waited for, and what kind of server it is (LXD; Incus speaks the same API). What the
// objects mean belongs to the modules.
package lxdapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	lxd "github.com/canonical/lxd/client"
	"github.com/canonical/lxd/shared/api"

	"github.com/thinkube/infra/modules/internal/ansible"
)

// Failure codes that every module of this API can give.
const (
	CodeNotInstalled ansible.Code = "not_installed"
	CodeNotAnswering ansible.Code = "not_answering"
	CodePermission   ansible.Code = "permission"
	CodeDiskFull     ansible.Code = "disk_full"
	CodeOffline      ansible.Code = "member_offline"
)

// Lock is what modules that change a server hold. They share one: a server that joins a cluster loses what another task
// makes at that moment, and what is free (a source, a subnet) is looked at before it is used.
const Lock = "lxd"

// Codes says what they mean, for a module's list; own adds the module's own.
func Codes(own map[ansible.Code]string) map[ansible.Code]string {
	codes := map[ansible.Code]string{
		CodeNotInstalled: "there is no LXD socket on the host",
		CodeNotAnswering: "the socket is there but no daemon answers on it",
		CodePermission:   "the user may not use the socket; it belongs to root and the group lxd",
		CodeDiskFull:     "the server has no space left for the change",
		CodeOffline:      "a cluster member that the change needs is not online",
	}
	for code, meaning := range own {
		codes[code] = meaning
	}

	return codes
}

// Options are the options that every module of this API has; modules embed them.
type Options struct {
	Socket  ansible.Path  `ansible:"socket"`
	Timeout time.Duration `ansible:"timeout" default:"5m"`
}

// TaskTimeout bounds the whole task; the SDK asks for it.
func (o Options) TaskTimeout() time.Duration { return o.Timeout }

// sockets are the places where servers listen, in the order in which they are tried: snap, distribution package, Incus.
var sockets = []string{
	"/var/snap/lxd/common/lxd/unix.socket",
	"/var/lib/lxd/unix.socket",
	"/run/incus/unix.socket",
	"/var/lib/incus/unix.socket",
}

// Server is a connection to the local server.
type Server struct {
	Info   api.Server // as it was when the connection was made
	Socket string

	client lxd.InstanceServer
}

// Connect finds the local server and asks it who it is. The context bounds every call. Each call has a connection of its
// own (LXD's client keeps none alive), so that nothing is left open between calls or after the task.
func Connect(ctx context.Context, options Options) (*Server, error) {
	socket, err := findSocket(string(options.Socket))
	if err != nil {
		return nil, err
	}

	client, err := lxd.ConnectLXDUnixWithContext(ctx, socket, &lxd.ConnectionArgs{SkipGetServer: true, UserAgent: "thinkube.infra"})
	if err != nil {
		return nil, connectError(socket, err)
	}

	server := &Server{Socket: socket, client: client}

	return server, server.Refresh()
}

// Refresh asks the server again who it is.
func (s *Server) Refresh() error {
	var info api.Server

	_, err := s.Get("/1.0", &info)
	if err != nil {
		return connectError(s.Socket, err)
	}

	if info.Auth != "trusted" {
		return ansible.Fail(CodePermission, "run the task with become: true", "socket %q: the server does not trust this user", s.Socket)
	}

	s.Info = info

	return nil
}

// Product is the server's name for itself, for messages: "LXD" or "Incus".
func (s *Server) Product() string {
	if s.Info.Environment.Server == "incus" {
		return "Incus"
	}

	return "LXD"
}

// Clustered tells whether the server is a member of a cluster.
func (s *Server) Clustered() bool { return s.Info.Environment.ServerClustered }

// Has tells whether the server knows an API extension. Decisions are made by these, never by version numbers.
func (s *Server) Has(extension string) bool { return slices.Contains(s.Info.APIExtensions, extension) }

func findSocket(named string) (string, error) {
	if named != "" {
		if _, err := os.Stat(named); err != nil {
			return "", connectError(named, err)
		}

		return named, nil
	}

	for _, socket := range sockets {
		_, err := os.Stat(socket)
		if err == nil {
			return socket, nil
		}

		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return "", connectError(socket, err)
		}
	}

	for _, socket := range sockets {
		if _, err := os.Stat(filepath.Dir(socket)); err == nil && filepath.Dir(socket) != "/run/incus" {
			return "", ansible.Fail(CodeNotAnswering, "start it: systemctl start lxd.socket (or snap start lxd)",
				"folder %q is there but no socket in it: LXD is not running, or was removed and left its data", filepath.Dir(socket))
		}
	}

	return "", ansible.Fail(CodeNotInstalled, "install LXD first: apt install lxd, or snap install lxd; playbook 20_lxd_setup/10 does it",
		"no LXD socket found (looked at %q)", sockets)
}

// connectError says in words what a socket's refusal means.
func connectError(socket string, err error) error {
	var failure *ansible.Failure

	switch {
	case errors.As(err, &failure):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return ansible.Fail(CodeNotInstalled, "install LXD, or correct the option socket", "socket %q does not exist", socket)
	case errors.Is(err, fs.ErrPermission):
		return ansible.Fail(CodePermission, "run the task with become: true", "socket %q: permission denied", socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return ansible.Fail(CodeNotAnswering, "start it and look at its log: systemctl status lxd, journalctl -u lxd", "socket %q: nobody listens", socket)
	case errors.Is(err, context.DeadlineExceeded):
		return ansible.Fail(CodeNotAnswering, "look at its log: journalctl -u lxd", "socket %q: the daemon accepts the connection and does not answer", socket)
	}

	return fmt.Errorf("socket %q: %w", socket, err)
}

// Path builds an API path of escaped parts: Path("storage-pools", "a b") is "/1.0/storage-pools/a%20b".
func Path(parts ...string) string {
	path := "/1.0"
	for _, part := range parts {
		path += "/" + url.PathEscape(part)
	}

	return path
}

// On adds the member that a request is for; an empty one adds nothing.
func On(member, path string) string {
	if member == "" {
		return path
	}

	return path + "?target=" + url.QueryEscape(member)
}

// Get reads an object. NotFound tells absence from other errors.
func (s *Server) Get(path string, into any) (etag string, err error) {
	response, etag, err := s.client.RawQuery(http.MethodGet, path, nil, "")
	if err != nil {
		return "", readable(err)
	}

	return etag, json.Unmarshal(response.Metadata, into)
}

// NotFound tells whether an error says that the object does not exist.
func NotFound(err error) bool { return api.StatusErrorCheck(err, http.StatusNotFound) }

// Send changes something and waits until it is done: the same call is answered at once by one version of the server and
// with an operation by another. A non-empty etag makes the server refuse when the object is no longer what it was.
func (s *Server) Send(ctx context.Context, method, path string, body any, etag string) error {
	_, err := s.Start(ctx, method, path, body, etag, true)

	return err
}

// Start is Send for callers that want the operation, for example because its metadata is the answer (join tokens).
// It is nil when the server answered at once.
func (s *Server) Start(ctx context.Context, method, path string, body any, etag string, wait bool) (*api.Operation, error) {
	response, _, err := s.client.RawQuery(method, path, body, etag)
	if err != nil {
		// The same holds for an object that somebody else has made since it was read as absent.
		exists := method == http.MethodPost && containsFold(err.Error(), "already exists")
		if exists || api.StatusErrorCheck(err, http.StatusPreconditionFailed) {
			return nil, fmt.Errorf("%w: %w", err, ansible.ErrChanged)
		}

		return nil, readable(err)
	}

	if response.Type != api.AsyncResponse {
		return nil, nil
	}

	operation, err := response.MetadataAsOperation()
	if err != nil || !wait {
		return operation, err
	}

	return s.Wait(ctx, operation.ID)
}

// Wait blocks on the server's own wait call until the operation ends or the context does.
func (s *Server) Wait(ctx context.Context, id string) (*api.Operation, error) {
	path := Path("operations", id, "wait")

	if deadline, ok := ctx.Deadline(); ok {
		path += "?timeout=" + strconv.Itoa(max(1, int(time.Until(deadline).Seconds())))
	}

	var operation api.Operation

	_, err := s.Get(path, &operation)
	if err != nil {
		return nil, fmt.Errorf("waiting for the operation: %w", err)
	}

	switch operation.StatusCode {
	case api.Success:
		return &operation, nil
	case api.Failure, api.Cancelled:
		return nil, readable(errors.New(operation.Err))
	}

	return nil, fmt.Errorf("operation %q is still %s: %w", operation.Description, operation.Status, context.DeadlineExceeded)
}

// readable gives the server's errors their code where they have one.
func readable(err error) error {
	text := err.Error()

	switch {
	case containsFold(text, "no space left on device"):
		return ansible.Fail(CodeDiskFull, "free some space on the host, or choose a smaller size", "%w", err)
	case containsFold(text, "cluster member is offline"), containsFold(text, "is currently offline"), containsFold(text, "server is offline"), containsFold(text, "cluster members offline"):
		return ansible.Fail(CodeOffline, "bring the member back first: lxc cluster list shows which it is", "%w", err)
	}

	return err
}
