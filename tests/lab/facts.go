// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// facts are what a host is besides its files: kind -> key -> value.
type facts map[string]map[string]string

func (f facts) add(kind, key, value string) {
	if f[kind] == nil {
		f[kind] = map[string]string{}
	}
	// Two equal rules are not one rule.
	for n := 2; ; n++ {
		if _, taken := f[kind][key]; !taken {
			break
		}
		key = fmt.Sprintf("%s (%d)", strings.TrimSuffix(key, fmt.Sprintf(" (%d)", n-1)), n)
	}
	f[kind][key] = value
}

// factSources are what to ask a host, and how to read the answer.
var factSources = []struct {
	name, command string
	parse         func(facts, string) error
}{
	{"links", "ip -json -details link show", parseLinks},
	{"addresses", "ip -json address show", parseAddresses},
	{"routes", "ip -json route show table all", parseRoutes},
	{"rules", "ip -json rule show; ip -json -6 rule show", parseRules},
	{"nft", "nft --stateless list ruleset", parseNFT},
	{"iptables", "iptables-legacy-save; ip6tables-legacy-save", parseIptables},
	{"sockets", "ss -Hltun", parseSockets},
	{"mounts", "cat /proc/self/mounts", parseMounts},
	{"unit files", `echo "$sum"; [ "$sum" = "$known" ] || systemctl list-unit-files --plain --no-legend --no-pager`, parseUnitFiles},
	{"units", "systemctl list-units --all --plain --no-legend --no-pager --type=service,socket,timer,path", parseUnits},
	{"users", "getent passwd", parseNamed("user")},
	{"groups", "getent group", parseNamed("group")},
	{"packages", `dpkg-query -W -f '${Package}:${Architecture} ${Version} ${db:Status-Status}\n'`, parsePackages},
}

// unitFilesSum sums up all files that systemd makes the states of unit files from (systemd.unit(5)): to ask it takes a third of a
// second of its time, which is most of a comparison's. Those in /run are made anew at each start, and sessions' come and go.
const unitFilesSum = `{
	find /etc/systemd /usr/local/lib/systemd /usr/lib/systemd ! -type d -printf '%p %l %s %m %T@\n'
	find /run/systemd/system* /run/systemd/transient /run/systemd/generator* ! -type d ! -name '*.scope' -printf '%p %l %s %m\n'
} 2>/dev/null | sort | sha256sum | cut -d ' ' -f 1`

// sumKind is the kind under which that sum is kept. It is no fact by itself.
const sumKind = "sum of unit files"

// separator can't be in any answer.
const separator = "\x00\n"

// readFacts asks everything in one go. States of unit files are those of before where the files are.
func (h *Host) readFacts(ctx context.Context, before facts) (facts, error) {
	var script strings.Builder
	fmt.Fprintf(&script, "set -e\nknown='%s'\nsum=$(%s)\n", before[sumKind][""], unitFilesSum)
	for _, source := range factSources {
		fmt.Fprintf(&script, "%s\nprintf '\\000\\n'\n", source.command)
	}
	text, err := h.Run(ctx, script.String())
	if err != nil {
		return nil, fmt.Errorf("reading the host's facts: %w", err)
	}
	answers := strings.Split(text, separator)
	found := facts{}
	for i, source := range factSources {
		if err := source.parse(found, answers[i]); err != nil {
			return nil, fmt.Errorf("reading %s: %w", source.name, err)
		}
	}
	if found[sumKind][""] == before[sumKind][""] {
		found["unit-file"] = before["unit-file"]
	}
	return found, nil
}

func parseLinks(f facts, text string) error {
	var links []struct {
		Name    string   `json:"ifname"`
		Master  string   `json:"master"`
		MTU     int      `json:"mtu"`
		Address string   `json:"address"`
		Alias   string   `json:"ifalias"`
		Flags   []string `json:"flags"`
		Info    struct {
			Kind string         `json:"info_kind"`
			Data map[string]any `json:"info_data"`
		} `json:"linkinfo"`
	}
	if err := json.Unmarshal([]byte(text), &links); err != nil {
		return err
	}
	for _, l := range links {
		up := "down"
		if slices.Contains(l.Flags, "UP") {
			up = "up"
		}
		value := fmt.Sprintf("%s kind=%s mtu=%d address=%s master=%s alias=%s", up, l.Info.Kind, l.MTU, l.Address, l.Master, l.Alias)
		for _, key := range []string{"id", "protocol", "vlan_filtering", "stp_state", "forward_delay", "local", "remote", "port"} {
			if v, ok := l.Info.Data[key]; ok {
				value += fmt.Sprintf(" %s=%v", key, v)
			}
		}
		f.add("link", l.Name, value)
	}
	return nil
}

