// SPDX-License-Identifier: Apache-2.0

// Package initramfs looks into a host's initramfs images, and has them made again by whoever makes them: initramfs-tools
// or dracut. An image is judged by what is in it, not by its time: that tells a stale one whatever made it.
package initramfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Who makes images.
const (
	InitramfsTools = "initramfs-tools"
	Dracut         = "dracut"
)

// Tree is a system: the host's own, or one below Root that is not running, such as one being installed.
type Tree struct {
	Root string
	// Fault is called before each write and removal, for tests that have it fail.
	Fault func(path string) error
	// Tool runs in place of the tree's programs and gives what they say; in tests, which have none. Decompressors are real.
	Tool func(program string, args ...string) ([]byte, error)
}

func (t Tree) fault(path string) error {
	if t.Fault == nil {
		return nil
	}

	return t.Fault(path)
}

// Image is one initramfs.
type Image struct {
	Path    string `json:"path"`
	Release string `json:"release"` // of the kernel that it is for
	// Rules are the udev rules that were asked for and are in it, by file name.
	Rules map[string]string `json:"rules,omitempty"`
	// Modules are the kernel modules that were asked for and are in it.
	Modules []string `json:"modules,omitempty"`
	// Lacking are those of them that its kernel does not have at all, so that no image of it can.
	Lacking []string `json:"lacking,omitempty"`
	// Problem is why it cannot be read, such as an image that was cut off; empty when it was.
	Problem string `json:"problem,omitempty"`
}

// Generator tells who makes the tree's images; empty when nobody does.
func (t Tree) Generator() string {
	// dracut can come with an update-initramfs of its own, but not with this.
	if t.exists("/usr/share/initramfs-tools/hook-functions") {
		return InitramfsTools
	}

	if t.exists("/usr/bin/dracut") || t.exists("/bin/dracut") {
		return Dracut
	}

	return ""
}

func (t Tree) exists(path string) bool {
	_, err := os.Lstat(t.Root + path)

	return err == nil
}

// Images finds the images of all kernels whose modules are installed: initrd.img-RELEASE as Debian has it, and
// initramfs-RELEASE.img as others do.
func (t Tree) Images() ([]Image, error) {
	releases, err := os.ReadDir(t.Root + "/lib/modules")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}

	var images []Image

	for _, release := range releases {
		for _, path := range []string{"/boot/initrd.img-" + release.Name(), "/boot/initramfs-" + release.Name() + ".img"} {
			if t.exists(path) {
				images = append(images, Image{Path: path, Release: release.Name()})
			}
		}
	}

	return images, nil
}

// Look reads which of the udev rules and kernel modules are in an image. Modules are named as files, vfio-pci.ko.
func (t Tree) Look(ctx context.Context, image *Image, rules, modules []string) error {
	file, err := os.Open(t.Root + image.Path)
	if err != nil {
		return err
	}

	defer func() { _ = file.Close() }()

	image.Rules, image.Modules = nil, nil

	isRule := func(name string) bool {
		return slices.Contains(rules, path.Base(name)) && strings.HasSuffix(path.Dir(name), "udev/rules.d")
	}

	err = walk(file, t.opener(ctx), isRule, func(name string, content []byte) {
		if isRule(name) {
			if image.Rules == nil {
				image.Rules = map[string]string{}
			}

			image.Rules[path.Base(name)] = string(content)
		}

		if module := moduleName(name); slices.Contains(modules, module) && !slices.Contains(image.Modules, module) {
			image.Modules = append(image.Modules, module)
		}
	})
	if err != nil {
		return fmt.Errorf("reading initramfs %q: %w", image.Path, err)
	}

	slices.Sort(image.Modules)

	return nil
}

// moduleName gives the name of a module's file without its path and compression, with hyphens as the kernel's tools take
// them for underscores too; empty for other files.
func moduleName(name string) string {
	base, _, isModule := strings.Cut(path.Base(name), ".ko")
	if !isModule {
		return ""
	}

	return strings.ReplaceAll(base, "_", "-")
}

