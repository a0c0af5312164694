// SPDX-License-Identifier: Apache-2.0

package dnszone

// SetRecordRoot gives tests a folder of their own for the records of what was made.
func SetRecordRoot(root string) { recordRoot = root }
