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
type Reader struct {
	Tree initramfs.Tree
	// Sys is the folder of the sysfs of the machine that the tree runs on; empty for a tree that does not run.
	Sys string
}

// Find tells which loaders' tools are in charge of the tree, the likeliest first.
func (r Reader) Find(ctx context.Context) ([]string, error) {
	// GRUB's files stay where systemd-boot has come after it.
	bySystemd := strings.HasPrefix(r.started(), "systemd-boot")

	entries, err := r.specEntries()
	if err != nil {
		return nil, err
	}

	has := map[string]bool{
		Proxmox: r.byProxmox() && r.exists(kernelCmdline) && r.proxmoxHasLine(ctx, bySystemd),
		// It is installed on Pop!_OS always, and used where systemd-boot is.
		Kernelstub: r.Tree.Has("kernelstub") && r.exists(kernelstubConfig),
		Grubby:     r.Tree.Has("grubby"),
		GRUB:       r.Tree.Has("grub-mkconfig") && r.exists(grubConfig) && !bySystemd,
		// systemd brings the program along everywhere; entries tell that it is used.
		KernelInstall: r.Tree.Has("kernel-install") && len(entries) > 0,
	}

	return slices.DeleteFunc(slices.Clone(Names), func(name string) bool { return !has[name] }), nil
}

// byProxmox tells whether Proxmox's tool fills the partitions that the host is started from.
func (r Reader) byProxmox() bool {
	return r.Tree.Has("proxmox-boot-tool") && r.exists(proxmoxPartitions)
}

// proxmoxHasLine tells whether the line is that of /etc/kernel/cmdline, which systemd-boot is given. With BIOS and with secure
// boot the tool installs GRUB, which has its parameters from /etc/default. The tool says which it is, for each partition
// ("ABCD-1234 is configured with: grub (versions: ...)"); where it cannot, as an old one or in a tree that does not run, the line is
// believed unless something else has started the host.
func (r Reader) proxmoxHasLine(ctx context.Context, bySystemd bool) bool {
	out, err := r.Tree.Output(ctx, "proxmox-boot-tool", "status")
	grub, systemd := false, false

	for line := range strings.Lines(string(out)) {
		_, with, _ := strings.Cut(line, " is configured with: ")
		grub = grub || strings.Contains(with, "grub")
		systemd = systemd || strings.Contains(with, "uefi")
	}

	if err != nil || grub == systemd {
		return bySystemd || r.Sys == ""
	}

	return systemd
}

func (r Reader) exists(path string) bool {
	_, err := os.Stat(r.Tree.Root + path)

	return err == nil
}

// loaderInfo is where a boot loader says what it is, after four bytes of flags, in UTF-16
// (https://systemd.io/BOOT_LOADER_INTERFACE). Those that say nothing are older ones, or there is no UEFI.
const loaderInfo = "/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

