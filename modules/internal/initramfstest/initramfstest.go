// SPDX-License-Identifier: Apache-2.0

// Package initramfstest makes initramfs images for tests.
package initramfstest

import (
	"bytes"
	"fmt"
)

// Archive writes the newc format (Documentation/driver-api/early-userspace/buffer-format.rst); the pairs are names and
// contents.
func Archive(pairs ...string) []byte {
	var out bytes.Buffer

	for i := 0; i+1 < len(pairs)+2; i += 2 {
		name, content := "TRAILER!!!", ""
		if i < len(pairs) {
			name, content = pairs[i], pairs[i+1]
		}

		fmt.Fprintf(&out, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", i, 0o100644, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
		out.WriteString(name + "\x00")
		pad(&out)
		out.WriteString(content)
		pad(&out)
	}

	return out.Bytes()
}

func pad(out *bytes.Buffer) {
	for out.Len()%4 != 0 {
		out.WriteByte(0)
	}
}
