// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// Difference is one thing in which a host differs from its snapshot.
type Difference struct {
	// Kind is file, link, address, route, rule, nft, iptables, socket, mount, unit, unit-file, user,
	// group, package or host.
	Kind string
	// Key names the thing within its kind: a path, a link's name, ...
	Key string
	// Before and After tell what it was and is; empty where it was or is not there.
	Before, After string
}

func (d Difference) String() string {
	switch {
	case d.Before == "":
		return fmt.Sprintf("%s %s: added (%s)", d.Kind, d.Key, d.After)
	case d.After == "":
		return fmt.Sprintf("%s %s: gone (%s)", d.Kind, d.Key, d.Before)
	default:
		return fmt.Sprintf("%s %s: was %s, is %s", d.Kind, d.Key, d.Before, d.After)
	}
}

// DefaultIgnore is what any running host changes by itself: patterns of "KIND KEY", one a line, with
// the reasons.
//
//go:embed ignore.list
var DefaultIgnore string

// IgnoreLXDDatabase are patterns for what an LXD daemon rewrites in its own files whenever it runs. Take
// the snapshot after the daemon's first start: that one makes keys and folders.
var IgnoreLXDDatabase = []string{"file /var/lib/lxd/database/**", "file /var/lib/lxd/database"}

// Diff tells in what the host differs from its snapshot, sorted; nothing when it doesn't. Besides what
// DefaultIgnore names, it leaves out what matches the patterns given: "KIND KEY" with * for anything
// but a slash, ** for anything.
func (h *Host) Diff(ctx context.Context, label string, ignore ...string) ([]Difference, error) {
	var found []Difference
	err := h.locked(func(h *Host) error {
		if !slices.Contains(h.Snapshots(), label) {
			return fmt.Errorf("host %q has no snapshot %q; it has %q", h.Name(), label, h.Snapshots())
		}
		files, err := h.diffFiles(label)
		if err != nil {
			return fmt.Errorf("comparing files of host %q: %w", h.Name(), err)
		}
		others, err := h.diffFacts(ctx, label)
		found = append(files, others...)
		return err
	})
	if err != nil {
		return nil, err
	}
	ignored, err := compileIgnore(append(strings.Split(DefaultIgnore, "\n"), ignore...))
	if err != nil {
		return nil, err
	}
	found = slices.DeleteFunc(found, func(d Difference) bool { return ignored.MatchString(d.Kind + " " + d.Key) })
	slices.SortFunc(found, func(a, b Difference) int {
		return strings.Compare(a.Kind+"\x00"+a.Key, b.Kind+"\x00"+b.Key)
	})
	return found, nil
}

// compileIgnore makes one expression of all patterns; empty lines and comments are none.
func compileIgnore(patterns []string) (*regexp.Regexp, error) {
	var alternatives []string
	for _, pattern := range patterns {
		pattern = strings.TrimSpace(pattern)
		if pattern == "" || pattern[0] == '#' {
			continue
		}
		if kind, key, ok := strings.Cut(pattern, " "); !ok || kind == "" || key == "" {
			return nil, fmt.Errorf("pattern %q: must be a kind, a space and a key", pattern)
		}
		quoted := regexp.QuoteMeta(pattern)
		quoted = strings.ReplaceAll(quoted, `\*\*`, `.*`)
		quoted = strings.ReplaceAll(quoted, `\*`, `[^/]*`)
		alternatives = append(alternatives, quoted)
	}
	return regexp.Compile(`^(?:` + strings.Join(alternatives, "|") + `)$`)
}

func (h *Host) diffFacts(ctx context.Context, label string) ([]Difference, error) {
	var before, after facts
	err := readJSON(filepath.Join(h.snapshotDir(label), "facts.json"), &before)
	wasRunning := !errors.Is(err, fs.ErrNotExist)
	if wasRunning && err != nil {
		return nil, err
	}
	if wasRunning != h.Running() {
		state := map[bool]string{true: "running", false: "stopped"}
		return []Difference{{"host", h.Name(), state[wasRunning], state[h.Running()]}}, nil
	}
	if !wasRunning {
		return nil, nil
	}
	if after, err = h.readFacts(ctx, before); err != nil {
		return nil, err
	}
	delete(before, sumKind)
	delete(after, sumKind)
	return compareFacts(before, after), nil
}

func compareFacts(before, after facts) []Difference {
	var found []Difference
	for kind, values := range before {
		for key, value := range values {
			if now := after[kind][key]; now != value {
				found = append(found, Difference{kind, key, value, now})
			}
		}
	}
	for kind, values := range after {
		for key, value := range values {
			if _, known := before[kind][key]; !known {
				found = append(found, Difference{kind, key, "", value})
			}
		}
	}
	return found
}

// diffFiles compares the snapshot with the host, each as the host's system sees it: the layer over the
// image, mounted read-only in a mount namespace that ends with the comparison.
func (h *Host) diffFiles(label string) ([]Difference, error) {
	var found []Difference
	errs := make(chan error)
	go func() {
		// Never unlocked: the thread, which has another mount namespace now, ends with the goroutine.
		runtime.LockOSThread()
		errs <- h.compareViews(label, &found)
	}()
	return found, <-errs
}

