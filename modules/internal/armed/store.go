// SPDX-License-Identifier: Apache-2.0

// Package armed changes a host's network so that it is either confirmed over a new connection or undone. It holds no
// opinion on what the change is: files and a target for the kernel, before and after.
//
// A change is one file, armed.json, which is replaced in one step at every turn:
//
//	staged -> armed -> applying -> applied -> confirmed -> (gone)
//	             \________\___________\____-> restoring -> rolled_back
//	                                              \-----> stuck -> restoring
//
// It is on the disk, with everything that was there before, before anything is touched. From "armed" on a guard runs: a
// process of its own, outside the session that asked for the change. The guard starts the applier, a second process, and
// undoes the change when that fails or dies, when the time is over, or when it finds itself started again in the middle.
// A unit that runs before the network does the same for the files after a restart of the host. Undoing is a target to
// reach, not a log to play back, so it can itself be cut anywhere and done again.
package armed

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thinkube/infra/modules/internal/netconfig"
	"github.com/thinkube/infra/modules/internal/netprobe"
	"github.com/thinkube/infra/modules/internal/netstate"
)

// DefaultDir is where the armed change and the records are.
const DefaultDir = "/var/lib/thinkube/net_bridge"

// Phase says how far a change is.
type Phase string

// The phases.
const (
	Staged     Phase = "staged"      // only thought about
	Armed      Phase = "armed"       // the guard runs or is about to; nothing has changed
	Applying   Phase = "applying"    // anything may be half done
	Applied    Phase = "applied"     // all done, and waits to be confirmed
	Confirmed  Phase = "confirmed"   // it stays; only tidying is left
	Restoring  Phase = "restoring"   // being undone
	Stuck      Phase = "stuck"       // undoing failed; kept with all that was there, for another try
	RolledBack Phase = "rolled_back" // undone; kept to tell why
)

// Open tells of phases in which the host is neither in the old nor surely in the new state.
func (p Phase) Open() bool { return p.moving() || p == Stuck }

// moving tells of phases in which somebody is at work, or should be.
func (p Phase) moving() bool {
	return p == Armed || p == Applying || p == Applied || p == Restoring
}

// Change is one change with all that it takes to make and to undo it.
type Change struct {
	ID      string `json:"id"`
	Bridge  string `json:"bridge"`
	Summary string `json:"summary"`
	Wanted  string `json:"wanted"` // stands for the arguments that it was made from
	Made    string `json:"made"`   // time of day, for people

	Phase  Phase  `json:"phase"`
	Reason string `json:"reason,omitempty"` // why it was undone
	Failed string `json:"failed,omitempty"` // what could not be undone

	BootID    string        `json:"boot_id"`
	Timeout   time.Duration `json:"timeout"`    // 0: nobody needs to confirm
	Deadline  int64         `json:"deadline"`   // on the clock of Now
	AppliedAt int64         `json:"applied_at"` // on the clock of Now

	Before netstate.Target    `json:"before"`
	After  netstate.Target    `json:"after"`
	Files  []netconfig.Change `json:"files"`
	Resolv *netconfig.File    `json:"resolv,omitempty"`
	Old    Manager            `json:"old"`
	New    Manager            `json:"new"`
	Probes []netprobe.Probe   `json:"probes"`
	Record json.RawMessage    `json:"record,omitempty"` // what confirming writes down; nothing: what is written down goes
}

// Manager is who must be told of new files, and how it looks when it has taken them.
type Manager struct {
	Name     string `json:"name"`
	Renderer string `json:"renderer,omitempty"`
	// Networkd's file for each link once it has taken them.
	Expect map[string]string `json:"expect,omitempty"`
	// NetworkManager's profiles to activate, in order.
	Profiles []string `json:"profiles,omitempty"`
	// Links that ifupdown has up.
	Up []string `json:"up,omitempty"`
	// Dynamic is the link that gets an IPv4 address from a DHCP server; empty for none.
	Dynamic string `json:"dynamic,omitempty"`
}

// Store is the folder of the one change that a host can have.
type Store struct{ Dir string }

func (s Store) path() string { return filepath.Join(s.Dir, "armed.json") }

// reserve is room on the disk that is given back before undoing: a disk that has become full must not stop it.
func (s Store) reserve() string { return filepath.Join(s.Dir, "reserve") }

// reserved is more than the files of a change need, in bytes. They are random: a file system that compresses would keep no
// room for zeros.
const reserved = 512 << 10

// Program is where the program is kept for as long as somebody may have to start it.
func (s Store) Program() string { return filepath.Join(s.Dir, "program") }

// Now is a clock that no one sets and that goes on while the host sleeps, in nanoseconds since it was started.
func Now() int64 {
	var now unix.Timespec

	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) // cannot fail for a clock that exists

	return now.Nano()
}

// BootID names this run of the host.
func BootID() string {
	text, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // without it, no change is ever taken for one of this run

	return strings.TrimSpace(string(text))
}

// Load reads the change; nil when there is none.
func (s Store) Load() (*Change, error) {
	text, err := os.ReadFile(s.path())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}

	var change Change

	if err == nil {
		err = json.Unmarshal(text, &change)
	}

	if err != nil {
		return nil, fmt.Errorf("reading the armed change: %w", err)
	}

	return &change, nil
}

