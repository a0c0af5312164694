// SPDX-License-Identifier: Apache-2.0

// Package collection tests what users install: the tarball, as `make collection` builds it, in an empty folder.
package collection

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/ansible219"
)

const root = "../.."

// Galaxy refuses larger tarballs; a host should not have to keep larger programs.
const maxTarball, maxProgram = 20_000_000, 20_000_000

var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// need skips the test where a tool is missing, and fails it where none may be.
func need(t *testing.T, tools ...string) {
	t.Helper()

	for _, tool := range tools {
		_, err := exec.LookPath(tool)
		if err != nil {
			unavailable(t, tool+" is missing: make deps installs it")
		}
	}
}

func unavailable(t *testing.T, why string) {
	t.Helper()

	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}

	t.Skip(why)
}

// kinds are the programs that the collection carries: the bundle, and the modules that cannot be in it.
var kinds = []string{"thinkube", "thinkube_gpu_info"}

// programs are libexec's files by kind and architecture.
func programs(t *testing.T) map[[2]string]string {
	t.Helper()

	found := map[[2]string]string{}

	for _, kind := range kinds {
		for arch := range machines {
			path := filepath.Join(root, "libexec", kind+"_linux_"+arch+".gz")

			_, err := os.Stat(path)
			if err != nil {
				unavailable(t, "the programs are not built: make build")
			}

			found[[2]string{kind, arch}] = path
		}
	}

	return found
}

// built is a tarball and what is in it.
type built struct {
	path  string
	files map[string][]byte
}

var build struct {
	sync.Once
	built
	folder string
	err    error
}

// tarball builds the collection once, out of a copy of the checkout in which lies what must not get into it.
func tarball(t *testing.T) built {
	t.Helper()
	need(t, "ansible-galaxy")
	programs(t)

	build.Do(func() {
		build.folder, build.err = os.MkdirTemp("", "thinkube-collection-")
		if build.err == nil {
			build.built, build.err = buildTarball(build.folder)
		}
	})
	require.NoError(t, build.err)

	return build.built
}

// TestMain removes what the tests share.
func TestMain(m *testing.M) {
	code := m.Run()

	if build.folder != "" {
		_ = os.RemoveAll(build.folder)
	}

	os.Exit(code)
}

// unwanted is what a checkout may hold and no user must get.
var unwanted = []string{
	".env", ".ci/run", "bench-results/x.csv", "dist/lab", "inventory/home.yaml", "inventory/host_vars/server1.yaml",
	"inventory/lab.yaml", "plugins/action/__pycache__/module.cpython-311.pyc", "playbooks/10.retry", "old.tar.gz", "roles/.idea/x",
	"modules/lxd_profile/module.go", "tests/lab/lab.go", "go.mod", "Makefile", "ansible.cfg",
}

func buildTarball(folder string) (made built, err error) {
	checkout := filepath.Join(folder, "checkout")

	err = errors.Join(copyCheckout(checkout), makeHome(folder))
	for _, path := range unwanted {
		path = filepath.Join(checkout, path)
		err = errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("unwanted"), 0o644))
	}

	if err != nil {
		return built{}, err
	}

	command := exec.Command("ansible-galaxy", "collection", "build", "--output-path", folder)
	command.Dir = checkout
	command.Env = environ(folder, os.Environ())

	out, err := command.CombinedOutput()
	if err != nil {
		return built{}, fmt.Errorf("ansible-galaxy collection build: %w\n%s", err, out)
	}

	paths, err := filepath.Glob(filepath.Join(folder, "thinkube-infra-*.tar.gz"))
	if err != nil || len(paths) != 1 {
		return built{}, fmt.Errorf("built %q: %w", paths, err)
	}

	made.path = paths[0]
	made.files, err = readTarball(made.path)

	return made, errors.Join(err, os.RemoveAll(checkout))
}

