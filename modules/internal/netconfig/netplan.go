// SPDX-License-Identifier: Apache-2.0

package netconfig

import (
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/thinkube/infra/modules/internal/netstate"
)

// netplanFolders are where netplan looks; a file hides those of its name in later folders (netplan-generate(8)).
var netplanFolders = []string{"/run/netplan", "/etc/netplan", "/lib/netplan"}

const netplanEtc = "/etc/netplan"

// readNetplan looks whether what is in force for the link was written by netplan.
func readNetplan(root string, link netstate.Link, bridge string) (*Config, error) {
	config := &Config{Manager: Netplan}

	switch file := netifState(root, link.Index)["NETWORK_FILE"]; {
	case strings.HasPrefix(filepath.Base(file), "10-netplan-"):
		config.Renderer, config.Applied, config.IAID = Networkd, file, readIAID(root, link.Index)
	default:
		profile, file, err := activeProfile(root, link)
		if err != nil || !strings.HasPrefix(filepath.Base(file), "netplan-") {
			return nil, err
		}

		config.Renderer, config.Applied, config.Profile = NetworkManager, file, profile
		config.Metric = routeMetric(root, link.Index)
	}

	err := config.readAll(root, "*.yaml", netplanFolders...)
	if err != nil {
		return nil, err
	}

	for _, folder := range []string{networkFolder(bridge), netdevFolder(bridge)} {
		err := config.readAll(root, "thinkube.conf", folder)
		if err != nil {
			return nil, err
		}
	}

	return config, nil
}

func networkFolder(bridge string) string {
	return networkdFolders[0] + "/10-netplan-" + bridge + ".network.d"
}

func netdevFolder(bridge string) string {
	return networkdFolders[0] + "/10-netplan-" + bridge + ".netdev.d"
}

// HasOwnFolder tells of a drop-in for what netplan generates, whose folder is there for it alone.
func HasOwnFolder(file string) bool {
	return strings.HasPrefix(filepath.Base(filepath.Dir(file)), "10-netplan-")
}

// netplanPort are the keys of a device that stay with it when it becomes a port (netplan(5)): how it is found, and what
// acts on the wire. All others say something about addresses, routes and names, and go to the bridge.
var netplanPort = []string{
	"match", "set-name", "wakeonlan", "emit-lldp", "mtu", "macaddress", "renderer", "receive-checksum-offload",
	"transmit-checksum-offload", "tcp-segmentation-offload", "tcp6-segmentation-offload", "generic-segmentation-offload",
	"generic-receive-offload", "large-receive-offload", "link", "virtual-function-count", "embedded-switch-mode",
	"delay-virtual-functions-rebind", "infiniband-mode", "auth", "openvswitch", "activation-mode", "regulatory-domain",
}

// parsedFile is one file of netplan as a tree that keeps comments.
type parsedFile struct {
	File
	root  yaml.Node
	ports []string // the ids under ethernets that are the port
}

func renderNetplan(config Config, wanted Wanted) ([]Change, error) {
	if wanted.VLANFiltering && config.Renderer != Networkd {
		return nil, unsupported("netplan cannot tell NetworkManager to filter VLANs on a bridge")
	}

	files, err := parseNetplan(config)
	if err != nil {
		return nil, err
	}

	ids := map[string]string{} // port: id
	layer3 := map[string]any{}

	var (
		changes  []Change
		renderer string
		added    []string
	)

	for i, port := range wanted.Ports {
		merged := layer3
		if i > 0 {
			merged = map[string]any{} // the bridge has what the first port had
		}

		for _, file := range files {
			network := mapping(&file.root, "network")
			if value := child(network, "renderer"); value != nil {
				renderer = value.Value
			}

			err := splitPort(config.as(port), file, mapping(network, "ethernets"), port, ids, merged)
			if err != nil {
				return nil, err
			}
		}

		switch {
		case ids[port] != "":
		case i > 0 && config.port(port).Manager == "":
			ids[port] = port
			added = append(added, port)
		default:
			return nil, unsupported("no file of netplan has link %q under ethernets", port)
		}
	}

	for _, file := range files {
		if len(file.ports) == 0 {
			continue
		}

		text, err := encodeYAML(&file.root)
		if err != nil {
			return nil, err
		}

		change := write(config, path.Join(netplanEtc, path.Base(file.Path)), text, 0o600)
		changes = append(changes, change)
	}

	bridge, err := netplanBridge(config, wanted, ids, added, layer3, renderer)
	if err != nil {
		return nil, err
	}

	changes = append(changes, write(config, netplanFile(wanted.Bridge), bridge, 0o600))
	changes = append(changes, netplanDropIns(config, wanted, layer3)...)

	return append(changes, config.cloudChange()...), nil
}

