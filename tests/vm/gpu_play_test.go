// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The playbooks 00_initial_setup/30, 38 and 39, by ssh to a Debian with systemd, udev and GRUB that runs on the machine of
// gpu_test.go. It is restarted by the playbook when a card is in use.

// gpuHost is that host.
type gpuHost struct {
	*cards
	checkout, dir string
	port          int
	// restarts is how often it was.
	restarts int
}

// freePort gives a port of this machine that nobody has now.
func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

const gpuInventory = `all:
  vars:
    ansible_host: 127.0.0.1
    ansible_port: %d
    ansible_user: root
    ansible_python_interpreter: /usr/bin/python3
    ansible_ssh_private_key_file: %s/user
    # What an emulated processor reckons and deciphers fastest.
    ansible_ssh_args: -o ControlMaster=auto -o ControlPersist=300s -o Compression=no -o KexAlgorithms=curve25519-sha256 -c aes128-gcm@openssh.com
    ansible_ssh_common_args: -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ControlPath=%[2]s/%%C
    # There is no initramfs of the host's here, QEMU has its own: see TestGPUIsReservedFromTheStart.
    gpu_reservation_stage: udev
  children:
    baremetal:
      hosts:
        gpu1:
          configure_gpu_passthrough: true
          assigned_pci_slots: ["02:00.0"]
    management:
      hosts: {}
`

func bootGPUHost(t *testing.T) *gpuHost {
	t.Helper()
	made, _ := chrootRoot(t, "initramfs-tools")
	checkout, err := filepath.Abs("../..")
	require.NoError(t, err)
	dir, err := os.MkdirTemp("", "thinkube-play-") // short: ssh's socket is in it, and its path has 107 bytes at most
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	h := &gpuHost{checkout: checkout, dir: dir, port: freePort(t)}
	for _, name := range []string{"user", "host"} {
		_, err := run(t.Context(), h.dir, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name)
		require.NoError(t, err)
	}
	require.NoError(t, os.WriteFile(filepath.Join(h.dir, "inventory.yaml"), fmt.Appendf(nil, gpuInventory, h.port, h.dir), 0o600))
	opener := Build(t, "github.com/thinkube/infra/tests/vm/openvfio")
	name, program := carried(t, checkout)
	h.cards = &cards{guest: Boot(t, Machine{
		Root: filepath.Join(made, "disk"), Keep: true, CPUs: 1, Memory: 1024, Cmdline: cardCmdline + "intel_iommu=on iommu=pt", Modules: []string{"virtio_net", "autofs4"},
		Before: giveNvidiaIDs,
		Args: append(cardArgs("intel"), "-netdev", fmt.Sprintf("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:%d-:22", h.port),
			"-device", "virtio-net-pci,netdev=net,romfile=,addr=1b.0"),
		Files: map[string]File{
			"/usr/local/bin/openvfio":                   {From: opener, Mode: 0o755},
			"/root/.cache/thinkube/" + name:             {Data: program, Mode: 0o700},
			"/root/.ssh/authorized_keys":                {From: filepath.Join(h.dir, "user.pub"), Mode: 0o600},
			"/etc/ssh/ssh_host_ed25519_key":             {From: filepath.Join(h.dir, "host"), Mode: 0o600},
			"/etc/ssh/sshd_config.d/vm.conf":            {Data: []byte("UsePAM no\n")},
			"/etc/network.ip":                           {Data: []byte("addr replace 10.0.2.15/24 dev eth0\nlink set eth0 up\n")},
			"/etc/systemd/system/ssh.service.d/vm.conf": {Data: []byte("[Service]\nExecStartPre=\nExecStartPre=ip -batch /etc/network.ip\n")},
		},
	})}
	h.settle(t)
	t.Logf("settled, after %s of processor time", h.processor(t))
	return h
}

