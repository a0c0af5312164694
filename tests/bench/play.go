// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/thinkube/infra/tests/transport/farm"
)

// bench is the hosts, and beside them what ansible-playbook finds.
type bench struct {
	*farm.Farm
	forks int
	plays int
}

// play is one ansible-playbook.
type play struct {
	variant variant
	hosts   int
	tasks   int
	fresh   bool // each host has a user of its own, and no connection is open
}

// prepare lays out what ansible-playbook finds beside a play.
func (b *bench) prepare() error {
	bundle, err := farm.Build("./modules/bundle", b.Path("bundle"))
	if err != nil {
		return err
	}

	single, err := farm.Build("./modules/lxd_profile/cmd", b.Path("single"))
	if err != nil {
		return err
	}

	fmt.Printf("bundle %.1f MB, packed %.1f MB; stock binary %.1f MB\n", size(bundle.Path), float64(len(bundle.Packed))/1e6, size(single.Path))

	err = farm.WriteCollection(b.Path("collections"), ".", bundle)

	for _, folder := range []string{"library", "action_plugins", "callback", "controller", "cp"} {
		err = errors.Join(err, os.Mkdir(b.Path(folder), 0o755))
	}

	const collection = "collections/ansible_collections/thinkube/infra/plugins/"

	copies := map[string]string{
		"library/lxd_profile":            single.Path,
		"action_plugins/nothing.py":      "tests/bench/plugins/nothing.py",
		collection + "action/nothing.py": "tests/bench/plugins/nothing.py",
		"callback/clock.py":              "tests/bench/plugins/clock.py",
	}
	for to, from := range copies {
		text, readErr := os.ReadFile(from)
		err = errors.Join(err, readErr, os.WriteFile(b.Path(to), text, 0o755))
	}

	return errors.Join(err,
		os.WriteFile(b.Path(collection+"modules/lxd_profile.py"), []byte("# what it is called by\n"), 0o644),
		os.WriteFile(b.Path(collection+"modules/nothing.py"), []byte("# the same\n"), 0o644),
		os.WriteFile(b.Path("library/nothing.py"), []byte("# the action plugin of this name does all\n"), 0o644),
		os.WriteFile(b.Path("ansible.cfg"), nil, 0o644))
}

func size(path string) float64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}

	return float64(info.Size()) / 1e6
}

// run gives the milliseconds of each task. during is called when ansible-playbook has started.
func (b *bench) run(p play, during func()) ([]float64, error) {
	err := errors.Join(b.writePlay(p), b.writeInventory(p), os.RemoveAll(b.Path("clock")))
	if err != nil {
		return nil, err
	}

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()

	var output bytes.Buffer

	command := exec.CommandContext(ctx, "ansible-playbook", "-i", "inventory.json", "play.json")
	command.Dir, command.Stdout, command.Stderr = b.Folder, &output, &output
	command.Env = append(append(os.Environ(), b.environment(p)...), p.variant.env...)
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	command.WaitDelay = time.Second // ssh's master connections may keep the output open

	err = command.Start()
	if err != nil {
		return nil, err
	}

	if during != nil {
		during()
	}

	err = command.Wait()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", p.variant.name, err, tail(output.String()))
	}

	times, err := readClock(b.Path("clock"))
	if err == nil && len(times) != p.tasks {
		err = fmt.Errorf("got the times of %d tasks, not of %d: %s", len(times), p.tasks, tail(output.String()))
	}

	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.variant.name, err)
	}

	return times, nil
}

// tail is what of ansible-playbook's output a user may want to read.
func tail(output string) string { return output[max(0, len(output)-4000):] }

func (b *bench) environment(p play) []string {
	// A master connection of another variant may have other settings.
	control := p.variant.name
	if p.fresh {
		b.plays++
		control = fmt.Sprint(b.plays)
	}

	return []string{
		"HOME=" + b.Path("controller"),
		"ANSIBLE_CONFIG=" + b.Path("ansible.cfg"),
		"ANSIBLE_COLLECTIONS_PATH=" + b.Path("collections"),
		"ANSIBLE_CALLBACK_PLUGINS=" + b.Path("callback"),
		"ANSIBLE_CALLBACKS_ENABLED=clock",
		"ANSIBLE_SSH_CONTROL_PATH_DIR=" + b.Path("cp/"+slug(control)),
		"ANSIBLE_HOST_KEY_CHECKING=0", // Mitogen obeys this, and no option of ssh
		fmt.Sprintf("ANSIBLE_FORKS=%d", b.forks),
		"CLOCK_TO=" + b.Path("clock"),
		"CLOCK_SAYS=" + p.variant.says,
	}
}

func slug(name string) string { return string(bytes.ReplaceAll([]byte(name), []byte(" "), nil)) }

func (b *bench) writePlay(p play) error {
	// failed_when is for the module that misses its option; the others have it too, since it costs.
	list := slices.Repeat([]any{map[string]any{p.variant.module: map[string]any{}, "failed_when": false}}, p.tasks)

	text, err := json.Marshal([]any{map[string]any{"hosts": "all", "gather_facts": false, "vars": p.variant.vars, "tasks": list}})

	return errors.Join(err, os.WriteFile(b.Path("play.json"), text, 0o644))
}

func (b *bench) writeInventory(p play) error {
	all := map[string]any{}

	for n := 1; n <= p.hosts; n++ {
		user := farm.Plain
		if p.fresh {
			user = farm.Owner(n)
		}

		all[fmt.Sprintf("host%03d", n)] = map[string]any{"ansible_host": farm.Address(n), "ansible_user": user}
	}

	text, err := json.Marshal(map[string]any{"all": map[string]any{"hosts": all, "vars": map[string]any{
		"ansible_port":                 b.Port,
		"ansible_ssh_private_key_file": b.Path("key"),
		"ansible_ssh_common_args":      "-F none -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
		"ansible_python_interpreter":   "/usr/bin/python3",
	}}})

	return errors.Join(err, os.WriteFile(b.Path("inventory.json"), text, 0o644))
}

// readClock gives the milliseconds between the lines of plugins/clock.py.
func readClock(path string) ([]float64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}

	times := []float64{}
	last := 0.0

	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		tick, err := strconv.ParseFloat(lines.Text(), 64)
		if err != nil {
			return nil, fmt.Errorf("the module was not reached: %s", lines.Text())
		}

		if last != 0 {
			times = append(times, 1000*(tick-last))
		}

		last = tick
	}

	return times, nil
}
