// SPDX-License-Identifier: Apache-2.0

package ztapi

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// MaxAddresses is how many addresses reach a node; further ones are stored and silently left out.
const MaxAddresses = 32

var (
	networkIDPattern = regexp.MustCompile(`^[0-9a-f]{16}$`)
	nodeIDPattern    = regexp.MustCompile(`^[0-9a-f]{10}$`)
)

// ParseNetworkID folds a network id to lower case. The all-zero id, which a service would join, is refused.
func ParseNetworkID(text string) (string, error) {
	id := strings.ToLower(strings.TrimSpace(text))

	if !networkIDPattern.MatchString(id) || id == strings.Repeat("0", 16) {
		return "", fmt.Errorf("%q is not a network id: want 16 hexadecimal digits, not all zero", text)
	}

	return id, nil
}

// ParseNodeID folds a node id to lower case: a controller would keep one of each case.
func ParseNodeID(text string) (string, error) {
	id := strings.ToLower(strings.TrimSpace(text))

	if !nodeIDPattern.MatchString(id) || id == strings.Repeat("0", 10) {
		return "", fmt.Errorf("%q is not a node id: want 10 hexadecimal digits, not all zero", text)
	}

	return id, nil
}

// ParseAddresses reads a member's addresses: in order, each once. A controller drops prefixes, drops what it cannot read
// or turns it into 0.0.0.0, so nothing of that kind is let through.
func ParseAddresses(option string, texts []string) ([]string, error) {
	var errs []error

	parsed := []netip.Addr{}

	for _, text := range texts {
		addr, err := netip.ParseAddr(strings.TrimSpace(text))

		switch {
		case err != nil && strings.Contains(text, "/"):
			err = fmt.Errorf("%s: %q: give the address without a prefix; the network's routes say which it has", option, text)
		case err != nil:
			err = fmt.Errorf("%s: %q is not an IP address", option, text)
		case addr.Zone() != "" || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast():
			err = fmt.Errorf("%s: %q cannot be the address of a member", option, text)
		}

		errs = append(errs, err)

		if addr = addr.Unmap(); err == nil && !slices.Contains(parsed, addr) {
			parsed = append(parsed, addr)
		}
	}

	return SortAddresses(parsed), errors.Join(errs...)
}

// ParseRoute reads a route and gives it the form that a controller stores. Without a prefix length a controller would store
// /0, a default route.
func ParseRoute(option, target, via string) (Route, error) {
	prefix, err := netip.ParsePrefix(target)
	if err != nil {
		return Route{}, fmt.Errorf("%s: target %q is not an address with a prefix length, such as 10.1.0.0/24", option, target)
	}

	made := Route{CanonicalPrefix(target), CanonicalAddress(via)}

	var errs []error
	if prefix.Masked() != prefix {
		errs = append(errs, fmt.Errorf("%s: target %q has host bits: %s is meant", option, target, prefix.Masked()))
	}

	addr, err := netip.ParseAddr(via)
	if via != "" && (err != nil || addr.Is4() != prefix.Addr().Is4()) {
		errs = append(errs, fmt.Errorf("%s: via %q of %s is not an address of the same family", option, via, target))
	}

	return made, errors.Join(errs...)
}

// SortAddresses gives addresses as text in a fixed order.
func SortAddresses(addrs []netip.Addr) []string {
	slices.SortFunc(addrs, netip.Addr.Compare)

	texts := []string{}
	for _, addr := range slices.Compact(addrs) {
		texts = append(texts, addr.String())
	}

	return texts
}

// SameAddresses gives texts a fixed form and order, so that they can be compared as a set. What is no address stays, to
// be seen.
func SameAddresses(texts []string) []string {
	var (
		addrs  []netip.Addr
		others []string
	)

	for _, text := range texts {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			others = append(others, text)
			continue
		}

		addrs = append(addrs, addr.Unmap())
	}

	slices.Sort(others)

	return append(SortAddresses(addrs), slices.Compact(others)...)
}

// pseudoPrivate are the networks that a node takes like private ones, although they belong to somebody: who owns them does
// not announce them (InetAddress::ipScope of zerotier-one).
var pseudoPrivate = []byte{6, 11, 21, 22, 25, 26, 28, 29, 30, 51, 55, 56}

var carrierGrade = netip.MustParsePrefix("100.64.0.0/10")

// NodeTakes tells whether a node gives its device an address that it was assigned (checkIfManagedIsAllowed of zerotier-one).
func NodeTakes(addr netip.Addr, allow Allow) bool {
	addr = addr.Unmap()

	switch {
	case !allow.Managed, !addr.IsValid(), addr.IsUnspecified(), addr.IsLoopback(), addr.IsMulticast(), addr.IsLinkLocalUnicast():
		return false
	case addr.IsPrivate(), carrierGrade.Contains(addr):
		return true
	case addr.Is6():
		return allow.Global
	}

	switch first := addr.As4()[0]; {
	case first == 0 || first == 255:
		return false
	case first >= 240, slices.Contains(pseudoPrivate, first):
		return true
	}

	return allow.Global
}

// RFC4193 is the address that a node has in a network with that assignment mode, a /88.
func RFC4193(network, node string) string {
	raw := make([]byte, 0, 16)
	raw = append(raw, 0xfd)
	raw = append(raw, unhex(network)...)
	raw = append(raw, 0x99, 0x93)
	raw = append(raw, unhex(node)...)

	return addressOf(raw)
}

// SixPlane is the address that a node has in a network with that assignment mode, a /40 of which /80 is the node's.
func SixPlane(network, node string) string {
	id := unhex(network)
	if len(id) != 8 {
		return ""
	}

	raw := binary.BigEndian.AppendUint32([]byte{0xfc}, binary.BigEndian.Uint32(id)^binary.BigEndian.Uint32(id[4:]))
	raw = append(raw, unhex(node)...)
	raw = append(raw, 0, 0, 0, 0, 0, 1)

	return addressOf(raw)
}

func unhex(text string) []byte {
	raw, err := hex.DecodeString(text)
	if err != nil {
		return nil
	}

	return raw
}

func addressOf(raw []byte) string {
	addr, ok := netip.AddrFromSlice(raw)
	if !ok {
		return ""
	}

	return addr.String()
}

// checkURL refuses what is no base URL, and plain HTTP to another host, where anybody on the way could read the token.
func checkURL(option, text string, insecure bool) error {
	parsed, err := url.Parse(text)

	switch {
	case err != nil || parsed.Host == "" || parsed.Scheme != "http" && parsed.Scheme != "https":
		return fmt.Errorf("%s: %q is not a URL such as https://host:port", option, text)
	case parsed.User != nil || parsed.RawQuery != "" || parsed.Fragment != "":
		return fmt.Errorf("%s: a URL without user, query and fragment is needed", option)
	case parsed.Scheme == "http" && !insecure && !isLoopback(parsed.Hostname()):
		return fmt.Errorf("%s: %q would send the token over the network in clear: use https, a tunnel to 127.0.0.1, or allow_insecure of a controller", option, text)
	}

	return nil
}

func isLoopback(host string) bool {
	addr := net.ParseIP(host)

	return addr != nil && addr.IsLoopback()
}
