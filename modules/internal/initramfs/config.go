// SPDX-License-Identifier: Apache-2.0

package initramfs

import (
	"strings"

	"github.com/thinkube/infra/modules/internal/ownfile"
)

// RenderConfig gives the file that has a generator put a udev rule and modules into its images. The name is that of the
// file, without folder and ending; the header goes on top of it.
//
// initramfs-tools takes all rules of /etc by itself, and modules by a hook (initramfs-tools(7)); dracut takes a fixed list
// of rules, so the file is named (dracut.conf(5)).
func RenderConfig(generator, name, header, rule string, modules []string) *ownfile.File {
	switch generator {
	case InitramfsTools:
		return &ownfile.File{
			Path: "/etc/initramfs-tools/hooks/" + name, Mode: 0o755,
			Content: "#!/bin/sh\n" + header + `case "$1" in
prereqs)
	echo
	exit 0
	;;
esac
. /usr/share/initramfs-tools/hook-functions
manual_add_modules ` + strings.Join(modules, " ") + "\n",
		}
	case Dracut:
		return &ownfile.File{
			Path: "/etc/dracut.conf.d/60-" + name + ".conf", Mode: 0o644,
			Content: header + `install_items+=" ` + rule + ` "` + "\n" + `add_drivers+=" ` + strings.Join(modules, " ") + ` "` + "\n",
		}
	}

	return nil
}