func (h *Host) compareViews(label string, found *[]Difference) error {
	if err := syscall.Unshare(syscall.CLONE_NEWNS | syscall.CLONE_FS); err != nil {
		return fmt.Errorf("leaving the mount namespace: %w", err)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	c := comparison{found: found}
	for i, layer := range []string{filepath.Join(h.snapshotDir(label), "layer"), h.upper()} {
		view := filepath.Join(h.dir(), fmt.Sprintf("view%d", i))
		if err := os.MkdirAll(view, 0o700); err != nil {
			return err
		}
		defer os.Remove(view)
		lowers := append([]string{layer}, h.lab.image.lowers(h.state.WithoutLXD)...)
		if err := syscall.Mount("overlay", view, "overlay", syscall.MS_RDONLY, "lowerdir="+strings.Join(lowers, ":")); err != nil {
			return fmt.Errorf("mounting a view of %q: %w", layer, err)
		}
		defer syscall.Unmount(view, syscall.MNT_DETACH)
		c.side[i] = side{view: view, layer: layer}
	}
	return c.directory("/")
}

// side is one of the two trees compared: as it is seen, and the layer of its own.
type side struct{ view, layer string }

type comparison struct {
	side  [2]side // before, after
	found *[]Difference
}

func (c comparison) report(path, before, after string) {
	*c.found = append(*c.found, Difference{"file", path, before, after})
}

// untouched says that neither layer has the folder, so both show the image's.
func (c comparison) untouched(path string) bool {
	for _, s := range c.side {
		if _, err := os.Lstat(s.layer + path); err == nil {
			return false
		}
	}
	return true
}

// directory compares the contents of a folder that both sides have.
func (c comparison) directory(path string) error {
	if c.untouched(path) {
		return nil
	}
	var names []string
	for _, s := range c.side {
		entries, err := os.ReadDir(s.view + path)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			names = append(names, entry.Name())
		}
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if err := c.entry(filepath.Join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

func (c comparison) entry(path string) error {
	var infos [2]fs.FileInfo
	var texts [2]string
	for i, s := range c.side {
		info, err := os.Lstat(s.view + path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if texts[i], err = describe(s.view+path, info); err != nil {
			return err
		}
		infos[i] = info
	}
	switch {
	case infos[0] == nil && infos[1] == nil:
		return nil // gone since the folder was read
	case infos[0] == nil:
		return c.whole(1, path)
	case infos[1] == nil:
		return c.whole(0, path)
	}
	if texts[0] != texts[1] {
		c.report(path, texts[0], texts[1])
	} else if infos[0].Mode().IsRegular() && !c.untouched(path) {
		same, err := sameContent(c.side[0].view+path, c.side[1].view+path)
		if err != nil {
			return err
		}
		if !same {
			c.report(path, texts[0], "the same with other content")
		}
	}
	if infos[0].IsDir() && infos[1].IsDir() {
		return c.directory(path)
	}
	return nil
}

// whole reports everything below a path that only one side has.
func (c comparison) whole(which int, path string) error {
	view := c.side[which].view
	return filepath.WalkDir(view+path, func(at string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		text, err := describe(at, info)
		if err != nil {
			return err
		}
		both := [2]string{}
		both[which] = text
		c.report(strings.TrimPrefix(at, view), both[0], both[1])
		return nil
	})
}

// describe says everything about a file but its content: type, mode, owner, target or size or device
// number, and extended attributes.
func describe(path string, info fs.FileInfo) (string, error) {
	stat := info.Sys().(*syscall.Stat_t)
	text := fmt.Sprintf("%s %d:%d", info.Mode(), stat.Uid, stat.Gid)
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		return text + " -> " + target, nil
	case info.Mode()&fs.ModeDevice != 0:
		text += fmt.Sprintf(" device %#x", stat.Rdev)
	case info.Mode().IsRegular():
		text += fmt.Sprintf(" %d bytes", info.Size())
	}
	attributes, err := readXattrs(path)
	return text + attributes, err
}

func readXattrs(path string) (string, error) {
	buffer := make([]byte, 4096)
	n, err := syscall.Listxattr(path, buffer)
	if errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.ENODATA) || errors.Is(err, syscall.ENOENT) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("listing extended attributes of %q: %w", path, err)
	}
	names := strings.Split(strings.TrimRight(string(buffer[:n]), "\x00"), "\x00")
	slices.Sort(names)
	text := ""
	for _, name := range names {
		if name == "" {
			continue
		}
		value := make([]byte, 4096)
		n, err := syscall.Getxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("reading extended attribute %q of %q: %w", name, path, err)
		}
		text += fmt.Sprintf(" %s=%x", name, value[:n])
	}
	return text, nil
}

func sameContent(a, b string) (bool, error) {
	first, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer first.Close()
	second, err := os.Open(b)
	if err != nil {
		return false, err
	}
	defer second.Close()
	var chunks [2][64 << 10]byte
	for {
		n, errA := io.ReadFull(first, chunks[0][:])
		m, errB := io.ReadFull(second, chunks[1][:])
		if n != m || !bytes.Equal(chunks[0][:n], chunks[1][:m]) {
			return false, nil
		}
		ended := func(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
		if ended(errA) && ended(errB) {
			return true, nil
		}
		if err := errors.Join(errA, errB); err != nil {
			return false, err
		}
	}
}
