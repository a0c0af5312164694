// SPDX-License-Identifier: Apache-2.0

package netconfig

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/thinkube/infra/modules/internal/netstate"
)

const (
	interfacesFile  = "/etc/network/interfaces"
	interfacesExtra = "/etc/network/interfaces.d"
	ifState         = "/run/network/ifstate"
)

// readIfupdown looks into ifupdown's note of what is up, and its files.
func readIfupdown(root string, link netstate.Link, _ string) (*Config, error) {
	note, err := ReadFile(root, ifState)
	if err != nil || note == nil {
		return nil, err
	}

	if !slices.ContainsFunc(strings.Split(note.Content, "\n"), func(line string) bool {
		name, _, _ := strings.Cut(line, "=")

		return strings.TrimSpace(name) == link.Name
	}) {
		return nil, nil
	}

	config := &Config{Manager: Ifupdown, Applied: interfacesFile}

	err = config.read(root, interfacesFile)
	if err != nil {
		return nil, err
	}

	// Names as ifupdown takes them from `source-directory`, and from the `source .../*` that Debian has.
	return config, config.readAll(root, "*", interfacesExtra)
}

// renderIfupdown gives the paragraphs about the port to the bridge, and the port one of its own.
func renderIfupdown(config Config, wanted Wanted) ([]Change, error) {
	if len(wanted.Ports) != 1 {
		return nil, unsupported("with ifupdown a bridge can have one port, not %d", len(wanted.Ports))
	}

	port := wanted.Ports[0]

	var (
		changes []Change
		found   bool
	)

	for _, file := range config.Files {
		if file.Path != interfacesFile && path.Dir(file.Path) != interfacesExtra {
			continue
		}

		text, has, err := ifupdownFile(file, wanted, port, !found)
		if err != nil {
			return nil, err
		}

		if has {
			found = true
			changes = append(changes, write(config, file.Path, text, 0o644))
		}
	}

	if !found {
		return nil, unsupported("no file of ifupdown has a paragraph \"iface %s\"", port)
	}

	return append(changes, config.cloudChange()...), nil
}

// startsParagraph tells of the words that end the paragraph before (interfaces(5)).
func startsParagraph(word string) bool {
	return slices.Contains([]string{"iface", "mapping", "auto", "source", "source-directory", "no-auto-down", "no-scripts", "rename", "template"}, word) ||
		strings.HasPrefix(word, "allow-")
}

func ifupdownFile(file File, wanted Wanted, port string, first bool) (string, bool, error) {
	lines := strings.Split(file.Content, "\n")
	has := false

	var out []string

	for i := 0; i < len(lines); {
		words := strings.Fields(lines[i])

		switch {
		case len(words) > 1 && (words[0] == "auto" || strings.HasPrefix(words[0], "allow-")) && slices.Contains(words[1:], port):
			out = append(out, renameAuto(words, port, wanted.Bridge)...)
			has = true
			i++
		case len(words) >= 4 && words[0] == "iface" && words[1] == port:
			end := i + 1
			for end < len(lines) && !slices.ContainsFunc(strings.Fields(lines[end])[:min(1, len(strings.Fields(lines[end])))], startsParagraph) {
				end++
			}

			made, err := bridgeStanza(file.Path, lines[i:end], words, wanted, port, first)
			if err != nil {
				return "", false, err
			}

			out = append(out, made...)
			has, first = true, false
			i = end
		default:
			out = append(out, lines[i])
			i++
		}
	}

	return strings.Join(out, "\n"), has, nil
}

// renameAuto starts the bridge where the port was started; hotplug is for hardware.
func renameAuto(words []string, port, bridge string) []string {
	others := slices.DeleteFunc(slices.Clone(words), func(word string) bool { return word == port })

	made := []string{"auto " + bridge}
	if len(others) > 1 {
		made = append(made, strings.Join(others, " "))
	}

	return made
}

// bridgeStanza is a paragraph of the port's for the bridge. The first of them makes the bridge, with the tools that
// ifupdown itself depends on: bridge-utils may not be there.
func bridgeStanza(file string, lines, words []string, wanted Wanted, port string, first bool) ([]string, error) {
	family, method := words[2], words[3]
	if !slices.Contains([]string{"inet", "inet6"}, family) || !slices.Contains([]string{"static", "dhcp", "manual", "auto"}, method) {
		return nil, unsupported("file %q: %q is of a kind that a bridge cannot take over", file, strings.Join(words, " "))
	}

	var made []string

	if first {
		made = append(made, "iface "+port+" inet manual", "")
	}

	body := slices.Clone(lines[1:])

	for _, line := range body {
		for _, word := range strings.Fields(line)[:min(1, len(strings.Fields(line)))] {
			if strings.HasPrefix(word, "bridge") || strings.HasPrefix(word, "bond") || strings.HasPrefix(word, "vlan-") {
				return nil, unsupported("file %q: option %q makes the link part of another device", file, word)
			}
		}
	}

	// Commands name the link, as `up ip route add ... dev eth0` does.
	for i, line := range body {
		body[i] = renameWord(line, port, wanted.Bridge)
	}

	if method == "dhcp" && wanted.IP.Addresses == nil {
		return nil, unsupported("file %q: with ifupdown, a DHCP client cannot be moved to the bridge; give addresses", file)
	}

	v6 := family == "inet6"

	if wanted.IP.IPv6 == "off" && v6 {
		if !first {
			return made, nil
		}

		// The bridge itself is made in this paragraph.
		family, method, body, v6 = "inet", "manual", nil, false
	} else {
		method, body = ifupdownIP(method, body, v6, wanted.IP)
	}

	if v6 {
		method, body = ifupdownIPv6(method, body, wanted.IP.IPv6)
	}

	made = append(made, "iface "+wanted.Bridge+" "+family+" "+method)

	if first {
		made = append(made, bridgeLines(wanted, port)...)
	}

	return append(made, body...), nil
}

