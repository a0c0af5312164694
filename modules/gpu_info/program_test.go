// SPDX-License-Identifier: Apache-2.0

package gpuinfo_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// built is the module's program, and stand-ins for NVIDIA's libraries (testdata/standin).
var built struct {
	sync.Once
	folder string
	err    error
}

// TestMain removes what the tests share.
func TestMain(m *testing.M) {
	code := m.Run()

	if built.folder != "" {
		_ = os.RemoveAll(built.folder)
	}

	os.Exit(code)
}

func unavailable(t *testing.T, why string) {
	t.Helper()

	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}

	t.Skip(why)
}

// build gives the folder of what was built.
func build(t *testing.T) string {
	t.Helper()

	if testing.Short() {
		t.Skip("compiles C")
	}

	for _, tool := range []string{"gcc", "unshare", "mount"} {
		_, err := exec.LookPath(tool)
		if err != nil {
			unavailable(t, tool+" is missing: make deps installs it")
		}
	}

	built.Do(func() {
		built.folder, built.err = os.MkdirTemp("", "thinkube-gpu-")

		library := func(folder, name, source string, more ...string) []string {
			return append([]string{"gcc", "-shared", "-fPIC", "-ffp-contract=off", "-o", filepath.Join(built.folder, folder, name), "testdata/standin/" + source, "-lm"}, more...)
		}

		for _, command := range [][]string{
			{"go", "build", "-buildvcs=false", "-ldflags", "-extldflags=-Wl,-z,lazy", "-o", built.folder + "/gpu_info", "./cmd"},
			{"mkdir", built.folder + "/all", built.folder + "/old", built.folder + "/none", built.folder + "/empty"},
			library("all", "libnvidia-ml.so.1", "nvml.c"),
			library("all", "libcuda.so.1", "cuda.c"),
			library("old", "libnvidia-ml.so.1", "nvml.c", "-DOLD"),
		} {
			run := exec.Command(command[0], command[1:]...)
			run.Env = append(os.Environ(), "CGO_ENABLED=1", "CGO_CFLAGS=-O2 -g -Wno-deprecated-declarations")

			out, err := run.CombinedOutput()
			if err != nil {
				built.err = &buildError{command[0], string(out)}

				return
			}
		}

		built.err = os.WriteFile(filepath.Join(built.folder, "empty/libnvidia-ml.so.1"), []byte("no library\n"), 0o644)
	})
	require.NoError(t, built.err)

	return built.folder
}

type buildError struct{ tool, said string }

func (e *buildError) Error() string { return e.tool + ": " + e.said }

// sysfs makes what the kernel shows of a host: its driver, and cards by address and what they are bound to.
func sysfs(t *testing.T, version string, cards map[string]string) string {
	t.Helper()

	root := t.TempDir()
	write := func(path, text string) {
		path = filepath.Join(root, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}

	require.NoError(t, os.MkdirAll(filepath.Join(root, "module"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(root, "devices"), 0o755))

	if version != "" {
		write("module/nvidia/version", version+"\n")
	}

	for address, driver := range cards {
		write("devices/"+address+"/vendor", "0x10de\n")
		write("devices/"+address+"/class", "0x030200\n")
		write("devices/"+address+"/config", "\xde\x10\x04\x22")

		if driver != "" {
			require.NoError(t, os.Symlink("../../drivers/"+driver, filepath.Join(root, "devices", address, "driver")))
		}
	}

	return root
}

// twoCards are those of the stand-ins.
func twoCards(t *testing.T) string {
	t.Helper()

	return sysfs(t, "550.54.15", map[string]string{"0000:3b:00.0": "nvidia", "0000:5e:00.0": "nvidia"})
}

// result is what the program prints.
type result struct {
	Failed  bool
	Msg     string
	Hint    string
	Failure struct{ Code string }
	Changed bool
	Driver  map[string]any
	Cards   []map[string]any
	Problem map[string]any
}

// module runs the program on a host whose /sys is as given ("" for this machine's own), with the libraries of a folder.
func module(t *testing.T, sys, libraries, mode string, args map[string]any) result {
	t.Helper()

	folder := build(t)

	text, err := json.Marshal(args)
	require.NoError(t, err)

	file := filepath.Join(t.TempDir(), "args")
	require.NoError(t, os.WriteFile(file, text, 0o600))

	run := exec.Command(folder+"/gpu_info", file)

	if sys != "" {
		if os.Geteuid() != 0 {
			unavailable(t, "needs root, to mount another /sys")
		}

		run = exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-ec",
			`mount --bind "$1/module" /sys/module; mount --bind "$1/devices" /sys/bus/pci/devices; shift; exec "$@"`, "sh", sys, folder+"/gpu_info", file)
	}

	run.Env = append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Join(folder, libraries), "STANDIN="+mode, "STANDIN_PID="+filepath.Join(folder, "pid"))

	out, err := run.Output()
	require.NoError(t, err, "%s", out)

	var got result

	require.NoError(t, json.Unmarshal(out, &got), "%s", out)
	assert.False(t, got.Changed)

	return got
}

