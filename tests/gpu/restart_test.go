// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/thinkube/infra/tests/vm"
)

func TestMain(m *testing.M) {
	code := m.Run()

	if err := vm.RemovePrograms(); err != nil {
		fmt.Fprintln(os.Stderr, err)

		code = 1
	}

	os.Exit(code)
}

// site is hosts, with the one that ansible-playbook runs on.
type site struct {
	root, folder, key string
	controller        *host

	mutex   sync.Mutex
	journal []string
}

// note writes down what happened to a host, once however often it does in a row.
func (s *site) note(what string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()

	if len(s.journal) == 0 || s.journal[len(s.journal)-1] != what {
		s.journal = append(s.journal, what)
	}
}

// happened gives the journal.
func (s *site) happened() []string {
	s.mutex.Lock()
	defer s.mutex.Unlock()

	return slices.Clone(s.journal)
}

// Ids of machines.
const (
	controllersID = "3d1219c7c4c5404aaa1f6d2a48adfda4"
	othersID      = "00000000000000000000000000000001"
)

var build = sync.OnceValue(func() error {
	program := exec.Command("make", "-s", "build")
	program.Dir, program.Stdout, program.Stderr = "../..", os.Stderr, os.Stderr

	return program.Run()
})

func newSite(t *testing.T) *site {
	t.Helper()
	t.Parallel() // most of it is waiting for hosts

	if os.Getenv("THINKUBE_LAB") == "" {
		t.Skip("boots hosts: set THINKUBE_LAB=1")
	}

	var err error
	if os.Geteuid() != 0 {
		err = errors.New("needs root: boots hosts")
	}

	for _, tool := range []string{"ansible-playbook", "sshd", "ssh-keygen", "unshare", "nsenter", "make"} {
		_, missing := exec.LookPath(tool)
		err = errors.Join(err, missing)
	}

	if err != nil && os.Getenv("CI") != "true" {
		t.Skip(err)
	}

	require.NoError(t, err)
	require.NoError(t, build())

	s := &site{}

	s.root, err = filepath.Abs("../..")
	require.NoError(t, err)
	s.folder, err = os.MkdirTemp("", "thinkube-gpu-") // short: ssh's sockets are in it, and their paths have 107 bytes at most
	require.NoError(t, err)
	require.NoError(t, os.Chmod(s.folder, 0o755))
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(s.folder)) })

	s.key = filepath.Join(s.folder, "key")
	command(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", s.key)

	s.controller = s.add(t, "controller", controllersID)

	return s
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()

	output, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	require.NoError(t, err, "%s: %s", name, output)
}

// vars are what the inventory says of a host.
type vars map[string]any

// ssh is how a host is reached by ssh.
func (h *host) ssh() vars {
	return vars{
		"ansible_host": h.address, "ansible_port": h.port, "ansible_user": "root", "ansible_ssh_private_key_file": h.site.key,
		"ansible_ssh_common_args": "-F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
	}
}

// inventory has all hosts in baremetal, and those named in management.
func (s *site) inventory(t *testing.T, hosts map[string]vars, management ...string) {
	t.Helper()

	managers := map[string]vars{}
	for _, name := range management {
		managers[name] = nil
	}

	text, err := yaml.Marshal(vars{"all": vars{
		"vars": vars{
			"configure_gpu_passthrough": true, "assigned_pci_slots": []string{"02:00.0"}, "ansible_python_interpreter": "/usr/bin/python3",
			// The hosts have no boot loader and no initramfs.
			"gpu_reservation_stage": "udev", "gpu_reservation_kernel_parameters": []string{}, "gpu_reservation_kernel_parameters_absent": []string{},
		},
		"children": vars{"baremetal": vars{"hosts": hosts}, "management": vars{"hosts": managers}},
	}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(s.folder, "inventory.yaml"), text, 0o644))
}

