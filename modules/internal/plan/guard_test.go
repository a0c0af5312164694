// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestGuardCountsTheShare(t *testing.T) {
	for _, each := range []struct {
		lost, existing int
		refused        bool
	}{
		{29, 100, false}, {30, 100, false}, {31, 100, true}, {100, 100, true},
		{9, 9, false}, {3, 10, false}, {4, 10, true}, {0, 0, false}, {0, 10, false},
		{30_000, 100_000, false}, {30_001, 100_000, true},
	} {
		t.Run(fmt.Sprintf("%d of %d", each.lost, each.existing), func(t *testing.T) {
			reason := UsualGuard.Refuses("records", each.lost, each.existing)
			assert.Equal(t, each.refused, reason != "", reason)
		})
	}
}

func TestGuardSaysBothNumbers(t *testing.T) {
	assert.Equal(t, "31 of 100 records would be changed or deleted, which is more than 30 %", UsualGuard.Refuses("records", 31, 100))
}