// save replaces the file in one step, and is back when it is on the disk.
func (s Store) save(change *Change) error {
	text, err := json.MarshalIndent(change, "", " ")
	if err != nil {
		return err
	}

	err = os.MkdirAll(s.Dir, 0o700)
	if err != nil {
		return err
	}

	return replaceFile(s.path(), append(text, '\n'), 0o600, -1, -1)
}

// ErrOutrun tells that somebody else decided what becomes of the change.
var ErrOutrun = errors.New("the change is no longer what it was")

// locked runs something while nobody else decides about the change.
func (s Store) locked(do func() error) error {
	folder, err := s.openDir()
	if err != nil {
		return err
	}

	defer func() { _ = folder.Close() }()

	err = flock(folder, unix.LOCK_EX)
	if err != nil {
		return err
	}

	return do()
}

// openDir opens the folder, which itself is the lock: a file would have to be removed in the end, under the hands of whoever
// waits for it. Whoever tidies up may take the folder away just after it was made.
func (s Store) openDir() (*os.File, error) {
	for try := 1; ; try++ {
		err := os.MkdirAll(s.Dir, 0o700)
		if err != nil {
			return nil, err
		}

		folder, err := os.Open(s.Dir)
		if !errors.Is(err, fs.ErrNotExist) || try == openTries {
			return folder, err
		}
	}
}

const openTries = 10

func flock(file *os.File, how int) error {
	for {
		err := unix.Flock(int(file.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// turn takes the change from one of the phases to another, unless somebody was faster. Edit may set more.
func (s Store) turn(id string, from []Phase, to Phase, edit func(*Change)) (*Change, error) {
	var change *Change

	err := s.locked(func() error {
		var err error

		change, err = s.Load()
		if err != nil {
			return err
		}

		if change == nil || change.ID != id || !slices.Contains(from, change.Phase) {
			return ErrOutrun
		}

		change.Phase = to

		if edit != nil {
			edit(change)
		}

		return s.save(change)
	})

	return change, err
}

// Stage writes a change down. What is open already is not overwritten.
func (s Store) Stage(change *Change) error {
	return s.locked(func() error {
		have, err := s.Load()
		if err != nil {
			return err
		}

		if have != nil && (have.Phase.Open() || have.Phase == Confirmed) {
			return ErrOutrun
		}

		change.Phase, change.BootID = Staged, BootID()

		return s.save(change)
	})
}

// Forget removes what is left of a change that was undone, or was only staged. Others are left alone.
func (s Store) Forget(id string) error {
	err := s.locked(func() error {
		have, err := s.Load()
		if err != nil || have == nil || have.ID != id || have.Phase.Open() || have.Phase == Confirmed {
			return err
		}

		disableUnit() // of one that was cut off just before it was armed

		return os.Remove(s.path())
	})

	s.tidy()

	return err
}

// tidy removes the program and the folders, unless something else is in them.
func (s Store) tidy() {
	if change, err := s.Load(); err != nil || change != nil {
		return
	}

	_ = os.Remove(s.Program())
	_ = os.Remove(filepath.Join(s.Dir, "guard.lock"))
	_ = os.Remove(filepath.Join(s.Dir, "log"))
	_ = os.Remove(s.reserve())
	_ = os.Remove(s.Dir)
	_ = os.Remove(filepath.Dir(s.Dir))
}

func (s Store) recordPath(bridge string) string { return filepath.Join(s.Dir, bridge+".json") }

// Record is what a confirmed change left on the host: how it was before the first change, and what was made of it.
type Record struct {
	Ports    []string           `json:"ports"`
	Source   netconfig.Config   `json:"source"`   // how the port was configured
	Original netstate.Target    `json:"original"` // what the kernel had
	Files    []netconfig.Change `json:"files"`    // from the original to what was written
	Applied  netstate.Target    `json:"applied"`
	MAC      string             `json:"mac"`
}

// ReadRecord reads what was written down about a bridge; nil when it was not made here.
func (s Store) ReadRecord(bridge string) (*Record, error) {
	text, err := os.ReadFile(s.recordPath(bridge))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}

	var record Record

	if err == nil {
		err = json.Unmarshal(text, &record)
	}

	if err != nil {
		return nil, fmt.Errorf("reading the record of bridge %q: %w", bridge, err)
	}

	return &record, nil
}

// replaceFile writes beside the file and renames; it is back when both are on the disk. Owner -1 is ours.
func replaceFile(path string, content []byte, mode fs.FileMode, uid, gid int) error {
	file, err := os.CreateTemp(filepath.Dir(path), ".thinkube-")
	if err != nil {
		return err
	}

	defer func() { _ = os.Remove(file.Name()) }()

	_, err = file.Write(content)
	err = errors.Join(err, file.Chmod(mode))

	if uid >= 0 {
		err = errors.Join(err, file.Chown(uid, gid))
	}

	err = errors.Join(err, file.Sync(), file.Close())
	if err != nil {
		return err
	}

	err = os.Rename(file.Name(), path)
	if err != nil {
		return err
	}

	return syncFolder(filepath.Dir(path))
}

func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}

	return errors.Join(folder.Sync(), folder.Close())
}