func netplanFile(bridge string) string { return netplanEtc + "/90-thinkube-" + bridge + ".yaml" }

func parseNetplan(config Config) ([]*parsedFile, error) {
	var files []*parsedFile

	for _, file := range config.Files {
		if path.Ext(file.Path) != ".yaml" || strings.HasPrefix(path.Base(file.Path), "90-thinkube-") {
			continue
		}

		parsed := &parsedFile{File: file}

		err := yaml.Unmarshal([]byte(file.Content), &parsed.root)
		if err != nil {
			return nil, unsupported("file %q is no YAML: %s", file.Path, strings.TrimPrefix(err.Error(), "yaml: "))
		}

		files = append(files, parsed)
	}

	// Netplan reads them in the order of their names, whatever their folder.
	slices.SortFunc(files, func(a, b *parsedFile) int { return strings.Compare(path.Base(a.Path), path.Base(b.Path)) })

	return files, nil
}

// child gives a value of a mapping; nil when there is none.
func child(node *yaml.Node, key string) *yaml.Node {
	if node == nil || node.Kind != yaml.MappingNode {
		return nil
	}

	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == key {
			return node.Content[i+1]
		}
	}

	return nil
}

func mapping(node *yaml.Node, key string) *yaml.Node {
	if node != nil && node.Kind == yaml.DocumentNode && len(node.Content) > 0 {
		node = node.Content[0]
	}

	return child(node, key)
}

// splitPort takes out of the file what it says about the port's addresses and so on, and merges it into layer3 as netplan
// merges files: mappings key by key, lists appended, the last value wins.
func splitPort(config Config, file *parsedFile, ethernets *yaml.Node, port string, ids map[string]string, layer3 map[string]any) error {
	if ethernets == nil || ethernets.Kind != yaml.MappingNode {
		return nil
	}

	for i := 0; i+1 < len(ethernets.Content); i += 2 {
		id, device := ethernets.Content[i].Value, ethernets.Content[i+1]

		matches, err := netplanMatches(config, file.Path, id, device, port, ids[port])
		if err != nil {
			return err
		}

		if !matches {
			continue
		}

		ids[port] = id
		file.ports = append(file.ports, id)

		var kept []*yaml.Node

		for j := 0; j+1 < len(device.Content); j += 2 {
			key, value := device.Content[j], device.Content[j+1]

			if slices.Contains(netplanPort, key.Value) {
				kept = append(kept, key, value)

				continue
			}

			var plain any

			err := value.Decode(&plain)
			if err != nil {
				return unsupported("file %q: %s of %q: %v", file.Path, key.Value, id, err)
			}

			layer3[key.Value] = mergeYAML(layer3[key.Value], plain)
		}

		if kept == nil {
			// A device that is only named is an empty mapping; a null would be refused.
			device.Style = yaml.FlowStyle
		}

		device.Content = kept
	}

	return nil
}

