// SPDX-License-Identifier: Apache-2.0

package gpuvfio

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/initramfs"
	"github.com/thinkube/infra/modules/internal/ownfile"
	"github.com/thinkube/infra/modules/internal/pci"
	"github.com/thinkube/infra/modules/internal/record"
	"github.com/thinkube/infra/modules/internal/uptime"
	"github.com/thinkube/infra/modules/internal/vfio"
)

// State is what matters to reserved cards: the devices now, and what the host will do with them when it starts.
type State struct {
	PCI     pci.System   `json:"pci"`
	Aliases []vfio.Alias `json:"aliases,omitempty"`
	// Missing are drivers for VFIO, by their modules with hyphens, that the kernel that runs does not have; where nothing moves
	// now, that no kernel has which is installed.
	Missing []string `json:"missing,omitempty"`
	Records []Record `json:"records,omitempty"` // in order of their addresses
	// Folders are those that this module made for its files.
	Folders []string `json:"folders,omitempty"`
	Boot    Boot     `json:"boot"`
	// Desktop tells that a display manager starts with the host.
	Desktop bool `json:"desktop,omitempty"`
}

// Record is what a function was before it was reserved.
type Record struct {
	Address  string `json:"address"`
	ID       string `json:"id"`
	Path     string `json:"path"` // where it is in the machine, as pci.Device has it
	Card     string `json:"card"` // address of the GPU that it goes with
	Driver   string `json:"driver,omitempty"`
	Module   string `json:"module,omitempty"` // of the driver; empty when that is part of the kernel
	Override string `json:"override,omitempty"`
}

// is tells whether a device is the one that the record is of: the same kind of card in the same place.
func (r Record) is(device *pci.Device) bool {
	return device != nil && device.ID == r.ID && device.Path == r.Path
}

// builtIn tells that the function's driver is there before udev is, or may be: which one a system gives to it that does not
// run is not known.
func (r Record) builtIn() bool { return r.Driver != "" && r.Module == "" }

// Boot is what the host does when it starts.
type Boot struct {
	Generator string            `json:"generator,omitempty"` // who makes the initramfs
	Files     []ownfile.File    `json:"files,omitempty"`     // those of this module's names
	Images    []initramfs.Image `json:"images,omitempty"`
	Systemd   bool              `json:"systemd,omitempty"`
	// NoFolders are the folders of this module's files that do not exist.
	NoFolders []string `json:"no_folders,omitempty"`
	// Leftovers are what a run that was killed has left beside the images.
	Leftovers []string `json:"leftovers,omitempty"`
	// ReadOnly are the folders that cannot be written.
	ReadOnly []string `json:"read_only,omitempty"`
	// StartedSince tells that the host has started since files and images are as they are.
	StartedSince bool `json:"started_since,omitempty"`
}

func (b *Boot) file(path string) *ownfile.File {
	for i := range b.Files {
		if b.Files[i].Path == path {
			return &b.Files[i]
		}
	}

	return nil
}

// record finds what a function was before.
func (s *State) record(address string) *Record {
	for i := range s.Records {
		if s.Records[i].Address == address {
			return &s.Records[i]
		}
	}

	return nil
}

type host struct {
	task *ansible.Task
	args Args
	root string   // of the files
	bus  vfio.Bus // the hardware; its root is that of sysfs and /proc
	// fault fails a write of a file, and tool is the program that makes an initramfs, in tests.
	fault func(path string) error
	tool  func(program string, args ...string) ([]byte, error)
}

func (h *host) store() record.Store {
	store := record.Open(h.root+record.DefaultRoot, "gpu_vfio")
	store.Fault = h.fault

	return store
}

func (h *host) tree() initramfs.Tree {
	return initramfs.Tree{Root: h.root, Fault: h.fault, Tool: h.tool}
}

func (h *host) reader() pci.Reader {
	return pci.Reader{Root: h.bus.Root, WithoutUsers: !h.args.live()}
}

// Read gets the devices, the records, and what is prepared for the next start.
func (h *host) Read(ctx context.Context) (State, error) {
	var state State

	var err error

	state.PCI, err = h.reader().Read()
	if err != nil {
		return state, err
	}

	if h.args.live() {
		vfio.ReadPersistence(ctx, &state.PCI)
	}

	state.Aliases, err = h.readAliases()
	if err != nil {
		return state, err
	}

	state.Missing, err = h.readMissing(state.Aliases)
	if err != nil {
		return state, err
	}

	state.Records, state.Folders, err = readRecords(h.store(), h.root)
	if err != nil {
		return state, err
	}

	state.Desktop, err = vfio.HasDesktop(h.root)
	if err != nil {
		return state, err
	}

	state.Boot, err = h.readBoot(ctx, state.Aliases)
	if err == nil && h.args.root() == "" {
		state.Boot.StartedSince, err = h.startedSince(state.Boot)
	}

	return state, err
}

// startedSince looks whether what reserves at a start was there before the last one.
func (h *host) startedSince(boot Boot) (bool, error) {
	var paths []string
	for _, file := range boot.Files {
		paths = append(paths, h.root+file.Path)
	}

	for _, image := range boot.Images {
		if _, has := image.Rules[filepath.Base(rulePath)]; has {
			paths = append(paths, h.root+image.Path)
		}
	}

	return uptime.StartedSince(h.bus.Root+uptime.StatFile, paths)
}

