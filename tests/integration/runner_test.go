// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// playbookTimeout ends a run that hangs.
const playbookTimeout = 5 * time.Minute

// colours are what ansible-runner puts around what it prints.
var colours = regexp.MustCompile("\x1b\\[[0-9;]*m|\r")

// playRun is one finished run of a playbook.
type playRun struct {
	Playbook string
	Code     int
	Took     time.Duration
	Events   []event
	Stats    map[string]hostStats // empty when no play was started
	Stdout   string
	Folder   string // everything that ansible-runner keeps of it
}

// hostStats is the recap of one host.
type hostStats struct{ OK, Changed, Failed, Unreachable, Skipped int }

// event is what ansible-runner tells of one task on one host.
type event struct {
	Event string `json:"event"`
	Data  struct {
		Task string         `json:"task"`
		Host string         `json:"host"`
		Res  map[string]any `json:"res"`

		Duration float64 `json:"duration"` // of the task, in seconds

		OK          map[string]int `json:"ok"`
		Changed     map[string]int `json:"changed"`
		Failures    map[string]int `json:"failures"`
		Dark        map[string]int `json:"dark"`
		Skipped     map[string]int `json:"skipped"`
		Processed   map[string]int `json:"processed"`
		IgnoreError bool           `json:"ignore_errors"`
	} `json:"event_data"`
	Counter int `json:"counter"`
}

// playOptions is how a playbook is called.
type playOptions struct {
	args      []string // of ansible-playbook
	inventory string   // default: that of three hosts
	environ   []string // default: this process's
	meanwhile func()   // is called while it runs; default: nothing
}

// play runs a playbook: of 20_lxd_setup by the beginning of its name ("10"), of another folder with that before it
// ("30_networking/20"), or of testdata by its name.
func (s *site) play(t *testing.T, number string, args ...string) playRun {
	t.Helper()

	return s.playWith(t, number, playOptions{args: args})
}

func (s *site) playWith(t *testing.T, number string, how playOptions) playRun {
	t.Helper()

	folder, err := os.MkdirTemp(s.runs, filepath.Base(number)+"-")
	require.NoError(t, err)

	if how.inventory == "" {
		how.inventory = s.inventory
	}

	if how.environ == nil {
		how.environ = os.Environ()
	}

	argv := []string{"run", folder, "-p", s.playbook(t, number), "-i", "run", "--project-dir", s.root, "--inventory", how.inventory}
	if len(how.args) > 0 {
		argv = append(argv, "--cmdline="+strings.Join(how.args, " "))
	}

	ctx, cancel := context.WithTimeout(t.Context(), playbookTimeout)
	defer cancel()

	runner := exec.CommandContext(ctx, "ansible-runner", argv...)
	runner.Dir = s.root
	runner.Env = s.environ(how.environ)

	var output bytes.Buffer

	runner.Stdout, runner.Stderr = &output, &output

	start := time.Now()

	require.NoError(t, runner.Start())

	if how.meanwhile != nil {
		how.meanwhile()
	}

	err = runner.Wait()
	run := playRun{Playbook: number, Took: time.Since(start), Stdout: colours.ReplaceAllString(output.String(), ""), Folder: folder, Stats: map[string]hostStats{}}

	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("ansible-runner: %v", err)
	}

	require.NoError(t, ctx.Err(), "the run took longer than %s:\n%s", playbookTimeout, &output)

	run.Code = runner.ProcessState.ExitCode()
	run.read(t)

	return run
}

// environ is what ansible-playbook needs to find the checkout, and nothing of the user's own.
func (s *site) environ(base []string) []string {
	return append(slices.Clone(base),
		"ANSIBLE_CONFIG="+filepath.Join(s.root, "ansible.cfg"),
		"HOME="+s.home,
		"PYTHONDONTWRITEBYTECODE=1",
		// No connection outlives the tests for long.
		"ANSIBLE_SSH_ARGS=-C -o ControlMaster=auto -o ControlPersist=10s",
	)
}

