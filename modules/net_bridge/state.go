// SPDX-License-Identifier: Apache-2.0

package netbridge

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/armed"
	"github.com/thinkube/infra/modules/internal/netconfig"
	"github.com/thinkube/infra/modules/internal/netprobe"
	"github.com/thinkube/infra/modules/internal/netstate"
)

// State is a host's network as far as it matters to the bridge.
type State struct {
	Name   string           `json:"name"`
	Net    netstate.Net     `json:"net"`
	Config netconfig.Config `json:"config"` // how the port is configured now
	// Files are those that the record knows, as they are now.
	Files []netconfig.File `json:"files,omitempty"`
	// Resolv is /etc/resolv.conf where it is a file of its own.
	Resolv *netconfig.File `json:"resolv,omitempty"`
	DNS    []string        `json:"dns,omitempty"`
	// Taken are the wanted addresses that another host answers for.
	Taken []string `json:"taken,omitempty"`
	// NoProof tells why no connection of this task could prove that the host is still reached; empty where one can.
	NoProof string `json:"no_proof,omitempty"`
	// ReadOnly are the folders that cannot be written.
	ReadOnly []string      `json:"read_only,omitempty"`
	Armed    *Armed        `json:"armed,omitempty"`
	Record   *armed.Record `json:"record,omitempty"`
	// Steps are what was or would be done, for people.
	Steps []string `json:"-"`
}

type host struct {
	args  Args
	task  *ansible.Task
	steps []string
	id    string
}

func open(_ context.Context, task *ansible.Task, args Args) (ansible.Host[State], error) {
	if os.Geteuid() != 0 {
		return nil, ansible.Fail(ansible.CodeFailed, "use become: true", "the network can only be changed by root")
	}

	return &host{args: args, task: task, id: args.Ticket}, nil
}

// ticket is the change's name: the user's, or one of our own.
func (h *host) ticket() string {
	if h.id == "" {
		random := make([]byte, 8)
		_, _ = rand.Read(random) // never fails, says crypto/rand
		h.id = hex.EncodeToString(random)
	}

	return h.id
}

// Read gets kernel, files and what an earlier change left.
func (h *host) Read(ctx context.Context) (State, error) {
	state := State{Name: h.args.Name, Steps: h.steps}

	var err error

	state.Net, err = netstate.Read()
	if err != nil {
		return state, err
	}

	state.Record, err = store.ReadRecord(h.args.Name)
	if err == nil {
		err = h.readArmed(&state)
	}

	if err != nil {
		return state, err
	}

	h.hideSecrets(state)

	if state.Armed != nil && armed.Phase(state.Armed.Phase).Open() && h.args.Phase != "plan" {
		return state, nil // the rest is in motion, and no plan is made from it
	}

	ports, _ := findPorts(h.args, state) // what is wrong with them is the plan's to say
	trimSysctls(&state.Net, append(slices.Clone(ports), h.args.Name))

	err = h.readFiles(&state, ports)
	if err != nil {
		return state, err
	}

	h.hideSecrets(state)

	state.NoProof = h.noProof()

	if h.args.State == "present" && !h.args.inherits() && len(ports) > 0 && (h.args.Phase == "apply" || h.args.Phase == "stage" || h.args.Phase == "plan") {
		var unasked []string

		state.Taken, unasked, err = takenAddresses(ctx, h.args, state.Net, ports[0])
		for _, address := range unasked {
			h.task.Warn("whether another host has address %s could not be asked: link %q is down or without IPv6", address, ports[0])
		}
	}

	return state, err
}

func (h *host) readArmed(state *State) error {
	change, err := store.Load()
	if err != nil || change == nil {
		return err
	}

	guarded, err := store.Guarded()
	if err != nil {
		return err
	}

	shown := show(change, guarded)
	shown.Ours = h.task.Reconnected(change.ID)

	session := armed.FindSession()
	shown.Provable = session.SSH && (h.task.CanReconnect() || session.Started > change.AppliedAt)
	state.Armed = &shown

	return nil
}

// show gives what users see of a change.
func show(change *armed.Change, guarded bool) Armed {
	return Armed{
		Ticket: change.ID, Bridge: change.Bridge, Phase: string(change.Phase), Summary: change.Summary,
		// The host may have been restarted without a systemd that looks after the change.
		Guarded: guarded && change.BootID == armed.BootID(),
		Reason:  change.Reason, Failed: change.Failed, Wanted: change.Wanted,
	}
}

