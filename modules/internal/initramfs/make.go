// SPDX-License-Identifier: Apache-2.0

package initramfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
)

// Remake has images made again, all or none: when one fails, or check finds fault with it, those that were there before
// are put back. They are made by the generator's own program, since that tells boot loaders as well.
func (t Tree) Remake(ctx context.Context, images []Image, check func(ctx context.Context, image *Image) error) (err error) {
	var kept []backup

	defer func() {
		for _, each := range slices.Backward(kept) {
			if err != nil {
				err = errors.Join(err, each.restore())
			}

			each.drop()
		}
	}()

	for _, image := range images {
		saved, err := keep(t.Root + image.Path)
		if err != nil {
			return fmt.Errorf("keeping the old initramfs %q: %w", image.Path, err)
		}

		kept = append(kept, saved)

		err = t.remake(ctx, image)
		if err == nil {
			err = check(ctx, &image)
		}

		if err != nil {
			return fmt.Errorf("making initramfs %q: %w", image.Path, err)
		}
	}

	return nil
}

func (t Tree) remake(ctx context.Context, image Image) error {
	if t.Generator() == InitramfsTools {
		return t.Run(ctx, "update-initramfs", "-u", "-k", image.Release)
	}

	// dracut writes over what is there, and a loss of power then leaves no image at all. So it writes beside it.
	fresh := image.Path + ".thinkube-new"

	err := t.Run(ctx, "dracut", "--force", fresh, image.Release)
	if err == nil {
		err = os.Rename(t.Root+fresh, t.Root+image.Path)
	}

	if err != nil {
		_ = os.Remove(t.Root + fresh)
	}

	return err
}

// backup is an image as it was.
type backup struct{ path, saved string }

// keep saves an image beside it: by a second name where the file system has those, or by a copy.
func keep(image string) (backup, error) {
	// The name must not be one that kernel-install, update-grub or we ourselves take for an image.
	saved := path.Join(path.Dir(image), ".thinkube-"+path.Base(image))
	_ = os.Remove(saved) // of a run that was killed

	err := os.Link(image, saved)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		err = copyFile(image, saved)
	}

	return backup{image, saved}, err
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}

	defer func() { _ = in.Close() }()

	info, err := in.Stat()
	if err != nil {
		return err
	}

	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode().Perm())
	if err != nil {
		return err
	}

	_, err = io.Copy(out, in)

	return errors.Join(err, out.Sync(), out.Close())
}

func (b backup) restore() error { return os.Rename(b.saved, b.path) }

func (b backup) drop() { _ = os.Remove(b.saved) }
