// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"fmt"
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
	dir  string
	port int
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

func bootGPUHost(t *testing.T, cmdline string) *gpuHost {
	t.Helper()
	made, _ := gpuRoot(t, "initramfs-tools")
	h := &gpuHost{dir: t.TempDir(), port: freePort(t)}
	for _, name := range []string{"user", "host"} {
		_, err := run(t.Context(), h.dir, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name)
		require.NoError(t, err)
	}
	require.NoError(t, os.WriteFile(filepath.Join(h.dir, "inventory.yaml"), fmt.Appendf(nil, gpuInventory, h.port, h.dir), 0o600))
	opener := Build(t, "github.com/thinkube/infra/tests/vm/openvfio")
	h.cards = &cards{guest: Boot(t, Machine{
		Root: filepath.Join(made, "disk"), Keep: true, CPUs: 2, Memory: 1024, Cmdline: cardCmdline + cmdline, Modules: []string{"virtio_net", "autofs4"},
		Before: giveNvidiaIDs,
		Args: append(cardArgs("intel"), "-netdev", fmt.Sprintf("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:%d-:22", h.port),
			"-device", "virtio-net-pci,netdev=net,romfile=,addr=1b.0"),
		Files: map[string]File{
			"/usr/local/bin/openvfio":              {From: opener, Mode: 0o755},
			"/root/.ssh/authorized_keys":           {From: filepath.Join(h.dir, "user.pub"), Mode: 0o600},
			"/etc/ssh/ssh_host_ed25519_key":        {From: filepath.Join(h.dir, "host"), Mode: 0o600},
			"/etc/ssh/sshd_config.d/vm.conf":       {Data: []byte("UsePAM no\n")},
			"/etc/systemd/network/00-eth0.network": {Data: []byte("[Match]\nName=eth0\n[Network]\nAddress=10.0.2.15/24\nLinkLocalAddressing=no\n")},
			"/etc/modules-load.d/bochs.conf":       {Data: []byte("bochs\n")},
		},
	})}
	h.settle(t)
	return h
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
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		banner := make([]byte, 4)
		_, err = conn.Read(banner)
		return err == nil && string(banner) == "SSH-"
	}))
	h.sh(t, "udevadm settle; systemctl is-active systemd-modules-load || true")
	require.NoError(t, eventually(t.Context(), time.Minute, "the drivers have their cards", func() bool {
		drivers := h.drivers(t)
		return !strings.HasPrefix(drivers[twin+".0"], "none") && !strings.HasPrefix(drivers[twin+".2"], "none") && !strings.HasPrefix(drivers[first+".2"], "none")
	}))
}

// play runs a playbook of 00_initial_setup and gives what Ansible says. A host that goes down under it is started again.
func (h *gpuHost) play(t *testing.T, name string, args ...string) (text string, changed, failed int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	checkout, err := filepath.Abs("../..")
	require.NoError(t, err)
	command := exec.CommandContext(ctx, "ansible-playbook", append([]string{"-i", filepath.Join(h.dir, "inventory.yaml"), "ansible/00_initial_setup/" + name + ".yaml"}, args...)...)
	command.Dir = checkout
	command.Env = append(os.Environ(), "ANSIBLE_CONFIG="+checkout+"/ansible.cfg", "ANSIBLE_NOCOLOR=1", "ANSIBLE_LOCAL_TEMP="+h.dir+"/tmp")
	type ended struct{ out []byte }
	done := make(chan ended, 1)
	go func() {
		out, _ := command.CombinedOutput()
		done <- ended{out}
	}()
	for {
		select {
		case <-h.guest.life().done:
			h.restarts++
			h.guest.stop()
			require.NoError(t, h.guest.start(ctx))
		case result := <-done:
			text = string(result.out)
			_, recap, ok := strings.Cut(text, "PLAY RECAP")
			require.True(t, ok, text)
			for _, each := range strings.Fields(recap) {
				_, _ = fmt.Sscanf(each, "changed=%d", &changed)
				_, _ = fmt.Sscanf(each, "failed=%d", &failed)
			}
			return text, changed, failed
		}
	}
}