// copyCheckout copies what a checkout has. Most of it must not get into the tarball.
func copyCheckout(to string) error {
	err := os.MkdirAll(to, 0o755)

	for _, name := range []string{
		"galaxy.yml", "README.md", "CHANGELOG.md", "LICENSE", "LICENSES", "ansible", "ansible.cfg", "changelogs", "docs", "go.mod",
		"inventory", "libexec", "Makefile", "meta", "modules", "playbooks", "plugins", "roles", "tests",
	} {
		out, copyErr := exec.Command("cp", "-a", filepath.Join(root, name), to).CombinedOutput()
		if copyErr != nil {
			err = errors.Join(err, fmt.Errorf("%w: %s", copyErr, out))
		}
	}

	return err
}

func readTarball(path string) (map[string][]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}

	defer func() { _ = file.Close() }()

	unzipped, err := gzip.NewReader(file)
	if err != nil {
		return nil, err
	}

	files := map[string][]byte{}
	archive := tar.NewReader(unzipped)

	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}

		if err != nil {
			return nil, err
		}

		if header.Typeflag == tar.TypeDir {
			header.Name = strings.TrimSuffix(header.Name, "/") + "/"
		}

		files[header.Name], err = io.ReadAll(archive)
		if err != nil {
			return nil, err
		}
	}
}

// makeHome makes what environ names.
func makeHome(folder string) error {
	return errors.Join(os.Mkdir(filepath.Join(folder, "home"), 0o700), os.WriteFile(filepath.Join(folder, "empty.cfg"), nil, 0o644))
}

// environ lets Ansible use nothing but what is in the folder.
func environ(folder string, outer []string) []string {
	return append(slices.Clone(outer),
		"HOME="+filepath.Join(folder, "home"), "ANSIBLE_CONFIG="+filepath.Join(folder, "empty.cfg"), "ANSIBLE_COLLECTIONS_PATH="+filepath.Join(folder, "collections"),
		"ANSIBLE_LOCAL_TEMP="+filepath.Join(folder, "home/tmp"), "LC_ALL=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1", "ANSIBLE_NOCOLOR=1",
	)
}

func TestTarballHasWhatUsersNeedAndNothingElse(t *testing.T) {
	tarball := tarball(t)

	allowed := regexp.MustCompile(`^(MANIFEST\.json|FILES\.json|README\.md|CHANGELOG\.md|LICENSE|meta/|meta/runtime\.yml` +
		`|inventory/|inventory/reference\.yaml|libexec/|libexec/thinkube(_gpu_info)?_linux_(amd64|arm64)\.(gz|sha256)` +
		`|LICENSES/.*|changelogs/.*|docs/.*|(playbooks|roles)/([\w/-]+(\.\w+)*\.(ya?ml|md|j2))?|roles/\w+/files/\w+\.py|(playbooks|roles)/[\w/-]+/|plugins/([\w/]+\.py)?|plugins/[\w/]+/)$`)

	for name, content := range tarball.files {
		assert.Regexp(t, allowed, name)
		assert.NotContains(t, name, "__pycache__")
		assert.NotEqual(t, "unwanted", string(content), name)
	}

	for _, name := range append(tracked(t), "MANIFEST.json", "libexec/thinkube_linux_amd64.gz", "libexec/thinkube_linux_arm64.sha256",
		"libexec/thinkube_gpu_info_linux_arm64.gz", "libexec/thinkube_gpu_info_linux_amd64.sha256") {
		assert.Contains(t, tarball.files, name)
	}
}

// tracked lists what git knows of the rooms that users get; nothing where there is no git.
func tracked(t *testing.T) []string {
	t.Helper()

	// The checkout may belong to somebody else.
	command := exec.Command("git", "-c", "safe.directory=*", "ls-files", "README.md", "CHANGELOG.md", "LICENSE", "LICENSES", "changelogs", "docs",
		"meta", "playbooks", "plugins", "roles", "inventory")
	command.Dir = root

	out, err := command.Output()
	if err != nil {
		t.Logf("git: %v", err)

		return nil
	}

	var files []string

	for _, name := range strings.Fields(string(out)) {
		_, err := os.Stat(filepath.Join(root, name))
		if err == nil { // else it is being removed
			files = append(files, name)
		}
	}

	require.NotEmpty(t, files)

	return files
}

