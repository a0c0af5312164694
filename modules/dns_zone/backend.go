// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/record"
	"github.com/thinkube/infra/modules/internal/records"
)

// backend is the server program on this host, spoken to with its own tools.
type backend interface {
	// status tells what the server has of the zone.
	status(ctx context.Context) (status, error)
	// check judges a zone file before it takes its place.
	check(ctx context.Context, file string) error
	reload(ctx context.Context) error
	add(ctx context.Context) error
	remove(ctx context.Context) error
	// resume ends what a run that was cut has left unfinished at the server; it comes before add and remove.
	resume(ctx context.Context) error
}

// status is what a server's own tools say of a zone.
type status struct {
	known     bool   // the server has it, served or not
	dynamic   bool   // it takes updates, so that the server changes its file; asked in mode file
	secondary bool   // the server gets it from another one
	file      string // where the server is told to keep it
	unsure    bool   // file and secondary are not known

	// unsigned is the serial of what the server has read from the file, where it serves a signed copy of that with a serial of its
	// own (named's inline-signing); otherwise nil.
	unsigned *uint32
}

func newBackend(args Args, store record.Store, updateKey, transferKey string) backend {
	zone := strings.TrimSuffix(args.zone, ".")
	if zone == "" {
		zone = "."
	}

	if args.Program == "knot" {
		return knot{args: args, zone: args.zone, store: store}
	}

	return bind{args: args, zone: zone, updateKey: updateKey, transferKey: transferKey}
}

// command runs a server's tool and gives what it says. Tools lie where only root's PATH leads to, perhaps.
func command(ctx context.Context, tool string, args ...string) (string, error) {
	path, err := exec.LookPath(tool)
	for _, folder := range []string{"/usr/sbin/", "/usr/local/sbin/", "/sbin/"} {
		if err != nil {
			path, err = exec.LookPath(folder + tool)
		}
	}

	if err != nil {
		return "", ansible.Fail(CodeServer, "install the server's tools on the host that runs the task", "%q is not installed", tool)
	}

	var output bytes.Buffer

	run := exec.CommandContext(ctx, path, args...)
	run.Env = append(os.Environ(), "LC_ALL=C")
	run.Stdout, run.Stderr = &output, &output

	err = run.Run()
	said := strings.TrimSpace(output.String())

	var exit *exec.ExitError
	if err != nil && (ctx.Err() != nil || !errors.As(err, &exit)) {
		return said, fmt.Errorf("running %s: %w", tool, errors.Join(err, ctx.Err()))
	}

	if err != nil {
		return said, ansible.Fail(CodeServer, "", "%s %s: %s", tool, args[0], said)
	}

	return said, nil
}

// bind is BIND's named.
type bind struct {
	args                   Args
	zone                   string // as named's messages have it
	updateKey, transferKey string
}

func (b bind) rndc(ctx context.Context, args ...string) (string, error) {
	if b.args.Control != "" {
		args = append([]string{"-c", string(b.args.Control)}, args...)
	}

	said, err := command(ctx, "rndc", args...)

	return strings.TrimPrefix(said, "rndc: "), err
}

func (b bind) status(ctx context.Context) (status, error) {
	said, err := b.rndc(ctx, "zonestatus", b.zone)

	switch {
	case err == nil:
	case strings.Contains(said, "no matching zone"):
		return status{}, nil
	case strings.Contains(said, "zone not loaded"):
		return b.unloaded(ctx)
	default:
		return status{}, err
	}

	out := status{known: true, dynamic: strings.Contains(said, "\ndynamic: yes"), secondary: true}

	for line := range strings.Lines(said) {
		switch name, value, _ := strings.Cut(strings.TrimSpace(line), ": "); name {
		case "type":
			out.secondary = value != "primary" && value != "master"
		case "files":
			out.file = value
		}
	}

	if serial := inlineSerial.FindStringSubmatch(said); serial != nil && !out.dynamic {
		number, err := strconv.ParseUint(serial[1], 10, 32)
		if err != nil {
			return out, ansible.Fail(CodeServer, "", "rndc zonestatus: %w", err)
		}

		unsigned := uint32(number)
		out.unsigned = &unsigned
	}

	return out, nil
}

