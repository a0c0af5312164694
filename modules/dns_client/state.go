// SPDX-License-Identifier: Apache-2.0

package dnsclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/dnswire"
	"github.com/thinkube/infra/modules/internal/ownfile"
	"github.com/thinkube/infra/modules/internal/record"
	"github.com/thinkube/infra/modules/internal/records"
)

// Managers of the host's resolver.
const (
	Resolved       = "resolved"
	NetworkManager = "networkmanager"
	ResolvConf     = "resolvconf"
)

// State is how the host resolves names.
type State struct {
	Manager string `json:"manager"`
	Path    string `json:"path"` // of the file that is written
	// File is what is there; nil when nothing is.
	File *ownfile.File `json:"file,omitempty"`
	// Options are the lines of /etc/resolv.conf that say how to ask; only read where it is written.
	Options []string `json:"options,omitempty"`
	// Origin is what was there before this module.
	Origin record.Origin[ownfile.Change] `json:"origin"`
	// Overruled names settings in other files that contradict ours: "FILE: SETTING".
	Overruled []string `json:"overruled,omitempty"`
	// Wildcards are the wanted search domains in which every name exists.
	Wildcards []string `json:"wildcards,omitempty"`
	// Unproven says for each of the others why it is not known whether it is one.
	Unproven []string `json:"unproven,omitempty"`
	// NotResolving says for each wanted domain that the host does not resolve why.
	NotResolving []string `json:"not_resolving,omitempty"`
	// Unanswered are those of them for which the wanted servers have no answer.
	Unanswered []string `json:"unanswered,omitempty"`
}

type host struct {
	args    Args
	store   record.Store
	root    string // what the host's files are below; "" but in tests
	port    int    // of DNS servers
	changed bool   // by this task
}

const (
	resolvConf  = "/etc/resolv.conf"
	resolvedRun = "/run/systemd/resolve/"
	networkRun  = "/run/NetworkManager/"
)

// dropIns are the folder of a manager's drop-ins below /etc, /run and /usr/lib, and the file that they add to.
var dropIns = map[string]struct{ folder, main string }{
	Resolved:       {"systemd/resolved.conf.d", "systemd/resolved.conf"},
	NetworkManager: {"NetworkManager/conf.d", "NetworkManager/NetworkManager.conf"},
}

// Read finds out who resolves names, what it was told, and whether the wanted domains are resolved. After a change it gives the
// resolver some time.
func (h *host) Read(ctx context.Context) (State, error) {
	state, err := h.readFiles()
	if err != nil || h.args.State == "absent" {
		return state, err
	}

	state.Wildcards, state.Unproven = h.findWildcards(ctx)
	if !h.args.Verify {
		return state, ctx.Err()
	}

	state.NotResolving, state.Unanswered = h.verify(ctx)
	if len(state.NotResolving) > 0 && h.changed {
		state.NotResolving, state.Unanswered = h.settle(ctx)
	}

	return state, ctx.Err()
}

// settle verifies until all is well, or the resolver has had its time.
func (h *host) settle(ctx context.Context) (wrong, unanswered []string) {
	until := time.Now().Add(h.args.Settle)

	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		wrong, unanswered = h.verify(ctx)
		if len(wrong) == 0 || time.Now().After(until) {
			return wrong, unanswered
		}

		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return wrong, unanswered
		}
	}
}

func (h *host) readFiles() (State, error) {
	var state State

	origin, err := record.ReadOrigin[ownfile.Change](h.store, h.args.Name)
	if err != nil {
		return state, err
	}

	state.Origin = origin

	state.Manager, err = h.manager(origin)
	if err != nil {
		return state, err
	}

	state.Path = resolvConf
	if state.Manager != ResolvConf {
		state.Path = filepath.Join("/etc", dropIns[state.Manager].folder, h.args.Name+".conf")
	}

	state.File, err = ownfile.Read(h.root, state.Path)
	if err != nil {
		return state, fmt.Errorf("reading what the resolver was told: %w", err)
	}

	if state.Manager == ResolvConf {
		state.Overruled = h.findWriters(state)
		state.Options, err = h.readOptions()
	} else {
		state.Overruled, err = h.findOverruling(state)
	}

	return state, err
}

