// SPDX-License-Identifier: Apache-2.0

// Package ownfile writes configuration files as one change: all of them, or none and everything as it was. A tree other
// than the host's own, such as a system being installed, is a root that all paths are below.
package ownfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// File is one file with what is to be restored of it.
type File struct {
	Path    string `json:"path"`
	Content string `json:"content,omitempty"`
	Link    string `json:"link,omitempty"` // the target; the file is a symbolic link then, without content and mode
	Mode    uint32 `json:"mode,omitempty"`
	UID     int    `json:"uid,omitempty"`
	GID     int    `json:"gid,omitempty"`
}

// Change is what becomes of one file. Before or After is nil where there is no such file.
type Change struct {
	Path   string `json:"path"`
	Before *File  `json:"before,omitempty"`
	After  *File  `json:"after,omitempty"`
	// MadeFolder tells that the folder did not exist before the file: it goes with it, unless others are in it.
	MadeFolder bool `json:"made_folder,omitempty"`
}

// Read reads a file; nil when there is none.
func Read(root, path string) (*File, error) {
	info, err := os.Lstat(root + path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}

	if err != nil {
		return nil, err
	}

	file := &File{Path: path}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		file.UID, file.GID = int(owner.Uid), int(owner.Gid)
	}

	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		file.Link, err = os.Readlink(root + path)
	case info.Mode().IsRegular():
		var content []byte

		file.Mode = uint32(info.Mode().Perm())
		content, err = os.ReadFile(root + path)
		file.Content = string(content)
	default:
		err = fmt.Errorf("%q is neither a regular file nor a link, and only those can be changed and restored", path)
	}

	return file, err
}

// Writer writes changes. Its zero value writes to the host's own tree.
type Writer struct {
	Root string
	// Fault is called before each write, for tests that have it fail.
	Fault func(path string) error
}

// Apply makes all changes in their order. When one fails, those before it are undone, the last first.
func (w Writer) Apply(changes []Change) error {
	for i, change := range changes {
		err := w.put(change.Path, change.After, change.MadeFolder)
		if err == nil {
			continue
		}

		// The one that failed may be half done.
		return errors.Join(fmt.Errorf("writing %q: %w", change.Path, err), w.Undo(changes[:i+1]))
	}

	return nil
}

// Undo gives every file what it had before, the last first. It goes on after an error: each file that is right is worth
// having.
func (w Writer) Undo(changes []Change) error {
	var errs []error

	for _, change := range slices.Backward(changes) {
		err := w.put(change.Path, change.Before, change.MadeFolder)
		if err != nil {
			errs = append(errs, fmt.Errorf("restoring %q: %w", change.Path, err))
		}
	}

	return errors.Join(errs...)
}

func (w Writer) put(path string, file *File, madeFolder bool) error {
	have, err := Read(w.Root, path)
	if err != nil {
		return err
	}

	full := w.Root + path

	if have == nil && file == nil {
		if madeFolder {
			_ = os.Remove(filepath.Dir(full)) // of a write that failed after that
		}

		return nil
	}

	if have != nil && file != nil && *have == *file {
		return nil
	}

	if file == nil {
		err = w.fault(path)
		if err != nil {
			return err
		}

		err = os.Remove(full)
		if err == nil {
			err = syncFolder(filepath.Dir(full))
		}

		if madeFolder {
			_ = os.Remove(filepath.Dir(full)) // refused when others are in it
		}

		return err
	}

	err = os.MkdirAll(filepath.Dir(full), 0o755)
	if err == nil {
		err = w.fault(path)
	}

	if err != nil {
		return err
	}

	return replace(full, *file)
}

func (w Writer) fault(path string) error {
	if w.Fault == nil {
		return nil
	}

	return w.Fault(path)
}

// replace puts a file in place that is there as a whole or not at all, also after a loss of power.
func replace(path string, file File) error {
	folder, err := os.MkdirTemp(filepath.Dir(path), ".thinkube-")
	if err != nil {
		return err
	}

	defer func() { _ = os.RemoveAll(folder) }()

	temporary := filepath.Join(folder, "new")

	if file.Link != "" {
		err = os.Symlink(file.Link, temporary)
	} else {
		err = writeSynced(temporary, file)
	}

	if err == nil {
		err = os.Rename(temporary, path)
	}

	if err != nil {
		return err
	}

	return syncFolder(filepath.Dir(path))
}

func writeSynced(path string, file File) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}

	_, err = out.WriteString(file.Content)

	return errors.Join(err, out.Chown(file.UID, file.GID), out.Chmod(fs.FileMode(file.Mode)), out.Sync(), out.Close())
}

func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}

	return errors.Join(folder.Sync(), folder.Close())
}
