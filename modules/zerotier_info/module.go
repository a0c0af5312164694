// SPDX-License-Identifier: Apache-2.0

// Package zerotierinfo reads a host's ZeroTier service and a controller's members. It changes nothing.
package zerotierinfo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/ztapi"
)

// Args are the module's options.
type Args struct {
	NetworkID string `ansible:"network_id"`
	ztapi.ServiceOptions
	Service    bool                    `ansible:"service" default:"true"`
	Peers      bool                    `ansible:"peers" default:"false"`
	Controller ztapi.ControllerOptions `ansible:"controller,apply_defaults"`
}

// Values are what the module returns.
type Values struct {
	Installed bool           `json:"installed"`
	NodeID    string         `json:"node_id"`
	Online    bool           `json:"online"`
	Version   string         `json:"version"`
	Networks  []Network      `json:"networks"`
	Peers     []ztapi.Peer   `json:"peers"`
	Network   *ztapi.Network `json:"network"`
	Members   []ztapi.Member `json:"members"`
}

// Network is a network of the node, with what the kernel has.
type Network struct {
	ztapi.Joined
	KernelAddresses []string `json:"kernel_addresses"`
	RFC4193Address  string   `json:"rfc4193_address"`
	SixPlaneAddress string   `json:"sixplane_address"`
}

// Module is zerotier_info.
var Module = ansible.Module[Args, Values, Values]{
	Name:      "zerotier_info",
	Codes:     ztapi.Codes(nil),
	Normalize: normalize,
	Open: func(_ context.Context, task *ansible.Task, args Args) (ansible.Host[Values], error) {
		return &host{args: args, task: task}, nil
	},
	Result: func(_ Args, read Values) Values { return read },
}

func normalize(args *Args) error {
	errs := []error{args.ServiceOptions.Check(), args.Controller.Check()}

	if args.NetworkID != "" {
		id, err := ztapi.ParseNetworkID(args.NetworkID)
		if err != nil {
			errs = append(errs, fmt.Errorf("network_id: %w", err))
		}

		args.NetworkID = id
	} else if args.Controller.Kind != ztapi.KindNone {
		errs = append(errs, errors.New("network_id: is needed to read a controller's members"))
	}

	return errors.Join(errs...)
}

type host struct {
	ansible.ReadOnly
	args Args
	task *ansible.Task
}

// Read reads the service where there is one, and the controller where one is given.
func (h *host) Read(ctx context.Context) (Values, error) {
	read := Values{Networks: []Network{}, Peers: []ztapi.Peer{}, Members: []ztapi.Member{}}

	var err error
	if h.args.Service {
		err = h.readService(ctx, &read)
	}

	if err == nil && h.args.Controller.Kind != ztapi.KindNone {
		err = h.readController(ctx, &read)
	}

	return read, err
}

// readService takes a missing home folder for a host without ZeroTier; everything else that is missing is an error.
func (h *host) readService(ctx context.Context, read *Values) error {
	_, err := os.Stat(string(h.args.Home))
	if errors.Is(err, fs.ErrNotExist) && h.args.APIURL == "" {
		return nil
	}

	service, err := ztapi.OpenService(ctx, h.args.ServiceOptions, h.task.Hide)
	if err != nil {
		return err
	}

	status, err := service.Status(ctx)
	if err != nil {
		return err
	}

	read.Installed, read.NodeID, read.Online, read.Version = true, status.Address, status.Online, status.Version

	networks, err := service.Networks(ctx)
	if err != nil {
		return err
	}

	for _, joined := range networks {
		if h.args.NetworkID != "" && joined.ID != h.args.NetworkID {
			continue
		}

		kernel, err := ztapi.KernelAddresses(joined.Device)
		if err != nil {
			return err
		}

		read.Networks = append(read.Networks, Network{
			*joined, kernel, ztapi.RFC4193(joined.ID, status.Address), ztapi.SixPlane(joined.ID, status.Address),
		})
	}

	if h.args.Peers {
		read.Peers, err = service.Peers(ctx)
	}

	return err
}

func (h *host) readController(ctx context.Context, read *Values) error {
	controller, err := ztapi.OpenController(ctx, h.args.Controller, h.args.ServiceOptions, h.task.Hide)
	if err != nil {
		return err
	}

	read.Network, err = controller.Network(ctx, h.args.NetworkID)
	if err == nil && read.Network == nil {
		return ztapi.UnknownNetwork(h.args.NetworkID, "of kind "+h.args.Controller.Kind)
	}

	if err != nil {
		return err
	}

	read.Members, err = controller.Members(ctx, h.args.NetworkID)

	return err
}
