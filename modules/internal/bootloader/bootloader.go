// SPDX-License-Identifier: Apache-2.0

package bootloader

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/thinkube/infra/modules/internal/initramfs"
	"github.com/thinkube/infra/modules/internal/ownfile"
)

// The boot loaders, by the tool that makes their entries.
const (
	GRUB          = "grub"
	Grubby        = "grubby"
	KernelInstall = "kernel-install"
	Kernelstub    = "kernelstub"
	Proxmox       = "proxmox-boot-tool"
)

// Names lists them in the order in which they are looked for: a tool that drives another loader comes before it.
var Names = []string{Proxmox, Kernelstub, Grubby, GRUB, KernelInstall}

// Where they keep things.
const (
	grubConfig        = "/boot/grub/grub.cfg"
	grubFolder        = "/etc/default/grub.d"
	kernelCmdline     = "/etc/kernel/cmdline"
	kernelstubConfig  = "/etc/kernelstub/configuration"
	proxmoxPartitions = "/etc/kernel/proxmox-boot-uuids"
)

// entryFolders are where entries of the Boot Loader Specification are.
var entryFolders = []string{"/boot/loader/entries", "/efi/loader/entries", "/boot/efi/loader/entries"}

// Entry is a line that the host can be started with.
type Entry struct {
	Source string   `json:"source"` // the file that it is in
	Line   []string `json:"line"`
}

// Reader reads a tree.
type Reader struct{ Tree initramfs.Tree }

// Find tells which loaders' tools are in charge of the tree, the likeliest first.
func (r Reader) Find() []string {
	has := map[string]bool{
		Proxmox: r.Tree.Has("proxmox-boot-tool") && r.exists(proxmoxPartitions) && r.exists(kernelCmdline),
		// It is installed on Pop!_OS always, and used where systemd-boot is.
		Kernelstub: r.Tree.Has("kernelstub") && r.exists(kernelstubConfig),
		Grubby:     r.Tree.Has("grubby"),
		GRUB:       r.Tree.Has("grub-mkconfig") && r.exists(grubConfig),
		// systemd brings the program along everywhere; entries tell that it is used.
		KernelInstall: r.Tree.Has("kernel-install") && r.hasEntries(),
	}

	return slices.DeleteFunc(slices.Clone(Names), func(name string) bool { return !has[name] })
}

func (r Reader) exists(path string) bool {
	_, err := os.Stat(r.Tree.Root + path)

	return err == nil
}

func (r Reader) hasEntries() bool {
	return slices.ContainsFunc(entryFolders, func(folder string) bool {
		found, _ := filepath.Glob(r.Tree.Root + folder + "/*.conf")

		return len(found) > 0
	})
}

// DropIn gives the path of the file of additions of that name; empty where a loader has no such place.
func DropIn(loader, name string) string {
	if loader == GRUB {
		// Late in the order, after what distributions and clouds put there.
		return grubFolder + "/95-" + name + ".cfg"
	}

	return ""
}

// LineFile gives the file that holds the line, where that is all there is; empty otherwise.
func LineFile(loader string) string {
	if loader == KernelInstall || loader == Proxmox {
		return kernelCmdline
	}

	return ""
}

// Entries gives the lines that the host can be started with as usual: what is for recovery is left out.
func (r Reader) Entries(ctx context.Context, loader string) ([]Entry, error) {
	switch loader {
	case GRUB:
		return r.grubEntries()
	case Grubby:
		return r.grubbyEntries(ctx)
	case KernelInstall:
		return r.specEntries()
	case Kernelstub:
		return r.kernelstubEntries()
	case Proxmox:
		// The partitions that it fills are not mounted. They are as the file says once the tool has run.
		line, err := os.ReadFile(r.Tree.Root + kernelCmdline)

		return []Entry{{kernelCmdline, Split(string(line))}}, err
	}

	return nil, fmt.Errorf("boot loader %q is not known", loader)
}

var grubLinux = regexp.MustCompile(`(?m)^[ \t]*linux(?:16|efi)?[ \t]+\S+[ \t]+(.*)$`)

func (r Reader) grubEntries() ([]Entry, error) {
	text, err := os.ReadFile(r.Tree.Root + grubConfig)
	if err != nil {
		return nil, err
	}

	var entries []Entry

	for _, match := range grubLinux.FindAllSubmatch(text, -1) {
		line := Split(string(match[1]))
		isLinux := slices.ContainsFunc(line, func(parameter string) bool { return Name(parameter) == "root" })

		if isLinux && !forRecovery(line) {
			entries = append(entries, Entry{grubConfig, line})
		}
	}

	return entries, nil
}

// forRecovery tells the lines that GRUB_CMDLINE_LINUX_DEFAULT is no part of: Debian's and Ubuntu's /etc/grub.d/10_linux
// have one of these words there.
func forRecovery(line []string) bool {
	return slices.Contains(line, "single") || slices.Contains(line, "recovery")
}

// grubbyEntries reads what grubby(8) prints: a line args="..." for each kernel.
func (r Reader) grubbyEntries(ctx context.Context) ([]Entry, error) {
	command, err := r.Tree.Command(ctx, "grubby", "--info=ALL")
	if err != nil {
		return nil, err
	}

	out, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("grubby --info=ALL: %w", err)
	}

	var entries []Entry

	for _, text := range bytes.Split(out, []byte("\n")) {
		line, isArgs := strings.CutPrefix(string(text), `args="`)
		if isArgs {
			entries = append(entries, Entry{"grubby", Split(strings.TrimSuffix(line, `"`))})
		}
	}

	return entries, nil
}

