// SPDX-License-Identifier: Apache-2.0

package dnsclient

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/dnswire"
	"github.com/thinkube/infra/modules/internal/record"
	"github.com/thinkube/infra/modules/internal/records"
)

// Managers of the host's resolver.
const (
	Resolved   = "resolved"
	ResolvConf = "resolvconf"
)

// State is how the host resolves names.
type State struct {
	Manager string `json:"manager"`
	Path    string `json:"path"` // of the file that is written
	// Content is what stands in it; nil when it does not exist.
	Content *string `json:"content"`
	// Origin is what was there before this module.
	Origin record.Origin[Before] `json:"origin"`
	// Overruled names settings in other files that contradict ours: "FILE: SETTING".
	Overruled []string `json:"overruled,omitempty"`
	// Wildcards are the wanted search domains in which every name exists.
	Wildcards []string `json:"wildcards,omitempty"`
	// NotResolving says for each wanted domain that the host does not resolve why.
	NotResolving []string `json:"not_resolving,omitempty"`
}

// Before is what a file was before this module wrote it.
type Before struct {
	Path    string  `json:"path"`
	Content *string `json:"content"` // nil: it did not exist
	Folder  bool    `json:"folder"`  // neither did its folder
}

type host struct {
	args    Args
	store   record.Store
	port    int  // of DNS servers
	changed bool // by this task
}

const (
	resolvConf     = "/etc/resolv.conf"
	dropIns        = "systemd/resolved.conf.d"
	resolvedRun    = "/run/systemd/resolve/"
	networkManager = "/run/NetworkManager/"
)

// Read finds out who resolves names, what it was told, and whether the wanted domains are resolved. After a change it gives the
// resolver some time.
func (h *host) Read(ctx context.Context) (State, error) {
	state, err := h.readFiles()
	if err != nil || h.args.State == "absent" {
		return state, err
	}

	state.Wildcards, err = h.findWildcards(ctx)
	if err != nil || !h.args.Verify {
		return state, err
	}

	until := time.Now().Add(h.args.Settle)

	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		state.NotResolving = h.verify(ctx)
		if len(state.NotResolving) == 0 || !h.changed || time.Now().After(until) || ctx.Err() != nil {
			return state, ctx.Err()
		}

		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return state, ctx.Err()
		}
	}
}

func (h *host) readFiles() (State, error) {
	var state State

	origin, err := record.ReadOrigin[Before](h.store, h.args.Name)
	if err != nil {
		return state, err
	}

	state.Origin = origin

	state.Manager, err = h.manager(origin)
	if err != nil {
		return state, err
	}

	state.Path = resolvConf
	if state.Manager == Resolved {
		state.Path = filepath.Join("/etc", dropIns, h.args.Name+".conf")
	}

	text, err := os.ReadFile(state.Path)

	switch {
	case err == nil:
		content := string(text)
		state.Content = &content
	case !errors.Is(err, fs.ErrNotExist):
		return state, fmt.Errorf("reading what the resolver was told: %w", err)
	}

	if state.Manager == Resolved {
		state.Overruled, err = h.findOverruling(state.Path)
	}

	return state, err
}

// manager finds out who answers the host's programs: the one that /etc/resolv.conf belongs to.
func (h *host) manager(origin record.Origin[Before]) (string, error) {
	if origin.Recorded && origin.Original != nil {
		if origin.Original.Path == resolvConf {
			return ResolvConf, nil
		}

		return Resolved, nil
	}

	if h.args.Manager != "auto" {
		return h.args.Manager, nil
	}

	target, err := os.Readlink(resolvConf)
	if err == nil && !filepath.IsAbs(target) {
		target = filepath.Join("/etc", target)
	}

	switch {
	case err == nil && strings.HasPrefix(target, resolvedRun):
		return Resolved, nil
	case err == nil:
		return "", unsupported("%s leads to %q", resolvConf, target)
	}

	text, err := os.ReadFile(resolvConf)
	if errors.Is(err, fs.ErrNotExist) {
		return "", unsupported("there is no %s", resolvConf)
	}

	if err != nil {
		return "", fmt.Errorf("reading %s: %w", resolvConf, err)
	}

	if _, err := os.Stat(networkManager); err == nil && strings.Contains(string(text), "NetworkManager") {
		return "", unsupported("NetworkManager writes %s", resolvConf)
	}

	return ResolvConf, nil
}