var inlineSerial = regexp.MustCompile(`(?s)\nserial: (\d+)\n.*\ninline signing: yes`)

// unloaded tells of a zone that named has, and could not load, what its configuration says.
func (b bind) unloaded(ctx context.Context) (status, error) {
	out := status{known: true}

	if b.args.Include != "" {
		text, err := os.ReadFile(string(b.args.Include))
		if err != nil {
			return out, ansible.Fail(CodeFile, "", "reading what named includes: %w", err)
		}

		if strings.Contains("\n"+string(text), "\n"+b.opening()) {
			out.file = string(b.args.File)
		}

		return out, nil
	}

	// named shows the configuration of a zone only where it allows new ones.
	said, err := b.rndc(ctx, "showzone", b.zone)
	if err != nil {
		out.unsure = true

		return out, ctx.Err()
	}

	_, rest, _ := strings.Cut(said, ` file "`)
	out.file, _, _ = strings.Cut(rest, `"`)
	out.secondary = strings.Contains(said, "{ type secondary;")

	return out, nil
}

func (b bind) check(ctx context.Context, file string) error {
	// What the zone's names mean elsewhere is not looked up: the check must not depend on other servers.
	_, err := command(ctx, "named-checkzone", "-i", "local", "-k", "fail", b.zone, file)

	return checked(err)
}

func (b bind) reload(ctx context.Context) error {
	_, err := b.rndc(ctx, "reload", b.zone)

	return err
}

func (b bind) add(ctx context.Context) error {
	if b.args.Include != "" {
		return b.include(ctx, fmt.Sprintf("zone %q %s\n", b.zone, b.statement()))
	}

	_, err := b.rndc(ctx, "addzone", b.zone, b.statement())
	if err != nil {
		return fmt.Errorf("%w (named needs allow-new-zones yes)", err)
	}

	return nil
}

// statement is the zone's configuration, on one line. Without one from the task, the keys that the task uses may do what it does.
func (b bind) statement() string {
	config := oneLine(b.args.Config)
	if config == "" && b.updateKey != "" {
		config = fmt.Sprintf("allow-update { key %q; }; allow-transfer { key %q; };", b.updateKey, b.transferKey)
	}

	return fmt.Sprintf("{ type primary; file %q; %s };", b.args.File, config)
}

// oneLine gives a configuration without comments and ends of lines: a zone has one line in the file that named includes, and what
// follows a comment at its end would be lost. What is in quotes stays as it is.
func oneLine(config string) string {
	var out strings.Builder

	for rest := config; rest != ""; {
		taken, shown := 1, rest[:1]

		switch {
		case rest[0] == '"':
			taken = quoted(rest)
			shown = rest[:taken]
		case rest[0] == '#', strings.HasPrefix(rest, "//"):
			taken, shown = until(rest, "\n"), " "
		case strings.HasPrefix(rest, "/*"):
			taken, shown = until(rest, "*/"), " "
		case rest[0] == '\n', rest[0] == '\r', rest[0] == '\t':
			shown = " "
		}

		out.WriteString(shown)
		rest = rest[taken:]
	}

	return strings.TrimSpace(out.String())
}

// quoted gives the length of the quoted text that a text begins with.
func quoted(text string) int {
	for i := 1; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}

	return len(text)
}

// until gives the length of a text up to the end of a mark, or all of it.
func until(text, mark string) int {
	at := strings.Index(text, mark)
	if at < 0 {
		return len(text)
	}

	return at + len(mark)
}

// opening is how the line of a zone that this module made begins, in a file that named includes.
func (b bind) opening() string {
	return fmt.Sprintf("zone %q { type primary; file %q;", b.zone, b.args.File)
}

