// SPDX-License-Identifier: Apache-2.0

//go:build !faultinject

package armed

// faultPoint does nothing in a real build; see fault_on.go.
func faultPoint(string) {}
