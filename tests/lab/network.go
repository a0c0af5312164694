// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// maxLinkName is the kernel's limit (IFNAMSIZ less the terminating zero).
const maxLinkName = 15

// inotifyInstances is how many the hosts' systemds and daemons need: they all share root's allowance of
// the machine.
const inotifyInstances = 2048

// link is what `ip -json -details link` says that we look at.
type link struct {
	Name   string `json:"ifname"`
	Alias  string `json:"ifalias"`
	Master string `json:"master"`
	Kind   struct {
		Name string `json:"info_kind"`
	} `json:"linkinfo"`
}

func readLinks(ctx context.Context) ([]link, error) {
	text, err := output(ctx, "ip", "-json", "-details", "link", "show")
	if err != nil {
		return nil, err
	}
	var links []link
	return links, json.Unmarshal([]byte(text), &links)
}

// gateway is the machine's own address on the bridge.
func (s *state) gateway() netip.Addr { return s.Subnet.Masked().Addr().Next() }

// address of the n-th host: .11 for the first.
func (s *state) address(index int) netip.Addr {
	bytes := s.Subnet.Masked().Addr().As4()
	bytes[3] += byte(10 + index)
	return netip.AddrFrom4(bytes)
}

// linkName is the machine's end of a host's cable.
func (s *state) linkName(host string) string { return s.Name + "-" + host }

// mark is the alias that our links carry, so that nobody else's link of the same name is touched.
func (l *Lab) mark() string { return markPrefix + l.cfg.Dir }

const markPrefix = "thinkube-lab "

// checkFree refuses a subnet or a bridge name that something else uses.
func (l *Lab) checkFree(ctx context.Context) error {
	links, err := readLinks(ctx)
	if err != nil {
		return err
	}
	for _, each := range links {
		if each.Name == l.state.Bridge && each.Alias != l.mark() {
			return fmt.Errorf("link %q exists and is not this lab's: choose another lab name", each.Name)
		}
	}
	routes, err := output(ctx, "ip", "-json", "-4", "route", "show", "table", "all")
	if err != nil {
		return err
	}
	return checkSubnet(l.state.Subnet, l.state.Bridge, []byte(routes))
}

// checkSubnet looks for a route that overlaps: addresses show up there as well, as local routes.
func checkSubnet(subnet netip.Prefix, bridge string, routes []byte) error {
	var entries []struct{ Dst, Dev string }
	if err := json.Unmarshal(routes, &entries); err != nil {
		return fmt.Errorf("reading routes: %w", err)
	}
	for _, entry := range entries {
		taken, err := netip.ParsePrefix(entry.Dst)
		if addr, aerr := netip.ParseAddr(entry.Dst); aerr == nil {
			taken, err = addr.Prefix(addr.BitLen())
		}
		if err != nil || entry.Dev == bridge || taken.Bits() == 0 {
			continue
		}
		if taken.Overlaps(subnet) {
			return fmt.Errorf("subnet %s is taken: link %q has a route to %s; choose another subnet", subnet, entry.Dev, entry.Dst)
		}
	}
	return nil
}

func (l *Lab) ensureBridge(ctx context.Context) error {
	name := l.state.Bridge
	links, err := readLinks(ctx)
	if err != nil {
		return err
	}
	exists := false
	for _, each := range links {
		exists = exists || each.Name == name
	}
	if !exists {
		if _, err := output(ctx, "ip", "link", "add", name, "type", "bridge"); err != nil {
			return err
		}
	}
	want := netip.PrefixFrom(l.state.gateway(), l.state.Subnet.Bits()).String()
	if _, err := output(ctx, "ip", "link", "set", name, "alias", l.mark(), "up"); err != nil {
		return err
	}
	// "replace" leaves an address that is there as it is.
	if _, err := output(ctx, "ip", "address", "replace", want, "dev", name); err != nil {
		return err
	}
	return l.ensureForwarding(ctx)
}

// forwardRule lets the hosts talk to each other where bridged traffic passes the machine's packet filter
// and that drops what it doesn't know, as it does beside Docker.
func (l *Lab) forwardRule(verb string) []string {
	return []string{"-w", verb, "FORWARD", "-i", l.state.Bridge, "-o", l.state.Bridge,
		"-m", "comment", "--comment", "thinkube-lab-" + l.state.Name, "-j", "ACCEPT"}
}

