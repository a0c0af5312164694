// SPDX-License-Identifier: Apache-2.0

package gpuvfio

import (
	"fmt"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/initramfs"
	"github.com/thinkube/infra/modules/internal/ownfile"
	"github.com/thinkube/infra/modules/internal/vfio"
)

// The files of this module, all its own.
const (
	fileName = "thinkube-gpu-vfio"
	// The number has it run before rules that load drivers (80-drivers.rules).
	rulePath   = "/etc/udev/rules.d/05-" + fileName + ".rules"
	hookPath   = "/etc/initramfs-tools/hooks/" + fileName
	dracutPath = "/etc/dracut.conf.d/60-" + fileName + ".conf"
	unitPath   = "/etc/systemd/system/" + fileName + ".service"
	unitLink   = "/etc/systemd/system/sysinit.target.wants/" + fileName + ".service"
)

var ownPaths = []string{rulePath, hookPath, dracutPath, unitPath, unitLink}

// header stands on top of each, and tells them from files of others.
const header = "# Written by thinkube.infra.gpu_vfio; state: absent removes it.\n"

// iommuModule is VFIO's side of the IOMMU on amd64 and arm64.
const iommuModule = "vfio-iommu-type1"

// target is one function with the driver that it is to have.
type target struct {
	Record
	wanted string
}

// renderRule gives the udev rule: one line for each function. It matches by address and by id, so that another card is not
// taken when addresses have moved. The driver is set when the kernel announces the function, before any other can have it.
func renderRule(targets []target) string {
	text := header

	for _, each := range targets {
		vendor, device, _ := strings.Cut(each.ID, ":")
		text += fmt.Sprintf(`ACTION=="add", SUBSYSTEM=="pci", KERNEL=="%s", ATTR{vendor}=="0x%s", ATTR{device}=="0x%s", ATTR{driver_override}="%s", RUN{builtin}+="kmod load %s"`+"\n",
			each.Address, vendor, device, each.wanted, each.wanted)
	}

	return text
}

// renderUnit gives the unit for functions whose drivers are part of the kernel, and have them before udev runs.
func renderUnit(targets []target) string {
	script := ""

	for _, each := range targets {
		if each.builtIn() {
			vendor, device, _ := strings.Cut(each.ID, ":")
			script += fmt.Sprintf("move %s 0x%s 0x%s %s; ", each.Address, vendor, device, each.wanted)
		}
	}

	if script == "" {
		return ""
	}

	// systemd reads $ as its own, so each is doubled.
	move := `move() { d=/sys/bus/pci/devices/$$1; [ "$$(cat $$d/vendor) $$(cat $$d/device)" = "$$2 $$3" ] || return 0; ` +
		`case "$$(readlink $$d/driver)" in */$$4) return 0 ;; esac; echo $$4 >$$d/driver_override; ` +
		`[ ! -e $$d/driver ] || echo $$1 >$$d/driver/unbind; echo $$1 >/sys/bus/pci/drivers_probe; }; `

	return header + `[Unit]
Description=Reserve GPU functions whose drivers are part of the kernel
DefaultDependencies=no
After=systemd-udev-trigger.service systemd-modules-load.service
Before=sysinit.target display-manager.service libvirtd.service lxd.service incus.service shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
TimeoutStartSec=30
ExecStartPre=-modprobe vfio-pci
ExecStart=/bin/sh -c '` + move + strings.TrimSuffix(script, "; ") + `'
`
}

// renderFiles gives all files that are to be there.
func renderFiles(args Args, boot Boot, targets []target) []ownfile.File {
	if len(targets) == 0 || args.Stage == "none" {
		return nil
	}

	files := []ownfile.File{{Path: rulePath, Content: renderRule(targets), Mode: 0o644}}

	if args.Stage == "initramfs" {
		config := initramfs.RenderConfig(boot.Generator, fileName, header, rulePath, wantedModules(targets))
		if config != nil {
			files = append(files, *config)
		}
	}

	if unit := renderUnit(targets); unit != "" && boot.Systemd {
		files = append(files,
			ownfile.File{Path: unitPath, Content: unit, Mode: 0o644},
			ownfile.File{Path: unitLink, Link: "../" + fileName + ".service"})
	}

	return files
}

// wantedModules are the modules that have to be in an initramfs.
func wantedModules(targets []target) []string {
	var modules []string

	for _, each := range targets {
		if name := hyphens(each.wanted); !slices.Contains(modules, name) {
			modules = append(modules, name)
		}
	}

	slices.Sort(modules)

	if modules == nil {
		modules = []string{vfio.DefaultDriver}
	}

	return append(modules, iommuModule)
}

// ours tells a file that this module wrote.
func ours(file ownfile.File) bool {
	return strings.Contains(file.Content, header) || file.Path == unitLink && file.Link != ""
}