func unsupported(format string, args ...any) error {
	return ansible.Fail(CodeUnsupported, "this module works with systemd-resolved, and with a plain /etc/resolv.conf; the option manager names one of them", format, args...)
}

// findOverruling looks through resolved's other files for settings that send the wanted domains elsewhere. A file under /etc
// hides one of the same name under /run or /usr/lib (systemd-resolved(8)).
func (h *host) findOverruling(own string) ([]string, error) {
	var found []string

	seen := map[string]bool{filepath.Base(own): true}

	for _, folder := range []string{"/etc", "/run", "/usr/local/lib", "/usr/lib"} {
		files, err := filepath.Glob(filepath.Join(folder, dropIns, "*.conf"))
		if err != nil {
			return nil, err
		}

		files = append(files, filepath.Join(folder, "systemd/resolved.conf"))

		for _, file := range files {
			if seen[filepath.Base(file)] || file == own {
				continue
			}

			lines, err := h.contradicting(file)
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

// contradicting gives the settings of one file that bring in other servers, or take lookups away from ours.
func (h *host) contradicting(path string) ([]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}

	defer func() { _ = file.Close() }()

	var found []string

	lines := bufio.NewScanner(file)
	for lines.Scan() {
		key, value, ok := strings.Cut(strings.TrimSpace(lines.Text()), "=")
		if !ok || strings.HasPrefix(key, "#") || strings.HasPrefix(key, ";") {
			continue
		}

		switch strings.TrimSpace(key) {
		case "DNS": // also an empty one, which drops those of files before it
			found = append(found, fmt.Sprintf("%s: DNS=%s", path, strings.TrimSpace(value)))
		case "Domains":
			for _, domain := range strings.Fields(value) {
				if h.contradicts(domain) {
					found = append(found, fmt.Sprintf("%s: Domains=%s", path, domain))
				}
			}
		}
	}

	return found, lines.Err()
}

func (h *host) contradicts(domain string) bool {
	if domain == "~." {
		return true
	}

	name := dns.CanonicalName(strings.TrimPrefix(domain, "~"))

	return slices.Contains(h.args.RoutingDomains, name) && !strings.HasPrefix(domain, "~")
}

// findWildcards asks the servers for a name that nobody has.
func (h *host) findWildcards(ctx context.Context) ([]string, error) {
	var found []string

	for _, domain := range h.args.SearchDomains {
		answer, err := h.askServers(ctx, "thinkube-nobody-has-this-name."+domain, dns.TypeA)
		if err != nil {
			return nil, err
		}

		if answer.Rcode == dns.RcodeSuccess && len(answer.Answer) > 0 {
			found = append(found, domain)
		}
	}

	return found, nil
}

// askServers asks the wanted servers in turn.
func (h *host) askServers(ctx context.Context, name string, kind uint16) (*dns.Msg, error) {
	return ask(ctx, h.args.Servers, h.port, name, kind)
}

const attempt = 2 * time.Second

func ask(ctx context.Context, servers []string, port int, name string, kind uint16) (*dns.Msg, error) {
	if len(servers) == 0 {
		return nil, errors.New("no server is known")
	}

	var errs []error

	for _, address := range servers {
		msg := new(dns.Msg)
		msg.SetQuestion(name, kind)

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

// verify asks for each domain as the host's programs would, and compares what comes with what the wanted servers say.
func (h *host) verify(ctx context.Context) []string {
	var wrong []string

	for _, domain := range append(slices.Clone(h.args.RoutingDomains), h.args.SearchDomains...) {
		err := h.verifyOne(ctx, domain)
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("%s: %v", records.Display(domain), err))
		}
	}

	return wrong
}

func (h *host) verifyOne(ctx context.Context, domain string) error {
	want, err := h.askServers(ctx, domain, dns.TypeSOA)
	if err != nil {
		return err
	}

	config, err := dns.ClientConfigFromFile(resolvConf)
	if err != nil {
		return fmt.Errorf("reading %s: %w", resolvConf, err)
	}

	got, err := ask(ctx, config.Servers, 53, domain, dns.TypeSOA)
	if err != nil {
		return fmt.Errorf("through the host's resolver: %w", err)
	}

	wanted, there := primary(want), primary(got)

	switch {
	case wanted == "":
		return fmt.Errorf("none of the servers %s has the domain", strings.Join(h.args.Servers, ", "))
	case wanted != there:
		return fmt.Errorf("the host's resolver gives primary server %q, and the wanted servers %q", there, wanted)
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
