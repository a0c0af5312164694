// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"context"
	"time"

	"github.com/miekg/dns"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/dnswire"
	"github.com/thinkube/infra/modules/internal/records"
)

// State is a zone as it is now, without what the server makes itself by signing it.
type State struct {
	Zone   string        `json:"zone"`
	SOA    *records.SOA  `json:"soa"`
	Signed bool          `json:"signed,omitempty"`
	Sets   []records.Set `json:"sets"` // in order
}

type host struct {
	args     Args
	server   dnswire.Server // takes updates
	transfer dnswire.Server // gives the zone
	sent     []Change       // what was changed by this task
}

// Read transfers the zone. After a change it waits until the change is seen there: a server that signs a zone, and one that
// itself gets it from another, shows it a little later.
func (h *host) Read(ctx context.Context) (State, error) {
	until := time.Now().Add(h.args.Settle)

	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		state, err := h.readZone(ctx)
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

// shows tells whether the zone has what was sent.
func (h *host) shows(state State) bool {
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

func (h *host) readZone(ctx context.Context) (State, error) {
	state := State{Zone: h.args.zone}

	var found records.Collect

	err := h.transfer.Transfer(ctx, h.args.zone, func(r dnswire.Record) error {
		if records.Signature(r.Rrtype) {
			state.Signed = state.Signed || r.Rrtype == dns.TypeDNSKEY || r.Rrtype == dns.TypeRRSIG

			return nil
		}

		rr, err := r.RR()
		if err != nil {
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
