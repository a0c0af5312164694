// SPDX-License-Identifier: Apache-2.0

// Package netconfig knows the files in which a host's network is written down, of whoever manages it, and rewrites them
// so that a bridge has what a port had. What somebody wrote about the port is carried over as it stands, not translated:
// options that this package never heard of stay in force.
//
// Read looks, Render is pure.
package netconfig

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/thinkube/infra/modules/internal/netstate"
)

// The managers that a network can be written down for.
const (
	Netplan        = "netplan"
	Networkd       = "networkd"
	NetworkManager = "networkmanager"
	Ifupdown       = "ifupdown"
)

// Managers lists them.
var Managers = []string{Netplan, Networkd, NetworkManager, Ifupdown}

// File is one file with what is to be restored of it.
type File struct {
	Path    string `json:"path"`
	Content string `json:"content"`
	Mode    uint32 `json:"mode"`
	UID     int    `json:"uid"`
	GID     int    `json:"gid"`
}

// Change is what becomes of one file. Before or After is nil where there is no such file.
type Change struct {
	Path   string `json:"path"`
	Before *File  `json:"before,omitempty"`
	After  *File  `json:"after,omitempty"`
}

// Config is how a link is configured.
type Config struct {
	Manager string `json:"manager"` // empty when nobody was found
	// Renderer is whom netplan writes for: networkd or NetworkManager.
	Renderer string `json:"renderer,omitempty"`
	// Applied is networkd's file or NetworkManager's profile that is in force for the link.
	Applied string `json:"applied,omitempty"`
	// Profile is NetworkManager's name (UUID) of what is in force.
	Profile string `json:"profile,omitempty"`
	// Metric is what NetworkManager gives the link's routes.
	Metric string `json:"metric,omitempty"`
	// IAID is part of what the host is known by to its DHCP server (RFC 4361). networkd derives it from the link's name.
	IAID string `json:"iaid,omitempty"`
	// MAC is the link's, by which a device may be found in a file.
	MAC string `json:"mac,omitempty"`
	// CloudInit tells that cloud-init is there, which may write its own idea of the network again.
	CloudInit bool   `json:"cloud_init,omitempty"`
	Files     []File `json:"files"`
	// Others are the managers that claim the link as well.
	Others []string `json:"others,omitempty"`
	// Ports are the further ports of the bridge, by name; the rest speaks of the first one.
	Ports map[string]Port `json:"ports,omitempty"`
}

// File finds a file.
func (c Config) File(path string) *File {
	for i := range c.Files {
		if c.Files[i].Path == path {
			return &c.Files[i]
		}
	}

	return nil
}

// Wanted is the bridge as it is to be written down.
type Wanted struct {
	Bridge        string
	Ports         []string
	MAC           string
	MTU           int // 0: as it is
	STP           bool
	ForwardDelay  int // seconds
	VLANFiltering bool
	IP            IP
}

// IP is what the bridge has of addresses and so on. What is nil is taken over from the port.
type IP struct {
	Addresses   []string
	Gateway4    *string // empty: none
	Gateway6    *string
	Nameservers []string
	Search      []string
	Routes      []Route
	IPv6        string // inherit, ra, static, off
}

// Route is a static route that the user gave.
type Route struct {
	To     string
	Via    string
	Table  int
	Metric int
	OnLink bool
}

// ErrUnsupported marks what a manager cannot say, or what would hit more than the port.
var ErrUnsupported = errors.New("not possible")

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsupported, fmt.Sprintf(format, args...))
}

// header stands on top of files that this package writes.
const header = "# Written by thinkube.infra.net_bridge, which keeps what was here before in /var/lib/thinkube/net_bridge.\n"

// Render gives all files that are to be written, changed or removed.
func Render(config Config, wanted Wanted) ([]Change, error) {
	var (
		changes []Change
		err     error
	)

	switch config.Manager {
	case Networkd:
		changes, err = renderNetworkd(config, wanted)
	case Netplan:
		changes, err = renderNetplan(config, wanted)
	case NetworkManager:
		changes, err = renderKeyfile(config, wanted)
	case Ifupdown:
		changes, err = renderIfupdown(config, wanted)
	default:
		return nil, unsupported("no manager of the port's network was found")
	}

	for i := range changes {
		changes[i].Before = config.File(changes[i].Path)
	}

	slices.SortFunc(changes, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })

	return changes, err
}

// write makes the change that gives a file a content; a file that is there keeps its owner and mode.
func write(config Config, path, content string, mode uint32) Change {
	file := File{Path: path, Content: content, Mode: mode}
	if have := config.File(path); have != nil {
		file.Mode, file.UID, file.GID = have.Mode, have.UID, have.GID
	}

	return Change{Path: path, After: &file}
}

// ReadFile reads a file with its owner and mode; nil when there is none. Root is prefixed to find it and is no part of its
// path.
func ReadFile(root, path string) (*File, error) {
	info, err := os.Lstat(root + path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}

	if err != nil {
		return nil, err
	}

	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%q is no regular file, and only those can be changed and restored", path)
	}

	content, err := os.ReadFile(root + path)
	if err != nil {
		return nil, err
	}

	file := &File{Path: path, Content: string(content), Mode: uint32(info.Mode().Perm())}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		file.UID, file.GID = int(owner.Uid), int(owner.Gid)
	}

	return file, nil
}