// BuiltIn tells whether a module is part of a kernel.
func (t Tree) BuiltIn(release, module string) (bool, error) {
	text, err := os.ReadFile(filepath.Join(t.Root, "/lib/modules", release, "modules.builtin"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}

	for _, line := range strings.Split(string(text), "\n") {
		if moduleName(line) == module {
			return true, nil
		}
	}

	return false, err
}

// Installed gives the names of the modules that are installed for a kernel, with hyphens; known is false where depmod(8) has
// not written them down.
func (t Tree) Installed(release string) (names map[string]bool, known bool, err error) {
	text, err := os.ReadFile(filepath.Join(t.Root, "/lib/modules", release, "modules.dep"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}

	names = map[string]bool{}

	for line := range strings.Lines(string(text)) {
		path, _, _ := strings.Cut(line, ":")
		names[moduleName(path)] = true
	}

	return names, err == nil, err
}

// decompressors are the programs that read what Go's library cannot; whoever makes such images has them.
var decompressors = map[string][]string{
	"zstd": {"zstd", "-dcq"}, "xz": {"xz", "-dcq"}, "lz4": {"lz4", "-dcq"}, "bzip2": {"bzip2", "-dcq"}, "lzma": {"xz", "--format=lzma", "-dcq"},
	"lzop": {"lzop", "-dcq"},
}

func (t Tree) opener(ctx context.Context) opener {
	return func(kind string, from io.Reader) (io.ReadCloser, error) {
		if kind == "gzip" {
			return openGzip(from)
		}

		words := decompressors[kind]

		command, err := t.Command(ctx, words[0], words[1:]...)
		if err != nil {
			return nil, fmt.Errorf("it is compressed with %s: %w", kind, err)
		}

		return startReading(command, from)
	}
}

// reading is the output of a program.
type reading struct {
	io.ReadCloser
	command *exec.Cmd
	errors  *bytes.Buffer
	ended   bool
}

func startReading(command *exec.Cmd, from io.Reader) (io.ReadCloser, error) {
	out, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}

	read := &reading{ReadCloser: out, command: command, errors: &bytes.Buffer{}}
	command.Stdin, command.Stderr = from, read.errors

	return read, command.Start()
}

// Read notes the end: a program that is stopped before it fails, which then means nothing.
func (r *reading) Read(buffer []byte) (int, error) {
	n, err := r.ReadCloser.Read(buffer)
	r.ended = r.ended || errors.Is(err, io.EOF)

	return n, err
}

// Close waits for the program.
func (r *reading) Close() error {
	_ = r.ReadCloser.Close()

	err := r.command.Wait()
	if err != nil && r.ended {
		return fmt.Errorf("%s: %w: %s", r.command.Path, err, bytes.TrimSpace(r.errors.Bytes()))
	}

	return nil
}

// folders are where programs are; services often have no PATH to speak of.
var folders = []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"}

// Has tells whether the tree has a program.
func (t Tree) Has(program string) bool {
	return slices.ContainsFunc(folders, func(folder string) bool { return t.exists(folder + "/" + program) })
}

// Command prepares a program of the tree, which runs inside of it.
func (t Tree) Command(ctx context.Context, program string, args ...string) (*exec.Cmd, error) {
	for _, folder := range folders {
		if !t.exists(folder + "/" + program) {
			continue
		}

		command := exec.CommandContext(ctx, folder+"/"+program, args...)
		command.Env = append(os.Environ(), "PATH="+strings.Join(folders, ":"), "LC_ALL=C.UTF-8")
		command.Dir = "/"

		if t.Root != "" {
			command.SysProcAttr = &syscall.SysProcAttr{Chroot: t.Root}
		}

		return command, nil
	}

	return nil, fmt.Errorf("there is no program %s", program)
}

// Run runs a program of the tree to its end.
func (t Tree) Run(ctx context.Context, program string, args ...string) error {
	command, err := t.Command(ctx, program, args...)
	if err != nil {
		return err
	}

	return t.RunToEnd(command)
}

// RunToEnd runs a program that Command has prepared. The error has the last lines that it said.
func (t Tree) RunToEnd(command *exec.Cmd) error {
	out, err := t.tool(command, command.CombinedOutput)
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(command.Path), strings.Join(command.Args[1:], " "), err, tail(out))
	}

	return nil
}

// Output runs a program of the tree and gives what it prints.
func (t Tree) Output(ctx context.Context, program string, args ...string) ([]byte, error) {
	command, err := t.Command(ctx, program, args...)
	if err != nil {
		return nil, err
	}

	out, err := t.tool(command, command.Output)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", program, strings.Join(args, " "), err)
	}

	return out, nil
}

func (t Tree) tool(command *exec.Cmd, run func() ([]byte, error)) ([]byte, error) {
	if t.Tool != nil {
		return t.Tool(filepath.Base(command.Path), command.Args[1:]...)
	}

	return run()
}

// tail gives the last lines of what a program said, which is where it says why it failed.
func tail(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")

	return strings.Join(lines[max(0, len(lines)-5):], "; ")
}
