// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/records"
)

// backend is the server program on this host, spoken to with its own tools.
type backend interface {
	// status tells whether the server has the zone, and whether it changes the zone's file by itself.
	status(ctx context.Context) (known, dynamic bool, err error)
	// check judges a zone file before it takes its place.
	check(ctx context.Context, file string) error
	reload(ctx context.Context) error
	add(ctx context.Context) error
	remove(ctx context.Context) error
}

func newBackend(args Args, updateKey, transferKey string) backend {
	zone := strings.TrimSuffix(args.zone, ".")
	if zone == "" {
		zone = "."
	}

	if args.Program == "knot" {
		return knot{args: args, zone: args.zone}
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

func (b bind) status(ctx context.Context) (known, dynamic bool, err error) {
	said, err := b.rndc(ctx, "zonestatus", b.zone)
	if err != nil && strings.Contains(said, "no matching zone") {
		return false, false, nil
	}

	return err == nil, strings.Contains(said, "\ndynamic: yes"), err
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

// statement is the zone's configuration. Without one from the task, the keys that the task uses may do what it does.
func (b bind) statement() string {
	config := b.args.Config
	if config == "" && b.updateKey != "" {
		config = fmt.Sprintf("allow-update { key %q; }; allow-transfer { key %q; };", b.updateKey, b.transferKey)
	}

	return fmt.Sprintf("{ type primary; file %q; %s };", b.args.File, config)
}

// include gives the zone its line in the file that named includes, or takes it out. A line that named refuses is taken back.
func (b bind) include(ctx context.Context, line string) error {
	path := string(b.args.Include)

	before, err := os.ReadFile(path)
	if err != nil {
		return ansible.Fail(CodeFile, "make the file, and include it in named's configuration", "reading what named includes: %w", err)
	}

	var lines strings.Builder

	for each := range strings.Lines(string(before)) {
		if !strings.HasPrefix(each, fmt.Sprintf("zone %q {", b.zone)) {
			lines.WriteString(strings.TrimSuffix(each, "\n") + "\n")
		}
	}

	lines.WriteString(line)

	err = replaceFile(path, lines.String())
	if err != nil {
		return ansible.Fail(CodeFile, "", "writing what named includes: %w", err)
	}

	_, err = b.rndc(ctx, "reconfig")
	if err != nil {
		ctx := context.WithoutCancel(ctx)
		restored := replaceFile(path, string(before))
		_, _ = b.rndc(ctx, "reconfig") // named goes on with what it has in any case

		return errors.Join(err, restored)
	}

	return nil
}

// replaceFile puts new content in the place of the old in one step, with the same owner and rights.
func replaceFile(path, content string) error {
	fresh, err := os.CreateTemp(filepath.Dir(path), ".thinkube-")
	if err != nil {
		return err
	}

	defer func() { _ = os.Remove(fresh.Name()) }()

	_, err = fresh.WriteString(content)

	err = errors.Join(err, likeBefore(fresh, path), fresh.Sync(), fresh.Close())
	if err != nil {
		return err
	}

	return os.Rename(fresh.Name(), path)
}

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
	args Args
	zone string
}

func (k knot) knotc(ctx context.Context, args ...string) (string, error) {
	if k.args.Control != "" {
		args = append([]string{"-s", string(k.args.Control)}, args...)
	}

	return command(ctx, "knotc", args...)
}

func (k knot) status(ctx context.Context) (known, dynamic bool, err error) {
	said, err := k.knotc(ctx, "zone-status", k.zone)
	if err != nil && strings.Contains(said, "no such zone") {
		return false, false, nil
	}

	if err != nil {
		return false, false, err
	}

	dynamic, err = k.takesUpdates(ctx)

	return true, dynamic, err
}

// takesUpdates looks for a rule that lets somebody change the zone.
func (k knot) takesUpdates(ctx context.Context) (bool, error) {
	said, err := k.knotc(ctx, "conf-read", "zone["+k.zone+"].acl")
	if strings.Contains(said, "not exists") {
		return false, nil
	}

	if err != nil {
		return false, err
	}

	for line := range strings.Lines(said) {
		_, id, _ := strings.Cut(strings.TrimSpace(line), " = ")
		for rule := range strings.FieldsSeq(id) {
			actions, err := k.knotc(ctx, "conf-read", "acl["+rule+"].action")
			if err != nil && !strings.Contains(actions, "not exists") {
				return false, err
			}

			if strings.Contains(actions, "update") {
				return true, nil
			}
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

func (k knot) configure(ctx context.Context, commands [][]string) error {
	_, err := k.knotc(ctx, "conf-begin")
	if err != nil {
		return err
	}

	for _, command := range append(commands, []string{"conf-commit"}) {
		_, err := k.knotc(ctx, command...)
		if err != nil {
			_, aborted := k.knotc(context.WithoutCancel(ctx), "conf-abort")

			return errors.Join(err, aborted)
		}
	}

	return nil
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
