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
	"path/filepath"
	"slices"
	"strings"
)

// Remake has images made again, all or none: when one fails, or check finds fault with it, those that were there before
// are put back. They are made by the generator's own program, since that tells boot loaders as well.
func (t Tree) Remake(ctx context.Context, images []Image, check func(ctx context.Context, image *Image) error) (err error) {
	var kept []backup

	defer func() {
		for _, each := range slices.Backward(kept) {
			if err != nil {
				undo := t.putBack(context.WithoutCancel(ctx), each)
				err = errors.Join(err, undo)

				if undo != nil {
					continue // what is saved may be the only one that is good
				}
			}

			t.drop(each)
		}
	}()

	for _, image := range images {
		saved, err := t.keep(image)
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
		return t.updateInitramfs(ctx, image)
	}

	// dracut writes over what is there, and a loss of power then leaves no image at all. So it writes beside it.
	fresh := image.Path + freshSuffix

	err := t.Run(ctx, "dracut", "--force", fresh, image.Release)
	if err == nil {
		err = t.fault(image.Path)
	}

	if err == nil {
		err = os.Rename(t.Root+fresh, t.Root+image.Path)
	}

	if err != nil {
		_ = os.Remove(t.Root + fresh)
	}

	return err
}

// afterUpdate is where boot loaders have their hooks that copy an image to where they boot it from (update-initramfs(8)).
const afterUpdate = "/etc/initramfs/post-update.d"

// putBack restores an image, and has those copy it that may have copied the one in its place.
func (t Tree) putBack(ctx context.Context, saved backup) error {
	err := t.restore(saved)
	if err != nil || t.Generator() != InitramfsTools || !t.exists(afterUpdate) {
		return err
	}

	err = t.Run(ctx, "run-parts", "--arg="+saved.image.Release, "--arg="+saved.image.Path, afterUpdate)
	if err != nil {
		return fmt.Errorf("the old initramfs is in %q again, and what the boot loader has of it may still be the new one: %w", saved.image.Path, err)
	}

	return nil
}

// updateInitramfs leaves nothing of the tool's own beside the image when it fails: what it was writing, and its copy of the
// old one.
func (t Tree) updateInitramfs(ctx context.Context, image Image) error {
	var own []string

	for _, suffix := range []string{".new", ".dpkg-bak"} {
		if !t.exists(image.Path + suffix) {
			own = append(own, t.Root+image.Path+suffix)
		}
	}

	err := t.Run(ctx, "update-initramfs", "-u", "-k", image.Release)
	if err != nil {
		for _, path := range own {
			_ = os.Remove(path)
		}
	}

	return err
}

// backup is an image as it was.
type backup struct {
	image       Image
	path, saved string // with the root
}

// savedPrefix begins the names of saved images. Such a name must not be one that kernel-install, update-grub or we ourselves
// take for an image.
const savedPrefix = ".thinkube-"

// keep saves an image beside it: by a second name where the file system has those, or by a copy.
func (t Tree) keep(image Image) (backup, error) {
	whole := t.Root + image.Path
	saved := path.Join(path.Dir(whole), savedPrefix+path.Base(whole))
	_ = os.Remove(saved) // of a run that was killed

	err := t.fault(saved)
	if err != nil {
		return backup{}, err
	}

	err = os.Link(whole, saved)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		err = copyFile(whole, saved)
	}

	if err != nil {
		_ = os.Remove(saved) // a copy that was cut off
	}

	return backup{image, whole, saved}, err
}

// freshSuffix ends the names of images that dracut is writing.
const freshSuffix = ".thinkube-new"

// Leftovers gives the files that a run which was killed has left beside the images.
func (t Tree) Leftovers() ([]string, error) {
	var found []string

	for _, pattern := range []string{"/boot/" + savedPrefix + "init*", "/boot/init*" + freshSuffix} {
		paths, err := filepath.Glob(t.Root + pattern)
		if err != nil {
			return nil, err
		}

		for _, each := range paths {
			found = append(found, strings.TrimPrefix(each, t.Root))
		}
	}

	return found, nil
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

func (t Tree) restore(b backup) error {
	err := t.fault(b.path)
	if err == nil {
		err = os.Rename(b.saved, b.path)
	}

	if err != nil {
		return fmt.Errorf("the old initramfs is %q, and cannot be put into its place: %w", b.saved, err)
	}

	return nil
}

// drop leaves what it cannot remove to the next run, see Leftovers.
func (t Tree) drop(b backup) {
	if t.fault(b.saved) == nil {
		_ = os.Remove(b.saved)
	}
}
