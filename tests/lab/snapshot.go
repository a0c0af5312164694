// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

var validLabel = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$`)

// freezeTimeout bounds how long hosts may take to stand still.
const freezeTimeout = 20 * time.Second

// snapshotDir holds one host's copy: layer/ and, of a running host, facts.json.
func (h *Host) snapshotDir(label string) string {
	return filepath.Join(h.lab.cfg.Dir, "snapshots", label, h.Name())
}

// Snapshots are the labels that this host can be restored to.
func (h *Host) Snapshots() []string {
	found, _ := filepath.Glob(h.snapshotDir("*"))
	var labels []string
	for _, dir := range found {
		labels = append(labels, filepath.Base(filepath.Dir(dir)))
	}
	slices.Sort(labels)
	return labels
}

// Snapshot keeps a copy of the host as it is now; one of the same label is replaced. A running host
// stands still meanwhile, so that the copy is what its disk would be after a power cut.
func (h *Host) Snapshot(ctx context.Context, label string) error {
	return h.locked(func(h *Host) error { return h.lab.snapshot(ctx, []*Host{h}, label) })
}

// Snapshot keeps a copy of every host, all of the same moment.
func (l *Lab) Snapshot(ctx context.Context, label string) error {
	return l.locked(func() error { return l.snapshot(ctx, l.Hosts(), label) })
}

func (l *Lab) snapshot(ctx context.Context, hosts []*Host, label string) error {
	if !validLabel.MatchString(label) {
		return fmt.Errorf("label %q: must be 1 to 40 letters, digits, - and _", label)
	}
	if err := l.eachHost(ctx, hosts, func(h *Host, ctx context.Context) error { return h.noteFacts(ctx, label) }); err != nil {
		return err
	}
	for _, h := range hosts {
		defer thaw(h.cgroups())
	}
	err := l.eachHost(ctx, hosts, func(h *Host, ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
		defer cancel()
		return freeze(ctx, h.cgroups())
	})
	if err != nil {
		return err
	}
	return l.eachHost(ctx, hosts, func(h *Host, ctx context.Context) error { return h.copyLayer(ctx, label) })
}

func (h *Host) makingDir(label string) string { return h.snapshotDir(label) + ".making" }

// noteFacts begins a snapshot with what is not in files.
func (h *Host) noteFacts(ctx context.Context, label string) error {
	dir := h.makingDir(label)
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return err
	}
	if !h.Running() {
		return nil
	}
	facts, err := h.readFacts(ctx, nil)
	if err != nil {
		return err
	}
	return writeJSON(filepath.Join(dir, "facts.json"), facts)
}

func (h *Host) copyLayer(ctx context.Context, label string) error {
	making, final := h.makingDir(label), h.snapshotDir(label)
	if err := copyTree(ctx, h.upper(), filepath.Join(making, "layer")); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(final), os.Rename(making, final))
}

// copyTree copies a layer with everything that means something to overlayfs: extended attributes and
// device nodes (whiteouts) included.
func copyTree(ctx context.Context, from, to string) error {
	_, err := output(ctx, "cp", "--archive", "--reflink=auto", "--sparse=auto", "--no-target-directory", from, to)
	return err
}

// Restore puts the host back to a snapshot and boots it: as if the power had been cut at that moment.
func (h *Host) Restore(ctx context.Context, label string) error {
	return h.locked(func(h *Host) error { return h.lab.restore(ctx, []*Host{h}, label) })
}

// Restore puts every host back that the snapshot has, and boots it.
func (l *Lab) Restore(ctx context.Context, label string) error {
	return l.locked(func() error {
		var hosts []*Host
		for _, h := range l.Hosts() {
			if slices.Contains(h.Snapshots(), label) {
				hosts = append(hosts, h)
			}
		}
		if len(hosts) == 0 {
			return fmt.Errorf("no host has a snapshot %q", label)
		}
		return l.restore(ctx, hosts, label)
	})
}

func (l *Lab) restore(ctx context.Context, hosts []*Host, label string) error {
	for _, h := range hosts {
		if !slices.Contains(h.Snapshots(), label) {
			return fmt.Errorf("host %q has no snapshot %q; it has %q", h.Name(), label, h.Snapshots())
		}
	}
	err := l.eachHost(ctx, hosts, func(h *Host, ctx context.Context) error {
		return errors.Join(h.kill(ctx), h.swapLayer(ctx, label))
	})
	if err != nil {
		return err
	}
	return l.eachHost(ctx, hosts, (*Host).ensureUp)
}

// swapLayer makes the copy first: a cut leaves the old layer, or a finished copy beside no layer, which
// prepare then takes up.
func (h *Host) swapLayer(ctx context.Context, label string) error {
	restored := h.upper() + ".restored"
	making := restored + ".making"
	if err := errors.Join(os.RemoveAll(making), os.RemoveAll(restored)); err != nil {
		return err
	}
	if err := copyTree(ctx, filepath.Join(h.snapshotDir(label), "layer"), making); err != nil {
		return err
	}
	old := h.upper() + ".old"
	if err := errors.Join(os.RemoveAll(old), os.Rename(making, restored)); err != nil {
		return err
	}
	if err := os.Rename(h.upper(), old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errors.Join(os.Rename(restored, h.upper()), os.RemoveAll(old))
}

// finishRestore completes a restore that was cut between its renames.
func (h *Host) finishRestore() (bool, error) {
	if _, err := os.Stat(h.upper() + ".restored"); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return true, os.Rename(h.upper()+".restored", h.upper())
}
