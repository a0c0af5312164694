// SPDX-License-Identifier: Apache-2.0

package netconfig

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/thinkube/infra/modules/internal/netstate"
)

// networkdFolders are where networkd looks, the first wins (systemd.network(5)).
var networkdFolders = []string{"/etc/systemd/network", "/run/systemd/network", "/usr/local/lib/systemd/network", "/usr/lib/systemd/network", "/lib/systemd/network"}

// readNetworkd asks networkd's own note about the link which file is in force.
func readNetworkd(root string, link netstate.Link, bridge string) (*Config, error) {
	file := netifState(root, link.Index)["NETWORK_FILE"]
	if file == "" {
		return nil, nil
	}

	config := &Config{Manager: Networkd, Applied: file, IAID: readIAID(root, link.Index)}

	// A file of networkd's own folders can be a link to elsewhere; what it says counts, and it is not changed.
	target, err := filepath.EvalSymlinks(root + file)
	if err != nil {
		return nil, fmt.Errorf("reading the file that networkd uses for link %q: %w", link.Name, err)
	}

	text, err := os.ReadFile(target)
	if err != nil {
		return nil, err
	}

	config.Files = append(config.Files, File{Path: file, Content: string(text), Mode: 0o644})

	var extra []string
	for _, folder := range networkdFolders {
		extra = append(extra, filepath.Join(folder, filepath.Base(file)+".d"))
	}

	err = config.readAll(root, "*.conf", extra...)
	if err != nil {
		return nil, err
	}

	return config, config.readOwn(root, bridge)
}

// readOwn reads the files that are to be written, where they are there already.
func (c *Config) readOwn(root, bridge string) error {
	return c.readAll(root, "*-thinkube-"+bridge+"*", networkdFolders[0])
}

// readIAID finds what networkd told the DHCP server about who we are. The lease has the client identifier in hex: type
// 255, four bytes IAID, then the DUID (RFC 4361, 6.1).
func readIAID(root string, index int) string {
	id := shellVars(filepath.Join(root, "/run/systemd/netif/leases", strconv.Itoa(index)))["CLIENTID"]
	if len(id) < 10 || !strings.HasPrefix(strings.ToLower(id), "ff") {
		return ""
	}

	iaid, err := strconv.ParseUint(id[2:10], 16, 32)
	if err != nil {
		return ""
	}

	return strconv.FormatUint(iaid, 10)
}

// What stays with the port when its file is carried over to the bridge: what acts on the wire, and devices stacked on it.
var (
	portSections = []string{"Bridge", "BridgeFDB", "BridgeMDB", "BridgeVLAN", "LLDP", "CAN", "SR-IOV", "IPoIB", "QDisc"}
	portLink     = []string{"MACAddress", "MTUBytes", "ARP", "Multicast", "AllMulticast", "Promiscuous", "ActivationPolicy", "Group"}
	portNetwork  = []string{
		"LLDP", "EmitLLDP", "VLAN", "MACVLAN", "MACVTAP", "IPVLAN", "IPVTAP", "VXLAN", "MACsec", "Tunnel", "Xfrm", "BatmanAdvanced", "BindCarrier",
	}
)

func isPortSection(name string) bool {
	return slices.Contains(portSections, name) || isTC(name)
}

// isTC tells of the sections about queues: networkd has some twenty of them, all of the port's hardware.
func isTC(name string) bool {
	for _, suffix := range []string{
		"Queueing", "QueueingClass", "Cake", "Classic", "Emulator", "Filter", "Proportional", "PIE", "CoDel", "FIFO", "Delay",
		"FIFOHeadDrop", "FIFOFast", "QuickFairQueueing", "QuickFairQueueingClass", "HierarchyTokenBucket", "HierarchyTokenBucketClass",
		"HeavyHitterFilter", "TrivialLinkEqualizer", "BFIFO", "PFIFO", "PFIFOFast", "PFIFOHeadDrop", "CAKE", "ControlledDelay",
		"DeficitRoundRobinScheduler", "DeficitRoundRobinSchedulerClass", "EnhancedTransmissionSelection", "FairQueueing",
		"FairQueueingControlledDelay", "FlowQueuePIE", "GenericRandomEarlyDetection", "NetworkEmulator", "StochasticFairBlue",
		"StochasticFairnessQueueing", "TokenBucketFilter",
	} {
		if name == suffix {
			return true
		}
	}

	return false
}

// networkdPrefix makes our files sort before those in force: networkd takes the first that matches.
func networkdPrefix(config Config, ports []string) (string, error) {
	first := config.Applied

	for _, name := range ports {
		if port := config.port(name); port.Applied != "" && filepath.Base(port.Applied) < filepath.Base(first) {
			first = port.Applied
		}
	}

	for _, prefix := range []string{"05-thinkube-", "00-thinkube-"} {
		if prefix < filepath.Base(first) {
			return filepath.Join(networkdFolders[0], prefix), nil
		}
	}

	return "", unsupported("file %q sorts before any that this module would write: give it a name that starts with 10 or more", first)
}

