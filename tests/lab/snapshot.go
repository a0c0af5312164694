// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"io/fs"
	"os"
)

// finishRestore completes a restore that was cut between its two renames.
func (h *Host) finishRestore() (bool, error) {
	if _, err := os.Stat(h.upper() + ".restored"); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return true, os.Rename(h.upper()+".restored", h.upper())
}