func TestGPUPlaybooks(t *testing.T) {
	Need(t)
	h := bootGPUHost(t, "intel_iommu=on iommu=pt")
	before, files := h.drivers(t), h.state(t)
	require.Equal(t, "bochs-drm (null)", before[twin+".0"])

	text, _, failed := h.play(t, "38_test_gpu_reservation")
	assert.Equal(t, 1, failed, "the test before the set-up: %s", text)
	assert.Equal(t, before, h.drivers(t))

	// A card that is in use is reserved by a restart, which the playbook makes when it may end who uses it.
	end := h.hold(t, "exec sleep 1000 </dev/dri/by-path/pci-"+twin+".0-card", "pgrep -x sleep")
	text, changed, failed := h.play(t, "30_reserve_gpus")
	assert.Equal(t, 1, failed, text)
	assert.NotZero(t, changed, "it is prepared")
	assert.Contains(t, text, "(sleep) has /dev/dri/card")
	require.Zero(t, h.restarts, text)
	text, _, failed = h.play(t, "30_reserve_gpus", "-e", "gpu_reservation_restart_users=true")
	require.Zero(t, failed, text)
	assert.Equal(t, 1, h.restarts, "%s", text)
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

	text, changed, failed = h.play(t, "30_reserve_gpus")
	assert.Zero(t, failed, text)
	assert.Zero(t, changed, "the second run: %s", text)
	assert.Equal(t, 1, h.restarts)

	for _, sabotage := range []struct{ how, says, undo string }{
		{move(first, "vfio-pci"), "These cards and no others", move(first, "")},
		{leaveLikeLXD, "Setup would change nothing", move(twin, "vfio-pci")},
		{"mv /etc/default/grub.d/95-gpu-reservation.cfg /root", "Nor would it change", "mv /root/95-gpu-reservation.cfg /etc/default/grub.d"},
		{"rm /etc/udev/rules.d/05-thinkube-gpu-vfio.rules", "Setup would change nothing", "true"},
	} {
		h.sh(t, sabotage.how)
		text, _, failed := h.play(t, "38_test_gpu_reservation")
		assert.Equal(t, 1, failed, "%s: %s", sabotage.how, text)
		assert.Contains(t, text, "TASK [thinkube.infra.gpu_reservation : "+sabotage.says, sabotage.how)
		_, after, _ := strings.Cut(text, sabotage.says)
		assert.Contains(t, after, "FAILED", "%s: %s", sabotage.how, text)
		h.sh(t, sabotage.undo)
	}
	text, changed, failed = h.play(t, "30_reserve_gpus")
	require.Zero(t, failed, text)
	assert.NotZero(t, changed, "the rule is written again")
	text, _, failed = h.play(t, "38_test_gpu_reservation")
	require.Zero(t, failed, text)

	text, changed, failed = h.play(t, "39_rollback_gpu_reservation")
	require.Zero(t, failed, text)
	assert.NotZero(t, changed)
	require.NoError(t, eventually(t.Context(), time.Minute, "everything is back", func() bool { return assert.ObjectsAreEqual(before, h.drivers(t)) }))
	assert.Equal(t, files, h.state(t), "nothing is left")
	assert.Equal(t, 1, h.restarts, "the way back needs no restart")
	text, _, failed = h.play(t, "38_test_gpu_reservation")
	assert.Equal(t, 1, failed, text)
}

// TestGPUPlaybookWhereARestartDoesNotHelp: QEMU pins a command line that switches the IOMMU off, whatever GRUB's files say.
func TestGPUPlaybookWhereARestartDoesNotHelp(t *testing.T) {
	Need(t)
	h := bootGPUHost(t, "intel_iommu=off")
	text, _, failed := h.play(t, "30_reserve_gpus")
	assert.Equal(t, 1, failed, text)
	assert.Equal(t, 1, h.restarts, "GRUB's next start was to be with another line: %s", text)
	assert.Contains(t, text, "the IOMMU is off in the kernel")
	h.settle(t)

	text, changed, failed := h.play(t, "30_reserve_gpus")
	assert.Equal(t, 1, failed, text)
	assert.Zero(t, changed, text)
	assert.Equal(t, 1, h.restarts, "it has been started with that line, and not with it: %s", text)
	assert.Contains(t, text, "something else starts the host", "%s", text)
}

// move is a script that moves all functions of a slot to a driver, or to those that they have by themselves.
func move(slot, driver string) string {
	return strings.NewReplacer("SLOT", slot, "DRIVER", driver).Replace(
		`cd /sys/bus/pci; for f in SLOT.0 SLOT.1 SLOT.2; do echo DRIVER >devices/$f/driver_override; echo $f >devices/$f/driver/unbind; echo $f >drivers_probe; done`)
}

// state is all files that the playbooks could have left.
func (h *gpuHost) state(t *testing.T) string {
	t.Helper()
	return h.sh(t, "find /etc /boot /var/lib/thinkube -xdev -not -name 'initrd.img-*' -not -path '/etc/ssl/*' 2>/dev/null | sort; cat /boot/grub/grub.cfg")
}
