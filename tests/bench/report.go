// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// What is measured; the words are those of the CSV.
const (
	anyTask    = "ms per task on all hosts"
	firstTask  = "ms of the first task on fresh hosts"
	peakMemory = "MB of the controller at most"
)

// sample is the figures of a variant with a number of hosts, one for each round.
type sample struct {
	measure string
	variant string
	hosts   int
	rounds  []float64
}

func (s sample) add(measure string, v variant, hosts int, value float64) sample {
	return sample{measure: measure, variant: v.name, hosts: hosts, rounds: append(s.rounds, value)}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2

	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}

	return sorted[middle]
}

// find gives the median of another variant on as many hosts, or NaN if it was not measured.
func find(samples []sample, s sample, variant string) float64 {
	for _, o := range samples {
		if o.variant == variant && o.hosts == s.hosts && o.measure == s.measure {
			return median(o.rounds)
		}
	}

	return math.NaN()
}

// short has three digits or so.
func short(value float64) string {
	switch {
	case math.IsNaN(value):
		return "-"
	case value < 10:
		return fmt.Sprintf("%.2f", value)
	case value < 100:
		return fmt.Sprintf("%.1f", value)
	default:
		return fmt.Sprintf("%.0f", value)
	}
}

// show prints the tables as Markdown.
func show(samples []sample, notes ...string) {
	version, _ := exec.Command("ansible-playbook", "--version").Output()
	first, _, _ := strings.Cut(string(version), "\n")
	fmt.Printf("\n%s, %d CPUs; %s\n", first, runtime.NumCPU(), strings.Join(notes, "; "))

	for _, measure := range []string{anyTask, firstTask, peakMemory} {
		of := slices.DeleteFunc(slices.Clone(samples), func(s sample) bool { return s.measure != measure })
		if len(of) > 0 {
			showTable(measure, of)
		}
	}
}

func showTable(measure string, samples []sample) {
	last := "x faster than ping pipelined"
	if measure == peakMemory {
		last = "MB more than nothing"
	}

	fmt.Printf("\n| hosts | variant | %s | rounds | x nothing | %s |\n|---|---|---|---|---|---|\n", measure, last)

	for _, s := range samples {
		rounds := []string{}
		for _, round := range s.rounds {
			rounds = append(rounds, fmt.Sprintf("%.0f", round))
		}

		own, base := median(s.rounds), find(samples, s, nothing)

		compared := find(samples, s, pipelined) / own
		if measure == peakMemory {
			compared = own - base
		}

		fmt.Printf("| %d | %s | %s | %s | %s | %s |\n", s.hosts, s.variant, short(own), strings.Join(rounds, "/"), short(own/base), short(compared))
	}
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
	err = writer.Write([]string{"measure", "hosts", "variant", "round", "value"})

	for _, s := range samples {
		for i, round := range s.rounds {
			err = errors.Join(err, writer.Write([]string{s.measure, strconv.Itoa(s.hosts), s.variant, strconv.Itoa(i + 1), strconv.FormatFloat(round, 'f', 2, 64)}))
		}
	}

	writer.Flush()

	return errors.Join(err, writer.Error(), file.Close())
}
