// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// ImportTestImage gives the host's LXD a container image under an alias, without any image server: a
// static busybox (which the base image has) as init and as shell.
func (h *Host) ImportTestImage(ctx context.Context, alias string) error {
	busybox, err := os.ReadFile(filepath.Join(h.lab.image.dir, "base", "usr/bin/busybox"))
	if err != nil {
		return err
	}
	archive, err := makeTestImage(busybox)
	if err != nil {
		return fmt.Errorf("making a test image: %w", err)
	}
	quoted := "'" + strings.ReplaceAll(alias, "'", `'\''`) + "'"
	_, err = h.RunInput(ctx, bytes.NewReader(archive),
		"f=$(mktemp) && trap 'rm -f $f' EXIT && cat >$f && lxc image import $f --alias "+quoted)
	return err
}

// makeTestImage is an LXD "unified tarball": metadata.yaml and rootfs/. Its bytes, and so its
// fingerprint, are the same each time.
func makeTestImage(busybox []byte) ([]byte, error) {
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	tape := tar.NewWriter(zip)
	put := func(name string, mode int64, kind byte, link string, data []byte) error {
		header := &tar.Header{Name: name, Mode: mode, Typeflag: kind, Linkname: link, Size: int64(len(data))}
		if err := tape.WriteHeader(header); err != nil {
			return err
		}
		_, err := tape.Write(data)
		return err
	}
	metadata := fmt.Sprintf("architecture: %s\ncreation_date: 1700000000\nproperties:\n  os: busybox\n  description: lab test image\n", arch)
	if err := put("metadata.yaml", 0o644, tar.TypeReg, "", []byte(metadata)); err != nil {
		return nil, err
	}
	for _, dir := range []string{"", "bin", "sbin", "etc", "dev", "proc", "sys", "run", "tmp", "root", "var", "usr"} {
		if err := put("rootfs/"+dir+"/", 0o755, tar.TypeDir, "", nil); err != nil {
			return nil, err
		}
	}
	if err := put("rootfs/bin/busybox", 0o755, tar.TypeReg, "", busybox); err != nil {
		return nil, err
	}
	inittab := []byte("::respawn:/bin/busybox sleep 86400\n::shutdown:/bin/busybox true\n")
	if err := put("rootfs/etc/inittab", 0o644, tar.TypeReg, "", inittab); err != nil {
		return nil, err
	}
	for _, link := range [][2]string{{"bin/sh", "busybox"}, {"bin/ip", "busybox"}, {"bin/ping", "busybox"}, {"sbin/init", "../bin/busybox"}} {
		if err := put("rootfs/"+link[0], 0o777, tar.TypeSymlink, link[1], nil); err != nil {
			return nil, err
		}
	}
	if err := tape.Close(); err != nil {
		return nil, err
	}
	err := zip.Close()
	return out.Bytes(), err
}