// play runs the playbook on the controller, where it has to fail or not, and gives what it says.
func (s *site) play(t *testing.T, fails bool, args ...string) string {
	t.Helper()

	return s.run(t, "30_reserve_gpus", fails, args...)
}

func (s *site) run(t *testing.T, playbook string, fails bool, args ...string) string {
	t.Helper()

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	home := filepath.Join(s.controller.folder, "home")
	run := s.controller.inside(ctx, t, append([]string{
		"ansible-playbook", "-i", filepath.Join(s.folder, "inventory.yaml"), filepath.Join(s.root, "ansible/00_initial_setup", playbook+".yaml"),
	}, args...)...)
	run.Env = append(os.Environ(), "ANSIBLE_CONFIG="+s.root+"/ansible.cfg", "ANSIBLE_NOCOLOR=1", "ANSIBLE_CALLBACK_RESULT_FORMAT=json", "HOME="+home,
		"PYTHONDONTWRITEBYTECODE=1")

	output, err := run.CombinedOutput()
	require.NoError(t, ctx.Err(), "%s", output)
	require.Contains(t, string(output), "PLAY RECAP")
	require.Equal(t, fails, err != nil, "%s", output)

	return string(output)
}

// inside is a command in the host.
func (h *host) inside(ctx context.Context, t *testing.T, command ...string) *exec.Cmd {
	t.Helper()

	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", h.pid))
	require.NoError(t, err)

	return exec.CommandContext(ctx, "nsenter", append([]string{"--target", strings.TrimSpace(string(children)), "--mount", "--pid"}, command...)...)
}

// byHand tells that a host is prepared and somebody else has to restart it.
func byHand(t *testing.T, said, host string) {
	t.Helper()

	_, after, _ := strings.Cut(said, "TASK [thinkube.infra.gpu_reservation : The controller is not restarted by itself]")
	assert.Contains(t, said, host+" is prepared and has to be restarted, by hand", said)
	assert.Contains(t, after, "fatal: ["+host+"]: FAILED!", said)
}

// TestHostsAreRestartedOneByOne: the second is not even connected to before the first is back, and the controller, which is the
// last, is prepared and never restarted.
func TestHostsAreRestartedOneByOne(t *testing.T) {
	s := newSite(t)
	first, second, manager := s.add(t, "first", othersID), s.add(t, "second", othersID), s.add(t, "manager", othersID)
	// By name the manager is in front of the others.
	s.inventory(t, map[string]vars{"a": manager.ssh(), "b": first.ssh(), "c": second.ssh()}, "a")

	byHand(t, s.play(t, true), "a")
	assert.Equal(t, []string{
		"first reached", "first down", "first up", "first reached",
		"second reached", "second down", "second up", "second reached",
		"manager reached",
	}, s.happened())

	for _, each := range []*host{first, second, manager} {
		assert.True(t, each.reserved(), each.name)
	}
}

// TestAHostThatDoesNotComeBackEndsThePlay: the others go on running.
func TestAHostThatDoesNotComeBackEndsThePlay(t *testing.T) {
	s := newSite(t)
	first, second, manager := s.add(t, "first", othersID), s.add(t, "second", othersID), s.add(t, "manager", othersID)
	first.broken = true
	s.inventory(t, map[string]vars{"a": manager.ssh(), "b": first.ssh(), "c": second.ssh()}, "a")

	said := s.play(t, true, "-e", "gpu_reservation_restart_timeout=2")
	assert.Contains(t, said, "fatal: [b]: FAILED!", said)
	assert.Equal(t, []string{"first reached", "first down"}, s.happened())

	// Nor does another go down while it is still away.
	said = s.play(t, true)
	assert.Contains(t, said, "fatal: [b]: UNREACHABLE!")
	assert.Equal(t, []string{"first reached", "first down"}, s.happened())
	assert.False(t, second.reserved())
	assert.False(t, manager.reserved())
}

