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

// Debian gives the folders of a Debian with systemd, udev, networkd, sshd and Python, for Machine.Root: the lab's base image
// and a layer on it. Both are made once and cached. It needs root, as all does that has to do with other users' files.
func Debian(t testing.TB) []string {
	t.Helper()
	Need(t)
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root: makes a Debian")
		}
		t.Skip("needs root: makes a Debian")
	}
	folders, err := debian(t.Context())
	require.NoError(t, err)
	return folders
}

func debian(ctx context.Context) ([]string, error) {
	base, err := lab.BaseImage(ctx, os.Stderr)
	if err != nil {
		return nil, err
	}
	made, err := layer(ctx, "root", recipe, base)
	return []string{made, base}, err
}

// layer gives the folder of a layer that a recipe makes from its arguments: a script, which gets a folder for it as its last
// one. It is made once and cached; another recipe, or other arguments, make another.
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
	return filepath.Join(made, "layer"), err
}

// makeLayer makes the layer, which has its name only when it is complete, and removes older ones.
func makeLayer(ctx context.Context, cache, name string, recipe []byte, args []string, made string) error {
	fresh, script := filepath.Join(cache, "."+name), filepath.Join(cache, name+".sh")
	old, err := filepath.Glob(filepath.Join(cache, name+"-*"))
	for _, each := range append(old, fresh) {
		err = errors.Join(err, os.RemoveAll(each))
	}
	err = errors.Join(err, os.Mkdir(fresh, 0o755), os.WriteFile(script, recipe, 0o600))
	if err != nil {
		return err
	}
	_, err = run(ctx, "", "unshare", append([]string{"--mount", "--pid", "--fork", "--kill-child", "sh", script}, append(args, fresh)...)...)
	if err != nil {
		return fmt.Errorf("making the layer %q: %w", name, errors.Join(err, os.RemoveAll(fresh)))
	}
	return os.Rename(fresh, made)
}
