// SPDX-License-Identifier: Apache-2.0

package zttest_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/ansible"
	zerotierinfo "github.com/thinkube/infra/modules/zerotier_info"
	zerotiermember "github.com/thinkube/infra/modules/zerotier_member"
	zerotiernetwork "github.com/thinkube/infra/modules/zerotier_network"
	"github.com/thinkube/infra/tests/ztdouble/program"
)

type dict = map[string]any

// scale of the double's times in the namespaces: a join takes 0.29 s.
const scale = 0.1

const (
	idC     = "6eabbc7191"
	network = "6eabbc719100beef"
	token   = "s3cr3t-of-every-node-123"
)

// TestMain lets the test's own program be a module or a node: it is started again in a namespace.
func TestMain(m *testing.M) {
	as := os.Getenv("ZEROTIER_TEST_AS")

	switch as {
	case "":
		os.Exit(m.Run())
	case "node":
		err := program.Run(os.Args[1:])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}

		os.Exit(0)
	}

	for _, module := range []ansible.Runner{zerotiermember.Module, zerotiernetwork.Module, zerotierinfo.Module} {
		if module.ModuleName() == as {
			os.Exit(ansible.Standalone(module, os.Args, os.Stdout, os.Stderr))
		}
	}

	os.Exit(2)
}

// place is where modules are run: a namespace with a node in it, or this host.
type place struct {
	space string // empty: here
	id    string
	args  dict // home and api_url, and what else says where the service is
	node  *exec.Cmd
	flags []string
	dir   string
}

// site is a controller and two nodes on one wire.
type site struct {
	c, a, b *place
}

func needRoot(t *testing.T) {
	t.Helper()

	if testing.Short() {
		t.Skip("makes network namespaces")
	}

	_, err := exec.LookPath("ip")
	if err == nil && os.Geteuid() == 0 {
		return
	}

	if os.Getenv("CI") == "true" {
		t.Fatal("needs root and the program ip: it makes network namespaces")
	}

	t.Skip("needs root and the program ip: it makes network namespaces")
}

func sh(t *testing.T, script string) string {
	t.Helper()

	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	require.NoError(t, err, "%s\n%s", script, out)

	return strings.TrimSpace(string(out))
}

// newSite makes the namespaces, and the nodes in them, which get further flags.
func newSite(t *testing.T, flags ...string) *site {
	t.Helper()
	needRoot(t)

	prefix := fmt.Sprintf("ztt%d", os.Getpid())
	hub := prefix + "-hub"

	t.Cleanup(func() {
		for _, name := range []string{"hub", "c", "a", "b"} {
			_ = exec.Command("ip", "netns", "del", prefix+"-"+name).Run()
		}
	})
	sh(t, fmt.Sprintf("ip netns add %[1]s; ip -n %[1]s link add br0 type bridge; ip -n %[1]s link set br0 up", hub))

	s := &site{}

	for i, one := range []struct {
		name, id string
		into     **place
	}{{"c", idC, &s.c}, {"a", "680bbfa232", &s.a}, {"b", "00d52687fd", &s.b}} {
		space := prefix + "-" + one.name
		sh(t, fmt.Sprintf(`ip netns add %[1]s
ip link add e%[2]d netns %[3]s type veth peer name eth0 netns %[1]s
ip -n %[3]s link set e%[2]d master br0 up
ip -n %[1]s link set lo up; ip -n %[1]s link set eth0 up; ip -n %[1]s addr add 10.77.0.%[2]d/24 dev eth0`, space, i+1, hub))

		p := &place{space: space, id: one.id, dir: t.TempDir()}
		p.args = dict{"home": filepath.Join(p.dir, "home")}
		p.flags = []string{
			"-home", filepath.Join(p.dir, "home"), "-address", one.id, "-token", token, "-underlay", "eth0", "-scale", fmt.Sprint(scale),
			"-allow-from", "10.77.0.0/24",
		}

		p.flags = append(p.flags, flags...)

		if one.name == "c" {
			p.flags = append(p.flags, "-networks", `{"`+network+`":{"name":"lab","routes":[{"target":"10.147.17.0/24"},{"target":"192.168.50.0/24","via":"10.147.17.1"}]}}`)
		} else {
			p.flags = append(p.flags, "-controllers", idC+"=http://10.77.0.1:9993")
		}

		p.start(t)
		*one.into = p
	}

	return s
}

// start starts the node and waits until it answers.
func (p *place) start(t *testing.T) {
	t.Helper()

	p.node = exec.Command("ip", append([]string{"netns", "exec", p.space, os.Args[0]}, p.flags...)...)
	p.node.Env = append(os.Environ(), "ZEROTIER_TEST_AS=node")
	p.node.Stderr = os.Stderr
	p.node.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, p.node.Start())

	node := p.node

	t.Cleanup(func() {
		_ = node.Process.Signal(syscall.SIGTERM)
		_ = node.Wait()
	})

	require.Eventually(t, func() bool { return p.run(t, "zerotier_info", nil)["failed"] != true }, 10*time.Second, 50*time.Millisecond)
}

// kill ends the node as a crash does.
func (p *place) kill(t *testing.T) {
	t.Helper()
	require.NoError(t, p.node.Process.Kill())
	_ = p.node.Wait()
}

// run runs a module there, as stock Ansible does.
func (p *place) run(t *testing.T, module string, args ...dict) dict {
	t.Helper()

	all := dict{"_ansible_diff": true, "_ansible_verbosity": 4}

	for _, some := range append([]dict{p.args}, args...) {
		for key, value := range some {
			all[key] = value
		}
	}

	if module == "zerotier_info" {
		delete(all, "wait_timeout")
	}

	text, err := json.Marshal(all)
	require.NoError(t, err)

	file := filepath.Join(p.dir, "args.json")
	require.NoError(t, os.WriteFile(file, text, 0o600))

	argv := []string{os.Args[0], file}
	if p.space != "" {
		argv = append([]string{"ip", "netns", "exec", p.space}, argv...)
	}

	command := exec.Command(argv[0], argv[1:]...)
	command.Env = append(os.Environ(), "ZEROTIER_TEST_AS="+module)

	var stdout, stderr bytes.Buffer

	command.Stdout, command.Stderr = &stdout, &stderr
	_ = command.Run() // a module that fails ends with 1

	require.NotContains(t, stdout.String()+stderr.String(), token)

	result := dict{}
	require.NoError(t, json.Unmarshal(stdout.Bytes(), &result), "%s%s", stdout.String(), stderr.String())

	return result
}

func (p *place) ok(t *testing.T, module string, args ...dict) dict {
	t.Helper()

	result := p.run(t, module, args...)
	require.NotEqual(t, true, result["failed"], "%v", result)

	return result
}

func code(result dict) any {
	failure, _ := result["failure"].(dict)

	return failure["code"]
}

// ip runs the program ip there.
func (p *place) ip(t *testing.T, args string) string {
	t.Helper()

	if p.space == "" {
		return sh(t, "ip "+args)
	}

	return sh(t, "ip -n "+p.space+" "+args)
}
