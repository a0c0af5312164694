// SPDX-License-Identifier: Apache-2.0

package lxdstoragepool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/canonical/lxd/shared/api"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/lxdapi"
	"github.com/thinkube/infra/modules/internal/lxdtwophase"
)

// State is a storage pool as it is now. What is only of use before it is made is read only then.
type State struct {
	lxdtwophase.State

	// Drivers are those that each member's server can use.
	Drivers map[string][]string `json:"drivers,omitempty"`
	// Free are the bytes that are left where each member's server keeps its loop files, for the members of which it is known.
	Free map[string]int64 `json:"free,omitempty"`
	// Source is what this host has where its source is to be.
	Source *Source `json:"source,omitempty"`
	// CanGrow: the server can make a loop file larger.
	CanGrow bool `json:"can_grow"`
}

type host struct {
	args   Args
	server *lxdapi.Server
	target lxdtwophase.Target
}

// Read gets the pool, and what it takes to make or enlarge it.
func (h *host) Read(context.Context) (State, error) {
	shared, err := h.target.Read()
	state := State{State: shared, CanGrow: h.server.Has("storage_pool_loop_resize")}

	if err != nil || h.args.State == "absent" {
		return state, err
	}

	err = h.readFree(&state)
	if err != nil || state.Object != nil && state.Object.Status == lxdtwophase.StatusCreated {
		return state, err
	}

	err = h.readDrivers(&state)
	if err != nil {
		return state, err
	}

	return state, h.readSource(&state)
}

// readDrivers asks every member what its server can use.
func (h *host) readDrivers(state *State) error {
	state.Drivers = map[string][]string{}

	for _, member := range state.Members {
		if !member.Online() {
			continue
		}

		target := ""
		if state.Clustered {
			target = member.Name
		}

		var info api.Server

		_, err := h.server.Get(lxdapi.On(target, "/1.0"), &info)
		if err != nil {
			return fmt.Errorf("asking member %q for its storage drivers: %w", member.Name, err)
		}

		drivers := []string{}
		for _, driver := range info.Environment.StorageSupportedDrivers {
			drivers = append(drivers, driver.Name)
		}

		slices.Sort(drivers)
		state.Drivers[member.Name] = drivers
	}

	return nil
}

// readFree looks how much space the loop files of each member could take. This host's is looked up directly; no API
// tells it of another member, but a pool of driver dir in the server's own folder lies on the same file system.
func (h *host) readFree(state *State) error {
	state.Free = map[string]int64{}

	var pools []api.StoragePool

	if state.Clustered {
		_, err := h.server.Get("/1.0/storage-pools?recursion=1", &pools)
		if err != nil {
			return fmt.Errorf("reading the other storage pools: %w", err)
		}
	}

	for _, member := range state.Members {
		if member.Name == state.Server {
			h.readFreeHere(state)

			continue
		}

		for _, pool := range pools {
			if pool.Driver == "dir" && pool.Status == lxdtwophase.StatusCreated && member.Online() && pool.Name != h.args.Name {
				err := h.readFreeOf(state, member.Name, pool.Name)
				if err != nil {
					return err
				}
			}
		}
	}

	return nil
}

func (h *host) readFreeHere(state *State) {
	var stat unix.Statfs_t

	// The daemon's folder is that of its socket. Elsewhere (a socket that was forwarded) nothing is known.
	err := unix.Statfs(filepath.Join(filepath.Dir(h.server.Socket), "disks"), &stat)
	if err == nil {
		state.Free[state.Server] = int64(stat.Bavail) * stat.Bsize
	}
}

func (h *host) readFreeOf(state *State, member, pool string) error {
	var (
		there     api.StoragePool
		resources api.ResourcesStoragePool
	)

	_, err := h.server.Get(lxdapi.On(member, lxdapi.Path("storage-pools", pool)), &there)
	if err != nil {
		return fmt.Errorf("reading storage pool %q on member %q: %w", pool, member, err)
	}

	if !strings.HasSuffix(there.Config["source"], "/storage-pools/"+pool) || there.Status != lxdtwophase.StatusCreated {
		return nil
	}

	_, err = h.server.Get(lxdapi.On(member, lxdapi.Path("storage-pools", pool, "resources")), &resources)
	if err != nil {
		return fmt.Errorf("reading the space of storage pool %q on member %q: %w", pool, member, err)
	}

	state.Free[member] = int64(resources.Space.Total) - int64(resources.Space.Used)

	return nil
}

// readSource looks at this host's source, unless the pool is made here already.
func (h *host) readSource(state *State) error {
	path := kind.Own(h.args.wanted, state.State, state.Server)["source"]

	if !filepath.IsAbs(path) || isLoop(path, h.args.Name) {
		return nil
	}

	if state.Object != nil && state.Object.Members[state.Server].Status == lxdtwophase.StatusCreated {
		return nil
	}

	source, err := lookAt(path)
	if errors.Is(err, fs.ErrPermission) {
		return ansible.Fail(lxdapi.CodePermission, "run the task with become: true", "looking whether source %q holds data: %w", path, err)
	}

	if err != nil {
		return fmt.Errorf("looking at source %q: %w", path, err)
	}

	state.Source = &source

	return nil
}

// Source is a file, folder or block device.
type Source struct {
	Path  string   `json:"path"`
	Kind  string   `json:"kind"`            // none, folder, device or file
	Holds []string `json:"holds,omitempty"` // what a folder or device holds; nil: nothing
	Empty bool     `json:"empty"`
}

// lookAt finds out what is at a path, without changing anything.
func lookAt(path string) (Source, error) {
	source := Source{Path: path, Kind: "file"}

	info, err := os.Stat(path)
	if os.IsNotExist(err) {
		source.Kind = "none"

		return source, nil
	}

	if err != nil {
		return source, err
	}

	switch mode := info.Mode(); {
	case info.IsDir():
		source.Kind = "folder"

		entries, err := os.ReadDir(path)
		for _, entry := range entries {
			source.Holds = append(source.Holds, entry.Name())
		}

		source.Empty = len(entries) == 0
		source.Holds = source.Holds[:min(3, len(source.Holds))]

		return source, err
	case mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0:
		source.Kind = "device"
		source.Holds, err = lookAtDevice(path)
		source.Empty = len(source.Holds) == 0
	}

	return source, err
}
