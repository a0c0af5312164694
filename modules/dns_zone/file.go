// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/record"
	"github.com/thinkube/infra/modules/internal/records"
)

// readLocal asks the server's own tools about the zone, and reads its file where the task manages that.
func (h *host) readLocal(ctx context.Context) (State, error) {
	state := State{Zone: h.args.zone}

	status, err := h.backend.status(ctx)
	if err != nil {
		return state, fmt.Errorf("asking the server for zone %s: %w", records.Display(h.args.zone), err)
	}

	origin, err := record.ReadOrigin[Made](h.store, h.args.zone)
	if err != nil {
		return state, err
	}

	state.Known, state.Made = &status.known, origin.Original
	if state.Made != nil {
		state.ServerFile = status.file
	}

	switch {
	case h.args.removes() && state.Made != nil && status.unsure:
		return state, ansible.Fail(CodeServer, "mend the zone's file (the server's log says what is wrong with it) and run the task again",
			"the server could not load zone %s and does not show its configuration, so that it is not known whether it is the one that this module made",
			records.Display(h.args.zone))
	case h.args.removes():
		return state, h.readDoomed(ctx, &state)
	case !status.known:
		state.NewSerial = firstSerial(time.Now())
		state.File, state.Digest, err = h.readFile(string(h.args.File))

		return state, err
	case h.args.Mode == "update":
		read, err := h.readZone(ctx)
		read.Known, read.Made, read.ServerFile = state.Known, state.Made, state.ServerFile

		return read, err
	}

	err = h.readStatic(ctx, &state, status)

	return state, err
}

// readStatic reads a zone that the server has from its file alone.
func (h *host) readStatic(ctx context.Context, state *State, status status) error {
	if status.secondary {
		return ansible.Fail(CodeDynamic, "run the task on its primary", "the server gets zone %s from another one, so its file is the server's", records.Display(h.args.zone))
	}

	file, digest, err := h.readFile(string(h.args.File))
	if err == nil && file == nil {
		err = ansible.Fail(CodeFile, "compare the option file with the server's configuration", "zone file %q does not exist, and the server has the zone", h.args.File)
	}

	if err != nil {
		return err
	}

	state.Served, state.Signed = status.unsigned, status.unsigned != nil
	if !state.Signed {
		state.Served, err = h.askSerial(ctx)
	}

	if err == nil {
		err = h.checkStatic(status, state.Served, *file)
	}

	state.SOA, state.Sets, state.Digest = file.SOA, file.Sets, digest

	return err
}

// readDoomed reads what would go with a zone that this module made: from the server, or from the file where the server does not serve
// it. One that cannot be read can be removed, too, but it is not known then what is lost.
func (h *host) readDoomed(ctx context.Context, state *State) error {
	if state.Made == nil || state.Made.Making || *state.Known && state.ServerFile != state.Made.File {
		return nil // nobody's records, or left alone
	}

	var err error

	if *state.Known && h.args.Mode == "update" {
		var read State

		read, err = h.readZone(ctx)
		if err == nil {
			state.SOA, state.Signed, state.Sets = read.SOA, read.Signed, read.Sets

			return nil
		}
	}

	file, _, unread := h.readFile(state.Made.File)

	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil && unread == nil && file == nil && !*state.Known: // nothing is left of it
	case err != nil || unread != nil || file == nil:
		state.Unread = cmp.Or(err, unread, fs.ErrNotExist).Error()
	default:
		state.SOA, state.Sets = file.SOA, file.Sets
	}

	return nil
}

// readFile reads a zone's file; nil when there is none.
func (h *host) readFile(path string) (file *File, digest string, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", nil
	}

	file = &File{Path: path}

	if err == nil {
		file.SOA, file.Sets, err = records.ParseFile(string(text), h.args.zone, h.missingTTL())
	}

	if err != nil {
		return nil, "", ansible.Fail(CodeFile, "", "zone file %q: %w", path, err)
	}

	return file, digestOf(text), nil
}

// missingTTL is what records have for which the file says none: with Knot always the same, with BIND it depends (0).
func (h *host) missingTTL() uint32 {
	if h.args.Program == "knot" {
		return 3600
	}

	return 0
}

func digestOf(text []byte) string { return fmt.Sprintf("%x", sha256.Sum256(text)) }