// specEntries reads the entries of https://uapi-group.org/specifications/specs/boot_loader_specification.
func (r Reader) specEntries() ([]Entry, error) {
	var entries []Entry

	for _, folder := range entryFolders {
		paths, err := filepath.Glob(r.Tree.Root + folder + "/*.conf")
		if err != nil {
			return nil, err
		}

		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}

			var line []string

			for _, each := range strings.Split(string(text), "\n") {
				words := strings.Fields(each)
				if len(words) > 0 && words[0] == "options" {
					line = append(line, Split(strings.TrimPrefix(strings.TrimSpace(each), "options"))...)
				}
			}

			entries = append(entries, Entry{strings.TrimPrefix(path, r.Tree.Root), line})
		}
	}

	return entries, nil
}

// kernelstubEntries reads kernelstub's own configuration.
func (r Reader) kernelstubEntries() ([]Entry, error) {
	text, err := os.ReadFile(r.Tree.Root + kernelstubConfig)
	if err != nil {
		return nil, err
	}

	var config struct {
		User struct {
			Options []string `json:"kernel_options"`
		} `json:"user"`
	}

	err = json.Unmarshal(text, &config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kernelstubConfig, err)
	}

	return []Entry{{kernelstubConfig, config.User.Options}}, nil
}

// Refresh has the entries made anew from the files. For loaders that are changed by their tool alone, add and remove are
// what it is told.
func (r Reader) Refresh(ctx context.Context, loader string, add, remove []string) error {
	switch loader {
	case GRUB:
		return r.refreshGRUB(ctx)
	case Grubby:
		return r.Tree.Run(ctx, "grubby", grubbyArgs(add, remove)...)
	case KernelInstall:
		return r.kernelInstall(ctx)
	case Kernelstub:
		return r.kernelstub(ctx, add, remove)
	case Proxmox:
		return r.Tree.Run(ctx, "proxmox-boot-tool", "refresh")
	}

	return fmt.Errorf("boot loader %q is not known", loader)
}

func grubbyArgs(add, remove []string) []string {
	args := []string{"--update-kernel=ALL"}

	if len(add) > 0 {
		args = append(args, "--args="+strings.Join(add, " "))
	}

	if len(remove) > 0 {
		args = append(args, "--remove-args="+strings.Join(remove, " "))
	}

	return args
}

func (r Reader) kernelstub(ctx context.Context, add, remove []string) error {
	for _, each := range []struct {
		flag       string
		parameters []string
	}{{"--delete-options", remove}, {"--add-options", add}} {
		if len(each.parameters) == 0 {
			continue
		}

		err := r.Tree.Run(ctx, "kernelstub", each.flag, strings.Join(each.parameters, " "))
		if err != nil {
			return err
		}
	}

	return nil
}

// refreshGRUB makes grub.cfg anew, and puts the old one back when that fails.
func (r Reader) refreshGRUB(ctx context.Context) error {
	// The second is what grub-mkconfig writes first, and leaves behind when it fails.
	var before []ownfile.Change

	for _, path := range []string{grubConfig, grubConfig + ".new"} {
		file, err := ownfile.Read(r.Tree.Root, path)
		if err != nil {
			return err
		}

		before = append(before, ownfile.Change{Path: path, Before: file})
	}

	err := r.grubMkconfig(ctx)
	if err != nil {
		err = errors.Join(err, ownfile.Writer{Root: r.Tree.Root}.Undo(before))
	}

	return err
}

// grubMkconfig writes the menu in the system's language, as it does when an administrator calls it.
func (r Reader) grubMkconfig(ctx context.Context) error {
	command, err := r.Tree.Command(ctx, "grub-mkconfig", "-o", grubConfig)
	if err != nil {
		return err
	}

	isLocale := func(setting string) bool {
		return strings.HasPrefix(setting, "LANG") || strings.HasPrefix(setting, "LC_")
	}
	command.Env = slices.DeleteFunc(command.Env, isLocale)

	for _, path := range []string{"/etc/locale.conf", "/etc/default/locale"} {
		text, err := os.ReadFile(r.Tree.Root + path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}

		for _, line := range strings.Split(string(text), "\n") {
			if setting := strings.ReplaceAll(strings.TrimSpace(line), `"`, ""); isLocale(setting) {
				command.Env = append(command.Env, setting)
			}
		}
	}

	return initramfs.RunToEnd(command)
}

// kernelInstall makes the entries of all installed kernels anew.
func (r Reader) kernelInstall(ctx context.Context) error {
	releases, err := os.ReadDir(r.Tree.Root + "/lib/modules")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}

	for _, release := range releases {
		for _, image := range []string{"/lib/modules/" + release.Name() + "/vmlinuz", "/boot/vmlinuz-" + release.Name()} {
			if !r.exists(image) {
				continue
			}

			err = r.Tree.Run(ctx, "kernel-install", "add", release.Name(), image)
			if err != nil {
				return err
			}

			break
		}
	}

	return nil
}
