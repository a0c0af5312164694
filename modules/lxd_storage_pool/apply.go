// SPDX-License-Identifier: Apache-2.0

package lxdstoragepool

import (
	"context"
	"errors"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/plan"
)

// Apply does one step of the plan.
func (h *host) Apply(ctx context.Context, step plan.Step) error { return h.target.Apply(ctx, step) }

// refusals are what servers say about sources that this host cannot look at itself (LXD lxd/storage/drivers).
var refusals = []struct {
	text string
	code ansible.Code
	hint string
}{
	{"doesn't exist", CodeSourceMissing, "look on that member: the source must exist there"},
	{"no such file or directory", CodeSourceMissing, "look on that member: the source must exist there"},
	{"does not exist", CodeSourceMissing, "look on that member: the source must exist there"},
	{"isn't empty", CodeSourceInUse, "give an empty folder"},
	{"is not empty", CodeSourceInUse, "give an empty one"},
	{"appears to contain an existing filesystem", CodeSourceInUse, "if nothing of it is needed any more, clear it on that member with wipefs --all"},
	{"contains a filesystem", CodeSourceInUse, "if nothing of it is needed any more, clear it on that member with wipefs --all"},
	{"already in use", CodeSourceInUse, "give a source that no other pool uses"},
	{"device or resource busy", CodeSourceInUse, "give a source that nothing uses"},
	{"already used by", CodeSourceInUse, "give a source that no other pool uses"},
	{"required tool", CodeDriverMissing, "install what the driver needs on that member and start its server again"},
}

// explain gives the server's refusals their codes.
func explain(err error) error {
	var failure *ansible.Failure
	if errors.As(err, &failure) || errors.Is(err, ansible.ErrChanged) {
		return err
	}

	text := strings.ToLower(err.Error())

	for _, refusal := range refusals {
		if strings.Contains(text, refusal.text) {
			return ansible.Fail(refusal.code, refusal.hint, "%w", err)
		}
	}

	return err
}
