// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/thinkube/infra/tests/lab"
)

// site is the lab, and what ansible needs to work on it.
type site struct {
	turn io.Closer // held to the end
	lab  *lab.Lab
	root string // the checkout
	home string // of the user who runs ansible
	runs string // a folder for each run

	inventory string // of the three hosts that the lab comes up with; the lab's own follows what is added

	fresh bool // nobody has had the hosts since their snapshot
}

// The tests share one lab: it is brought up for the first that needs it and taken down after the last.
var (
	bringUp sync.Once
	theSite *site
	siteErr error
)

// dir is fixed: what a killed run left is found by the next.
const dir = "/var/lib/thinkube-integration"

var labConfig = lab.Config{
	Name: "integ", Subnet: netip.MustParsePrefix("10.177.92.0/24"), Dir: filepath.Join(dir, "lab"),
	Inventory: filepath.Join(dir, "lab.yaml"), Log: os.Stderr,
}

func TestMain(m *testing.M) {
	code := m.Run()

	if theSite != nil && os.Getenv("THINKUBE_KEEP") == "" {
		err := errors.Join(lab.Down(context.Background(), labConfig, false), os.RemoveAll(dir))
		if err != nil {
			os.Stderr.WriteString("taking the lab down: " + err.Error() + "\n")

			code = 1
		}
	}

	os.Exit(code)
}

// tools are what the tests call themselves, with the package that has it. The lab says what it needs.
var tools = map[string]string{"ansible-runner": "ansible-runner", "ansible-playbook": "ansible-core", "make": "make", "ssh": "openssh-client", "pgrep": "procps"}

// needSite gives the lab to a test. When the test is over, no process of an agent may be left.
func needSite(t *testing.T) *site {
	t.Helper()

	if os.Getenv("THINKUBE_LAB") == "" {
		t.Skip("boots hosts: set THINKUBE_LAB=1")
	}

	missing := missingTools()
	if missing != "" && os.Getenv("CI") == "true" {
		t.Fatal(missing)
	}

	if missing != "" {
		t.Skip(missing)
	}

	bringUp.Do(func() { theSite, siteErr = makeSite() })
	require.NoError(t, siteErr)
	t.Cleanup(func() { theSite.agentsEnd(t) })

	return theSite
}

func missingTools() string {
	if os.Geteuid() != 0 {
		return "needs root: boots hosts"
	}

	var missing []string

	for tool, from := range tools {
		_, err := exec.LookPath(tool)
		if err != nil {
			missing = append(missing, tool+" (package "+from+")")
		}
	}

	if missing == nil {
		return ""
	}

	slices.Sort(missing)

	return "missing: " + strings.Join(missing, ", ")
}

// pristine is the snapshot of hosts as they come up, with LXD's own first start behind them.
const pristine = "pristine"

func makeSite() (*site, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return nil, err
	}

	build := exec.Command("make", "-s", "build")
	build.Dir = root
	build.Stdout, build.Stderr = os.Stderr, os.Stderr

	err = build.Run()
	if err != nil {
		return nil, errors.New("make build failed")
	}

	turn, err := lab.Turn("thinkube-integration-tests", os.Stderr)
	if err != nil {
		return nil, err
	}

	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()

	err = errors.Join(lab.Down(ctx, labConfig, false), os.RemoveAll(dir))
	if err != nil {
		return nil, err
	}

	s := &site{turn: turn, root: root, home: filepath.Join(dir, "home"), runs: filepath.Join(dir, "runs")}

	err = errors.Join(os.MkdirAll(s.home, 0o755), os.MkdirAll(s.runs, 0o755))
	if err != nil {
		return nil, err
	}

	theSite = s // there is something to take down from here on

	s.lab, err = lab.Up(ctx, labConfig)
	if err != nil {
		return nil, err
	}

	// The client of these tests makes itself a folder, too.
	err = s.onAll(ctx, "lxd waitready --timeout=60 && lxc list 2>/dev/null")
	if err != nil {
		return nil, err
	}

	s.inventory = filepath.Join(dir, "three.yaml")

	text, err := os.ReadFile(s.lab.InventoryFile())

	s.fresh = true

	return s, errors.Join(err, os.WriteFile(s.inventory, text, 0o644), s.lab.Snapshot(ctx, pristine))
}

