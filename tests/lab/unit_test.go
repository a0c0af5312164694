// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"
)

func TestConfigSaysAllThatIsWrong(t *testing.T) {
	_, err := Config{Name: "Not OK", Hosts: 99, Dir: "/with space", Subnet: netip.MustParsePrefix("10.0.0.0/8")}.withDefaults()
	require.Error(t, err)
	for _, part := range []string{`"Not OK"`, "99 hosts", `"/with space"`, `"10.0.0.0/8"`} {
		assert.ErrorContains(t, err, part)
	}
	cfg, err := Config{Dir: "/x", CacheDir: "/y"}.withDefaults()
	require.NoError(t, err)
	assert.Equal(t, "thinkube", cfg.Name)
	assert.Equal(t, 3, cfg.Hosts)
}

const hybridMounts = `30 24 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
`

func TestHierarchies(t *testing.T) {
	found := parseHierarchies(hybridMounts)
	assert.Equal(t, []hierarchy{
		{mount: "/sys/fs/cgroup/cpu", controller: "cpu,cpuacct"},
		{mount: "/sys/fs/cgroup/systemd", controller: "name=systemd"},
		{mount: "/sys/fs/cgroup/unified", unified: true},
	}, found)
	own := "4:cpu,cpuacct:/jobs/a:b\n1:name=systemd:/s\n0::/user.slice/x.scope\n"
	var paths []string
	for _, h := range found {
		paths = append(paths, h.ownPath(own))
	}
	assert.Equal(t, []string{"/jobs/a:b", "/s", "/user.slice/x.scope"}, paths)
}

func TestSubnetTaken(t *testing.T) {
	subnet := netip.MustParsePrefix("10.77.0.0/24")
	routes := func(dst, dev string) []byte {
		return []byte(`[{"dst":"default","dev":"eth0"},{"dst":"` + dst + `","dev":"` + dev + `"}]`)
	}
	for _, taken := range []string{"10.77.0.5", "10.77.0.128/25", "10.0.0.0/8"} {
		assert.ErrorContains(t, checkSubnet(subnet, "lab0", routes(taken, "eth1")), `link "eth1" has a route to `+taken)
	}
	assert.NoError(t, checkSubnet(subnet, "lab0", routes("10.77.0.0/24", "lab0")), "our own bridge")
	assert.NoError(t, checkSubnet(subnet, "lab0", routes("10.78.0.0/24", "eth1")))
}

func TestSourcesComeFromTheMachine(t *testing.T) {
	mirror, sources := parseSources("http://m.example/debian/ bookworm main\nhttp://m.example/debian/ bookworm contrib\n" +
		"http://m.example/security/ bookworm-security main\nhttp://m.example/debian/ bookworm main\nhttps://other.example/ nodistro main\n")
	assert.Equal(t, "http://m.example/debian/", mirror)
	assert.Equal(t, "deb http://m.example/debian/ bookworm main\ndeb http://m.example/security/ bookworm-security main\n", sources)
	mirror, _ = parseSources("http://m.example/ubuntu/ noble main\n")
	assert.Empty(t, mirror)
	assert.Equal(t, "Acquire::Languages \"none\";\nAcquire::http::Proxy \"http://p:1\";\n",
		renderAptConf("APT \"\";\nAcquire::http::Proxy \"http://p:1\";\nDPkg::Post-Invoke:: \"x\";\n"))
}

func TestPasswordReplacesOnlyItsField(t *testing.T) {
	shadow := "root:*:1:0:99999:7:::\nops:!:1:0:99999:7:::\nops2:!:1::::::\n"
	assert.Equal(t, "root:*:1:0:99999:7:::\nops:$6$x:1:0:99999:7:::\nops2:!:1::::::\n", setPassword(shadow, "ops", "$6$x"))
	hash, err := hashPassword(t.Context(), "secret")
	require.NoError(t, err)
	assert.Regexp(t, `^\$6\$[0-9a-f]+\$.{86}$`, hash)
}

func TestProcessIsKnownByItsStart(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	require.NoError(t, cmd.Start())
	proc, err := findProcess(cmd.Process.Pid)
	require.NoError(t, err)
	assert.True(t, proc.alive())
	other := proc
	other.Start++
	assert.False(t, other.alive(), "the number alone is not the process")
	require.NoError(t, other.signal(9))
	assert.True(t, proc.alive(), "a signal to somebody who is gone reaches nobody")
	require.NoError(t, proc.signal(9))
	_ = cmd.Wait()
	assert.False(t, proc.alive())
}

func TestLockIsExclusiveAlsoWhenItsFolderIsRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lab")
	var inside, most atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 20 {
				unlock, err := lock(dir)
				if !assert.NoError(t, err) {
					return
				}
				most.Store(max(most.Load(), inside.Add(1)))
				time.Sleep(time.Millisecond)
				inside.Add(-1)
				_ = removeDir(dir) // the last that is done under the lock; fails when one that waits makes the folder anew meanwhile
				unlock()
			}
		}()
	}
	wg.Wait()
	assert.EqualValues(t, 1, most.Load())
}

func TestForeignFilesInTheFolderSurvive(t *testing.T) {
	dir := t.TempDir()
	mine := filepath.Join(dir, "thesis.txt")
	require.NoError(t, os.WriteFile(mine, nil, 0o644))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "hosts", "n1"), 0o755))
	assert.Error(t, removeDir(dir))
	assert.FileExists(t, mine)
	assert.NoDirExists(t, filepath.Join(dir, "hosts"))
}

