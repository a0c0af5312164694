// SPDX-License-Identifier: Apache-2.0

// Package record keeps on the host what a module changed there and what was there before, so that `state: absent` can
// undo exactly that. One file per object under /var/lib/thinkube/<module>/, readable by root alone.
package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
)

// DefaultRoot is where records live on a managed host.
const DefaultRoot = "/var/lib/thinkube"

// Store holds the records of one module.
type Store struct {
	dir string
	// Fault is called before each write and removal, for tests that have it fail.
	Fault func(path string) error
}

// Open gives the store of a module. Nothing is created until something is kept.
func Open(root, module string) Store { return Store{dir: filepath.Join(root, module)} }

// Keep writes what was there before the first change. A second call for the same object, also one at the same time,
// keeps the first record: what it would write is our own work.
func (s Store) Keep(object string, original any) error {
	text, err := json.MarshalIndent(original, "", "  ")
	if err != nil {
		return err
	}

	// The folder can vanish between its making and the write when another object's record is forgotten at that moment.
	for range 3 {
		err = s.create(s.path(object), append(text, '\n'))
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}

	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("recording the original of %q: %w", object, err)
	}

	return nil
}

// Replace writes a record in the place of the one that is there, in one step: for a module that notes how far it has come.
func (s Store) Replace(object string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}

	err = s.write(append(text, '\n'), func(fresh string) error { return os.Rename(fresh, s.path(object)) })
	if err != nil {
		return fmt.Errorf("replacing the record of %q: %w", object, err)
	}

	return nil
}

// create makes a file that is there as a whole, on the disk, or not at all; it refuses when one is there.
func (s Store) create(path string, text []byte) error {
	return s.write(text, func(fresh string) error { return os.Link(fresh, path) })
}

// write writes a new file to the disk, and has it put into its place.
func (s Store) write(text []byte, place func(fresh string) error) error {
	err := os.MkdirAll(s.dir, 0o700)
	if err != nil {
		return err
	}

	defer s.tidy() // a write that failed may be the only one

	err = s.fault("new record")
	if err != nil {
		return err
	}

	file, err := os.CreateTemp(s.dir, ".new-") // mode 0600
	if err != nil {
		return err
	}

	defer func() { _ = os.Remove(file.Name()) }()

	_, err = file.Write(text)
	err = errors.Join(err, file.Sync(), file.Close())

	if err != nil {
		return err
	}

	return place(file.Name())
}

// Read gives the recorded original. It reports false when the module never changed the object.
func (s Store) Read(object string, original any) (bool, error) {
	text, err := os.ReadFile(s.path(object))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}

	if err == nil {
		err = json.Unmarshal(text, original)
	}

	if err != nil {
		return false, fmt.Errorf("record %q cannot be read (if it is damaged, remove it; what was there before is then not known): %w", s.path(object), err)
	}

	return true, nil
}

// Origin is what a record says of an object: whether this module changed or made it, and what was there before. An
// object that is recorded without original was made by the module, one that is not recorded is somebody else's.
type Origin[T any] struct {
	Recorded bool `json:"recorded"`
	Original *T   `json:"original,omitempty"`
}

// ReadOrigin reads an object's record.
func ReadOrigin[T any](s Store, object string) (Origin[T], error) {
	var (
		origin Origin[T]
		err    error
	)

	origin.Recorded, err = s.Read(object, &origin.Original)

	return origin, err
}

// Forget removes the record, and the folders that are empty then, so that a rollback leaves nothing behind.
func (s Store) Forget(object string) error {
	err := s.fault(s.path(object))
	if err == nil {
		err = os.Remove(s.path(object))
	}

	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the record of %q: %w", object, err)
	}

	s.tidy()

	return nil
}

// tidy removes the folders when they are empty. One with records in it refuses, as it should.
func (s Store) tidy() {
	_ = os.Remove(s.dir)
	_ = os.Remove(filepath.Dir(s.dir))
}

func (s Store) fault(path string) error {
	if s.Fault == nil {
		return nil
	}

	return s.Fault(path)
}

func (s Store) path(object string) string {
	return filepath.Join(s.dir, url.PathEscape(object)+".json")
}
