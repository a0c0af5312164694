// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/thinkube/infra/tests/vm/wire"
)

// archive writes the format of an initramfs, "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	out   bytes.Buffer
	dirs  map[string]bool
	inode int
}

// Kinds of files, as in the mode of stat(2).
const (
	kindDir  = 0o040000
	kindFile = 0o100000
	kindChar = 0o020000
	kindLink = 0o120000
)

func (a *archive) entry(name string, mode, major, minor int, data []byte) {
	a.inode++
	fmt.Fprintf(&a.out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
	a.pad()
	a.out.Write(data)
	a.pad()
}

func (a *archive) pad() {
	for a.out.Len()%4 != 0 {
		a.out.WriteByte(0)
	}
}

func (a *archive) dir(name string) {
	name = strings.Trim(name, "/")
	if name == "" || name == "." || a.dirs[name] {
		return
	}
	a.dir(path.Dir(name))
	a.dirs[name] = true
	a.entry(name, kindDir|0o755, 0, 0, nil)
}

func (a *archive) file(name string, mode fs.FileMode, data []byte) {
	name = strings.Trim(name, "/")
	a.dir(path.Dir(name))
	a.entry(name, kindFile|int(mode.Perm()), 0, 0, data)
}

func (a *archive) link(name, to string) {
	name = strings.Trim(name, "/")
	a.dir(path.Dir(name))
	a.entry(name, kindLink|0o777, 0, 0, []byte(to))
}

func (a *archive) bytes() []byte {
	a.entry("TRAILER!!!", 0, 0, 0, nil)
	return a.out.Bytes()
}

// makeInitramfs packs init, its modules, and the test's files.
func makeInitramfs(ctx context.Context, kernel *Kernel, machine Machine, agent string) ([]byte, error) {
	packed := &archive{dirs: map[string]bool{}}
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run", "/tmp", "/root", "/etc"} {
		packed.dir(dir)
	}
	packed.entry("dev/console", kindChar|0o600, 5, 1, nil)
	program, err := os.ReadFile(agent)
	if err != nil {
		return nil, err
	}
	packed.file("/init", 0o755, program)
	busybox, err := os.ReadFile(busyboxFile)
	if err != nil {
		return nil, err
	}
	packed.file("/bin/busybox", 0o755, busybox)

	modules, err := kernel.modules(ctx, machine.modules())
	if err != nil {
		return nil, err
	}
	todo := wire.Init{Root: machine.rootDevice()}
	for _, each := range modules {
		name := "/thinkube/modules/" + each.name + ".ko"
		packed.file(name, 0o644, each.text)
		todo.Modules = append(todo.Modules, strings.TrimSpace(name+" "+each.params))
	}
	text, err := json.Marshal(todo)
	if err != nil {
		return nil, err
	}
	packed.file(wire.InitFile, 0o644, text)

	folder := ""
	if machine.Root != "" {
		folder = wire.FilesFolder
	}
	for _, name := range slices.Sorted(maps.Keys(machine.Files)) {
		if !path.IsAbs(name) {
			return nil, fmt.Errorf("file %q: must have an absolute path in the guest", name)
		}
		file := machine.Files[name]
		if file.Link != "" {
			packed.link(folder+name, file.Link)
			continue
		}
		if file.From != "" {
			file.Data, err = os.ReadFile(file.From)
			if err != nil {
				return nil, err
			}
		}
		if file.Mode == 0 {
			file.Mode = 0o644
		}
		packed.file(folder+name, file.Mode, file.Data)
	}
	return packed.bytes(), nil
}
