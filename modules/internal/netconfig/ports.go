// SPDX-License-Identifier: Apache-2.0

package netconfig

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// Port is how one of several ports is configured, where that may differ from the first one's.
type Port struct {
	Manager string   `json:"manager,omitempty"` // empty when nobody configures the link
	Applied string   `json:"applied,omitempty"`
	Profile string   `json:"profile,omitempty"`
	MAC     string   `json:"mac,omitempty"`
	Others  []string `json:"others,omitempty"`
}

// Add adds how a further port is configured. The bridge gets its addresses and so on from the first one alone.
func (c *Config) Add(name string, port Config) {
	for _, file := range port.Files {
		if c.File(file.Path) == nil {
			c.Files = append(c.Files, file)
		}
	}

	slices.SortFunc(c.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })

	ports := maps.Clone(c.Ports)
	if ports == nil {
		ports = map[string]Port{}
	}

	ports[name] = Port{Manager: port.Manager, Applied: port.Applied, Profile: port.Profile, MAC: port.MAC, Others: port.Others}
	c.Ports = ports
}

// port is how one of the ports is configured: a further one, or the first, which the config speaks of.
func (c Config) port(name string) Port {
	if port, further := c.Ports[name]; further {
		return port
	}

	return Port{Manager: c.Manager, Applied: c.Applied, Profile: c.Profile, MAC: c.MAC}
}

// as is the config as if it spoke of that port.
func (c Config) as(name string) Config {
	port := c.port(name)
	c.Applied, c.Profile, c.MAC = port.Applied, port.Profile, port.MAC

	return c
}

// acts is who acts on the links: netplan has another do it.
func (c Config) acts() string {
	if c.Manager == Netplan {
		return c.Renderer
	}

	return c.Manager
}

// InForce gives what is in force for the ports as they are configured without the bridge: networkd's file for each, or
// NetworkManager's profiles. A port that nobody configures has none.
func InForce(config Config, ports []string) (expect map[string]string, profiles []string) {
	expect = map[string]string{}

	for i, name := range ports {
		port := config.port(name)

		switch {
		case config.acts() == Networkd && port.Applied != "":
			expect[name] = port.Applied
		// NetworkManager makes up a further port's profile that is in no file by itself.
		case config.acts() == NetworkManager && port.Profile != "" && (i == 0 || port.Applied != "") && !slices.Contains(profiles, port.Profile):
			profiles = append(profiles, port.Profile)
		}
	}

	return expect, profiles
}

// generated is where netplan has networkd's file for a device.
const generated = "/run/systemd/network/10-netplan-"

// netplanFileOf is networkd's file for a port, as netplan makes it. A device that was in no file of netplan's gets the port's
// name.
func (c Config) netplanFileOf(name string) string {
	if port := c.port(name); port.Applied != "" {
		return port.Applied
	}

	return generated + name + ".network"
}

// netplanProfileOf is NetworkManager's profile for a port, as netplan makes it.
func (c Config) netplanProfileOf(name string) string {
	if port := c.port(name); port.Applied != "" {
		return strings.TrimSuffix(filepath.Base(port.Applied), ".nmconnection")
	}

	return "netplan-" + name
}
