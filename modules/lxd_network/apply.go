// SPDX-License-Identifier: Apache-2.0

package lxdnetwork

import (
	"context"
	"errors"
	"strings"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/plan"
)

// Apply does one step of the plan.
func (h *host) Apply(ctx context.Context, step plan.Step) error { return h.target.Apply(ctx, step) }

// refusals are what servers say about their hosts (LXD lxd/network).
var refusals = []struct {
	text string
	code ansible.Code
	hint string
}{
	{"dnsmasq is required", CodeToolMissing, "install dnsmasq on that member: apt install dnsmasq-base"},
	{"\"dnsmasq\": executable file not found", CodeToolMissing, "install dnsmasq on that member: apt install dnsmasq-base"},
	{"executable file not found", CodeToolMissing, "install the program on that member"},
	{"parent interface", CodeNoInterface, "look on that member which interfaces it has: ip link"},
	{"interface not found", CodeNoInterface, "look on that member which interfaces it has: ip link"},
	{"already exists", CodeUnmanaged, "give the network another name, or remove the interface on that member"},
	{"address already in use", CodeOverlap, "another DNS or DHCP server listens on all addresses of that member: have it leave this network out"},
}

// explain gives the server's refusals their codes.
func explain(err error) error {
	var failure *ansible.Failure
	if errors.As(err, &failure) || errors.Is(err, ansible.ErrChanged) {
		return err
	}

	text := strings.ToLower(err.Error())

	for _, refusal := range refusals {
		if strings.Contains(text, strings.ToLower(refusal.text)) {
			return ansible.Fail(refusal.code, refusal.hint, "%w", err)
		}
	}

	return err
}