// firstSerial is what a zone begins with: the day, and which quarter of an hour of it. A zone of that name that was served
// before, by this module or with the usual serials of dates, has an earlier one; secondaries that still have it would not take a
// zone that begins with 1 (RFC 1982). Only of one that was changed and made again within the quarter the serial may go back.
func firstSerial(now time.Time) uint32 {
	now = now.UTC()

	return uint32(((now.Year()*100+int(now.Month()))*100+now.Day())*100 + now.Hour()*4 + now.Minute()/15)
}

// checkStatic refuses a zone that the server changes by itself: what is in its file is not the zone, or not for long.
func (h *host) checkStatic(status status, served *uint32, file File) error {
	hint := "use mode: update for it"

	if status.dynamic {
		return ansible.Fail(CodeDynamic, hint, "zone %s takes dynamic updates, so its file is the server's", records.Display(h.args.zone))
	}

	inline := status.unsigned != nil // what named keeps beside such a file is of the signed copy

	if _, err := os.Lstat(file.Path + ".jnl"); err == nil && !inline {
		return ansible.Fail(CodeDynamic, hint, "zone file %q has a journal, so it is not the whole zone", file.Path)
	}

	if served != nil && records.SerialAfter(*served, file.SOA.Serial) {
		if inline {
			hint = "give the SOA in the file a later serial: the server does not go back"
		}

		return ansible.Fail(CodeDynamic, hint, "the server has serial %d of zone %s, and its file %q only %d", *served, records.Display(h.args.zone), file.Path, file.SOA.Serial)
	}

	return nil
}

// askSerial asks the server which version of the zone it serves; nil when it says that it cannot serve it now.
func (h *host) askSerial(ctx context.Context) (*uint32, error) {
	msg := new(dns.Msg)
	msg.SetQuestion(h.args.zone, dns.TypeSOA)
	msg.RecursionDesired = false

	answer, err := h.server.Exchange(ctx, "tcp", msg)
	if err != nil {
		return nil, err
	}

	if answer.Rcode == dns.RcodeServerFailure {
		return nil, nil
	}

	what := "a question for the SOA of " + records.Display(h.args.zone)

	err = h.server.Rcode(answer, what, dns.RcodeSuccess)
	if err != nil {
		return nil, err
	}

	for _, rr := range answer.Answer {
		if soa, ok := rr.(*dns.SOA); ok && answer.Authoritative {
			return &soa.Serial, nil
		}
	}

	return nil, h.server.Refusal(what+" (without an answer of its own)", answer.Rcode)
}

// servedSerial is askSerial, or what the server has taken from the file of a zone that it serves signed.
func (h *host) servedSerial(ctx context.Context) (*uint32, error) {
	if h.args.Mode == "file" {
		status, err := h.backend.status(ctx)
		if err != nil || status.unsigned != nil {
			return status.unsigned, err
		}
	}

	return h.askSerial(ctx)
}

// waitServed waits until the server serves a version of the zone, or a later one: it loads files at its own pace.
func (h *host) waitServed(ctx context.Context, serial uint32) error {
	until := time.Now().Add(h.args.Settle)

	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		served, err := h.servedSerial(ctx)

		switch {
		case err != nil:
		case served == nil:
			err = errors.New("it cannot serve the zone")
		case *served == serial || records.SerialAfter(*served, serial):
			return nil
		default:
			err = fmt.Errorf("it serves %d", *served)
		}

		if time.Now().Add(pause).After(until) {
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

// write puts a new file into the place of the one that was read, in one step, after the server's own check has passed it.
func (h *host) write(ctx context.Context, file File, digest string) error {
	text, err := records.RenderFile(h.args.zone, *file.SOA, file.Sets)
	if err != nil {
		return ansible.Fail(ansible.CodeInternal, "", "%w", err)
	}

	fresh := beside(file.Path)
	defer func() { _ = os.Remove(fresh) }()

	err = writeFresh(fresh, text, file.Path)
	if err != nil {
		return ansible.Fail(CodeFile, "", "writing zone file %q: %w", file.Path, err)
	}

	err = h.backend.check(ctx, fresh)
	if err != nil {
		return err
	}

	err = takePlace(fresh, file.Path, digest)
	if err != nil && !errors.Is(err, ansible.ErrChanged) {
		err = ansible.Fail(CodeFile, "", "replacing zone file %q: %w", file.Path, err)
	}

	return err
}

// beside is where a file is written before it takes its place: always the same, so that what a cut run has left is found.
func beside(path string) string {
	return filepath.Join(filepath.Dir(path), ".thinkube-"+filepath.Base(path))
}

// writeFresh writes a file that nobody else has opened, with the owner and rights of the one whose place it is to take.
func writeFresh(fresh, text, like string) error {
	err := os.Remove(fresh)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}

	// Others may write to the folder: what they put there meanwhile is not written to.
	file, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}

	_, err = file.WriteString(text)

	return errors.Join(err, likeBefore(file, like), file.Sync(), file.Close())
}

