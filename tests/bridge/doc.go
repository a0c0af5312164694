// SPDX-License-Identifier: Apache-2.0

// Package bridge tests module net_bridge on real hosts, over the SSH connection that moves: that a change arrives, and that
// whatever is cut, killed or unplugged on the way, the host comes back. Command ping measures how long it is away.
package bridge