func TestIgnorePatterns(t *testing.T) {
	re, err := compileIgnore(strings.Split(DefaultIgnore, "\n"))
	require.NoError(t, err)
	for _, ignored := range []string{"file /var/log/x/y.log", "file /usr/lib/python3/dist-packages/apt/__pycache__/a.pyc",
		"unit session-12.scope", "mount /run/user/0", "file /home/admin/.ansible/tmp"} {
		assert.True(t, re.MatchString(ignored), ignored)
	}
	for _, seen := range []string{"file /etc/hosts", "file /var/logs", "unit ssh.service", "file /home/admin/x/.ansible",
		"route default dev eth0", "file /var/lib/lxd/server.crt", "package lxd:amd64"} {
		assert.False(t, re.MatchString(seen), seen)
	}
	_, err = compileIgnore([]string{"/etc/hosts"})
	assert.ErrorContains(t, err, "must be a kind, a space and a key")
}

func TestFactsAreRead(t *testing.T) {
	f := facts{}
	require.NoError(t, parseLinks(f, `[{"ifname":"br0","mtu":1500,"address":"02:00:00:00:00:01","flags":["UP"],"linkinfo":{"info_kind":"bridge","info_data":{"vlan_filtering":1,"gc_timer":3}}}]`))
	assert.Equal(t, "up kind=bridge mtu=1500 address=02:00:00:00:00:01 master= alias= vlan_filtering=1", f["link"]["br0"])
	require.NoError(t, parseNFT(f, "table inet lxd {\n\tchain in.lxdbr0 {\n\t\ttype filter hook input priority filter; policy accept;\n\t\tudp dport 53 accept\n\t}\n}\ntable ip x {\n}\n"))
	assert.Contains(t, f["nft"], "table inet lxd, chain in.lxdbr0, udp dport 53 accept")
	assert.Contains(t, f["nft"], "table ip x")
	assert.Len(t, f["nft"], 5)
	assert.Error(t, parseNFT(f, "}\n"))
	require.NoError(t, parseIptables(f, "# c\n*filter\n:INPUT ACCEPT [12:34]\n-A INPUT -j ACCEPT\n-A INPUT -j ACCEPT\nCOMMIT\n"))
	assert.Equal(t, map[string]string{"filter :INPUT ACCEPT": "present", "filter -A INPUT -j ACCEPT": "present",
		"filter -A INPUT -j ACCEPT (2)": "present"}, f["iptables"])
	require.NoError(t, parseRules(f, `[{"priority":0,"src":"all","table":"local"}] [{"priority":5,"src":"all","table":"7"}]`))
	assert.Contains(t, f["rule"], "priority=5 src=all table=7")
	require.NoError(t, parseUnits(f, "a.service loaded active running A\nb.service loaded inactive dead B\nc.service loaded failed failed C\n"))
	assert.Equal(t, map[string]string{"a.service": "active (running)", "c.service": "failed (failed)"}, f["unit"])
}

func TestFactsCompared(t *testing.T) {
	before := facts{"user": {"a": "1", "b": "2"}, "link": {"x": "up"}}
	after := facts{"user": {"a": "1", "b": "3", "c": "4"}}
	found := compareFacts(before, after)
	assert.ElementsMatch(t, []Difference{{"user", "b", "2", "3"}, {"user", "c", "", "4"}, {"link", "x", "up", ""}}, found)
	assert.Equal(t, "user c: added (4)", Difference{"user", "c", "", "4"}.String())
	assert.Equal(t, "link x: gone (up)", Difference{"link", "x", "up", ""}.String())
}

func TestInventory(t *testing.T) {
	l := &Lab{cfg: Config{Dir: "/state"}, state: &state{Name: "thinkube", Subnet: netip.MustParsePrefix("10.77.0.0/24")}}
	for n := 1; n <= 3; n++ {
		l.state.Hosts = append(l.state.Hosts, hostState{Name: "n" + string(rune('0'+n)), Index: n})
		text, err := l.renderInventory()
		require.NoError(t, err)
		var parsed struct {
			All struct {
				Children struct {
					Cluster struct {
						Children map[string]struct{ Hosts map[string]any }
					} `yaml:"lxd_cluster"`
					Baremetal struct {
						Children map[string]struct{ Hosts map[string]map[string]string }
					}
				}
			}
		}
		require.NoError(t, yaml.Unmarshal(text, &parsed), string(text))
		children := parsed.All.Children
		assert.Contains(t, children.Cluster.Children["lxd_primary"].Hosts, "n1")
		assert.Len(t, children.Cluster.Children["lxd_secondary"].Hosts, n-1)
		assert.Equal(t, "10.77.0.11", children.Baremetal.Children["headless"].Hosts["n1"]["lan_ip"])
		assert.Len(t, children.Baremetal.Children["headless"].Hosts, n)
	}
}

func TestTestImageIsTheSameEachTime(t *testing.T) {
	one, err := makeTestImage([]byte("busybox"))
	require.NoError(t, err)
	two, err := makeTestImage([]byte("busybox"))
	require.NoError(t, err)
	assert.Equal(t, one, two)
}

func TestImageKeyFollowsTheRecipe(t *testing.T) {
	before, saved := imageKey(), recipe
	defer func() { recipe = saved }()
	recipe = append([]byte("# changed\n"), recipe...)
	assert.NotEqual(t, before, imageKey())
}
