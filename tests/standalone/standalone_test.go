// SPDX-License-Identifier: Apache-2.0

// Package standalone tests every module as a program of its own, which stock Ansible runs from a library/ folder: no
// collection, no action plugin.
package standalone

import (
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const root = "../.."

var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// modules finds the programs, so that a new module is tested without a line here.
func modules(t *testing.T) []string {
	t.Helper()

	paths, err := filepath.Glob(filepath.Join(root, "modules/*/cmd/main.go"))
	require.NoError(t, err)
	require.NotEmpty(t, paths)

	var names []string
	for _, path := range paths {
		names = append(names, filepath.Base(filepath.Dir(filepath.Dir(path))))
	}

	return names
}

// build builds modules for an architecture into a folder.
func build(t *testing.T, arch, folder string, names []string) {
	t.Helper()

	for _, name := range names {
		command := exec.Command("go", "build", "-buildvcs=false", "-ldflags", "-extldflags=-Wl,-z,lazy", "-o", filepath.Join(folder, name), "./modules/"+name+"/cmd")
		command.Dir = root
		command.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch)

		if needsC(t, name) {
			requireCompiler(t, arch)

			command.Env = append(command.Env, "CGO_ENABLED=1", "CC="+compilers[arch], "CGO_CFLAGS=-O2 -g -Wno-deprecated-declarations")
		} else {
			command.Env = append(command.Env, "CGO_ENABLED=0")
		}

		out, err := command.CombinedOutput()
		require.NoError(t, err, "%s for %s: %s", name, arch, out)
		assertProgram(t, filepath.Join(folder, name), machines[arch], !needsC(t, name))
	}
}

var compilers = map[string]string{"amd64": "x86_64-linux-gnu-gcc", "arm64": "aarch64-linux-gnu-gcc"}

// needsC tells modules that cannot be in the bundle: those that the collection carries as a program of their own.
func needsC(t *testing.T, name string) bool {
	t.Helper()

	_, err := os.Stat(filepath.Join(root, "modules", name, "carried"))
	if !errors.Is(err, os.ErrNotExist) {
		require.NoError(t, err)
	}

	return err == nil
}

func requireCompiler(t *testing.T, arch string) {
	t.Helper()

	_, err := exec.LookPath(compilers[arch])
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal(compilers[arch] + " is missing: make deps-build installs it")
	}

	if err != nil {
		t.Skip(compilers[arch] + " is missing: make deps-build installs it")
	}
}

func assertProgram(t *testing.T, path string, machine elf.Machine, static bool) {
	t.Helper()

	program, err := elf.Open(path)
	require.NoError(t, err)

	defer func() { _ = program.Close() }()

	assert.Equal(t, machine, program.Machine)

	linked := slices.ContainsFunc(program.Progs, func(part *elf.Prog) bool { return part.Type == elf.PT_INTERP })
	assert.Equal(t, static, !linked, "%s needs no dynamic linker", path)
}

func TestModulesBuildForOtherArchitectures(t *testing.T) {
	if os.Getenv("THINKUBE_LAB") == "" {
		t.Skip("compiles everything once more: set THINKUBE_LAB=1")
	}

	for arch := range machines {
		if arch != runtime.GOARCH {
			build(t, arch, t.TempDir(), modules(t))
		}
	}
}

// TestStockAnsibleRunsEveryModule gives each module an option that it does not have: it must start, read its arguments
// file as stock Ansible writes it, and refuse in Ansible's words, whatever this machine has. lxd_info does more, since
// it can where there is nothing.
func TestStockAnsibleRunsEveryModule(t *testing.T) {
	_, err := exec.LookPath("ansible-playbook")
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("ansible-playbook is missing: make deps installs it")
	}

	if err != nil {
		t.Skip("ansible-playbook is missing: make deps installs it")
	}

	folder := t.TempDir()
	names := modules(t)

	require.NoError(t, os.MkdirAll(filepath.Join(folder, "library"), 0o755))
	build(t, runtime.GOARCH, filepath.Join(folder, "library"), names)

	var tasks []map[string]any
	for _, name := range names {
		tasks = append(tasks, map[string]any{"name": name, name: map[string]any{"no_such_option": 1}, "ignore_errors": true})
	}

	tasks = append(tasks, map[string]any{"name": "info", "lxd_info": map[string]any{"missing_ok": "yes", "socket": "/nonexistent/socket"}})

	results := play(t, folder, tasks)

	for _, name := range names {
		// What is missing is found before what is unknown.
		assert.Regexp(t, `^(missing required arguments: |state is present but any of the following are missing: |Unsupported parameters for \(`+name+`\) module: no_such_option\. )`, results[name]["msg"], name)
		assert.Contains(t, results[name], "invocation", name)
		assert.Equal(t, true, results[name]["failed"])
	}

	assert.Equal(t, false, results["info"]["installed"], "%v", results["info"])
	assert.Equal(t, false, results["info"]["changed"])
}

// play runs tasks on this machine and gives their results by the tasks' names.
func play(t *testing.T, folder string, tasks []map[string]any) map[string]map[string]any {
	t.Helper()

	// JSON is YAML.
	text, err := json.Marshal([]map[string]any{{"hosts": "localhost", "connection": "local", "gather_facts": false, "tasks": tasks}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(folder, "play.yml"), text, 0o644))

	require.NoError(t, os.WriteFile(filepath.Join(folder, "empty.cfg"), nil, 0o644))

	command := exec.Command("ansible-playbook", "-i", "localhost,", "play.yml")
	command.Dir = folder
	command.Env = append(slices.Clone(os.Environ()),
		"HOME="+folder, "ANSIBLE_CONFIG="+filepath.Join(folder, "empty.cfg"), "ANSIBLE_COLLECTIONS_PATH="+filepath.Join(folder, "none"), "ANSIBLE_STDOUT_CALLBACK=json",
		"ANSIBLE_LIBRARY="+filepath.Join(folder, "library"), "LC_ALL=C.UTF-8",
		// Not in the user's home, which for some users does not exist.
		"ANSIBLE_REMOTE_TEMP="+filepath.Join(folder, "tmp"),
	)

	out, err := command.Output()

	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s%s", err, out, exit.Stderr)
	}

	require.NoError(t, err)

	var report struct {
		Plays []struct {
			Tasks []struct {
				Task  struct{ Name string }
				Hosts map[string]map[string]any
			}
		}
	}

	require.NoError(t, json.Unmarshal(out, &report), string(out))

	results := map[string]map[string]any{}
	for _, task := range report.Plays[0].Tasks {
		results[task.Task.Name] = task.Hosts["localhost"]
	}

	return results
}
