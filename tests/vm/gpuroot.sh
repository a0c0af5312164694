#!/bin/sh
# The recipe of the layer with which start.go makes an initramfs: initramfs-tools, a kernel, and an initramfs that has the
# cards' drivers and says on the console what became of the cards; and, of initramfs-tools, the disk of such a Debian for
# gpu_play_test.go; light.sh comes before it. Their hash is part of the layer's name in the cache. Called by start.go in a mount
# and process namespace of its own: whatever is mounted here ends with it.
#
#   gpuroot.sh BASE KERNEL GENERATOR OUT
#     BASE       the lab's base image's folder
#     KERNEL     the kernel's package
#     GENERATOR  initramfs-tools or dracut
#     OUT        empty folder; gets layer/ and disk, an ext4 file system
set -eu

base=$1 kernel=$2 generator=$3 out=$4
root=$out/merged
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

mkdir "$out/layer" "$out/work" "$root"
mount -t overlay overlay -o "lowerdir=$base,upperdir=$out/layer,workdir=$out/work" "$root"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"

# The image's own source has what its tests install; these come from where the image came from.
apt=$(dirname "$(dirname "$(dirname "$base")")")
cp -a "$root/etc/apt" "$out/apt"
cp "$apt/sources.list" "$root/etc/apt/sources.list"
cp "$apt/apt.conf" "$root/etc/apt/apt.conf.d/00build"
cp /etc/resolv.conf "$root/etc/resolv.conf"
chroot "$root" apt-get -qq update </dev/null
chroot "$root" apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 install "$generator" zstd udev kmod grub2-common </dev/null