// readOptions reads what /etc/resolv.conf, or what it leads to, says about how to ask.
func (h *host) readOptions() ([]string, error) {
	text, err := os.ReadFile(h.root + resolvConf)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}

	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", resolvConf, err)
	}

	var lines []string

	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) > 0 && (words[0] == "options" || words[0] == "sortlist") {
			lines = append(lines, strings.Join(words, " "))
		}
	}

	return lines, nil
}

// manager finds out who answers the host's programs: the one that /etc/resolv.conf belongs to.
func (h *host) manager(origin record.Origin[ownfile.Change]) (string, error) {
	if origin.Recorded && origin.Original != nil {
		for manager, its := range dropIns {
			if strings.HasPrefix(origin.Original.Path, "/etc/"+its.folder) {
				return manager, nil
			}
		}

		return ResolvConf, nil
	}

	if h.args.Manager != "auto" {
		return h.args.Manager, nil
	}

	target, err := os.Readlink(h.root + resolvConf)
	if err == nil && !filepath.IsAbs(target) {
		target = filepath.Join("/etc", target)
	}

	switch {
	case err == nil && strings.HasPrefix(target, resolvedRun):
		return Resolved, nil
	case err == nil && strings.HasPrefix(target, networkRun):
		return NetworkManager, nil
	case err == nil:
		return "", unsupported("%s leads to %q", resolvConf, target)
	}

	text, err := os.ReadFile(h.root + resolvConf)
	if errors.Is(err, fs.ErrNotExist) {
		return "", unsupported("there is no %s", resolvConf)
	}

	if err != nil {
		return "", fmt.Errorf("reading %s: %w", resolvConf, err)
	}

	// NetworkManager says so in what it writes; without it, this is a file that it has left.
	if _, err := os.Stat(h.root + networkRun); err == nil && strings.Contains(string(text), "Generated by NetworkManager") {
		return NetworkManager, nil
	}

	return ResolvConf, nil
}

func unsupported(format string, args ...any) error {
	return ansible.Fail(CodeUnsupported, "this module works with systemd-resolved, NetworkManager and a plain /etc/resolv.conf; the option manager names one of them", format, args...)
}

// findOverruling looks through the manager's other files for settings that send the wanted domains elsewhere. A file under /etc
// hides one of the same name under /run or /usr/lib (systemd-resolved(8), NetworkManager.conf(5)).
func (h *host) findOverruling(state State) ([]string, error) {
	var found []string

	its := dropIns[state.Manager]
	seen := map[string]bool{filepath.Base(state.Path): true}

	for _, folder := range []string{"/etc", "/run", "/usr/local/lib", "/usr/lib"} {
		files, err := filepath.Glob(filepath.Join(h.root+folder, its.folder, "*.conf"))
		if err != nil {
			return nil, err
		}

		for _, file := range append(files, filepath.Join(h.root+folder, its.main)) {
			if seen[filepath.Base(file)] {
				continue
			}

			lines, err := h.contradicting(state.Manager, file)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}

			if err != nil {
				return nil, fmt.Errorf("reading %s: %w", file, err)
			}

			seen[filepath.Base(file)] = true
			found = append(found, lines...)
		}
	}

	slices.Sort(found)

	return found, nil
}

// pidFiles are those of DHCP clients that write /etc/resolv.conf at each lease (dhclient-script(8), dhcpcd-run-hooks(8)).
var pidFiles = []string{"/run/dhclient*.pid", "/run/dhcpcd*.pid", "/run/dhcpcd/*pid"}

// findWriters names the programs that may write a plain /etc/resolv.conf anew. Whether they were told not to is in scripts.
func (h *host) findWriters(state State) []string {
	var found []string

	for _, pattern := range pidFiles {
		files, _ := filepath.Glob(h.root + pattern) // the pattern is ours

		for _, file := range files {
			if running(file) {
				found = append(found, fmt.Sprintf("%s: a DHCP client runs, and writes %s at each lease unless it was told not to", strings.TrimPrefix(file, h.root), resolvConf))
			}
		}
	}

	texts := []*ownfile.File{state.File}
	if state.Origin.Original != nil {
		texts = append(texts, state.Origin.Original.Before)
	}

	for _, text := range texts {
		if text == nil {
			continue
		}

		if by := generated.FindString(text.Content); by != "" {
			found = append(found, resolvConf+": "+by)
		}
	}

	return found
}