// carried gives the program that runs on hosts, and its name there. A host that an earlier playbook has set up has it; sending
// and unpacking it takes an emulated processor five seconds.
func carried(t *testing.T, checkout string) (name string, program []byte) {
	t.Helper()
	const base = "thinkube_linux_amd64"
	sum, err := os.ReadFile(filepath.Join(checkout, "libexec", base+".sha256"))
	require.NoError(t, err)
	file, err := os.Open(filepath.Join(checkout, "libexec", base+".gz"))
	require.NoError(t, err)
	defer file.Close()
	plain, err := gzip.NewReader(file)
	require.NoError(t, err)
	program, err = io.ReadAll(plain)
	require.NoError(t, err)
	return base + "-" + string(sum[:32]), program
}

// settle waits until ssh answers and the cards have their drivers.
func (h *gpuHost) settle(t *testing.T) {
	t.Helper()
	require.NoError(t, eventually(t.Context(), bootLimit, "ssh answers", func() bool {
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", h.port), time.Second)
		if err != nil {
			return false
		}
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		banner := make([]byte, 4)
		_, err = conn.Read(banner)
		return err == nil && string(banner) == "SSH-"
	}))
	h.sh(t, "udevadm settle")
	require.NoError(t, eventually(t.Context(), patience, "the drivers have their cards", func() bool {
		drivers := h.drivers(t)
		return !strings.HasPrefix(drivers[twin+".0"], "none") && !strings.HasPrefix(drivers[twin+".2"], "none") && !strings.HasPrefix(drivers[first+".2"], "none")
	}))
}

// played is what Ansible says of a run.
type played struct {
	text            string
	failed, rescued int
	plays           []play
}

// play is one of its plays.
type play struct {
	name    string
	changed int
}

// play runs a playbook. A host that goes down under it is started again.
func (h *gpuHost) play(t *testing.T, playbook string, args ...string) played {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, "ansible-playbook", append([]string{"-i", filepath.Join(h.dir, "inventory.yaml"), playbook}, args...)...)
	command.Dir = h.checkout
	command.Env = append(os.Environ(), "ANSIBLE_CONFIG="+h.checkout+"/ansible.cfg", "ANSIBLE_NOCOLOR=1", "ANSIBLE_LOCAL_TEMP="+h.dir+"/tmp")
	started := time.Now()
	done := make(chan []byte, 1)
	go func() {
		out, _ := command.CombinedOutput()
		done <- out
	}()
	for {
		select {
		case <-h.guest.life().done:
			h.restarts++
			h.guest.stop()
			require.NoError(t, h.guest.start(ctx))
		case out := <-done:
			t.Logf("%s: %s; the guest has taken %s of processor time since its start", filepath.Base(playbook), time.Since(started).Round(100*time.Millisecond), h.processor(t))
			return parsePlayed(t, string(out))
		}
	}
}

func parsePlayed(t *testing.T, text string) played {
	t.Helper()
	said := played{text: text}
	all, recap, ok := strings.Cut(text, "PLAY RECAP")
	require.True(t, ok, text)
	for _, each := range strings.Fields(recap) {
		_, _ = fmt.Sscanf(each, "failed=%d", &said.failed)
		_, _ = fmt.Sscanf(each, "rescued=%d", &said.rescued)
	}
	for _, part := range strings.Split("\n"+all, "\nPLAY [")[1:] {
		name, _, _ := strings.Cut(part, "]")
		said.plays = append(said.plays, play{name, strings.Count(part, "\nchanged: [")})
	}
	return said
}

// playbook is the path of one of 00_initial_setup's.
func (h *gpuHost) playbook(name string) string {
	return filepath.Join(h.checkout, "ansible/00_initial_setup", name+".yaml")
}

// write writes a playbook of the test's.
func (h *gpuHost) write(t *testing.T, name, text string, values ...any) string {
	t.Helper()
	path := filepath.Join(h.dir, name)
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, text, values...), 0o600))
	return path
}