// TestThisMachine is whatever it is: where there is no card, the program says so.
func TestThisMachine(t *testing.T) {
	got := module(t, "", "none", "", nil)
	require.False(t, got.Failed, got.Msg)

	_, err := os.Stat("/sys/module/nvidia")
	if err == nil {
		t.Skip("this machine has the driver")
	}

	assert.Equal(t, false, got.Driver["loaded"])
	assert.Contains(t, []any{"no_card", "driver_not_loaded"}, got.Problem["code"])

	got = module(t, "", "none", "", map[string]any{"cuda_check": true})
	assert.True(t, got.Failed)
	assert.Equal(t, "not_checked", got.Failure.Code)
}

func TestCards(t *testing.T) {
	got := module(t, twoCards(t), "all", "", nil)
	require.False(t, got.Failed, got.Msg)
	assert.Nil(t, got.Problem)
	assert.Equal(t, map[string]any{"loaded": true, "version": "550.54.15", "nvml_version": "12.550.54.15", "cuda_version": "12.4",
		"library": filepath.Join(build(t), "all/libnvidia-ml.so.1")}, got.Driver)
	require.Len(t, got.Cards, 2)

	name := "systemd"
	if comm, err := os.ReadFile("/proc/1/comm"); err == nil {
		name = strings.TrimSpace(string(comm))
	}

	assert.Equal(t, map[string]any{
		"address": "0000:3b:00.0", "kernel_driver": "nvidia", "state": "ok", "reason": nil, "index": 0.0, "minor": 0.0,
		"uuid": "GPU-00000000-0000-0000-0000-00000000003b", "name": "Stand-in",
		"memory": map[string]any{"total": 3000.0, "free": 1000.0, "used": 2000.0}, "utilization": map[string]any{"gpu": 12.0, "memory": 3.0},
		"persistence_mode": false, "ecc": map[string]any{"enabled": true, "pending": true, "corrected": 7.0, "uncorrected": 0.0},
		"mig":           map[string]any{"enabled": false, "pending": false, "devices": []any{}},
		"processes":     []any{map[string]any{"pid": 1.0, "name": name, "type": "compute", "memory": nil}},
		"not_supported": []any{}, "errors": []any{}, "compute_verified": nil,
	}, got.Cards[0])
	assert.Equal(t, true, got.Cards[1]["persistence_mode"])
	assert.Nil(t, got.Cards[1]["ecc"])
	assert.Equal(t, []any{"ecc"}, got.Cards[1]["not_supported"])
	assert.Equal(t, []any{}, got.Cards[1]["processes"])
}

func TestOldDriver(t *testing.T) {
	got := module(t, twoCards(t), "old", "", nil)
	require.False(t, got.Failed, got.Msg)
	require.Nil(t, got.Problem)
	assert.Equal(t, []any{"mig"}, got.Cards[0]["not_supported"])
}

// TestWhatKeepsTheDriverFromAnswering has every way in which it can, with the cards as the bus has them.
func TestWhatKeepsTheDriverFromAnswering(t *testing.T) {
	for _, each := range []struct{ libraries, mode, code, words string }{
		{"none", "", "library_missing", "libnvidia-ml.so.1: cannot open shared object file"},
		{"empty", "", "library_missing", "libnvidia-ml.so.1: "},
		{"all", "mismatch", "version_mismatch", "the kernel has 550.54.15, the library is " + build(t) + "/all/libnvidia-ml.so.1"},
		{"all", "not loaded", "driver_not_loaded", "Driver Not Loaded"},
		{"all", "no permission", "no_permission", "Insufficient Permissions"},
		{"all", "unknown", "driver_failed", "Unknown Error"},
		{"all", "crash", "driver_crashed", "loading libnvidia-ml.so.1 and starting NVML: exit status 2: the library greets its user; SIGSEGV: segmentation violation"},
		{"all", "exit", "driver_crashed", "exit status 3"},
	} {
		got := module(t, twoCards(t), each.libraries, each.mode, nil)
		require.False(t, got.Failed, got.Msg)
		require.NotNil(t, got.Problem, each)
		assert.Equal(t, each.code, got.Problem["code"])
		assert.Contains(t, got.Problem["text"], each.words)
		assert.NotEmpty(t, got.Problem["hint"])
		require.Len(t, got.Cards, 2, each)
		assert.Equal(t, "unknown", got.Cards[1]["state"])
		assert.Nil(t, got.Cards[1]["processes"])
		assert.Equal(t, true, got.Driver["loaded"])
		assert.Equal(t, "550.54.15", got.Driver["version"])
	}
}

