// SPDX-License-Identifier: Apache-2.0

package ztapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/thinkube/infra/modules/internal/ansible"
)

// serviceHeader carries the token to a zerotier-one.
const serviceHeader = "X-ZT1-Auth"

// DefaultPort is where a zerotier-one listens unless zerotier-one.port in its home folder says otherwise.
const DefaultPort = 9993

// serviceTimeout is for one request to a service on the same host; it was seen to answer in 25 ms.
const serviceTimeout = 10 * time.Second

// ServiceOptions say where the host's ZeroTier service is.
type ServiceOptions struct {
	Home          ansible.Path   `ansible:"home" default:"/var/lib/zerotier-one" env:"ZT_HOME"`
	APIURL        string         `ansible:"api_url" env:"ZT_URL"`
	AuthToken     ansible.Secret `ansible:"authtoken"`
	AuthTokenFile ansible.Path   `ansible:"authtoken_file"`
}

// Check judges the options without I/O.
func (o *ServiceOptions) Check() error {
	if o.AuthToken.IsSet() && o.AuthTokenFile != "" {
		return errors.New("authtoken and authtoken_file exclude each other")
	}

	if o.APIURL == "" {
		return nil
	}

	return checkURL("api_url", o.APIURL, false)
}

// Status is what a service says of itself.
type Status struct {
	Address string `json:"address"` // ten digits
	Online  bool   `json:"online"`
	Version string `json:"version"`
	World   int64  `json:"planetWorldId"`
}

// Route is a route of a network: to Target over Via, or to whom it concerns directly.
type Route struct {
	Target string `json:"target"`
	Via    string `json:"via"` // empty: on the link
}

// DNS is what a network says about names.
type DNS struct {
	Domain  string   `json:"domain"`
	Servers []string `json:"servers"`
}

// UnmarshalJSON reads also the empty list that stands for "not set".
func (d *DNS) UnmarshalJSON(text []byte) error {
	*d = DNS{Servers: []string{}}

	if string(text) == "null" || len(text) > 0 && text[0] == '[' {
		return nil
	}

	type plain DNS

	err := json.Unmarshal(text, (*plain)(d))
	if d.Servers == nil {
		d.Servers = []string{}
	}

	return err
}

// Allow is what a node lets a network do. It is the node's own and is lost when it leaves.
type Allow struct {
	Managed bool `json:"managed"`
	Global  bool `json:"global"`
	Default bool `json:"default"`
	DNS     bool `json:"dns"`
}

// Joined is a network that the node takes part in, or tries to.
type Joined struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Status   string   `json:"status"` // OK, REQUESTING_CONFIGURATION, ACCESS_DENIED, ...
	Type     string   `json:"type"`   // PRIVATE or PUBLIC
	Device   string   `json:"device"` // the kernel's link
	MAC      string   `json:"mac"`
	MTU      int      `json:"mtu"`
	Bridge   bool     `json:"bridge"`
	Assigned []string `json:"assigned"` // what the controller said, not what the kernel has
	Routes   []Route  `json:"routes"`
	DNS      DNS      `json:"dns"`
	Allow    Allow    `json:"allow"`
	// AuthenticationURL is where a person signs in, on networks that want that.
	AuthenticationURL string `json:"authentication_url,omitempty"`
}

// joinedJSON is the service's form.
type joinedJSON struct {
	NWID              string   `json:"nwid"`
	Name              string   `json:"name"`
	Status            string   `json:"status"`
	Type              string   `json:"type"`
	Device            string   `json:"portDeviceName"`
	MAC               string   `json:"mac"`
	MTU               int      `json:"mtu"`
	Bridge            bool     `json:"bridge"`
	Assigned          []string `json:"assignedAddresses"`
	Routes            []Route  `json:"routes"`
	DNS               DNS      `json:"dns"`
	AllowManaged      bool     `json:"allowManaged"`
	AllowGlobal       bool     `json:"allowGlobal"`
	AllowDefault      bool     `json:"allowDefault"`
	AllowDNS          bool     `json:"allowDNS"`
	AuthenticationURL string   `json:"authenticationURL"`
}

func (j joinedJSON) make() *Joined {
	made := &Joined{
		ID: j.NWID, Name: j.Name, Status: j.Status, Type: j.Type, Device: j.Device, MAC: j.MAC, MTU: j.MTU, Bridge: j.Bridge,
		Assigned: append([]string{}, j.Assigned...), Routes: append([]Route{}, j.Routes...), DNS: j.DNS,
		Allow:             Allow{j.AllowManaged, j.AllowGlobal, j.AllowDefault, j.AllowDNS},
		AuthenticationURL: j.AuthenticationURL,
	}

	if made.DNS.Servers == nil {
		made.DNS.Servers = []string{}
	}

	return made
}

// Settings change what a node lets a network do; nil leaves it.
type Settings struct {
	Managed *bool `json:"allowManaged,omitempty"`
	Global  *bool `json:"allowGlobal,omitempty"`
	Default *bool `json:"allowDefault,omitempty"`
	DNS     *bool `json:"allowDNS,omitempty"`
}

// Peer is another node that this one knows a way to, or asks about.
type Peer struct {
	Address string `json:"address"`
	Role    string `json:"role"` // PLANET, MOON or LEAF
	Version string `json:"version"`
	Latency int    `json:"latency"` // milliseconds; -1 when it is not known
	Paths   []Path `json:"paths"`
}

// Path is one way to a peer.
type Path struct {
	Address   string `json:"address"` // address/port
	Active    bool   `json:"active"`
	Preferred bool   `json:"preferred"`
}

// Service is the ZeroTier service of a host.
type Service struct {
	options ServiceOptions
	caller  caller
}

