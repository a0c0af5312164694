// SPDX-License-Identifier: Apache-2.0

// Package transport tests how the action plugin carries a task to a host: real ansible-playbook runs (the installed
// ansible-core and 2.19) against a real sshd, sudo and others, with a small program in the place of the bundle.
package transport

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

const password = "let me in"

// The users of the hosts, by what is special about them.
const (
	plainUser  = "tk-plain"  // may use sudo without a password
	sudoUser   = "tk-sudo"   // may use sudo with the password
	otherUser  = "tk-other"  // for become
	noexecUser = "tk-noexec" // programs in the home may not run
	fullUser   = "tk-full"   // the home has no room for a program
	homeless   = "tk-nohome" // the home does not exist
	robbed     = "tk-robbed" // no home, and somebody else made the folder in /var/tmp
	keepsHome  = "tk-keeps"  // sudo leaves HOME as it is
)

const firstUID = 61300

var users = []string{plainUser, sudoUser, otherUser, noexecUser, fullUser, homeless, robbed, keepsHome}

// theFarm is what all tests share; missing says why there is none.
var (
	theFarm *farm
	missing string
)

// farm is a number of "hosts": one sshd on several loopback addresses. It runs in mount and PID namespaces of its own,
// with its own users, homes, sudoers, /tmp and /var/tmp: when it is killed, nothing of it is left.
type farm struct {
	folder  string
	port    string
	program []byte // the packed program
	name    string // how the hosts call it
	server  *exec.Cmd
}

func TestMain(m *testing.M) {
	// The death signal of the server below follows the thread that started it.
	runtime.LockOSThread()

	code := 1

	if missing = missingTools(); missing != "" {
		code = m.Run()
	} else {
		started, err := startFarm()
		if err != nil {
			fmt.Fprintln(os.Stderr, "starting the hosts of the tests:", err)
		} else {
			theFarm = started
			code = m.Run()
		}

		if started != nil {
			err = started.stop()
			if err != nil {
				fmt.Fprintln(os.Stderr, "removing the hosts of the tests:", err)

				code = 1
			}
		}
	}

	os.Exit(code)
}

// hosts gives the farm to a test, which is skipped where there can be none, and fails where there must be one.
func hosts(t *testing.T) *farm {
	t.Helper()

	if missing == "" {
		return theFarm
	}

	if os.Getenv("CI") == "true" {
		t.Fatal(missing)
	}

	t.Skip(missing)

	return nil
}

func missingTools() string {
	if os.Geteuid() != 0 {
		return "needs root, to run sshd with users of its own"
	}

	for _, tool := range []string{"ansible-playbook", "sshd", "ssh", "ssh-keygen", "sudo", "busybox", "unshare", "nsenter", "openssl", "go"} {
		_, err := exec.LookPath(tool)
		if err != nil {
			return "needs " + tool
		}
	}

	return ""
}

func startFarm() (*farm, error) {
	folder, err := os.MkdirTemp("", "tkt")
	if err != nil {
		return nil, err
	}

	f := &farm{folder: folder}

	err = errors.Join(os.Chmod(folder, 0o755), f.fill())
	if err != nil {
		return f, err
	}

	sshd, err := exec.LookPath("sshd")
	if err != nil {
		return f, err
	}

	log, err := os.Create(f.path("sshd.log"))
	if err != nil {
		return f, err
	}
	defer log.Close()

	f.server = exec.Command("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-ec", namespaceScript, "sh", f.folder, sshd)
	f.server.Stdout, f.server.Stderr = log, log
	f.server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}

	err = f.server.Start()
	if err != nil {
		return f, err
	}

	return f, f.wait()
}