// noticed does harm, has 38's tests run, which have to fail in the task that is named, and makes it good. One run for all
// takes a tenth of the time of one for each.
const noticed = `- name: Do harm
  ansible.builtin.raw: "{{ harm.how }}"
  when: harm.how is defined
- block:
    - ansible.builtin.include_role:
        name: thinkube.infra.gpu_reservation
        tasks_from: "{{ harm.asks | default('test', true) }}"
      vars:
        gpu_reservation_devices: "{{ harm.cards | default(assigned_pci_slots, true) }}"
        gpu_reservation_stage: "{{ harm.stage | default('udev', true) }}"
    - name: Nothing has noticed it
      ansible.builtin.fail:
  rescue:
    - name: It is noticed where it should be
      ansible.builtin.assert:
        that: ansible_failed_task.name.startswith(harm.says)
        fail_msg: "{{ harm }}: {{ ansible_failed_task.name }}: {{ ansible_failed_result }}"
- name: Make it good
  ansible.builtin.raw: "{{ harm.undo }}"
  when: harm.undo is defined
`

// afterSetup is what is played when the host is set up.
const afterSetup = `- import_playbook: %[1]s
- name: Harm
  hosts: baremetal
  gather_facts: false
  tasks:
    - ansible.builtin.include_tasks: noticed.yaml
      loop: "{{ harms }}"
      loop_control: {loop_var: harm}
- import_playbook: %[1]s
- import_playbook: %[2]s
- import_playbook: %[3]s
- name: Nothing is reserved
  hosts: baremetal
  gather_facts: false
  tasks:
    - ansible.builtin.include_tasks: noticed.yaml
      vars:
        harm: {says: Setup would change nothing}
`

// harm is a sabotage, the task of 38 that notices it, and how to make it good; or an inventory that wants something else.
type harm struct {
	How  string `json:"how,omitempty"`
	Says string `json:"says"`
	Undo string `json:"undo,omitempty"`
	// Asks is the file of the role's that asks, default test; the others are what the inventory says.
	Asks  string   `json:"asks,omitempty"`
	Cards []string `json:"cards,omitempty"`
	Stage string   `json:"stage,omitempty"`
}

// harms are sabotages. The last is left to 30.
var harms = []harm{
	{Cards: []string{"01:00.0"}, Says: "Setup would change nothing"},
	{Stage: "initramfs", Says: "Setup would change nothing"}, // neither hook nor rule in the image
	{Asks: "unreserved", Says: "Rollback would change nothing"},
	{How: move(first, "vfio-pci"), Says: "These cards and no others", Undo: move(first, "")},
	{How: leaveLikeLXD, Says: "Setup would change nothing", Undo: move(twin, "vfio-pci")},
	{How: "mv /var/lib/thinkube/gpu_vfio /root", Says: "These cards and no others", Undo: "mv /root/gpu_vfio /var/lib/thinkube"},
	{How: "mv /etc/default/grub.d/95-gpu-reservation.cfg /root", Says: "Nor would it change", Undo: "mv /root/95-gpu-reservation.cfg /etc/default/grub.d"},
	{
		How:  "cp /boot/grub/grub.cfg /root && sed -i 's/^[[:space:]]*linux.*/& iommu=off/' /boot/grub/grub.cfg",
		Says: "Nor would it change", Undo: "cp /root/grub.cfg /boot/grub && rm /root/grub.cfg",
	},
	{How: "rm /etc/udev/rules.d/05-thinkube-gpu-vfio.rules", Says: "Setup would change nothing"},
}

