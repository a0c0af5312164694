#!/bin/sh
# The recipe of a machine's root: the lab's base image, with what a container has no use for, and less of what keeps an
# emulated processor busy for nothing; light.sh comes before it. Their hash is part of the disk's name in the cache. Called by root.go in a mount
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

# What has work to do is journald, udev, networkd, D-Bus and sshd; udev for networkd, which waits for it.
lighten "$root" net

umount "$root/dev" "$root/proc"
rm -rf "$root/srv/apt" "$root/var/cache/apt" "$root/var/lib/apt/lists"
mke2fs -q -t ext4 -E lazy_itable_init=0 -d "$root" "$out/disk" 768M
umount "$root"