// restore gives every host back as it was in a snapshot, with LXD answering again.
func (s *site) restore(t *testing.T, label string) {
	t.Helper()

	fresh := s.fresh && label == pristine
	s.fresh = false

	if fresh {
		return
	}

	require.NoError(t, s.lab.Restore(t.Context(), label))
	s.ready(t)
}

// ready waits for the daemons of the hosts that have one.
func (s *site) ready(t *testing.T) {
	t.Helper()
	require.NoError(t, s.onAll(t.Context(), "! [ -x /usr/bin/lxd ] || lxd waitready --timeout=60"))
}

// onAll runs a command as root on all hosts at once.
func (s *site) onAll(ctx context.Context, command string) error {
	hosts := s.lab.Hosts()
	errs := make([]error, len(hosts))

	var running sync.WaitGroup

	for i, host := range hosts {
		running.Add(1)

		go func() {
			defer running.Done()

			_, errs[i] = host.Run(ctx, command)
		}()
	}

	running.Wait()

	return errors.Join(errs...)
}

// run runs a command as root on a host, which has to succeed.
func (s *site) run(t *testing.T, name, command string) string {
	t.Helper()

	host, err := s.lab.Host(name)
	require.NoError(t, err)

	output, err := host.Run(t.Context(), command)
	require.NoError(t, err)

	return output
}

// noise is what may differ on a host that was managed and given back: the program that the collection keeps there (as
// Ansible keeps things in .ansible), what sudo notes about a user's first use, the empty packet filter table that LXD
// keeps once it had a network, the order of words in dpkg's file (packages are compared by themselves), and what LXD
// rewrites whenever it runs.
var noise = append([]string{
	"file /root/.cache", "file /root/.cache/**", "file /home/*/.sudo_as_admin_successful", "nft table inet lxd",
	"file /var/lib/dpkg/status",
}, lab.IgnoreLXDDatabase...)

// step runs one of several subtests that build on each other: where one fails, the rest has no ground to stand on.
func step(t *testing.T, name string, do func(t *testing.T)) {
	t.Helper()

	if !t.Run(name, do) {
		t.FailNow()
	}
}

// eventually waits for a command to succeed on a host: for what LXD notices by itself, some seconds later.
func (s *site) eventually(t *testing.T, name, command string) {
	t.Helper()

	host, err := s.lab.Host(name)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		_, err := host.Run(t.Context(), command)

		return err == nil
	}, time.Minute, 250*time.Millisecond, "on %s: %s", name, command)
}

// variant writes the inventory with changes, and returns its path.
func (s *site) variant(t *testing.T, change func(all map[string]any)) string {
	t.Helper()

	text, err := os.ReadFile(s.inventory)
	require.NoError(t, err)

	var inventory map[string]map[string]any

	require.NoError(t, yaml.Unmarshal(text, &inventory))
	change(inventory["all"])

	text, err = yaml.Marshal(inventory)
	require.NoError(t, err)

	path := filepath.Join(t.TempDir(), "inventory.yaml")
	require.NoError(t, os.WriteFile(path, text, 0o644))

	return path
}

// at finds a value deep in an inventory.
func at(t *testing.T, all map[string]any, keys ...string) map[string]any {
	t.Helper()

	for _, key := range keys {
		next, ok := all[key].(map[string]any)
		require.True(t, ok, "no %q in the inventory", key)

		all = next
	}

	return all
}

// hostVars are the variables that the inventory gives one host.
func hostVars(t *testing.T, all map[string]any, name string) map[string]any {
	t.Helper()

	return at(t, all, "children", "baremetal", "children", "headless", "hosts", name)
}

// sameAs stops the test when a host differs from its snapshot.
func (s *site) sameAs(t *testing.T, label string, names ...string) {
	t.Helper()

	for _, name := range names {
		host, err := s.lab.Host(name)
		require.NoError(t, err)

		found, err := host.Diff(t.Context(), label, noise...)
		require.NoError(t, err)

		for _, each := range found {
			t.Errorf("%s differs from %s: %s", name, label, each)
		}
	}

	if t.Failed() {
		t.FailNow()
	}
}
