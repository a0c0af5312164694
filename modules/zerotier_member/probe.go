// SPDX-License-Identifier: Apache-2.0

package zerotiermember

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/thinkube/infra/modules/internal/ansible"
)

// probe asks every address that is to be reached. What is not required and fails is a warning.
func (h *host) probe(ctx context.Context, state State) ([]ProbeResult, error) {
	var (
		results []ProbeResult
		failed  error
	)

	for _, probe := range h.args.Test {
		start := time.Now()
		err := probe.run(ctx, state.Joined.Device)
		result := ProbeResult{Address: probe.Address, Port: probe.Port, OK: err == nil, TookMS: float64(time.Since(start).Microseconds()) / 1000}

		if err != nil {
			result.Reason = err.Error()

			if probe.Required {
				failed = errors.Join(failed, fmt.Errorf("%s: %w", probe, err))
			} else {
				h.task.Warn("%s: %s", probe, err)
			}
		}

		results = append(results, result)
	}

	if failed != nil {
		return results, ansible.Fail(CodeTestFailed, "look at that member, and at firewalls on both; give a port where pings are dropped", "%w", failed)
	}

	return results, nil
}

// String is the probe for people.
func (p Probe) String() string {
	if p.Port != nil {
		return fmt.Sprintf("test of %s port %d", p.Address, *p.Port)
	}

	return "test of " + p.Address
}

// run asks until there is an answer or the time is over. An address of this host would answer without the network: it is
// refused, and so is a way that does not lead over the network's device.
func (p Probe) run(ctx context.Context, device string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(p.Timeout))
	defer cancel()

	addr := netip.MustParseAddr(p.Address).Unmap() // Normalize has parsed it

	err := checkWay(addr, device)
	if err != nil {
		return err
	}

	for {
		if p.Port != nil {
			err = connect(ctx, addr, *p.Port)
		} else {
			err = ping(ctx, addr)
		}

		if err == nil || ctx.Err() != nil {
			return err
		}

		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func checkWay(addr netip.Addr, device string) error {
	own, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}

	for _, one := range own {
		if have, ok := netip.AddrFromSlice(one.IP); ok && have.Unmap() == addr {
			return errors.New("it is an address of this host, which says nothing of the network")
		}
	}

	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}

	routes, err := netlink.RouteGet(addr.AsSlice())
	if err != nil {
		return fmt.Errorf("no route to it: %w", err)
	}

	for _, route := range routes {
		if route.LinkIndex == link.Attrs().Index {
			return nil
		}
	}

	return fmt.Errorf("the route to it does not lead over %s", device)
}

func connect(ctx context.Context, addr netip.Addr, port int) error {
	var dialer net.Dialer

	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(addr.String(), strconv.Itoa(port)))
	if err != nil {
		return err
	}

	return conn.Close()
}

// ICMP types (RFC 792, RFC 4443).
const (
	echo4, echoReply4 = 8, 0
	echo6, echoReply6 = 128, 129
)

// pingWait is for one packet.
const pingWait = time.Second

// ping sends one echo request and waits for its answer.
func ping(ctx context.Context, addr netip.Addr) error {
	network, kind, reply := "ip4:icmp", byte(echo4), byte(echoReply4)
	if addr.Is6() {
		network, kind, reply = "ip6:ipv6-icmp", echo6, echoReply6
	}

	var dialer net.Dialer

	conn, err := dialer.DialContext(ctx, network, addr.String())
	if err != nil {
		return err
	}

	defer func() { _ = conn.Close() }()

	deadline := time.Now().Add(pingWait)
	if end, ok := ctx.Deadline(); ok && end.Before(deadline) {
		deadline = end
	}

	err = conn.SetDeadline(deadline)
	if err != nil {
		return err
	}

	id := uint16(os.Getpid()) ^ uint16(time.Now().UnixNano())

	_, err = conn.Write(makeEcho(kind, id))
	if err != nil {
		return err
	}

	answer, packets := make([]byte, 1500), conn.(net.PacketConn)

	for {
		// ReadFrom cuts the IPv4 header off, Read does not.
		n, _, err := packets.ReadFrom(answer)
		if err != nil {
			return fmt.Errorf("no answer to a ping: %w", err)
		}

		if n >= 8 && answer[0] == reply && binary.BigEndian.Uint16(answer[4:]) == id {
			return nil
		}
	}
}

// makeEcho builds a request; the kernel sums ICMPv6 itself.
func makeEcho(kind byte, id uint16) []byte {
	packet := []byte{kind, 0, 0, 0}
	packet = binary.BigEndian.AppendUint16(packet, id)
	packet = binary.BigEndian.AppendUint16(packet, 1)

	if kind == echo4 {
		sum := uint32(0)
		for i := 0; i < len(packet); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(packet[i:]))
		}

		sum = sum&0xffff + sum>>16
		binary.BigEndian.PutUint16(packet[2:], ^uint16(sum+sum>>16))
	}

	return packet
}
