// SPDX-License-Identifier: Apache-2.0

package gpuvfioinfo

import (
	"context"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/pci"
	"github.com/thinkube/infra/modules/internal/vfio"
)

// State is what was read.
type State struct{ PCI pci.System }

type host struct {
	ansible.ReadOnly
	root string
}

// Read reads the devices and who uses them.
func (h *host) Read(ctx context.Context) (State, error) {
	system, err := pci.Reader{Root: h.root}.Read()
	if err == nil {
		vfio.ReadPersistence(ctx, &system)
	}

	return State{system}, err
}