# Of modules only those that the cards need: an emulated machine unpacks them slowly.
mkdir -p "$root/etc/initramfs-tools/conf.d" "$root/etc/initramfs-tools/scripts/init-premount" "$root/etc/modprobe.d"
[ "$generator" != dracut ] || printf 'hostonly=no\ndracutmodules=" base udev-rules kernel-modules "\ndrivers=" bochs snd-hda-intel xhci-pci "\n' >"$root/etc/dracut.conf.d/list.conf"
# As Debian compresses it, but quickly.
printf 'MODULES=list\nCOMPRESSLEVEL=1\n' >"$root/etc/initramfs-tools/conf.d/list"
printf 'bochs\nsnd-hda-intel\nxhci-pci\n' >>"$root/etc/initramfs-tools/modules"
# QEMU's card has a driver that does not know NVIDIA's id: here udev loads it for that, as it does a driver of NVIDIA's. What else
# the machine has drivers for is no matter.
cat >"$root/etc/modprobe.d/bochs.conf" <<'END'
alias pci:v000010DEd00002684sv*sd*bc03sc*i* bochs
install bochs /sbin/modprobe --ignore-install bochs && echo 10de 2684 >/sys/bus/pci/drivers/bochs-drm/new_id
END
printf 'blacklist %s\n' ahci i2c_i801 lpc_ich iTCO_wdt >"$root/etc/modprobe.d/light.conf"
# It comes last of what runs before a root is looked for, and there is none.
cat >"$root/etc/initramfs-tools/scripts/init-premount/zz-report" <<'END'
#!/bin/sh
case "$1" in prereqs) ls /scripts/init-premount | grep -v -e ORDER -e zz-report; exit 0 ;; esac
udevadm settle
exec >/dev/ttyS0
for f in /sys/bus/pci/devices/*; do
	driver=none
	[ ! -e "$f/driver" ] || driver=$(readlink "$f/driver")
	echo "REPORT ${f##*/} ${driver##*/} $(cat "$f/driver_override")"
done
for f in /dev/vfio/*; do echo "NODE $f"; done
dmesg | grep -e bochs-drm -e 'fb[0-9]*: ' | sed 's/^/SAW /'
echo o >/proc/sysrq-trigger
sleep 60
END
chmod 755 "$root/etc/initramfs-tools/scripts/init-premount/zz-report"

# Of the devices that are there before udev, it hears of PCI's, as in light.sh.
if [ "$generator" != dracut ]; then
    sed -i 's/^udevadm trigger --type=devices --action=add$/& --subsystem-match=pci/' "$root/usr/share/initramfs-tools/scripts/init-top/udev"
    grep -q -- --subsystem-match=pci "$root/usr/share/initramfs-tools/scripts/init-top/udev"
fi

cp "$kernel" "$root/kernel.deb"
chroot "$root" apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 install /kernel.deb </dev/null
rm "$root/kernel.deb" "$root/usr/sbin/policy-rc.d"

# GRUB asks what the root lies on, and this one lies on nothing that a firmware could read.
cat >"$root/usr/sbin/grub-probe" <<'END'
#!/bin/sh
case "$*" in
*--target=device*) echo /dev/vda1 ;;
*--target=fs_uuid*) echo 11111111-2222-3333-4444-555555555555 ;;
*--target=partuuid*) echo 11111111-01 ;;
*--target=fs*) echo ext2 ;;
*--target=partmap*) echo gpt ;;
*--target=abstraction*) ;;
*) echo dummy ;;
esac
END
# The package of the boot loader proper would do that.
cp "$root/usr/share/grub/default/grub" "$root/etc/default/grub"
mkdir -p "$root/boot/grub"
# As its administrator has it: the menu is in that language.
echo LANG=de_DE.UTF-8 >"$root/etc/default/locale"
make_grub_cfg() { env -u LC_ALL LANG=de_DE.UTF-8 chroot "$root" grub-mkconfig -o /boot/grub/grub.cfg; }
make_grub_cfg
rm -rf "$root/etc/apt"
cp -a "$out/apt" "$root/etc/apt"

# udev hears of the cards. Nobody reads a log, the network is set up by sshd's unit, which makes its folder as well, and
# shutdown(8) asks systemd itself where there is no logind.
lighten "$root" pci
chroot "$root" systemctl -q mask systemd-sysctl.service systemd-tmpfiles-setup.service systemd-journald.service \
    systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket systemd-networkd.service \
    systemd-networkd.socket dbus.service dbus.socket

# The disk is for an emulated processor, which takes a second to unpack an image, and eight for all of GRUB's scripts: its image
# has next to nothing in it, of the scripts there is the one that finds kernels, and its administrator wants one entry for each.
# The folder has all of it.
if [ "$generator" != dracut ]; then
    mkdir "$out/whole"
    image=$(basename "$root"/boot/initrd.img-*)
    mv "$root/boot/$image" "$root/boot/grub/grub.cfg" "$root/etc/grub.d" "$out/whole"
    echo bin | chroot "$root" cpio -o -H newc --quiet -D / >"$root/boot/$image"
    mkdir "$root/etc/grub.d"
    cp "$out/whole/grub.d/10_linux" "$root/etc/grub.d"
    cp "$root/etc/default/grub" "$out/whole/default"
    printf 'GRUB_DISABLE_SUBMENU=y\nGRUB_DISABLE_RECOVERY=true\n' >>"$root/etc/default/grub"
    make_grub_cfg
fi

umount "$root/dev" "$root/proc"
rm -rf "$root/srv/apt" "$root/var/cache/apt" "$root/var/lib/apt/lists"
if [ "$generator" != dracut ]; then
    mke2fs -q -t ext4 -E lazy_itable_init=0 -d "$root" "$out/disk" 1536M
    rm -r "$root/etc/grub.d"
    mv "$out/whole/grub.d" "$root/etc"
    mv "$out/whole/grub.cfg" "$root/boot/grub"
    mv "$out/whole/default" "$root/etc/default/grub"
    mv "$out/whole/$image" "$root/boot"
    rmdir "$out/whole"
fi
umount "$root"
rmdir "$root"
rm -rf "$out/work" "$out/apt" "$out/layer/var/log"
