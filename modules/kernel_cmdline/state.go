// SPDX-License-Identifier: Apache-2.0

package kernelcmdline

import (
	"context"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/thinkube/infra/modules/internal/bootloader"
	"github.com/thinkube/infra/modules/internal/initramfs"
	"github.com/thinkube/infra/modules/internal/ownfile"
	"github.com/thinkube/infra/modules/internal/pci"
	"github.com/thinkube/infra/modules/internal/record"
	"github.com/thinkube/infra/modules/internal/uptime"
)

// State is what the host was started with, what it will be started with, and what this module did to that.
type State struct {
	Loader string `json:"loader,omitempty"` // whose files and tool are meant
	// Found are all boot loaders whose tools are there.
	Found     []string           `json:"found,omitempty"`
	Running   []string           `json:"running,omitempty"`
	CPUVendor string             `json:"cpu_vendor,omitempty"`
	Entries   []bootloader.Entry `json:"entries,omitempty"`
	// StartedSince tells that the host has started since the entries were made.
	StartedSince bool `json:"started_since,omitempty"`
	// Base is what kernel-install begins a line with where there is no file.
	Base []string `json:"base,omitempty"`
	// File is the file of additions, or the one that holds the line.
	File *ownfile.File `json:"file,omitempty"`
	// NoFolder tells that the file's folder does not exist.
	NoFolder bool `json:"no_folder,omitempty"`
	ReadOnly bool `json:"read_only,omitempty"`

	Original *Original `json:"original,omitempty"`
	Added    []string  `json:"added,omitempty"`
	Removed  []string  `json:"removed,omitempty"`
}

// Original is what was there before this module's first change.
type Original struct {
	Loader     string        `json:"loader"`
	File       *ownfile.File `json:"file,omitempty"`
	MadeFolder bool          `json:"made_folder,omitempty"`
	// Base is the line that a file was begun with where there was none.
	Base []string `json:"base,omitempty"`
}

type host struct {
	args Args
	// fault fails a write, and tool is in the place of the boot loaders' tools, in tests.
	fault func(path string) error
	tool  func(program string, args ...string) ([]byte, error)
}

func (h *host) store() record.Store {
	store := record.Open(h.args.root()+record.DefaultRoot, "kernel_cmdline")
	store.Fault = h.fault

	return store
}

func (h *host) reader() bootloader.Reader {
	reader := bootloader.Reader{Tree: initramfs.Tree{Root: h.args.root(), Tool: h.tool}}
	if h.args.root() == "" {
		reader.Sys = "/sys"
	}

	return reader
}

// What the records of parameters are called: the name, and a sign for what was done.
const (
	signAdded   = " +"
	signRemoved = " -"
)

// Read gets lines, file and records.
func (h *host) Read(ctx context.Context) (State, error) {
	var state State

	var err error

	state.Found, err = h.reader().Find(ctx)
	if err != nil {
		return state, err
	}

	running, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return state, err
	}

	state.Running = bootloader.Split(string(running))

	state.CPUVendor, err = pci.Reader{}.CPUVendor()
	if err != nil {
		return state, err
	}

	err = h.readRecords(&state)
	if err != nil {
		return state, err
	}

	state.Loader = pickLoader(h.args.BootLoader, state)
	if state.Loader == "" {
		return state, nil // what that means is the plan's to say
	}

	state.Entries, err = h.reader().Entries(ctx, state.Loader)
	if err == nil {
		err = h.readFile(&state)
	}

	if err == nil && state.Loader == bootloader.KernelInstall && state.File == nil {
		state.Base, err = h.reader().Base(state.Running)
	}

	if err == nil && h.args.root() == "" {
		state.StartedSince, err = uptime.StartedSince(uptime.StatFile, sources(state.Entries))
	}

	return state, err
}

// sources gives the files that entries are in; what a tool said has its name there, and counts as new.
func sources(entries []bootloader.Entry) []string {
	var paths []string
	for _, entry := range entries {
		paths = append(paths, entry.Source)
	}

	return paths
}

// pickLoader gives the loader that is meant; empty when it is not there.
func pickLoader(wanted string, state State) string {
	switch {
	case wanted == "auto" && state.Original != nil && slices.Contains(state.Found, state.Original.Loader):
		return state.Original.Loader
	case wanted == "auto" && len(state.Found) > 0:
		return state.Found[0]
	case slices.Contains(state.Found, wanted):
		return wanted
	}

	return ""
}

func (h *host) readFile(state *State) error {
	path := bootloader.DropIn(state.Loader, h.args.Name)
	if path == "" {
		path = bootloader.LineFile(state.Loader)
	}

	if path == "" {
		return nil
	}

	_, err := os.Stat(h.args.root() + filepath.Dir(path))
	state.NoFolder = errors.Is(err, fs.ErrNotExist)

	denied := unix.Access(h.args.root()+"/etc", unix.W_OK)
	state.ReadOnly = errors.Is(denied, unix.EROFS)

	state.File, err = ownfile.Read(h.args.root(), path)

	return err
}

func (h *host) readRecords(state *State) error {
	entries, err := os.ReadDir(h.args.root() + record.DefaultRoot + "/kernel_cmdline")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}

	if err != nil {
		return err
	}

	for _, entry := range entries {
		text, isRecord := strings.CutSuffix(entry.Name(), ".json")
		name, err := url.PathUnescape(text)

		if !isRecord || err != nil {
			continue
		}

		if parameter, ok := strings.CutPrefix(name, h.args.Name+signAdded); ok {
			state.Added = append(state.Added, parameter)
		}

		if parameter, ok := strings.CutPrefix(name, h.args.Name+signRemoved); ok {
			state.Removed = append(state.Removed, parameter)
		}
	}

	origin, err := record.ReadOrigin[Original](h.store(), h.args.Name)
	if origin.Recorded {
		state.Original = origin.Original
	}

	return err
}
