// SPDX-License-Identifier: Apache-2.0

package armed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/thinkube/infra/modules/internal/netconfig"
	"github.com/thinkube/infra/modules/internal/netprobe"
	"github.com/thinkube/infra/modules/internal/netstate"
)

const (
	// settleLimit is how long a network manager gets to take new files, and a DHCP server to answer.
	settleLimit = 20 * time.Second
	// probeLimit is how long the way to others may take to come back.
	probeLimit = 10 * time.Second
)

// Apply makes the change: files, kernel, manager, and then the proof. It runs in a process of its own; its error is why
// the guard undoes it.
func (s Store) Apply(ctx context.Context) error {
	change, err := s.Load()
	if err != nil {
		return err
	}

	if change == nil || change.Phase != Applying {
		return ErrOutrun
	}

	faultPoint("applying")

	err = writeFiles(change.Files, true)
	if err != nil {
		return err
	}

	announce(ctx, change.After, change.New)

	// The kernel first, in a few milliseconds; the manager then finds everything as its files say.
	err = netstate.Execute(ctx, change.After)
	if err != nil {
		return err
	}

	faultPoint("kernel")

	err = activate(ctx, change.New, settleTime(change.After))
	if err != nil {
		return err
	}

	faultPoint("manager")

	err = settleKernel(ctx, change.After, change.New)
	if err != nil {
		return err
	}

	faultPoint("settled")

	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()

	err = netprobe.Await(ctx, change.Probes, Uplink(change.After))
	if err != nil {
		return fmt.Errorf("what worked before does not work any more: %w", err)
	}

	faultPoint("probed")

	_, err = s.turn(change.ID, []Phase{Applying}, Applied, func(change *Change) { change.AppliedAt = Now() })

	return err
}

// Uplink is the link that has the addresses: the bridge, or the first port where there is none.
func Uplink(target netstate.Target) string {
	for _, link := range target.Links {
		if link.Name == target.Bridge {
			return link.Name
		}
	}

	for _, link := range target.Links {
		return link.Name
	}

	return target.Bridge
}

// Static is what of a target stays whatever a DHCP server or a router says later.
func Static(target netstate.Target) netstate.Target {
	static := target
	static.Addrs, static.Routes = nil, nil
	static.Lenient = true

	leased := map[string]bool{}

	for _, addr := range target.Addrs {
		if !addr.Dynamic() {
			static.Addrs = append(static.Addrs, addr)
		} else if ip, _, ok := strings.Cut(addr.Prefix, "/"); ok {
			leased[ip] = true
		}
	}

	for _, route := range target.Routes {
		if route.Proto != netstate.ProtoDHCP && route.Proto != netstate.ProtoRA && !leased[route.Src] {
			static.Routes = append(static.Routes, route)
		}
	}

	// The manager has its own idea of the settings of links, by the same files as ever.
	static.Links = nil

	for _, link := range target.Links {
		link.Sysctls = nil
		static.Links = append(static.Links, link)
	}

	return static
}

// settleTime is settleLimit, and what a spanning tree takes on top of that: its ports listen and learn first, each for the
// forward delay (IEEE 802.1D, 8.4), and until one of them forwards the bridge has no carrier, and no DHCP server.
func settleTime(target netstate.Target) time.Duration {
	bridge := target.Link(target.Bridge)
	if bridge == nil || bridge.Bridge == nil || !bridge.Bridge.STP {
		return settleLimit
	}

	return settleLimit + 2*time.Duration(bridge.Bridge.ForwardDelay)*10*time.Millisecond
}