// started gives what the loader that started this machine calls itself, such as "systemd-boot 252"; empty when it does not
// say, or the tree does not run.
func (r Reader) started() string {
	if r.Sys == "" {
		return ""
	}

	text, err := os.ReadFile(r.Sys + loaderInfo)
	if err != nil || len(text) < 4 {
		return ""
	}

	return strings.ReplaceAll(string(text[4:]), "\x00", "") // its names are of ASCII letters
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

var (
	grubLinux = regexp.MustCompile(`(?m)^[ \t]*linux(?:16|efi)?[ \t]+\S+[ \t]+(.*)$`)
	// What each of its scripts writes, grub-mkconfig puts between such lines.
	grubSection = regexp.MustCompile(`(?ms)^### BEGIN (\S+) ###$(.*?)^### END \S+ ###$`)
	// Debian's, Ubuntu's for ZFS, and Xen's; others have the lines of other systems, or of the administrator.
	grubOwn = regexp.MustCompile(`/(10|20)_linux[^/]*$`)
)

// grubEntries leaves out what GRUB_CMDLINE_LINUX_DEFAULT is no part of: other systems, and what somebody wrote by hand.
func (r Reader) grubEntries() ([]Entry, error) {
	text, err := os.ReadFile(r.Tree.Root + grubConfig)
	if err != nil {
		return nil, err
	}

	if sections := grubSection.FindAllSubmatch(text, -1); sections != nil {
		text = nil

		for _, section := range sections {
			if grubOwn.Match(section[1]) {
				text = append(text, section[2]...)
			}
		}
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
	out, err := r.Tree.Output(ctx, "grubby", "--info=ALL")
	if err != nil {
		return nil, err
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

// specEntries reads the entries of https://uapi-group.org/specifications/specs/boot_loader_specification that kernel-install
// makes for this system: others on the same partition are another system's, or somebody's own.
func (r Reader) specEntries() ([]Entry, error) {
	tokens, machine, err := r.entryTokens()
	if err != nil {
		return nil, err
	}

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

			fields := parseEntry(string(text))
			ours := slices.ContainsFunc(tokens, func(token string) bool { return strings.HasPrefix(filepath.Base(path), token+"-") })

			if id := fields["machine-id"]; fields["linux"] == "" || !ours || id != "" && machine != "" && id != machine {
				continue
			}

			entries = append(entries, Entry{strings.TrimPrefix(path, r.Tree.Root), Split(fields["options"])})
		}
	}

	return entries, nil
}

// parseEntry gives the fields of an entry. One that comes more than once is joined.
func parseEntry(text string) map[string]string {
	fields := map[string]string{}

	for line := range strings.Lines(text) {
		if words := strings.Fields(line); len(words) > 1 {
			value := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), words[0]))
			fields[words[0]] = strings.TrimSpace(fields[words[0]] + " " + value)
		}
	}

	return fields
}

// entryTokens gives what the names of this system's entries begin with, as kernel-install(8) picks it, and the machine's id.
func (r Reader) entryTokens() (tokens []string, machine string, err error) {
	machine, err = r.firstLine("/etc/machine-id")
	if err != nil {
		return nil, "", err
	}

	token, err := r.firstLine("/etc/kernel/entry-token")
	if token != "" || err != nil {
		return []string{token}, machine, err
	}

	tokens = []string{"Default"}
	if machine != "" {
		tokens = append(tokens, machine)
	}

	text, err := os.ReadFile(r.Tree.Root + "/etc/os-release")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, "", err
	}

	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if value = strings.Trim(value, `"'`); (name == "ID" || name == "IMAGE_ID") && value != "" {
			tokens = append(tokens, value)
		}
	}

	return tokens, machine, nil
}

// firstLine gives a file's first line; empty where there is no such file.
func (r Reader) firstLine(path string) (string, error) {
	text, err := os.ReadFile(r.Tree.Root + path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}

	line, _, _ := strings.Cut(string(text), "\n")

	return strings.TrimSpace(line), err
}

// vendorCmdline is the line that a system comes with, which kernel-install takes where an administrator wrote none.
const vendorCmdline = "/usr/lib/kernel/cmdline"

// Base gives the line that kernel-install begins with where there is no file of the administrator's: the system's own, or
// what the running kernel was started with (90-loaderentry.install). Empty when the tree does not run and has none.
func (r Reader) Base(running []string) ([]string, error) {
	text, err := os.ReadFile(r.Tree.Root + vendorCmdline)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return Split(string(text)), err
	}

	if r.Sys == "" {
		return nil, nil
	}

	return slices.DeleteFunc(slices.Clone(running), func(parameter string) bool {
		return Name(parameter) == "BOOT_IMAGE" || Name(parameter) == "initrd"
	}), nil
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

// ErrPartly marks a failure after which some of the places that the host is started from may have the new entries.
var ErrPartly = errors.New("not all entries could be made")

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
	if err == nil && r.byProxmox() {
		// The partitions that it fills have files of their own.
		err = r.Tree.Run(ctx, "proxmox-boot-tool", "refresh")
		if err != nil {
			err = fmt.Errorf("%w: %w", ErrPartly, err)
		}
	}

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

	return r.Tree.RunToEnd(command)
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
