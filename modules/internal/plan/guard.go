// SPDX-License-Identifier: Apache-2.0

package plan

import "fmt"

// Guard tells plans that go further than anybody usually means to: a typing error in an inventory must not empty a zone.
// What is refused is up to the module, and so is the option that lifts it.
type Guard struct {
	// Share is how much of what is there a plan may change or delete, from 0 to 1.
	Share float64
	// AtLeast is how much has to be there before the share counts: most changes of a small thing are large ones.
	AtLeast int
}

// UsualGuard is what modules use: more than 30 % of at least 10.
var UsualGuard = Guard{Share: 0.30, AtLeast: 10}

// Refuses gives the reason why a plan that changes or deletes so many of the things that exist is refused, or "" when it is
// not. What comes new is not counted.
func (g Guard) Refuses(noun string, lost, existing int) string {
	if existing < g.AtLeast || float64(lost) <= g.Share*float64(existing) {
		return ""
	}

	return fmt.Sprintf("%d of %d %s would be changed or deleted, which is more than %.0f %%", lost, existing, noun, g.Share*100)
}
