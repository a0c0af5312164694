// SPDX-License-Identifier: Apache-2.0

// Bench compares what a task costs by the way it is carried to its host: side by side in one run, interleaved, on
// sshd's own loopback hosts (tests/transport/farm). It needs root.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/thinkube/infra/tests/transport/farm"
)

// variant is one way to run a task that does nothing. The collection's module is called without the option that it
// needs: the real program is started, reads its arguments and says so, and touches nothing.
type variant struct {
	name   string
	module string
	env    string
	slow   bool // has fewer tasks in a play
}

var variants = []variant{
	{name: "nothing", module: "nothing"},
	{name: "exec", module: "thinkube.infra.lxd_profile"},
	{name: "ping pipelined", module: "ansible.builtin.ping", env: "ANSIBLE_PIPELINING=1"},
	{name: "ping", module: "ansible.builtin.ping", env: "ANSIBLE_PIPELINING=0", slow: true},
	{name: "stock binary", module: "lxd_profile", slow: true},
}

// sample is the figures of a variant with a number of hosts: milliseconds per task, of each round the median.
type sample struct {
	variant string
	hosts   int
	rounds  []float64
}

func main() {
	rounds := flag.Int("rounds", 3, "how often all variants are run")
	counts := flag.String("hosts", "1,20", "numbers of hosts to run on")
	only := flag.String("only", "", "names of variants, if not all: nothing,exec")
	out := flag.String("out", "bench-results/module_task.csv", "file for the figures")
	flag.Parse()
	runtime.LockOSThread() // on which the hosts live

	if *only != "" {
		names := strings.Split(*only, ",")
		variants = slices.DeleteFunc(variants, func(v variant) bool { return !slices.Contains(names, v.name) })
	}

	err := bench(*rounds, *counts, *out)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(rounds int, counts, out string) (err error) {
	if missing := farm.MissingTools(); missing != "" {
		return errors.New(missing)
	}

	hosts, err := farm.Start()
	if err != nil {
		return err
	}

	defer func() { err = errors.Join(err, hosts.Stop()) }()

	err = prepare(hosts)
	if err != nil {
		return err
	}

	samples := []sample{}

	for _, text := range strings.Split(counts, ",") {
		count, err := strconv.Atoi(text)
		if err != nil || count < 1 || count > farm.Addresses {
			return fmt.Errorf("-hosts %q: must be numbers from 1 to %d", counts, farm.Addresses)
		}

		measured, err := measure(hosts, count, rounds)
		if err != nil {
			return err
		}

		samples = append(samples, measured...)
	}

	show(samples)

	return write(out, samples)
}

// prepare lays out what ansible-playbook finds beside a play.
func prepare(hosts *farm.Farm) error {
	bundle, err := farm.Build("./modules/bundle", hosts.Path("bundle"))
	if err != nil {
		return err
	}

	single, err := farm.Build("./modules/lxd_profile/cmd", hosts.Path("single"))
	if err != nil {
		return err
	}

	fmt.Printf("bundle %.1f MB, packed %.1f MB; stock binary %.1f MB\n", size(bundle.Path), float64(len(bundle.Packed))/1e6, size(single.Path))

	err = farm.WriteCollection(hosts.Path("collections"), ".", bundle)

	for _, folder := range []string{"library", "action_plugins", "callback", "controller"} {
		err = errors.Join(err, os.Mkdir(hosts.Path(folder), 0o755))
	}

	copies := map[string]string{
		single.Path:                      "library/lxd_profile",
		"tests/bench/plugins/nothing.py": "action_plugins/nothing.py",
		"tests/bench/plugins/clock.py":   "callback/clock.py",
	}
	for from, to := range copies {
		text, readErr := os.ReadFile(from)
		err = errors.Join(err, readErr, os.WriteFile(hosts.Path(to), text, 0o755))
	}

	return errors.Join(err,
		os.WriteFile(hosts.Path("collections/ansible_collections/thinkube/infra/plugins/modules/lxd_profile.py"), []byte("# what it is called by\n"), 0o644),
		os.WriteFile(hosts.Path("library/nothing.py"), []byte("# the action plugin of this name does all\n"), 0o644),
		os.WriteFile(hosts.Path("ansible.cfg"), nil, 0o644))
}

func size(path string) float64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}

	return float64(info.Size()) / 1e6
}

// measure runs all variants, then all again: what else the machine does falls on each of them.
func measure(hosts *farm.Farm, count, rounds int) ([]sample, error) {
	samples := make([]sample, len(variants))

	for round := range rounds {
		for i, variant := range variants {
			fmt.Printf("hosts: %d, round %d: %s\n", count, round+1, variant.name)

			times, err := play(hosts, count, variant)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", variant.name, err)
			}

			samples[i].variant, samples[i].hosts = variant.name, count
			samples[i].rounds = append(samples[i].rounds, median(times))
		}
	}

	return samples, nil
}

// warmUps are tasks before the measured ones: the connection, the upload, Ansible's caches.
const warmUps = 2

