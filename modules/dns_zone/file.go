// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/records"
)

// readLocal asks the server's own tools about the zone, and reads its file where the task manages that.
func (h *host) readLocal(ctx context.Context) (State, error) {
	state := State{Zone: h.args.zone}

	known, dynamic, err := h.backend.status(ctx)
	if err != nil {
		return state, fmt.Errorf("asking the server for zone %s: %w", records.Display(h.args.zone), err)
	}

	origin, err := h.store.Read(h.args.zone, new(made))
	if err != nil {
		return state, err
	}

	state.Known, state.Made = &known, origin && known

	switch {
	case !known:
		state.File, err = h.readFile()

		return state, err
	case h.args.Mode == "update":
		read, err := h.readZone(ctx)
		read.Known, read.Made = state.Known, state.Made

		return read, err
	}

	file, err := h.readFile()
	if err == nil && file == nil && h.args.removes() {
		return state, nil
	}

	if err == nil && file == nil {
		err = ansible.Fail(CodeFile, "compare the option file with the server's configuration", "zone file %q does not exist, and the server has the zone", h.args.File)
	}

	if err == nil {
		err = h.checkStatic(ctx, dynamic, *file)
	}

	if err == nil {
		state.SOA, state.Sets = file.SOA, file.Sets
	}

	return state, err
}

// readFile reads the zone's file; nil when there is none.
func (h *host) readFile() (*File, error) {
	text, err := os.ReadFile(string(h.args.File))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}

	file := &File{Path: string(h.args.File)}

	if err == nil {
		file.SOA, file.Sets, err = records.ParseFile(string(text), h.args.zone)
	}

	if err != nil {
		return nil, ansible.Fail(CodeFile, "", "zone file %q: %w", h.args.File, err)
	}

	return file, nil
}

// checkStatic refuses a zone that the server changes by itself: what is in its file is not the zone, or not for long.
func (h *host) checkStatic(ctx context.Context, dynamic bool, file File) error {
	hint := "use mode: update for it"

	if dynamic {
		return ansible.Fail(CodeDynamic, hint, "zone %s takes dynamic updates, so its file is the server's", records.Display(h.args.zone))
	}

	if _, err := os.Lstat(file.Path + ".jnl"); err == nil {
		return ansible.Fail(CodeDynamic, hint, "zone file %q has a journal, so it is not the whole zone", file.Path)
	}

	serial, err := h.askSerial(ctx)
	if err == nil && records.SerialAfter(serial, file.SOA.Serial) {
		err = ansible.Fail(CodeDynamic, hint, "the server has serial %d of zone %s, and its file %q only %d", serial, records.Display(h.args.zone), file.Path, file.SOA.Serial)
	}

	return err
}

// askSerial asks the server which version of the zone it serves.
func (h *host) askSerial(ctx context.Context) (uint32, error) {
	msg := new(dns.Msg)
	msg.SetQuestion(h.args.zone, dns.TypeSOA)
	msg.RecursionDesired = false

	answer, err := h.server.Exchange(ctx, "tcp", msg)
	if err != nil {
		return 0, err
	}

	err = h.server.Rcode(answer, "a question for the SOA of "+records.Display(h.args.zone), dns.RcodeSuccess)
	if err != nil {
		return 0, err
	}

	for _, rr := range answer.Answer {
		if soa, ok := rr.(*dns.SOA); ok && answer.Authoritative {
			return soa.Serial, nil
		}
	}

	return 0, h.server.Refusal("a question for the SOA of "+records.Display(h.args.zone)+" (without an answer of its own)", answer.Rcode)
}

// waitServed waits until the server serves a version of the zone, or a later one: it loads files at its own pace.
func (h *host) waitServed(ctx context.Context, serial uint32) error {
	until := time.Now().Add(h.args.Settle)

	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		served, err := h.askSerial(ctx)
		if err == nil && (served == serial || records.SerialAfter(served, serial)) {
			return nil
		}

		if time.Now().Add(pause).After(until) {
			if err == nil {
				err = fmt.Errorf("it serves %d", served)
			}

			return ansible.Fail(ansible.CodeTimeout, "look into the server's log", "the server did not take serial %d of zone %s within %s: %w",
				serial, records.Display(h.args.zone), h.args.Settle, err)
		}

		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// write puts a new file into the place of the old one, in one step, after the server's own check has passed it.
func (h *host) write(ctx context.Context, file File) error {
	text, err := records.RenderFile(h.args.zone, *file.SOA, file.Sets)
	if err != nil {
		return ansible.Fail(ansible.CodeInternal, "", "%w", err)
	}

	fresh, err := os.CreateTemp(filepath.Dir(file.Path), ".thinkube-*.zone")
	if err != nil {
		return ansible.Fail(CodeFile, "", "writing beside the zone file: %w", err)
	}

	defer func() { _ = os.Remove(fresh.Name()) }()

	_, err = fresh.WriteString(text)
	err = errors.Join(err, likeBefore(fresh, file.Path), fresh.Sync(), fresh.Close())

	if err != nil {
		return ansible.Fail(CodeFile, "", "writing zone file %q: %w", file.Path, err)
	}

	err = h.backend.check(ctx, fresh.Name())
	if err != nil {
		return err
	}

	err = os.Rename(fresh.Name(), file.Path)
	if err != nil {
		return ansible.Fail(CodeFile, "", "replacing zone file %q: %w", file.Path, err)
	}

	return nil
}

// likeBefore gives the new file the rights of the old one, or those that let the server read it.
func likeBefore(fresh *os.File, path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fresh.Chmod(0o644)
	}

	if err != nil {
		return err
	}

	owner, ok := info.Sys().(*syscall.Stat_t)
	if ok {
		err = fresh.Chown(int(owner.Uid), int(owner.Gid))
	}

	return errors.Join(err, fresh.Chmod(info.Mode().Perm()))
}

// made is the record of a zone that this module made.
type made struct {
	File string `json:"file"`
}

// create makes a zone. A run that was cut after the file was written goes on from there.
func (h *host) create(ctx context.Context, file File) error {
	err := h.store.Keep(h.args.zone, made{File: file.Path})
	if err == nil {
		err = h.write(ctx, file)
	}

	if err == nil {
		err = h.backend.add(ctx)
	}

	if err != nil {
		return err
	}

	return h.waitServed(ctx, file.SOA.Serial)
}

// remove removes a zone that this module made, with the files that the server had of it.
func (h *host) remove(ctx context.Context) error {
	var record made

	_, err := h.store.Read(h.args.zone, &record)
	if err != nil {
		return err
	}

	err = h.backend.remove(ctx)
	if err != nil {
		return err
	}

	for _, suffix := range []string{"", ".jnl", ".jbk", ".signed", ".signed.jnl"} {
		err = os.Remove(record.File + suffix)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return ansible.Fail(CodeFile, "", "removing the zone's file: %w", err)
		}
	}

	return h.store.Forget(h.args.zone)
}