// renameWord replaces a word and keeps the line's spaces.
func renameWord(line, from, to string) string {
	fields := strings.SplitAfter(line, " ")
	for i, field := range fields {
		if strings.TrimSpace(field) == from {
			fields[i] = strings.Replace(field, from, to, 1)
		}
	}

	return strings.Join(fields, "")
}

func bridgeLines(wanted Wanted, port string) []string {
	parameters := fmt.Sprintf("stp_state %d forward_delay %d", map[bool]int{true: 1}[wanted.STP], wanted.ForwardDelay*100)
	if wanted.VLANFiltering {
		parameters += " vlan_filtering 1"
	}

	lines := []string{
		"    pre-up ip link show " + wanted.Bridge + " >/dev/null 2>&1 || ip link add name " + wanted.Bridge +
			" address " + wanted.MAC + " type bridge " + parameters,
		// The bridge alone answers on the wire. A kernel without IPv6 has no such file.
		"    pre-up echo 1 2>/dev/null >/proc/sys/net/ipv6/conf/" + port + "/disable_ipv6 || true",
		"    pre-up ip link set " + port + " master " + wanted.Bridge + " up",
	}

	// A kernel that nobody told otherwise heeds any router.
	if setting := map[string]string{"ra": "1 accept_ra", "static": "0 accept_ra", "off": "1 disable_ipv6"}[wanted.IP.IPv6]; setting != "" {
		value, key, _ := strings.Cut(setting, " ")
		lines = append(lines, "    pre-up echo "+value+" 2>/dev/null >/proc/sys/net/ipv6/conf/"+wanted.Bridge+"/"+key+" || true")
	}

	if wanted.MTU != 0 {
		lines = append(lines, "    pre-up ip link set "+port+" mtu "+strconv.Itoa(wanted.MTU),
			"    pre-up ip link set "+wanted.Bridge+" mtu "+strconv.Itoa(wanted.MTU))
	}

	return append(lines,
		"    post-down ip link set "+port+" nomaster || true",
		"    post-down echo 0 2>/dev/null >/proc/sys/net/ipv6/conf/"+port+"/disable_ipv6 || true",
		"    post-down ip link delete "+wanted.Bridge+" || true")
}

// ifupdownIPv6 takes out of a paragraph of IPv6 what says otherwise than the mode.
func ifupdownIPv6(method string, body []string, mode string) (string, []string) {
	if mode != "ra" && mode != "static" {
		return method, body
	}

	body = slices.DeleteFunc(body, func(line string) bool {
		words := strings.Fields(line)

		return len(words) > 0 && slices.Contains([]string{"accept_ra", "autoconf"}, words[0])
	})

	if mode == "static" && method == "auto" {
		method = "manual"
	}

	return method, body
}

// ifupdownIP replaces in a paragraph what the user gave.
func ifupdownIP(method string, body []string, v6 bool, ip IP) (string, []string) {
	drop := func(names ...string) {
		body = slices.DeleteFunc(body, func(line string) bool {
			words := strings.Fields(line)

			return len(words) > 0 && slices.Contains(names, words[0])
		})
	}

	var more []string

	if ip.Addresses != nil {
		drop("address", "netmask", "gateway", "broadcast", "network")

		// Commands that add what was meant for the old addresses.
		body = slices.DeleteFunc(body, func(line string) bool {
			words := strings.Fields(line)

			return len(words) > 2 && slices.Contains([]string{"up", "post-up", "down", "pre-down"}, words[0]) &&
				slices.Contains([]string{"ip", "/sbin/ip", "route", "/sbin/route"}, words[1])
		})

		var own []string

		for _, address := range ip.Addresses {
			if isV6(address) == v6 {
				own = append(own, address)
			}
		}

		method = "manual"

		for i, address := range own {
			if i == 0 {
				method = "static"
				more = append(more, "    address "+address)
			} else {
				more = append(more, "    up ip addr add "+address+" dev $IFACE")
			}
		}
	}

	gateway := ip.Gateway4
	if v6 {
		gateway = ip.Gateway6
	}

	if gateway != nil {
		drop("gateway")

		if *gateway != "" && method == "static" {
			more = append(more, "    gateway "+*gateway)
		}
	}

	if ip.Nameservers != nil {
		drop("dns-nameservers", "dns-nameserver")

		if len(ip.Nameservers) > 0 && !v6 {
			more = append(more, "    dns-nameservers "+strings.Join(ip.Nameservers, " "))
		}
	}

	if ip.Search != nil {
		drop("dns-search", "dns-domain")

		if len(ip.Search) > 0 && !v6 {
			more = append(more, "    dns-search "+strings.Join(ip.Search, " "))
		}
	}

	for _, route := range ip.Routes {
		if isV6(route.To) == v6 {
			more = append(more, "    up "+ipRoute(route))
		}
	}

	return method, append(more, body...)
}

func ipRoute(route Route) string {
	words := []string{"ip route add " + route.To}

	if prefix, err := netip.ParsePrefix(route.To); err == nil && prefix.Addr().Is6() {
		words[0] = "ip -6 route add " + route.To
	}

	if route.Via != "" {
		words = append(words, "via "+route.Via)
	}

	words = append(words, "dev $IFACE")

	if route.Table != 0 {
		words = append(words, "table "+strconv.Itoa(route.Table))
	}

	if route.Metric != 0 {
		words = append(words, "metric "+strconv.Itoa(route.Metric))
	}

	if route.OnLink {
		words = append(words, "onlink")
	}

	return strings.Join(words, " ")
}
