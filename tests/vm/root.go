// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/lab"
)

//go:embed root.sh
var recipe []byte

// Debian gives the disk of a Debian with systemd, udev, networkd, sshd and Python, for Machine.Root: the lab's base image
// with what a machine needs beside. It is made once and cached (some 20 s, and the lab's image before that). Making it
// needs root, since a Debian has files of many users.
func Debian(t testing.TB) string {
	t.Helper()
	Need(t)
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root: makes a Debian")
		}
		t.Skip("needs root: makes a Debian")
	}
	disk, err := debian(t.Context())
	require.NoError(t, err)
	return disk
}

func debian(ctx context.Context) (string, error) {
	base, err := lab.BaseImage(ctx, os.Stderr)
	if err != nil {
		return "", err
	}
	return disk(ctx, "root", lean, base)
}

// How much of a disk's systemd starts: what a test of the network needs, or all that a host has at work.
const (
	lean  = "lean"
	whole = "whole"
)

// disk gives the file of a disk with what folders hold together, the topmost first, made ready to be a machine's root.
func disk(ctx context.Context, name, starts string, folders ...string) (string, error) {
	made, err := layer(ctx, name, recipe, strings.Join(folders, ":"), starts)
	return filepath.Join(made, "disk"), err
}

// layer gives the folder of what a recipe makes from its arguments: a script, which gets an empty folder as its last one. It
// is made once and cached; another recipe, or other arguments, make another.
func layer(ctx context.Context, name string, recipe []byte, args ...string) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(slices.Concat(recipe, []byte(strings.Join(args, "\x00"))))
	made := filepath.Join(cache, name+"-"+hex.EncodeToString(sum[:6]))
	err = locked(cache, name, func() error {
		if _, err := os.Stat(made); err == nil {
			return nil
		}
		return makeLayer(ctx, cache, name, recipe, args, made)
	})
	return made, err
}

// makeLayer makes it; it has its name only when it is complete. Older ones are removed.
func makeLayer(ctx context.Context, cache, name string, recipe []byte, args []string, made string) error {
	fresh, script := filepath.Join(cache, "."+name), filepath.Join(cache, name+".sh")
	old, err := filepath.Glob(filepath.Join(cache, name+"-????????????*"))
	for _, each := range append(old, fresh) {
		err = errors.Join(err, os.RemoveAll(each))
	}
	err = errors.Join(err, os.Mkdir(fresh, 0o755), os.WriteFile(script, recipe, 0o600))
	if err != nil {
		return err
	}
	_, err = run(ctx, "", "unshare", append([]string{"--mount", "--pid", "--fork", "--kill-child", "sh", script}, append(args, fresh)...)...)
	if err == nil {
		err = os.Rename(fresh, made)
	}
	if err != nil {
		err = fmt.Errorf("making %q for guests: %w", name, err)
	}
	return errors.Join(err, os.RemoveAll(fresh), os.Remove(script))
}
