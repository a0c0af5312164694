// SPDX-License-Identifier: Apache-2.0

// Package transport tests how the action plugin carries a task to a host: real ansible-playbook runs (the installed
// ansible-core and 2.19) against a real sshd, sudo and others, with a small program in the place of the bundle.
package transport

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/thinkube/infra/tests/transport/farm"
)

// theHosts is what all tests share; missing says why there is none.
var (
	theHosts *testHosts
	missing  string
)

// testHosts is a farm, with a collection in it whose program is modules/internal/agent/echo.
type testHosts struct {
	*farm.Farm
	program   farm.Program
	transport string // "exec" keeps tasks from the agent
}

func TestMain(m *testing.M) {
	os.Exit(withHosts(m.Run))
}

func withHosts(run func() int) int {
	missing = farm.MissingTools()
	if missing == "" {
		_, err := exec.LookPath("busybox")
		if err != nil {
			missing = "needs busybox"
		}
	}

	if missing != "" {
		return run()
	}

	runtime.LockOSThread() // on which the hosts live

	started, err := farm.Start()
	if err != nil {
		fmt.Fprintln(os.Stderr, "starting the hosts of the tests:", err)

		return 1
	}

	code := 1

	theHosts, err = prepare(started)
	if err == nil {
		code = run()
	}

	err = errors.Join(err, started.Stop())
	if err != nil {
		fmt.Fprintln(os.Stderr, "the hosts of the tests:", err)

		return 1
	}

	return code
}

func prepare(started *farm.Farm) (*testHosts, error) {
	program, err := farm.Build("../../modules/internal/agent/echo", started.Path("echo"))
	if err != nil {
		return nil, err
	}

	for name, mode := range map[string]os.FileMode{"control": 0o755, "runs": 0o755, "controller": 0o755, "notes": 0o777} {
		err = errors.Join(err, os.Mkdir(started.Path(name), mode), os.Chmod(started.Path(name), mode))
	}

	return &testHosts{Farm: started, program: program}, errors.Join(err, farm.WriteCollection(started.Path("collections"), "../..", program))
}

// hosts gives the hosts to a test, which is skipped where there can be none, and fails where there must be some.
func hosts(t *testing.T) *testHosts {
	t.Helper()

	if missing == "" {
		return theHosts
	}

	if os.Getenv("CI") == "true" {
		t.Fatal(missing)
	}

	t.Skip(missing)

	return nil
}

func (f *testHosts) inside(t *testing.T, script string) string {
	t.Helper()

	output, err := f.Inside(script)
	if err != nil {
		t.Fatal(err)
	}

	return output
}

// forget removes what all users of the hosts have cached.
func (f *testHosts) forget(t *testing.T) {
	t.Helper()

	f.inside(t, fmt.Sprintf(`rm -rf /home/*/.cache /root/.cache /tmp/thinkube-*
for d in /var/tmp/thinkube-*; do [ $d = /var/tmp/thinkube-%d ] || rm -rf $d; done`, farm.UID(farm.Robbed)))
}

// emptyNote makes a file that the program can append to as any user.
func (f *testHosts) emptyNote(t *testing.T, name string) {
	t.Helper()

	err := errors.Join(os.WriteFile(f.Path("notes/"+name), nil, 0o666), os.Chmod(f.Path("notes/"+name), 0o666))
	if err != nil {
		t.Fatal(err)
	}
}
