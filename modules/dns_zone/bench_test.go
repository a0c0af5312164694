// SPDX-License-Identifier: Apache-2.0

package dnszone_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/dnstest"
)

// measured is one way of doing a thing, with the times and the memory (of the largest process) of its rounds. A process
// begins with what its parent has: no less than the benchmark itself needs is seen.
type measured struct {
	name   string
	run    func(round int) *exec.Cmd
	after  func(round int) // puts things back, unmeasured
	times  []time.Duration
	memory int64 // octets
}

// race runs all ways in turn, so that what else the machine does hits them alike.
func race(b *testing.B, rounds int, ways []*measured) {
	b.Helper()

	var output bytes.Buffer // one for all: to get memory for it would be a part of the time

	for round := range rounds + 1 {
		for _, way := range ways {
			command := way.run(round)

			output.Reset()

			if command.Stdout == nil {
				command.Stdout = &output
			}

			command.Stderr = &output
			begin := time.Now()
			err := command.Run()
			took := time.Since(begin)
			require.NoError(b, err, "%s: %s", way.name, output.String())

			if usage, ok := command.ProcessState.SysUsage().(*syscall.Rusage); ok && round > 0 {
				way.times = append(way.times, took) // the first round only warms up
				way.memory = max(way.memory, usage.Maxrss*1024)
			}

			if way.after != nil {
				way.after(round)
			}
		}
	}
}

func (m *measured) median() time.Duration {
	sorted := slices.Sorted(slices.Values(m.times))

	return sorted[len(sorted)/2]
}

// best is what the machine can do: what else it did is in the other rounds.
func (m *measured) best() time.Duration { return slices.Min(m.times) }

// kept says whether a goal is met, and lets the benchmark fail if it is not.
func kept(b *testing.B, met bool, goal string, args ...any) string {
	b.Helper()

	goal = fmt.Sprintf(goal, args...)
	if met {
		return goal
	}

	b.Errorf("missed: %s", goal)

	return "**missed**: " + goal
}

func program(b *testing.B) string {
	b.Helper()

	path := filepath.Join(b.TempDir(), "dns_zone")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./cmd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")

	output, err := build.CombinedOutput()
	require.NoError(b, err, "%s", output)

	return path
}

func writeArgs(b *testing.B, s *dnstest.Server, list []any, more map[string]any) string {
	b.Helper()

	args := map[string]any{
		"name": "example.com", "port": s.Port, "timeout": "5m", "records": list,
		"tsig": map[string]any{"name": "update", "secret": dnstest.Secret("update")},
	}
	for key, value := range more {
		args[key] = value
	}

	text, err := json.Marshal(args)
	require.NoError(b, err)

	path := filepath.Join(b.TempDir(), "args")
	require.NoError(b, os.WriteFile(path, text, 0o600))

	return path
}

func address(i int) string { return fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255) }

func hostRecord(i int) map[string]any {
	return map[string]any{"name": fmt.Sprintf("host-%d", i), "type": "A", "values": []any{address(i)}}
}

// BenchmarkUnchangedZone plans for a zone of 100,000 records in which nothing has to be done, and transfers it with dig.
func BenchmarkUnchangedZone(b *testing.B) {
	const many = 100_000

	text := []byte(dnstest.MinimalZone(zone))
	list := make([]any, 0, many)

	for i := range many {
		text = fmt.Appendf(text, "host-%d A %s\n", i, address(i))
		list = append(list, hostRecord(i))
	}

	s := dnstest.Start(b, "named", dnstest.Zone{Name: zone, Text: string(text)})
	binary, args := program(b), writeArgs(b, s, list, nil)

	for b.Loop() {
		dig := &measured{name: "dig AXFR", run: func(int) *exec.Cmd {
			return exec.Command("dig", "+tcp", "-p", fmt.Sprint(s.Port), "@127.0.0.1", "-y", "hmac-sha256:update:"+dnstest.Secret("update"), zone, "AXFR")
		}}
		ours := &measured{name: "dns_zone, nothing to do", run: func(int) *exec.Cmd { return exec.Command(binary, args) }}

		race(b, 7, []*measured{dig, ours})

		times, memory := float64(ours.best())/float64(dig.best()), float64(ours.memory)/1e6

		fmt.Printf("\n| 100,000 records, unchanged | s, best | s, median | times dig, best | MB |\n|---|---|---|---|---|\n")

		for _, way := range []*measured{dig, ours} {
			fmt.Printf("| %s | %.2f | %.2f | %.1f | %.0f |\n", way.name, way.best().Seconds(), way.median().Seconds(),
				float64(way.best())/float64(dig.best()), float64(way.memory)/1e6)
		}

		fmt.Println("\nGoals:", kept(b, times <= 3, "at most 3 times dig"), "and", kept(b, memory < 400, "less than 400 MB"))
		b.ReportMetric(times, "times-dig")
		b.ReportMetric(memory, "MB")
	}
}

