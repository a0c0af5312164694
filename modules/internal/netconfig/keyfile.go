// SPDX-License-Identifier: Apache-2.0

package netconfig

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/thinkube/infra/modules/internal/netstate"
)

// keyfileFolders are where NetworkManager's profiles are (NetworkManager.conf(5), keyfile plugin).
var keyfileFolders = []string{"/etc/NetworkManager/system-connections", "/run/NetworkManager/system-connections", "/usr/lib/NetworkManager/system-connections"}

// activeProfile asks NetworkManager's own note about a link for the profile in force: its UUID and its file.
func activeProfile(root string, link netstate.Link) (uuid, file string, err error) {
	note, err := ReadFile(root, filepath.Join("/run/NetworkManager/devices", strconv.Itoa(link.Index)))
	if err != nil || note == nil {
		return "", "", err
	}

	sections := parseINI(note.Content)

	device := find(&sections, "device")
	if device.get("managed") == "false" || device.get("connection-uuid") == "" {
		return "", "", nil
	}

	uuid = device.get("connection-uuid")

	var all Config

	err = all.readAll(root, "*", keyfileFolders...)
	if err != nil {
		return "", "", err
	}

	for _, one := range all.Files {
		sections := parseINI(one.Content)
		connection := find(&sections, "connection")

		if connection.get("uuid") == uuid {
			return uuid, one.Path, nil
		}

		// Netplan writes none, and NetworkManager makes one up from the file's name.
		if connection.get("uuid") == "" && connection.get("interface-name") == link.Name && strings.HasPrefix(filepath.Base(one.Path), "netplan-") {
			file = one.Path
		}
	}

	if file != "" {
		return uuid, file, nil
	}

	return uuid, "", nil
}

// routeMetric is what NetworkManager chose for the link's routes. It goes by the kind of link, and the bridge would get
// another (NetworkManager.conf(5), ipv4.route-metric).
func routeMetric(root string, index int) string {
	return shellVars(filepath.Join(root, "/run/NetworkManager/devices", strconv.Itoa(index)))["route-metric-default-effective"]
}

func readKeyfile(root string, link netstate.Link, bridge string) (*Config, error) {
	uuid, file, err := activeProfile(root, link)
	if err != nil || uuid == "" {
		return nil, err
	}

	config := &Config{Manager: NetworkManager, Applied: file, Profile: uuid, Metric: routeMetric(root, link.Index)}

	// A profile without a file lives in NetworkManager's memory only: "Wired connection 1", and links others configured.
	if file != "" {
		err := config.read(root, file)
		if err != nil {
			return nil, err
		}
	}

	return config, config.readAll(root, "thinkube-"+bridge+"*.nmconnection", keyfileFolders[0])
}

// keyfilePort are the sections of a profile that stay with the port; the bridge has its own.
var keyfilePort = []string{"connection", "ethernet", "802-3-ethernet", "802-1x", "ethtool", "link", "dcb", "sriov", "bridge", "bridge-port", "match", "tc"}

// profileID makes a UUID that is the same each time (RFC 4122, 4.3), since NetworkManager knows profiles by it.
func profileID(name string) string {
	sum := sha1.Sum([]byte("thinkube.infra.net_bridge " + name))
	sum[6] = sum[6]&0x0f | 0x50
	sum[8] = sum[8]&0x3f | 0x80
	text := hex.EncodeToString(sum[:16])

	return text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:]
}

func keyfilePath(name string) string {
	return keyfileFolders[0] + "/thinkube-" + name + ".nmconnection"
}

