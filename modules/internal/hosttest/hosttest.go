// SPDX-License-Identifier: Apache-2.0

// Package hosttest makes a host of namespaces for tests of programs that change a network: links, processes, /etc, /run and
// /var/lib are its own, the kernel is real, and there is no systemd. It needs root. What is started in it ends with the test.
package hosttest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Host is one such host.
type Host struct{ pid int }

// begin is the host's first process. It lives as long as its standard input is open, which is as long as the test.
const begin = `
mount --make-rprivate /
mount -t proc proc /proc
for folder in /etc /run /var/lib; do mount -t tmpfs -o mode=755 tmpfs $folder; done
ip link set lo up
echo ready
exec cat
`

// New makes a host and runs a script in it. Without root the test is skipped; under CI=true that is a failure.
func New(t *testing.T, script string) *Host {
	t.Helper()

	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("namespaces need root")
		}

		t.Skip("namespaces need root")
	}

	first := exec.Command("sh", "-ec", begin)
	first.Env = environ()
	first.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID}

	var refused bytes.Buffer

	first.Stderr = &refused

	alive, err := first.StdinPipe()
	require.NoError(t, err)

	said, err := first.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, first.Start())

	t.Cleanup(func() {
		_ = alive.Close()
		_ = first.Process.Kill() // and with the first process all others
		_ = first.Wait()
	})

	line, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		_ = first.Wait() // so that all is there that it said
	}

	require.NoError(t, err, "%s", &refused)
	require.Equal(t, "ready\n", line)

	host := &Host{first.Process.Pid}
	host.Sh(t, script)

	return host
}

func environ() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/"}
}

// command is a program in the host.
func (h *Host) command(t *testing.T, argv ...string) *exec.Cmd {
	t.Helper()

	enter := append([]string{fmt.Sprintf("--target=%d", h.pid), "--mount", "--net", "--pid", "--wd=/", "--"}, argv...)
	cmd := exec.CommandContext(t.Context(), "nsenter", enter...)
	cmd.Env = environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}

	return cmd
}

// Sh runs a script in the host and gives what it says.
func (h *Host) Sh(t *testing.T, script string) string {
	t.Helper()

	var out, refused bytes.Buffer

	cmd := h.command(t, "sh", "-ec", script)
	cmd.Stdout, cmd.Stderr = &out, &refused
	require.NoError(t, cmd.Run(), "%s\n%s%s", script, &out, &refused)

	return out.String()
}

// Answer is what a module's program printed.
type Answer struct {
	Changed  bool     `json:"changed"`
	Failed   bool     `json:"failed"`
	Msg      string   `json:"msg"`
	Steps    []string `json:"steps"`
	Warnings []string `json:"warnings"`
	Failure  struct {
		Code string `json:"code"`
	} `json:"failure"`
	// Values is all of it.
	Values map[string]any `json:"-"`
}

// Task is a module's program that runs in a host.
type Task struct {
	cmd *exec.Cmd
	out bytes.Buffer
}

// Start runs a stand-alone module program as stock Ansible does, with a file of arguments.
func (h *Host) Start(t *testing.T, program string, args map[string]any) *Task {
	t.Helper()

	text, err := json.Marshal(args)
	require.NoError(t, err)

	file := filepath.Join(t.TempDir(), "args.json")
	require.NoError(t, os.WriteFile(file, text, 0o600))

	task := &Task{cmd: h.command(t, program, file)}
	task.cmd.Stdout, task.cmd.Stderr = &task.out, io.Discard
	require.NoError(t, task.cmd.Start())

	return task
}

// Kill ends the program and all of its process group at once, as when the connection that it came over is torn down.
func (r *Task) Kill() {
	_ = syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL)
	_ = r.cmd.Wait()
}

// Wait gives the answer.
func (r *Task) Wait(t *testing.T) Answer {
	t.Helper()

	_ = r.cmd.Wait() // a task that failed says so

	var answer Answer

	require.NoError(t, json.Unmarshal(r.out.Bytes(), &answer), "%s", &r.out)
	require.NoError(t, json.Unmarshal(r.out.Bytes(), &answer.Values))

	return answer
}