func TestTarballIsSmallEnoughForGalaxy(t *testing.T) {
	info, err := os.Stat(tarball(t).path)
	require.NoError(t, err)
	assert.Less(t, info.Size(), int64(maxTarball))
	t.Logf("tarball: %d bytes", info.Size())
}

// TestPrograms looks at the programs as hosts get them.
func TestPrograms(t *testing.T) {
	for key, path := range programs(t) {
		kind, arch := key[0], key[1]

		t.Run(kind+" "+arch, func(t *testing.T) {
			file, err := os.Open(path)
			require.NoError(t, err)

			defer func() { _ = file.Close() }()

			unzipped, err := gzip.NewReader(file)
			require.NoError(t, err)
			assert.Empty(t, unzipped.Name, "a name or a time in it would make each build another")
			assert.True(t, unzipped.ModTime.IsZero())

			program, err := io.ReadAll(unzipped)
			require.NoError(t, err)
			assert.LessOrEqual(t, len(program), maxProgram)
			t.Logf("program: %d bytes", len(program))

			sum, err := os.ReadFile(strings.TrimSuffix(path, ".gz") + ".sha256")
			require.NoError(t, err)

			want := sha256.Sum256(program)
			assert.Equal(t, hex.EncodeToString(want[:])+"\n", string(sum))

			if kind == "thinkube" {
				assertStatic(t, program, machines[arch])
			} else {
				assertOldGlibcWillDo(t, program, machines[arch])
			}

			checkout, err := filepath.Abs(root)
			require.NoError(t, err)
			assert.NotContains(t, string(program), checkout+"/modules", "a path of the machine that built it")
			assert.NotContains(t, string(program), "THINKUBE_TEST_KILL_AFTER_STEP", "the tests' way to kill it")
		})
	}
}

func assertStatic(t *testing.T, program []byte, machine elf.Machine) {
	t.Helper()

	read, err := elf.NewFile(bytes.NewReader(program))
	require.NoError(t, err)
	assert.Equal(t, machine, read.Machine)

	for _, part := range read.Progs {
		assert.NotEqual(t, elf.PT_INTERP, part.Type, "it needs a dynamic linker")
	}
}

// TestProgramsWithGlibcStart runs each by its own architecture's dynamic linker, on this machine or in QEMU.
func TestProgramsWithGlibcStart(t *testing.T) {
	emulators := map[string][]string{
		"amd64": {"qemu-x86_64", "-L", "/usr/x86_64-linux-gnu"},
		"arm64": {"qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"},
	}
	delete(emulators, runtime.GOARCH)

	for key, path := range programs(t) {
		if key[0] == "thinkube" {
			continue
		}

		t.Run(strings.Join(key[:], " "), func(t *testing.T) {
			emulator := emulators[key[1]]
			if emulator != nil {
				need(t, emulator[0])
			}

			file := filepath.Join(t.TempDir(), "program")
			require.NoError(t, os.WriteFile(file, unpacked(t, path), 0o755))

			start := exec.Command("sh", append(append([]string{"-c", `exec "$@"`, "sh"}, emulator...), file, "exec")...)
			start.Stdin = strings.NewReader(`{"module": "gpu_info", "args": {"timeout": "0s"}, "key": "` + strings.Repeat("A", 43) + `="}`)

			out, err := start.CombinedOutput()
			require.NoError(t, err, "%s", out)
			assert.Contains(t, string(out), `"msg":"timeout: must be more than 0`)
		})
	}
}

func unpacked(t *testing.T, path string) []byte {
	t.Helper()

	file, err := os.Open(path)
	require.NoError(t, err)

	defer func() { _ = file.Close() }()

	unzipped, err := gzip.NewReader(file)
	require.NoError(t, err)

	program, err := io.ReadAll(unzipped)
	require.NoError(t, err)

	return program
}

// newestGlibc is the oldest glibc that the documentation promises to do with; Ubuntu 22.04 has 2.35, Debian 12 2.36.
var newestGlibc = []int{2, 34}

