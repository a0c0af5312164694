// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/miekg/dns"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/dnswire"
	"github.com/thinkube/infra/modules/internal/plan"
	"github.com/thinkube/infra/modules/internal/records"
)

// Apply does one step of the plan.
func (h *host) Apply(ctx context.Context, step plan.Step) error {
	switch do := step.Do.(type) {
	case Update:
		return h.update(ctx, do)
	case Write:
		err := h.write(ctx, do.File, do.Digest)
		if err != nil {
			return err
		}

		return h.reload(ctx, do.SOA.Serial)
	case Reload:
		return h.reload(ctx, do.Serial)
	case Make:
		return h.create(ctx, do)
	case Restore:
		return h.restore(ctx, do.Serial)
	case Finish:
		return h.store.Replace(h.args.zone, Made{File: do.File})
	case Remove:
		return h.remove(ctx, do)
	case Part:
		return nil
	}

	return ansible.Fail(ansible.CodeInternal, "", "step %q has no effect", step.Line)
}

// reload has the server read the zone's file, and waits until it serves what is there.
func (h *host) reload(ctx context.Context, serial uint32) error {
	err := h.backend.reload(ctx)
	if err != nil {
		return err
	}

	return h.waitServed(ctx, serial)
}

// update sends one message: prerequisites from what was read, then the changes. The server does all of it or nothing.
func (h *host) update(ctx context.Context, do Update) error {
	msg, err := message(do)
	if err != nil {
		return ansible.Fail(ansible.CodeInternal, "", "%w", err)
	}

	answer, err := h.server.Exchange(ctx, "tcp", msg)
	if err != nil {
		return h.lost(ctx, do, err)
	}

	switch answer.Rcode {
	case dns.RcodeNXRrset, dns.RcodeYXRrset, dns.RcodeNameError, dns.RcodeYXDomain:
		return fmt.Errorf("zone %s was %w (the server says %s)", records.Display(do.Zone), ansible.ErrChanged, dns.RcodeToString[answer.Rcode])
	}

	err = h.server.Rcode(answer, "the update", dns.RcodeSuccess)
	if err == nil {
		h.note(do)
	}

	return err
}

// note keeps what was sent, for the next reading.
func (h *host) note(do Update) {
	h.sent = append(h.sent, do.Changes...)

	if do.SOA != nil {
		h.sentSOA = do.SOA
	}
}

// lost looks whether an update was done to which no answer came: then the zone shows it.
func (h *host) lost(ctx context.Context, do Update, err error) error {
	var failure *ansible.Failure
	if !errors.As(err, &failure) || failure.Code != dnswire.CodeUnreachable {
		return fmt.Errorf("whether the change was made is not known: %w", err)
	}

	sent, soa := h.sent, h.sentSOA
	h.note(do)

	state, readErr := h.Read(ctx)
	if readErr == nil && h.shows(state) {
		return nil
	}

	h.sent, h.sentSOA = sent, soa

	if readErr != nil {
		return fmt.Errorf("whether the change was made is not known: %w", err)
	}

	return fmt.Errorf("the change was not made, or is not seen yet: %w", err)
}

// message writes an update (RFC 2136, 2.4 and 2.5).
func message(do Update) (*dns.Msg, error) {
	msg := new(dns.Msg)
	msg.SetUpdate(do.Zone)
	msg.Compress = true

	if do.OldSOA != nil {
		msg.Used([]dns.RR{do.OldSOA.RR(do.Zone)})
	}

	if do.SOA != nil {
		msg.Insert([]dns.RR{do.SOA.RR(do.Zone)})
	}

	absent := map[string]bool{}

	for _, change := range do.Changes {
		err := change.require(msg, absent)
		if err != nil {
			return nil, err
		}
	}

	requireAlone(msg, do.Changes)

	// Deletions first: a CNAME is not taken while its name has other records, and nothing else while it has a CNAME.
	for _, change := range do.Changes {
		if change.Old != nil && !change.apexNS(do.Zone) {
			msg.RemoveRRset([]dns.RR{&dns.ANY{Hdr: header(change.Old)}})
		}
	}

	for _, change := range do.Changes {
		err := change.add(msg, do.Zone)
		if err != nil {
			return nil, err
		}
	}

	return msg, nil
}

func header(set *records.Set) dns.RR_Header {
	// The type is known, since the set was read.
	rr, err := records.Set{Name: set.Name, Type: set.Type, Values: []string{`\# 0`}}.RR(`\# 0`)
	if err != nil {
		panic(err) // a defect; the SDK turns it into a failure
	}

	return *rr.Header()
}

// apexNS tells whether these are the zone's own NS records: a server does not let them be deleted as a set (RFC 2136, 3.4.2.3).
func (c Change) apexNS(zone string) bool {
	return c.id() == records.ID{Name: zone, Type: "NS"}
}

// require makes the change depend on what was read.
func (c Change) require(msg *dns.Msg, absent map[string]bool) error {
	switch {
	case c.Old != nil:
		rrs, err := c.Old.RRs()
		msg.Used(rrs)

		return err
	case c.Alone:
		if !absent[c.New.Name] {
			absent[c.New.Name] = true

			msg.NameNotUsed([]dns.RR{&dns.ANY{Hdr: header(c.New)}})
		}
	default:
		msg.RRsetNotUsed([]dns.RR{&dns.ANY{Hdr: header(c.New)}})
	}

	return nil
}

// requireAlone makes a CNAME that takes the place of other records depend on these being all: with a type that somebody has added
// meanwhile, the server would delete what is listed and pass over the CNAME (RFC 2136, 3.4.2.2). Only of types that are known can that
// be asked.
func requireAlone(msg *dns.Msg, changes []Change) {
	listed := map[records.ID]bool{}
	for _, change := range changes {
		listed[change.id()] = true
	}

	for _, change := range changes {
		if !change.replaces() {
			continue
		}

		for _, kind := range slices.Sorted(maps.Keys(records.Types)) {
			id := records.ID{Name: change.New.Name, Type: kind}
			if !listed[id] {
				msg.RRsetNotUsed([]dns.RR{&dns.ANY{Hdr: header(&records.Set{Name: id.Name, Type: id.Type})}})
			}
		}
	}
}

// replaces tells whether this is a CNAME in the place of other records.
func (c Change) replaces() bool {
	return c.Old == nil && c.New.Type == "CNAME" && !c.Alone
}

// add adds the new set. The zone's own NS records are added before the old ones go, one by one, so that there is always one.
func (c Change) add(msg *dns.Msg, zone string) error {
	if c.New != nil {
		rrs, err := c.New.RRs()
		if err != nil {
			return err
		}

		msg.Insert(rrs)
	}

	if c.Old == nil || !c.apexNS(zone) {
		return nil
	}

	gone := c.Old.Values
	if c.New != nil {
		gone = c.Old.Without(*c.New)
	}

	for _, value := range gone {
		rr, err := c.Old.RR(value)
		if err != nil {
			return err
		}

		msg.Remove([]dns.RR{rr})
	}

	return nil
}
