#!/bin/sh
# The recipe of a machine's root: the lab's base image, with what a container has no use for, and less of what keeps an
# emulated processor busy for nothing. Its hash is part of the disk's name in the cache. Called by root.go in a mount
# and process namespace of its own: whatever is mounted or started here ends with it.
#
#   root.sh BASE OUT
#     BASE    the base image's folder
#     OUT     empty folder; gets disk, an ext4 file system
set -eu

base=$1 out=$2
root=$out/merged
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

mkdir "$out/layer" "$out/work" "$root"
mount -t overlay overlay -o "lowerdir=$base,upperdir=$out/layer,workdir=$out/work" "$root"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"

# No daemon may start in here.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
# networkd waits for udev before it touches a link. The base image has its own package source, with udev in it.
chroot "$root" apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 install udev </dev/null
rm "$root/usr/sbin/policy-rc.d"

# It makes a host of a container.
chroot "$root" systemctl -q disable lab-boot.service
# What a machine has at work is journald, udev, networkd, D-Bus and sshd.
chroot "$root" systemctl -q mask systemd-random-seed.service systemd-update-utmp.service \
    systemd-update-utmp-runlevel.service systemd-journal-flush.service systemd-binfmt.service \
    proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount e2scrub_reap.service systemd-logind.service \
    systemd-user-sessions.service dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount \
    sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount modprobe@configfs.service \
    modprobe@dm_mod.service modprobe@drm.service modprobe@efi_pstore.service modprobe@fuse.service \
    modprobe@loop.service systemd-modules-load.service systemd-pstore.service systemd-remount-fs.service \
    systemd-network-generator.service systemd-networkd-wait-online.service systemd-tmpfiles-setup-dev.service \
    systemd-ask-password-console.path systemd-ask-password-wall.path
chroot "$root" systemctl -q set-default multi-user.target
# Of the devices that are there before udev, only network links wait for it.
mkdir -p "$root/etc/systemd/system/systemd-udev-trigger.service.d"
printf '[Service]\nExecStart=\nExecStart=udevadm trigger --subsystem-match=net --action=add\n' \
    >"$root/etc/systemd/system/systemd-udev-trigger.service.d/net.conf"
# Nothing of /etc has to be made anew at boot (systemd-update-done.service(8)).
touch "$root/etc/.updated"

umount "$root/dev" "$root/proc"
rm -rf "$root/srv/apt" "$root/var/cache/apt" "$root/var/lib/apt/lists"
mke2fs -q -t ext4 -E lazy_itable_init=0 -d "$root" "$out/disk" 768M
umount "$root"
