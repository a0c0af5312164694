// SPDX-License-Identifier: Apache-2.0

package netconfig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/thinkube/infra/modules/internal/netstate"
)

// Judged is what Check looks at: the files that are to be written, and how the manager is to take them.
type Judged struct {
	Manager string
	Changes []Change
	// Expect is networkd's file for each link afterwards, as Expect has it.
	Expect map[string]string
	// Links are those that are to be configured, as they will be.
	Links []netstate.Link
	// Up are ifupdown's names of what is up afterwards.
	Up []string
}

// checkLimit bounds a manager's own program.
const checkLimit = 30 * time.Second

// Check judges files before they are written, beside the real ones: by the manager's own program where that can (netplan
// generate, nmcli --offline, ifquery), and by reading back what was rendered. Networkd has no such program; whether it would
// take our files for the links, and not others that sort before them, is worked out here (systemd.network(5)).
func Check(ctx context.Context, judged Judged) error { return check(ctx, "", judged) }

// check reads the files that stay below the root.
func check(ctx context.Context, root string, judged Judged) error {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()

	switch judged.Manager {
	case Netplan:
		return checkNetplan(ctx, root, judged)
	case Networkd:
		return errors.Join(readBack(judged.Changes), checkNetworkd(root, judged))
	case NetworkManager:
		return errors.Join(readBack(judged.Changes), checkProfiles(ctx, judged.Changes))
	case Ifupdown:
		return checkInterfaces(ctx, root, judged)
	}

	return nil
}

// after are the files of the folders as they will be.
func after(root, pattern string, changes []Change, folders ...string) (Config, error) {
	var all Config

	err := all.readAll(root, pattern, folders...)

	for _, change := range changes {
		if slices.Contains(folders, path.Dir(change.Path)) {
			all.put(change)
		}
	}

	return all, err
}

// put gives a file the content it has after a change.
func (c *Config) put(change Change) {
	c.Files = slices.DeleteFunc(c.Files, func(file File) bool { return file.Path == change.Path })

	if change.After != nil {
		c.Files = append(c.Files, *change.After)
	}
}

// writeBelow writes files below a folder.
func writeBelow(root string, files []File) error {
	for _, file := range files {
		path := filepath.Join(root, file.Path)

		err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(file.Content), 0o600))
		if err != nil {
			return err
		}
	}

	return nil
}

func checkNetplan(ctx context.Context, root string, judged Judged) error {
	all, err := after(root, "*.yaml", judged.Changes, netplanFolders...)
	if err != nil {
		return err
	}

	copied, err := os.MkdirTemp("", "thinkube-netplan-")
	if err != nil {
		return err
	}

	defer func() { _ = os.RemoveAll(copied) }()

	err = writeBelow(copied, all.Files)
	if err != nil {
		return err
	}

	out, err := exec.CommandContext(ctx, "netplan", "generate", "--root-dir", copied).CombinedOutput()
	if err != nil {
		return fmt.Errorf("netplan generate: %w: %s", err, strings.TrimSpace(strings.ReplaceAll(string(out), copied, "")))
	}

	return nil
}

// readBack finds what would be read as something else than was meant: a value with a line's end in it, for example.
func readBack(changes []Change) error {
	for _, change := range changes {
		if change.After == nil || !strings.HasPrefix(change.After.Content, header) {
			continue // as somebody else wrote it, and as it was in force
		}

		var lines []string

		for _, line := range strings.Split(change.After.Content, "\n") {
			if !strings.HasPrefix(line, "#") {
				lines = append(lines, line)
			}
		}

		again := strings.Split(renderINI(parseINI(strings.Join(lines, "\n"))), "\n")

		for i, line := range lines {
			if i >= len(again) || again[i] != line {
				key, _, _ := strings.Cut(line, "=") // what it is set to may be a secret

				return fmt.Errorf("file %q would not be read as it is meant: %q, line %d without comments", change.Path, key, i+1)
			}
		}
	}

	return nil
}