// readAll adds the files of a folder that match to the config. A file in an earlier folder hides one of its name in a
// later one, as systemd and netplan have it.
func (c *Config) readAll(root string, pattern string, folders ...string) error {
	seen := map[string]bool{}

	for _, folder := range folders {
		entries, err := os.ReadDir(root + folder)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}

		if err != nil {
			return err
		}

		for _, entry := range entries {
			matches, err := filepath.Match(pattern, entry.Name())
			if err != nil || !matches || seen[entry.Name()] || entry.IsDir() {
				continue
			}

			seen[entry.Name()] = true

			err = c.read(root, filepath.Join(folder, entry.Name()))
			if err != nil {
				return err
			}
		}
	}

	return nil
}

func (c *Config) read(root, path string) error {
	file, err := ReadFile(root, path)
	if err == nil && file != nil && c.File(path) == nil {
		c.Files = append(c.Files, *file)
	}

	return err
}

// Read finds out who manages a link and how. Asked names the manager, or is "auto". The bridge's own files are read as
// well, so that what would be written can be compared.
func Read(root string, link netstate.Link, bridge, asked string) (Config, error) {
	var found []Config

	for _, look := range []func(string, netstate.Link, string) (*Config, error){readNetplan, readNetworkd, readKeyfile, readIfupdown} {
		config, err := look(root, link, bridge)
		if err != nil {
			return Config{}, err
		}

		if config != nil {
			found = append(found, *config)
		}
	}

	config := choose(found, asked)
	config.MAC = link.MAC

	_, err := os.Stat(root + "/etc/cloud/cloud.cfg.d")
	config.CloudInit = err == nil

	if config.CloudInit && config.Manager != "" {
		err := config.read(root, cloudFile)
		if err != nil {
			return config, err
		}
	}

	slices.SortFunc(config.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })

	return config, nil
}

// choose takes the manager that was asked for, or the one there is. Netplan writes for another, which is found too and
// says the same.
func choose(found []Config, asked string) Config {
	var chosen Config

	for _, config := range found {
		switch {
		case asked != "auto" && config.Manager != asked:
		case chosen.Manager == "":
			chosen = config
		case chosen.Manager == Netplan && config.Manager == chosen.Renderer:
		default:
			chosen.Others = append(chosen.Others, config.Manager)
		}
	}

	return chosen
}

// Expect gives networkd's file for each link once it has taken what Render wrote.
func Expect(config Config, wanted Wanted) (map[string]string, error) {
	expect := map[string]string{}

	switch {
	case config.Manager == Networkd:
		prefix, err := networkdPrefix(config, wanted.Ports)
		if err != nil {
			return nil, err
		}

		expect[wanted.Bridge] = prefix + wanted.Bridge + ".network"

		for _, port := range wanted.Ports {
			expect[port] = prefix + wanted.Bridge + "-" + port + ".network"
		}
	case config.Manager == Netplan && config.Renderer == Networkd:
		expect[wanted.Bridge] = generated + wanted.Bridge + ".network"

		for _, port := range wanted.Ports {
			expect[port] = config.netplanFileOf(port)
		}
	}

	return expect, nil
}

// Profiles are those that NetworkManager is to activate for what Render wrote, in order.
func Profiles(config Config, wanted Wanted) []string {
	if config.Manager == Netplan && config.Renderer == NetworkManager {
		profiles := []string{"netplan-" + wanted.Bridge}
		for _, port := range wanted.Ports {
			profiles = append(profiles, config.netplanProfileOf(port))
		}

		return profiles
	}

	if config.Manager != NetworkManager {
		return nil
	}

	profiles := []string{profileID(wanted.Bridge)}
	for _, port := range wanted.Ports {
		profiles = append(profiles, profileID(wanted.Bridge+" "+port))
	}

	return profiles
}

// cloudFile tells cloud-init to keep its hands off the network (cloud-init's documentation, "Disable network
// configuration").
const cloudFile = "/etc/cloud/cloud.cfg.d/99-thinkube-network.cfg"

func (c Config) cloudChange() []Change {
	if !c.CloudInit {
		return nil
	}

	return []Change{write(c, cloudFile, header+"network: {config: disabled}\n", 0o644)}
}

// shellVars reads the KEY=VALUE lines of systemd's state files.
func shellVars(path string) map[string]string {
	values := map[string]string{}

	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}

	for _, line := range strings.Split(string(text), "\n") {
		key, value, ok := strings.Cut(line, "=")
		if ok && !strings.HasPrefix(key, "#") {
			values[key] = strings.Trim(value, `"`)
		}
	}

	return values
}

func netifState(root string, index int) map[string]string {
	return shellVars(filepath.Join(root, "/run/systemd/netif/links", strconv.Itoa(index)))
}
