// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// kernelPackage names Debian's kernel of the day. Its version changes every few weeks, so that none is pinned.
const kernelPackage = "linux-image-amd64"

// Kernel is a kernel package of Debian, unpacked.
type Kernel struct {
	// Version is the kernel's own, as uname -r says it.
	Version string
	// Deb is the package's file, for who wants to install it in a root.
	Deb string

	dir     string
	builtin []string
}

// cacheDir is where kernel, root and logs of failed tests are kept.
func cacheDir() (string, error) {
	dir := os.Getenv("THINKUBE_VM_CACHE")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(user, "thinkube-tests", "vm")
	}
	return dir, os.MkdirAll(dir, 0o755)
}

// locked does something while no other process does.
func locked(dir, name string, do func() error) error {
	file, err := os.OpenFile(filepath.Join(dir, name+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer file.Close() // which unlocks
	for {
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("locking %q: %w", file.Name(), err)
	}
	return do()
}

// OpenKernel gives the kernel in the cache. Only where there is none, or with fresh, it asks apt for the newest and fetches
// that (some 70 MB). Where that fails, an older one will do.
func OpenKernel(ctx context.Context, fresh bool, log io.Writer) (*Kernel, error) {
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	var kernel *Kernel
	err = locked(cache, "kernel", func() error {
		dirs, err := filepath.Glob(filepath.Join(cache, "kernel-*"))
		if err == nil && (len(dirs) == 0 || fresh) {
			var fetched string
			fetched, err = fetchKernel(ctx, cache, dirs, log)
			switch {
			case err == nil:
				dirs = []string{fetched}
			case len(dirs) > 0:
				fmt.Fprintf(log, "the older kernel in %s is used: %v\n", dirs[0], err)
				err = nil
			}
		}
		if err == nil {
			kernel, err = readKernel(dirs[0])
		}
		return err
	})
	return kernel, err
}

// fetchKernel gets and unpacks the newest kernel unless the cache has it, and removes others. It gives the folder.
func fetchKernel(ctx context.Context, cache string, have []string, log io.Writer) (string, error) {
	name, err := newestKernel(ctx)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "kernel-"+strings.TrimPrefix(name, "linux-image-"))
	if slices.Contains(have, dir) {
		return dir, nil
	}
	fmt.Fprintf(log, "fetching %s and unpacking it to %s\n", name, dir)
	fresh := filepath.Join(cache, ".kernel")
	err = errors.Join(os.RemoveAll(fresh), os.MkdirAll(filepath.Join(fresh, "modules"), 0o755))
	if err == nil {
		_, err = run(ctx, fresh, "apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", name)
	}
	if err == nil {
		err = unpackKernel(ctx, fresh)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, errors.Join(err, os.RemoveAll(fresh)))
	}
	for _, old := range have {
		err = errors.Join(err, os.RemoveAll(old))
	}
	return dir, errors.Join(err, os.Rename(fresh, dir))
}

// run gives what a program prints.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "LC_ALL=C.UTF-8")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), err
}

func newestKernel(ctx context.Context) (string, error) {
	out, err := run(ctx, "", "apt-cache", "depends", kernelPackage)
	if err != nil {
		return "", fmt.Errorf("%w: apt knows no package %s: run apt-get update; only Debian for amd64 has it", err, kernelPackage)
	}
	for line := range strings.Lines(out) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(name, "linux-image-") {
			return name, nil
		}
	}
	return "", fmt.Errorf("package %s depends on no kernel: %q", kernelPackage, out)
}

// unwanted are folders with drivers for what no emulated machine has: three quarters of the package.
var unwanted = []string{
	"/drivers/media/", "/drivers/staging/", "/drivers/net/wireless/", "/drivers/net/ethernet/", "/drivers/infiniband/", "/drivers/iio/", "/drivers/scsi/",
	"/drivers/gpu/drm/amd/", "/drivers/gpu/drm/i915/", "/drivers/gpu/drm/nouveau/", "/drivers/gpu/drm/radeon/", "/drivers/hwmon/",
	"/drivers/input/", "/drivers/platform/", "/drivers/isdn/", "/drivers/comedi/", "/sound/soc/", "/sound/isa/", "/sound/usb/",
}

// wanted are modules in such folders all the same: QEMU's network cards.
var wanted = []string{"/e1000.ko", "/e1000e.ko", "/igb.ko", "/8139cp.ko"}

func isWanted(path string) bool {
	has := func(part string) bool { return strings.Contains(path, part) }
	return strings.Contains(path, ".ko") && (!slices.ContainsFunc(unwanted, has) || slices.ContainsFunc(wanted, has))
}

// unpackKernel takes out of the package what a guest may need: vmlinux, and the modules, all in one folder.
func unpackKernel(ctx context.Context, dir string) error {
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get download left %q: %w", debs, err)
	}
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", debs[0])
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return err
	}
	err = unpackFiles(ctx, tar.NewReader(bufio.NewReaderSize(out, 1<<20)), dir)
	if err != nil {
		_ = cmd.Process.Kill() // it would wait for us for ever
	}
	return errors.Join(err, cmd.Wait())
}

