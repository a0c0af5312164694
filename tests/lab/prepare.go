// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// layer is a host's writable layer while it is made, above the image's.
type layer struct {
	upper  string
	lowers []string
}

// prepare makes the host's own layer when it has none: what makes a copy of the image this very host.
func (h *Host) prepare(ctx context.Context) error {
	if _, err := os.Stat(h.upper()); err == nil {
		return nil
	}
	if done, err := h.finishRestore(); done || err != nil {
		return err
	}
	fresh := h.upper() + ".making"
	if err := errors.Join(os.RemoveAll(fresh), os.MkdirAll(fresh, 0o755)); err != nil {
		return err
	}
	key := filepath.Join(h.dir(), "host_key")
	if _, err := os.Stat(key + ".pub"); errors.Is(err, fs.ErrNotExist) {
		if err := os.RemoveAll(key); err != nil {
			return err
		}
		if err := makeKey(ctx, key, h.Name()); err != nil {
			return err
		}
	}
	l := layer{upper: fresh, lowers: h.lab.image.lowers(h.state.WithoutLXD)}
	if err := h.writeIdentity(l, key); err != nil {
		return err
	}
	if err := h.writeLogins(ctx, l); err != nil {
		return err
	}
	return os.Rename(fresh, h.upper())
}

func (h *Host) writeIdentity(l layer, key string) error {
	private, err := os.ReadFile(key)
	if err != nil {
		return err
	}
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		return err
	}
	network := fmt.Sprintf("[Match]\nName=eth0\n\n[Network]\nAddress=%s/24\nGateway=%s\nIPv6AcceptRA=no\n",
		h.Address(), h.lab.state.gateway())
	hosts := "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
	for _, peer := range h.lab.Hosts() {
		hosts += fmt.Sprintf("%s %s\n", peer.Address(), peer.Name())
	}
	return errors.Join(
		l.write("/etc/hostname", h.Name()+"\n", 0o644, 0),
		l.write("/etc/hosts", hosts, 0o644, 0),
		l.write("/etc/machine-id", randomHex(16)+"\n", 0o444, 0),
		l.write("/etc/ssh/ssh_host_ed25519_key", string(private), 0o600, 0),
		l.write("/etc/ssh/ssh_host_ed25519_key.pub", string(public), 0o644, 0),
		l.write("/etc/systemd/network/10-uplink.network", network, 0o644, 0),
	)
}

// writeLogins lets the lab's key in for root, admin and ops, and gives ops its password.
func (h *Host) writeLogins(ctx context.Context, l layer) error {
	key, err := os.ReadFile(h.lab.KeyFile() + ".pub")
	if err != nil {
		return err
	}
	passwd, err := l.read("/etc/passwd")
	if err != nil {
		return err
	}
	shadow, err := l.read("/etc/shadow")
	if err != nil {
		return err
	}
	hash, err := hashPassword(ctx, h.lab.state.OpsPassword)
	if err != nil {
		return err
	}
	errs := []error{l.write("/etc/shadow", setPassword(shadow, "ops", hash), 0o640, shadowGroup)}
	for _, user := range []string{"root", "admin", "ops"} {
		uid, home, err := findUser(passwd, user)
		if err != nil {
			return err
		}
		errs = append(errs, l.write(home+"/.ssh/authorized_keys", string(key), 0o600, 0),
			os.Chmod(l.upper+home+"/.ssh", 0o700),
			os.Chown(l.upper+home+"/.ssh", uid, uid), os.Chown(l.upper+home+"/.ssh/authorized_keys", uid, uid))
	}
	return errors.Join(errs...)
}

// shadowGroup is Debian's fixed number of group shadow (base-passwd).
const shadowGroup = 42

func findUser(passwd, name string) (uid int, home string, err error) {
	for _, line := range strings.SplitAfter(passwd, "\n") {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) == 7 && f[0] == name {
			uid, err = strconv.Atoi(f[2])
			return uid, f[5], err
		}
	}
	return 0, "", fmt.Errorf("no user %q in the image", name)
}

// setPassword replaces the second field of the user's line (shadow(5)).
func setPassword(shadow, user, hash string) string {
	var text strings.Builder
	for _, line := range strings.SplitAfter(shadow, "\n") {
		f := strings.Split(line, ":")
		if f[0] == user && len(f) > 1 {
			f[1] = hash
		}
		text.WriteString(strings.Join(f, ":"))
	}
	return text.String()
}

// hashPassword makes a crypt(5) hash; the password goes by standard input, where nobody can see it.
func hashPassword(ctx context.Context, password string) (string, error) {
	cmd := exec.CommandContext(ctx, "perl", "-e", `chomp(my $p = <STDIN>); print crypt($p, '$6$'.$ARGV[0].'$')`, randomHex(8))
	cmd.Stdin = strings.NewReader(password + "\n")
	hash, err := cmd.Output()
	if err != nil || !strings.HasPrefix(string(hash), "$6$") {
		return "", fmt.Errorf("hashing a password with perl: %q: %w", hash, err)
	}
	return string(hash), nil
}

// lookup finds a path in the image's layers.
func (l layer) lookup(path string) (string, fs.FileInfo, error) {
	for _, lower := range l.lowers {
		if info, err := os.Lstat(lower + path); err == nil {
			return lower + path, info, nil
		}
	}
	return "", nil, fmt.Errorf("%q: %w", path, fs.ErrNotExist)
}

func (l layer) read(path string) (string, error) {
	file, _, err := l.lookup(path)
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(file)
	return string(data), err
}

func (l layer) write(path, text string, mode fs.FileMode, gid int) error {
	if err := l.mkdir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := writeFile(l.upper+path, []byte(text), mode); err != nil {
		return err
	}
	return os.Chown(l.upper+path, 0, gid)
}

// mkdir makes a folder and its parents with the owner and mode that they have in the image: an overlay
// shows the upper folder's.
func (l layer) mkdir(path string) error {
	if _, err := os.Stat(l.upper + path); err == nil {
		return nil
	}
	if path != "/" {
		if err := l.mkdir(filepath.Dir(path)); err != nil {
			return err
		}
		if err := os.Mkdir(l.upper+path, 0o755); err != nil {
			return err
		}
	}
	_, info, err := l.lookup(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t)
	return errors.Join(os.Chown(l.upper+path, int(owner.Uid), int(owner.Gid)), os.Chmod(l.upper+path, info.Mode().Perm()))
}