func (s *site) playbook(t *testing.T, number string) string {
	t.Helper()

	folder := "ansible/20_lxd_setup"
	if strings.Contains(number, "/") {
		folder = "ansible"
	}

	found, err := filepath.Glob(filepath.Join(s.root, folder, number+"_*.yaml"))
	require.NoError(t, err)
	own, err := filepath.Glob(filepath.Join(s.root, "tests/integration/testdata", number+".yaml"))
	require.NoError(t, err)

	found = append(found, own...)
	require.Len(t, found, 1, number)

	return found[0]
}

func (r *playRun) read(t *testing.T) {
	t.Helper()

	files, err := filepath.Glob(filepath.Join(r.Folder, "artifacts/run/job_events/*.json"))
	require.NoError(t, err)

	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)

		var one event

		require.NoError(t, json.Unmarshal(text, &one), file)
		r.Events = append(r.Events, one)
	}

	slices.SortFunc(r.Events, func(a, b event) int { return a.Counter - b.Counter })

	for _, one := range r.Events {
		if one.Event != "playbook_on_stats" {
			continue
		}

		for host := range one.Data.Processed {
			r.Stats[host] = hostStats{one.Data.OK[host], one.Data.Changed[host], one.Data.Failures[host], one.Data.Dark[host], one.Data.Skipped[host]}
		}
	}
}

// succeeded stops the test when any host failed.
func (r playRun) succeeded(t *testing.T) playRun {
	t.Helper()
	require.Zero(t, r.Code, "playbook %s failed:\n%s", r.Playbook, r.Stdout)
	require.NotEmpty(t, r.Stats, "playbook %s ran no play:\n%s", r.Playbook, r.Stdout)

	return r
}

// changed counts over all hosts.
func (r playRun) changed() int {
	all := 0
	for _, stats := range r.Stats {
		all += stats.Changed
	}

	return all
}

// unchanged is succeeded, with nothing changed on any host and something done on each.
func (r playRun) unchanged(t *testing.T, hosts ...string) playRun {
	t.Helper()
	r.succeeded(t)

	for _, host := range hosts {
		require.Positive(t, r.Stats[host].OK, "%s did nothing on %s:\n%s", r.Playbook, host, r.Stdout)
	}

	require.Zero(t, r.changed(), "playbook %s changed something:\n%s", r.Playbook, r.Stdout)

	return r
}

// failedWith stops the test unless the run failed on the host, and what it said there matches. It says so in a failed
// task, not by being unreachable or a playbook that cannot be read.
func (r playRun) failedWith(t *testing.T, host, pattern string) playRun {
	t.Helper()
	require.NotZero(t, r.Code, "playbook %s passed:\n%s", r.Playbook, r.Stdout)

	said := r.failures(host)
	require.NotEmpty(t, said, "playbook %s failed, but not on %s:\n%s", r.Playbook, host, r.Stdout)
	require.Regexp(t, regexp.MustCompile("(?s)"+pattern), strings.Join(said, "\n"), "playbook %s on %s", r.Playbook, host)

	return r
}

// failures are the texts of a host's failed tasks: messages and plans.
func (r playRun) failures(host string) []string {
	var said []string

	for _, one := range r.Events {
		if one.Data.Host != host || one.Data.IgnoreError || one.Event != "runner_on_failed" && one.Event != "runner_item_on_failed" {
			continue
		}

		res := one.Data.Res
		said = append(said, fmt.Sprintf("%s: %v %v %v %v", one.Data.Task, res["msg"], res["hint"], res["plan"], res["argument_errors"]))
	}

	return said
}

// grep lists the files of the run that match, with what does.
func (r playRun) grep(t *testing.T, pattern string) []string {
	t.Helper()

	secret := regexp.MustCompile(pattern)

	var found []string

	err := filepath.WalkDir(r.Folder, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}

		text, err := os.ReadFile(path)
		for _, match := range secret.FindAll(text, -1) {
			found = append(found, fmt.Sprintf("%s: %.60s", path, match))
		}

		return err
	})
	require.NoError(t, err)

	return found
}
