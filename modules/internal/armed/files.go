// SPDX-License-Identifier: Apache-2.0

package armed

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/thinkube/infra/modules/internal/netconfig"
)

// writeFiles gives every file the content it has after the change, or had before it. It goes on after an error, since
// each file that is right is worth having, and may be repeated.
func writeFiles(changes []netconfig.Change, after bool) error {
	var errs []error

	for i, change := range changes {
		file := change.Before
		if after {
			file = change.After
		}

		err := writeFile(change.Path, file)
		if err != nil {
			errs = append(errs, fmt.Errorf("writing %q: %w", change.Path, err))
		}

		if after {
			faultPoint(fmt.Sprintf("file-%d", i+1))
		} else {
			faultPoint(fmt.Sprintf("restored-file-%d", i+1))
		}
	}

	return errors.Join(errs...)
}

func writeFile(path string, file *netconfig.File) error {
	if file == nil {
		err := os.Remove(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}

		if netconfig.HasOwnFolder(path) {
			_ = os.Remove(filepath.Dir(path)) // stays when it has others
		}

		err = syncFolder(filepath.Dir(path))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}

		return err
	}

	have, err := netconfig.ReadFile("", path)
	if err == nil && have != nil && *have == *file {
		return nil
	}

	err = os.MkdirAll(filepath.Dir(path), 0o755)
	if err != nil {
		return err
	}

	return replaceFile(path, []byte(file.Content), fs.FileMode(file.Mode), file.UID, file.GID)
}

// unitName is the unit that looks after an interrupted change when the host starts.
const unitName = "thinkube-net-bridge-boot.service"

const unitFolder = "/etc/systemd/system"

func unitText(program string) string {
	return `# Written by thinkube.infra.net_bridge for as long as a change of the network is not confirmed.
[Unit]
Description=Undo a change of the network that was not confirmed
DefaultDependencies=no
RequiresMountsFor=` + filepath.Dir(program) + ` /etc
After=systemd-remount-fs.service local-fs.target
Before=network-pre.target systemd-networkd.service NetworkManager.service networking.service shutdown.target
Wants=network-pre.target
Conflicts=shutdown.target

[Service]
Type=oneshot
ExecStart="` + program + `" service net_bridge boot

[Install]
WantedBy=sysinit.target
`
}

// bySystemd tells whether systemd runs the host (sd_booted(3)).
func bySystemd() bool {
	_, err := os.Stat("/run/systemd/system")

	return err == nil
}

func unitLink() string { return filepath.Join(unitFolder, "sysinit.target.wants", unitName) }

// enableUnit puts the unit in place. systemd need not be told: it matters at the next start alone.
func (s Store) enableUnit() error {
	if !bySystemd() {
		return nil
	}

	path := filepath.Join(unitFolder, unitName)

	err := replaceFile(path, []byte(unitText(s.Program())), 0o644, -1, -1)
	if err != nil {
		return err
	}

	err = os.MkdirAll(filepath.Dir(unitLink()), 0o755)
	if err == nil {
		err = os.Symlink("../"+unitName, unitLink())
	}

	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}

	return syncFolder(filepath.Dir(unitLink()))
}

func disableUnit() {
	_ = os.Remove(unitLink())
	_ = os.Remove(filepath.Join(unitFolder, unitName))
	_ = os.Remove(filepath.Dir(unitLink())) // unless others are in it
}

// keepProgram copies the running program to where it stays, on a file system that is there early.
func (s Store) keepProgram() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}

	if self == s.Program() {
		return nil
	}

	content, err := os.ReadFile(self)
	if err != nil {
		return err
	}

	err = replaceFile(s.Program(), content, 0o700, -1, -1)
	if err != nil {
		return err
	}

	return s.runs()
}

// runs tells whether the kept program can be started at all, before anything depends on that.
func (s Store) runs() error {
	err := unix.Access(s.Program(), unix.X_OK)
	if err == nil {
		return nil
	}

	var folder unix.Statfs_t
	if unix.Statfs(s.Dir, &folder) == nil && folder.Flags&unix.ST_NOEXEC != 0 {
		return fmt.Errorf("no program can be started in %q: its file system is mounted noexec; have it mounted without", s.Dir)
	}

	return fmt.Errorf("starting %q: %w", s.Program(), err)
}
