// SPDX-License-Identifier: Apache-2.0

package farm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

// users are those above, then one for each host; a user's place is its number.
var users = append([]string{Plain, Sudo, Other, Noexec, Full, Nohome, Robbed, Keeps}, owners()...)

// Owner is a user of the n-th host's own, from 1 on: who reaches each host as its owner finds no program there. May use
// sudo without a password.
func Owner(n int) string { return fmt.Sprintf("tk-%02d", n) }

func owners() []string {
	names := []string{}
	for n := 1; n <= Addresses; n++ {
		names = append(names, Owner(n))
	}

	return names
}

// Addresses is how many hosts there are.
const Addresses = 100

// One sshd listens on at most 16 sockets.
const (
	addressesPerSSHD = 16
	servers          = (Addresses + addressesPerSSHD - 1) / addressesPerSSHD
)

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

	passwd, shadow := accounts(string(bytes.TrimSpace(hash)))

	err = errors.Join(
		os.WriteFile(f.Path("passwd"), []byte(passwd), 0o644),
		os.WriteFile(f.Path("shadow"), []byte(shadow), 0o600),
		os.WriteFile(f.Path("sudoers"), []byte(sudoers()), 0o440),
		os.WriteFile(f.Path("authorized_keys"), public, 0o644),
		os.Mkdir(f.Path("sshd"), 0o755),
		homes(f.Path("homes")),
	)
	for i := range servers {
		err = errors.Join(err, os.WriteFile(f.Path(fmt.Sprint("sshd/config", i+1)), []byte(f.config(i)), 0o644))
	}

	return err
}

func accounts(hash string) (passwd, shadow string) {
	passwd = "root:x:0:0::/root:/bin/bash\nsshd:x:61299:65534::/run/sshd:/bin/false\n"
	shadow = "root:*:1::::::\nsshd:*:1::::::\n"

	for i, user := range users {
		home := "/home/" + user
		if !hasHome(user) {
			home = "/nonexistent"
		}

		passwd += fmt.Sprintf("%s:x:%d:65534::%s:/bin/bash\n", user, firstUID+i, home)
		shadow += fmt.Sprintf("%s:%s:1::::::\n", user, hash)
	}

	return passwd, shadow
}

func hasHome(user string) bool { return user != Nohome && user != Robbed }

// homes makes what is copied to the hosts' /home: no process for each of them, as mkdir and chown in a script would be.
func homes(folder string) error {
	err := os.Mkdir(folder, 0o755)

	for i, user := range users {
		if hasHome(user) {
			home := filepath.Join(folder, user)
			err = errors.Join(err, os.Mkdir(home, 0o755), os.Chown(home, firstUID+i, -1))
		}
	}

	return err
}

func sudoers() string {
	return fmt.Sprintf("root ALL=(ALL) ALL\n%[1]s ALL=(ALL) NOPASSWD: ALL\n%[2]s ALL=(ALL) ALL\n"+
		"%[3]s ALL=(ALL) NOPASSWD: ALL\nDefaults:%[3]s !always_set_home, env_keep += HOME\n",
		strings.Join(append(owners(), Plain), ","), Sudo, Keeps)
}

// config has room for a controller that opens everything at once, on one host or on all.
func (f *Farm) config(server int) string {
	config := fmt.Sprintf("Port %s\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\nPasswordAuthentication yes\n"+
		"MaxStartups 1000\nMaxSessions 1000\nPidFile none\nSubsystem sftp internal-sftp\n", f.Port, f.Path("host_key"), f.Path("authorized_keys"))
	for n := 1 + server*addressesPerSSHD; n <= min((server+1)*addressesPerSSHD, Addresses); n++ {
		config += fmt.Sprintf("ListenAddress %s\n", Address(n))
	}

	return config
}
