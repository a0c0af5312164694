// SPDX-License-Identifier: Apache-2.0

// Package netprobe asks whether a host can be reached and can reach others: a neighbour on the link, a TCP port, a name
// server. A probe that passed before a change of the network and fails after it is why the change is undone.
package netprobe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The kinds of probes.
const (
	Neighbour = "neighbour" // Target is an address on the link
	TCP       = "tcp"       // Target is address:port; a refusal is an answer too
	DNS       = "dns"       // Target is a name server
)

// Probe is one question.
type Probe struct {
	Kind   string `json:"kind"`
	Target string `json:"target"`
	Why    string `json:"why"` // what it stands for: "gateway", "controller", ...
	// Listens says that a TCP port must take the connection; otherwise its refusal will do.
	Listens bool `json:"listens,omitempty"`
}

// String is the probe for people.
func (p Probe) String() string { return fmt.Sprintf("%s (%s %s)", p.Why, p.Kind, p.Target) }

// ErrSilent tells that a neighbour was asked for and nobody answered, which is an answer too. Any other error of that probe
// means that it could not be asked.
var ErrSilent = errors.New("nobody answers for the address")

// timeout of one try.
const timeout = 2 * time.Second

// Run asks once. Dev is the link that a neighbour is looked for on, and that link-local targets are on now whose own link is
// gone or has become a port of it.
func Run(ctx context.Context, probe Probe, dev string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	var err error

	switch probe.Kind {
	case Neighbour:
		err = neighbour(ctx, probe.Target, dev)
	case TCP:
		err = connect(ctx, probe, dev)
	case DNS:
		err = query(ctx, probe.Target, dev)
	default:
		err = fmt.Errorf("unknown kind of probe %q", probe.Kind)
	}

	if err != nil {
		return fmt.Errorf("probe %s: %w", probe, err)
	}

	return nil
}

// Passing keeps the probes that pass now, with a second try for a packet that was lost.
func Passing(ctx context.Context, probes []Probe, dev string) []Probe {
	var passed []Probe

	for _, probe := range probes {
		err := Run(ctx, probe, dev)
		if err != nil {
			err = Run(ctx, probe, dev)
		}

		if err == nil {
			passed = append(passed, probe)
		}
	}

	return passed
}

// Await runs the probes until all pass, or the context ends: then the error names those that do not.
func Await(ctx context.Context, probes []Probe, dev string) error {
	for {
		var failed error

		for _, probe := range probes {
			failed = errors.Join(failed, Run(ctx, probe, dev))
		}

		if failed == nil || ctx.Err() != nil {
			return failed
		}

		select {
		case <-ctx.Done():
			return failed
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// neighbour has the kernel resolve an address on a link, by ARP or neighbour discovery, and watches what comes of it. An
// older answer does not count: it is forgotten first, which costs a packet.
func neighbour(ctx context.Context, target, dev string) error {
	addr, err := netip.ParseAddr(target)
	if err != nil {
		return err
	}

	link, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}

	index, family := link.Attrs().Index, netlink.FAMILY_V4
	if addr.Is6() {
		family = netlink.FAMILY_V6
	}

	_ = netlink.NeighDel(&netlink.Neigh{LinkIndex: index, Family: family, IP: addr.AsSlice()}) // there may be none

	err = poke(ctx, addr, dev)
	if err != nil {
		return err
	}

	for {
		found, err := netlink.NeighList(index, family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}

		for _, one := range found {
			if !one.IP.Equal(addr.AsSlice()) {
				continue
			}

			if one.State&(netlink.NUD_REACHABLE|netlink.NUD_PERMANENT) != 0 {
				return nil
			}

			if one.State&netlink.NUD_FAILED != 0 {
				return ErrSilent
			}
		}

		select {
		case <-ctx.Done():
			return ErrSilent
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// discard is the port that a packet is sent to whose only use is that its receiver is looked for (RFC 863).
const discard = 9

// poke sends a packet to an address as one on the link, whatever the routes say.
func poke(ctx context.Context, addr netip.Addr, dev string) error {
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error

		err := raw.Control(func(fd uintptr) {
			failed = errors.Join(unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, dev),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DONTROUTE, 1))
		})

		return errors.Join(err, failed)
	}}

	if addr.IsLinkLocalUnicast() && addr.Is6() {
		addr = addr.WithZone(dev)
	}

	conn, err := dialer.DialContext(ctx, "udp", netip.AddrPortFrom(addr, discard).String())
	if err != nil {
		return err
	}

	_, err = conn.Write([]byte{0})

	return errors.Join(err, conn.Close())
}

// follow gives a link-local address the zone that it has now. What was on the wire of a port is on that of its bridge, and
// the other way round when the bridge is gone.
func follow(host, dev string) string {
	addr, err := netip.ParseAddr(host)
	if err != nil || addr.Zone() == "" {
		return host
	}

	link, err := netlink.LinkByName(addr.Zone())

	index, notNumber := strconv.Atoi(addr.Zone())
	if err != nil && notNumber == nil {
		link, err = netlink.LinkByIndex(index)
	}

	if gone := (netlink.LinkNotFoundError{}); errors.As(err, &gone) {
		return addr.WithZone(dev).String()
	}

	uplink, failed := netlink.LinkByName(dev)
	if err == nil && failed == nil && link.Attrs().MasterIndex == uplink.Attrs().Index {
		return addr.WithZone(dev).String()
	}

	return host
}

func connect(ctx context.Context, probe Probe, dev string) error {
	var dialer net.Dialer

	host, port, err := net.SplitHostPort(probe.Target)
	if err != nil {
		return err
	}

	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(follow(host, dev), port))
	if errors.Is(err, unix.ECONNREFUSED) && !probe.Listens {
		return nil // somebody is there who says no
	}

	if err != nil {
		return err
	}

	return conn.Close()
}

// query asks a name server for the root's name servers. Whatever it answers, it answers.
func query(ctx context.Context, server, dev string) error {
	var dialer net.Dialer

	conn, err := dialer.DialContext(ctx, "udp", net.JoinHostPort(follow(strings.TrimSuffix(server, "."), dev), "53"))
	if err != nil {
		return err
	}

	defer func() { _ = conn.Close() }()

	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}

	// RFC 1035, 4.1: an identifier, "recursion desired", one question: the root, type NS, class IN.
	id := uint16(rand.Uint32())
	question := binary.BigEndian.AppendUint16(nil, id)
	question = append(question, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1)

	_, err = conn.Write(question)
	if err != nil {
		return err
	}

	answer := make([]byte, 4096)

	for {
		n, err := conn.Read(answer)
		if err != nil {
			return err
		}

		if n >= 12 && binary.BigEndian.Uint16(answer) == id && answer[2]&0x80 != 0 {
			return nil
		}
	}
}
