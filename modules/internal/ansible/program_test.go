// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestGarbageOnStdinIsAnAnswer(t *testing.T) {
	for input, msg := range map[string]string{
		"":                               "reading the task from stdin: not the expected JSON object (0 bytes)",
		"{":                              "reading the task from stdin: not the expected JSON object (1 bytes)",
		"hello " + token:                 "reading the task from stdin: not JSON (at byte 1 of 29)",
		`{"module": "` + token + `", x}`: "reading the task from stdin: not JSON (at byte 39 of 40)",
		`["` + token + `"]`:              "reading the task from stdin: not the expected JSON object (27 bytes)",
		`{"args": "` + token + `"}`:      "reading the task from stdin: not the expected JSON object (35 bytes)",
		`{"module": "toy"} {}`:           "reading the task from stdin: more than one JSON value",
		`{"module": "toy"}}`:             "reading the task from stdin: more than one JSON value",
		"\xff\xfe":                       "reading the task from stdin: not JSON (at byte 1 of 2)",
		"null":                           `this program has no module ""; build the collection again`,
		`{"module": "none"}`:             `this program has no module "none"; build the collection again`,
		`{"module": "toy"}`:              "the envelope's key must be 32 bytes in base64",
	} {
		out := said(t, &toyWorld{}, "exec", []byte(input))
		noTrace(t, out)
		assertFailed(t, decodeAnswer(t, out), CodeInternal, msg)
	}
}

// endless is an input that never ends by itself.
type endless struct{}

func (endless) Read(into []byte) (int, error) {
	for i := range into {
		into[i] = ' '
	}

	return len(into), nil
}

func TestInputThatNeverEndsIsRefused(t *testing.T) {
	var stdout, stderr bytes.Buffer

	require.Zero(t, Bundle(nil, []string{"thinkube", "exec"}, endless{}, &stdout, &stderr))
	assertFailed(t, decodeAnswer(t, stdout.String()), CodeInternal, "reading the task from stdin: more than 67108864 bytes")
}

func TestLargeTaskIsTaken(t *testing.T) {
	name := strings.Repeat("x", 2<<20)

	result := (&toyWorld{}).task(t, items(name))
	assert.Equal(t, lines(name), result["items"])
}

func TestDeepNestingIsRefused(t *testing.T) {
	text := `{"module": "toy", "args": {"items": ` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + "}}"
	assert.Equal(t, true, decodeAnswer(t, said(t, &toyWorld{}, "exec", []byte(text)))["failed"])
}

type brokenPipe struct{}

func (brokenPipe) Read([]byte) (int, error)  { return 0, errors.New("connection reset") }
func (brokenPipe) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestBrokenPipes(t *testing.T) {
	var stdout bytes.Buffer

	require.Zero(t, Bundle(nil, []string{"thinkube", "exec"}, brokenPipe{}, &stdout, io.Discard))
	assertFailed(t, decodeAnswer(t, stdout.String()), CodeInternal, "reading the task from stdin: connection reset")

	assert.Equal(t, 1, Bundle(nil, []string{"thinkube", "exec"}, strings.NewReader("{}"), brokenPipe{}, io.Discard))
}

func TestWrongUseOfTheProgram(t *testing.T) {
	for _, argv := range [][]string{{"thinkube"}, {"thinkube", "dance"}, {"thinkube", "exec", "more"}} {
		var stdout, stderr bytes.Buffer

		assert.Equal(t, 2, Bundle(nil, argv, endless{}, &stdout, &stderr))
		assert.Empty(t, stdout.String())
		assert.Contains(t, stderr.String(), "exec")
	}
}

// standalone runs the toy as stock Ansible runs a binary module.
func standalone(t *testing.T, world *toyWorld, arguments string) (code int, result map[string]any) {
	t.Helper()

	path := filepath.Join(t.TempDir(), "args")
	require.NoError(t, os.WriteFile(path, []byte(arguments), 0o600))

	var stdout, stderr bytes.Buffer

	code = Standalone(world.module(), []string{"toy", path}, &stdout, &stderr)
	require.Empty(t, stderr.String())

	return code, decodeAnswer(t, stdout.String())
}

