// SPDX-License-Identifier: Apache-2.0

// Package dnszone makes a zone what the inventory says: by dynamic updates (RFC 2136) that fail rather than overwrite what
// somebody else has changed meanwhile.
package dnszone

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/dnswire"
	"github.com/thinkube/infra/modules/internal/record"
	"github.com/thinkube/infra/modules/internal/records"
)

// Args are the module's options.
type Args struct {
	Name           string              `ansible:"name,required"`
	State          string              `ansible:"state" choices:"present,absent" default:"present"`
	Mode           string              `ansible:"mode" choices:"update,file" default:"update"`
	Server         string              `ansible:"server" default:"127.0.0.1"`
	Port           int                 `ansible:"port" default:"53"`
	TSIG           *dnswire.KeyOptions `ansible:"tsig"`
	TransferServer string              `ansible:"transfer_server"`
	TransferPort   int                 `ansible:"transfer_port" default:"53"`
	TransferTSIG   *dnswire.KeyOptions `ansible:"transfer_tsig"`
	Records        []RecordArg         `ansible:"records"`
	ReverseOf      *ReverseArg         `ansible:"reverse_of"`
	TTL            int                 `ansible:"ttl" default:"3600"`
	SOA            *SOAArg             `ansible:"soa"`
	Manage         string              `ansible:"manage" choices:"listed,zone,owned" default:"listed"`
	Owner          string              `ansible:"owner" default:"thinkube"`
	Ignore         []string            `ansible:"ignore"`
	Create         bool                `ansible:"create" default:"false"`
	Program        string              `ansible:"program" choices:"bind,knot" default:"bind"`
	Control        ansible.Path        `ansible:"control"`
	File           ansible.Path        `ansible:"file"`
	Config         string              `ansible:"config"`
	Include        ansible.Path        `ansible:"include"`
	Force          bool                `ansible:"force" default:"false"`
	Settle         ansible.Duration    `ansible:"settle" default:"10s"`
	Timeout        ansible.Duration    `ansible:"timeout" default:"60s"`

	zone   string        // canonical
	wanted []records.Set // in order
	absent []records.Set // without values: all of them
}

// TaskTimeout bounds the whole task.
func (a Args) TaskTimeout() time.Duration { return a.Timeout }

// RecordArg is one name and type.
type RecordArg struct {
	Name   string `ansible:"name,required"`
	Type   string `ansible:"type,required"`
	Values []any  `ansible:"values"`
	TTL    *int   `ansible:"ttl"`
	State  string `ansible:"state" choices:"present,absent" default:"present"`
}

// ReverseArg is where the names of a reverse zone come from.
type ReverseArg struct {
	Zone    string      `ansible:"zone,required"`
	Records []RecordArg `ansible:"records,required"`
}

// SOAArg is what the zone says about itself; what is left out stays. Durations are in seconds.
type SOAArg struct {
	Primary string `ansible:"primary"`
	Mail    string `ansible:"mail"`
	Refresh *int   `ansible:"refresh"`
	Retry   *int   `ansible:"retry"`
	Expire  *int   `ansible:"expire"`
	Minimum *int   `ansible:"minimum"`
	TTL     *int   `ansible:"ttl"`
}

// Values are what the module returns.
type Values struct {
	Zone *Zone `json:"zone"`
}

// Zone is the zone as users see it.
type Zone struct {
	Name    string `json:"name"`
	Display string `json:"display"`
	Serial  uint32 `json:"serial"`
	Primary string `json:"primary"`
	Signed  bool   `json:"signed"`
	Records int    `json:"records"`
}

// Failure codes of this module.
const (
	CodeUnsafe  ansible.Code = "unsafe"
	CodeForeign ansible.Code = "foreign"
	CodeRules   ansible.Code = "rules"
	CodeMissing ansible.Code = "zone_missing"
	CodeFile    ansible.Code = "zone_file"
	CodeDynamic ansible.Code = "dynamic"
	CodeServer  ansible.Code = "server_tool"
)

// Module is dns_zone.
var Module = ansible.Module[Args, State, Values]{
	Name: "dns_zone",
	Lock: "dns_zone",
	Codes: dnswire.WithCodes(map[ansible.Code]string{
		CodeUnsafe:  "the plan would change or delete more than anybody usually means to, or the zone's own NS or SOA; force allows it",
		CodeForeign: "a record (with I(manage=owned)) or the file of a zone that is to be made is somebody else's, and differs",
		CodeRules:   "the zone would break a rule together with what is there already; msg has the rule's id; or the server's own check refuses its file",
		CodeMissing: "the server has no such zone, and create is not set",
		CodeFile:    "the zone's file cannot be read or written, or holds what would be lost",
		CodeDynamic: "the server changes the zone by itself, so that its file is not the zone",
		CodeServer:  "a tool of the server (rndc, knotc, ...) is missing or refuses",
	}),
	Normalize: normalize,
	Open:      open,
	Plan:      makePlan,
	Result:    func(_ Args, final State) Values { return Values{Zone: makeZone(final)} },
}

