// SPDX-License-Identifier: Apache-2.0

package dnsclient

import (
	"testing"

	"github.com/thinkube/infra/modules/internal/plantest"
)

func TestPlan(t *testing.T) { plantest.Run(t, Module) }