// noProof tells why no connection of this task could prove that the host is still reached: one that does not go over the
// network, or whose age cannot be told. A program that was started by hand looks at its own connection when it confirms.
func (h *host) noProof() string {
	switch connection := h.task.Connection(); {
	case connection == "":
		return ""
	case !slices.Contains([]string{"ssh", "paramiko", "paramiko_ssh", "libssh"}, connection):
		return fmt.Sprintf("Ansible's connection %q does not go over the network", connection)
	case !armed.FindSession().SSH:
		return "none of the program's parent processes is OpenSSH's sshd, which would tell how old the connection is"
	}

	return ""
}

// trimSysctls leaves out what is of no use and much to look at: the settings of other links.
func trimSysctls(state *netstate.Net, keep []string) {
	for i := range state.Links {
		if !slices.Contains(keep, state.Links[i].Name) {
			state.Links[i].Sysctls = nil
		}
	}
}

func (h *host) readFiles(state *State, ports []string) error {
	for i, port := range ports {
		link := state.Net.Link(port)
		if link == nil {
			continue // the plan refuses it
		}

		config, err := netconfig.Read("", *link, h.args.Name, h.args.Manager)
		if err != nil {
			return fmt.Errorf("reading how link %q is configured: %w", link.Name, err)
		}

		if i == 0 {
			state.Config = config
		} else {
			state.Config.Add(port, config)
		}
	}

	if state.Record != nil {
		for _, change := range state.Record.Files {
			file, err := netconfig.ReadFile("", change.Path)
			if err != nil {
				return err
			}

			if file != nil {
				state.Files = append(state.Files, *file)
			}
		}
	}

	for _, folder := range []string{"/etc", "/etc/systemd/network", "/etc/netplan", "/etc/NetworkManager/system-connections", "/etc/network"} {
		if errors.Is(unix.Access(folder, unix.W_OK), unix.EROFS) {
			state.ReadOnly = append(state.ReadOnly, folder)
		}
	}

	info, err := os.Lstat("/etc/resolv.conf")
	if err == nil && info.Mode().IsRegular() {
		state.Resolv, err = netconfig.ReadFile("", "/etc/resolv.conf")
	} else {
		err = nil
	}

	state.DNS = nameServers()

	return err
}

// nameServers are those that answer in the end: a stub on this host answers also when nobody else does.
func nameServers() []string {
	for _, path := range []string{"/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"} {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}

		var servers []string

		for _, line := range strings.Split(string(text), "\n") {
			words := strings.Fields(line)
			if len(words) < 2 || words[0] != "nameserver" {
				continue
			}

			if addr, err := netip.ParseAddr(words[1]); err == nil && !addr.IsLoopback() {
				servers = append(servers, words[1])
			}
		}

		if servers != nil {
			return servers
		}
	}

	return nil
}

// hideSecrets keeps passwords and keys in configuration files out of the diff.
func (h *host) hideSecrets(state State) {
	files := slices.Concat(state.Files, state.Config.Files)
	if state.Record != nil {
		files = append(files, state.Record.Source.Files...)

		for _, change := range state.Record.Files {
			for _, file := range []*netconfig.File{change.Before, change.After} {
				if file != nil {
					files = append(files, *file)
				}
			}
		}
	}

	for _, file := range files {
		for _, secret := range netconfig.Secrets(file.Content) {
			h.task.Hide(ansible.NewSecret(secret))
		}
	}
}

// takenAddresses asks on the link for each wanted address that this host does not have. Unasked are those that cannot be
// asked for because the link is down or has no IPv6; that anything else stands in the way is an error.
func takenAddresses(ctx context.Context, args Args, state netstate.Net, port string) (taken, unasked []string, err error) {
	link := state.Link(port)
	if link != nil && link.Master == args.Name && state.Link(args.Name) != nil {
		link = state.Link(args.Name)
	}

	if link == nil {
		return nil, nil, nil // the plan refuses it
	}

	for _, text := range args.Addresses {
		prefix, err := netip.ParsePrefix(text)
		if err != nil || slices.ContainsFunc(state.Addrs, func(addr netstate.Addr) bool { return strings.HasPrefix(addr.Prefix, prefix.Addr().String()+"/") }) {
			continue
		}

		address := prefix.Addr().String()

		if !link.Up || prefix.Addr().Is6() && link.Sysctls["ipv6/disable_ipv6"] != "0" {
			unasked = append(unasked, address)

			continue
		}

		err = netprobe.Run(ctx, netprobe.Probe{Kind: netprobe.Neighbour, Target: address, Why: "address in use"}, link.Name)

		switch {
		case err == nil:
			taken = append(taken, address)
		case !errors.Is(err, netprobe.ErrSilent):
			return nil, nil, fmt.Errorf("asking whether another host has address %s: %w", address, err)
		}
	}

	return taken, unasked, nil
}
