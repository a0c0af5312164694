// SPDX-License-Identifier: Apache-2.0

// Package program is one node of the double as a program, with a home folder, a port and real links: for test hosts.
package program

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/thinkube/infra/tests/ztdouble"
)

type options struct {
	home, address, token, underlay, controllers, allowFrom, networks string
	port, central                                                    int
	scale                                                            float64
	staleWithin                                                      time.Duration
}

// Run runs a node until it is told to end (SIGTERM). Its networks stay joined over a restart, as in the real service; what its
// controller has does not stay.
func Run(args []string) error {
	var o options

	flag := flag.NewFlagSet("ztdouble", flag.ContinueOnError)
	flag.StringVar(&o.home, "home", "/var/lib/zerotier-one", "home folder")
	flag.StringVar(&o.address, "address", "", "node id, ten digits")
	flag.StringVar(&o.token, "token", "", "token; default: that in the home folder, or a new one")
	flag.StringVar(&o.underlay, "underlay", "", "link that carries the networks; default: none, and no devices")
	flag.StringVar(&o.controllers, "controllers", "", "where other controllers are: ID=URL,ID=URL")
	flag.StringVar(&o.allowFrom, "allow-from", "", "prefixes that may call besides loopback")
	flag.StringVar(&o.networks, "networks", "", "networks of this controller as JSON: {ID: fields}")
	flag.IntVar(&o.port, "port", 9993, "TCP port")
	flag.IntVar(&o.central, "central", 0, "TCP port on loopback of Central v1's face of this controller, which takes the node's token and loses names; default: none")
	flag.DurationVar(&o.staleWithin, "stale-within", 0, "two changes of addresses in that time leave the older ones on the device")
	flag.Float64Var(&o.scale, "scale", 1, "factor of all times")

	err := flag.Parse(args)
	if err != nil {
		return err
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	world := ztdouble.NewWorld(o.scale)

	token, err := o.writeHome()
	if err != nil {
		return err
	}

	node := world.AddNode(o.address, token)
	node.Home = o.home
	node.Root = true
	node.StaleWithin = o.staleWithin

	if o.underlay != "" {
		node.Links = ztdouble.Kernel{Underlay: o.underlay}
	}

	if o.allowFrom != "" {
		node.AllowFrom = strings.Split(o.allowFrom, ",")
	}

	urls := o.controllerURLs()
	node.Ask = func(controller string, q ztdouble.Question) (ztdouble.Config, bool) { return ask(urls[controller], q) }
	node.RootUp = func() bool { return rootUp(urls) }

	err = errors.Join(o.makeNetworks(node), o.rejoin(node))
	if err != nil {
		return err
	}

	return o.serve(ctx, node)
}

// writeHome makes the files that a service keeps there.
func (o options) writeHome() (string, error) {
	err := os.MkdirAll(o.home, 0o755)
	if err != nil {
		return "", err
	}

	file := filepath.Join(o.home, "authtoken.secret")

	token := o.token
	if known, err := os.ReadFile(file); err == nil && token == "" {
		token = strings.TrimSpace(string(known))
	}

	if token == "" {
		token = fmt.Sprintf("%024x", time.Now().UnixNano())
	}

	return token, errors.Join(os.WriteFile(file, []byte(token), 0o600),
		os.WriteFile(filepath.Join(o.home, "zerotier-one.port"), []byte(strconv.Itoa(o.port)), 0o644))
}

func (o options) controllerURLs() map[string]string {
	urls := map[string]string{}

	for _, one := range strings.Split(o.controllers, ",") {
		if id, url, found := strings.Cut(one, "="); found {
			urls[id] = url
		}
	}

	return urls
}

func (o options) makeNetworks(node *ztdouble.Node) error {
	if o.networks == "" {
		return nil
	}

	var networks map[string]map[string]any

	err := json.Unmarshal([]byte(o.networks), &networks)
	for id, fields := range networks {
		node.MakeNetwork(id, fields)
	}

	return err
}

var client = &http.Client{Timeout: 2 * time.Second}

func ask(url string, q ztdouble.Question) (ztdouble.Config, bool) {
	var config ztdouble.Config

	text, err := json.Marshal(q)
	if err != nil || url == "" {
		return config, false
	}

	response, err := client.Post(url+"/double/ask", "application/json", bytes.NewReader(text))
	if err != nil {
		return config, false
	}

	defer func() { _ = response.Body.Close() }()

	err = json.NewDecoder(response.Body).Decode(&config)

	return config, err == nil && response.StatusCode == http.StatusOK
}

// rootUp takes the other controllers for roots; without any the node is its own.
func rootUp(urls map[string]string) bool {
	for _, url := range urls {
		response, err := client.Get(url + "/health")
		if err != nil {
			return false
		}

		_ = response.Body.Close()
	}

	return true
}

// tick is how often the node looks what is due.
const tick = 50 * time.Millisecond

func (o options) serve(ctx context.Context, node *ztdouble.Node) error {
	listener, err := net.Listen("tcp4", ":"+strconv.Itoa(o.port))
	if err != nil {
		return err
	}

	server := &http.Server{Handler: node, ReadHeaderTimeout: 5 * time.Second}

	if o.central != 0 {
		err = o.serveCentral(node)
		if err != nil {
			return err
		}
	}

	go func() {
		for ctx.Err() == nil {
			node.Advance()
			o.remember(node)
			time.Sleep(tick)
		}

		for _, id := range node.Joined() {
			node.Unplug(id)
		}

		_ = server.Close()
	}()

	err = server.Serve(listener)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}

	return err
}

// serveCentral serves until the program ends.
func (o options) serveCentral(node *ztdouble.Node) error {
	listener, err := net.Listen("tcp4", "127.0.0.1:"+strconv.Itoa(o.central))
	if err != nil {
		return err
	}

	face := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: &ztdouble.Central{Node: node, Version: 1, Token: node.Token, ForgetNames: true}}

	go func() { _ = face.Serve(listener) }()

	return nil
}

func (o options) folder() string { return filepath.Join(o.home, "networks.d") }

// rejoin joins what was joined when the service ended.
func (o options) rejoin(node *ztdouble.Node) error {
	files, err := filepath.Glob(filepath.Join(o.folder(), "*.conf"))
	for _, file := range files {
		node.Preseed(strings.TrimSuffix(filepath.Base(file), ".conf"))
	}

	return errors.Join(err, os.MkdirAll(o.folder(), 0o700))
}

// remember writes down what is joined.
func (o options) remember(node *ztdouble.Node) {
	joined := map[string]bool{}
	for _, id := range node.Joined() {
		joined[id+".conf"] = true
	}

	entries, _ := os.ReadDir(o.folder())
	for _, entry := range entries {
		if !joined[entry.Name()] {
			_ = os.Remove(filepath.Join(o.folder(), entry.Name()))
		}

		delete(joined, entry.Name())
	}

	for name := range joined {
		_ = os.WriteFile(filepath.Join(o.folder(), name), nil, 0o600)
	}
}
