#!/bin/sh
# The recipe of the lab's base image. The image's cache key is the hash of this file, so every change
# here makes a new image. Called by image.go in a mount and process namespace of its own: whatever is
# mounted or started here ends with it, also when it is killed.
#
#   build.sh OUT CACHE SUITE MIRROR
#     OUT     empty folder; gets base/ (a root file system) and lxd/ (an overlay layer on top of it)
#     CACHE   folder for downloaded packages, kept between builds; holds sources.list and apt.conf too
#     SUITE   the Debian release
#     MIRROR  where debootstrap gets it
set -eu

out=$1 cache=$2 suite=$3 mirror=$4
base=$out/base
debs=$cache/debs
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

# What a small Debian server has, plus what LXD and Ansible's own modules want to find.
base_packages="systemd systemd-sysv dbus libpam-systemd openssh-server python3-minimal python3-apt
  iproute2 iputils-ping iptables nftables dnsmasq-base kmod sudo acl procps netbase gzip xz-utils zstd
  ca-certificates btrfs-progs busybox-static less"
# In a layer of its own, so that a host can be booted that never had them.
lxd_packages="lxd lxd-client bind9 bind9-dnsutils"
# Not installed: a host can have one network manager, and the tests of bridges install each in turn; those of DNS
# clients install the resolver on some hosts.
manager_packages="netplan.io network-manager ifupdown systemd-resolved"

step() { echo "== $*"; }

# in_root ROOT COMMAND...: run in an image, with what package scripts expect to find.
in_root() {
    root=$1
    shift
    chroot "$root" "$@" </dev/null
}

mount_api() {
    mount -t proc proc "$1/proc"
    mount -t sysfs -o ro sysfs "$1/sys"
    mount --bind /dev "$1/dev"
    mount --bind "$debs" "$1/var/cache/apt/archives"
}

umount_api() {
    umount "$1/var/cache/apt/archives" "$1/dev" "$1/sys" "$1/proc"
}

# fetch ROOT PACKAGES...: install, keeping the downloads in the cache.
fetch() {
    root=$1
    shift
    in_root "$root" apt-get -qq -y --no-install-recommends \
        -o APT::Keep-Downloaded-Packages=true -o Dpkg::Use-Pty=0 install "$@"
}

step "bootstrapping $suite"
mkdir -p "$base" "$debs/partial"
debootstrap --variant=minbase --cache-dir="$debs" "$suite" "$base" "$mirror"

step "installing the base packages"
# No daemon may start in here, and nobody needs manuals or safe writes in an image that is thrown away
# when its building is cut.
printf '#!/bin/sh\nexit 101\n' >"$base/usr/sbin/policy-rc.d"
chmod 755 "$base/usr/sbin/policy-rc.d"
cat >"$base/etc/dpkg/dpkg.cfg.d/lab" <<'END'
force-unsafe-io
path-exclude=/usr/share/man/*
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/locale/*
END
# Debian's post-install clean-up for small images would empty the shared package cache.
cp "$cache/sources.list" "$base/etc/apt/sources.list"
cp "$cache/apt.conf" "$base/etc/apt/apt.conf.d/00build"
cp /etc/resolv.conf "$base/etc/resolv.conf"
mount_api "$base"
in_root "$base" apt-get -qq update
in_root "$base" apt-get -qq -y -o APT::Keep-Downloaded-Packages=true -o Dpkg::Use-Pty=0 dist-upgrade
# shellcheck disable=SC2086 # a list of words
fetch "$base" $base_packages
# shellcheck disable=SC2016 # the format is dpkg's
in_root "$base" dpkg-query -W -f '${Package}\n' | sort >"$out/base.packages"

step "configuring"
in_root "$base" useradd --create-home --shell /bin/bash admin
in_root "$base" useradd --create-home --shell /bin/bash ops
printf 'admin ALL=(ALL) NOPASSWD: ALL\n' >"$base/etc/sudoers.d/admin"
printf 'ops ALL=(ALL) ALL\n' >"$base/etc/sudoers.d/ops"
chmod 440 "$base/etc/sudoers.d/admin" "$base/etc/sudoers.d/ops"
# Many Ansible forks log in at the same moment.
printf 'MaxStartups 100:30:200\nMaxSessions 100\n' >"$base/etc/ssh/sshd_config.d/lab.conf"
printf '# no resolver: the lab has no way out\n' >"$base/etc/lab-resolv.conf"
# Host keys and the machine id belong to a host, not to an image.
rm -f "$base"/etc/ssh/ssh_host_*
: >"$base/etc/machine-id"
rm -f "$base/var/lib/dbus/machine-id"

mkdir -p "$base/usr/local/lib/lab"
cat >"$base/usr/local/lib/lab/boot" <<'END'
#!/bin/sh
# Gives this host what a machine has and a container is denied: writable control groups (cgroup v1 is
# mounted read-only for it), and the device nodes that LXD's storage drivers and lxcfs open.
while read -r _ target type _; do
    case $type in cgroup | cgroup2) mount -o remount,bind,rw "$target" ;; esac
done </proc/self/mounts
node() { [ -e "/dev/$1" ] || mknod -m "$5" "/dev/$1" "$2" "$3" "$4"; }
node fuse c 10 229 666
node loop-control c 10 237 660
node btrfs-control c 10 234 660
n=0
while [ $n -lt 32 ]; do
    node "loop$n" b 7 $n 660
    n=$((n + 1))
done
END
chmod 755 "$base/usr/local/lib/lab/boot"
cat >"$base/etc/systemd/system/lab-boot.service" <<'END'
[Unit]
Description=Turn a container into a lab host
DefaultDependencies=no
Before=sysinit.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/lib/lab/boot

[Install]
WantedBy=sysinit.target
END
in_root "$base" systemctl -q enable lab-boot.service systemd-networkd.service ssh.service
# What would change a host by itself while a test compares it with its earlier self.
in_root "$base" systemctl -q mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer fstrim.timer systemd-tmpfiles-clean.timer console-getty.service getty.target

step "fetching other network managers"
# shellcheck disable=SC2086 # a list of words
fetch "$base" --download-only $manager_packages
# shellcheck disable=SC2086
in_root "$base" apt-get -qq -s --no-install-recommends install $manager_packages |
    sed -n 's/^Inst \([^ ]*\) (\([^ ]*\) .*\[\([a-z0-9]*\)\].*/\1 \2 \3/p' >"$out/managers.packages"