func TestGPUPlaybooks(t *testing.T) {
	t.Parallel()
	h := bootGPUHost(t)
	before, files := h.drivers(t), h.state(t)
	require.Equal(t, "bochs-drm (null)", before[twin+".0"])

	said := h.play(t, h.playbook("38_test_gpu_reservation"))
	assert.Equal(t, 1, said.failed, "the test before the set-up: %s", said.text)
	_, after, _ := strings.Cut(said.text, "TASK [thinkube.infra.gpu_reservation : Setup would change nothing]")
	assert.Contains(t, after, "fatal: [gpu1]: FAILED!", said.text)
	assert.NotContains(t, after, "TASK [", "and nothing after it: %s", said.text)
	assert.Equal(t, before, h.drivers(t))

	// A card that is in use is reserved by a restart, which the playbook makes when it may end who uses it.
	end := h.hold(t, "exec sleep 1000 </dev/dri/by-path/pci-"+twin+".0-card", "pgrep -x sleep")
	said = h.play(t, h.playbook("30_reserve_gpus"))
	assert.Equal(t, 1, said.failed, said.text)
	assert.NotZero(t, said.plays[0].changed, "it is prepared: %s", said.text)
	assert.Contains(t, said.text, "(sleep) has /dev/dri/card")
	require.Zero(t, h.restarts, said.text)
	said = h.play(t, h.playbook("30_reserve_gpus"), "-e", "gpu_reservation_restart_users=true")
	require.Zero(t, said.failed, said.text)
	assert.Equal(t, 1, h.restarts, said.text)
	end()
	h.settle(t)
	drivers := h.drivers(t)
	for address, had := range before {
		if strings.HasPrefix(address, twin) {
			assert.Equal(t, "vfio-pci vfio-pci", drivers[address], address)
		} else {
			assert.Equal(t, had, drivers[address], address)
		}
	}
	assert.JSONEq(t, opened, h.opens(t, h.group(t, twin+".0"), twin+".0"))

	h.write(t, "noticed.yaml", "%s", noticed)
	vars, err := json.Marshal(map[string]any{"harms": harms})
	require.NoError(t, err)
	said = h.play(t, h.write(t, "after.yaml", afterSetup, h.playbook("30_reserve_gpus"), h.playbook("38_test_gpu_reservation"), h.playbook("39_rollback_gpu_reservation")),
		"-e", "@"+h.write(t, "vars.json", "%s", vars))
	require.Zero(t, said.failed, said.text)
	assert.Equal(t, len(harms)+1, said.rescued, said.text)
	var names []string
	for _, each := range said.plays {
		names = append(names, each.name)
	}
	const controller = ", and now on the controller"
	require.Equal(t, []string{
		"GPUs are reserved", "GPUs are reserved" + controller, "Harm", "GPUs are reserved", "GPUs are reserved" + controller,
		"GPUs are reserved as set up", "GPUs are the hosts' again", "GPUs are the hosts' again" + controller, "Nothing is reserved",
	}, names)
	assert.Zero(t, said.plays[0].changed, "the second run: %s", said.text)
	assert.NotZero(t, said.plays[3].changed, "the rule is written again: %s", said.text)
	assert.NotZero(t, said.plays[6].changed, said.text)
	require.NoError(t, eventually(t.Context(), patience, "everything is back", func() bool { return assert.ObjectsAreEqual(before, h.drivers(t)) }))
	assert.Equal(t, files, h.state(t), "nothing is left")
	assert.Equal(t, 1, h.restarts, "the way back needs no restart")
}

// move is a script that moves all functions of a slot to a driver, or to those that they have by themselves.
func move(slot, driver string) string {
	return strings.NewReplacer("SLOT", slot, "DRIVER", driver).Replace(
		`cd /sys/bus/pci; for f in SLOT.0 SLOT.1 SLOT.2; do echo DRIVER >devices/$f/driver_override; echo $f >devices/$f/driver/unbind; echo $f >drivers_probe; done`)
}

// state is all files that the playbooks could have left, and what is in those that they could have changed.
func (h *gpuHost) state(t *testing.T) string {
	t.Helper()
	return h.sh(t, "find /etc /boot /var/lib/thinkube -xdev -not -path '/etc/ssl/*' -printf '%p %m %u:%g %s %l\\n' 2>/dev/null | sort; cat /boot/grub/grub.cfg /boot/initrd.img-* | cksum")
}
