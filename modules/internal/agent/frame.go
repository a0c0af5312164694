// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"fmt"
	"io"
)

// MaxPayload bounds a frame's payload in bytes, both ways: far above any task, far below what would hurt a host.
const MaxPayload = 64 << 20

// kind says what a frame is. The broker's counterpart is plugins/plugin_utils/frames.py.
type kind byte

// From the controller.
const (
	kindTask   kind = 'x' // run a task; the payload is its envelope
	kindPeer   kind = 'p' // answer a question of a task on another host; the same
	kindCancel kind = 'c' // nobody waits for the call with this id any more
	kindPing   kind = 'i'
)

// To the controller.
const (
	kindAnswer kind = 'a' // the end of the call with this id; the payload is one JSON object
	kindPong   kind = 'o'
)

// headerSize is that of the payload's length (4 bytes), the call's id (4 bytes), both big endian, and the kind.
const headerSize = 9

type frame struct {
	id      uint32
	kind    kind
	payload []byte
}

// readFrame gives io.EOF only between frames.
func readFrame(in io.Reader) (frame, error) {
	var header [headerSize]byte

	_, err := io.ReadFull(in, header[:])
	if err != nil {
		return frame{}, err
	}

	size := binary.BigEndian.Uint32(header[:])
	got := frame{id: binary.BigEndian.Uint32(header[4:]), kind: kind(header[8])}

	if size > MaxPayload {
		return frame{}, fmt.Errorf("a frame of %d bytes: at most %d", size, MaxPayload)
	}

	if size == 0 {
		return got, nil
	}

	got.payload = make([]byte, size)

	_, err = io.ReadFull(in, got.payload)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}

	return got, err
}

// appendFrame writes header and payload as one piece: one write, one packet.
func appendFrame(out []byte, f frame) []byte {
	out = binary.BigEndian.AppendUint32(out, uint32(len(f.payload)))
	out = binary.BigEndian.AppendUint32(out, f.id)
	out = append(out, byte(f.kind))

	return append(out, f.payload...)
}
