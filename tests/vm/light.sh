# shellcheck shell=sh
# What root.sh and gpuroot.sh have in common; both recipes begin with it, and so do their hashes.

# lighten makes a host of a container, and takes from it what keeps an emulated processor busy for nothing. systemd stays,
# with udev and sshd.
#
#   lighten ROOT SUBSYSTEM...
#     ROOT       the Debian's folder
#     SUBSYSTEM  of the devices that are there before udev, those that it hears of
lighten() {
    light_root=$1
    shift
    chroot "$light_root" systemctl -q disable lab-boot.service
    chroot "$light_root" systemctl -q mask systemd-random-seed.service systemd-update-utmp.service \
        systemd-update-utmp-runlevel.service systemd-journal-flush.service systemd-binfmt.service \
        proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount e2scrub_reap.service systemd-logind.service \
        systemd-user-sessions.service dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount \
        sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount modprobe@configfs.service \
        modprobe@dm_mod.service modprobe@drm.service modprobe@efi_pstore.service modprobe@fuse.service \
        modprobe@loop.service systemd-modules-load.service systemd-pstore.service systemd-remount-fs.service \
        systemd-network-generator.service systemd-networkd-wait-online.service systemd-tmpfiles-setup-dev.service \
        kmod-static-nodes.service systemd-ask-password-console.path systemd-ask-password-wall.path
    chroot "$light_root" systemctl -q set-default multi-user.target
    # None of systemd's own finds anything here.
    mkdir -p "$light_root/etc/systemd/system-generators"
    for light_generator in "$light_root"/lib/systemd/system-generators/systemd-*; do
        ln -sf /dev/null "$light_root/etc/systemd/system-generators/${light_generator##*/}"
    done
    light_matches=
    for light_subsystem; do
        light_matches="$light_matches --subsystem-match=$light_subsystem"
    done
    mkdir -p "$light_root/etc/systemd/system/systemd-udev-trigger.service.d"
    printf '[Service]\nExecStart=\nExecStart=udevadm trigger --action=add%s\n' "$light_matches" \
        >"$light_root/etc/systemd/system/systemd-udev-trigger.service.d/light.conf"
    # Nothing of /etc has to be made anew at boot (systemd-update-done.service(8)).
    touch "$light_root/etc/.updated"
}