func TestStandaloneProgram(t *testing.T) {
	world := &toyWorld{}

	code, result := standalone(t, world, `{"items": ["a"], "_ansible_check_mode": false, "_ansible_module_name": "toy", "_ansible_no_log": false}`)
	assert.Zero(t, code)
	assert.Equal(t, true, result["changed"])
	assert.Equal(t, []string{"a"}, world.applied)

	_, result = standalone(t, world, `{"items": ["b"], "_ansible_check_mode": true}`)
	assert.Equal(t, true, result["changed"])
	assert.Equal(t, []string{"a"}, world.applied)
}

func TestStandaloneProgramCannotAskAnotherHost(t *testing.T) {
	_, result := standalone(t, &toyWorld{}, `{"items": [], "from": "n2"}`)
	assertFailed(t, result, CodeNeedsCollection,
		`create item asked: getting it: asking host "n2": only the collection's action plugin can reach a second host`)
	assert.NotEmpty(t, result["hint"])
}

func TestStandaloneProgramWithBadArgumentsFile(t *testing.T) {
	for _, arguments := range []string{"", "[]", `{"token": "` + token} {
		_, result := standalone(t, &toyWorld{}, arguments)
		assert.Equal(t, true, result["failed"])
		assert.Contains(t, result["msg"], "reading the arguments file: not ")
		assert.NotContains(t, result["msg"], token)
	}

	var stdout, stderr bytes.Buffer

	assert.Equal(t, 1, Standalone((&toyWorld{}).module(), []string{"toy", "/nowhere/args"}, &stdout, &stderr))
	assert.Contains(t, stdout.String(), "no such file")

	stdout.Reset()
	assert.Equal(t, 2, Standalone((&toyWorld{}).module(), []string{"toy"}, &stdout, &stderr))
	assert.Empty(t, stdout.String())
	assert.Contains(t, stderr.String(), "usage: toy ARGUMENTS_FILE")
}

// asyncEnvelope is a task for the background; its files are in the folder.
func asyncEnvelope(folder string, seconds int, args map[string]any) map[string]any {
	envelope := makeEnvelope(args)
	envelope["async"] = map[string]any{"jid": "j123", "timeout": seconds, "dir": folder}

	return envelope
}

// startJob starts a background task in a program of its own, which ends before this returns.
func startJob(t *testing.T, envelope map[string]any, env ...string) map[string]any {
	t.Helper()

	text, err := json.Marshal(envelope)
	require.NoError(t, err)

	command := exec.Command(os.Args[0], "async")
	// With the race detector a program takes a second to end, unless told otherwise.
	command.Env = append(append(os.Environ(), "GORACE=atexit_sleep_ms=0"), env...)
	command.Stdin = bytes.NewReader(text)

	out, err := command.Output()
	require.NoError(t, err)

	return decodeAnswer(t, string(out))
}

// job reads a job's file as core's async_status does, which must never find half of one.
func job(t *testing.T, folder string) map[string]any {
	t.Helper()

	text, err := os.ReadFile(filepath.Join(folder, "j123"))
	require.NoError(t, err)

	return decodeAnswer(t, string(text))
}

func waitForJob(t *testing.T, folder string) map[string]any {
	t.Helper()

	require.Eventually(t, func() bool { _, running := job(t, folder)["started"]; return !running }, 20*time.Second, 5*time.Millisecond)

	return job(t, folder)
}

func TestBackgroundTaskOutlivesTheProgramThatStartsIt(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "jobs", "async")

	started := startJob(t, asyncEnvelope(folder, 60, with(items("a"), "sleep", "500ms")))
	assert.Equal(t, map[string]any{
		"started": 1.0, "finished": 0.0, "ansible_job_id": "j123", "changed": true, "results_file": filepath.Join(folder, "j123"),
	}, started)

	running := job(t, folder)
	assert.Equal(t, 1.0, running["started"])
	assert.Equal(t, 0.0, running["finished"])

	result := waitForJob(t, folder)
	assert.Equal(t, true, result["changed"])
	assert.Equal(t, lines("create item a"), result["plan"])
}

