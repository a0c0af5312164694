// SPDX-License-Identifier: Apache-2.0

// Package farm gives tests and benchmarks hosts to reach by ssh: one machine, many loopback addresses, real sshd and
// sudo.
package farm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Farm is the running hosts. They are in mount and PID namespaces of their own, with their own users, homes, sudoers,
// /tmp and /var/tmp: when they are killed, or the process that started them, nothing of them is left.
type Farm struct {
	Folder  string // seen here and on the hosts, for everybody to read
	Port    string
	server  *exec.Cmd
	janitor *janitor
}

// MissingTools says what this machine lacks for a farm; "" if nothing.
func MissingTools() string {
	if os.Geteuid() != 0 {
		return "needs root, to run sshd with users of its own"
	}

	for _, tool := range []string{"ansible-playbook", "sshd", "ssh", "ssh-keygen", "sudo", "unshare", "nsenter", "openssl", "go"} {
		_, err := exec.LookPath(tool)
		if err != nil {
			return "needs " + tool
		}
	}

	return ""
}

// Start boots the hosts. They end with Stop, or with the thread that called Start: lock it (runtime.LockOSThread).
func Start() (*Farm, error) {
	folder, err := os.MkdirTemp("", "tkt")
	if err != nil {
		return nil, err
	}

	f := &Farm{Folder: folder}

	f.janitor, err = watch(folder)
	if err == nil {
		err = errors.Join(os.Chmod(folder, 0o755), f.fill())
	}

	if err == nil {
		err = f.run()
	}

	if err != nil {
		return nil, errors.Join(err, f.Stop())
	}

	return f, nil
}

func (f *Farm) run() error {
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		return err
	}

	log, err := os.Create(f.Path("sshd.log"))
	if err != nil {
		return err
	}
	defer log.Close()

	f.server = exec.Command("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-ec", namespaceScript, "sh", f.Folder, sshd)
	f.server.Stdout, f.server.Stderr = log, log
	f.server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}

	err = f.server.Start()
	if err != nil {
		return err
	}

	return f.wait()
}

// namespaceScript makes the hosts: everything that differs from this machine is a mount that only they see.
const namespaceScript = `
farm=$1
for file in passwd shadow sudoers; do mount --bind $farm/$file /etc/$file; done
mount -t tmpfs tmpfs /mnt
mkdir -m 1777 /mnt/tmp; mkdir -p /mnt$farm; mount --bind $farm /mnt$farm; mount --rbind /mnt/tmp /tmp
mount -t tmpfs -o mode=1777 tmpfs /var/tmp
mount -t tmpfs -o mode=700 tmpfs /root
mount -t tmpfs -o mode=755 tmpfs /run; mkdir -m 755 /run/sshd
mount -t tmpfs -o mode=755 tmpfs /home; cp -a $farm/homes/. /home
mount -t tmpfs -o mode=755,noexec,uid=$(id -u tk-noexec) tmpfs /home/tk-noexec
mount -t tmpfs -o mode=755,size=64k,uid=$(id -u tk-full) tmpfs /home/tk-full
mkdir -m 777 /var/tmp/thinkube-$(id -u tk-robbed)
for config in $farm/sshd/*; do $2 -D -e -f $config & done
wait`

// Path is that of a file in the farm's folder.
func (f *Farm) Path(name string) string { return filepath.Join(f.Folder, name) }

// wait returns when every server listens.
func (f *Farm) wait() error {
	var err error

	for waited := time.Duration(0); waited < 10*time.Second; waited += 10 * time.Millisecond {
		err = f.answers()
		if err == nil {
			return nil
		}

		time.Sleep(10 * time.Millisecond)
	}

	log, _ := os.ReadFile(f.Path("sshd.log"))

	return fmt.Errorf("sshd did not start: %w: %s", err, log)
}

func (f *Farm) answers() error {
	for server := range servers {
		connection, err := net.Dial("tcp", net.JoinHostPort(Address(1+server*addressesPerSSHD), f.Port))
		if err != nil {
			return err
		}

		_ = connection.Close()
	}

	return nil
}

// Stop ends the hosts and removes the folder.
func (f *Farm) Stop() error {
	if f.server != nil && f.server.Process != nil {
		_ = f.server.Process.Kill()
		_ = f.server.Wait() // the error is the kill
	}

	return errors.Join(os.RemoveAll(f.Folder), f.janitor.dismiss())
}

// Inside runs a script as root where the hosts' files are seen, and gives its output.
func (f *Farm) Inside(script string) (string, error) {
	// The server is the only child of unshare.
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", f.server.Process.Pid))
	if err != nil {
		return "", err
	}

	output, err := exec.Command("nsenter", "--target", strings.TrimSpace(string(children)), "--mount", "--pid", "sh", "-ec", script).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", script, err, output)
	}

	return strings.TrimSpace(string(output)), nil
}

func freePort() (string, error) {
	listener, err := net.Listen("tcp", Address(1)+":0")
	if err != nil {
		return "", err
	}

	_, port, err := net.SplitHostPort(listener.Addr().String())

	return port, errors.Join(err, listener.Close())
}

func command(name string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	output, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, output)
	}

	return nil
}
