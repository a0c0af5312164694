// SPDX-License-Identifier: Apache-2.0

package netstate

// Do makes a single operation.
var Do = do
