// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// ErrNotUp says that there is no lab in the state folder.
var ErrNotUp = errors.New("the lab is not up")

// state is what the lab's folder says about it (lab.json). Whatever is created outside that folder is
// noted here before it is created, so that a killed run can be cleaned up by the next one.
type state struct {
	Name   string       `json:"name"`
	Subnet netip.Prefix `json:"subnet"`
	// Image is the key of the base image that the hosts' layers were made on. The lab stays on it even
	// when the recipe has changed since.
	Image  string `json:"image"`
	Bridge string `json:"bridge"`
	// Cgroups are the folders made for this lab, one in each hierarchy.
	Cgroups []string `json:"cgroups,omitempty"`
	// Sysctls are the values that the machine had before the lab raised them.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// ForwardRule says that a packet filter rule was added for traffic between the hosts.
	ForwardRule bool        `json:"forward_rule,omitempty"`
	OpsPassword string      `json:"ops_password"`
	Inventory   string      `json:"inventory,omitempty"`
	Hosts       []hostState `json:"hosts"`
}

type hostState struct {
	Name       string `json:"name"`
	Index      int    `json:"index"`
	WithoutLXD bool   `json:"without_lxd,omitempty"`
}

func (s *state) host(name string) *hostState {
	i := slices.IndexFunc(s.Hosts, func(h hostState) bool { return h.Name == name })
	if i < 0 {
		return nil
	}
	return &s.Hosts[i]
}

// readState returns ErrNotUp when the folder holds no lab.
func readState(dir string) (*state, error) {
	var s state
	err := readJSON(filepath.Join(dir, "lab.json"), &s)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotUp
	}
	if err != nil {
		return nil, fmt.Errorf("reading the lab's state: %w", err)
	}
	return &s, nil
}

func (l *Lab) saveState() error {
	return writeJSON(filepath.Join(l.cfg.Dir, "lab.json"), l.state)
}

func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// writeJSON replaces the file in one step, so that no reader and no later run sees half of it.
func writeJSON(path string, value any) error {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, append(data, '\n'), 0o600)
}

func writeFile(path string, data []byte, mode fs.FileMode) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, mode); err != nil {
		return err
	}
	// WriteFile keeps the mode of a left-over file and applies the umask to a new one.
	if err := os.Chmod(tmp, mode); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// lock serialises everything that changes a folder, across processes and within one. The file may be
// removed with its folder by whoever holds the lock; a waiter then finds that it has locked a file that
// is gone, and starts over.
func lock(dir string) (unlock func(), err error) { return lockAs(dir, syscall.LOCK_EX) }

// lockShared keeps out whoever changes the folder, and nobody else.
func lockShared(dir string) (unlock func(), err error) { return lockAs(dir, syscall.LOCK_SH) }

func lockAs(dir string, how int) (unlock func(), err error) {
	path := filepath.Join(dir, "lock")
	for {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the folder was removed in between
		}
		if err != nil {
			return nil, err
		}
		if err := flock(f, how); err != nil {
			f.Close()
			return nil, fmt.Errorf("locking %q: %w", path, err)
		}
		if sameFile(f, path) {
			return func() { f.Close() }, nil
		}
		f.Close()
	}
}

func flock(f *os.File, how int) error {
	for {
		if err := syscall.Flock(int(f.Fd()), how); err != syscall.EINTR {
			return err
		}
	}
}

func sameFile(f *os.File, path string) bool {
	held, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(held, there)
}
