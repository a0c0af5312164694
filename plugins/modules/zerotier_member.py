# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)

# The documentation of the module; the module itself is modules/zerotier_member, in Go.

from __future__ import annotations

DOCUMENTATION = r"""
module: zerotier_member
short_description: Make a node a member of a ZeroTier network
version_added: 0.1.0
author:
  - thinkube contributors (@thinkube)
description:
  - Authorises a node at the network's controller, joins the network on the host, and waits until the node is in - online,
    with its addresses in the kernel. What goes wrong is said in words, and what the task changed is then put back.
  - Authorising comes first, since a node that is let in at its first question is there in half the time.
  - With I(node_id) the task only speaks to the controller. It can then be delegated to a host that may have the controller's
    token, while the nodes never see it; a second task without I(controller) joins on the node.
  - Only the fields that are given are changed, all in one request. What the controller stored is compared with what it was
    given, since it takes nearly anything.
attributes:
  check_mode:
    description: Reads everything and tells what would be done. It makes no request that changes something.
    support: full
  diff_mode:
    description: Shows what the service and the controller say before and after, without identities and tokens.
    support: full
extends_documentation_fragment:
  - thinkube.infra.zerotier
options:
  network_id:
    description:
      - The network, 16 hexadecimal digits.
    type: str
    required: true
  state:
    description:
      - C(absent) leaves the network on the host; what becomes of the controller's record says I(member_on_absent).
    type: str
    choices: [present, absent]
    default: present
  node_id:
    description:
      - The node, ten hexadecimal digits. With it, nothing is done on the host that the task runs on.
    type: str
  allow_managed:
    description:
      - Whether the network may set addresses and routes on the host. Left out, it is left alone; so are the three others.
    type: bool
  allow_global:
    description:
      - Whether it may set public ones.
    type: bool
  allow_default:
    description:
      - Whether it may set the default route.
    type: bool
  allow_dns:
    description:
      - Whether it may set name servers. On Linux that takes another program.
    type: bool
  authorized:
    description:
      - Whether the member is authorised. Left out, it is, where a controller is given.
    type: bool
  name:
    description:
      - The member's name at the controller. C(central_v1) loses the name of a member whose node has not asked yet; with
        I(node_id), the task warns and has to be run again once the node has joined.
    type: str
  description:
    description:
      - Its description. Only Central has one.
    type: str
  hidden:
    description:
      - Whether Central's pages hide it. Only C(central_v1) has that.
    type: bool
  ip_assignments:
    description:
      - The member's addresses, without prefix lengths; their order does not matter. Left out, they stay; an empty list clears
        them. Addresses that no route of the network holds, and more than 32, do not reach a node.
    type: list
    elements: str
  ip_assignments_state:
    description:
      - Whether I(ip_assignments) are all that there are, or are added to those that are there.
    type: str
    choices: [exact, merge]
    default: exact
  duplicates:
    description:
      - What to do about an address that another member has, which the controller would give to both. An address that was
        double before is only warned of.
    type: str
    choices: [refuse, warn]
    default: refuse
  no_auto_assign_ips:
    description:
      - Whether the member gets no address by itself. Where the network has pools, I(ip_assignments) without an address of
        their family does not stay without this.
    type: bool
  active_bridge:
    description:
      - Whether it may bridge other networks to this one.
    type: bool
  tags:
    description:
      - Its tags, numbers with numbers. Not with C(central_v2).
    type: dict
  capabilities:
    description:
      - Its capabilities, numbers. Not with C(central_v2).
    type: list
    elements: int
  member_on_absent:
    description:
      - What becomes of the controller's record. It is dealt with after the host has left the network, since it would come back
        otherwise.
    type: str
    choices: [keep, deauthorize, delete]
    default: keep
  wait:
    description:
      - Whether to wait for the node.
    type: bool
    default: true
  wait_timeout:
    description:
      - How long. A join takes 3 to 10 seconds on a LAN, and can take minutes over the internet.
    type: str
    default: 90s
  wait_for:
    description:
      - For a node that is C(online), for the network to be C(ok) too, or for every address that the member is to have to be in
        the kernel as well (C(addresses)), those that it gets by itself included - from a pool, or made of the node's id.
    type: str
    choices: [online, ok, addresses]
    default: addresses
  wait_addresses:
    description:
      - Further addresses to wait for, where the controller is not asked.
    type: list
    elements: str
  wait_routes:
    description:
      - Routes to wait for in the kernel, over the network's device. One over an address of the host itself is not waited for,
        since a node makes none.
    type: list
    elements: dict
    suboptions:
      target:
        description:
          - Where it leads, with a prefix length.
        type: str
        required: true
      via:
        description:
          - The next hop; left out, it is on the link.
        type: str
  test:
    description:
      - Addresses of other members that must then be reached over the network's device. One of this host is refused, since it
        would answer without any network.
    type: list
    elements: dict
    suboptions:
      address:
        description:
          - The address.
        type: str
        required: true
      port:
        description:
          - A TCP port that must take connections. Left out, it is pinged.
        type: int
      timeout:
        description:
          - How long to try.
        type: str
        default: 10s
      required:
        description:
          - Whether the task fails; otherwise it warns.
        type: bool
        default: true
  rollback:
    description:
      - Whether to put back what the task changed when it fails, also when something changes it back - the member's fields, the
        node's settings; to leave the network that it joined and to delete the record that it made. What the controller then
        has is compared; a record that somebody else made or changed meanwhile stays. Where a person has to sign in first
        (C(authentication_required)), nothing is put back, since that is done for a node that is in the network.
    type: bool
    default: true
seealso:
  - module: thinkube.infra.zerotier_network
  - module: thinkube.infra.zerotier_info
"""

