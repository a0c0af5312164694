// SPDX-License-Identifier: Apache-2.0

// Command lab boots real Debian hosts on this machine; see tests/lab/README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/thinkube/infra/tests/lab"
)

const usage = `usage: lab COMMAND

  up [-n 3] [--name NAME] [--subnet CIDR] [--inventory FILE]
                                 boot the hosts; quick when they are up
  down [--cache]                 remove everything; with --cache the base image too
  status                         what there is
  add HOST [--without-lxd]       boot one more host
  stop HOST, start HOST          power a host off and on
  snapshot HOST|all LABEL        keep a copy
  restore HOST|all LABEL         put it back and boot
  diff HOST LABEL [--ignore 'KIND KEY']...
                                 what differs; exit code 1 when anything does
  ssh HOST [COMMAND...]          log in as root over the network
  exec HOST COMMAND...           run as root, without the network
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// errUsage asks for exit code 2.
var errUsage = errors.New("wrong usage")

// run returns the program's exit code: 1 for an error or a difference, 2 for wrong usage.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return 2
	}
	commands := map[string]func(context.Context, *call) error{
		"up": up, "down": down, "status": status, "add": add, "stop": stopHost, "start": startHost,
		"ssh": ssh, "exec": execute, "snapshot": snapshot, "restore": restore, "diff": diff,
	}
	command, ok := commands[args[0]]
	if !ok {
		fmt.Fprintf(stderr, "lab: unknown command %q\n%s", args[0], usage)
		return 2
	}
	c := &call{args: args[1:], stdout: stdout, stderr: stderr}
	c.flags = flag.NewFlagSet("lab "+args[0], flag.ContinueOnError)
	c.flags.SetOutput(stderr)
	c.flags.Usage = func() { fmt.Fprint(stderr, usage) }
	err := command(ctx, c)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprintf(stderr, "%s: %v\n%s", c.flags.Name(), err, usage)
		return 2
	default:
		fmt.Fprintf(stderr, "%s: %v\n", c.flags.Name(), err)
		return 1
	}
}

// call is one command line.
type call struct {
	args           []string
	flags          *flag.FlagSet
	stdout, stderr io.Writer
}

// operands parses flags wherever they stand, and wants that many other words (at most -1: any number).
func (c *call) operands(least, most int) ([]string, error) {
	var words []string
	for rest := c.args; ; {
		if err := c.flags.Parse(rest); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, fmt.Errorf("%w: %w", errUsage, err)
		}
		if c.flags.NArg() == 0 {
			break
		}
		words = append(words, c.flags.Arg(0))
		rest = c.flags.Args()[1:]
	}
	if len(words) < least || most >= 0 && len(words) > most {
		return nil, fmt.Errorf("%w: %d words instead of %d to %d", errUsage, len(words), least, most)
	}
	return words, nil
}

func up(ctx context.Context, c *call) error {
	cfg := lab.Config{Log: c.stderr}
	c.flags.IntVar(&cfg.Hosts, "n", 0, "number of hosts of a new lab (default 3)")
	c.flags.StringVar(&cfg.Name, "name", "", "name of the lab (default thinkube)")
	c.flags.StringVar(&cfg.Inventory, "inventory", "", "where to write the inventory (default inventory/lab.yaml of the checkout)")
	subnet := c.flags.String("subnet", "", "an IPv4 /24 (default 10.77.0.0/24)")
	if _, err := c.operands(0, 0); err != nil {
		return err
	}
	if *subnet != "" {
		var err error
		if cfg.Subnet, err = netip.ParsePrefix(*subnet); err != nil {
			return err
		}
	}
	if _, err := lab.Open(lab.Config{}); errors.Is(err, lab.ErrNotUp) && cfg.Inventory == "" {
		if cfg.Inventory, err = defaultInventory(); err != nil {
			return err
		}
	}
	if _, err := lab.Up(ctx, cfg); err != nil {
		return err
	}
	return status(ctx, &call{flags: c.flags, stdout: c.stdout, stderr: c.stderr})
}

// defaultInventory is inventory/lab.yaml of the checkout that we are called in.
func defaultInventory() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "galaxy.yml")); err == nil {
			return filepath.Join(dir, "inventory", "lab.yaml"), nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no checkout (a folder with galaxy.yml) at or above %q: name a file with --inventory", start)
		}
	}
}

func down(ctx context.Context, c *call) error {
	purge := c.flags.Bool("cache", false, "remove the base image too")
	if _, err := c.operands(0, 0); err != nil {
		return err
	}
	return lab.Down(ctx, lab.Config{}, *purge)
}

func status(_ context.Context, c *call) error {
	if _, err := c.operands(0, 0); err != nil {
		return err
	}
	l, err := lab.Open(lab.Config{})
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "HOST\tADDRESS\tSTATE\tLXD\tSNAPSHOTS")
	for _, h := range l.Hosts() {
		state, lxd := "stopped", "in the image"
		if h.Running() {
			state = "running"
		}
		if !h.HasLXD() {
			lxd = "not in the image"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", h.Name(), h.Address(), state, lxd, strings.Join(h.Snapshots(), " "))
	}
	fmt.Fprintf(table, "\ninventory: %s\n", l.InventoryFile())
	return table.Flush()
}

func add(ctx context.Context, c *call) error {
	var opts lab.HostOptions
	c.flags.BoolVar(&opts.WithoutLXD, "without-lxd", false, "boot a host that never had LXD")
	words, err := c.operands(1, 1)
	if err != nil {
		return err
	}
	l, err := lab.Open(lab.Config{Log: c.stderr})
	if err != nil {
		return err
	}
	_, err = l.AddHost(ctx, words[0], opts)
	return err
}

// host finds the host that the first word names.
func (c *call) host(name string) (*lab.Host, error) {
	l, err := lab.Open(lab.Config{Log: c.stderr})
	if err != nil {
		return nil, err
	}
	return l.Host(name)
}

func stopHost(ctx context.Context, c *call) error {
	return c.onHost(ctx, (*lab.Host).Stop)
}

func startHost(ctx context.Context, c *call) error {
	return c.onHost(ctx, (*lab.Host).Start)
}

func (c *call) onHost(ctx context.Context, do func(*lab.Host, context.Context) error) error {
	words, err := c.operands(1, 1)
	if err != nil {
		return err
	}
	h, err := c.host(words[0])
	if err != nil {
		return err
	}
	return do(h, ctx)
}

// snapshotter is a host or the whole lab.
type snapshotter interface {
	Snapshot(ctx context.Context, label string) error
	Restore(ctx context.Context, label string) error
}

func (c *call) snapshotter() (snapshotter, string, error) {
	words, err := c.operands(2, 2)
	if err != nil {
		return nil, "", err
	}
	l, err := lab.Open(lab.Config{Log: c.stderr})
	if err != nil {
		return nil, "", err
	}
	if words[0] == "all" {
		return l, words[1], nil
	}
	h, err := l.Host(words[0])
	return h, words[1], err
}

func snapshot(ctx context.Context, c *call) error {
	what, label, err := c.snapshotter()
	if err != nil {
		return err
	}
	return what.Snapshot(ctx, label)
}

func restore(ctx context.Context, c *call) error {
	what, label, err := c.snapshotter()
	if err != nil {
		return err
	}
	return what.Restore(ctx, label)
}

func diff(ctx context.Context, c *call) error {
	var ignore []string
	c.flags.Func("ignore", "a pattern", func(p string) error { ignore = append(ignore, p); return nil })
	words, err := c.operands(2, 2)
	if err != nil {
		return err
	}
	h, err := c.host(words[0])
	if err != nil {
		return err
	}
	found, err := h.Diff(ctx, words[1], ignore...)
	if err != nil {
		return err
	}
	for _, each := range found {
		fmt.Fprintln(c.stdout, each)
	}
	if len(found) > 0 {
		return fmt.Errorf("host %q differs from %q in %d things", words[0], words[1], len(found))
	}
	return nil
}

// ssh and execute become the other program, so that its terminal and its exit code are the user's.
func ssh(_ context.Context, c *call) error {
	if len(c.args) < 1 {
		return fmt.Errorf("%w: ssh which host?", errUsage)
	}
	h, err := c.host(c.args[0])
	if err != nil {
		return err
	}
	argv := h.SSHArgs("root")
	if len(c.args) > 1 {
		argv = append(argv, "--", strings.Join(c.args[1:], " "))
	}
	return become(argv)
}

func execute(_ context.Context, c *call) error {
	if len(c.args) < 2 {
		return fmt.Errorf("%w: exec what on which host?", errUsage)
	}
	h, err := c.host(c.args[0])
	if err != nil {
		return err
	}
	argv, err := h.ExecArgs(c.args[1:]...)
	if err != nil {
		return err
	}
	return become(argv)
}

func become(argv []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, argv, os.Environ())
}
