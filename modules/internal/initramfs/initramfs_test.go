// SPDX-License-Identifier: Apache-2.0

package initramfs

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/initramfstest"
)

var archive = initramfstest.Archive

func gzipped(t *testing.T, plain []byte) []byte {
	t.Helper()

	var out bytes.Buffer

	writer := gzip.NewWriter(&out)
	_, err := writer.Write(plain)
	require.NoError(t, err)
	require.NoError(t, writer.Close())

	return out.Bytes()
}

// compressed runs a program of the machine.
func compressed(t *testing.T, plain []byte, program string, args ...string) []byte {
	t.Helper()

	path, err := exec.LookPath(program)
	if err != nil {
		if os.Getenv("CI") == "true" {
			require.NoError(t, err)
		}

		t.Skip(err)
	}

	command := exec.Command(path, args...)
	command.Stdin = bytes.NewReader(plain)

	out, err := command.Output()
	require.NoError(t, err)

	return out
}

var content = []string{
	"etc", "", "kernel/x86/microcode/GenuineIntel.bin", "12345",
	"usr/lib/udev/rules.d/05-mine.rules", "rule\n", "home/05-mine.rules", "another\n",
	"usr/lib/modules/6.1.0/kernel/drivers/vfio/pci/vfio-pci.ko.xz", "elf", "usr/lib/modules/6.1.0/vfio_iommu_type1.ko", "elf",
}

func look(t *testing.T, image []byte) Image {
	t.Helper()

	tree := Tree{}
	path := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(path, image, 0o600))

	read := Image{Path: path}
	require.NoError(t, tree.Look(context.Background(), &read, []string{"05-mine.rules", "06-none.rules"}, []string{"vfio-pci", "vfio-iommu-type1", "none"}))

	return read
}

func TestLookReadsPlainAndCompressedArchives(t *testing.T) {
	early := archive("kernel/x86/microcode/AuthenticAMD.bin", "microcode")
	padded := append(append([]byte{}, early...), make([]byte, 512-len(early)%512)...)
	main := archive(content...)

	for name, image := range map[string]func(t *testing.T) []byte{
		"plain": func(*testing.T) []byte { return main },
		"gzip":  func(t *testing.T) []byte { return gzipped(t, main) },
		"early and plain and gzip": func(t *testing.T) []byte {
			return bytes.Join([][]byte{padded, padded, gzipped(t, main)}, nil)
		},
		"early and zstd": func(t *testing.T) []byte { return append(bytes.Clone(padded), compressed(t, main, "zstd", "-cq")...) },
		"xz":             func(t *testing.T) []byte { return compressed(t, main, "xz", "-cq", "--check=crc32") },
		"lz4 legacy":     func(t *testing.T) []byte { return compressed(t, main, "lz4", "-clq") },
	} {
		t.Run(name, func(t *testing.T) {
			read := look(t, image(t))
			assert.Equal(t, map[string]string{"05-mine.rules": "rule\n"}, read.Rules)
			assert.Equal(t, []string{"vfio-iommu-type1", "vfio-pci"}, read.Modules)
		})
	}
}

func TestLookRefusesWhatItDoesNotUnderstand(t *testing.T) {
	whole := archive(content...)

	for name, image := range map[string][]byte{
		"empty": nil, "zeros": make([]byte, 4096), "text": []byte("no archive at all"), "cut": whole[:len(whole)-200], "cut in a header": whole[:60],
		"broken gzip": gzipped(t, whole)[:100], "broken after the first": append(bytes.Clone(whole), "rubbish!"...),
	} {
		path := filepath.Join(t.TempDir(), "image")
		require.NoError(t, os.WriteFile(path, image, 0o600))
		assert.Error(t, Tree{}.Look(context.Background(), &Image{Path: path}, nil, nil), name)
	}
}

func FuzzWalk(f *testing.F) {
	f.Add(archive(content...))
	f.Add(archive())
	f.Fuzz(func(_ *testing.T, image []byte) {
		none := func(string, io.Reader) (io.ReadCloser, error) { return nil, errors.New("no programs here") }
		_ = walk(bytes.NewReader(image), none, func(string) bool { return true }, func(string, []byte) {})
	})
}

func TestKeepPutsAnImageBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "initrd.img-1")
	require.NoError(t, os.WriteFile(path, []byte("old"), 0o600))

	saved, err := Tree{}.keep(Image{Path: path})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path+".new", []byte("new"), 0o600))
	require.NoError(t, os.Rename(path+".new", path))
	require.NoError(t, Tree{}.restore(saved))
	Tree{}.drop(saved)

	text, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, "old", string(text))

	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestLeftoversOfARunThatWasKilled(t *testing.T) {
	tree := Tree{Root: t.TempDir()}
	require.NoError(t, os.Mkdir(tree.Root+"/boot", 0o755))

	for _, name := range []string{"initrd.img-1", ".thinkube-initrd.img-1", "initramfs-2.img.thinkube-new", ".thinkube", "vmlinuz-1"} {
		require.NoError(t, os.WriteFile(tree.Root+"/boot/"+name, nil, 0o600))
	}

	found, err := tree.Leftovers()
	require.NoError(t, err)
	assert.Equal(t, []string{"/boot/.thinkube-initrd.img-1", "/boot/initramfs-2.img.thinkube-new"}, found)
}

// TestWhatCannotBePutBackIsKept: the saved image is the only one that is known to be good.
func TestWhatCannotBePutBackIsKept(t *testing.T) {
	root := t.TempDir()
	for path, content := range map[string]string{"/usr/share/initramfs-tools/hook-functions": "", "/usr/sbin/update-initramfs": "", "/boot/initrd.img-1": "old"} {
		require.NoError(t, os.MkdirAll(filepath.Dir(root+path), 0o755))
		require.NoError(t, os.WriteFile(root+path, []byte(content), 0o600))
	}

	tree := Tree{Root: root, Tool: func(string, ...string) ([]byte, error) {
		return nil, errors.Join(os.Remove(root+"/boot/initrd.img-1"), os.WriteFile(root+"/boot/initrd.img-1", []byte("bad"), 0o600))
	}}
	images := []Image{{Path: "/boot/initrd.img-1", Release: "1"}}
	refuse := func(context.Context, *Image) error { return errors.New("refused") }

	require.ErrorContains(t, tree.Remake(t.Context(), images, refuse), "refused")

	text, err := os.ReadFile(root + "/boot/initrd.img-1")
	require.NoError(t, err)
	assert.Equal(t, "old", string(text))
	assert.NoFileExists(t, root+"/boot/.thinkube-initrd.img-1")

	tree.Fault = func(path string) error {
		if path == root+"/boot/initrd.img-1" {
			return errors.New("no")
		}

		return nil
	}

	require.ErrorContains(t, tree.Remake(t.Context(), images, refuse), `the old initramfs is "`+root+`/boot/.thinkube-initrd.img-1"`)

	text, err = os.ReadFile(root + "/boot/.thinkube-initrd.img-1")
	require.NoError(t, err)
	assert.Equal(t, "old", string(text))
}
