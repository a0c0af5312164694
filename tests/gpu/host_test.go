// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/vm"
)

// host is a machine with a card that the driver nvidia holds and nobody uses: only a restart has it reserved.
type host struct {
	site          *site
	name, folder  string
	address, port string
	// broken hosts do not come back from a restart, and stubborn ones come back with the card held as before.
	broken, stubborn bool
	// debian is the root of a host whose kernel has its IOMMU off, whatever GRUB there says; nil for one that has this machine's.
	debian *vm.Chroot

	mutex sync.Mutex
	power io.Closer // the host ends when it is closed, also by the end of this process
	pid   int       // of unshare
	over  bool      // it is not to start again
	ended chan struct{}
}

// addresses counts those given out. Each host has its own, so that nobody takes the port of one that is down.
var addresses atomic.Int32

// add makes a host and starts it.
func (s *site) add(t *testing.T, name, machineID string) *host {
	t.Helper()

	return s.addOn(t, name, machineID, nil)
}

func (s *site) addOn(t *testing.T, name, machineID string, debian *vm.Chroot) *host {
	t.Helper()

	h := &host{site: s, debian: debian, name: name, folder: filepath.Join(s.folder, name), address: fmt.Sprintf("127.77.0.%d", addresses.Add(1))}

	listener, err := net.Listen("tcp", h.address+":0")
	require.NoError(t, err)

	_, h.port, err = net.SplitHostPort(listener.Addr().String())
	require.NoError(t, err)
	require.NoError(t, listener.Close())

	for _, folder := range []string{"etc/udev/rules.d", "var-lib", "home", "proc"} {
		require.NoError(t, os.MkdirAll(filepath.Join(h.folder, folder), 0o755))
	}

	for name, content := range map[string]string{
		"etc/passwd":     fmt.Sprintf("root:x:0:0::%s/home:/bin/sh\nsshd:x:61299:65534::/run/sshd:/bin/false\n", h.folder),
		"etc/shadow":     "root:*:1::::::\n",
		"etc/machine-id": machineID + "\n",
		"proc/cmdline":   "root=/dev/sda1 intel_iommu=off\n",
		"proc/cpuinfo":   "processor\t: 0\nvendor_id\t: GenuineIntel\n",
		"proc/iomem":     "00000000-00000fff : Reserved\n",
		"sshd_config": fmt.Sprintf("ListenAddress %s:%s\nHostKey %s\nAuthorizedKeysFile %s.pub\nStrictModes no\nUsePAM no\nPidFile none\nSubsystem sftp internal-sftp\n",
			h.address, h.port, s.key, s.key),
	} {
		require.NoError(t, os.WriteFile(filepath.Join(h.folder, name), []byte(content), 0o644))
	}

	// systemctl is meant where shutdown is a link to it.
	require.NoError(t, os.WriteFile(filepath.Join(h.folder, "shutdown"), []byte("#!/bin/sh\ncase $0 in */shutdown) kill -TERM 1;; esac\n"), 0o755))
	command(t, "sh", "-ec", "for each in group nsswitch.conf ld.so.cache alternatives os-release hosts; do [ ! -e /etc/$each ] || cp -a /etc/$each $1; done", "sh",
		filepath.Join(h.folder, "etc"))

	require.NoError(t, h.start())
	t.Cleanup(h.stop)
	h.await(t)

	return h
}

// hostScript starts a host: whatever differs from this machine, and whatever the playbook changes, is a mount that it alone sees.
// It ends with its first process, sshd.
const hostScript = `
host=$1 root=$3
if [ -n "$root" ]; then
    mount -t overlay overlay -o "$4" $root
    mount -t proc proc $root/proc
    mount --rbind /dev $root/dev
    mkdir -p $root/sys $root$host/..
    mount --bind $host/.. $root$host/..
    rm -f $root/sbin/shutdown
    cp $host/shutdown $root/sbin
    cp $host/etc/machine-id $root/etc
else
    mount --bind $host/etc /etc
    mount --bind $host/var-lib /var/lib
    [ ! -e /sbin/shutdown ] || mount --bind $host/shutdown /sbin/shutdown
fi
mount --bind $host/sys $root/sys
mount -t tmpfs -o mode=755 tmpfs $root/run; mkdir -m 755 $root/run/sshd
mount -t tmpfs -o mode=755 tmpfs $root/usr/local/sbin; cp $host/shutdown $root/usr/local/sbin
for file in cmdline cpuinfo iomem stat; do mount --bind $host/proc/$file $root/proc/$file; done
mount --bind $host/proc/boot_id $root/proc/sys/kernel/random/boot_id
{ read word <&3 || while kill -TERM 1; do sleep 0.1; done; } &
exec ${root:+chroot $root} "$2" -D -e -f $host/sshd_config`

// start starts the host, and again whenever it ends.
func (h *host) start() error {
	h.mutex.Lock()
	defer h.mutex.Unlock()

	if h.over {
		return nil
	}

	sshd, err := exec.LookPath("sshd")
	if err != nil {
		return err
	}

	err = h.writeKernel()
	if err != nil {
		return err
	}

	power, plug, err := os.Pipe()
	if err != nil {
		return err
	}
	defer power.Close()

	var root, overlay string
	if h.debian != nil {
		root, overlay = h.debian.Overlay()
	}

	life := exec.Command("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-ec", hostScript, "sh", h.folder, sshd, root, overlay)
	life.ExtraFiles = []*os.File{power}
	life.Stderr = &logins{of: h}

	err = life.Start()
	if err != nil {
		return err
	}

	h.power, h.pid, h.ended = plug, life.Process.Pid, make(chan struct{})

	go h.follow(life, h.ended)

	return nil
}

