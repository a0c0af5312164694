// SPDX-License-Identifier: Apache-2.0

// Package zerotier runs the playbooks 30_networking/10, 18 and 19 on hosts of a lab of its own, by ansible-runner, with the
// double of tests/ztdouble as the service zerotier-one. It needs root and runs when THINKUBE_LAB is set.
package zerotier