// include gives the zone its line in the file that named includes, or takes it out. A line that named refuses is taken back.
func (b bind) include(ctx context.Context, line string) error {
	before, written, err := b.edit(line)
	if err != nil {
		return err
	}

	_, err = b.rndc(ctx, "reconfig")
	if err != nil {
		restored := b.replaceInclude(before, digestOf([]byte(written)))
		if errors.Is(restored, ansible.ErrChanged) && line != "" {
			_, _, restored = b.edit("") // what others wrote meanwhile stays
		}

		_, _ = b.rndc(context.WithoutCancel(ctx), "reconfig") // named goes on with what it has in any case

		return errors.Join(err, restored)
	}

	return nil
}

// edit changes the zone's line in the file that named includes, and gives what stood there and what does now.
func (b bind) edit(line string) (before, written string, err error) {
	const tries = 3 // others may be writing to the file

	for range tries {
		text, err := os.ReadFile(string(b.args.Include))
		if err != nil {
			return "", "", ansible.Fail(CodeFile, "make the file, and include it in named's configuration", "reading what named includes: %w", err)
		}

		before, written = string(text), b.without(string(text))+line

		err = b.replaceInclude(written, digestOf(text))
		if !errors.Is(err, ansible.ErrChanged) {
			return before, written, err
		}
	}

	return "", "", fmt.Errorf("file %q was %w", b.args.Include, ansible.ErrChanged)
}

// without gives what stands in the file beside the zone's line.
func (b bind) without(text string) string {
	var lines strings.Builder

	for each := range strings.Lines(text) {
		if !strings.HasPrefix(each, fmt.Sprintf("zone %q {", b.zone)) {
			lines.WriteString(strings.TrimSuffix(each, "\n") + "\n")
		}
	}

	return lines.String()
}

// replaceInclude gives the file that named includes new content, with the same owner and rights, if it is what it was.
func (b bind) replaceInclude(content, digest string) error {
	path := string(b.args.Include)

	fresh := beside(path)
	defer func() { _ = os.Remove(fresh) }()

	err := writeFresh(fresh, content, path)
	if err == nil {
		err = takePlace(fresh, path, digest)
	}

	if err != nil && !errors.Is(err, ansible.ErrChanged) {
		err = ansible.Fail(CodeFile, "", "writing what named includes: %w", err)
	}

	return err
}

// resume has nothing to do: each of named's changes is one command.
func (b bind) resume(context.Context) error { return nil }

func (b bind) remove(ctx context.Context) error {
	if b.args.Include != "" {
		return b.include(ctx, "")
	}

	_, err := b.rndc(ctx, "delzone", "-clean", b.zone)

	return err
}

// checked gives a refusal of the server's own check its code.
func checked(err error) error {
	var failure *ansible.Failure
	if errors.As(err, &failure) {
		return ansible.Fail(CodeRules, "", "the server's own check refuses the zone: %w", err)
	}

	return err
}

// knot is Knot's knotd.
type knot struct {
	args  Args
	zone  string
	store record.Store
}

func (k knot) knotc(ctx context.Context, args ...string) (string, error) {
	if k.args.Control != "" {
		args = append([]string{"-s", string(k.args.Control)}, args...)
	}

	return command(ctx, "knotc", args...)
}

func (k knot) status(ctx context.Context) (status, error) {
	said, err := k.knotc(ctx, "zone-status", k.zone)
	if err != nil && strings.Contains(said, "no such zone") {
		return status{}, nil
	}

	if err != nil {
		return status{}, err
	}

	out := status{known: true, secondary: strings.Contains(said, "role: slave")}

	file, err := k.read(ctx, "zone["+k.zone+"].file")
	if err != nil {
		return status{}, err
	}

	out.file = strings.Trim(strings.Join(file, " "), `"`)

	if k.args.Mode == "file" {
		out.dynamic, err = k.takesUpdates(ctx)
	}

	return out, err
}

