// SPDX-License-Identifier: Apache-2.0

// Package dnsquery asks a DNS server, or the host's own resolver, one question, and compares the answer with what it should be.
// It changes nothing.
package dnsquery

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/dnswire"
	"github.com/thinkube/infra/modules/internal/records"
)

// Args are the module's options.
type Args struct {
	Name           string              `ansible:"name,required"`
	Type           string              `ansible:"type" default:"A"`
	Origin         string              `ansible:"origin" default:"."`
	Server         string              `ansible:"server"`
	Port           int                 `ansible:"port" default:"53"`
	Expect         *[]any              `ansible:"expect"`
	TCP            bool                `ansible:"tcp" default:"false"`
	DNSSEC         bool                `ansible:"dnssec" default:"false"`
	Recurse        bool                `ansible:"recurse" default:"true"`
	TSIG           *dnswire.KeyOptions `ansible:"tsig"`
	AttemptTimeout ansible.Duration    `ansible:"attempt_timeout" default:"2s"`
	Timeout        ansible.Duration    `ansible:"timeout" default:"10s"`

	question dns.Question
	wanted   records.Set
}

// TaskTimeout bounds the whole task.
func (a Args) TaskTimeout() time.Duration { return a.Timeout }

// Values are what the module returns.
type Values struct {
	Answer Answer `json:"answer"`
}

// Answer is what was said, and how.
type Answer struct {
	Name          string   `json:"name"`
	Type          string   `json:"type"`
	Server        string   `json:"server"`
	Rcode         string   `json:"rcode"`
	Values        []string `json:"values"`
	TTL           *uint32  `json:"ttl"`
	Aliases       []string `json:"aliases"`
	Authoritative bool     `json:"authoritative"`
	Authenticated bool     `json:"authenticated"`
	Network       string   `json:"network"`
	Attempts      int      `json:"attempts"`
	Milliseconds  float64  `json:"milliseconds"`
}

// CodeUnexpected is the failure that this module is for.
const CodeUnexpected ansible.Code = "unexpected"

// Module is dns_query.
var Module = ansible.Module[Args, Answer, Values]{
	Name: "dns_query",
	Codes: dnswire.WithCodes(map[ansible.Code]string{
		CodeUnexpected: "the answer is not the expected one, also when the time was over; msg has both",
	}),
	Normalize: normalize,
	Open:      open,
	Result:    func(_ Args, read Answer) Values { return Values{read} },
}

func normalize(args *Args) error {
	var errs []error

	origin, err := zoneName(args.Origin)
	if err != nil {
		return fmt.Errorf("origin: %w", err) // the name is judged by it
	}

	args.Origin = origin

	name := args.Name
	if addr, err := netip.ParseAddr(name); err == nil && strings.EqualFold(args.Type, "PTR") {
		name, _ = dns.ReverseAddr(addr.Unmap().String())
	}

	name, err = records.MakeName(name, origin)
	if err != nil {
		errs = append(errs, fmt.Errorf("name: %w", err))
	}

	number, err := records.MakeNumber(args.Type)
	if err != nil {
		errs = append(errs, fmt.Errorf("type %w", err))
	}

	if args.Port < 1 || args.Port > 65535 {
		errs = append(errs, fmt.Errorf("port %d: must be 1 to 65535", args.Port))
	}

	if args.AttemptTimeout <= 0 {
		errs = append(errs, errors.New(`attempt_timeout: must be more than 0, for example "2s"`))
	}

	if args.TSIG != nil && args.Server == "" {
		errs = append(errs, errors.New("tsig: needs server: the host's resolver has no key"))
	}

	errs = append(errs, args.TSIG.Check("tsig"))
	args.question = dns.Question{Name: name, Qtype: number, Qclass: dns.ClassINET}

	if len(errs) == 0 || errors.Join(errs...) == nil {
		args.wanted = records.Set{Name: name, Type: records.AnswerType(number)}
		if args.Expect != nil {
			errs = append(errs, args.makeWanted())
		}
	}

	return errors.Join(errs...)
}

// zoneName reads the zone's name, or the prefix of a reverse zone.
func zoneName(text string) (string, error) {
	if strings.Contains(text, "/") {
		return records.ReverseZone(text)
	}

	if !strings.HasSuffix(text, ".") {
		text += "."
	}

	return records.MakeName(text, ".")
}

// makeWanted brings the expected values into the form that answers have.
func (a *Args) makeWanted() error {
	if len(*a.Expect) == 0 {
		return nil
	}

	set, err := records.MakeAnswer(records.Entry{Name: a.wanted.Name, Type: a.wanted.Type, Values: *a.Expect}, a.Origin)
	if err != nil {
		return fmt.Errorf("expect: %w", err)
	}

	a.wanted = set

	return nil
}

func open(_ context.Context, task *ansible.Task, args Args) (ansible.Host[Answer], error) {
	key, err := args.TSIG.Load(task, "tsig")

	return &host{args: args, key: key, resolvConf: "/etc/resolv.conf"}, err
}