// readAliases reads the drivers of the kernel that runs, or below a root of those that are installed.
func (h *host) readAliases() ([]vfio.Alias, error) {
	if h.args.root() == "" {
		release, err := vfio.Release()
		if err != nil {
			return nil, err
		}

		return vfio.ReadAliases(h.root, release)
	}

	releases, err := filepath.Glob(h.root + "/lib/modules/*")
	if err != nil {
		return nil, err
	}

	var found []vfio.Alias

	for _, release := range releases {
		aliases, err := vfio.ReadAliases(h.root, filepath.Base(release))
		if err != nil {
			return nil, err
		}

		found = append(found, aliases...)
	}

	return found, nil
}

// readMissing looks which drivers the kernels do not have. One whose modules are not written down says nothing.
func (h *host) readMissing(aliases []vfio.Alias) ([]string, error) {
	releases, err := h.releases()
	if err != nil {
		return nil, err
	}

	var missing []string

	asked := false

	for _, release := range releases {
		lacking, known, err := vfio.Missing(h.tree(), release, moduleNames(h.args, aliases))
		if err != nil {
			return nil, err
		}

		if !known {
			continue
		}

		missing = slices.DeleteFunc(lacking, func(module string) bool {
			return module == iommuModule || asked && !slices.Contains(missing, module)
		})
		asked = true
	}

	slices.Sort(missing)

	return slices.Compact(missing), nil
}

// releases gives the kernels that have to have the drivers: the one that runs, or where nothing moves now one of all.
func (h *host) releases() ([]string, error) {
	if h.args.live() {
		release, err := vfio.Release()

		return []string{release}, err
	}

	folders, err := filepath.Glob(h.root + "/lib/modules/*")
	for i := range folders {
		folders[i] = filepath.Base(folders[i])
	}

	return folders, err
}

// folderRecord begins the names of the records of folders.
const folderRecord = "folder "

// readRecords gives the records of functions, and the folders that were made.
func readRecords(store record.Store, root string) ([]Record, []string, error) {
	entries, err := os.ReadDir(root + record.DefaultRoot + "/gpu_vfio")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}

	if err != nil {
		return nil, nil, err
	}

	var records []Record

	var folders []string

	for _, entry := range entries {
		text, isRecord := strings.CutSuffix(entry.Name(), ".json")
		name, err := url.PathUnescape(text)

		if !isRecord || err != nil {
			continue
		}

		if folder, isFolder := strings.CutPrefix(name, folderRecord); isFolder {
			folders = append(folders, folder)

			continue
		}

		var one Record

		_, err = store.Read(name, &one)
		if err != nil {
			return nil, nil, err
		}

		records = append(records, one)
	}

	slices.SortFunc(records, func(a, b Record) int { return pci.Compare(a.Address, b.Address) })
	slices.Sort(folders)

	return records, folders, nil
}

// moduleNames are the modules that an image is looked at for.
func moduleNames(args Args, aliases []vfio.Alias) []string {
	names := []string{vfio.DefaultDriver, iommuModule}

	for _, alias := range aliases {
		names = append(names, vfio.ModuleName(alias.Module))
	}

	if args.Driver != "auto" {
		names = append(names, vfio.ModuleName(args.Driver))
	}

	return names
}

func (h *host) readBoot(ctx context.Context, aliases []vfio.Alias) (Boot, error) {
	tree := h.tree()
	boot := Boot{Generator: tree.Generator()}

	for _, path := range ownPaths {
		file, err := ownfile.Read(h.root, path)
		if err != nil {
			return boot, err
		}

		if file != nil {
			boot.Files = append(boot.Files, *file)
		}

		folder := filepath.Dir(path)

		_, err = os.Lstat(h.root + folder)
		if errors.Is(err, fs.ErrNotExist) && !slices.Contains(boot.NoFolders, folder) {
			boot.NoFolders = append(boot.NoFolders, folder)
		}
	}

	info, errSystemd := os.Stat(h.root + "/etc/systemd/system")
	boot.Systemd = errSystemd == nil && info.IsDir()

	for _, folder := range []string{"/etc", "/etc/udev/rules.d", "/boot", record.DefaultRoot} {
		if errors.Is(unix.Access(h.root+folder, unix.W_OK), unix.EROFS) {
			boot.ReadOnly = append(boot.ReadOnly, folder)
		}
	}

	var err error

	boot.Leftovers, err = tree.Leftovers()
	if err != nil {
		return boot, err
	}

	boot.Images, err = tree.Images()
	if err != nil {
		return boot, err
	}

	for i := range boot.Images {
		err = h.look(ctx, &boot.Images[i], moduleNames(h.args, aliases))
		if ctx.Err() != nil {
			return boot, err
		}

		// It may be that of a kernel which nobody starts. Whether it matters is the plan's to say.
		if err != nil {
			boot.Images[i].Problem = err.Error()
		}
	}

	return boot, nil
}

// look reads what an image has of ours. Modules that its kernel has built in count as being there; those that it does not
// have at all are named.
func (h *host) look(ctx context.Context, image *initramfs.Image, modules []string) error {
	err := h.tree().Look(ctx, image, []string{filepath.Base(rulePath)}, modules)
	if err != nil {
		return err
	}

	for _, module := range modules {
		builtIn, err := h.tree().BuiltIn(image.Release, module)
		if err != nil {
			return fmt.Errorf("reading what is built into kernel %s: %w", image.Release, err)
		}

		if builtIn && !slices.Contains(image.Modules, module) {
			image.Modules = append(image.Modules, module)
		}
	}

	lacking, _, err := vfio.Missing(h.tree(), image.Release, modules)
	slices.Sort(lacking)
	image.Lacking = slices.Compact(lacking)

	return err
}
