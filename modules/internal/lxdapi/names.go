// SPDX-License-Identifier: Apache-2.0

package lxdapi

import (
	"fmt"
	"regexp"
	"strings"
)

var (
	hostname = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)
	iface    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
)

// CheckMemberName refuses what LXD refuses as a cluster member's name (lxd/db/cluster: a host name, and neither "none"
// nor a group target "@x").
func CheckMemberName(option, name string) error {
	switch {
	case name == "none", strings.HasPrefix(name, "@"):
		return fmt.Errorf("%s %q: is reserved by LXD", option, name)
	case !hostname.MatchString(name), len(name) > 253:
		return fmt.Errorf("%s %q: must be a host name: letters, digits and hyphens, in parts of at most 63 joined by dots", option, name)
	}

	return nil
}

// CheckInterfaceName refuses what cannot be the name of a network interface: LXD makes one with the network's name, and
// the kernel takes at most 15 bytes (IFNAMSIZ).
func CheckInterfaceName(option, name string) error {
	if len(name) < 2 || len(name) > 15 || !iface.MatchString(name) {
		return fmt.Errorf("%s %q: must be 2 to 15 letters, digits, dots, underscores or hyphens, and start with a letter or digit", option, name)
	}

	return nil
}

// CheckObjectName refuses what cannot be part of an API path: LXD takes no slash, no leading dot and no blank.
func CheckObjectName(option, name string) error {
	if name == "" || len(name) > 63 || strings.HasPrefix(name, ".") || strings.ContainsAny(name, "/ \t\n\"'*:?&+") {
		return fmt.Errorf("%s %q: must be 1 to 63 characters without slash, blank, quote or any of * : ? & +, and not start with a dot", option, name)
	}

	return nil
}