func parseAddresses(f facts, text string) error {
	var links []struct {
		Name  string `json:"ifname"`
		Addrs []struct {
			Local  string `json:"local"`
			Prefix int    `json:"prefixlen"`
			Scope  string `json:"scope"`
		} `json:"addr_info"`
	}
	if err := json.Unmarshal([]byte(text), &links); err != nil {
		return err
	}
	for _, l := range links {
		for _, a := range l.Addrs {
			f.add("address", fmt.Sprintf("%s %s/%d", l.Name, a.Local, a.Prefix), "scope "+a.Scope)
		}
	}
	return nil
}

// parseObjects reads lists of JSON objects, one list after the other, and gives each object as sorted
// words, without what changes by itself.
func parseObjects(text string, each func(map[string]any, string)) error {
	decoder := json.NewDecoder(strings.NewReader(text))
	for decoder.More() {
		var objects []map[string]any
		if err := decoder.Decode(&objects); err != nil {
			return err
		}
		for _, object := range objects {
			var words []string
			for _, key := range slices.Sorted(maps.Keys(object)) {
				if key != "flags" && key != "expires" && key != "used" && key != "age" {
					words = append(words, fmt.Sprintf("%s=%v", key, object[key]))
				}
			}
			each(object, strings.Join(words, " "))
		}
	}
	return nil
}

func parseRoutes(f facts, text string) error {
	return parseObjects(text, func(route map[string]any, words string) {
		f.add("route", fmt.Sprintf("%v dev %v", route["dst"], route["dev"]), words)
	})
}

func parseRules(f facts, text string) error {
	return parseObjects(text, func(_ map[string]any, words string) { f.add("rule", words, "present") })
}

// parseNFT gives each rule with the table and chain that it is in.
func parseNFT(f facts, text string) error {
	var inside []string
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
		case line == "}":
			if len(inside) == 0 {
				return fmt.Errorf("unexpected form: %q", text)
			}
			inside = inside[:len(inside)-1]
		case strings.HasSuffix(line, "{"):
			inside = append(inside, strings.TrimSuffix(line, " {"))
			f.add("nft", strings.Join(inside, ", "), "present")
		default:
			f.add("nft", strings.Join(append(slices.Clone(inside), line), ", "), "present")
		}
	}
	return nil
}

func parseIptables(f facts, text string) error {
	table := ""
	for _, line := range strings.Split(text, "\n") {
		switch {
		case line == "", line[0] == '#', line == "COMMIT":
		case line[0] == '*':
			table = line[1:]
		default:
			line, _, _ = strings.Cut(line, " [") // a chain's counters
			f.add("iptables", table+" "+line, "present")
		}
	}
	return nil
}

func parseSockets(f facts, text string) error {
	for _, line := range strings.Split(text, "\n") {
		if w := strings.Fields(line); len(w) >= 5 {
			f.add("socket", w[0]+" "+w[4], "open")
		}
	}
	return nil
}

func parseMounts(f facts, text string) error {
	for _, line := range strings.Split(text, "\n") {
		if w := strings.Fields(line); len(w) >= 3 {
			f.add("mount", w[1], w[0]+" type "+w[2])
		}
	}
	return nil
}

func parseUnitFiles(f facts, text string) error {
	sum, states, _ := strings.Cut(text, "\n")
	f.add(sumKind, "", sum)
	for _, line := range strings.Split(states, "\n") {
		if w := strings.Fields(line); len(w) >= 2 {
			f.add("unit-file", w[0], w[1])
		}
	}
	return nil
}

// parseUnits keeps what is active or has failed: what is inactive is listed or not by chance.
func parseUnits(f facts, text string) error {
	for _, line := range strings.Split(text, "\n") {
		if w := strings.Fields(line); len(w) >= 4 && w[2] != "inactive" {
			f.add("unit", w[0], w[2]+" ("+w[3]+")")
		}
	}
	return nil
}

func parseNamed(kind string) func(facts, string) error {
	return func(f facts, text string) error {
		for _, line := range strings.Split(text, "\n") {
			if name, rest, ok := strings.Cut(line, ":"); ok {
				f.add(kind, name, rest)
			}
		}
		return nil
	}
}

func parsePackages(f facts, text string) error {
	for _, line := range strings.Split(text, "\n") {
		if name, rest, ok := strings.Cut(line, " "); ok {
			f.add("package", name, rest)
		}
	}
	return nil
}
