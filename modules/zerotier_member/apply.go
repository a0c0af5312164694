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
type undo struct {
	joined, settings bool
	sent             *ztapi.MemberChange // all fields of the member that it tried to change
	answered         *ztapi.Member       // what the controller said to that; nil: nothing
}

// Apply does one step; when it fails, what the task did before is undone.
func (h *host) Apply(ctx context.Context, step plan.Step) error {
	return h.rollBack(ctx, h.apply(ctx, step))
}

func (h *host) apply(ctx context.Context, step plan.Step) error {
	network := h.args.NetworkID

	switch do := step.Do.(type) {
	case setMember:
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
	if h.undo.sent == nil {
		h.undo.sent = &ztapi.MemberChange{}
	}

	*h.undo.sent = h.undo.sent.And(do.Change)

	stored, err := h.controller.SetMember(ctx, h.args.NetworkID, h.first.Node, do.Change, do.New)
	if stored.Node != "" {
		answered := stored
		h.undo.answered = &answered
	}

	if err != nil {
		return err
	}

	differs := compare(do.Change, stored)

	// Central v1 was seen by users to lose the name of a member whose node has not asked yet: it is sent again then.
	if do.New && h.args.Controller.Kind == ztapi.KindCentralV1 && do.Change.Name != nil {
		differs = slices.DeleteFunc(differs, func(text string) bool { return strings.HasPrefix(text, "name:") })
		stored.Name, h.promised = *do.Change.Name, *do.Change.Name
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
	if cause == nil {
		return nil
	}

	details := map[string]any{"rolled_back": false, "waited_s": h.last.waited.Seconds()}

	if h.last.Joined != nil {
		details["status"] = h.last.Joined.Status
	}

	if h.last.tests != nil {
		details["tests"] = h.last.tests
	}

	if joined := h.last.Joined; joined != nil && joined.AuthenticationURL != "" {
		details["authentication_url"] = joined.AuthenticationURL
	}

	failure := &ansible.Failure{Code: ansible.CodeFailed, Err: cause, Details: details}

	var known *ansible.Failure
	if errors.As(cause, &known) {
		failure.Code, failure.Hint = known.Code, known.Hint
	}

	// Who signs in does that for a node that is in the network and has a record: they stay for it.
	signIn := failure.Code == CodeAuthentication

	if signIn || !h.args.Rollback || h.args.State != "present" || h.first == nil || h.undo == (undo{}) {
		if known == nil {
			return cause // what kind it is, the SDK can tell
		}

		return failure
	}

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()

	h.reopenService(ctx)
	h.reopenController(ctx)

	err := errors.Join(h.undoNode(ctx), h.undoMember(ctx))
	h.undo = undo{}

	if err != nil {
		failure.Hint = "look at the member's record and at the host's networks; " + failure.Hint
		failure.Err = fmt.Errorf("%w; and what this task had changed could not be put back: %w", cause, err)

		return failure
	}

	details["rolled_back"] = true
	failure.Err = fmt.Errorf("%w; what this task had changed was put back", cause)

	return failure
}

// reopenService finds the service again: one that was started anew may have another port and another token.
func (h *host) reopenService(ctx context.Context) {
	if h.service == nil {
		return
	}

	service, err := ztapi.OpenService(ctx, h.args.ServiceOptions, h.task.Hide)
	if err == nil {
		h.service = service
	}
}

// reopenController is the same for a controller in that service, and gives any controller its time again.
func (h *host) reopenController(ctx context.Context) {
	if h.controller == nil {
		return
	}

	controller, err := ztapi.OpenController(ctx, h.args.Controller, h.args.ServiceOptions, h.task.Hide)
	if err == nil {
		h.controller = controller
	}
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
	if h.undo.sent == nil {
		return nil
	}

	have, err := h.controller.Member(ctx, h.args.NetworkID, h.first.Node)
	if err != nil {
		return err
	}

	if h.first.Member == nil {
		return h.undoNew(ctx, have)
	}

	was, sent := *h.first.Member, *h.undo.sent
	if sent.Authorized != nil {
		sent.Addresses = &was.Addresses // who is authorised may have got some by itself
	}

	change := sent.Of(was)

	if have != nil && len(compare(change, *have)) == 0 && have.Rejected == was.Rejected {
		return nil
	}

	stored, err := h.controller.SetMember(ctx, h.args.NetworkID, h.first.Node, change, have == nil)
	if err != nil {
		return err
	}

	differs := compare(change, stored)
	if stored.Rejected != was.Rejected {
		differs = append(differs, fmt.Sprintf("rejected: %t in place of %t", stored.Rejected, was.Rejected))
	}

	if len(differs) > 0 {
		return fmt.Errorf("the controller stored something else than it was given back: %s", strings.Join(differs, "; "))
	}

	return nil
}

// undoNew deletes the record that this task made, and no other: one that somebody else made meanwhile stays.
func (h *host) undoNew(ctx context.Context, have *ztapi.Member) error {
	if have == nil {
		return nil
	}

	if h.undo.answered == nil {
		return fmt.Errorf("the controller has a record of member %s, and whether this task made it is not known: it is left", have.Node)
	}

	sent := *h.undo.sent
	sent.Addresses = nil // the controller gives some by itself

	if h.args.Controller.Kind == ztapi.KindCentralV1 {
		sent.Name = nil // it loses them
	}

	if differs := compare(sent.Of(*h.undo.answered), *have); len(differs) > 0 {
		return fmt.Errorf("the record of member %s is not as this task left it (%s): it stays", have.Node, strings.Join(differs, "; "))
	}

	return h.controller.DeleteMember(ctx, h.args.NetworkID, h.first.Node)
}
