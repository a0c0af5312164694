// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// testConfig is a lab of the tests' own, beside any that is up. Tests with real hosts run when
// THINKUBE_LAB is set, which `make test` does; then, under CI, what they need has to be there.
func testConfig(t *testing.T) Config {
	if os.Getenv("THINKUBE_LAB") == "" {
		t.Skip("boots hosts: set THINKUBE_LAB=1")
	}
	if err := requirements(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("/var/tmp", "labtest")
	require.NoError(t, err)
	// A name of its own: what a killed run left, or one beside this has, is none of this test's.
	name := fmt.Sprintf("lt%06x", rand.IntN(1<<24))
	cfg := Config{Name: name, Hosts: 2, Subnet: netip.MustParsePrefix("10.177.91.0/24"),
		Dir: filepath.Join(dir, "lab"), Inventory: filepath.Join(dir, "lab.yaml"), Log: testLog{t}}
	t.Cleanup(func() {
		assert.NoError(t, Down(context.Background(), cfg, false))
		assert.NoError(t, os.RemoveAll(dir))
	})
	return cfg
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

func timeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// traces is everything on the machine that belongs to a lab: links, mounts in anybody's namespace,
// processes, loop devices, control groups, files.
func traces(t *testing.T, cfg Config) []string {
	var found []string
	links, err := readLinks(t.Context())
	require.NoError(t, err)
	for _, l := range links {
		if strings.HasPrefix(l.Name, cfg.Name) || strings.Contains(l.Alias, cfg.Dir) {
			found = append(found, "link "+l.Name)
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	for _, dir := range processes {
		mounts, _ := os.ReadFile(dir + "/mountinfo")
		groups, _ := os.ReadFile(dir + "/cgroup")
		args, _ := os.ReadFile(dir + "/cmdline")
		if stat, err := os.ReadFile(dir + "/stat"); err != nil || bytes.Contains(stat, []byte(") Z ")) {
			continue // dead; the machine's init has not looked yet
		}
		if bytes.Contains(mounts, []byte(cfg.Dir)) {
			found = append(found, "mount in "+dir)
		}
		if bytes.Contains(groups, []byte("thinkube-lab-"+cfg.Name)) || bytes.Contains(args, []byte(cfg.Dir)) {
			found = append(found, fmt.Sprintf("process %s %q", dir, args))
		}
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	require.NoError(t, err)
	for _, loop := range loops {
		if backing, _ := os.ReadFile(loop); bytes.Contains(backing, []byte(cfg.Dir)) {
			found = append(found, "loop device "+loop)
		}
	}
	groups, err := labCgroups(cfg.Name)
	require.NoError(t, err)
	for _, dir := range append(groups, cfg.Dir, cfg.Inventory) {
		if _, err := os.Stat(dir); err == nil {
			found = append(found, "path "+dir)
		}
	}
	return found
}

// networks are the network namespaces of processes that match, with those processes.
func networks(t *testing.T, match func(pid string) bool) map[string][]string {
	all := map[string][]string{}
	names, err := filepath.Glob("/proc/[0-9]*/ns/net")
	require.NoError(t, err)
	for _, name := range names {
		pid := strings.Split(name, "/")[2]
		if target, err := os.Readlink(name); err == nil && match(pid) {
			all[target] = append(all[target], pid)
		}
	}
	return all
}

func leaders(t *testing.T, l *Lab) []process {
	var all []process
	for _, h := range l.Hosts() {
		leader, err := h.leader()
		require.NoError(t, err)
		all = append(all, leader)
	}
	return all
}

func mustRun(t *testing.T, h *Host, command string) string {
	t.Helper()
	text, err := h.Run(t.Context(), command)
	require.NoError(t, err)
	return strings.TrimSpace(text)
}

// TestLab is one story, because booting is what costs.
func TestLab(t *testing.T) {
	cfg := testConfig(t)
	ctx := timeout(t)
	sysctl, err := os.ReadFile("/proc/sys/fs/inotify/max_user_instances")
	require.NoError(t, err)
	require.Empty(t, traces(t, cfg), "before there is a lab")

	l, err := Up(ctx, cfg)
	require.NoError(t, err)
	n1, err := l.Host("n1")
	require.NoError(t, err)
	n2, err := l.Host("n2")
	require.NoError(t, err)

	t.Run("a second up is quick and changes nothing", func(t *testing.T) {
		before := leaders(t, l)
		info, err := os.Stat(cfg.Inventory)
		require.NoError(t, err)
		again, err := Up(ctx, cfg)
		require.NoError(t, err)
		assert.Equal(t, before, leaders(t, again))
		now, err := os.Stat(cfg.Inventory)
		require.NoError(t, err)
		assert.Equal(t, info.ModTime(), now.ModTime())
	})

	t.Run("it refuses to become another lab", func(t *testing.T) {
		other := cfg
		other.Name = "other"
		_, err := Up(ctx, other)
		assert.ErrorContains(t, err, fmt.Sprintf(`is called %q, not "other"`, cfg.Name))
		more := cfg
		more.Hosts = 5
		_, err = Up(ctx, more)
		assert.ErrorContains(t, err, "has 2 hosts, not 5")
	})

	t.Run("a taken subnet and a taken name are refused", func(t *testing.T) {
		other := cfg
		other.Dir, other.Inventory, other.Name = cfg.Dir+"2", "", cfg.Name+"b"
		_, err := Up(ctx, other)
		assert.ErrorContains(t, err, "subnet 10.177.91.0/24 is taken")
		require.NoError(t, Down(ctx, other, false))
		other.Name, other.Subnet = cfg.Name, netip.MustParsePrefix("10.177.92.0/24")
		_, err = Up(ctx, other)
		assert.ErrorContains(t, err, fmt.Sprintf(`link %q exists and is not this lab's`, cfg.Name+"0"))
		require.NoError(t, Down(ctx, other, false))
		assert.True(t, n1.Running(), "the refused lab took nothing down")
	})

	t.Run("logins", func(t *testing.T) {
		for user, want := range map[string]string{"root": "root", "admin": "admin", "ops": "ops"} {
			text, err := n1.SSH(ctx, user, "id -un")
			require.NoError(t, err)
			assert.Equal(t, want, strings.TrimSpace(text))
		}
		text, err := n1.SSH(ctx, "admin", "sudo -n id -un; hostname")
		require.NoError(t, err)
		assert.Equal(t, "root\nn1\n", text)
		_, err = n1.SSH(ctx, "ops", "sudo -n id -un")
		var exit *ExitError
		assert.ErrorAs(t, err, &exit, "ops has to give a password")
		text, err = n1.SSH(ctx, "ops", "echo "+l.OpsPassword()+" | sudo -S -p '' id -un")
		require.NoError(t, err)
		assert.Equal(t, "root\n", text)
	})

	t.Run("hosts reach each other, and nobody else", func(t *testing.T) {
		mustRun(t, n1, "ping -c1 -W2 n2")
		mustRun(t, n2, "ping -c1 -W2 10.177.91.1")
		assert.Equal(t, "eth0\nlo", mustRun(t, n1, "ls /sys/class/net"))
	})

	t.Run("snapshot, difference, restore", func(t *testing.T) { snapshotStory(ctx, t, l, n1, n2) })
	t.Run("power", func(t *testing.T) { powerStory(ctx, t, n1) })
	t.Run("a real LXD container", func(t *testing.T) { containerStory(ctx, t, n1) })
	t.Run("a host joins later, without LXD", func(t *testing.T) { joinStory(ctx, t, l) })

	t.Run("up repairs what was killed", func(t *testing.T) {
		old := leaders(t, l)
		run, err := n1.running()
		require.NoError(t, err)
		require.NoError(t, run.signal(syscall.SIGKILL)) // the supervisor: the host itself goes on
		require.NoError(t, run.waitGone(ctx))
		require.NoError(t, old[1].signal(syscall.SIGKILL))
		require.NoError(t, os.WriteFile(n2.runFile(), []byte(`{"pid":1,"start":1,"boot":"x"}`), 0o600)) // a stale note
		again, err := Up(ctx, cfg)
		require.NoError(t, err)
		assert.False(t, old[0].alive(), "the orphan was ended")
		mustRun(t, again.Hosts()[0], "systemctl is-active ssh")
		mustRun(t, again.Hosts()[1], "systemctl is-active ssh")
		waitContainers(ctx, t, n1)
	})

	during := networks(t, func(pid string) bool {
		groups, _ := os.ReadFile("/proc/" + pid + "/cgroup")
		return bytes.Contains(groups, []byte("thinkube-lab-"+cfg.Name))
	})
	require.Len(t, during, 3+2, "of three hosts and two containers")
	require.NotEmpty(t, traces(t, cfg))
	require.NoError(t, Down(ctx, cfg, false))
	assert.Empty(t, traces(t, cfg))
	for name, pids := range networks(t, func(string) bool { return true }) {
		assert.NotContains(t, during, name, "still used by %v", pids)
	}
	now, err := os.ReadFile("/proc/sys/fs/inotify/max_user_instances")
	require.NoError(t, err)
	assert.Equal(t, string(sysctl), string(now))
	require.NoError(t, Down(ctx, cfg, false), "down twice")
}

func snapshotStory(ctx context.Context, t *testing.T, l *Lab, n1, n2 *Host) {
	require.NoError(t, l.Snapshot(ctx, "before"))
	for _, h := range l.Hosts() {
		found, err := h.Diff(ctx, "before")
		require.NoError(t, err)
		assert.Empty(t, found, "a host that was left alone")
		assert.Equal(t, []string{"before"}, h.Snapshots())
	}
	leader, err := n2.leader()
	require.NoError(t, err)
	mustRun(t, n1, `touch /etc/new; chmod 600 /etc/hosts; rm /etc/bind/db.local; mkdir -p /opt/a/b; touch /opt/a/b/c
		sed -i s/localhost/localhoax/ /etc/hosts; ln -sf elsewhere /etc/localtime; chown admin /etc/hostname
		setfacl -m u:admin:r /etc/services; rm -r /etc/ufw; touch /etc/ufw
		ip address add 10.9.9.9/24 dev eth0; ip link add br9 type bridge; ip route add 10.8.0.0/16 via 10.177.91.1
		ip rule add from 10.9.9.9 table 99; nft add table inet mine; iptables-legacy -A INPUT -p tcp --dport 99 -j DROP
		useradd zed; systemctl -q enable named; systemctl -q mask --runtime rescue.service; systemctl stop dbus.socket; mount -t tmpfs tmpfs /mnt`)
	found, err := n1.Diff(ctx, "before")
	require.NoError(t, err)
	seen := map[string]string{}
	for _, d := range found {
		seen[d.Kind+" "+d.Key] = d.String()
	}
	for _, want := range []string{"file /etc/new", "file /etc/hosts", "file /etc/bind/db.local", "file /opt/a", "file /opt/a/b/c",
		"file /etc/localtime", "file /etc/hostname", "file /etc/services", "file /etc/ufw", "file /etc/shadow",
		"address eth0 10.9.9.9/24", "link br9", "route 10.8.0.0/16 dev eth0", "rule priority=32765 src=10.9.9.9 table=99",
		"nft table inet mine", "iptables filter -A INPUT -p tcp -m tcp --dport 99 -j DROP", "user zed", "group zed",
		"unit-file named.service", "unit-file rescue.service", "mount /mnt"} {
		assert.Contains(t, seen, want)
	}
	assert.Equal(t, "address eth0 10.9.9.9/24: added (scope global)", seen["address eth0 10.9.9.9/24"])
	ignored, err := n1.Diff(ctx, "before", "* **")
	require.NoError(t, err)
	assert.Empty(t, ignored)

	// The same size and time: only the content tells.
	mustRun(t, n2, "cp -p /etc/hosts /tmp/ref; sed -i s/localhost/localhoax/ /etc/hosts; touch -r /tmp/ref /etc/hosts; rm /tmp/ref")
	found, err = n2.Diff(ctx, "before")
	require.NoError(t, err)
	require.Len(t, found, 1)
	assert.Contains(t, found[0].String(), "with other content")
	assert.True(t, leader.alive(), "a snapshot and a comparison leave the host running")

	require.NoError(t, l.Restore(ctx, "before"))
	for _, h := range l.Hosts() {
		found, err := h.Diff(ctx, "before")
		require.NoError(t, err)
		assert.Empty(t, found, "a host that was restored")
	}
	_, err = n1.Diff(ctx, "never")
	assert.ErrorContains(t, err, `host "n1" has no snapshot "never"`)
	assert.ErrorContains(t, n1.Snapshot(ctx, "../x"), `label "../x"`)
}

func powerStory(ctx context.Context, t *testing.T, h *Host) {
	mustRun(t, h, "touch /root/kept; printf '[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\nExecStop=/bin/touch /root/clean\n' >/etc/systemd/system/witness.service; systemctl daemon-reload; systemctl start witness")
	require.NoError(t, h.Stop(ctx))
	assert.False(t, h.Running())
	_, err := h.Run(ctx, "true")
	assert.ErrorContains(t, err, `host "n1" is not running`)
	require.NoError(t, h.Start(ctx))
	mustRun(t, h, "test -e /root/kept && test -e /root/clean # it was a shutdown, not a power cut")

	before, err := h.leader()
	require.NoError(t, err)
	_, _ = h.Run(ctx, "systemctl reboot")
	require.NoError(t, before.waitGone(ctx))
	err = poll(ctx, 100*time.Millisecond, func() (bool, error) {
		after, err := h.leader()
		return err == nil && after != before && answers(ctx, h.Address()), nil
	})
	require.NoError(t, err, "a reboot from inside")

	quick, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	_, err = h.Run(quick, "sleep 987")
	assert.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Eventually(t, func() bool {
		_, err := h.Run(ctx, "! pgrep -f '^sleep 987'")
		return err == nil
	}, 5*time.Second, 50*time.Millisecond, "a command that was given up does not stay")
	var exit *ExitError
	_, err = h.Run(ctx, "echo no >&2; exit 7")
	require.ErrorAs(t, err, &exit)
	assert.Equal(t, 7, exit.Code)
	assert.Equal(t, "no\n", exit.Stderr)
}

func containerStory(ctx context.Context, t *testing.T, h *Host) {
	_, err := h.RunInput(ctx, strings.NewReader(`
storage_pools: [{name: local, driver: dir}, {name: loop, driver: btrfs, config: {size: 256MiB}}]
networks: [{name: lxdbr0, type: bridge, config: {ipv4.address: 10.199.0.1/24, ipv6.address: none}}]
profiles: [{name: default, devices: {root: {type: disk, path: /, pool: local}, eth0: {type: nic, network: lxdbr0}}}]
`), "lxd init --preseed")
	require.NoError(t, err)
	require.NoError(t, h.ImportTestImage(ctx, "it's tiny"))
	mustRun(t, h, `lxc launch "it's tiny" c1 </dev/null; lxc launch "it's tiny" c2 --storage loop </dev/null`)
	assert.Equal(t, "c1,RUNNING\nc2,RUNNING", mustRun(t, h, "lxc list --format csv -c ns"))
	mustRun(t, h, "lxc exec c1 -- ip address add 10.199.0.7/24 dev eth0; ping -c1 -W2 10.199.0.7")
	// Standing still must not upset what runs.
	require.NoError(t, h.Snapshot(ctx, "withcontainer"))
	assert.Equal(t, "c1,RUNNING\nc2,RUNNING", mustRun(t, h, "lxc list --format csv -c ns"))
	require.NoError(t, h.Restore(ctx, "withcontainer"))
	waitContainers(ctx, t, h)
}

// waitContainers waits until LXD has started again what ran before its host went down.
func waitContainers(ctx context.Context, t *testing.T, h *Host) {
	t.Helper()
	require.NoError(t, poll(ctx, 200*time.Millisecond, func() (bool, error) {
		text, err := h.Run(ctx, "lxc list --format csv -c ns")
		return text == "c1,RUNNING\nc2,RUNNING\n", err
	}))
}

func joinStory(ctx context.Context, t *testing.T, l *Lab) {
	late, err := l.AddHost(ctx, "late", HostOptions{WithoutLXD: true})
	require.NoError(t, err)
	assert.Equal(t, "10.177.91.13", late.Address().String())
	_, err = late.Run(ctx, "command -v lxd lxc named")
	assert.Error(t, err)
	inventory, err := os.ReadFile(l.InventoryFile())
	require.NoError(t, err)
	assert.Contains(t, string(inventory), "ansible_host: 10.177.91.13")
	_, err = late.SSH(ctx, "admin", "sudo apt-get -qq update && sudo apt-get -qq install lxd </dev/null && sudo lxd waitready --timeout 60")
	assert.NoError(t, err, "packages come from the host's own source")
	_, err = l.AddHost(ctx, "late", HostOptions{})
	assert.ErrorContains(t, err, `host "late" exists, with LXD false instead of true`)
	_, err = l.AddHost(ctx, "../x", HostOptions{})
	assert.ErrorContains(t, err, `host name "../x"`)
}

// TestKilledUp kills `lab up` at many moments; the next one has to get there, and down has to clean up.
func TestKilledUp(t *testing.T) {
	cfg := testConfig(t)
	ctx := timeout(t)
	program := filepath.Join(t.TempDir(), "lab")
	build := exec.Command("go", "build", "-o", program, "./cmd")
	text, err := build.CombinedOutput()
	require.NoError(t, err, string(text))
	_, err = ensureImage(ctx, first(os.Getenv("THINKUBE_LAB_CACHE"), "/var/cache/thinkube-lab"), cfg.Log)
	require.NoError(t, err)
	args := []string{"up", "-n", "2", "--name", cfg.Name, "--subnet", cfg.Subnet.String(), "--inventory", cfg.Inventory}
	for _, after := range []time.Duration{5, 20, 40, 60, 80, 100, 140, 200, 300, 500, 900} {
		cmd := exec.Command(program, args...)
		cmd.Env = append(os.Environ(), "THINKUBE_LAB_DIR="+cfg.Dir)
		require.NoError(t, cmd.Start())
		time.Sleep(after * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if after == 60 || after == 300 {
			require.NoError(t, Down(ctx, cfg, false), "down after a kill")
			assert.Eventually(t, func() bool { return len(traces(t, cfg)) == 0 }, 5*time.Second, 50*time.Millisecond)
		}
	}
	l, err := Up(ctx, cfg)
	require.NoError(t, err)
	for _, h := range l.Hosts() {
		_, err := h.SSH(ctx, "admin", "sudo -n true")
		assert.NoError(t, err)
	}
	require.NoError(t, Down(ctx, cfg, false))
	assert.Empty(t, traces(t, cfg))
}

func TestConcurrentUp(t *testing.T) {
	cfg := testConfig(t)
	ctx := timeout(t)
	var wg sync.WaitGroup
	labs, errs := make([]*Lab, 3), make([]error, 3)
	for i := range labs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			labs[i], errs[i] = Up(ctx, cfg)
		}()
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	assert.Equal(t, leaders(t, labs[0]), leaders(t, labs[1]))
	assert.Equal(t, leaders(t, labs[0]), leaders(t, labs[2]))
}

// TestKilledBuild: a build that was cut is never used, and leaves nothing running or mounted.
func TestKilledBuild(t *testing.T) {
	cfg := testConfig(t)
	cache, err := os.MkdirTemp("/var/tmp", "labcache")
	require.NoError(t, err)
	defer func() { assert.NoError(t, os.RemoveAll(cache)) }()
	saved := recipe
	defer func() { recipe = saved }()
	recipe = []byte("#!/bin/sh\nmkdir $1/m; mount -t tmpfs tmpfs $1/m; sleep 4321 & touch $1/started; wait\n")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_ = poll(ctx, 10*time.Millisecond, func() (bool, error) {
			_, err := os.Stat(filepath.Join(cache, "images", ".building", "started"))
			return err == nil, nil
		})
		cancel()
	}()
	_, err = ensureImage(ctx, cache, cfg.Log)
	require.ErrorContains(t, err, "building the base image")
	for _, trace := range traces(t, Config{Name: "none", Dir: cache, Inventory: cache}) {
		assert.Equal(t, "path "+cache, trace)
	}
	images, err := os.ReadDir(filepath.Join(cache, "images"))
	require.NoError(t, err)
	assert.Empty(t, images)
	recipe = []byte("#!/bin/sh\nmkdir $1/base $1/lxd\n")
	img, err := ensureImage(t.Context(), cache, cfg.Log)
	require.NoError(t, err)
	assert.DirExists(t, filepath.Join(img.dir, "base"))
}