// networkdSections is what a port's file and its drop-ins say; nothing for a further port that has none.
func networkdSections(config Config) ([]section, error) {
	if config.Applied == "" {
		return nil, nil
	}

	applied := config.File(config.Applied)
	if applied == nil {
		return nil, unsupported("the file %q that networkd uses is not among those that were read", config.Applied)
	}

	sections := parseINI(applied.Content)

	for _, file := range dropIns(config) {
		sections = append(sections, parseINI(file.Content)...)
	}

	if owner := find(&sections, "Network"); owner.get("Bond") != "" || owner.get("VRF") != "" || owner.get("Bridge") != "" {
		return nil, unsupported("file %q makes the link part of another device", config.Applied)
	}

	if find(&sections, "Link").get("Unmanaged") == "yes" {
		return nil, unsupported("file %q says that networkd does not manage the link", config.Applied)
	}

	return sections, nil
}

func renderNetworkd(config Config, wanted Wanted) ([]Change, error) {
	prefix, err := networkdPrefix(config, wanted.Ports)
	if err != nil {
		return nil, err
	}

	sections, err := networkdSections(config)
	if err != nil {
		return nil, err
	}

	name := prefix + wanted.Bridge
	changes := []Change{
		write(config, name+".netdev", header+renderINI(netdevSections(wanted)), 0o644),
		write(config, name+".network", header+"# The settings are those of "+config.Applied+".\n"+renderINI(bridgeSections(config, sections, wanted)), 0o644),
	}

	for _, port := range wanted.Ports {
		own, err := networkdSections(config.as(port))
		if err != nil {
			return nil, err
		}

		changes = append(changes, write(config, name+"-"+port+".network", header+renderINI(portFile(own, wanted, port)), 0o644))
	}

	return changes, nil
}

// dropIns are the files that add to the one in force, in networkd's order: by name, whatever their folder.
func dropIns(config Config) []File {
	var found []File

	for _, file := range config.Files {
		if filepath.Base(filepath.Dir(file.Path)) == filepath.Base(config.Applied)+".d" {
			found = append(found, file)
		}
	}

	slices.SortFunc(found, func(a, b File) int { return strings.Compare(filepath.Base(a.Path), filepath.Base(b.Path)) })

	return found
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}

	return "no"
}

func netdevSections(wanted Wanted) []section {
	device := section{name: "NetDev"}
	device.add("Name", wanted.Bridge)
	device.add("Kind", "bridge")
	device.add("MACAddress", wanted.MAC)

	if wanted.MTU != 0 {
		device.add("MTUBytes", strconv.Itoa(wanted.MTU))
	}

	bridge := section{name: "Bridge"}
	bridge.add("STP", yesNo(wanted.STP))
	bridge.add("ForwardDelaySec", strconv.Itoa(wanted.ForwardDelay))

	if wanted.VLANFiltering {
		bridge.add("VLANFiltering", "yes")
	}

	return []section{device, bridge}
}

// bridgeSections is the port's file, under the bridge's name.
func bridgeSections(config Config, sections []section, wanted Wanted) []section {
	match := section{name: "Match"}
	match.add("Name", wanted.Bridge)
	made := []section{match, {name: "Link"}, {name: "Network"}}

	for _, one := range sections {
		one.lines = slices.Clone(one.lines)

		switch {
		case one.name == "Match" || isPortSection(one.name):
			continue
		case one.name == "Link":
			one.remove(func(line setting) bool { return slices.Contains(portLink, line.key) })
			find(&made, "Link").lines = append(find(&made, "Link").lines, one.lines...)
		case one.name == "Network":
			one.remove(func(line setting) bool { return slices.Contains(portNetwork, line.key) })
			find(&made, "Network").lines = append(find(&made, "Network").lines, one.lines...)
		default:
			made = append(made, one)
		}
	}

	if wanted.MTU != 0 {
		find(&made, "Link").set("MTUBytes", strconv.Itoa(wanted.MTU))
	}

	if wanted.VLANFiltering {
		// A filtering bridge drops what is in no VLAN: its own traffic is untagged, which is VLAN 1 by default.
		made = append(made, section{name: "BridgeVLAN", lines: []setting{{"VLAN", "1"}, {"PVID", "1"}, {"EgressUntagged", "1"}}})
	}

	made = networkdIP(made, wanted.IP)
	dhcp := find(&made, "Network").get("DHCP")

	if v4 := find(&made, "DHCPv4"); (dhcp == "yes" || dhcp == "ipv4" || dhcp == "true" || dhcp == "both" || dhcp == "1") && config.IAID != "" &&
		v4.get("IAID") == "" && (v4.get("ClientIdentifier") == "" || v4.get("ClientIdentifier") == "duid") {
		// Derived from the link's name otherwise, so that the bridge would get another address than the port had.
		find(&made, "DHCPv4").set("IAID", config.IAID)
	}

	return made
}

// isV6 tells the family of an address or prefix.
func isV6(text string) bool { return strings.Contains(text, ":") }

