// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Interval is the time between two pings of Watch.
const Interval = 10 * time.Millisecond

// Watch pings an address until the context ends, and gives the longest time without an answer. It needs root.
func Watch(ctx context.Context, address netip.Addr) (worst time.Duration, answers int, err error) {
	conn, err := net.Dial("ip4:icmp", address.String())
	if err != nil {
		return 0, 0, err
	}

	var (
		lock sync.Mutex
		last = time.Now()
		done = make(chan struct{})
	)

	note := func(answered bool) {
		lock.Lock()
		defer lock.Unlock()

		worst = max(worst, time.Since(last))

		if answered {
			last = time.Now()
			answers++
		}
	}

	go func() {
		defer close(done)

		packet := make([]byte, 1500)

		for {
			n, err := conn.Read(packet)
			if err != nil {
				return
			}

			// The packet comes with its IPv4 header. Type 0 is an echo reply (RFC 792).
			if header := int(packet[0]&0xf) * 4; n >= header+8 && packet[header] == 0 {
				note(true)
			}
		}
	}()

	ticker := time.NewTicker(Interval)
	defer ticker.Stop()

	for number := uint16(0); ctx.Err() == nil; number++ {
		_, _ = conn.Write(echo(number)) // a network that is away for a moment is what this is about

		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}

	note(false) // it may not have come back at all
	err = conn.Close()
	<-done

	return worst, answers, err
}

// echo makes an ICMP echo request (RFC 792).
func echo(number uint16) []byte {
	packet := []byte{8, 0, 0, 0, 0x74, 0x6b, 0, 0}
	binary.BigEndian.PutUint16(packet[6:], number)

	var sum uint32
	for i := 0; i < len(packet); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(packet[i:]))
	}

	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(packet[2:], ^uint16(sum+sum>>16))

	return packet
}