// assertOldGlibcWillDo reads what the dynamic linker of a host would look for.
func assertOldGlibcWillDo(t *testing.T, program []byte, machine elf.Machine) {
	t.Helper()

	read, err := elf.NewFile(bytes.NewReader(program))
	require.NoError(t, err)
	assert.Equal(t, machine, read.Machine)

	libraries, err := read.ImportedLibraries()
	require.NoError(t, err)
	assert.Equal(t, []string{"libc.so.6"}, libraries, "NVIDIA's libraries are looked for when they are needed")

	for _, tag := range []elf.DynTag{elf.DT_FLAGS, elf.DT_FLAGS_1, elf.DT_BIND_NOW} {
		values, err := read.DynValue(tag)
		require.NoError(t, err)

		for _, value := range values {
			assert.False(t, tag == elf.DT_BIND_NOW || tag == elf.DT_FLAGS && value&uint64(elf.DF_BIND_NOW) != 0 || tag == elf.DT_FLAGS_1 && value&uint64(elf.DF_1_NOW) != 0,
				"it would look for all symbols of NVIDIA's library at once, and not start where there is none")
		}
	}

	symbols, err := read.ImportedSymbols()
	require.NoError(t, err)

	found := 0

	for _, symbol := range symbols {
		digits, ok := strings.CutPrefix(symbol.Version, "GLIBC_")
		if !ok {
			assert.Empty(t, symbol.Version, symbol.Name)
			assert.Regexp(t, "^nvml", symbol.Name, "a symbol of no library")

			continue
		}

		found++

		var version []int

		for part := range strings.SplitSeq(digits, ".") {
			number, err := strconv.Atoi(part)
			require.NoError(t, err, symbol.Version)

			version = append(version, number)
		}

		assert.LessOrEqual(t, slices.Compare(version, newestGlibc), 0, "%s needs %s", symbol.Name, symbol.Version)
	}

	assert.Positive(t, found)
}

// installed is an empty folder with the collection installed in it.
func installed(t *testing.T, outer []string) (folder string, env []string) {
	t.Helper()

	tarball := tarball(t)
	folder = t.TempDir()
	env = environ(folder, outer)

	require.NoError(t, makeHome(folder))
	run(t, folder, env, "ansible-galaxy", "collection", "install", "--offline", "-p", filepath.Join(folder, "collections"), tarball.path)

	return folder, env
}

// run runs a program and gives what it printed on stdout.
func run(t *testing.T, folder string, env []string, argv ...string) string {
	t.Helper()

	var stdout, stderr bytes.Buffer

	// By a shell, so that the PATH in env finds the program.
	command := exec.Command("sh", append([]string{"-c", `exec "$@"`, "sh"}, argv...)...)
	command.Dir, command.Env, command.Stdout, command.Stderr = folder, env, &stdout, &stderr
	require.NoError(t, command.Run(), "%q: %s%s", argv, stdout.String(), stderr.String())

	return stdout.String()
}

// eachCore runs a test with the installed ansible-core, and where hosts are booted anyway (which needs root, apt and
// time as well) with 2.19.
func eachCore(t *testing.T, test func(t *testing.T, folder string, env []string)) {
	t.Helper()
	need(t, "ansible-galaxy", "ansible-playbook", "ansible-doc")

	t.Run("installed", func(t *testing.T) {
		folder, env := installed(t, os.Environ())
		test(t, folder, env)
	})
	t.Run("2.19", func(t *testing.T) {
		if os.Getenv("THINKUBE_LAB") == "" {
			t.Skip("gets ansible-core with apt: set THINKUBE_LAB=1")
		}

		outer, err := ansible219.Environment(t.Context(), os.Environ())
		require.NoError(t, err)

		folder, env := installed(t, outer)
		test(t, folder, env)
	})
}