// isDefault tells of a [Route] that is a default route of a family.
func (s section) isDefault(v6 bool) bool {
	if s.name != "Route" {
		return false
	}

	to, via := s.get("Destination"), s.get("Gateway")

	switch to {
	case "0.0.0.0/0":
		return !v6
	case "::/0":
		return v6
	case "":
		return via == "_ipv6ra" && v6 || via == "_dhcp4" && !v6 || !strings.HasPrefix(via, "_") && isV6(via) == v6
	}

	return false
}

// networkdIP replaces what the user gave. What was not given stays as it is.
func networkdIP(made []section, ip IP) []section {
	network := func() *section { return find(&made, "Network") }
	dropSections := func(drop func(section) bool) { made = slices.DeleteFunc(made, drop) }

	if ip.Addresses != nil {
		network().remove(func(line setting) bool {
			return slices.Contains([]string{"Address", "Gateway", "DHCP", "DHCPServer", "LinkLocalAddressing", "IPv4LLRoute"}, line.key)
		})
		dropSections(func(s section) bool {
			return slices.Contains([]string{"Address", "Route", "DHCP", "DHCPv4", "DHCPv6", "DHCPPrefixDelegation"}, s.name)
		})

		network().add("DHCP", "no")

		for _, address := range ip.Addresses {
			network().add("Address", address)
		}
	}

	for _, gateway := range []struct {
		value *string
		v6    bool
	}{{ip.Gateway4, false}, {ip.Gateway6, true}} {
		if gateway.value == nil {
			continue
		}

		network().remove(func(line setting) bool { return line.key == "Gateway" && isV6(line.value) == gateway.v6 })
		dropSections(func(s section) bool { return s.isDefault(gateway.v6) })

		if *gateway.value != "" {
			network().add("Gateway", *gateway.value)
		}
	}

	if ip.Nameservers != nil {
		network().remove(func(line setting) bool { return line.key == "DNS" })

		for _, server := range ip.Nameservers {
			network().add("DNS", server)
		}
	}

	if ip.Search != nil {
		network().remove(func(line setting) bool { return line.key == "Domains" })

		if len(ip.Search) > 0 {
			network().add("Domains", strings.Join(ip.Search, " "))
		}
	}

	for _, route := range ip.Routes {
		one := section{name: "Route"}
		one.add("Destination", route.To)

		if route.Via != "" {
			one.add("Gateway", route.Via)
		}

		if route.Table != 0 {
			one.add("Table", strconv.Itoa(route.Table))
		}

		if route.Metric != 0 {
			one.add("Metric", strconv.Itoa(route.Metric))
		}

		if route.OnLink {
			one.add("GatewayOnLink", "yes")
		}

		made = append(made, one)
	}

	return networkdIPv6(made, ip.IPv6)
}

func networkdIPv6(made []section, mode string) []section {
	network := find(&made, "Network")

	switch mode {
	case "ra":
		network.set("IPv6AcceptRA", "yes")
	case "static":
		network.set("IPv6AcceptRA", "no")
	case "off":
		network.set("IPv6AcceptRA", "no")
		network.set("LinkLocalAddressing", "no")
		network.remove(func(line setting) bool {
			return (line.key == "Address" || line.key == "Gateway") && isV6(line.value)
		})

		if dhcp := network.get("DHCP"); dhcp == "yes" || dhcp == "both" || dhcp == "true" {
			network.set("DHCP", "ipv4")
		}

		made = slices.DeleteFunc(made, func(s section) bool {
			return s.name == "Address" && isV6(s.get("Address")) || s.isDefault(true) ||
				s.name == "Route" && (isV6(s.get("Gateway")) || isV6(s.get("Destination"))) || s.name == "DHCPv6"
		})
	}

	return made
}

// portFile is what is left to the port. It is matched by name: the bridge has its MAC.
func portFile(sections []section, wanted Wanted, port string) []section {
	match, link, network := section{name: "Match"}, section{name: "Link"}, section{name: "Network"}
	match.add("Name", port)

	var rest []section

	for _, one := range sections {
		for _, line := range one.lines {
			if one.name == "Link" && slices.Contains(portLink, line.key) {
				link.lines = append(link.lines, line)
			}

			if one.name == "Network" && slices.Contains(portNetwork, line.key) {
				network.lines = append(network.lines, line)
			}
		}

		if isPortSection(one.name) {
			rest = append(rest, one)
		}
	}

	if wanted.MTU != 0 {
		link.set("MTUBytes", strconv.Itoa(wanted.MTU))
	}

	network.add("Bridge", wanted.Bridge)
	// The bridge answers for it.
	network.add("LinkLocalAddressing", "no")

	if wanted.VLANFiltering && !slices.ContainsFunc(rest, func(s section) bool { return s.name == "BridgeVLAN" }) {
		rest = append(rest, section{name: "BridgeVLAN", lines: []setting{{"VLAN", "1"}, {"PVID", "1"}, {"EgressUntagged", "1"}}})
	}

	return append([]section{match, link, network}, rest...)
}