// OpenService finds the service: its port and token are read from its home folder. The secret that was read is given to
// hide. A host without a service gives an error with CodeServiceMissing.
func OpenService(ctx context.Context, options ServiceOptions, hide func(ansible.Secret)) (*Service, error) {
	base, err := serviceURL(options)
	if err != nil {
		return nil, err
	}

	token := options.AuthToken
	if !token.IsSet() {
		token, err = readToken(string(options.AuthTokenFile), string(options.Home))
		if err != nil {
			return nil, err
		}
	}

	hide(token)

	return &Service{options: options, caller: caller{
		what: "the ZeroTier service", base: base, header: serviceHeader, token: token, retries: 2,
		client: makeClient(ctx, serviceTimeout, nil), unreachable: CodeServiceUnreachable,
	}}, nil
}

// serviceURL gives 127.0.0.1 and never a name: "localhost" may be ::1 first, where a service does not listen.
func serviceURL(options ServiceOptions) (string, error) {
	if options.APIURL != "" {
		return strings.TrimRight(options.APIURL, "/"), nil
	}

	port, path := DefaultPort, filepath.Join(string(options.Home), "zerotier-one.port")

	text, err := os.ReadFile(path)
	if err == nil {
		port, err = strconv.Atoi(strings.TrimSpace(string(text)))
	}

	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", ansible.Fail(CodeServiceMissing, "it holds the port of the service; start the service again, or give api_url", "reading the port from %q: %w", path, err)
	}

	return fmt.Sprintf("http://127.0.0.1:%d", port), nil
}

func readToken(file, home string) (ansible.Secret, error) {
	if file == "" {
		file = filepath.Join(home, "authtoken.secret")
	}

	text, err := os.ReadFile(file)
	if err != nil {
		return ansible.Secret{}, ansible.Fail(CodeServiceMissing, "install and start zerotier-one, or give home, authtoken_file or authtoken; reading the token needs root",
			"the token of the ZeroTier service cannot be read: %w", err)
	}

	token := strings.TrimSpace(string(text))
	if token == "" {
		return ansible.Secret{}, ansible.Fail(CodeServiceMissing, "start the service again: it makes a new one", "the token file %q is empty", file)
	}

	return ansible.NewSecret(token), nil
}

// Status reads what the service says of itself.
func (s *Service) Status(ctx context.Context) (Status, error) {
	var status Status

	err := s.get(ctx, "/status", &status)
	if err == nil && !nodeIDPattern.MatchString(status.Address) {
		err = ansible.Fail(CodeUnexpectedAnswer, "look whether api_url is that of a ZeroTier service", "GET /status of %s: %q is no node id", s.caller.base, status.Address)
	}

	return status, err
}

func (s *Service) get(ctx context.Context, path string, into any) error {
	got, err := s.caller.do(ctx, http.MethodGet, path, nil, false)
	if err != nil {
		return err
	}

	if got.status != http.StatusOK {
		return s.caller.refused(http.MethodGet, path, got)
	}

	return s.caller.read(path, got, into)
}

// Networks reads the networks that the node takes part in.
func (s *Service) Networks(ctx context.Context) ([]*Joined, error) {
	var read []joinedJSON

	err := s.get(ctx, "/network", &read)

	networks := []*Joined{}
	for _, one := range read {
		networks = append(networks, one.make())
	}

	return networks, err
}

// Network reads one; nil when the node has not joined it. A service that knows no such path also answers 404, but without
// a body.
func (s *Service) Network(ctx context.Context, id string) (*Joined, error) {
	path := "/network/" + id

	got, err := s.caller.do(ctx, http.MethodGet, path, nil, false)
	if err != nil {
		return nil, err
	}

	switch {
	case got.status == http.StatusNotFound && strings.TrimSpace(string(got.body)) == "{}":
		return nil, nil
	case got.status != http.StatusOK:
		return nil, s.caller.refused(http.MethodGet, path, got)
	}

	return s.joined(path, id, got)
}

func (s *Service) joined(path, id string, got answer) (*Joined, error) {
	var read joinedJSON

	err := s.caller.read(path, got, &read)
	if err != nil {
		return nil, err
	}

	if read.NWID != id {
		return nil, ansible.Fail(CodeUnexpectedAnswer, "", "%s of %s: the answer is about network %q%s", path, s.caller.base, read.NWID, quote(got.body))
	}

	return read.make(), nil
}

// Join joins a network, or changes what the node lets it do. What came of the settings is read back by the caller: wrong
// ones are ignored without a word.
func (s *Service) Join(ctx context.Context, id string, settings Settings) error {
	path := "/network/" + id

	got, err := s.caller.do(ctx, http.MethodPost, path, settings, false)
	if err != nil {
		return err
	}

	if got.status != http.StatusOK {
		return s.caller.refused(http.MethodPost, path, got)
	}

	if strings.TrimSpace(string(got.body)) == "{}" {
		return ansible.Fail(CodeTunUnusable, "in a container, give it the device /dev/net/tun and the capability CAP_NET_ADMIN; the service's log has the reason",
			"the service took the join of network %s and did nothing: it cannot make a network device (/dev/net/tun)", id)
	}

	_, err = s.joined(path, id, got)

	return err
}

// Leave leaves a network. One that was not joined is no error.
func (s *Service) Leave(ctx context.Context, id string) error {
	path := "/network/" + id

	got, err := s.caller.do(ctx, http.MethodDelete, path, nil, false)
	if err == nil && got.status != http.StatusOK {
		err = s.caller.refused(http.MethodDelete, path, got)
	}

	return err
}

// Peers reads the nodes that this one knows.
func (s *Service) Peers(ctx context.Context) ([]Peer, error) {
	peers := []Peer{}

	return peers, s.get(ctx, "/peer", &peers)
}