// netplanMatches tells whether a device of netplan is the port, and refuses one that is more than the port: it cannot lose
// its addresses without others losing theirs.
func netplanMatches(config Config, file, id string, device *yaml.Node, port, known string) (bool, error) {
	if device.Kind != yaml.MappingNode {
		return false, nil
	}

	match := child(device, "match")
	if match == nil {
		// Another file may have said how the device is found.
		return id == port || known != "" && id == known, nil
	}

	if name := child(device, "set-name"); name != nil && name.Value == port {
		return true, nil
	}

	name := child(match, "name")

	switch {
	case name != nil && name.Value == port:
		return true, nil
	case name != nil && strings.ContainsAny(name.Value, "*?["):
		if fits, err := path.Match(name.Value, port); err != nil || !fits {
			return false, err
		}

		return false, unsupported("file %q: device %q is every link that matches %q; give link %q a device of its own", file, id, name.Value, port)
	case name == nil && child(match, "macaddress") == nil:
		return false, unsupported("file %q: device %q is found by something else than name and MAC, and may be more than link %q", file, id, port)
	case name == nil:
		return strings.EqualFold(child(match, "macaddress").Value, config.MAC), nil
	}

	return false, nil
}

func mergeYAML(have, more any) any {
	switch more := more.(type) {
	case map[string]any:
		old, ok := have.(map[string]any)
		if !ok {
			return more
		}

		merged := maps.Clone(old)
		for key, value := range more {
			merged[key] = mergeYAML(merged[key], value)
		}

		return merged
	case []any:
		old, _ := have.([]any)

		return append(slices.Clone(old), more...)
	}

	return more
}

func encodeYAML(value any) (string, error) {
	var text strings.Builder

	encoder := yaml.NewEncoder(&text)
	encoder.SetIndent(2)

	err := encoder.Encode(value)

	return text.String(), err
}

// netplanBridge is the bridge's own file. Added are ports that netplan did not know until now.
func netplanBridge(config Config, wanted Wanted, ids map[string]string, added []string, layer3 map[string]any, renderer string) (string, error) {
	bridge := maps.Clone(layer3)

	var interfaces []any
	for _, port := range wanted.Ports {
		interfaces = append(interfaces, ids[port])
	}

	bridge["interfaces"] = interfaces
	bridge["macaddress"] = wanted.MAC
	bridge["parameters"] = map[string]any{"stp": wanted.STP, "forward-delay": wanted.ForwardDelay}

	if wanted.MTU != 0 {
		bridge["mtu"] = wanted.MTU
	}

	if renderer == "" && config.Renderer == NetworkManager {
		renderer = "NetworkManager" // a device's own renderer does not go to the bridge by itself
	}

	if renderer != "" {
		bridge["renderer"] = renderer
	}

	if config.Renderer == NetworkManager && config.Metric != "" {
		// What NetworkManager would choose goes by the kind of link.
		bridge["networkmanager"] = map[string]any{"passthrough": map[string]any{
			"ipv4.route-metric": config.Metric, "ipv6.route-metric": config.Metric,
		}}
	}

	err := netplanIP(bridge, wanted.IP)
	if err != nil {
		return "", err
	}

	network := map[string]any{"version": 2, "bridges": map[string]any{wanted.Bridge: bridge}}

	ethernets := map[string]any{}
	for _, port := range added {
		device := map[string]any{}
		if renderer != "" {
			device["renderer"] = renderer
		}

		ethernets[port] = device
		network["ethernets"] = ethernets
	}

	text, err := encodeYAML(map[string]any{"network": network})

	return header + text, err
}

func netplanIP(bridge map[string]any, ip IP) error {
	if ip.Addresses != nil {
		for _, key := range []string{"addresses", "gateway4", "gateway6", "routes", "dhcp4-overrides", "dhcp6-overrides", "dhcp-identifier"} {
			delete(bridge, key)
		}

		bridge["dhcp4"], bridge["dhcp6"] = false, false
		bridge["addresses"] = texts(ip.Addresses)
	}

	for _, gateway := range []struct {
		value *string
		v6    bool
		key   string
		to    string
	}{{ip.Gateway4, false, "gateway4", "0.0.0.0/0"}, {ip.Gateway6, true, "gateway6", "::/0"}} {
		if gateway.value == nil {
			continue
		}

		delete(bridge, gateway.key)

		routes, _ := bridge["routes"].([]any)
		routes = slices.DeleteFunc(slices.Clone(routes), func(route any) bool { return netplanDefault(route, gateway.v6) })

		if *gateway.value != "" {
			// Not "default", which netplan before 0.103 does not know.
			routes = append(routes, map[string]any{"to": gateway.to, "via": *gateway.value})
		}

		setOrDelete(bridge, "routes", routes)
	}

	names, _ := bridge["nameservers"].(map[string]any)
	names = maps.Clone(names)

	if names == nil {
		names = map[string]any{}
	}

	if ip.Nameservers != nil {
		names["addresses"] = texts(ip.Nameservers)
	}

	if ip.Search != nil {
		names["search"] = texts(ip.Search)
	}

	if len(names) > 0 {
		bridge["nameservers"] = names
	}

	routes, _ := bridge["routes"].([]any)
	for _, route := range ip.Routes {
		routes = append(routes, netplanRoute(route))
	}

	setOrDelete(bridge, "routes", routes)

	return netplanIPv6(bridge, ip.IPv6)
}

