// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/transport/farm"
)

// own is the real program of gpu_info, beside the stand-in for the bundle.
var own struct {
	sync.Once
	program farm.Program
	err     error
}

// withOwn gives the hosts and the name of a collection with both programs.
func withOwn(t *testing.T, f *testHosts) (program farm.Program, collections string) {
	t.Helper()

	_, err := exec.LookPath("gcc")
	if err != nil && os.Getenv("CI") != "true" {
		t.Skip("needs gcc")
	}

	require.NoError(t, err, "make deps installs it")

	own.Do(func() {
		path := f.Path("gpu_info")
		build := exec.Command("go", "build", "-trimpath", "-tags", "netgo,osusergo", "-ldflags", "-s -w -extldflags=-Wl,-z,lazy", "-o", path, "../../modules/gpu_info/carried")
		build.Env = append(os.Environ(), "CGO_ENABLED=1", "CGO_CFLAGS=-O2 -g -Wno-deprecated-declarations")
		own.err = build.Run()

		if own.err == nil {
			own.program, own.err = farm.Pack(path)
			own.program.Module = "gpu_info"
		}

		if own.err == nil {
			own.err = farm.WriteCollection(f.Path("own"), "../..", f.program, own.program)
		}
	})
	require.NoError(t, own.err)

	return own.program, "own"
}

// TestModuleWithItsOwnProgram is carried, kept and started like the others, and is sent only to hosts that use it.
func TestModuleWithItsOwnProgram(t *testing.T) {
	eachWay(t, func(t *testing.T, f *testHosts, environ []string) {
		program, collections := withOwn(t, f)
		f.forget(t)

		kept := func() string { return f.inside(t, "LC_ALL=C ls -A /home/"+farm.Plain+"/.cache/thinkube") }
		ways := map[string]map[string]any{"host": ssh(farm.Plain, 1, nil)}

		f.play(t, environ, "one", one(nil, ways), setup{collections: collections})
		assert.Equal(t, f.program.Name(), kept(), "a host that does not use it does not get it")

		for uploads := 1; uploads >= 0; uploads-- {
			play := f.play(t, environ, "own", inventory{hosts: ways}, setup{collections: collections, args: []string{"-vvv"}})
			got := play.of(t, "host", "own")

			assert.Equal(t, "ok", got.Event, play.output)
			assert.NotEmpty(t, got.text("problem", "code"), "this machine has no driver")
			assert.Equal(t, "/home/"+farm.Plain+"/.cache/thinkube/"+f.program.Name(), play.of(t, "host", "bundled").text("program"))
			assert.Equal(t, got.Result["cards"], play.of(t, "host", "own again").Result["cards"])
			assert.Equal(t, uploads, strings.Count(play.output, "uploading "+program.Name()))
			assert.Equal(t, 0, strings.Count(play.output, "uploading "+f.program.Name()))
			assert.ElementsMatch(t, []string{program.Name(), f.program.Name()}, strings.Fields(kept()))
		}
	})
}

// TestHostThatCannotRunIt has no dynamic linker.
func TestHostThatCannotRunIt(t *testing.T) {
	f := hosts(t)
	_, collections := withOwn(t, f)

	ways := map[string]map[string]any{"host": {"ansible_connection": "container", "ansible_host": f.busyboxHost(t)}}
	play := f.play(t, os.Environ(), "own", inventory{hosts: ways}, setup{collections: collections})

	// When it has just been uploaded, and when it was there.
	for _, task := range []string{"own", "own again"} {
		got := play.of(t, "host", task)

		assert.Equal(t, "failed", got.Event)
		assert.Regexp(t, `^the host cannot start the module's program: .*not found`, got.text("msg"), "%v", got.Result)
		assert.Contains(t, got.text("hint"), "C library")
	}

	assert.Equal(t, "ok", play.of(t, "host", "bundled").Event, "the others need none")
}