EXAMPLES = r"""
- name: Who the node is
  thinkube.infra.zerotier_info:
  register: zerotier

- name: Authorised from here, where the token is
  thinkube.infra.zerotier_member:
    network_id: "{{ zerotier_network_id }}"
    node_id: "{{ zerotier.node_id }}"
    controller: {kind: central_v1, token_file: /root/central.token}
    name: "{{ inventory_hostname }}"
    ip_assignments: ["{{ zerotier_ip }}"]
    no_auto_assign_ips: true
  delegate_to: localhost

- name: Joined there, with the address in the kernel, and another member reached
  thinkube.infra.zerotier_member:
    network_id: "{{ zerotier_network_id }}"
    wait_addresses: ["{{ zerotier_ip }}"]
    test:
      - {address: 192.168.191.1, port: 53}

- name: Out again, and the record gone
  thinkube.infra.zerotier_member:
    network_id: "{{ zerotier_network_id }}"
    state: absent
    controller: {kind: self_hosted, url: "https://controller.example:9994", token_file: /root/controller.token}
    member_on_absent: delete
"""

RETURN = r"""
node_id:
  description: The node; empty in check mode on a host that has no service yet.
  returned: success
  type: str
network_id:
  description: The network.
  returned: success
  type: str
status:
  description: The network's status on the node, C(OK) when it is in; empty when it is not joined or not asked.
  returned: success
  type: str
online:
  description: Whether the node reaches a root server. Without that, its status may be an old one.
  returned: success
  type: bool
type:
  description: C(PRIVATE) or C(PUBLIC).
  returned: success
  type: str
device:
  description: The network device.
  returned: success
  type: str
mac:
  description: Its MAC.
  returned: success
  type: str
assigned_addresses:
  description: What the controller gave, with prefix lengths, those that it chose itself included.
  returned: success
  type: list
  elements: str
kernel_addresses:
  description: What the device has.
  returned: success
  type: list
  elements: str
rfc4193_address:
  description: The node's address with that assignment mode, whether it is on or not.
  returned: success
  type: str
sixplane_address:
  description: The node's address with that assignment mode, whether it is on or not.
  returned: success
  type: str
routes:
  description: The network's routes.
  returned: success
  type: list
  elements: dict
  contains:
    target:
      description: Where it leads.
      type: str
    via:
      description: The next hop; empty where there is none.
      type: str
dns:
  description: What the network says of names.
  returned: success
  type: dict
  contains:
    domain:
      description: The domain.
      type: str
    servers:
      description: The name servers.
      type: list
      elements: str
member:
  description: The controller's record, where a controller is given.
  returned: success
  type: dict
  contains:
    before:
      description: Before the task; C(null) when there was none.
      type: dict
      contains:
        node_id:
          description: The node.
          type: str
        authorized:
          description: Whether it is authorised.
          type: bool
        name:
          description: Its name.
          type: str
        description:
          description: Its description, on Central.
          type: str
        hidden:
          description: Whether Central's pages hide it.
          type: bool
        ip_assignments:
          description: Its addresses.
          type: list
          elements: str
        no_auto_assign_ips:
          description: Whether it gets no address by itself.
          type: bool
        active_bridge:
          description: Whether it may bridge other networks to this one.
          type: bool
        rejected:
          description: Whether Central v2 has it rejected, which is more than not authorised; left out where it is not.
          type: bool
        tags:
          description: Its tags; C(-1) is one without a value, for which Central gives false.
          type: dict
        capabilities:
          description: Its capabilities.
          type: list
          elements: int
    after:
      description: After it.
      type: dict
      contains:
        node_id:
          description: The node.
          type: str
        authorized:
          description: Whether it is authorised.
          type: bool
        name:
          description: Its name.
          type: str
        description:
          description: Its description, on Central.
          type: str
        hidden:
          description: Whether Central's pages hide it.
          type: bool
        ip_assignments:
          description: Its addresses.
          type: list
          elements: str
        no_auto_assign_ips:
          description: Whether it gets no address by itself.
          type: bool
        active_bridge:
          description: Whether it may bridge other networks to this one.
          type: bool
        rejected:
          description: Whether Central v2 has it rejected, which is more than not authorised; left out where it is not.
          type: bool
        tags:
          description: Its tags; C(-1) is one without a value, for which Central gives false.
          type: dict
        capabilities:
          description: Its capabilities.
          type: list
          elements: int
controller_kind:
  description: The kind of controller that was asked.
  returned: success
  type: str
waited_s:
  description: How many seconds the node was waited for.
  returned: success
  type: float
tests:
  description: What came of I(test).
  returned: success
  type: list
  elements: dict
  contains:
    address:
      description: The address.
      type: str
    port:
      description: The port; C(null) for a ping.
      type: int
    ok:
      description: Whether it was reached.
      type: bool
    reason:
      description: Why not.
      type: str
    took_ms:
      description: How many milliseconds it took.
      type: float
plan:
  description: What was done, a line each; in check mode what would be done.
  returned: success
  type: list
  elements: str
hint:
  description: What to do about the failure, where there is something to do.
  returned: failure
  type: str
failure:
  description: What kind of failure it was.
  returned: failure
  type: dict
  contains:
    code:
      description:
        - The kind of failure.
        - C(address_missing) - an address of the member is not on its network device.
        - C(address_taken) - another member has an address that this one is to get.
        - C(authentication_required) - a person has to sign in (AUTHENTICATION_REQUIRED).
        - C(conflict) - somebody else changed the object while this task did.
        - C(controller_missing) - that zerotier-one was built without a controller.
        - C(controller_not_reached) - the network's controller did not answer the node (REQUESTING_CONFIGURATION).
        - C(controller_unreachable) - the controller does not answer, or only with errors that pass.
        - C(failed) - a step was refused; msg has the reason.
        - C(internal) - a defect in the module; please report it.
        - C(invalid_argument) - an option's value is refused; nothing was touched.
        - C(needs_collection) - the task needs a second host; run it through the collection, not as a stand-alone program.
        - C(network_not_found) - the network's controller says that there is no such network (NOT_FOUND).
        - C(network_unknown) - the controller has no such network.
        - C(not_authorized) - the controller refuses the node (ACCESS_DENIED).
        - C(not_converged) - every step was done and the state is still not the wanted one.
        - C(offline) - the node reaches no root server, so what it says of its networks is old.
        - C(refused_by_node) - the node itself cannot take part (PORT_ERROR, CLIENT_TOO_OLD).
        - C(route_missing) - a route of wait_routes does not lead over the network's device.
        - C(service_missing) - the host has no ZeroTier service, or its token is not in its home folder.
        - C(service_unreachable) - the host's ZeroTier service does not answer.
        - C(stored_otherwise) - the controller took a change and stored something else.
        - C(test_failed) - an address that is to be reached over the network is not.
        - C(timeout) - a deadline has passed.
        - C(token_refused) - the service or the controller refuses the token, or the place that the call came from.
        - C(tun_unusable) - the service cannot make a network device because /dev/net/tun is not usable.
        - C(unexpected_answer) - an answer is not what the interface is documented or was seen to give.
      type: str
    step:
      description: The step that failed, as in I(plan).
      type: str
    done:
      description: The steps that were done before it.
      type: list
      elements: str
    authentication_url:
      description: Where a person has to sign in, with C(authentication_required).
      type: str
    rolled_back:
      description:
        - Whether all that the task had changed was put back. C(changed) tells what it had done until then. False also where
          nothing was changed, or nothing was to be put back.
      type: bool
    status:
      description: The network's status on the node, where it was seen.
      type: str
    waited_s:
      description: How many seconds the node was waited for.
      type: float
    tests:
      description: What came of I(test), as on success, where it came to that.
      type: list
      elements: dict
"""