// Run starts the program and waits for its answer.
func (h *Host) Run(t *testing.T, program string, args map[string]any) Answer {
	t.Helper()

	return h.Start(t, program, args).Wait(t)
}

// Eventually waits for something, and says what when it does not come.
func Eventually(t *testing.T, limit time.Duration, what string, check func() bool) {
	t.Helper()

	for end := time.Now().Add(limit); !check(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// Build compiles a module's stand-alone program from the folder ./cmd of the package under test, or from another.
func Build(t *testing.T, folder string, tags ...string) string {
	t.Helper()

	program := filepath.Join(t.TempDir(), "program")
	build := exec.Command("go", "build", "-tags", strings.Join(tags, ","), "-o", program, folder)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")

	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)

	return program
}

// Uplink is a script for New: a host whose link eth0, its uplink, ifupdown configures, with two addresses of IPv4 and one of
// IPv6, routes of two tables and a rule; and a gateway that answers, also for 10.1.0.77.
const Uplink = `
mkdir -p /run/network /etc/network
printf 'lo=lo\neth0=eth0\n' >/run/network/ifstate
printf 'nameserver 10.1.0.1\n' >/etc/resolv.conf
cat >/etc/network/interfaces <<E
# the uplink
auto lo eth0
iface lo inet loopback
iface eth0 inet static
    address 10.1.0.11/24
    gateway 10.1.0.1
    up ip addr add 10.1.0.12/24 dev eth0
    up ip route add 10.9.0.0/16 via 10.1.0.1 dev eth0 table 100
    up ip rule add from 10.1.0.12 table 100 priority 1000
iface eth0 inet6 static
    address fd00:1::11/64
    gateway fd00:1::1
E
chmod 640 /etc/network/interfaces
ip netns add gateway
ip link add eth0 address 02:00:00:00:00:01 type veth peer name cable netns gateway
ip -n gateway link set lo up
ip -n gateway link set cable up
ip -n gateway addr add 10.1.0.1/24 dev cable
ip -n gateway addr add 10.1.0.77/24 dev cable
ip -n gateway addr add fd00:1::1/64 dev cable nodad
ip link set eth0 up
sysctl -qw net.ipv6.conf.eth0.accept_ra=0
ip addr add 10.1.0.11/24 brd + dev eth0
ip addr add 10.1.0.12/24 brd + dev eth0
ip addr add fd00:1::11/64 dev eth0 nodad
ip route add default via 10.1.0.1 dev eth0 onlink
ip -6 route add default via fd00:1::1 dev eth0
ip route add 10.9.0.0/16 via 10.1.0.1 dev eth0 table 100
ip rule add from 10.1.0.12 table 100 priority 1000
`

// Shown is the host's network as ip tells it, and every file of /etc with owner, mode and content, less what the kernel makes
// and counts by itself.
func (h *Host) Shown(t *testing.T) string {
	t.Helper()

	return h.Sh(t, `ip -br link | sed 's/@.*UP/ UP/' | grep -v -e sit0 -e tunl -e gre -e ip6 -e erspan -e ip_vti
ip -o addr show scope global | sed 's/^[0-9]*: //; s/valid_lft.*//; s/ nodad//; s/  */ /g' | sort
ip -4 route show table all | grep -v 'table local' | sort
ip -6 route show table all | grep -v -e 'table local' -e multicast -e 'fe80::/64' -e ff00::/8 | sort
ip rule; ip -6 rule
for key in ipv4/conf/eth0/rp_filter ipv6/conf/eth0/disable_ipv6 ipv6/conf/eth0/accept_ra; do echo $key $(cat /proc/sys/net/$key); done
cat /run/network/ifstate 2>/dev/null || true
find /etc -printf '%p %y %m %u:%g\n' | sort
find /etc -type f | sort | xargs -r md5sum`)
}