// namespaceScript makes the hosts: everything that differs from this machine is a mount that only they see.
const namespaceScript = `
farm=$1
for file in passwd shadow sudoers; do mount --bind $farm/$file /etc/$file; done
mount -t tmpfs tmpfs /mnt
mkdir -m 1777 /mnt/tmp; mkdir /mnt$farm; mount --bind $farm /mnt$farm; mount --rbind /mnt/tmp /tmp
mount -t tmpfs -o mode=1777 tmpfs /var/tmp
mount -t tmpfs -o mode=700 tmpfs /root
mount -t tmpfs -o mode=755 tmpfs /run; mkdir -m 755 /run/sshd
mount -t tmpfs -o mode=755 tmpfs /home
while IFS=: read name x uid x x home x; do
  case $home in /home/*) mkdir -m 755 $home; chown $uid $home;; esac
done <$farm/passwd
mount -t tmpfs -o mode=755,noexec,uid=$(id -u tk-noexec) tmpfs /home/tk-noexec
mount -t tmpfs -o mode=755,size=64k,uid=$(id -u tk-full) tmpfs /home/tk-full
mkdir -m 777 /var/tmp/thinkube-$(id -u tk-robbed)
exec $2 -D -e -f $farm/sshd_config`

// fill writes the server's files and builds the collection with the test's program.
func (f *farm) fill() error {
	port, err := freePort()
	if err != nil {
		return err
	}

	f.port = port

	for _, folder := range []string{"control", "notes", "runs", "controller"} {
		err = os.Mkdir(f.path(folder), 0o755)
		if err != nil {
			return err
		}
	}

	err = os.Chmod(f.path("notes"), 0o777)
	if err != nil {
		return err
	}

	for _, key := range []string{"host_key", "key"} {
		err = command("", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f.path(key))
		if err != nil {
			return err
		}
	}

	return errors.Join(f.writeServerFiles(), f.buildCollection())
}

func (f *farm) writeServerFiles() error {
	hash, err := exec.Command("openssl", "passwd", "-6", password).Output()
	if err != nil {
		return err
	}

	public, err := os.ReadFile(f.path("key.pub"))
	if err != nil {
		return err
	}

	sudoers := fmt.Sprintf("root ALL=(ALL) ALL\n%[1]s ALL=(ALL) NOPASSWD: ALL\n%[2]s ALL=(ALL) ALL\n"+
		"%[3]s ALL=(ALL) NOPASSWD: ALL\nDefaults:%[3]s !always_set_home, env_keep += HOME\n", plainUser, sudoUser, keepsHome)
	passwd, shadow := "root:x:0:0::/root:/bin/bash\nsshd:x:61299:65534::/run/sshd:/bin/false\n", "root:*:1::::::\nsshd:*:1::::::\n"

	for i, user := range users {
		home := "/home/" + user
		if user == homeless || user == robbed {
			home = "/nonexistent"
		}

		passwd += fmt.Sprintf("%s:x:%d:65534::%s:/bin/bash\n", user, firstUID+i, home)
		shadow += fmt.Sprintf("%s:%s:1::::::\n", user, bytes.TrimSpace(hash))
	}

	config := fmt.Sprintf("Port %s\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"+
		"MaxStartups 100\nMaxSessions 100\nPidFile none\nSubsystem sftp internal-sftp\n", f.port, f.path("host_key"), f.path("authorized_keys"))
	for i := 1; i <= 12; i++ {
		config += fmt.Sprintf("ListenAddress %s\n", address(i))
	}

	return errors.Join(
		os.WriteFile(f.path("passwd"), []byte(passwd), 0o644),
		os.WriteFile(f.path("shadow"), []byte(shadow), 0o600),
		os.WriteFile(f.path("sudoers"), []byte(sudoers), 0o440),
		os.WriteFile(f.path("authorized_keys"), public, 0o644),
		os.WriteFile(f.path("sshd_config"), []byte(config), 0o644),
	)
}

