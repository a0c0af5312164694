// SPDX-License-Identifier: Apache-2.0

package initramfs

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Limits for what is believed of an archive's headers.
const (
	maxName    = 4096    // PATH_MAX
	maxContent = 1 << 20 // of a file whose content is asked for
)

// A header of the newc format (Documentation/driver-api/early-userspace/buffer-format.rst): a magic number and 13 fields
// of 8 hexadecimal digits.
const (
	headerSize    = 110
	fieldFilesize = 6
	fieldNamesize = 11
	trailer       = "TRAILER!!!"
)

// opener makes the reader for a compression; the kind is one of those of magics.
type opener func(kind string, from io.Reader) (io.ReadCloser, error)

// magics tell what follows.
var magics = []struct{ kind, magic string }{
	{"cpio", "070701"}, {"cpio", "070702"}, {"gzip", "\x1f\x8b"}, {"zstd", "\x28\xb5\x2f\xfd"}, {"xz", "\xfd7zXZ"},
	{"lz4", "\x02\x21\x4c\x18"}, {"lz4", "\x04\x22\x4d\x18"}, {"bzip2", "BZh"}, {"lzma", "\x5d\x00\x00"}, {"lzop", "\x89LZO"},
}

func kindOf(start []byte) string {
	for _, each := range magics {
		if bytes.HasPrefix(start, []byte(each.magic)) {
			return each.kind
		}
	}

	return ""
}

// walk goes through an initramfs: archives one after the other, as many plain ones as there are (microcode), and then
// often one that is compressed. It calls visit for each file, with its content when visit's first answer asks for it.
func walk(from io.Reader, open opener, wants func(name string) bool, visit func(name string, content []byte)) error {
	in := &counting{from: bufio.NewReaderSize(from, 1<<16)}
	found := false

	for {
		start, err := in.skipZeros()
		if errors.Is(err, io.EOF) && found {
			return nil
		}

		if err != nil {
			return fmt.Errorf("after %d bytes: %w", in.at, err)
		}

		kind := kindOf(start)

		switch kind {
		case "":
			return fmt.Errorf("after %d bytes: neither an archive nor a known compression: % x", in.at, start)
		case "cpio":
			in.base = in.at

			err = readArchive(in, wants, visit)
			if err != nil {
				return fmt.Errorf("after %d bytes: %w", in.at, err)
			}

			found = true
		default:
			plain, err := open(kind, in.from)
			if err != nil {
				return err
			}

			err = walk(plain, open, wants, visit)
			// What the program says of its end explains a broken archive.
			return errors.Join(plain.Close(), err)
		}
	}
}

func readArchive(in *counting, wants func(string) bool, visit func(string, []byte)) error {
	for {
		name, size, err := readHeader(in)
		if err != nil {
			return err
		}

		if name == trailer {
			return nil
		}

		var content []byte

		if wants(name) && size <= maxContent {
			content, err = in.take(int(size))
		} else {
			err = in.drop(size)
		}

		if err == nil {
			err = in.align()
		}

		if err != nil {
			return fmt.Errorf("content of %q: %w", name, err)
		}

		visit(name, content)
	}
}

func readHeader(in *counting) (name string, size int64, err error) {
	header, err := in.take(headerSize)
	if err != nil {
		return "", 0, err
	}

	if kindOf(header) != "cpio" {
		return "", 0, fmt.Errorf("a file's header starts with % x", header[:6])
	}

	field := func(index int) int64 {
		number, parseErr := strconv.ParseUint(string(header[6+8*index:14+8*index]), 16, 32)
		err = errors.Join(err, parseErr)

		return int64(number)
	}

	size, length := field(fieldFilesize), field(fieldNamesize)
	if err != nil {
		return "", 0, err
	}

	if length < 1 || length > maxName {
		return "", 0, fmt.Errorf("a name of %d bytes", length)
	}

	text, err := in.take(int(length))
	if err != nil {
		return "", 0, err
	}

	return string(bytes.TrimRight(text, "\x00")), size, in.align()
}

// counting reads and knows where it is, for alignment.
type counting struct {
	from     *bufio.Reader
	at, base int64
}

func (c *counting) take(n int) ([]byte, error) {
	buffer := make([]byte, n)
	read, err := io.ReadFull(c.from, buffer)
	c.at += int64(read)

	return buffer, err
}

func (c *counting) drop(n int64) error {
	dropped, err := io.CopyN(io.Discard, c.from, n)
	c.at += dropped

	return err
}

// align goes on to the next multiple of 4, counted from the archive's start.
func (c *counting) align() error {
	rest := (c.at - c.base) % 4
	if rest == 0 {
		return nil
	}

	return c.drop(4 - rest)
}

// skipZeros goes over padding, and gives what comes next without taking it.
func (c *counting) skipZeros() ([]byte, error) {
	for {
		next, err := c.from.Peek(1)
		if err != nil {
			return nil, err
		}

		if next[0] != 0 {
			break
		}

		_, _ = c.from.Discard(1)
		c.at++
	}

	start, err := c.from.Peek(6)
	if len(start) > 1 {
		err = nil
	}

	return start, err
}

// openGzip is the one compression that needs no program.
func openGzip(from io.Reader) (io.ReadCloser, error) { return gzip.NewReader(from) }
