// SPDX-License-Identifier: Apache-2.0

package ztapi

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// KernelAddresses reads what a network's device has in the kernel, with prefix lengths, without the link-local addresses, which the kernel makes itself.
func KernelAddresses(device string) ([]string, error) {
	found := []string{}

	link, err := netlink.LinkByName(device)

	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) || device == "" {
		return found, nil
	}

	if err != nil {
		return found, err
	}

	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)

	for _, addr := range addrs {
		if !addr.IP.IsLinkLocalUnicast() {
			found = append(found, addr.IPNet.String())
		}
	}

	return found, err
}
