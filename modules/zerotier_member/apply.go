// SPDX-License-Identifier: Apache-2.0

package zerotiermember

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/plan"
	"github.com/thinkube/infra/modules/internal/ztapi"
)

// undoTimeout bounds the way back.
const undoTimeout = time.Minute

// undo is what this task has touched.
type undo struct{ joined, settings, member bool }

// Apply does one step; when it fails, what the task did before is undone.
func (h *host) Apply(ctx context.Context, step plan.Step) error {
	return h.rollBack(ctx, h.apply(ctx, step))
}

func (h *host) apply(ctx context.Context, step plan.Step) error {
	network := h.args.NetworkID

	switch do := step.Do.(type) {
	case setMember:
		h.undo.member = true

		return h.set(ctx, do)
	case deleteMember:
		return h.controller.DeleteMember(ctx, network, h.first.Node)
	case join:
		h.undo.joined = true

		return h.service.Join(ctx, network, do.Settings)
	case changeSettings:
		h.undo.settings = true

		return h.service.Join(ctx, network, do.Settings)
	case leave:
		return h.service.Leave(ctx, network)
	}

	return ansible.Fail(ansible.CodeInternal, "", "unknown step %T", step.Do)
}

// set sends a change of the member and looks what the controller stored: it takes nearly anything.
func (h *host) set(ctx context.Context, do setMember) error {
	stored, err := h.controller.SetMember(ctx, h.args.NetworkID, h.first.Node, do.Change, do.New)
	if err != nil {
		return err
	}

	differs := compare(do.Change, stored)

	// Central v1 was seen by users to lose the name of a member whose node has not asked yet: it is sent again then.
	if do.New && h.args.Controller.Kind == ztapi.KindCentralV1 && do.Change.Name != nil {
		differs = slices.DeleteFunc(differs, func(text string) bool { return strings.HasPrefix(text, "name:") })
		stored.Name = *do.Change.Name
	}

	if len(differs) > 0 {
		return ansible.Fail(ztapi.CodeStoredOtherwise, "", "the controller stored something else than it was given: %s", strings.Join(differs, "; "))
	}

	h.stored = &stored

	return nil
}

// compare lists the fields that were stored otherwise than they were sent.
func compare(sent ztapi.MemberChange, stored ztapi.Member) []string {
	var differs []string

	note := func(name string, want, have any) {
		differs = append(differs, fmt.Sprintf("%s: %s in place of %s", name, show(have), show(want)))
	}

	check(sent.Authorized, stored.Authorized, "authorized", note)
	check(sent.Name, stored.Name, "name", note)
	check(sent.Description, stored.Description, "description", note)
	check(sent.Hidden, stored.Hidden, "hidden", note)
	check(sent.Addresses, stored.Addresses, "ip_assignments", note)
	check(sent.NoAutoAssignIPs, stored.NoAutoAssignIPs, "no_auto_assign_ips", note)
	check(sent.ActiveBridge, stored.ActiveBridge, "active_bridge", note)
	check(sent.Tags, stored.Tags, "tags", note)
	check(sent.Capabilities, stored.Capabilities, "capabilities", note)

	return differs
}

func check[T any](want *T, have T, name string, note func(string, any, any)) {
	if want != nil && !reflect.DeepEqual(*want, have) && !(isEmpty(*want) && isEmpty(have)) {
		note(name, *want, have)
	}
}

// rollBack puts back what the task changed, when it failed, and says so. The way back is not bound to the task's time.
func (h *host) rollBack(ctx context.Context, cause error) error {
	if cause == nil || !h.args.Rollback || h.args.State != "present" || h.first == nil || h.undo == (undo{}) {
		return cause
	}

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()

	err := errors.Join(h.undoNode(ctx), h.undoMember(ctx))
	h.undo = undo{}

	var failure *ansible.Failure

	code, hint := ansible.CodeFailed, ""
	if errors.As(cause, &failure) {
		code, hint = failure.Code, failure.Hint
	}

	if err != nil {
		return ansible.Fail(code, "look at the member's record and at the host's networks; "+hint, "%w; and what this task had changed could not be put back: %w", cause, err)
	}

	return ansible.Fail(code, hint, "%w; what this task had changed was put back", cause)
}

func (h *host) undoNode(ctx context.Context) error {
	switch {
	case h.undo.joined:
		return h.service.Leave(ctx, h.args.NetworkID)
	case h.undo.settings:
		was := h.first.Joined.Allow

		return h.service.Join(ctx, h.args.NetworkID, ztapi.Settings{Managed: &was.Managed, Global: &was.Global, Default: &was.Default, DNS: &was.DNS})
	}

	return nil
}

func (h *host) undoMember(ctx context.Context) error {
	if !h.undo.member {
		return nil
	}

	was := h.first.Member
	if was == nil {
		return h.controller.DeleteMember(ctx, h.args.NetworkID, h.first.Node)
	}

	change := ztapi.MemberChange{
		Authorized: &was.Authorized, Name: &was.Name, Addresses: &was.Addresses, NoAutoAssignIPs: &was.NoAutoAssignIPs, ActiveBridge: &was.ActiveBridge,
	}

	kind := h.args.Controller.Kind
	if kind != ztapi.KindSelfHosted {
		change.Description = &was.Description
	}

	if kind == ztapi.KindCentralV1 {
		change.Hidden = &was.Hidden
	}

	if kind != ztapi.KindCentralV2 {
		change.Tags, change.Capabilities = &was.Tags, &was.Capabilities
	}

	_, err := h.controller.SetMember(ctx, h.args.NetworkID, h.first.Node, change, false)

	return err
}
