// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinkube/infra/tests/lab"
)

// advertised is the prefix that the lab's router has for hosts that make their own addresses.
var advertised = netip.MustParsePrefix("fd00:95::/64")

// advertise has the lab's gateway advertise itself as a router to one host, as radvd does to all, until the test ends: other
// hosts would hear of it too. The gateway's own kernel answers for its link-local address.
func advertise(t *testing.T, host *lab.Host) {
	t.Helper()

	link, err := net.InterfaceByName(uplink)
	require.NoError(t, err)

	addrs, err := link.Addrs()
	require.NoError(t, err)

	var router netip.Addr

	for _, addr := range addrs {
		prefix, err := netip.ParsePrefix(addr.String())
		if err == nil && prefix.Addr().Is6() && prefix.Addr().IsLinkLocalUnicast() {
			router = prefix.Addr()
		}
	}

	require.True(t, router.IsValid(), "the machine's link %q has no link-local address", uplink)

	frame := advertisement(link.HardwareAddr, router)
	done := make(chan struct{})

	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)

	go func() {
		defer close(done)

		for ; t.Context().Err() == nil; time.Sleep(500 * time.Millisecond) {
			// The cable is another one after each boot, and there is none in between.
			cable, err := net.InterfaceByName("bridge-" + host.Name())
			if err == nil {
				_ = unix.Sendto(socket, frame, 0, &unix.SockaddrLinklayer{Ifindex: cable.Index, Halen: 6, Addr: [8]byte{0x33, 0x33, 0, 0, 0, 1}})
			}
		}
	}()

	t.Cleanup(func() {
		<-done
		_ = unix.Close(socket)
	})
}

// advertisement is a router advertisement (RFC 4861, 4.2) in an Ethernet frame to all nodes: a default router for half an hour,
// and a prefix to make addresses in.
func advertisement(mac net.HardwareAddr, router netip.Addr) []byte {
	prefix, nodes, source := advertised.Addr().As16(), netip.MustParseAddr("ff02::1").As16(), router.As16()

	message := []byte{134, 0, 0, 0, 64, 0}
	message = binary.BigEndian.AppendUint16(message, 1800)
	message = append(message, make([]byte, 8)...)
	message = append(append(message, 1, 1), mac...) // option: whose it is
	message = append(message, 3, 4, byte(advertised.Bits()), 0xc0)
	message = binary.BigEndian.AppendUint32(message, 86400)
	message = binary.BigEndian.AppendUint32(message, 14400)
	message = append(append(message, 0, 0, 0, 0), prefix[:]...)
	binary.BigEndian.PutUint16(message[2:], checksum6(source, nodes, message))

	frame := append([]byte{0x33, 0x33, 0, 0, 0, 1}, mac...)
	frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0)
	frame = binary.BigEndian.AppendUint16(frame, uint16(len(message)))
	frame = append(frame, unix.IPPROTO_ICMPV6, 255)
	frame = append(append(frame, source[:]...), nodes[:]...)

	return append(frame, message...)
}

// checksum6 is ICMPv6's, over a pseudo-header too (RFC 8200, 8.1).
func checksum6(source, destination [16]byte, message []byte) uint16 {
	all := append(append([]byte{}, source[:]...), destination[:]...)
	all = binary.BigEndian.AppendUint32(all, uint32(len(message)))
	all = append(append(all, 0, 0, 0, unix.IPPROTO_ICMPV6), message...)

	var sum uint32
	for i := 0; i+1 < len(all); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(all[i:]))
	}

	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}

	return ^uint16(sum)
}