func makeZone(state State) *Zone {
	if state.SOA == nil {
		return nil
	}

	return &Zone{
		Name: state.Zone, Display: records.Display(state.Zone), Serial: state.SOA.Serial, Primary: state.SOA.Primary,
		Signed: state.Signed, Records: records.Count(state.Sets),
	}
}

var validOwner = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$`)

func normalize(args *Args) error {
	var errs []error

	zone, err := zoneName(args.Name)
	if err != nil {
		return err // everything else is judged by it
	}

	args.zone = zone
	errs = append(errs, checkServers(args), args.TSIG.Check("tsig"), args.TransferTSIG.Check("transfer_tsig"))

	if args.TTL < 0 || args.TTL > records.MaxTTL {
		errs = append(errs, fmt.Errorf("ttl %d: must be 0 to %d", args.TTL, records.MaxTTL))
	}

	if args.Manage == "owned" && !validOwner.MatchString(args.Owner) {
		errs = append(errs, fmt.Errorf("owner %q: must be up to 42 small letters, digits and hyphens", args.Owner))
	}

	for _, pattern := range args.Ignore {
		name, _, _ := strings.Cut(pattern, " ")
		if _, err := path.Match(name, ""); err != nil || name == "" {
			errs = append(errs, fmt.Errorf("ignore: %q is no pattern", pattern))
		}
	}

	if args.State == "absent" && args.Manage == "zone" && !args.Create {
		errs = append(errs, errors.New("state absent with manage zone: would empty the zone; with manage listed or owned the records go that are listed or owned"))
	}

	errs = append(errs, args.SOA.check(zone), checkLocal(args), makeWanted(args))

	return errors.Join(errs...)
}

// local tells whether the server's own tools on this host are needed.
func (a Args) local() bool { return a.Mode == "file" || a.Create }

// removes tells whether the zone itself is to go.
func (a Args) removes() bool { return a.Create && a.State == "absent" }

func checkLocal(args *Args) error {
	var errs []error

	if args.local() && !filepath.IsAbs(string(args.File)) {
		errs = append(errs, fmt.Errorf("file %q: with mode file, and with create, must be the absolute path of the zone's file", args.File))
	}

	if !args.local() && (args.File != "" || args.Config != "" || args.Control != "") {
		errs = append(errs, errors.New("file, config and control: are for mode file and create"))
	}

	if args.Include != "" && (!args.Create || args.Program != "bind" || !filepath.IsAbs(string(args.Include))) {
		errs = append(errs, fmt.Errorf("include %q: is the absolute path of a file that named includes, for create with program bind", args.Include))
	}

	if args.Create && args.State == "present" && (args.SOA == nil || args.SOA.Primary == "") {
		errs = append(errs, errors.New("soa: primary is missing: a new zone has to name its primary server"))
	}

	return errors.Join(errs...)
}

// zoneName reads the zone's name, or the prefix of a reverse zone.
func zoneName(text string) (string, error) {
	if strings.Contains(text, "/") {
		return records.ReverseZone(text)
	}

	return records.CheckZoneName(text)
}

func checkServers(args *Args) error {
	var errs []error

	for _, each := range []struct {
		name string
		port int
	}{{"port", args.Port}, {"transfer_port", args.TransferPort}} {
		if each.port < 1 || each.port > 65535 {
			errs = append(errs, fmt.Errorf("%s %d: must be 1 to 65535", each.name, each.port))
		}
	}

	if args.Server == "" {
		errs = append(errs, errors.New("server: is empty"))
	}

	return errors.Join(errs...)
}

// makeWanted brings all records into canonical form and judges what can be judged without the zone.
func makeWanted(args *Args) error {
	ttl := uint32(args.TTL)

	present, absent, err := makeSets(args.Records, args.zone, ttl)
	errs := []error{err}

	if args.ReverseOf != nil {
		derived, err := makeReverse(args, ttl)
		errs = append(errs, err)
		present = append(present, records.Unless(derived, append(present, absent...))...)
	}

	args.wanted, err = records.Merge(present)
	args.absent = absent
	errs = append(errs, err)

	for _, set := range args.absent {
		for _, other := range args.wanted {
			if set.ID() == other.ID() && len(set.Without(other)) < max(len(set.Values), 1) {
				errs = append(errs, fmt.Errorf("%s: is to be present and absent", set))
			}
		}
	}

	for _, set := range args.wanted {
		if ignored(args, set) {
			errs = append(errs, fmt.Errorf("%s: is to be present, and ignored", set))
		}
	}

	if args.State == "absent" {
		args.wanted, args.absent = nil, append(args.wanted, args.absent...)
	}

	return errors.Join(errs...)
}

func makeSets(list []RecordArg, zone string, ttl uint32) (present, absent []records.Set, err error) {
	var errs []error

	present = make([]records.Set, 0, len(list))

	for _, each := range list {
		set, err := records.MakeSet(records.Entry{Name: each.Name, Type: each.Type, Values: each.Values, TTL: each.TTL}, zone, ttl)
		if err != nil {
			errs = append(errs, err)
		}

		switch {
		case each.State == "absent":
			absent = append(absent, set)
		case len(each.Values) == 0:
			errs = append(errs, fmt.Errorf("%s %s: values: there must be one; to remove all, set state: absent", each.Name, each.Type))
		default:
			present = append(present, set)
		}
	}

	return present, absent, errors.Join(errs...)
}

func makeReverse(args *Args, ttl uint32) ([]records.Set, error) {
	if !strings.HasSuffix(args.zone, ".in-addr.arpa.") && !strings.HasSuffix(args.zone, ".ip6.arpa.") {
		return nil, fmt.Errorf("reverse_of: %q is no reverse zone", records.Display(args.zone))
	}

	zone, err := records.CheckZoneName(args.ReverseOf.Zone)
	if err != nil {
		return nil, fmt.Errorf("reverse_of: %w", err)
	}

	present, _, err := makeSets(args.ReverseOf.Records, zone, ttl)
	if err != nil {
		return nil, fmt.Errorf("reverse_of: %w", err)
	}

	return records.Reverse(args.zone, present, ttl), nil
}

func (s *SOAArg) check(zone string) error {
	if s == nil {
		return nil
	}

	var (
		errs []error
		err  error
	)

	if s.Primary != "" {
		s.Primary, err = records.MakeName(s.Primary, zone)
		errs = append(errs, err)
	}

	if s.Mail != "" {
		s.Mail, err = records.MailName(s.Mail, zone)
		errs = append(errs, err)
	}

	for _, each := range []struct {
		name  string
		value *int
	}{{"refresh", s.Refresh}, {"retry", s.Retry}, {"expire", s.Expire}, {"minimum", s.Minimum}, {"ttl", s.TTL}} {
		if each.value != nil && (*each.value < 0 || *each.value > records.MaxTTL) {
			errs = append(errs, fmt.Errorf("soa: %s %d: must be 0 to %d", each.name, *each.value, records.MaxTTL))
		}
	}

	if s.Refresh != nil && s.Expire != nil && *s.Expire <= *s.Refresh {
		errs = append(errs, fmt.Errorf("soa: expire %d: must be more than refresh %d, or secondaries drop the zone before they ask for it", *s.Expire, *s.Refresh))
	}

	return errors.Join(errs...)
}

func open(_ context.Context, task *ansible.Task, args Args) (ansible.Host[State], error) {
	key, err := args.TSIG.Load(task, "tsig")
	if err != nil {
		return nil, err
	}

	transferKey := key

	if args.TransferTSIG != nil {
		transferKey, err = args.TransferTSIG.Load(task, "transfer_tsig")
		if err != nil {
			return nil, err
		}
	}

	h := &host{args: args, server: dnswire.NewServer(args.Server, args.Port, key)}
	h.transfer = dnswire.NewServer(args.Server, args.Port, transferKey)

	if args.TransferServer != "" {
		h.transfer = dnswire.NewServer(args.TransferServer, args.TransferPort, transferKey)
	}

	if args.local() {
		h.store = record.Open(recordRoot, "dns_zone")
		h.backend = newBackend(args, h.store, keyName(key), keyName(transferKey))
	}

	return h, nil
}

// recordRoot is where it is kept which zones this module made; tests have their own.
var recordRoot = record.DefaultRoot

func keyName(key *dnswire.Key) string {
	if key == nil {
		return ""
	}

	return strings.TrimSuffix(key.Name, ".")
}
