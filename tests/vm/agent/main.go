// SPDX-License-Identifier: Apache-2.0

// Agent is the first program of a guest of package vm: it loads kernel modules, makes the root, and leaves a process behind
// that runs what the test asks for.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thinkube/infra/tests/vm/wire"
)

// serveName is argv[0] of the process that runs commands.
const serveName = "thinkube-agent"

func main() {
	var err error
	if os.Args[0] == serveName {
		err = serve()
	} else {
		err = boot()
	}
	// Nobody can go on from here; what is printed is on the serial console.
	fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

// boot is what process 1 does. It does not return when all is well.
func boot() error {
	_ = os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	_ = os.Setenv("HOME", "/root")
	_ = os.Setenv("LC_ALL", "C.UTF-8")
	text, err := os.ReadFile(wire.InitFile)
	if err != nil {
		return err
	}
	var todo wire.Init
	err = json.Unmarshal(text, &todo)
	if err == nil {
		err = mountKernel()
	}
	if err == nil {
		err = loadModules(todo.Modules)
	}
	if err != nil {
		return err
	}
	if todo.Root == "" {
		return stay()
	}
	if err := openRoot(todo.Root); err != nil {
		return err
	}
	if err := startAgent(); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", wire.SystemInit, syscall.Exec(wire.SystemInit, []string{wire.SystemInit}, os.Environ()))
}

type mount struct{ kind, at, options string }

// kernelMounts are those that every program expects.
var kernelMounts = []mount{{"devtmpfs", "/dev", ""}, {"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"tmpfs", "/run", "mode=755"}}

func mountKernel() error {
	for _, each := range kernelMounts {
		err := mountAt(each.kind, each.at, each.kind, 0, each.options)
		if err != nil {
			return err
		}
	}
	return nil
}

func mountAt(what, at, kind string, flags uintptr, options string) error {
	err := os.MkdirAll(at, 0o755)
	if err == nil {
		err = unix.Mount(what, at, kind, flags, options)
	}
	if err != nil {
		return fmt.Errorf("mounting %s %q on %s (%s): %w", kind, what, at, options, err)
	}
	return nil
}

func loadModules(modules []string) error {
	for _, each := range modules {
		path, params, _ := strings.Cut(each, " ")
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(file.Fd()), params, 0)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("loading kernel module %q: %w", each, err)
		}
		if err := errors.Join(file.Close(), os.Remove(path)); err != nil {
			return err
		}
	}
	return nil
}

// startAgent starts the process that runs commands. The new root need not have this program.
func startAgent() error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{serveName}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd.Start()
}

// stay is the rest of process 1's life where there is no other init: it buries the dead, and ends the machine with the agent.
func stay() error {
	if _, err := os.Stat("/bin/busybox"); err == nil {
		if err := exec.Command("/bin/busybox", "--install", "-s", "/bin").Run(); err != nil {
			return fmt.Errorf("busybox --install: %w", err)
		}
	}
	if err := startAgent(); err != nil {
		return err
	}
	for {
		_, err := unix.Wait4(-1, nil, 0, nil)
		if errors.Is(err, unix.ECHILD) {
			return errors.New("every process has ended")
		}
	}
}

const newRoot = "/newroot"

// openRoot makes the disk the root, with the test's files in it.
func openRoot(disk string) error {
	err := waitFor(disk)
	if err == nil {
		err = mountAt(disk, newRoot, "ext4", unix.MS_NOATIME, "")
	}
	if err == nil {
		err = copyFiles()
	}
	if err != nil {
		return err
	}
	return switchRoot()
}