// checkNetworkd finds files that networkd would take for the links in place of those that it is to take.
func checkNetworkd(root string, judged Judged) error {
	files, err := networkdFiles(root, judged.Changes)
	if err != nil {
		return err
	}

	for _, link := range judged.Links {
		want := judged.Expect[link.Name]
		if want == "" {
			continue
		}

		for _, file := range files {
			if stem(file.Path) == stem(want) {
				break
			}

			taken := path.Ext(file.Path) == ".network" && networkdMatches(file.Content, link) ||
				path.Ext(file.Path) == ".netdev" && link.Kind == "bridge" && makes(file.Content, link.Name)
			if taken {
				return fmt.Errorf("networkd would take file %q for link %q, and not %q, which comes after it", file.Path, link.Name, want)
			}
		}
	}

	return nil
}

// stem is a file's name without what it ends in: a bridge has two of them.
func stem(file string) string { return strings.TrimSuffix(path.Base(file), path.Ext(file)) }

// networkdFiles are all of networkd's files in the order in which it looks at them: by name, whatever their folder. Those that
// are links to elsewhere count as what they lead to.
func networkdFiles(root string, changes []Change) ([]File, error) {
	found := map[string]File{}

	for _, folder := range slices.Backward(networkdFolders) {
		entries, err := os.ReadDir(root + folder)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}

		for _, entry := range entries {
			if ext := path.Ext(entry.Name()); ext != ".network" && ext != ".netdev" {
				continue
			}

			text, err := os.ReadFile(path.Join(root+folder, entry.Name()))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}

			found[entry.Name()] = File{Path: path.Join(folder, entry.Name()), Content: string(text)}
		}
	}

	for _, change := range changes {
		name := path.Base(change.Path)

		switch {
		case path.Dir(change.Path) != networkdFolders[0]:
		case change.After != nil:
			found[name] = *change.After
		case found[name].Path == change.Path:
			delete(found, name)
		}
	}

	var files []File
	for _, file := range found {
		files = append(files, file)
	}

	slices.SortFunc(files, func(a, b File) int { return strings.Compare(path.Base(a.Path), path.Base(b.Path)) })

	return files, nil
}

// networkdMatches tells whether a file is surely for a link. By what it cannot judge (drivers, paths, conditions on the host), it
// says no: the file may be for another.
func networkdMatches(content string, link netstate.Link) bool {
	sections := parseINI(content)
	matched := false

	for _, one := range sections {
		if one.name != "Match" {
			continue
		}

		for _, line := range one.lines {
			switch line.key {
			case "Name":
				matched = matchesName(strings.Fields(line.value), link.Name)
			case "MACAddress":
				matched = slices.ContainsFunc(strings.Fields(line.value), func(mac string) bool { return strings.EqualFold(mac, link.MAC) })
			default:
				return false
			}

			if !matched {
				return false
			}
		}
	}

	return matched
}

func matchesName(patterns []string, name string) bool {
	if len(patterns) == 0 {
		return false
	}

	// "!" turns the whole list around.
	first, not := strings.CutPrefix(patterns[0], "!")
	patterns = append([]string{first}, patterns[1:]...)
	fits := slices.ContainsFunc(patterns, func(pattern string) bool {
		matches, err := path.Match(pattern, name)

		return err == nil && matches
	})

	return fits != not
}

// makes tells whether a .netdev file is of that device.
func makes(content, name string) bool {
	sections := parseINI(content)

	return find(&sections, "NetDev").get("Name") == name
}

// lookProgram finds a program, also where the caller's PATH has no folders for administrators; empty when there is none.
func lookProgram(name string) string {
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		found, err := exec.LookPath(candidate)
		if err == nil {
			return found
		}
	}

	return ""
}

// checkProfiles has nmcli read each profile as NetworkManager will. Its versions before 1.40 cannot do that without the daemon.
func checkProfiles(ctx context.Context, changes []Change) error {
	program := lookProgram("nmcli")
	if program == "" {
		return nil // what NetworkManager refuses is found when the change is made, and undone
	}

	for _, change := range changes {
		if change.After == nil || path.Dir(change.Path) != keyfileFolders[0] {
			continue
		}

		sections := parseINI(change.After.Content)

		var said, refused bytes.Buffer

		run := exec.CommandContext(ctx, program, "--offline", "connection", "modify", "connection.id", find(&sections, "connection").get("id"))
		run.Stdin, run.Stdout, run.Stderr = strings.NewReader(change.After.Content), &said, &refused
		run.Env = append(os.Environ(), "LC_ALL=C.UTF-8")

		err := run.Run()

		var exit *exec.ExitError
		if errors.As(err, &exit) && strings.Contains(refused.String(), "--offline") {
			return nil
		}

		if err != nil {
			return fmt.Errorf("nmcli refuses file %q: %w: %s", change.Path, err, strings.TrimSpace(refused.String()))
		}

		err = survived(sections, parseINI(said.String()))
		if err != nil {
			return fmt.Errorf("file %q: %w", change.Path, err)
		}
	}

	return nil
}