// takePlace puts a file into the place of another, which must still have the given digest ("": must still not exist).
func takePlace(fresh, path, digest string) error {
	if digest == "" {
		err := os.Link(fresh, path) // unlike a rename, refused when there is one
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("file %q was %w: it did not exist", path, ansible.ErrChanged)
		}

		return err
	}

	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}

	if err != nil || digestOf(text) != digest {
		return fmt.Errorf("file %q was %w", path, ansible.ErrChanged)
	}

	return os.Rename(fresh, path)
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

// create makes a zone, or nothing at all: a server that refuses it gets no second chance to take it, unseen, for ours. What is
// left by a run that was cut is noted as ours before it exists.
func (h *host) create(ctx context.Context, do Make) error {
	before, err := os.ReadFile(do.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ansible.Fail(CodeFile, "", "reading what is to be replaced: %w", err)
	}

	if do.Ours {
		before = nil
	}

	err = h.backend.resume(ctx)
	if err == nil {
		err = h.store.Replace(h.args.zone, Made{File: do.Path, Making: true})
	}

	if err != nil {
		return err
	}

	err = h.write(ctx, do.File, do.Digest)
	if err != nil && !do.Ours { // otherwise it is as it was: what an earlier run left is there, and noted
		err = errors.Join(err, h.takeBack(ctx, func() error { return nil }))
	}

	if err != nil {
		return err
	}

	err = h.backend.add(ctx)
	if err != nil {
		return errors.Join(err, h.takeBack(ctx, func() error { return putBack(do.Path, before) }))
	}

	err = h.waitServed(ctx, do.SOA.Serial)
	if err != nil {
		return err
	}

	return h.store.Replace(h.args.zone, Made{File: do.Path})
}

// restore has the server serve a file again that is there; with the journal beside it, where there is one.
func (h *host) restore(ctx context.Context, serial uint32) error {
	err := h.backend.resume(ctx)
	if err == nil {
		err = h.backend.add(ctx)
	}

	if err != nil {
		return err
	}

	return h.waitServed(ctx, serial)
}

// takeBack undoes the beginning of a zone that the server does not have. Where it cannot be asked, all stays for the next run.
func (h *host) takeBack(ctx context.Context, file func() error) error {
	const patience = 5 * time.Second

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()

	status, err := h.backend.status(ctx)
	if err != nil || status.known {
		return nil
	}

	return errors.Join(file(), h.store.Forget(h.args.zone))
}

// putBack restores a file, or removes it if there was none.
func putBack(path string, before []byte) error {
	if before == nil {
		return removeFile(path)
	}

	fresh := beside(path)

	err := writeFresh(fresh, string(before), path)
	if err == nil {
		err = os.Rename(fresh, path)
	}

	return err
}

// remove removes a zone that this module made, with the files that the server had of it; of one that was made or removed by
// halves, what is left.
func (h *host) remove(ctx context.Context, do Remove) error {
	err := h.backend.resume(ctx)
	if err == nil && do.Known {
		err = h.backend.remove(ctx)
	}

	if err != nil {
		return err
	}

	for _, path := range []string{do.File, do.File + ".jnl", do.File + ".jbk", do.File + ".signed", do.File + ".signed.jnl", beside(do.File)} {
		err := removeFile(path)
		if err != nil {
			return ansible.Fail(CodeFile, "", "removing the zone's file: %w", err)
		}
	}

	return h.store.Forget(h.args.zone)
}

func removeFile(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}

	return err
}
