// SPDX-License-Identifier: Apache-2.0

package farm

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// Program is a program as the collection carries it.
type Program struct {
	Module string // the module that it is for; "" in the bundle
	Path   string // unpacked
	Packed []byte
	SHA256 string
}

// Build builds a Go package for this machine as the bundle is built.
func Build(source, path string) (Program, error) {
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")

	output, err := build.CombinedOutput()
	if err != nil {
		return Program{}, fmt.Errorf("building %s: %w: %s", source, err, output)
	}

	return Pack(path)
}

// Pack gives a program that was built as the collection carries it.
func Pack(path string) (Program, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Program{}, err
	}

	var packed bytes.Buffer

	writer := gzip.NewWriter(&packed)
	_, err = writer.Write(text)
	err = errors.Join(err, writer.Close())
	sum := sha256.Sum256(text)

	return Program{Path: path, Packed: packed.Bytes(), SHA256: hex.EncodeToString(sum[:])}, err
}

// Name is what hosts call the program.
func (p Program) Name() string { return p.kind() + "-" + p.SHA256[:32] }

func (p Program) kind() string {
	module := p.Module
	if module != "" {
		module += "_"
	}

	return "thinkube_" + module + "linux_" + runtime.GOARCH
}

// WriteCollection makes a collections folder of the checkout's plugins and meta, with other programs in libexec, and
// modules named lxd_info and gpu_info to call them by. checkout is its root; no program makes an empty libexec.
func WriteCollection(folder, checkout string, programs ...Program) error {
	root := filepath.Join(folder, "ansible_collections/thinkube/infra")

	err := errors.Join(
		os.MkdirAll(filepath.Join(root, "plugins/modules"), 0o755),
		os.MkdirAll(filepath.Join(root, "libexec"), 0o755),
		command("cp", "-r", filepath.Join(checkout, "plugins/action"), filepath.Join(checkout, "plugins/plugin_utils"), filepath.Join(root, "plugins")),
		command("cp", "-r", filepath.Join(checkout, "meta"), root),
		os.WriteFile(filepath.Join(root, "plugins/modules/lxd_info.py"), []byte("# what it is called by\n"), 0o644),
		os.WriteFile(filepath.Join(root, "plugins/modules/gpu_info.py"), []byte("# what it is called by\n"), 0o644),
	)

	for _, program := range programs {
		name := filepath.Join(root, "libexec", program.kind())
		err = errors.Join(err,
			os.WriteFile(name+".gz", program.Packed, 0o644),
			os.WriteFile(name+".sha256", []byte(program.SHA256+"\n"), 0o644),
		)
	}

	return err
}