// survived finds what NetworkManager dropped without a word, as it does with an address or a route that it cannot read. It gives
// them numbers of its own, and may write them in another way.
func survived(wrote, read []section) error {
	for _, family := range []string{"ipv4", "ipv6"} {
		for _, kind := range []string{"address", "route"} {
			had, has := find(&wrote, family).values(kind), find(&read, family).values(kind)
			if len(has) < len(had) {
				return fmt.Errorf("NetworkManager understands %d of %q", len(has), had)
			}
		}
	}

	return nil
}

// values are the different values of keys such as address1.
func (s section) values(stem string) []string {
	var found []string

	for _, line := range s.lines {
		if numbered(line.key, stem) && !slices.Contains(found, line.value) {
			found = append(found, line.value)
		}
	}

	return found
}

// checkInterfaces has ifquery read the files and look for what is to come up. An error in a file that others read in is but a
// line on its stderr.
func checkInterfaces(ctx context.Context, root string, judged Judged) error {
	program := lookProgram("ifquery")
	if program == "" {
		return nil // a host without it has another ifupdown, or none any more
	}

	var all Config

	err := all.read(root, interfacesFile)
	if err == nil {
		err = all.readAll(root, "*", interfacesExtra)
	}

	if err != nil {
		return err
	}

	copied, err := os.MkdirTemp("", "thinkube-ifupdown-")
	if err != nil {
		return err
	}

	defer func() { _ = os.RemoveAll(copied) }()

	changed := map[string]bool{}

	for _, change := range judged.Changes {
		if change.Path == interfacesFile || path.Dir(change.Path) == interfacesExtra {
			all.put(change)
			changed[copied+change.Path] = true
		}
	}

	for i := range all.Files {
		all.Files[i].Content = sourceBelow(copied, all.Files[i].Content)
	}

	err = writeBelow(copied, all.Files)
	if err != nil {
		return err
	}

	for _, name := range judged.Up {
		if strings.HasPrefix(name, "-") {
			continue
		}

		err := ifquery(ctx, program, copied, name, changed)
		if err != nil {
			return err
		}
	}

	return nil
}

// sourceBelow has a copied file read in the copies of others.
func sourceBelow(folder, content string) string {
	lines := strings.Split(content, "\n")

	for i, line := range lines {
		if words := strings.Fields(line); len(words) > 1 && strings.HasPrefix(words[0], "source") && strings.HasPrefix(words[1], "/etc/network/") {
			lines[i] = words[0] + " " + folder + strings.Join(words[1:], " ")
		}
	}

	return strings.Join(lines, "\n")
}

func ifquery(ctx context.Context, program, folder, name string, changed map[string]bool) error {
	var said, refused bytes.Buffer

	run := exec.CommandContext(ctx, program, "--interfaces="+folder+interfacesFile, name)
	run.Stdout, run.Stderr = &said, &refused
	run.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	err := run.Run()
	text := strings.ReplaceAll(strings.TrimSpace(refused.String()), folder, "")

	if err != nil {
		return fmt.Errorf("ifquery %s: %w: %s", name, err, text)
	}

	for _, line := range strings.Split(refused.String(), "\n") {
		for path := range changed {
			if strings.Contains(line, path+":") {
				return fmt.Errorf("ifquery %s: %s", name, text)
			}
		}
	}

	// What it cannot read as an address's prefix it leaves in it.
	for _, line := range strings.Split(said.String(), "\n") {
		if rest, ok := strings.CutPrefix(line, "netmask: "); ok && strings.Contains(rest, "/") {
			return fmt.Errorf("ifquery %s: %q is no address", name, rest)
		}
	}

	return nil
}