// driver makes the hosts have NVIDIA's driver and two cards, with stand-ins for its libraries, and gives their folder.
func (f *testHosts) driver(t *testing.T) string {
	t.Helper()

	folder, err := os.MkdirTemp(f.Folder, "driver")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(folder, 0o755))

	for file, text := range map[string]string{
		"module/nvidia/version": "550.54.15\n",
		"0000:3b:00.0/vendor":   "0x10de\n", "0000:3b:00.0/class": "0x030200\n", "0000:3b:00.0/config": "\xde\x10\x04\x22",
		"0000:5e:00.0/vendor": "0x10de\n", "0000:5e:00.0/class": "0x030200\n", "0000:5e:00.0/config": "\xde\x10\x04\x22",
	} {
		if !strings.HasPrefix(file, "module") {
			file = "devices/" + file
		}

		file = filepath.Join(folder, file)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	}

	for _, address := range []string{"0000:3b:00.0", "0000:5e:00.0"} {
		require.NoError(t, os.Symlink("../../drivers/nvidia", filepath.Join(folder, "devices", address, "driver")))
	}

	standins := "../../modules/gpu_info/testdata/standin/"
	require.NoError(t, command("gcc", "-shared", "-fPIC", "-o", folder+"/libnvidia-ml.so.1", standins+"nvml.c"))
	require.NoError(t, command("gcc", "-shared", "-fPIC", "-ffp-contract=off", "-o", folder+"/libcuda.so.1", standins+"cuda.c", "-lm"))

	f.inside(t, "mount --bind "+folder+"/module /sys/module; mount --bind "+folder+"/devices /sys/bus/pci/devices")
	t.Cleanup(func() { f.inside(t, "umount /sys/module /sys/bus/pci/devices") })

	return folder
}

// TestDriverThroughAnsible compares what agent and exec say of the same cards, and has the driver hang and crash: that must
// end no agent.
func TestDriverThroughAnsible(t *testing.T) {
	results := map[string][]any{}

	eachTransport(t, func(t *testing.T, f *testHosts) {
		_, collections := withOwn(t, f)
		folder := f.driver(t)

		check := func(mode string, args map[string]any) run {
			vars := map[string]any{"gpu": args, "libraries": map[string]any{"LD_LIBRARY_PATH": folder, "STANDIN": mode}}

			return f.play(t, os.Environ(), "own", inventory{hosts: map[string]map[string]any{"host": ssh(farm.Plain, 1, vars)}}, setup{collections: collections})
		}

		play := check("", map[string]any{"cuda_check": true})
		got := play.of(t, "host", "own")
		require.Equal(t, "ok", got.Event, play.output)
		results[f.transport] = []any{got.Result["driver"], got.Result["cards"], got.Result["problem"]}

		driver := got.Result["driver"].(map[string]any)
		delete(driver, "library") // whose folder is another for each
		assert.Equal(t, map[string]any{"loaded": true, "version": "550.54.15", "nvml_version": "12.550.54.15", "cuda_version": "12.4"}, driver)

		for _, each := range got.Result["cards"].([]any) {
			assert.Equal(t, true, each.(map[string]any)["compute_verified"])
		}

		begin := time.Now()
		got = check("hang", map[string]any{"timeout": "1s"}).of(t, "host", "own")
		assert.Less(t, time.Since(begin), 20*time.Second)
		assert.Equal(t, "timeout", got.text("failure", "code"))
		assert.Empty(t, f.inside(t, "pgrep -f '[s]ervice gpu_info' || true"), "what can be killed is not left behind")

		got = check("crash", map[string]any{}).of(t, "host", "own")
		assert.Equal(t, "ok", got.Event)
		assert.Equal(t, "driver_crashed", got.text("problem", "code"))

		got = check("cuda wrong", map[string]any{"cuda_check": "yes"}).of(t, "host", "own")
		assert.Equal(t, "wrong_result", got.text("failure", "code"))
	})

	assert.Equal(t, results["agent"], results["exec"])
}
