// SPDX-License-Identifier: Apache-2.0

// Bench compares what a task costs by the way it is carried to its host: side by side in one run, interleaved, on
// sshd's own loopback hosts (tests/transport/farm). It needs root.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/thinkube/infra/tests/transport/farm"
)

// options is what the command line says.
type options struct {
	rounds   int
	counts   []int
	variants []variant
	all      bool // nothing was left out with -only
	fresh    int
	forks    int
	out      string
	mitogen  string
}

func main() {
	o, err := parse()
	if err == nil {
		err = o.bench()
	}

	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse() (options, error) {
	o := options{mitogen: os.Getenv("MITOGEN")}
	counts := flag.String("hosts", "1,20,100", `numbers of hosts to run on; "" for none`)
	only := flag.String("only", "", "names of variants, if not all: nothing,agent")
	flag.IntVar(&o.rounds, "rounds", 3, "how often all variants are run; twice as often on one host")
	flag.IntVar(&o.fresh, "fresh", 20, "number of fresh hosts to measure the first task on; 0 for none")
	flag.IntVar(&o.forks, "forks", 20, "ansible-playbook's forks")
	flag.StringVar(&o.out, "out", "bench-results/module_task.csv", "file for the figures")
	flag.Parse()

	o.all = *only == ""

	var err, wrong error

	o.variants, err = chosen(*only, o.mitogen)

	o.counts, wrong = numbers(*counts)
	err = errors.Join(err, wrong)

	if flag.NArg() > 0 {
		err = errors.Join(err, fmt.Errorf("unexpected %q: -help lists the options", flag.Arg(0)))
	}

	if o.rounds < 1 || o.forks < 1 {
		err = errors.Join(err, errors.New("-rounds and -forks must be 1 or more"))
	}

	if o.fresh < 0 || o.fresh > farm.Addresses {
		err = errors.Join(err, fmt.Errorf("-fresh %d: must be from 0 to %d", o.fresh, farm.Addresses))
	}

	return o, err
}

func numbers(list string) ([]int, error) {
	counts := []int{}

	for text := range strings.SplitSeq(list, ",") {
		if list == "" {
			break
		}

		count, err := strconv.Atoi(text)
		if err != nil || count < 1 || count > farm.Addresses {
			return nil, fmt.Errorf("-hosts %q: must be numbers from 1 to %d", list, farm.Addresses)
		}

		counts = append(counts, count)
	}

	return counts, nil
}

func (o options) bench() (err error) {
	if missing := farm.MissingTools(); missing != "" {
		return errors.New(missing)
	}

	runtime.LockOSThread() // on which the hosts live

	hosts, err := farm.Start()
	if err != nil {
		return err
	}

	defer func() { err = errors.Join(err, hosts.Stop()) }()

	b := &bench{Farm: hosts, forks: o.forks}

	err = b.prepare()
	if err == nil {
		err = b.try(o.variants)
	}

	if err != nil {
		return err
	}

	samples, err := o.measure(b)
	if err != nil {
		return err
	}

	show(samples, fmt.Sprintf("%d forks", o.forks), mitogenNote(o.variants, o.mitogen))
	fmt.Println("\nall rounds:", o.out)

	return write(o.out, samples)
}

// try runs all variants once before any is measured, so that one that cannot work does not end the run after minutes.
func (b *bench) try(variants []variant) error {
	for _, v := range variants {
		fmt.Printf("trying %s\n", v.name)

		_, err := b.run(play{variant: v, hosts: 1, tasks: 1}, nil)
		if err != nil {
			return err
		}
	}

	return nil
}

func (o options) measure(b *bench) ([]sample, error) {
	samples := []sample{}

	for _, count := range o.counts {
		measured, err := b.tasks(count, o.rounds, o.fitFor(count))
		if err != nil {
			return nil, err
		}

		samples = append(samples, measured...)
	}

	if o.fresh == 0 {
		return samples, nil
	}

	measured, err := b.fresh(o.fresh, o.rounds, o.variants)

	return append(samples, measured...), err
}

// Beyond so many hosts the slow variants take minutes a task: only who names them gets them.
const manyHosts = 20

func (o options) fitFor(count int) []variant {
	return slices.DeleteFunc(slices.Clone(o.variants), func(v variant) bool { return v.pace == slow && count > manyHosts && o.all })
}

// tasks runs all variants, then all again: what else the machine does falls on each of them.
func (b *bench) tasks(hosts, rounds int, variants []variant) ([]sample, error) {
	samples := make([]sample, len(variants))

	if hosts == 1 {
		rounds *= 2 // short ones
	}

	for round := range rounds {
		for i, v := range variants {
			fmt.Printf("hosts: %d, round %d: %s\n", hosts, round+1, v.name)

			warmUps, measured := length(hosts, v.pace)

			times, err := b.run(play{variant: v, hosts: hosts, tasks: warmUps + measured}, nil)
			if err != nil {
				return nil, err
			}

			samples[i] = samples[i].add(anyTask, v, hosts, median(times[warmUps:]))
		}
	}

	return samples, nil
}

// length is how many tasks a play has: warm-ups (the connection, the upload, Ansible's caches) and measured ones.
func length(hosts int, p pace) (warmUps, measured int) {
	switch {
	case hosts == 1:
		return 2, []int{40, 20, 3}[p]
	case hosts <= manyHosts:
		return 2, []int{8, 4, 1}[p]
	default:
		return 1, []int{3, 1, 1}[p]
	}
}
