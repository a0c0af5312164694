#!/bin/sh
# The recipe of the layer that makes a machine's root of the lab's base image: what a container has no use for, and
# less of what takes an emulated processor long. Its hash is part of the layer's name in the cache. Called by root.go
# in a mount and process namespace of its own: whatever is mounted or started here ends with it.
#
#   root.sh BASE OUT
#     BASE    the base image's folder
#     OUT     empty folder; gets layer/
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
# What an emulated processor would be busy with for nothing.
chroot "$root" systemctl -q mask systemd-random-seed.service systemd-update-utmp.service \
    systemd-update-utmp-runlevel.service systemd-journal-flush.service
# Nothing of /etc has to be made anew at boot (systemd-update-done.service(8)).
touch "$root/etc/.updated"

umount "$root/dev" "$root/proc" "$root"
rmdir "$root"
rm -rf "$out/work" "$out/layer/var/cache/apt" "$out/layer/var/log"