// generated is how such programs begin what they write.
var generated = regexp.MustCompile(`(?m)^# Generated by (dhcpcd|resolvconf|connman|udhcpc).*`)

// running tells whether the process of a file with its number is there.
func running(pidFile string) bool {
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return false
	}

	number, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || number <= 0 {
		return false
	}

	_, err = os.Stat(fmt.Sprintf("/proc/%d", number))

	return err == nil
}

// contradicting gives the settings of one file that bring in other servers, or take lookups away from ours.
func (h *host) contradicting(manager, path string) ([]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}

	var found []string

	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}

		said := h.againstNetworkManager(line)
		if manager == Resolved {
			said = h.againstResolved(line)
		}

		for _, each := range said {
			found = append(found, strings.TrimPrefix(path, h.root)+": "+each)
		}
	}

	return found, nil
}

func (h *host) againstResolved(line string) []string {
	key, value, _ := strings.Cut(line, "=")

	var found []string

	switch strings.TrimSpace(key) {
	case "DNS": // also an empty one, which drops those of files before it
		found = append(found, "DNS="+strings.TrimSpace(value))
	case "Domains":
		for _, domain := range strings.Fields(value) {
			if h.contradicts(domain) {
				found = append(found, "Domains="+domain)
			}
		}
	}

	return found
}

// againstNetworkManager: other servers for all connections, or no part in /etc/resolv.conf at all.
func (h *host) againstNetworkManager(line string) []string {
	key, value, _ := strings.Cut(line, "=")
	setting := strings.TrimSpace(key) + "=" + strings.TrimSpace(value)

	if strings.HasPrefix(line, "[global-dns-domain-") || setting == "dns=none" || setting == "rc-manager=unmanaged" {
		return []string{strings.TrimSuffix(setting, "=")}
	}

	return nil
}

func (h *host) contradicts(domain string) bool {
	if domain == "~." {
		return true
	}

	name := dns.CanonicalName(strings.TrimPrefix(domain, "~"))

	return slices.Contains(h.args.RoutingDomains, name) && !strings.HasPrefix(domain, "~")
}

// findWildcards asks the servers for a name that nobody has. Only NXDOMAIN proves that there is no wildcard: one of another type than
// what is asked for makes every name exist, too, and ends the search for a short name.
func (h *host) findWildcards(ctx context.Context) (found, unproven []string) {
	for _, domain := range h.args.SearchDomains {
		wild, err := h.wildcard(ctx, "thinkube-nobody-has-this-name."+domain)

		switch {
		case err != nil:
			unproven = append(unproven, fmt.Sprintf("%s: %v", records.Display(domain), err))
		case wild:
			found = append(found, domain)
		}
	}

	return found, unproven
}

// wildcard tells whether a name exists that nobody has.
func (h *host) wildcard(ctx context.Context, name string) (bool, error) {
	answer, err := h.askServers(ctx, name, dns.TypeA)
	if err != nil || answer.Rcode == dns.RcodeNameError || len(answer.Answer) > 0 {
		return err == nil && answer.Rcode == dns.RcodeSuccess, err
	}

	answer, err = ask(ctx, h.args.Servers, h.port, name, dns.TypeA, true)

	return err == nil && answer.Rcode == dns.RcodeSuccess && !deniedCompactly(answer), err
}

// deniedCompactly tells whether a signed answer says of a name that it exists, with nothing but the signatures of just that: so some
// signers deny that it does (RFC 9824, 3).
func deniedCompactly(answer *dns.Msg) bool {
	const nxname = 128

	for _, rr := range answer.Ns {
		nsec, ok := rr.(*dns.NSEC)
		if ok && dns.CanonicalName(nsec.Hdr.Name) == dns.CanonicalName(answer.Question[0].Name) {
			return !slices.ContainsFunc(nsec.TypeBitMap, func(kind uint16) bool { return kind != dns.TypeNSEC && kind != dns.TypeRRSIG && kind != nxname })
		}
	}

	return false
}