// renderKeyfile makes a profile for the bridge with what the port's has, one for each port, and takes the port's old
// profile away, which would otherwise be activated again.
func renderKeyfile(config Config, wanted Wanted) ([]Change, error) {
	sections, err := keyfileSections(config)
	if err != nil {
		return nil, err
	}

	bridge, err := keyfileBridge(config, sections, wanted)
	if err != nil {
		return nil, err
	}

	changes := []Change{write(config, keyfilePath(wanted.Bridge), header+renderINI(bridge), 0o600)}

	for i, port := range wanted.Ports {
		applied := config.port(port).Applied

		var own []section

		// A further port that nobody configures, or whose profile is only made up, has nothing that would stand in the way.
		if i == 0 || applied != "" {
			own, err = keyfileSections(config.as(port))
			if err != nil {
				return nil, err
			}
		}

		if away := (Change{Path: applied}); applied != "" && !slices.Contains(changes, away) {
			changes = append(changes, away)
		}

		changes = append(changes, write(config, keyfilePath(wanted.Bridge+"-"+port), header+renderINI(keyfilePortProfile(own, wanted, port)), 0o600))
	}

	return changes, nil
}

// keyfileSections is what a port's own profile says.
func keyfileSections(config Config) ([]section, error) {
	applied := config.File(config.Applied)

	switch {
	case applied == nil:
		return nil, unsupported("NetworkManager's profile %q is in no file: write it down first, with nmcli connection clone, for example", config.Profile)
	case !strings.HasPrefix(config.Applied, keyfileFolders[0]+"/"):
		return nil, unsupported("NetworkManager's profile is in %q, which is not the administrator's to change", config.Applied)
	}

	sections := parseINI(applied.Content)
	if connection := find(&sections, "connection"); connection.get("master") != "" || connection.get("controller") != "" {
		return nil, unsupported("profile %q makes the link part of another device", config.Applied)
	}

	return sections, nil
}

func keyfileBridge(config Config, sections []section, wanted Wanted) ([]section, error) {
	connection := section{name: "connection"}
	connection.add("id", "thinkube-"+wanted.Bridge)
	connection.add("uuid", profileID(wanted.Bridge))
	connection.add("type", "bridge")
	connection.add("interface-name", wanted.Bridge)
	connection.add("autoconnect", "true")
	// The ports come along when the bridge is activated.
	connection.add("autoconnect-slaves", "1")

	for _, line := range find(&sections, "connection").lines {
		if slices.Contains([]string{"zone", "mdns", "llmnr", "dns-over-tls", "metered", "permissions", "secondaries"}, line.key) {
			connection.lines = append(connection.lines, line)
		}
	}

	bridge := section{name: "bridge"}
	bridge.add("stp", strconv.FormatBool(wanted.STP))
	bridge.add("mac-address", strings.ToUpper(wanted.MAC))

	// NetworkManager checks the delay against the standard's bounds, and only with STP.
	if wanted.STP {
		bridge.add("forward-delay", strconv.Itoa(wanted.ForwardDelay))
	}

	if wanted.VLANFiltering {
		bridge.add("vlan-filtering", "true")
	}

	made := []section{connection, bridge}

	if wanted.MTU != 0 {
		made = append(made, section{name: "ethernet", lines: []setting{{"mtu", strconv.Itoa(wanted.MTU)}}})
	}

	for _, one := range sections {
		if !slices.Contains(keyfilePort, one.name) {
			one.lines = slices.Clone(one.lines)
			made = append(made, one)
		}
	}

	made, err := keyfileIP(made, wanted.IP)

	for _, family := range []string{"ipv4", "ipv6"} {
		if one := find(&made, family); config.Metric != "" && one.get("route-metric") == "" && one.get("method") != "disabled" {
			one.add("route-metric", config.Metric)
		}
	}

	return made, err
}

func keyfilePortProfile(sections []section, wanted Wanted, port string) []section {
	connection := section{name: "connection"}
	connection.add("id", "thinkube-"+wanted.Bridge+"-"+port)
	connection.add("uuid", profileID(wanted.Bridge+" "+port))
	connection.add("type", "ethernet")
	connection.add("interface-name", port)
	connection.add("master", profileID(wanted.Bridge))
	connection.add("slave-type", "bridge")
	connection.add("autoconnect", "true")

	made := []section{connection}

	for _, one := range sections {
		if slices.Contains(keyfilePort, one.name) && !slices.Contains([]string{"connection", "bridge", "bridge-port"}, one.name) {
			one.lines = slices.Clone(one.lines)
			made = append(made, one)
		}
	}

	if wanted.MTU != 0 {
		find(&made, "ethernet").set("mtu", strconv.Itoa(wanted.MTU))
	}

	return made
}

