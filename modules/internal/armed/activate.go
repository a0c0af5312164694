// SPDX-License-Identifier: Apache-2.0

package armed

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/thinkube/infra/modules/internal/netconfig"
	"github.com/thinkube/infra/modules/internal/netstate"
)

// command runs a manager's program for as long as the context has, or the usual time; the error has what it said.
func command(ctx context.Context, name string, args ...string) error {
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc

		ctx, cancel = context.WithTimeout(ctx, settleLimit)
		defer cancel()
	}

	run := exec.CommandContext(ctx, name, args...)
	run.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	run.WaitDelay = time.Second

	out, err := run.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}

	return nil
}

// renderer is who acts: netplan has another do it.
func (m Manager) renderer() string {
	if m.Name == netconfig.Netplan {
		return m.Renderer
	}

	return m.Name
}

// announceLimit bounds what is only a courtesy to the manager.
const announceLimit = 5 * time.Second

// announce has networkd take its files before the kernel is changed, where that means to take a bridge away. Else it would
// try to put the port back into a bridge that is gone; and it stalls when addresses come and go under its hands.
func announce(ctx context.Context, target netstate.Target, manager Manager) {
	if target.Link(target.Bridge) != nil || manager.renderer() != netconfig.Networkd {
		return
	}

	// What goes wrong here goes wrong again afterwards, and is told then.
	_ = activate(ctx, manager, announceLimit)
}

// activate tells the manager of its new files and waits until it has taken them.
func activate(ctx context.Context, manager Manager, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()

	if manager.Name == netconfig.Netplan {
		err := command(ctx, "netplan", "generate")
		if err != nil {
			return err
		}
	}

	switch manager.renderer() {
	case netconfig.Networkd:
		return activateNetworkd(ctx, manager)
	case netconfig.NetworkManager:
		return activateProfiles(ctx, manager, limit)
	case netconfig.Ifupdown:
		return noteUp(manager.Up)
	}

	return nil
}

const (
	// patience is how long networkd gets before it is told by name about a link that it leaves alone.
	patience = 2 * time.Second
	// busyLimit is how long it gets to finish a link. Without a router that advertises itself it takes its time to give up
	// (RFC 4861, 6.3.7), and all that matters is in place; whether it is, is looked at afterwards in any case.
	busyLimit = 3 * time.Second
)

func activateNetworkd(ctx context.Context, manager Manager) error {
	err := command(ctx, "networkctl", "reload")
	if err != nil {
		return err
	}

	start := time.Now()

	for {
		link, busy, waits, err := networkdWaits(manager.Expect)
		if err != nil || waits == "" {
			return err
		}

		// networkd takes a bridge that was there before its file for ready only at the next word about it from the kernel
		// (networkd 252, netdev.c: netdev_set_ifindex), and its ports wait for that.
		netstate.Announce(slices.Sorted(maps.Keys(manager.Expect)))

		if busy && time.Since(start) > busyLimit {
			return nil
		}

		if link != "" && !busy && time.Since(start) > patience {
			// A link that has failed once is left alone by a reload.
			_ = command(ctx, "networkctl", "reconfigure", link)
			start = time.Now()
		}

		select {
		case <-ctx.Done():
			return errors.New(waits)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// networkdWaits tells what networkd has not taken yet, by its notes about the links, for which link, and whether it
// is busy with that.
func networkdWaits(expect map[string]string) (stuck string, busy bool, waits string, err error) {
	current, err := netstate.Read()
	if err != nil {
		return "", false, "", err
	}

	for _, name := range slices.Sorted(maps.Keys(expect)) {
		link := current.Link(name)
		if link == nil {
			return "", false, fmt.Sprintf("link %q is gone", name), nil
		}

		note, err := os.ReadFile(filepath.Join("/run/systemd/netif/links", strconv.Itoa(link.Index)))
		if err != nil {
			return "", false, fmt.Sprintf("networkd has not noticed link %q", name), nil
		}

		lines := strings.Split(string(note), "\n")

		switch {
		case !slices.Contains(lines, "NETWORK_FILE="+expect[name]):
			return name, false, fmt.Sprintf("networkd does not use file %q for link %q", expect[name], name), nil
		case slices.Contains(lines, "ADMIN_STATE=failed"):
			return name, false, fmt.Sprintf("networkd has failed to configure link %q", name), nil
		case !slices.Contains(lines, "ADMIN_STATE=configured"):
			return name, true, fmt.Sprintf("networkd has not finished configuring link %q", name), nil
		}
	}

	return "", false, "", nil
}

// profileWait is how long NetworkManager gets to activate a profile, in the time that settleTime gives it.
func profileWait(limit time.Duration) string {
	const spare = 5 * time.Second // for its answer, and the next profile

	return strconv.Itoa(int((limit - spare) / time.Second))
}

func activateProfiles(ctx context.Context, manager Manager, limit time.Duration) error {
	err := command(ctx, "nmcli", "connection", "reload")

	for _, profile := range manager.Profiles {
		if err == nil {
			err = command(ctx, "nmcli", "--wait", profileWait(limit), "connection", "up", profile)
		}
	}

	return err
}

// noteUp writes into ifupdown's notes which links are up, and with a "-" which are not any more, so that ifdown and a later
// restart of networking know of them. The program has no way to say "it is up already". It keeps one note for all and one
// for each link (ifupdown's main.c: update_state).
func noteUp(links []string) error {
	const note = "/run/network/ifstate"

	text, err := os.ReadFile(note)
	if err != nil {
		return err
	}

	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")

	for _, link := range links {
		name, down := strings.CutPrefix(link, "-")
		lines = slices.DeleteFunc(lines, func(line string) bool { return strings.HasPrefix(line, name+"=") })
		own := "\n"

		if !down {
			lines = append(lines, name+"="+name)
			own = name + "\n"
		}

		err = errors.Join(err, os.WriteFile(note+"."+name, []byte(own), 0o644))
	}

	return errors.Join(err, os.WriteFile(note, []byte(strings.Join(lines, "\n")+"\n"), 0o644))
}
