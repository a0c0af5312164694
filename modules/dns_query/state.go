// SPDX-License-Identifier: Apache-2.0

package dnsquery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/dnswire"
	"github.com/thinkube/infra/modules/internal/records"
)

type host struct {
	ansible.ReadOnly

	args       Args
	key        *dnswire.Key
	resolvConf string
}

// Read asks until the answer is the expected one, or any if nothing is expected, or the time is over: names come into being
// while a playbook runs. The failure says what the last answer was.
func (h *host) Read(ctx context.Context) (Answer, error) {
	begin := time.Now()

	var (
		last  error
		asked int
	)

	for pause := 100 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		answer, err := h.ask(ctx)
		if err == nil {
			err = h.compare(answer)
		}

		cut := ctx.Err() != nil && last != nil // the end of the time says less than the last full answer
		if !cut {
			last = err
			asked++
		}

		answer.Attempts = asked

		if err == nil || final(err) {
			return answer, err
		}

		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return answer, fmt.Errorf("%w (asked %d times in %s)", last, asked, time.Since(begin).Round(100*time.Millisecond))
		}
	}
}

// final tells whether asking again cannot help.
func final(err error) bool {
	var failure *ansible.Failure

	return errors.As(err, &failure) && (failure.Code == dnswire.CodeKey || failure.Code == ansible.CodeInternal)
}

func (h *host) compare(answer Answer) error {
	if h.args.Expect == nil {
		return nil
	}

	wanted := h.args.wanted
	got := records.Set{Name: wanted.Name, Type: wanted.Type, Values: answer.Values}

	if wanted.SameValues(got) {
		return nil
	}

	return ansible.Fail(CodeUnexpected, "", "%s %s from DNS server %s: got %s, expected %s",
		records.Display(wanted.Name), wanted.Type, answer.Server, list(answer.Values, answer.Rcode), list(wanted.Values, "none"))
}

func list(values []string, none string) string {
	if len(values) == 0 {
		return none
	}

	return strings.Join(values, ", ")
}

// ask asks each server in turn until one answers.
func (h *host) ask(ctx context.Context) (Answer, error) {
	servers, err := h.servers()
	if err != nil {
		return Answer{}, err
	}

	var (
		answer Answer
		errs   []error
	)

	for _, server := range servers {
		answer, err = h.askOne(ctx, server)
		if err == nil {
			return answer, nil
		}

		errs = append(errs, err)
	}

	return answer, errors.Join(errs...)
}

// servers are those that the task names or, as for all programs of the host, those of resolv.conf(5).
func (h *host) servers() ([]dnswire.Server, error) {
	if h.args.Server != "" {
		return []dnswire.Server{dnswire.NewServer(h.args.Server, h.args.Port, h.key)}, nil
	}

	config, err := dns.ClientConfigFromFile(h.resolvConf)
	if err != nil {
		return nil, ansible.Fail(dnswire.CodeUnreachable, "configure the host's resolver, or give server", "reading %s: %w", h.resolvConf, err)
	}

	var servers []dnswire.Server

	for _, name := range config.Servers {
		servers = append(servers, dnswire.NewServer(name, 53, nil))
	}

	if servers == nil { // resolv.conf(5): the local machine
		servers = append(servers, dnswire.NewServer("127.0.0.1", 53, nil))
	}

	return servers, nil
}

// udpSize is what fits through nearly every network without fragments.
const udpSize = 1232

func (h *host) askOne(ctx context.Context, server dnswire.Server) (Answer, error) {
	network := "udp"
	if h.args.TCP {
		network = "tcp"
	}

	begin := time.Now()
	reply, err := h.exchange(ctx, server, network)

	if err == nil && reply.Truncated && network == "udp" {
		network = "tcp"
		reply, err = h.exchange(ctx, server, network)
	}

	answer := Answer{
		Name: h.args.wanted.Name, Type: h.args.wanted.Type, Server: server.Address, Network: network, Values: []string{}, Aliases: []string{},
		Milliseconds: float64(time.Since(begin).Microseconds()) / 1000,
	}

	if err != nil {
		return answer, err
	}

	err = server.Rcode(reply, fmt.Sprintf("%s %s", records.Display(answer.Name), answer.Type), dns.RcodeSuccess, dns.RcodeNameError)
	if err != nil {
		return answer, err
	}

	return answer, answer.take(reply)
}

// exchange bounds one question, so that a lost packet does not take all the time there is.
func (h *host) exchange(ctx context.Context, server dnswire.Server, network string) (*dns.Msg, error) {
	attempt, cancel := context.WithTimeoutCause(ctx, h.args.AttemptTimeout, ansible.Fail(dnswire.CodeUnreachable,
		"is the server running, and does a packet filter let port 53 pass?", "no answer within %s", h.args.AttemptTimeout))
	defer cancel()

	msg := new(dns.Msg)
	msg.Question = []dns.Question{h.args.question}
	msg.RecursionDesired = h.args.Recurse
	msg.AuthenticatedData = h.args.DNSSEC
	msg.SetEdns0(udpSize, h.args.DNSSEC)

	return server.Exchange(attempt, network, msg)
}

// take reads the records of the answer, along the chain of aliases that it gives.
func (a *Answer) take(reply *dns.Msg) error {
	a.Rcode = dns.RcodeToString[reply.Rcode]
	a.Authoritative, a.Authenticated = reply.Authoritative, reply.AuthenticatedData

	name := a.Name

	for range len(reply.Answer) + 1 {
		next := ""

		for _, rr := range reply.Answer {
			id, value, err := records.FromAnswer(rr)
			if err != nil {
				return ansible.Fail(dnswire.CodeMalformed, "", "%w", err)
			}

			switch {
			case id.Name != name:
			case id.Type == a.Type:
				a.Values = append(a.Values, value)

				if ttl := rr.Header().Ttl; a.TTL == nil || ttl < *a.TTL {
					a.TTL = &ttl
				}
			case id.Type == "CNAME":
				next = dns.CanonicalName(value)
			}
		}

		if len(a.Values) > 0 || next == "" || slices.Contains(a.Aliases, next) {
			break
		}

		a.Aliases = append(a.Aliases, next)
		name = next
	}

	slices.Sort(a.Values)

	return nil
}