// follow waits for the host's end, which is a restart unless the test is over.
func (h *host) follow(life *exec.Cmd, ended chan struct{}) {
	_ = life.Wait()

	h.mutex.Lock()
	over := h.over
	_ = h.power.Close()
	h.mutex.Unlock()
	close(ended)

	if over {
		return
	}

	h.site.note(h.name + " down")

	if h.broken {
		return
	}

	time.Sleep(time.Second) // what was written before is older than this start

	h.site.note(h.name + " up")

	err := h.start()
	if err != nil {
		h.site.note(h.name + ": " + err.Error())
	}
}

func (h *host) stop() {
	h.mutex.Lock()
	h.over = true
	_ = h.power.Close()
	h.mutex.Unlock()
	<-h.ended
}

// restart is what somebody does by hand.
func (h *host) restart(t *testing.T) {
	t.Helper()
	h.stop()

	h.over = false
	require.NoError(t, h.start())
	h.await(t)
}

func (h *host) await(t *testing.T) {
	t.Helper()
	require.Eventually(t, h.answers, 20*time.Second, 20*time.Millisecond, "sshd of %s", h.name)
}

func (h *host) answers() bool {
	connection, err := net.DialTimeout("tcp", net.JoinHostPort(h.address, h.port), time.Second)
	if err != nil {
		return false
	}

	return connection.Close() == nil
}

// logins reads sshd's log and notes who comes in. One that ends is over with its log.
type logins struct {
	of   *host
	rest []byte
}

func (l *logins) Write(text []byte) (int, error) {

	for l.rest = append(l.rest, text...); ; {
		line, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole {
			return len(text), nil
		}

		if l.rest = rest; bytes.HasPrefix(line, []byte("Accepted publickey")) {
			l.of.site.note(l.of.name + " reached")
		}
	}
}

const card = "0000:02:00.0"

// rule is where the module writes what udev is to do when the host starts.
const rule = "etc/udev/rules.d/05-thinkube-gpu-vfio.rules"

// reserved tells whether the next start reserves the card.
func (h *host) reserved() bool {
	text, _ := os.ReadFile(filepath.Join(h.folder, rule))

	return strings.Contains(string(text), card)
}

// writeKernel makes the /sys that a start gives: the IOMMU is on, and the card has the driver that the rule asks for.
func (h *host) writeKernel() error {
	root := filepath.Join(h.folder, "sys")

	driver, override := "nvidia", "(null)"
	if h.reserved() && !h.stubborn {
		driver, override = "vfio-pci", "vfio-pci"
	}

	device := "/devices/pci0000:00/" + card
	files := map[string]string{
		device + "/vendor": "0x10de", device + "/device": "0x2684", device + "/class": "0x030000", device + "/config": strings.Repeat("\x00", 64),
		device + "/driver_override": override, device + "/modalias": "pci:v000010DEd00002684sv0sd0bc03sc00i00", device + "/resource": "", device + "/reset_method": "bus",
		device + "/uevent":       "PCI_CLASS=30000",
		"/bus/pci/drivers_probe": "", "/bus/pci/drivers/vfio-pci/unbind": "", "/bus/pci/drivers/nvidia/unbind": "", "/module/nvidia/initstate": "live",
		"/firmware/acpi/tables/DMAR": "", "/class/iommu/dmar0/name": "", "/kernel/iommu_groups/7/type": "DMA", "/class/vfio/7/dev": "",
		// This is what holds it, also where there is an nvidia-smi to say that its persistence mode does not.
		"/module/nvidia_drm/parameters/modeset": "Y",
	}

	// Its node has the number of /dev/zero, which everybody may open.
	if driver == "nvidia" {
		files[device+"/drm/card0/dev"] = "1:5"
		files[device+"/drm/card0/uevent"] = "MAJOR=1\nMINOR=5\nDEVNAME=dri/card0"
	}

	if h.debian != nil {
		for _, each := range []string{"/class/iommu/dmar0/name", "/kernel/iommu_groups/7/type", "/class/vfio/7/dev"} {
			delete(files, each)
		}
	}

	err := os.RemoveAll(root)
	for name, content := range files {
		if err == nil {
			err = os.MkdirAll(filepath.Dir(root+name), 0o755)
		}

		if err == nil {
			err = os.WriteFile(root+name, []byte(content+"\n"), 0o644)
		}
	}

	links := map[string]string{
		"/bus/pci/devices/" + card:       "../../../devices/pci0000:00/" + card,
		"/bus/pci/drivers/nvidia/module": "../../../../module/nvidia",
		device + "/driver":               "../../../bus/pci/drivers/" + driver,
	}
	if h.debian == nil {
		links[device+"/iommu_group"] = "../../../kernel/iommu_groups/7"
	}

	for link, target := range links {
		if err == nil {
			err = os.MkdirAll(filepath.Dir(root+link), 0o755)
		}

		if err == nil {
			err = os.Symlink(target, root+link)
		}
	}

	if err != nil {
		return err
	}

	now := time.Now()

	return errors.Join(
		os.WriteFile(filepath.Join(h.folder, "proc/boot_id"), fmt.Appendln(nil, now.UnixNano()), 0o644),
		os.WriteFile(filepath.Join(h.folder, "proc/stat"), fmt.Appendf(nil, "cpu 0 0 0 0\nbtime %d\n", now.Unix()), 0o644))
}