func unpackFiles(ctx context.Context, files *tar.Reader, dir string) error {
	for {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		base := filepath.Base(header.Name)
		switch {
		case header.Typeflag != tar.TypeReg:
		case strings.HasPrefix(base, "vmlinuz-"):
			image, err := io.ReadAll(files)
			if err != nil {
				return err
			}
			if err := writeVmlinux(ctx, image, filepath.Join(dir, "vmlinux")); err != nil {
				return err
			}
		case base == "modules.builtin":
			err = writeFrom(files, filepath.Join(dir, base))
		case isWanted(header.Name):
			err = writeFrom(files, filepath.Join(dir, "modules", base))
		}
		if err != nil {
			return err
		}
	}
}

func writeFrom(from io.Reader, path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, from)
	return errors.Join(err, file.Close())
}

// unpackers are the programs for the compressions that Debian's kernels come in, by how the data begins.
var unpackers = map[string][]string{
	"\xfd7zXZ\x00":     {"xz", "-dc", "--single-stream", "-qq"},
	"\x28\xb5\x2f\xfd": {"zstd", "-dc", "-q"},
}

// writeVmlinux takes the kernel out of the image that boot loaders start. QEMU starts it without: unpacking it in the guest
// takes ten seconds. (Documentation/arch/x86/boot.rst: setup_sects at 0x1f1, payload_offset at 0x248, payload_length at
// 0x24c.)
func writeVmlinux(ctx context.Context, image []byte, path string) error {
	if len(image) < 0x250 {
		return fmt.Errorf("a kernel image of %d bytes is none", len(image))
	}
	sectors := int(image[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	begin := (sectors+1)*512 + int(binary.LittleEndian.Uint32(image[0x248:]))
	end := begin + int(binary.LittleEndian.Uint32(image[0x24c:]))
	if begin > end || end > len(image) {
		return fmt.Errorf("the kernel's payload at %d to %d is not within its image of %d bytes", begin, end, len(image))
	}
	for magic, program := range unpackers {
		if !bytes.HasPrefix(image[begin:end], []byte(magic)) {
			continue
		}
		cmd := exec.CommandContext(ctx, program[0], program[1:]...)
		cmd.Stdin = bytes.NewReader(image[begin:end])
		kernel, err := cmd.Output()
		if !bytes.HasPrefix(kernel, []byte(elf.ELFMAG)) {
			return fmt.Errorf("unpacking the kernel with %s gave no program: %w", program[0], err)
		}
		return os.WriteFile(path, kernel, 0o644) // the payload has bytes behind its end, which xz does not like
	}
	return fmt.Errorf("the kernel's payload is compressed in an unknown way: % x", image[begin:begin+8])
}

func readKernel(dir string) (*Kernel, error) {
	kernel := &Kernel{Version: strings.TrimPrefix(filepath.Base(dir), "kernel-"), dir: dir}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return nil, fmt.Errorf("%s has packages %q: remove it: %w", dir, debs, err)
	}
	kernel.Deb = debs[0]
	text, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	for line := range strings.Lines(string(text)) {
		kernel.builtin = append(kernel.builtin, moduleName(filepath.Base(strings.TrimSpace(line))))
	}
	return kernel, err
}

// moduleName is a module's name without ending, in the one of its two spellings that the kernel shows.
func moduleName(file string) string {
	name, _, _ := strings.Cut(file, ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// module is a kernel module for the guest.
type module struct {
	name, params string
	text         []byte
}

// modules reads modules, each behind those it depends on. A name may have parameters behind a space. What is built into the
// kernel needs no loading; what the kernel does not have at all is an error.
func (k *Kernel) modules(ctx context.Context, names []string) ([]module, error) {
	files, err := filepath.Glob(filepath.Join(k.dir, "modules", "*"))
	if err != nil {
		return nil, err
	}
	paths := map[string]string{}
	for _, file := range files {
		paths[moduleName(filepath.Base(file))] = file
	}
	var (
		loaded []module
		load   func(name, params string) error
		seen   = map[string]bool{}
	)
	load = func(name, params string) error {
		name = moduleName(name)
		if seen[name] {
			return nil
		}
		seen[name] = true
		path := paths[name]
		if path == "" {
			if slices.Contains(k.builtin, name) {
				return nil
			}
			return fmt.Errorf("kernel %s has no module %q (of those that are unpacked)", k.Version, name)
		}
		text, err := readModule(ctx, path)
		if err != nil {
			return err
		}
		depends, err := dependsOn(text)
		if err != nil {
			return fmt.Errorf("kernel module %q: %w", name, err)
		}
		for _, each := range depends {
			if err := load(each, ""); err != nil {
				return fmt.Errorf("%w, which %q needs", err, name)
			}
		}
		loaded = append(loaded, module{name, params, text})
		return nil
	}
	for _, each := range names {
		name, params, _ := strings.Cut(each, " ")
		if err := load(name, params); err != nil {
			return nil, err
		}
	}
	return loaded, nil
}

// readModule gives a module as the kernel takes it.
func readModule(ctx context.Context, path string) ([]byte, error) {
	if filepath.Ext(path) != ".xz" {
		return os.ReadFile(path)
	}
	text, err := run(ctx, "", "xz", "-dc", path)
	return []byte(text), err
}

// dependsOn reads a module's own note, "depends=a,b" (include/linux/module.h). Dependencies that only a file of
// modprobe knows ("softdep") are not there: name such modules.
func dependsOn(text []byte) ([]string, error) {
	file, err := elf.NewFile(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	section := file.Section(".modinfo")
	if section == nil {
		return nil, errors.New("has no section .modinfo")
	}
	info, err := section.Data()
	for note := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(note, "depends="); ok && list != "" {
			return strings.Split(list, ","), err
		}
	}
	return nil, err
}