func TestCardFallsOff(t *testing.T) {
	for _, mode := range []string{"lost", "half lost"} {
		got := module(t, twoCards(t), "all", mode, nil)
		require.False(t, got.Failed, got.Msg)
		require.Len(t, got.Cards, 2)
		assert.Equal(t, "lost", got.Cards[1]["state"], mode)
		assert.Contains(t, got.Cards[1]["errors"].([]any)[0], "GPU is lost")
		assert.Nil(t, got.Cards[1]["memory"])
	}

	got := module(t, twoCards(t), "all", "forgotten", nil)
	assert.Equal(t, "ok", got.Cards[0]["state"])
	assert.Equal(t, "the driver does not answer for it: opening it: Unknown Error", got.Cards[1]["reason"])
}

// TestHang has a driver that never comes back.
func TestHang(t *testing.T) {
	for _, mode := range []string{"hang", "hang with a child"} {
		begin := time.Now()
		got := module(t, twoCards(t), "all", mode, map[string]any{"timeout": "1s"})

		assert.Less(t, time.Since(begin), 5*time.Second, mode)
		assert.True(t, got.Failed)
		assert.Equal(t, "timeout", got.Failure.Code)
		assert.Contains(t, got.Msg, "did not answer in time, loading libnvidia-ml.so.1 and starting NVML")
		assert.Contains(t, got.Hint, "Xid")
		assert.Equal(t, mode == "hang with a child", strings.Contains(got.Msg, "was left behind"), "what it could not end is named")
	}

	text, err := os.ReadFile(filepath.Join(build(t), "pid"))
	require.NoError(t, err)

	left, err := strconv.Atoi(string(text))
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(left, syscall.SIGKILL))
}

func TestCUDA(t *testing.T) {
	check := map[string]any{"cuda_check": true, "timeout": "20s"}

	got := module(t, twoCards(t), "all", "", check)
	require.False(t, got.Failed, got.Msg)
	assert.Equal(t, true, got.Cards[0]["compute_verified"])
	assert.Equal(t, true, got.Cards[1]["compute_verified"])

	got = module(t, twoCards(t), "all", "mig", check)
	require.False(t, got.Failed, got.Msg)
	assert.Equal(t, "MIG-00000000-0000-0000-0000-000000000001", got.Cards[0]["mig"].(map[string]any)["devices"].([]any)[0].(map[string]any)["uuid"])
	assert.Equal(t, true, got.Cards[0]["compute_verified"])

	for _, each := range []struct{ libraries, mode, code, words string }{
		{"all", "cuda wrong", "wrong_result", "card 0000:5e:00.0 computed wrong: 1 of 262144 results; the first is number 4242, 0x"},
		{"all", "cuda launch", "cuda_failed", "card 0000:3b:00.0 did not compute: cuCtxSynchronize: CUDA_ERROR_LAUNCH_FAILED (719): unspecified launch failure; card 0000:5e:00.0"},
		{"all", "cuda init", "cuda_failed", "cuInit: CUDA_ERROR_UNKNOWN (999)"},
		{"all", "cuda translate", "cuda_failed", "ptxas fatal : not today"},
		{"all", "cuda other card", "cuda_failed", "and used 0000:3b:00.0 (Stand-in)"},
		{"all", "cuda crash", "cuda_failed", "card 0000:5e:00.0 did not compute: NVIDIA's library ended the process that asked it, computing on card 0000:5e:00.0: exit status 2: SIGSEGV"},
		{"old", "", "cuda_failed", "dlopen: libcuda.so.1: cannot open shared object file"},
		{"all", "lost", "cuda_failed", "card 0000:5e:00.0: it has fallen off the bus"},
		{"all", "mismatch", "not_checked", "different versions"},
	} {
		got := module(t, twoCards(t), each.libraries, each.mode, check)
		assert.True(t, got.Failed, each.mode)
		assert.Equal(t, each.code, got.Failure.Code, each.mode)
		assert.Contains(t, got.Msg, each.words, each.mode)
	}

	begin := time.Now()
	got = module(t, twoCards(t), "all", "cuda hang", map[string]any{"cuda_check": true, "timeout": "2s"})
	assert.Less(t, time.Since(begin), 6*time.Second)
	assert.Equal(t, "timeout", got.Failure.Code)
	assert.Contains(t, got.Msg, "card 0000:5e:00.0: NVIDIA's driver did not answer in time, computing on card 0000:5e:00.0")
}