func keyfileIP(made []section, ip IP) ([]section, error) {
	for _, family := range []struct {
		name    string
		v6      bool
		gateway *string
	}{{"ipv4", false, ip.Gateway4}, {"ipv6", true, ip.Gateway6}} {
		keyfileFamily(find(&made, family.name), family.v6, family.gateway, ip)
	}

	v6 := find(&made, "ipv6")

	switch ip.IPv6 {
	case "ra":
		v6.set("method", "auto")
	case "static":
		if v6.get("method") != "manual" {
			v6.set("method", "link-local")
		}
	case "off":
		v6.lines = []setting{{"method", "disabled"}}
	}

	return made, nil
}

// numbered tells of a key such as address1.
func numbered(key, stem string) bool {
	_, err := strconv.Atoi(strings.TrimPrefix(key, stem))

	return strings.HasPrefix(key, stem) && err == nil
}

func keyfileFamily(s *section, v6 bool, gateway *string, ip IP) {
	if ip.Addresses != nil {
		s.remove(func(line setting) bool {
			return numbered(line.key, "address") || numbered(strings.TrimSuffix(line.key, "_options"), "route") || line.key == "gateway" || line.key == "method" ||
				strings.HasPrefix(line.key, "dhcp-")
		})

		count := 0

		for _, address := range ip.Addresses {
			if isV6(address) == v6 {
				count++
				s.add(fmt.Sprintf("address%d", count), address)
			}
		}

		switch {
		case count > 0:
			s.add("method", "manual")
		case v6:
			s.add("method", "link-local")
		default:
			s.add("method", "disabled")
		}
	}

	if gateway != nil {
		s.remove(func(line setting) bool { return line.key == "gateway" })

		// The older form has the gateway behind the first address.
		for i, line := range s.lines {
			if numbered(line.key, "address") {
				address, _, _ := strings.Cut(line.value, ",")
				s.lines[i].value = address
			}
		}

		if *gateway != "" {
			s.add("gateway", *gateway)
		} else {
			s.set("never-default", "true")
		}
	}

	own := func(list []string) string {
		text := ""

		for _, one := range list {
			if isV6(one) == v6 {
				text += one + ";"
			}
		}

		return text
	}

	if ip.Nameservers != nil {
		s.set("dns", own(ip.Nameservers))
		s.set("ignore-auto-dns", "true")
	}

	if ip.Search != nil && !v6 {
		s.set("dns-search", strings.Join(ip.Search, ";")+";")
	}

	next := 1

	for _, line := range s.lines {
		if number, err := strconv.Atoi(strings.TrimPrefix(line.key, "route")); err == nil {
			next = max(next, number+1)
		}
	}

	for _, route := range ip.Routes {
		if isV6(route.To) != v6 {
			continue
		}

		s.add(fmt.Sprintf("route%d", next), keyfileRoute(route))

		var options []string

		for _, option := range []struct {
			name string
			set  bool
			text string
		}{{"table", route.Table != 0, strconv.Itoa(route.Table)}, {"onlink", route.OnLink, "true"}} {
			if option.set {
				options = append(options, option.name+"="+option.text)
			}
		}

		if options != nil {
			s.add(fmt.Sprintf("route%d_options", next), strings.Join(options, ","))
		}

		next++
	}
}

// keyfileRoute is a route as nm-settings-keyfile(5) has it: destination, next hop, metric. A metric without a next hop comes
// after the address that is none.
func keyfileRoute(route Route) string {
	value, via := route.To, route.Via

	if via == "" && route.Metric != 0 {
		via = "0.0.0.0"
		if isV6(route.To) {
			via = "::"
		}
	}

	if via != "" {
		value += "," + via
	}

	if route.Metric != 0 {
		value += "," + strconv.Itoa(route.Metric)
	}

	return value
}
