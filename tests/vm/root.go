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
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/lab"
)

//go:embed light.sh
var lightRecipe []byte

//go:embed root.sh
var rootRecipe []byte

// recipe is the script that makes a Debian's disk.
func recipe() []byte { return slices.Concat(lightRecipe, rootRecipe) }

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
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(slices.Concat(recipe(), []byte(base)))
	made := filepath.Join(cache, "root-"+hex.EncodeToString(sum[:6])+".img")
	err = locked(cache, "root", func() error {
		if _, err := os.Stat(made); err == nil {
			return nil
		}
		return makeDisk(ctx, cache, base, made)
	})
	return made, err
}

// makeDisk makes the disk, which has its name only when it is complete, and removes older ones.
func makeDisk(ctx context.Context, cache, base, made string) error {
	fresh, script := filepath.Join(cache, ".root"), filepath.Join(cache, "root.sh")
	old, err := filepath.Glob(filepath.Join(cache, "root-*"))
	for _, each := range append(old, fresh) {
		err = errors.Join(err, os.RemoveAll(each))
	}
	err = errors.Join(err, os.Mkdir(fresh, 0o755), os.WriteFile(script, recipe(), 0o600))
	if err != nil {
		return err
	}
	_, err = run(ctx, "", "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", script, base, fresh)
	if err == nil {
		err = os.Rename(filepath.Join(fresh, "disk"), made)
	}
	if err != nil {
		err = fmt.Errorf("making a root for guests: %w", err)
	}
	return errors.Join(err, os.RemoveAll(fresh), os.Remove(script))
}
