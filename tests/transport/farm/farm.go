// SPDX-License-Identifier: Apache-2.0

// Package farm gives tests and benchmarks hosts to reach by ssh: one machine, many loopback addresses, real sshd and
// sudo.
package farm

import (
	"bytes"
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

// Password is that of all users.
const Password = "let me in"

// The users of the hosts, by what is special about them.
const (
	Plain  = "tk-plain"  // may use sudo without a password
	Sudo   = "tk-sudo"   // may use sudo with the password
	Other  = "tk-other"  // for become
	Noexec = "tk-noexec" // programs in the home may not run
	Full   = "tk-full"   // the home has no room for a program
	Nohome = "tk-nohome" // the home does not exist
	Robbed = "tk-robbed" // no home, and somebody else made the folder in /var/tmp
	Keeps  = "tk-keeps"  // sudo leaves HOME as it is
)

const firstUID = 61300

var users = []string{Plain, Sudo, Other, Noexec, Full, Nohome, Robbed, Keeps}

// One sshd listens on at most 16 sockets.
const (
	servers          = 2
	addressesPerSSHD = 12
	// Addresses is how many hosts there are.
	Addresses = servers * addressesPerSSHD
)

// Farm is the running hosts. They are in mount and PID namespaces of their own, with their own users, homes, sudoers,
// /tmp and /var/tmp: when they are killed, or the process that started them, nothing of them is left but the folder.
type Farm struct {
	Folder string // seen here and on the hosts, for everybody to read
	Port   string
	server *exec.Cmd
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

	err = errors.Join(os.Chmod(folder, 0o755), f.fill())
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
mount -t tmpfs -o mode=755 tmpfs /home
while IFS=: read name x uid x x home x; do
  case $home in /home/*) mkdir -m 755 $home; chown $uid $home;; esac
done <$farm/passwd
mount -t tmpfs -o mode=755,noexec,uid=$(id -u tk-noexec) tmpfs /home/tk-noexec
mount -t tmpfs -o mode=755,size=64k,uid=$(id -u tk-full) tmpfs /home/tk-full
mkdir -m 777 /var/tmp/thinkube-$(id -u tk-robbed)
$2 -D -e -f $farm/sshd_config_2 &
exec $2 -D -e -f $farm/sshd_config_1`

// fill writes the servers' files.
func (f *Farm) fill() error {
	port, err := freePort()
	if err != nil {
		return err
	}

	f.Port = port

	for _, key := range []string{"host_key", "key"} {
		err = command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f.Path(key))
		if err != nil {
			return err
		}
	}

	hash, err := exec.Command("openssl", "passwd", "-6", Password).Output()
	if err != nil {
		return err
	}

	public, err := os.ReadFile(f.Path("key.pub"))
	if err != nil {
		return err
	}

	sudoers := fmt.Sprintf("root ALL=(ALL) ALL\n%[1]s ALL=(ALL) NOPASSWD: ALL\n%[2]s ALL=(ALL) ALL\n"+
		"%[3]s ALL=(ALL) NOPASSWD: ALL\nDefaults:%[3]s !always_set_home, env_keep += HOME\n", Plain, Sudo, Keeps)
	passwd, shadow := accounts(string(bytes.TrimSpace(hash)))

	err = errors.Join(
		os.WriteFile(f.Path("passwd"), []byte(passwd), 0o644),
		os.WriteFile(f.Path("shadow"), []byte(shadow), 0o600),
		os.WriteFile(f.Path("sudoers"), []byte(sudoers), 0o440),
		os.WriteFile(f.Path("authorized_keys"), public, 0o644),
	)
	for i := range servers {
		err = errors.Join(err, os.WriteFile(f.Path(fmt.Sprint("sshd_config_", i+1)), []byte(f.config(i)), 0o644))
	}

	return err
}

func accounts(hash string) (passwd, shadow string) {
	passwd = "root:x:0:0::/root:/bin/bash\nsshd:x:61299:65534::/run/sshd:/bin/false\n"
	shadow = "root:*:1::::::\nsshd:*:1::::::\n"

	for i, user := range users {
		home := "/home/" + user
		if user == Nohome || user == Robbed {
			home = "/nonexistent"
		}

		passwd += fmt.Sprintf("%s:x:%d:65534::%s:/bin/bash\n", user, firstUID+i, home)
		shadow += fmt.Sprintf("%s:%s:1::::::\n", user, hash)
	}

	return passwd, shadow
}

func (f *Farm) config(server int) string {
	config := fmt.Sprintf("Port %s\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"+
		"MaxStartups 100\nMaxSessions 100\nPidFile none\nSubsystem sftp internal-sftp\n", f.Port, f.Path("host_key"), f.Path("authorized_keys"))
	for i := range addressesPerSSHD {
		config += fmt.Sprintf("ListenAddress %s\n", Address(1+server*addressesPerSSHD+i))
	}

	return config
}

// Path is that of a file in the farm's folder.
func (f *Farm) Path(name string) string { return filepath.Join(f.Folder, name) }

// Address is that of the n-th host, from 1 on.
func Address(n int) string { return fmt.Sprintf("127.0.0.%d", n) }

// UID is a user's number on the hosts.
func UID(user string) int {
	for i, name := range users {
		if name == user {
			return firstUID + i
		}
	}

	return -1
}

func (f *Farm) wait() error {
	var err error

	for range 200 {
		for server := range servers {
			var connection net.Conn

			connection, err = net.Dial("tcp", net.JoinHostPort(Address((server+1)*addressesPerSSHD), f.Port))
			if err != nil {
				break
			}

			_ = connection.Close()
		}

		if err == nil {
			return nil
		}

		time.Sleep(50 * time.Millisecond)
	}

	log, _ := os.ReadFile(f.Path("sshd.log"))

	return fmt.Errorf("sshd did not start: %w: %s", err, log)
}

// Stop ends the hosts and removes the folder.
func (f *Farm) Stop() error {
	if f.server != nil && f.server.Process != nil {
		_ = f.server.Process.Kill()
		_ = f.server.Wait() // the error is the kill
	}

	return os.RemoveAll(f.Folder)
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