// askServers asks the wanted servers in turn.
func (h *host) askServers(ctx context.Context, name string, kind uint16) (*dns.Msg, error) {
	return ask(ctx, h.args.Servers, h.port, name, kind, false)
}

const attempt = 2 * time.Second

func ask(ctx context.Context, servers []string, port int, name string, kind uint16, signed bool) (*dns.Msg, error) {
	if len(servers) == 0 {
		return nil, errors.New("no server is known")
	}

	var errs []error

	for _, address := range servers {
		msg := new(dns.Msg)
		msg.SetQuestion(name, kind)

		if signed {
			const udpSize = 1232 // fits through nearly every network without fragments

			msg.SetEdns0(udpSize, true)
		}

		server := dnswire.NewServer(address, port, nil)
		limited, cancel := context.WithTimeoutCause(ctx, attempt, fmt.Errorf("no answer within %s", attempt))
		answer, err := server.Exchange(limited, "udp", msg)

		cancel()

		if err == nil {
			err = server.Rcode(answer, fmt.Sprintf("%s %s", records.Display(name), dns.TypeToString[kind]), dns.RcodeSuccess, dns.RcodeNameError)
		}

		if err == nil {
			return answer, nil
		}

		errs = append(errs, err)
	}

	return nil, errors.Join(errs...)
}

// verify asks for each domain as the host's programs would, and compares what comes with what the wanted servers say. It gives
// what is wrong, and that of it which is wrong with the servers.
func (h *host) verify(ctx context.Context) (wrong, unanswered []string) {
	domains := append(slices.Clone(h.args.RoutingDomains), h.args.SearchDomains...)
	found := make([]struct{ servers, host error }, len(domains))

	// All at once: each may take as long as it takes that nobody answers.
	var all sync.WaitGroup

	for i, domain := range domains {
		all.Add(1)

		go func() {
			defer all.Done()

			var want string

			want, found[i].servers = h.wantedPrimary(ctx, domain)
			if found[i].servers == nil {
				found[i].host = h.verifyOne(ctx, domain, want)
			}
		}()
	}

	all.Wait()

	for i, domain := range domains {
		if err := cmp.Or(found[i].servers, found[i].host); err != nil {
			wrong = append(wrong, fmt.Sprintf("%s: %v", records.Display(domain), err))
		}

		if found[i].servers != nil {
			unanswered = append(unanswered, wrong[len(wrong)-1])
		}
	}

	return wrong, unanswered
}

// wantedPrimary asks the wanted servers who the domain's primary server is.
func (h *host) wantedPrimary(ctx context.Context, domain string) (string, error) {
	answer, err := h.askServers(ctx, domain, dns.TypeSOA)
	if err != nil {
		return "", err
	}

	if primary(answer) == "" {
		return "", fmt.Errorf("none of the servers %s has the domain", strings.Join(h.args.Servers, ", "))
	}

	return primary(answer), nil
}

func (h *host) verifyOne(ctx context.Context, domain, want string) error {
	config, err := dns.ClientConfigFromFile(h.root + resolvConf)
	if err != nil {
		return fmt.Errorf("reading %s: %w", resolvConf, err)
	}

	answer, err := ask(ctx, config.Servers, h.port, domain, dns.TypeSOA, false)
	if err != nil {
		return fmt.Errorf("through the host's resolver: %w", err)
	}

	if primary(answer) != want {
		return fmt.Errorf("the host's resolver gives primary server %q, and the wanted servers %q", primary(answer), want)
	}

	return nil
}

// primary is the server that an answer's SOA names, "" when there is none.
func primary(msg *dns.Msg) string {
	for _, rr := range msg.Answer {
		if soa, ok := rr.(*dns.SOA); ok {
			return dns.CanonicalName(soa.Ns)
		}
	}

	return ""
}