// read gives the words of an item of the configuration; none where it is not set.
func (k knot) read(ctx context.Context, item string) ([]string, error) {
	said, err := k.knotc(ctx, "conf-read", item)
	if err != nil && strings.Contains(said, "invalid identifier") {
		return nil, nil // a template that nobody made, for example
	}

	var words []string

	for line := range strings.Lines(said) {
		_, value, _ := strings.Cut(strings.TrimSpace(line), " = ")
		words = append(words, strings.Fields(value)...)
	}

	return words, err
}

// takesUpdates looks for a rule that lets somebody change the zone. What the zone does not say itself its template does, and the
// one that is called "default" where it names none.
func (k knot) takesUpdates(ctx context.Context) (bool, error) {
	rules, err := k.read(ctx, "zone["+k.zone+"].acl")
	if err != nil {
		return false, err
	}

	if rules == nil {
		template, err := k.read(ctx, "zone["+k.zone+"].template")
		if err != nil {
			return false, err
		}

		template = append(template, "default")

		rules, err = k.read(ctx, "template["+template[0]+"].acl")
		if err != nil {
			return false, err
		}
	}

	for _, rule := range rules {
		actions, err := k.read(ctx, "acl["+rule+"].action")
		if err != nil {
			return false, err
		}

		if slices.Contains(actions, "update") {
			return true, nil
		}
	}

	return false, nil
}

func (k knot) check(ctx context.Context, file string) error {
	_, err := command(ctx, "kzonecheck", "-o", k.zone, file)

	return checked(err)
}

func (k knot) reload(ctx context.Context) error {
	_, err := k.knotc(ctx, "-b", "zone-reload", k.zone)

	return err
}

// add changes the server's configuration in one transaction.
func (k knot) add(ctx context.Context) error {
	commands := [][]string{{"conf-set", "zone[" + k.zone + "]"}, {"conf-set", "zone[" + k.zone + "].file", string(k.args.File)}}

	for line := range strings.Lines(k.args.Config) {
		words := strings.Fields(line)
		if len(words) > 0 {
			commands = append(commands, append([]string{"conf-set", "zone[" + k.zone + "]." + words[0]}, words[1:]...))
		}
	}

	return k.configure(ctx, commands)
}

// transaction is the record of a change of the configuration that this module began (no zone has that name). The server has one
// transaction at a time, which stays open when its maker dies; those of others are not touched.
const transaction = "transaction"

func (k knot) resume(ctx context.Context) error {
	open, err := k.store.Read(transaction, new(string))
	if err != nil || !open {
		return err
	}

	said, err := k.knotc(ctx, "conf-abort")
	if err != nil && !strings.Contains(said, "no active transaction") {
		return err
	}

	return k.store.Forget(transaction)
}

func (k knot) configure(ctx context.Context, commands [][]string) error {
	err := k.store.Keep(transaction, k.zone)
	if err != nil {
		return err
	}

	_, err = k.knotc(ctx, "conf-begin")
	if err != nil {
		return errors.Join(err, k.store.Forget(transaction))
	}

	for _, command := range append(commands, []string{"conf-commit"}) {
		_, err := k.knotc(ctx, command...)
		if err != nil {
			return errors.Join(err, k.resume(context.WithoutCancel(ctx)))
		}
	}

	return k.store.Forget(transaction)
}

func (k knot) remove(ctx context.Context) error {
	// First what the server keeps of it beside the file: its journal and timers.
	_, err := k.knotc(ctx, "-b", "-f", "zone-purge", "+journal", "+timers", "+kaspdb", k.zone)
	if err != nil {
		return err
	}

	return k.configure(ctx, [][]string{{"conf-unset", "zone[" + k.zone + "]"}})
}

// File is what stands in the zone's file.
type File struct {
	Path string        `json:"path"`
	SOA  *records.SOA  `json:"soa,omitempty"`
	Sets []records.Set `json:"sets,omitempty"`
}