func setOrDelete(bridge map[string]any, key string, list []any) {
	if len(list) == 0 {
		delete(bridge, key)
	} else {
		bridge[key] = list
	}
}

func netplanRoute(route Route) map[string]any {
	made := map[string]any{"to": route.To}

	if route.Via != "" {
		made["via"] = route.Via
	} else {
		made["scope"] = "link"
	}

	if route.Table != 0 {
		made["table"] = route.Table
	}

	if route.Metric != 0 {
		made["metric"] = route.Metric
	}

	if route.OnLink {
		made["on-link"] = true
	}

	return made
}

// netplanDefault tells of a default route of a family in the main table.
func netplanDefault(route any, v6 bool) bool {
	fields, ok := route.(map[string]any)
	if !ok || fields["table"] != nil {
		return false
	}

	switch to := fmt.Sprint(fields["to"]); to {
	case "default":
		return isV6(fmt.Sprint(fields["via"])) == v6
	case "0.0.0.0/0", "0/0":
		return !v6
	case "::/0":
		return v6
	}

	return false
}

func netplanIPv6(bridge map[string]any, mode string) error {
	switch mode {
	case "ra":
		bridge["accept-ra"] = true
	case "static":
		bridge["accept-ra"] = false
	case "off":
		bridge["accept-ra"], bridge["dhcp6"] = false, false
		bridge["link-local"] = []any{}

		delete(bridge, "gateway6")

		addresses, _ := bridge["addresses"].([]any)
		setOrDelete(bridge, "addresses", slices.DeleteFunc(slices.Clone(addresses), func(a any) bool { return isV6(fmt.Sprint(a)) }))

		routes, _ := bridge["routes"].([]any)
		setOrDelete(bridge, "routes", slices.DeleteFunc(slices.Clone(routes), func(route any) bool {
			fields, ok := route.(map[string]any)

			return ok && (isV6(fmt.Sprint(fields["to"])) || isV6(fmt.Sprint(fields["via"])))
		}))
	}

	return nil
}

func texts(list []string) []any {
	made := make([]any, 0, len(list))
	for _, text := range list {
		made = append(made, text)
	}

	return made
}

// netplanDropIns say to networkd what netplan has no words for.
func netplanDropIns(config Config, wanted Wanted, layer3 map[string]any) []Change {
	if config.Renderer != Networkd {
		return nil
	}

	var changes []Change

	if wanted.VLANFiltering {
		changes = append(changes, write(config, netdevFolder(wanted.Bridge)+"/thinkube.conf", header+"[Bridge]\nVLANFiltering=yes\n", 0o644))
	}

	// dhcp-identifier: mac goes by the MAC, which the bridge has.
	if wanted.IP.Addresses == nil && layer3["dhcp4"] == true && config.IAID != "" && layer3["dhcp-identifier"] != "mac" {
		_, err := strconv.ParseUint(config.IAID, 10, 32)
		if err == nil {
			changes = append(changes, write(config, networkFolder(wanted.Bridge)+"/thinkube.conf", header+"[DHCPv4]\nIAID="+config.IAID+"\n", 0o644))
		}
	}

	return changes
}
