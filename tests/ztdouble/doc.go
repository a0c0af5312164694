// SPDX-License-Identifier: Apache-2.0

// Package ztdouble stands in for zerotier-one 1.14 and for ZeroTier Central in tests: one state machine with the faces of
// the local service, the self-hosted controller, and Central v1 and v2. The first two are bound to recordings of the real
// service by a test that walks them (TestRecordings); Central's are written from its published documents, and no answer
// of it was seen. What it carries between nodes are real kernel links (vxlan), and nothing of ZeroTier: it tests what
// speaks to ZeroTier, not ZeroTier.
package ztdouble