// TestALocalHostIsNotRestarted: the play runs on it.
func TestALocalHostIsNotRestarted(t *testing.T) {
	s := newSite(t)
	s.inventory(t, map[string]vars{"here": {"ansible_connection": "local"}})

	byHand(t, s.play(t, true), "here")
	assert.Empty(t, s.happened())
	assert.True(t, s.controller.reserved())
}

// TestTheControllerByAnotherNameIsNotRestarted: by ssh, and in no group that tells it.
func TestTheControllerByAnotherNameIsNotRestarted(t *testing.T) {
	s := newSite(t)
	same := s.add(t, "same", controllersID)
	s.inventory(t, map[string]vars{"elsewhere": same.ssh()})

	byHand(t, s.play(t, true), "elsewhere")
	assert.Equal(t, []string{"same reached"}, s.happened())
	assert.True(t, same.reserved())
}

func TestNoHostIsRestartedWhereThatIsNotAllowed(t *testing.T) {
	s := newSite(t)
	only := s.add(t, "only", othersID)
	s.inventory(t, map[string]vars{"a": only.ssh()})

	// As text, which is how -e has it.
	byHand(t, s.play(t, true, "-e", "gpu_reservation_restart=false"), "a")
	assert.Equal(t, []string{"only reached"}, s.happened())
	assert.True(t, only.reserved())

	// Somebody does it, and the next run has nothing to restart it for.
	only.restart(t)
	s.play(t, false)
	assert.Equal(t, []string{"only reached"}, s.happened())
}

// TestARestartThatWasOfNoUseIsNotMadeAgain: the driver has the card again, and the next run says so.
func TestARestartThatWasOfNoUseIsNotMadeAgain(t *testing.T) {
	s := newSite(t)
	only := s.add(t, "only", othersID)
	only.stubborn = true
	s.inventory(t, map[string]vars{"a": only.ssh()})

	s.play(t, true)

	once := []string{"only reached", "only down", "only up", "only reached"}
	assert.Equal(t, once, s.happened())

	for range 2 {
		assert.Contains(t, s.play(t, true), "another restart is of no use")
		assert.Equal(t, once, s.happened())
	}
}

// TestAStartThatLeavesTheIOMMUOff: the host has another command line than its GRUB says, also after the restart that is made for it.
func TestAStartThatLeavesTheIOMMUOff(t *testing.T) {
	s := newSite(t)
	only := s.addOn(t, "only", othersID, vm.NewChroot(t, "initramfs-tools"))
	said := only.ssh()
	said["gpu_reservation_kernel_parameters"] = []string{"intel_iommu=on", "iommu=pt"}
	said["gpu_reservation_kernel_parameters_absent"] = []string{"intel_iommu=off", "iommu=off"}
	s.inventory(t, map[string]vars{"a": said})

	// Nobody who uses a card is ended for it.
	ctx, end := context.WithCancel(t.Context())
	user := only.inside(ctx, t, "sh", "-c", "exec sleep 1000 </dev/zero")
	user.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	user.Cancel = func() error { return syscall.Kill(-user.Process.Pid, syscall.SIGKILL) } // nsenter's child, too
	require.NoError(t, user.Start())
	assert.Contains(t, s.play(t, true), "(sleep) has /dev/dri/card0")
	assert.Equal(t, []string{"only reached"}, s.happened())
	end()
	require.Error(t, user.Wait())

	assert.Contains(t, s.play(t, true), "the IOMMU is off in the kernel")

	once := []string{"only reached", "only down", "only up", "only reached"}
	assert.Equal(t, once, s.happened())

	assert.Contains(t, s.play(t, true), "something else starts the host")
	assert.Equal(t, once, s.happened())

	said38 := s.run(t, "38_test_gpu_reservation", true)
	_, after, _ := strings.Cut(said38, "TASK [thinkube.infra.gpu_reservation : The IOMMU is on]")
	assert.Contains(t, after, "the IOMMU is off in the kernel", said38)
	assert.NotContains(t, after, "TASK [", said38)
}
