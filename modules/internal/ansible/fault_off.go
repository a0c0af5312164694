// SPDX-License-Identifier: Apache-2.0

//go:build !faultinject

package ansible

// faultPoint does nothing in a real build; see fault_on.go.
func faultPoint(int) {}