// play runs one ansible-playbook and gives the milliseconds of each measured task.
func play(hosts *farm.Farm, count int, v variant) ([]float64, error) {
	tasks := 20

	switch {
	case count > 1 && v.slow:
		tasks = 2
	case count > 1 || v.slow:
		tasks = 6
	}

	err := errors.Join(writePlay(hosts, v, warmUps+tasks), writeInventory(hosts, count), os.RemoveAll(hosts.Path("clock")))
	if err != nil {
		return nil, err
	}

	control := hosts.Path("cp" + strings.ReplaceAll(v.name, " ", ""))

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()

	run := exec.CommandContext(ctx, "ansible-playbook", "-i", "inventory.json", "play.json")
	run.Dir = hosts.Folder
	run.Env = append(os.Environ(), v.env,
		"HOME="+hosts.Path("controller"),
		"ANSIBLE_CONFIG="+hosts.Path("ansible.cfg"),
		"ANSIBLE_COLLECTIONS_PATH="+hosts.Path("collections"),
		"ANSIBLE_CALLBACK_PLUGINS="+hosts.Path("callback"),
		"ANSIBLE_CALLBACKS_ENABLED=clock",
		"ANSIBLE_SSH_CONTROL_PATH_DIR="+control, // a master of another variant may have other settings
		"ANSIBLE_FORKS=20",
		"CLOCK_TO="+hosts.Path("clock"),
	)

	output, err := run.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, output)
	}

	ticks, err := readTicks(hosts.Path("clock"))
	if err != nil || len(ticks) != warmUps+tasks+1 {
		return nil, fmt.Errorf("got %d times of %d: %w: %s", len(ticks), warmUps+tasks+1, err, output)
	}

	times := []float64{}
	for i := warmUps; i < len(ticks)-1; i++ {
		times = append(times, 1000*(ticks[i+1]-ticks[i]))
	}

	return times, nil
}

func writePlay(hosts *farm.Farm, v variant, tasks int) error {
	// failed_when is for the module that misses its option; the others have it too, since it costs.
	list := slices.Repeat([]any{map[string]any{v.module: map[string]any{}, "failed_when": false}}, tasks)

	text, err := json.Marshal([]any{map[string]any{"hosts": "all", "gather_facts": false, "tasks": list}})

	return errors.Join(err, os.WriteFile(hosts.Path("play.json"), text, 0o644))
}

func writeInventory(hosts *farm.Farm, count int) error {
	all := map[string]any{}
	for i := 1; i <= count; i++ {
		all[fmt.Sprintf("host%02d", i)] = map[string]any{"ansible_host": farm.Address(i)}
	}

	text, err := json.Marshal(map[string]any{"all": map[string]any{"hosts": all, "vars": map[string]any{
		"ansible_user":                 farm.Plain,
		"ansible_port":                 hosts.Port,
		"ansible_ssh_private_key_file": hosts.Path("key"),
		"ansible_ssh_common_args":      "-F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
		"ansible_python_interpreter":   "/usr/bin/python3",
	}}})

	return errors.Join(err, os.WriteFile(hosts.Path("inventory.json"), text, 0o644))
}

func readTicks(path string) ([]float64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}

	ticks := []float64{}

	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		tick, err := strconv.ParseFloat(lines.Text(), 64)
		if err != nil {
			return nil, err
		}

		ticks = append(ticks, tick)
	}

	return ticks, nil
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2

	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}

	return sorted[middle]
}

// find gives the median of a variant's rounds.
func find(samples []sample, variant string, hosts int) float64 {
	for _, s := range samples {
		if s.variant == variant && s.hosts == hosts {
			return median(s.rounds)
		}
	}

	return 0
}

func show(samples []sample) {
	version, _ := exec.Command("ansible-playbook", "--version").Output()
	first, _, _ := strings.Cut(string(version), "\n")
	fmt.Printf("\n%s, %d CPUs\n", first, runtime.NumCPU())

	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "hosts\tvariant\tms per task on all hosts\trounds\tx nothing\tx faster than ping pipelined\t")

	for _, s := range samples {
		rounds := []string{}
		for _, round := range s.rounds {
			rounds = append(rounds, fmt.Sprintf("%.0f", round))
		}

		own := median(s.rounds)
		fmt.Fprintf(table, "%d\t%s\t%.1f\t%s\t%.2f\t%.2f\t\n", s.hosts, s.variant, own, strings.Join(rounds, "/"),
			own/find(samples, "nothing", s.hosts), find(samples, "ping pipelined", s.hosts)/own)
	}

	_ = table.Flush()
}

func write(path string, samples []sample) error {
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err != nil {
		return err
	}

	file, err := os.Create(path)
	if err != nil {
		return err
	}

	writer := csv.NewWriter(file)
	err = writer.Write([]string{"hosts", "variant", "round", "ms_per_task"})

	for _, s := range samples {
		for i, round := range s.rounds {
			err = errors.Join(err, writer.Write([]string{strconv.Itoa(s.hosts), s.variant, strconv.Itoa(i + 1), strconv.FormatFloat(round, 'f', 2, 64)}))
		}
	}

	writer.Flush()

	return errors.Join(err, writer.Error(), file.Close())
}
