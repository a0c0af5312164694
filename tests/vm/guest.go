// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/thinkube/infra/tests/vm/wire"
)

// Result is what a program did.
type Result struct {
	Code           int // 128 and the signal's number for one that a signal ended
	Stdout, Stderr string
}

// Run runs a program in the guest, and gives how it ended; any number may run at a time. The error is one of the guest, or
// of the context: then the program and its process group were killed.
func (g *Guest) Run(ctx context.Context, argv ...string) (Result, error) {
	return g.RunInput(ctx, nil, argv...)
}

// RunInput is Run with something on standard input.
func (g *Guest) RunInput(ctx context.Context, stdin []byte, argv ...string) (Result, error) {
	life := g.life()
	if life == nil || life.port == nil {
		return Result{}, errors.New("the guest takes no commands: it was not booted, or has an initrd of its own")
	}
	life.lock.Lock()
	life.next++
	id := life.next
	life.lock.Unlock()
	answer := life.expect(id)
	if err := life.send(wire.Request{ID: id, Argv: argv, Stdin: stdin}); err != nil {
		return Result{}, err
	}
	select {
	case got := <-answer:
		result := Result{got.Code, string(got.Stdout), string(got.Stderr)}
		if got.Error != "" {
			return result, fmt.Errorf("%s: %s", argv[0], got.Error)
		}
		return result, nil
	case <-life.done:
		return Result{}, fmt.Errorf("while %q ran: %w", argv, life.err)
	case <-ctx.Done():
		return Result{}, errors.Join(fmt.Errorf("%q: %w", argv, ctx.Err()), life.send(wire.Request{ID: id, Kill: true}))
	}
}

// Sh runs a shell script and gives what it printed. One that fails is an error.
func (g *Guest) Sh(ctx context.Context, script string) (string, error) {
	got, err := g.Run(ctx, "/bin/sh", "-ec", script)
	if err == nil && got.Code != 0 {
		err = fmt.Errorf("%q ended with %d: %s%s", script, got.Code, got.Stdout, got.Stderr)
	}
	return got.Stdout, err
}

// Write writes a file in the guest.
func (g *Guest) Write(ctx context.Context, path string, data []byte, mode fs.FileMode) error {
	got, err := g.RunInput(ctx, data, "/bin/sh", "-ec", `mkdir -p "${1%/*}/" && cat >"$1" && chmod "$2" "$1"`, "sh", path, fmt.Sprintf("%o", mode.Perm()))
	if err == nil && got.Code != 0 {
		err = fmt.Errorf("writing %q: %s", path, got.Stderr)
	}
	return err
}

// Read gives a file of the guest.
func (g *Guest) Read(ctx context.Context, path string) ([]byte, error) {
	got, err := g.Run(ctx, "cat", path)
	if err == nil && got.Code != 0 {
		err = fmt.Errorf("reading %q: %s", path, got.Stderr)
	}
	return []byte(got.Stdout), err
}

// Reboot restarts the guest as its own init does that. Without Machine.Keep all files are as they were at first.
func (g *Guest) Reboot(ctx context.Context) error {
	argv := []string{"reboot", "-f"}
	if g.machine.Root != "" {
		argv = []string{"systemctl", "reboot"}
	}
	life := g.life()
	got, err := g.Run(ctx, argv...)
	select {
	case <-life.done: // it may end before the command has
	default:
		if err != nil || got.Code != 0 {
			return fmt.Errorf("rebooting: %d %s: %w", got.Code, got.Stderr, err)
		}
	}
	if err := g.Wait(ctx); err != nil {
		return err
	}
	return g.start(ctx)
}

// PowerCut ends the guest as if its plug was pulled, and boots it again.
func (g *Guest) PowerCut(ctx context.Context) error {
	g.stop()
	return g.start(ctx)
}

// Wait waits until the guest has switched itself off, or rebooted, which ends it as well.
func (g *Guest) Wait(ctx context.Context) error {
	select {
	case <-g.life().done:
		g.stop()
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the guest has not ended: %w", ctx.Err())
	}
}

// Serial is what the kernel and init have said on the serial console, in all boots.
func (g *Guest) Serial() string {
	text, _ := os.ReadFile(g.path("serial.log"))
	return strings.ReplaceAll(string(text), "\r", "")
}

func (g *Guest) life() *qemu {
	g.lock.Lock()
	defer g.lock.Unlock()
	return g.qemu
}

func (g *Guest) stop() {
	if life := g.life(); life != nil {
		life.end()
	}
}

// serialShown is how many lines of the console a failed test shows.
const serialShown = 40

// close ends the guest and removes all of it. Of a failed test the console is kept.
func (g *Guest) close(t testing.TB) {
	g.stop()
	if t.Failed() {
		lines := strings.Split(strings.TrimSpace(g.Serial()), "\n")
		t.Logf("the guest's console ends with (all of it is in %s):\n%s", g.keepLog(t.Name()), strings.Join(lines[max(0, len(lines)-serialShown):], "\n"))
	}
	if err := os.RemoveAll(g.dir); err != nil {
		t.Error(err)
	}
}

// keepLog copies the console's text to the cache, where the next failure of the same test overwrites it.
func (g *Guest) keepLog(test string) string {
	cache, err := cacheDir()
	if err == nil {
		err = os.MkdirAll(filepath.Join(cache, "logs"), 0o755)
	}
	path := filepath.Join(cache, "logs", strings.ReplaceAll(test, "/", "_")+".log")
	if err == nil {
		err = os.WriteFile(path, []byte(g.Serial()), 0o644)
	}
	if err != nil {
		return err.Error()
	}
	return path
}