step "adding LXD and BIND"
umount_api "$base"
mkdir "$out/lxd" "$out/work" "$out/merged"
mount -t overlay overlay -o "lowerdir=$base,upperdir=$out/lxd,workdir=$out/work" "$out/merged"
mount_api "$out/merged"
# shellcheck disable=SC2086 # a list of words
fetch "$out/merged" $lxd_packages
in_root "$out/merged" systemctl -q disable named.service
# shellcheck disable=SC2016 # the format is dpkg's
in_root "$out/merged" dpkg-query -W -f '${Package} ${Version} ${Architecture}\n' | sort >"$out/all.packages"
umount_api "$out/merged"
umount "$out/merged"
# The daemons want their folders in /var/log, but no logs of the build.
find "$out/lxd/var/log" -type f -delete
rm -rf "$out/work" "$out/merged" "$out/lxd/var/cache/apt" \
    "$out/lxd/var/lib/apt/lists" "$out/lxd/etc/machine-id"

step "making the hosts' own package source"
# With it, apt-get works in a host as it does on a server with a mirror.
mkdir -p "$base/srv/apt"
sort -u "$out/all.packages" "$out/managers.packages" >"$out/offered.packages"
while read -r name version arch; do
    grep -qx "$name" "$out/base.packages" && continue
    # apt keeps a version's epoch in the file's name, with an escape that a path should not have.
    from=$debs/${name}_$(echo "$version" | sed 's/:/%3a/')_$arch.deb
    deb=${name}_${version#*:}_$arch.deb
    cp "$from" "$base/srv/apt/$deb"
    dpkg-deb -f "$from"
    echo "Filename: ./$deb"
    echo "Size: $(stat -c %s "$from")"
    echo "SHA256: $(sha256sum "$from" | cut -d' ' -f1)"
    echo
done <"$out/offered.packages" >"$out/Packages"
mv "$out/Packages" "$base/srv/apt/Packages"
echo 'deb [trusted=yes] file:/srv/apt ./' >"$base/etc/apt/sources.list"
rm -rf "$base"/var/lib/apt/lists/* "$base/etc/apt/apt.conf.d/00build" "$base/usr/sbin/policy-rc.d" \
    "$base"/var/cache/apt/*.bin "$base"/var/log/*.log "$base"/var/log/apt/* "$out"/*.packages
printf 'Acquire::Languages "none";\n' >"$base/etc/apt/apt.conf.d/lab"
mv "$base/etc/lab-resolv.conf" "$base/etc/resolv.conf"
in_root "$base" apt-get -qq update