// BenchmarkAThousandChanges adds 1,000 records, as one task, as one batch of nsupdate, and one task a record.
func BenchmarkAThousandChanges(b *testing.B) {
	const many, single = 1000, 20

	var (
		list  []any
		batch strings.Builder
	)

	s := dnstest.Start(b, "named", dnstest.Zone{Name: zone})
	fmt.Fprintf(&batch, "server 127.0.0.1 %d\nzone %s\n", s.Port, zone)

	for i := range many {
		list = append(list, hostRecord(i))
		fmt.Fprintf(&batch, "update add host-%d.%s 3600 A %s\n", i, zone, address(i))
	}

	batch.WriteString("send\n")

	binary, args := program(b), writeArgs(b, s, list, nil)
	absent := writeArgs(b, s, list, map[string]any{"state": "absent", "force": true})
	playbook := writePlaybook(b, s, single, binary, args)

	clean := func(int) {
		output, err := exec.Command(binary, absent).CombinedOutput()
		require.NoError(b, err, "%s", output)
	}

	for b.Loop() {
		nsupdate := &measured{name: "nsupdate, one batch", after: clean, run: func(int) *exec.Cmd {
			command := exec.Command("nsupdate", "-y", "hmac-sha256:update:"+dnstest.Secret("update"))
			command.Stdin = strings.NewReader(batch.String())

			return command
		}}
		ours := &measured{name: "dns_zone", after: clean, run: func(int) *exec.Cmd { return exec.Command(binary, args) }}
		none := &measured{name: "a play without tasks", run: func(int) *exec.Cmd { return play(playbook, "none") }}
		each := &measured{name: "community.general.nsupdate, one task a record", after: clean, run: func(int) *exec.Cmd { return play(playbook, "each") }}

		task := &measured{name: "dns_zone, one task of Ansible", after: clean, run: func(int) *exec.Cmd { return play(playbook, "ours") }}

		race(b, 3, []*measured{nsupdate, ours, none, task, each})

		// What a play costs by itself is not the module's.
		one := (each.best() - none.best()) / single * many
		whole := task.best() - none.best()
		batches, faster := float64(ours.best())/float64(nsupdate.best()), float64(one)/float64(whole)

		fmt.Printf("\n| 1,000 changes | s | times dns_zone |\n|---|---|---|\n")

		for _, way := range []struct {
			name string
			took time.Duration
		}{{ours.name, ours.best()}, {task.name, whole}, {nsupdate.name, nsupdate.best()}, {fmt.Sprintf("%s (from %d)", each.name, single), one}} {
			fmt.Printf("| %s | %.2f | %.1f |\n", way.name, way.took.Seconds(), float64(way.took)/float64(ours.best()))
		}

		fmt.Println("\nGoals:", kept(b, batches <= 2, "the program takes at most 2 times as long as one batch"), "and",
			kept(b, faster >= 300, "the task is at least 300 times faster than one a record"))
		b.ReportMetric(batches, "times-nsupdate")
		b.ReportMetric(faster, "times-faster-than-one-by-one")
	}
}

// play runs the playbook's tasks with a tag.
func play(playbook, tag string) *exec.Cmd {
	command := exec.Command("ansible-playbook", "-i", "localhost,", "-c", "local", "--tags", tag, playbook)
	command.Env = append(os.Environ(), "ANSIBLE_PIPELINING=true", "ANSIBLE_CONFIG="+filepath.Dir(playbook)+"/ansible.cfg", "ANSIBLE_LIBRARY="+filepath.Dir(playbook)+"/library", "ANSIBLE_COLLECTIONS_PATH="+filepath.Dir(playbook)+"/"+packages)

	return command
}

const packages = "root/usr/lib/python3/dist-packages"

// writePlaybook makes a playbook of the other module. It is that of the distribution, unpacked and not installed.
func writePlaybook(b *testing.B, s *dnstest.Server, tasks int, binary, args string) string {
	b.Helper()

	folder := b.TempDir()
	require.NoError(b, os.Chmod(folder, 0o755))

	fetch := exec.Command("sh", "-c", "apt-get -qq -o APT::Sandbox::User=root download ansible && dpkg-deb -x ansible_*.deb root && rm ansible_*.deb")
	fetch.Dir = folder

	output, err := fetch.CombinedOutput()
	require.NoError(b, err, "%s", output)

	text := fmt.Sprintf(`- hosts: all
  gather_facts: false
  tasks:
    - community.general.nsupdate:
        server: 127.0.0.1
        port: %d
        key_name: update
        key_secret: %s
        key_algorithm: hmac-sha256
        zone: %s
        record: "host-{{ item }}"
        type: A
        value: "10.0.0.{{ item }}"
      loop: "{{ range(%d) | list }}"
      tags: each
    - dns_zone: "{{ lookup('file', '%s') | from_json }}"
      tags: ours
`, s.Port, dnstest.Secret("update"), zone, tasks, args)

	require.NoError(b, os.WriteFile(filepath.Join(folder, "ansible.cfg"), nil, 0o600)) // none of the user's own

	require.NoError(b, os.Mkdir(filepath.Join(folder, "library"), 0o755))
	require.NoError(b, os.Link(binary, filepath.Join(folder, "library/dns_zone")))

	path := filepath.Join(folder, "play.yaml")
	require.NoError(b, os.WriteFile(path, []byte(text), 0o600))

	return path
}