// waitFor waits for a device that the kernel finds on its own time.
func waitFor(path string) error {
	for range 500 {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("there is no %q", path)
}

// copyFiles puts the test's files into the root; on a disk that is kept, the first time only.
func copyFiles() error {
	const done = newRoot + "/.thinkube-files"
	if _, err := os.Stat(done); err == nil {
		return nil
	}
	err := filepath.WalkDir(wire.FilesFolder, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // no files at all
		}
		if err != nil {
			return err
		}
		to := newRoot + strings.TrimPrefix(path, wire.FilesFolder)
		if entry.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		return copyFile(path, to)
	})
	if err != nil {
		return err
	}
	return os.WriteFile(done, nil, 0o600)
}

func copyFile(path, to string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	// Not through a link that the root has there.
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		target, err := os.Readlink(path)
		return errors.Join(err, os.Symlink(target, to))
	}
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	file, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(file, from)
	return errors.Join(err, file.Close(), os.Chmod(to, info.Mode().Perm()), os.Remove(path))
}

// switchRoot makes newRoot "/", as switch_root(8) does.
func switchRoot() error {
	for _, each := range kernelMounts {
		at := newRoot + each.at
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(each.at, at, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving %s: %w", each.at, err)
		}
	}
	err := os.Chdir(newRoot)
	if err == nil {
		err = unix.Mount(".", "/", "", unix.MS_MOVE, "")
	}
	if err == nil {
		err = unix.Chroot(".")
	}
	if err == nil {
		err = os.Chdir("/")
	}
	if err != nil {
		return fmt.Errorf("making %s the root: %w", newRoot, err)
	}
	return nil
}

// runner runs what is asked for, any number at a time.
type runner struct {
	port    *os.File
	lock    sync.Mutex // of what follows, and of writing
	running map[int]*exec.Cmd
}

func serve() error {
	path, err := findPort()
	if err != nil {
		return err
	}
	port, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	r := &runner{port: port, running: map[int]*exec.Cmd{}}
	r.answer(wire.Answer{ID: wire.Ready})
	lines := json.NewDecoder(bufio.NewReader(port))
	for {
		var request wire.Request
		if err := lines.Decode(&request); err != nil {
			return fmt.Errorf("reading from the test: %w", err)
		}
		if request.Kill {
			r.kill(request.ID)
		} else {
			r.start(request)
		}
	}
}

func findPort() (string, error) {
	for range 500 {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return "", err
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err == nil && strings.TrimSpace(string(text)) == wire.Port {
				return filepath.Join("/dev", filepath.Base(filepath.Dir(name))), nil
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return "", fmt.Errorf("there is no virtio serial port %q", wire.Port)
}

func (r *runner) answer(answer wire.Answer) {
	text, err := json.Marshal(answer)
	if err != nil {
		panic(err) // numbers, strings and bytes can be encoded
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	if _, err := r.port.Write(append(text, '\n')); err != nil {
		fmt.Fprintf(os.Stderr, "answering the test: %v\n", err)
	}
}

func (r *runner) start(request wire.Request) {
	cmd := exec.Command(request.Argv[0], request.Argv[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = "/", bytes.NewReader(request.Stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = time.Second // what it left behind may hold its pipes
	if err := cmd.Start(); err != nil {
		r.answer(wire.Answer{ID: request.ID, Error: err.Error()})
		return
	}
	r.lock.Lock()
	r.running[request.ID] = cmd
	r.lock.Unlock()
	go func() {
		err := cmd.Wait()
		r.lock.Lock()
		delete(r.running, request.ID)
		r.lock.Unlock()
		answer := wire.Answer{ID: request.ID, Stdout: stdout.Bytes(), Stderr: stderr.Bytes()}
		var exit *exec.ExitError
		switch {
		case cmd.ProcessState == nil:
			answer.Error = err.Error()
		case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled():
			answer.Code = 128 + int(exit.Sys().(syscall.WaitStatus).Signal())
		default:
			answer.Code = cmd.ProcessState.ExitCode()
		}
		r.answer(answer)
	}()
}

func (r *runner) kill(id int) {
	r.lock.Lock()
	defer r.lock.Unlock()
	if cmd := r.running[id]; cmd != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
}