func (l *Lab) ensureForwarding(ctx context.Context) error {
	filtered, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-iptables")
	if err != nil || strings.TrimSpace(string(filtered)) != "1" {
		return nil
	}
	policy, err := output(ctx, "iptables", "-w", "-S", "FORWARD")
	if err != nil || !strings.HasPrefix(policy, "-P FORWARD DROP") {
		return err
	}
	if _, err := output(ctx, "iptables", l.forwardRule("-C")...); err == nil {
		return nil
	}
	l.state.ForwardRule = true
	if err := l.saveState(); err != nil {
		return err
	}
	_, err = output(ctx, "iptables", l.forwardRule("-I")...)
	return err
}

// removeNetwork removes what the lab made outside of the hosts' namespaces.
func (l *Lab) removeNetwork(ctx context.Context) error {
	if l.state.ForwardRule {
		if _, err := output(ctx, "iptables", l.forwardRule("-C")...); err == nil {
			if _, err := output(ctx, "iptables", l.forwardRule("-D")...); err != nil {
				return err
			}
		}
	}
	links, err := readLinks(ctx)
	if err != nil {
		return err
	}
	for _, each := range links {
		// A kill between creating and marking leaves our link without a mark; that its name was free
		// before was checked.
		ours := each.Alias == l.mark() || each.Alias == ""
		if each.Name == l.state.Bridge && each.Kind.Name == "bridge" && ours ||
			each.Kind.Name == "veth" && each.Alias == l.mark() {
			if err := deleteLink(ctx, each.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// deleteLink deletes a link that may go by itself meanwhile, with the namespace its other end is in.
func deleteLink(ctx context.Context, name string) error {
	_, err := output(ctx, "ip", "link", "delete", name)
	if _, gone := os.Stat(filepath.Join("/sys/class/net", name)); errors.Is(gone, fs.ErrNotExist) {
		return nil
	}
	return err
}

// plugIn gives the namespace of a process its network card, with the other end on the bridge.
func (l *Lab) plugIn(ctx context.Context, h hostState, pid int) error {
	name := l.state.linkName(h.Name)
	addr := l.state.address(h.Index).As4()
	mac := fmt.Sprintf("02:1a:%02x:%02x:%02x:%02x", addr[0], addr[1], addr[2], addr[3])
	// The end of a predecessor may still be there while the kernel takes its namespace apart.
	if _, err := os.Stat(filepath.Join("/sys/class/net", name)); err == nil {
		alias, _ := os.ReadFile(filepath.Join("/sys/class/net", name, "ifalias"))
		if strings.TrimSpace(string(alias)) != l.mark() {
			return fmt.Errorf("link %q exists and is not this lab's: choose another lab name", name)
		}
		if err := deleteLink(ctx, name); err != nil {
			return err
		}
	}
	if _, err := output(ctx, "ip", "link", "add", name, "master", l.state.Bridge, "type", "veth",
		"peer", "name", "eth0", "address", mac, "netns", strconv.Itoa(pid)); err != nil {
		return err
	}
	_, err := output(ctx, "ip", "link", "set", name, "alias", l.mark(), "up")
	return err
}

// otherLabs are the folders of labs beside this one, by the marks on their bridges.
func (l *Lab) otherLabs(ctx context.Context) ([]string, error) {
	links, err := readLinks(ctx)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, each := range links {
		if dir, ok := strings.CutPrefix(each.Alias, markPrefix); ok && each.Kind.Name == "bridge" && dir != l.cfg.Dir {
			dirs = append(dirs, dir)
		}
	}
	return dirs, nil
}

// raiseSysctls raises what many systemds on one kernel run short of, and notes the old value. Several
// labs share it: each knows the first value, and the last one to go restores it.
func (l *Lab) raiseSysctls(ctx context.Context) error {
	const key = "fs/inotify/max_user_instances"
	path := "/proc/sys/" + key
	have, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	old := strings.TrimSpace(string(have))
	if _, noted := l.state.Sysctls[key]; !noted {
		others, err := l.otherLabs(ctx)
		if err != nil {
			return err
		}
		for _, dir := range others {
			if other, err := readState(dir); err == nil {
				old = first(other.Sysctls[key], old)
			}
		}
		l.state.Sysctls = map[string]string{key: old}
		if err := l.saveState(); err != nil {
			return err
		}
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(have))); err != nil || n >= inotifyInstances {
		return err
	}
	return os.WriteFile(path, []byte(strconv.Itoa(inotifyInstances)), 0o644)
}

func (l *Lab) restoreSysctls(ctx context.Context) error {
	others, err := l.otherLabs(ctx)
	if err != nil || len(others) > 0 {
		return err
	}
	var errs []error
	for key, value := range l.state.Sysctls {
		have, err := os.ReadFile("/proc/sys/" + key)
		if err == nil && strings.TrimSpace(string(have)) != value {
			err = os.WriteFile("/proc/sys/"+key, []byte(value), 0o644)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