// buildCollection makes a collection of the checkout's plugins and meta, with the test's program as libexec.
func (f *farm) buildCollection() error {
	binary := f.path("echo")

	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "./echo")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")

	output, err := build.CombinedOutput()
	if err != nil {
		return fmt.Errorf("building the program: %w: %s", err, output)
	}

	text, err := os.ReadFile(binary)
	if err != nil {
		return err
	}

	sum := sha256.Sum256(text)
	hash := hex.EncodeToString(sum[:])
	f.name = fmt.Sprintf("thinkube_linux_%s-%s", runtime.GOARCH, hash[:32])

	var packed bytes.Buffer

	writer := gzip.NewWriter(&packed)
	_, err = writer.Write(text)
	err = errors.Join(err, writer.Close())
	f.program = packed.Bytes()

	return errors.Join(err, f.makeCollection("collections", map[string][]byte{
		"thinkube_linux_" + runtime.GOARCH + ".gz":     f.program,
		"thinkube_linux_" + runtime.GOARCH + ".sha256": []byte(hash + "\n"),
	}))
}

// makeCollection writes a collections folder below the farm's, with the given files as libexec.
func (f *farm) makeCollection(name string, libexec map[string][]byte) error {
	root := filepath.Join(f.path(name), "ansible_collections/thinkube/infra")

	err := errors.Join(
		os.MkdirAll(filepath.Join(root, "plugins/modules"), 0o755),
		os.MkdirAll(filepath.Join(root, "libexec"), 0o755),
		command("", "cp", "-r", "../../plugins/action", "../../plugins/plugin_utils", filepath.Join(root, "plugins")),
		command("", "cp", "-r", "../../meta", root),
		os.WriteFile(filepath.Join(root, "plugins/modules/lxd_info.py"), []byte("# documentation is no matter of these tests\n"), 0o644),
	)
	for file, text := range libexec {
		err = errors.Join(err, os.WriteFile(filepath.Join(root, "libexec", file), text, 0o644))
	}

	return err
}

func (f *farm) path(name string) string { return filepath.Join(f.folder, name) }

func (f *farm) wait() error {
	for range 100 {
		connection, err := net.Dial("tcp", net.JoinHostPort(address(1), f.port))
		if err == nil {
			return connection.Close()
		}

		time.Sleep(50 * time.Millisecond)
	}

	log, _ := os.ReadFile(f.path("sshd.log"))

	return fmt.Errorf("sshd did not start: %s", log)
}

// stop ends the server, with it the namespaces and everything in them, and removes the folder.
func (f *farm) stop() error {
	if f.server != nil && f.server.Process != nil {
		_ = f.server.Process.Kill()
		_ = f.server.Wait() // the error is the kill
	}

	return os.RemoveAll(f.folder)
}

// inside runs a script as root where the hosts' files are seen, and gives its output.
func (f *farm) inside(t *testing.T, script string) string {
	t.Helper()

	// The server is the only child of unshare.
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", f.server.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}

	output, err := exec.Command("nsenter", "--target", strings.TrimSpace(string(children)), "--mount", "--pid", "sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, output)
	}

	return strings.TrimSpace(string(output))
}

// forget removes what all users of the hosts have cached.
func (f *farm) forget(t *testing.T) {
	t.Helper()

	f.inside(t, "rm -rf /home/*/.cache /root/.cache; for d in /var/tmp/thinkube-* /tmp/thinkube-*; do case $d in "+
		"*-"+fmt.Sprint(f.uid(robbed))+") ;; *) rm -rf $d;; esac; done; rm -rf /tmp/thinkube-*")
}

// emptyNote makes a file that the program can append to as any user.
func (f *farm) emptyNote(t *testing.T, name string) {
	t.Helper()

	err := errors.Join(os.WriteFile(f.path("notes/"+name), nil, 0o666), os.Chmod(f.path("notes/"+name), 0o666))
	if err != nil {
		t.Fatal(err)
	}
}

func (f *farm) uid(user string) int {
	for i, name := range users {
		if name == user {
			return firstUID + i
		}
	}

	return -1
}

func address(i int) string { return fmt.Sprintf("127.0.0.%d", i) }

func freePort() (string, error) {
	listener, err := net.Listen("tcp", address(1)+":0")
	if err != nil {
		return "", err
	}

	_, port, err := net.SplitHostPort(listener.Addr().String())

	return port, errors.Join(err, listener.Close())
}

func command(folder, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	run := exec.CommandContext(ctx, name, args...)
	run.Dir = folder

	output, err := run.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, output)
	}

	return nil
}