// The socket does not exist, so that it does not matter what this machine has.
const play = `
- hosts: localhost
  connection: local
  gather_facts: false
  module_defaults:
    group/thinkube.infra.all: {socket: /nonexistent/unix.socket}
    thinkube.infra.lxd_info: {missing_ok: true}
    thinkube.infra.lxd_profile: {name: base}
  tasks:
    - name: Facts about a host without LXD
      thinkube.infra.lxd_info:
      register: info

    - name: A profile on a host without LXD
      thinkube.infra.lxd_profile:
      register: profile
      ignore_errors: true

    - name: NVIDIA cards
      thinkube.infra.gpu_info: {socket: "{{ omit }}"}
      register: gpu

    - name: As documented
      ansible.builtin.assert:
        that:
          - gpu.problem is none or gpu.problem.code in ['no_card', 'driver_not_loaded', 'library_missing', 'version_mismatch']
          - not info.installed
          - not info.changed
          - info.server is none
          - profile.failed
          - profile.failure.code == 'not_installed'
          - "'/nonexistent/unix.socket' in profile.msg"
          - profile.hint is search('LXD')
`

func TestInstalledCollectionRunsAPlay(t *testing.T) {
	eachCore(t, func(t *testing.T, folder string, env []string) {
		require.NoError(t, os.WriteFile(filepath.Join(folder, "play.yml"), []byte(play), 0o644))

		out := run(t, folder, env, "ansible-playbook", "-i", "localhost,", "play.yml")
		assert.Regexp(t, `ok=4 +changed=0 +unreachable=0 +failed=0 +skipped=0 +rescued=0 +ignored=1`, out)

		kept, err := filepath.Glob(filepath.Join(folder, "home/.cache/thinkube/thinkube_*linux_*"))
		require.NoError(t, err)
		assert.Len(t, kept, 2, "the program was kept for the second task, and one of its own for the third")
	})
}

// TestInstalledPlaybooksAreFoundByName calls every playbook of the collection as users of the tarball do.
func TestInstalledPlaybooksAreFoundByName(t *testing.T) {
	eachCore(t, func(t *testing.T, folder string, env []string) {
		base := filepath.Join(folder, "collections/ansible_collections/thinkube/infra/playbooks")

		paths, err := filepath.Glob(filepath.Join(base, "*/*.yaml"))
		require.NoError(t, err)
		require.NotEmpty(t, paths)

		inventory := filepath.Join(folder, "collections/ansible_collections/thinkube/infra/inventory/reference.yaml")

		for _, path := range paths {
			name := "thinkube.infra." + filepath.Base(filepath.Dir(path)) + "." + strings.TrimSuffix(filepath.Base(path), ".yaml")
			if strings.Contains(name, "-") {
				name = path // ansible-core takes no hyphen in a name: these are called by path
			}

			run(t, folder, env, "ansible-playbook", "-i", inventory, "--syntax-check", name)
		}
	})
}

// TestInstalledDocumentation asks ansible-doc for every module.
func TestInstalledDocumentation(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(root, "plugins/modules/*.py"))
	require.NoError(t, err)
	require.NotEmpty(t, paths)

	eachCore(t, func(t *testing.T, folder string, env []string) {
		list := run(t, folder, env, "ansible-doc", "-t", "module", "-l", "thinkube.infra")

		for _, path := range paths {
			name := "thinkube.infra." + strings.TrimSuffix(filepath.Base(path), ".py")
			assert.Contains(t, list, name)

			var docs map[string]struct {
				Doc struct {
					Short   string                    `json:"short_description"`
					Options map[string]map[string]any `json:"options"`
				} `json:"doc"`
				Examples string         `json:"examples"`
				Return   map[string]any `json:"return"`
			}

			require.NoError(t, json.Unmarshal([]byte(run(t, folder, env, "ansible-doc", "-t", "module", "--json", name)), &docs))

			doc := docs[name]
			assert.NotEmpty(t, doc.Doc.Short, name)
			assert.NotEmpty(t, doc.Doc.Options, name)
			assert.Contains(t, doc.Examples, name)
			assert.Contains(t, doc.Return, "failure", name)

			text := run(t, folder, env, "ansible-doc", "-t", "module", name)
			for option := range doc.Doc.Options {
				assert.Regexp(t, `(?m)^[-=] +`+option+`\b`, text, name)
			}
		}
	})
}
