// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"context"
	"time"

	"github.com/miekg/dns"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/dnswire"
	"github.com/thinkube/infra/modules/internal/record"
	"github.com/thinkube/infra/modules/internal/records"
)

// State is a zone as it is now, without what the server makes itself by signing it.
type State struct {
	Zone   string        `json:"zone"`
	SOA    *records.SOA  `json:"soa"`
	Signed bool          `json:"signed,omitempty"`
	Sets   []records.Set `json:"sets"` // in order

	// Known: the server has the zone; asked only where its own tools are used, as is all that follows.
	Known *bool `json:"known,omitempty"`
	// Made is what this module noted before it made the zone, perhaps without coming to the end. ServerFile is the file that the
	// server has of the zone: where it is another, the zone is somebody else's all the same.
	Made       *Made  `json:"made,omitempty"`
	ServerFile string `json:"server_file,omitempty"`
	// Served is the version that the server answers with, in mode file; nil where it has the zone and does not serve it.
	Served *uint32 `json:"served,omitempty"`
	// File is what lies where the file of a zone is to be that the server does not have.
	File *File `json:"file,omitempty"`
	// Digest is that of the file's octets, "" when there is none: it must still be so when the file is replaced.
	Digest string `json:"digest,omitempty"`
	// Unread says why it is not known what is in a zone that is to be removed.
	Unread string `json:"unread,omitempty"`
	// NewSerial is what a zone that is made begins with.
	NewSerial uint32 `json:"new_serial,omitempty"`
}

// Made is the record of a zone that this module made.
type Made struct {
	File string `json:"file"`
	// Making: no run has come to the end of making it, so that what is in the file is of such a run. Once the zone was served its
	// file holds what others put into it, too.
	Making bool `json:"making,omitempty"`
}

type host struct {
	args     Args
	server   dnswire.Server // takes updates
	transfer dnswire.Server // gives the zone
	sent     []Change       // what was changed by this task
	sentSOA  *records.SOA   // and the zone's SOA, if that was

	backend backend // nil where only DNS is spoken
	store   record.Store
}

// Read transfers the zone. After a change it waits until the change is seen there: a server that signs a zone, and one that
// itself gets it from another, shows it a little later.
func (h *host) Read(ctx context.Context) (State, error) {
	until := time.Now().Add(h.args.Settle)

	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		state, err := h.readOnce(ctx)
		if err != nil || h.shows(state) || time.Now().Add(pause).After(until) {
			return state, err
		}

		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return state, ctx.Err()
		}
	}
}

func (h *host) readOnce(ctx context.Context) (State, error) {
	if h.backend != nil {
		return h.readLocal(ctx)
	}

	return h.readZone(ctx)
}

// shows tells whether the zone has what was sent.
func (h *host) shows(state State) bool {
	if h.sentSOA != nil && !h.sentSOA.SameButSerial(state.SOA) {
		return false
	}

	if len(h.sent) == 0 {
		return true
	}

	current := makeIndex(state.Sets)

	for _, change := range h.sent {
		set := current.find(change.id())
		if (set == nil) != (change.New == nil) || set != nil && !change.New.Same(*set) {
			return false
		}
	}

	return true
}

// rare are the types whose data has so much form that the library may show it as something that it would not take.
func rare(number uint16) bool {
	switch number {
	case dns.TypeSVCB, dns.TypeHTTPS, dns.TypeNAPTR, dns.TypeCAA, dns.TypeLOC, dns.TypeDS, dns.TypeSSHFP, dns.TypeTLSA:
		return true
	}

	return false
}

func (h *host) readZone(ctx context.Context) (State, error) {
	state := State{Zone: h.args.zone}

	found := records.MakeCollect(len(h.args.wanted) * 9 / 8) // most zones have little more

	err := h.transfer.Transfer(ctx, h.args.zone, func(r dnswire.Record) error {
		if records.Signature(r.Rrtype) {
			state.Signed = state.Signed || r.Rrtype == dns.TypeDNSKEY || r.Rrtype == dns.TypeRRSIG

			return nil
		}

		rr, err := r.RR()
		if err != nil || rare(r.Rrtype) && !records.Readable(rr) {
			// One that cannot be read is kept as it is: it is somebody's, and no reason to know nothing of the others.
			found.Add(records.ID{Name: dns.CanonicalName(r.Name), Type: records.TypeOf(r.Rrtype)}, r.Ttl, records.Opaque(r.Raw()))

			return nil
		}

		if soa, ok := rr.(*dns.SOA); ok {
			read := records.FromSOA(soa)
			state.SOA = &read

			return nil
		}

		id, value, err := records.FromRR(rr)
		if err != nil {
			return ansible.Fail(dnswire.CodeMalformed, "", "%w", err)
		}

		found.Add(id, r.Ttl, value)

		return nil
	})

	state.Sets = found.Sets()

	return state, err
}
