// SPDX-License-Identifier: Apache-2.0

package gpuvfio

import (
	"fmt"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/initramfs"
	"github.com/thinkube/infra/modules/internal/ownfile"
	"github.com/thinkube/infra/modules/internal/pci"
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
	// display tells that it is to be reserved also where the host's display is on its card.
	display bool
}

// byCard gives the targets of each card together, the cards in the order in which they come first.
func byCard(targets []target) [][]target {
	var cards [][]target

	for _, each := range targets {
		i := slices.IndexFunc(cards, func(card []target) bool { return card[0].Card == each.Card })
		if i < 0 {
			cards = append(cards, nil)
			i = len(cards) - 1
		}

		cards[i] = append(cards[i], each)
	}

	return cards
}

// renderRule gives the udev rule: two lines for each function. It matches by the place in the machine, which says through
// which port of which bridge the function is reached, and by id. An address alone moves to another card when the buses are
// numbered anew, and that card may be the twin which shows the display: where that is, nothing of the card is taken.
//
// The driver is set at the event of every PCI device, before udev loads a module for that one: the module takes all that fits
// it, and so would have the reserved twin of a card whose event comes first. To be set binds nothing
// (Documentation/ABI/testing/sysfs-bus-pci), and vfio-pci may be there already, so at the function's own event the kernel is
// asked to probe. What has a driver is left alone: udev comes too late for that, or somebody has taken it since. Nor is anything
// taken for a driver that the kernel which runs does not have, such as a cloud kernel: nobody would have the card then. It is asked
// before the first is set, and not at the events after that.
func renderRule(targets []target) string {
	const event = `ACTION=="add", SUBSYSTEM=="pci", `

	text := header

	for _, card := range byCard(targets) {
		if !card[0].display {
			for _, address := range mayShow(card) {
				text += renderGuard(address, card[0].Card)
			}
		}

		for _, driver := range driversOf(card) {
			first := card[slices.IndexFunc(card, func(each target) bool { return each.wanted == driver })]
			text += fmt.Sprintf(`SUBSYSTEM=="pci", ACTION=="add", ATTR{[pci/%s]driver_override}!="%s", TEST!="/sys/bus/pci/drivers/%s", PROGRAM!="/bin/sh -c '%s'", GOTO="%s"`+"\n",
				first.Address, driver, driver, hasDriver(driver), label(card[0].Card))
		}

		for _, each := range card {
			vendor, device, _ := strings.Cut(each.ID, ":")
			of := "[pci/" + each.Address + "]"
			text += fmt.Sprintf(event+`TEST=="/sys%s", TEST!="/sys%s/driver", ATTR{%svendor}=="0x%s", ATTR{%sdevice}=="0x%s", ATTR{%sdriver_override}="%s"`+"\n",
				each.Path, each.Path, of, vendor, of, device, of, each.wanted)
		}

		for _, each := range card {
			text += fmt.Sprintf(event+`DEVPATH=="%s", ATTR{driver_override}=="%s", RUN{builtin}+="kmod load %s", RUN+="/bin/sh -c 'echo %%k >/sys/bus/pci/drivers_probe'"`+"\n",
				each.Path, each.wanted, each.wanted)
		}

		text += `LABEL="` + label(card[0].Card) + `"` + "\n"
	}

	return text
}

// label is where a card's lines end.
func label(card string) string { return "thinkube_gpu_vfio_" + card }

// driversOf gives the drivers that functions are to have, each once.
func driversOf(targets []target) []string {
	var drivers []string

	for _, each := range targets {
		if !slices.Contains(drivers, each.wanted) {
			drivers = append(drivers, each.wanted)
		}
	}

	return drivers
}

// hasDriver asks modprobe(8), without loading anything, whether the kernel has a driver; where there is no modprobe, it may. Busybox's
// knows -D too, and no -n.
func hasDriver(driver string) string {
	return "[ ! -x /sbin/modprobe ] || /sbin/modprobe -D -q " + driver
}

// mayShow gives the functions of a card that the host's display may be on: its GPU, and what goes along from other slots,
// since that may be a GPU as well.
func mayShow(card []target) []string {
	all := []string{card[0].Card}

	for _, each := range card {
		if pci.Slot(each.Address) != pci.Slot(each.Card) {
			all = append(all, each.Address)
		}
	}

	return all
}

// renderGuard gives the line that goes past the functions of a card when the host's display is on one.
func renderGuard(address, card string) string {
	return `ATTR{[pci/` + address + `]boot_vga}=="1", GOTO="` + label(card) + `"` + "\n"
}

// renderUnit gives the unit for functions whose drivers are part of the kernel, and have them before udev runs. It has the
// same conditions as the rule.
func renderUnit(targets []target) string {
	script := ""

	var moved []target

	for _, card := range byCard(targets) {
		shown := ""
		if !card[0].display {
			for _, address := range mayShow(card) {
				shown += "shown " + address + " || "
			}
		}

		for _, each := range card {
			if !each.builtIn() {
				continue
			}

			moved = append(moved, each)
			vendor, device, _ := strings.Cut(each.ID, ":")
			script += shown + fmt.Sprintf("move %s /sys%s 0x%s 0x%s %s; ", each.Address, each.Path, vendor, device, each.wanted)
		}
	}

	if script == "" {
		return ""
	}

	// systemd reads $ as its own, so each is doubled.
	functions := `shown() { [ "$$(cat /sys/bus/pci/devices/$$1/boot_vga 2>/dev/null)" = 1 ]; }; ` +
		`move() { d=/sys/bus/pci/devices/$$1; [ "$$(readlink -f $$d) $$(cat $$d/vendor) $$(cat $$d/device)" = "$$2 $$3 $$4" ] || return 0; ` +
		`[ -e /sys/bus/pci/drivers/$$5 ] || return 0; ` +
		`case "$$(readlink $$d/driver)" in */$$5) return 0 ;; esac; echo $$5 >$$d/driver_override; ` +
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
` + loadLines(driversOf(moved)) + `ExecStart=/bin/sh -c '` + functions + strings.TrimSuffix(script, "; ") + `'
`
}

// loadLines has a unit load drivers. One that is part of the kernel cannot be, which is no failure.
func loadLines(drivers []string) string {
	text := ""
	for _, driver := range drivers {
		text += "ExecStartPre=-modprobe " + driver + "\n"
	}

	return text
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
		if name := vfio.ModuleName(each.wanted); !slices.Contains(modules, name) {
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