// settleKernel puts right what the manager took away because no file has it, waits for what a DHCP server gives, and
// leaves no doubt: the target must be reached twice in a row.
func settleKernel(ctx context.Context, target netstate.Target, manager Manager) error {
	ctx, cancel := context.WithTimeout(ctx, settleTime(target))
	defer cancel()

	static := Static(target)
	quiet := 0

	for {
		current, err := netstate.Read()
		if err != nil {
			return err
		}

		ops := netstate.Ops(current, static)

		err = nil
		if len(ops) > 0 {
			quiet = 0
			err = netstate.Execute(ctx, static)
		} else if err = waiting(current, target, manager); err == nil {
			quiet++
		}

		if err == nil && quiet >= 2 {
			return nil
		}

		select {
		case <-ctx.Done():
			if err == nil {
				err = errors.New("the network does not come to rest")
			}

			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// waiting tells what is still to come: a carrier, a port that forwards, an address from a DHCP server.
func waiting(current netstate.Net, target netstate.Target, manager Manager) error {
	for _, want := range target.Links {
		have := current.Link(want.Name)

		switch {
		case have == nil:
			return fmt.Errorf("link %q is gone", want.Name)
		case want.Carrier && !have.Carrier:
			return fmt.Errorf("link %q has no carrier", want.Name)
		case have.Master == target.Bridge && want.Carrier && have.PortState != "forwarding":
			return fmt.Errorf("port %q is %s and does not forward yet", want.Name, have.PortState)
		}
	}

	if manager.Dynamic != "" && !hasDynamic(current, manager.Dynamic) {
		return fmt.Errorf("link %q has no address from a DHCP server", manager.Dynamic)
	}

	return nil
}

func hasDynamic(current netstate.Net, link string) bool {
	for _, addr := range current.AddrsOf(link) {
		if addr.Dynamic() && addr.Addr4() {
			return true
		}
	}

	return false
}

// restoreTries bounds how often undoing is tried before it is left at what could be done.
const restoreTries = 3

// Restore undoes a change: files, kernel, manager. The reason is kept for whoever asks.
func (s Store) Restore(ctx context.Context, id, reason string) error {
	// Undoing has no deadline but its own, and no interrupt.
	ctx = context.WithoutCancel(ctx)

	_ = os.Remove(s.reserve())

	change, err := s.turn(id, unfinished, Restoring, func(change *Change) {
		change.Failed = ""

		if change.Reason == "" {
			change.Reason = reason
		}
	})
	if errors.Is(err, ErrOutrun) {
		return nil // confirmed in the last moment
	}

	if err != nil {
		return errors.Join(errUnsaid, err, s.restoreUnsaid(ctx, id))
	}

	faultPoint("restoring")

	err = restoreAgain(ctx, change)

	faultPoint("restored")

	return s.restored(id, err)
}

// restored writes down how undoing ended. What could not be undone keeps everything that another try needs.
func (s Store) restored(id string, failed error) error {
	to := RolledBack
	if failed != nil {
		to = Stuck
	}

	_, err := s.turn(id, []Phase{Restoring}, to, func(change *Change) {
		if failed != nil {
			change.Failed = failed.Error()
		}
	})

	if failed == nil && err == nil {
		disableUnit()

		_ = os.Remove(s.Program())
	}

	return errors.Join(failed, err)
}

// errUnsaid tells that the disk takes no word of a change's being undone.
var errUnsaid = errors.New("writing down that the change is undone")

// restoreUnsaid undoes a change on a host whose disk takes no word of it, being full or read-only: the network matters
// more. Nobody else decides meanwhile, since the file still says what it said before.
func (s Store) restoreUnsaid(ctx context.Context, id string) error {
	return s.locked(func() error {
		change, err := s.Load()
		if err != nil || change == nil || change.ID != id || !slices.Contains(unfinished, change.Phase) {
			return err
		}

		return restoreAgain(ctx, change)
	})
}

func restoreAgain(ctx context.Context, change *Change) error {
	for try := 1; ; try++ {
		err := restore(ctx, change)
		if err == nil || try == restoreTries {
			return err
		}

		time.Sleep(time.Second)
	}
}

func restore(ctx context.Context, change *Change) error {
	err := writeFiles(change.Files, false)
	if err != nil {
		// The manager is not told: it would take the files of the change.
		return errors.Join(err, netstate.Execute(ctx, change.Before))
	}

	announce(ctx, change.Before, change.Old)

	errs := []error{netstate.Execute(ctx, change.Before)}

	faultPoint("restored-kernel")

	errs = append(errs, activate(ctx, change.Old, settleTime(change.Before)))

	faultPoint("restored-manager")

	errs = append(errs, settleKernel(ctx, change.Before, change.Old))

	if change.Resolv != nil {
		have, err := netconfig.ReadFile("", change.Resolv.Path)
		if err == nil && (have == nil || have.Content != change.Resolv.Content) {
			err = writeFile(change.Resolv.Path, change.Resolv)
		}

		errs = append(errs, err)
	}

	// What counts is how it ended: a manager's refusal half-way is no matter when everything is as it was.
	current, err := netstate.Read()
	if err == nil && len(netstate.Ops(current, Static(change.Before))) == 0 {
		return nil
	}

	return errors.Join(append(errs, err)...)
}

// Boot runs before the network when the host starts: an open change is undone, which now is a matter of files.
func (s Store) Boot(ctx context.Context) error {
	change, err := s.Load()
	if err != nil {
		return err // what cannot be read may have to be undone: at the next start again
	}

	if change == nil {
		disableUnit()

		return nil
	}

	switch {
	case change.Phase == Confirmed:
		return s.Finish(change.ID)
	case !change.Phase.Open():
		// Cut off before anything began, or after all was over.
		disableUnit()

		_ = os.Remove(s.Program())

		return nil
	case change.BootID == BootID():
		return nil
	}

	_ = os.Remove(s.reserve())

	// A disk that takes no word of it may still take the files.
	_, said := s.turn(change.ID, unfinished, Restoring, func(change *Change) {
		change.Failed = ""

		if change.Reason == "" {
			change.Reason = "the host was restarted before the change was confirmed"
		}
	})
	if errors.Is(said, ErrOutrun) {
		return said
	}

	err = errors.Join(said, writeFiles(change.Files, false))
	if change.Resolv != nil {
		err = errors.Join(err, writeFile(change.Resolv.Path, change.Resolv))
	}

	if err != nil {
		return err // at the next start again
	}

	if change.Old.Name == netconfig.Netplan {
		// Its generator has run already, on the files as they were.
		err = command(ctx, "netplan", "generate")
	}

	return s.restored(change.ID, err)
}

// Confirm makes an applied change stay. After it has returned, nothing undoes the change any more.
func (s Store) Confirm(id string) error {
	_, err := s.turn(id, []Phase{Applied}, Confirmed, nil)
	if err != nil {
		return err
	}

	faultPoint("confirmed")

	return s.Finish(id)
}

// Finish does what is left of a confirmed change: the record, and tidying. It can be cut anywhere and done again.
func (s Store) Finish(id string) error {
	err := s.locked(func() error {
		change, err := s.Load()
		if err != nil || change == nil || change.ID != id || change.Phase != Confirmed {
			return err
		}

		if len(change.Record) > 0 {
			err = replaceFile(s.recordPath(change.Bridge), append(change.Record, '\n'), 0o600, -1, -1)
		} else {
			err = os.Remove(s.recordPath(change.Bridge))
			if errors.Is(err, os.ErrNotExist) {
				err = nil
			}
		}

		if err != nil {
			return err
		}

		disableUnit()

		return os.Remove(s.path())
	})

	s.tidy()

	return err
}

// Undo undoes an open change at once, by its guard or, where none is left, by itself, and is back when that is done.
// ErrOutrun tells that there was nothing to undo any more: it was confirmed, or is gone.
func (s Store) Undo(ctx context.Context, id, reason string) error {
	guarded, err := s.Guarded()
	if err != nil {
		return err
	}

	if !guarded {
		return s.undoHere(ctx, id, reason)
	}

	_, err = s.turn(id, unfinished, Restoring, func(change *Change) { change.Reason = reason })
	if err != nil {
		return err
	}

	change, err := s.Await(ctx, id)
	if errors.Is(err, ErrUnguarded) {
		return s.undoHere(ctx, id, reason)
	}

	if err == nil && change.Failed != "" {
		return errors.New(change.Failed)
	}

	return err
}

// undoHere is Restore for somebody who must know whether it was undone.
func (s Store) undoHere(ctx context.Context, id, reason string) error {
	err := s.Restore(ctx, id, reason)
	if err != nil {
		return err
	}

	change, err := s.Load()
	if err == nil && (change == nil || change.ID != id || change.Phase != RolledBack) {
		err = ErrOutrun
	}

	return err
}

// ErrUnguarded tells that nobody is at work on a change that is not done.
var ErrUnguarded = errors.New("nobody is at work on the change any more")

// comeBack is how long a guard that was killed may take to be there again.
const comeBack = 3 * time.Second

// Await waits until the change waits for its confirmation, was undone, or could not be. ErrOutrun tells that it is done
// with: confirmed, or so that nobody has to.
func (s Store) Await(ctx context.Context, id string) (*Change, error) {
	watch, err := watchFolder(s.Dir)
	if err != nil {
		return nil, err
	}

	defer watch.close()

	seen := time.Now() // the guard

	for {
		change, err := s.Load()
		if err != nil {
			return nil, err
		}

		if change == nil || change.ID != id {
			return nil, ErrOutrun
		}

		if change.Phase == Confirmed {
			// Whoever confirmed it is tidying up, or was cut off there.
			err = s.Finish(id)
			if err != nil {
				return nil, err
			}

			return nil, ErrOutrun
		}

		if change.Phase == Applied && change.Timeout > 0 || !change.Phase.moving() {
			return change, nil
		}

		guarded, err := s.Guarded()
		if err != nil || ctx.Err() != nil {
			return change, errors.Join(err, ctx.Err())
		}

		if guarded {
			seen = time.Now()
		} else if time.Since(seen) > comeBack {
			return change, ErrUnguarded
		}

		watch.wait(ctx, time.Second)
	}
}