func TestBackgroundTaskIsPrivateAndSaysNoSecret(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "async")

	startJob(t, asyncEnvelope(folder, 60, with(items("a "+token), "token", token)))
	waitForJob(t, folder)

	for path, mode := range map[string]os.FileMode{folder: 0o700, filepath.Join(folder, "j123"): 0o600} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		assert.Equal(t, mode, info.Mode().Perm())
	}

	text, err := os.ReadFile(filepath.Join(folder, "j123"))
	require.NoError(t, err)
	noTrace(t, string(text))
}

func TestBackgroundTaskEndsAtItsTimeLimit(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "async")

	startJob(t, asyncEnvelope(folder, 1, with(items("a"), "sleep", "1h")))
	assertFailed(t, waitForJob(t, folder), CodeTimeout, "create item a: context deadline exceeded")
}

func TestBackgroundTaskFolderIsUnderTheHome(t *testing.T) {
	home := t.TempDir()

	started := startJob(t, asyncEnvelope("~/.ansible_async", 60, items("a")), "HOME="+home)
	assert.Equal(t, filepath.Join(home, ".ansible_async", "j123"), started["results_file"])
	waitForJob(t, filepath.Join(home, ".ansible_async"))
}

func TestBackgroundTaskThatCannotBegin(t *testing.T) {
	folder := t.TempDir()

	for _, id := range []string{"", "../j", "a/b", ".hidden", "a\x00b"} {
		envelope := asyncEnvelope(folder, 60, items("a"))
		envelope["async"].(map[string]any)["jid"] = id

		result := startJob(t, envelope)
		assert.Equal(t, true, result["failed"], "%q", id)
		assert.Contains(t, result["msg"], "must be a file name")
	}

	require.NoError(t, os.WriteFile(filepath.Join(folder, "file"), nil, 0o600))
	assert.Contains(t, startJob(t, asyncEnvelope(filepath.Join(folder, "file"), 60, items("a")))["msg"], "starting the asynchronous task")

	envelope := asyncEnvelope(folder, 60, items("a"))
	envelope["module"] = "none"
	startJob(t, envelope)
	assert.Contains(t, waitForJob(t, folder)["msg"], `this program has no module "none"`)
}

// FuzzEnvelope gives the program any input: it must answer with one JSON object, and never end in another way.
func FuzzEnvelope(f *testing.F) {
	for _, args := range []map[string]any{
		nil, items("a"), with(items("a"), "from", "n2"), with(items("a"), "_ansible_check_mode", true), with(items("a"), "token", "A"),
		{"items": "a,b", "sleep": "1us", "timeout": "1ns"}, {"items": map[string]any{}}, {"_ansible_verbosity": 1e99},
	} {
		text, err := json.Marshal(makeEnvelope(args))
		require.NoError(f, err)
		f.Add("exec", text)

		peer := makeEnvelope(args)
		peer["peer"], peer["request"] = "give", toyRequest{"x"}
		text, err = json.Marshal(peer)
		require.NoError(f, err)
		f.Add("peer", text)
	}

	f.Fuzz(func(t *testing.T, mode string, input []byte) {
		if mode != "peer" {
			mode = "exec"
		}

		var env envelope
		if decodeJSON(string(input), &env) == nil {
			if sleep, ok := env.Args["sleep"]; ok && sleep != "1us" {
				t.Skip("the toy would sleep")
			}
		}

		answer := decodeAnswer(t, said(t, &toyWorld{}, mode, input))

		_, asks := answer["_thinkube_ask"]
		_, answers := answer["answer"]
		_, changed := answer["changed"]
		assert.True(t, asks || answers || changed, "%v", answer)
	})
}
