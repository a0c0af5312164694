// SPDX-License-Identifier: Apache-2.0

package ztdouble

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// How long things take in the real service, seen on a LAN.
const (
	toOnline     = 5 * time.Second         // from the start
	toNotFound   = 1300 * time.Millisecond // from the join
	toFirst      = 2900 * time.Millisecond // from the join to the first answer of other kinds
	retryRefused = 5 * time.Second         // between questions after a refusal
	retrySilent  = 2 * time.Second         // between questions that nobody answers
	refresh      = 60 * time.Second        // between questions while all is well
	staleWithin  = time.Second             // two changes of addresses in that time leave the older ones on the device
)

// version of the service that was recorded.
const version = "1.14.1"

// World is what its nodes have in common.
type World struct {
	// Scale is what the times of the real service are multiplied with: 0.01 is a hundred times as fast.
	Scale float64
	// Now is the clock.
	Now func() time.Time
	// NextID gives the last six digits of a network whose id the controller chooses.
	NextID func() string
	// Intercept may answer a request in place of the double: it returns whether it did. Face is "service", "controller",
	// "central_v1" or "central_v2".
	Intercept func(face string, w http.ResponseWriter, r *http.Request) bool

	mu       sync.Mutex
	nodes    map[string]*Node
	requests []Request
}

// Request is one that was made of the double.
type Request struct{ Node, Face, Method, Path string }

// NewWorld makes a world with the real clock.
func NewWorld(scale float64) *World {
	return &World{
		Scale: scale, Now: time.Now, nodes: map[string]*Node{},
		NextID: func() string { return fmt.Sprintf("%06x", rand.Uint32()&0xffffff) },
	}
}

// Requests gives what was asked so far and forgets it.
func (w *World) Requests() []Request {
	w.mu.Lock()
	defer w.mu.Unlock()

	all := w.requests
	w.requests = nil

	return all
}

func (w *World) note(node, face string, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()

	w.requests = append(w.requests, Request{node, face, r.Method, r.URL.Path})
}

func (w *World) scaled(d time.Duration) time.Duration { return time.Duration(float64(d) * w.Scale) }

// millis is the time as ZeroTier writes it.
func (w *World) millis() int64 { return w.Now().UnixMilli() }

// Lock runs a change of the world that is not made through a face.
func (w *World) Lock(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()

	change()
}

// deviceName is what zerotier-one calls a network's device: the id folded to 40 bits in base32 (osdep/LinuxEthernetTap.cpp).
func deviceName(network string) string {
	const digits = "abcdefghijklmnopqrstuvwxyz234567"

	id := number(network)
	folded := (id ^ id>>24) & 0xffffffffff

	name := []byte("zt")
	for shift := 35; shift >= 0; shift -= 5 {
		name = append(name, digits[folded>>shift&31])
	}

	return string(name)
}

// macAddress is the device's address (node/MAC.hpp).
func macAddress(network, node string) string {
	id := number(network)

	first := id&0xfe | 2
	if first == 0x52 {
		first = 0x32
	}

	mac := first<<40 | number(node)
	mac ^= (id>>8&0xff)<<32 | (id>>16&0xff)<<24 | (id>>24&0xff)<<16 | (id>>32&0xff)<<8 | id>>40&0xff

	raw := binary.BigEndian.AppendUint64(nil, mac)[2:]

	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", raw[0], raw[1], raw[2], raw[3], raw[4], raw[5])
}

func number(digits string) uint64 {
	raw, err := hex.DecodeString(strings.Repeat("0", 16-len(digits)) + digits)
	if err != nil {
		return 0
	}

	return binary.BigEndian.Uint64(raw)
}

func rfc4193(network, node string) string {
	raw, _ := hex.DecodeString("fd" + network + "9993" + node)
	addr, _ := netip.AddrFromSlice(raw)

	return addr.String() + "/88"
}

func sixPlane(network, node string) string {
	folded := uint32(number(network)>>32) ^ uint32(number(network))
	raw, _ := hex.DecodeString(fmt.Sprintf("fc%08x%s000000000001", folded, node))
	addr, _ := netip.AddrFromSlice(raw)

	return addr.String() + "/40"
}

func isHex(text string, digits int) bool {
	_, err := hex.DecodeString(text + strings.Repeat("0", len(text)%2))

	return err == nil && len(text) == digits
}
