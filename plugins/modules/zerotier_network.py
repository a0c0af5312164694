# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)

# The documentation of the module; the module itself is modules/zerotier_network, in Go.

from __future__ import annotations

DOCUMENTATION = r"""
module: zerotier_network
short_description: Manage a ZeroTier network at its controller
version_added: 0.1.0
author:
  - thinkube contributors (@thinkube)
description:
  - Makes, changes and deletes a network at a self-hosted controller or at ZeroTier Central. It never touches members.
  - Routes and pools are added to those that are there, unless I(exact). Options that are not given are left alone.
  - A controller takes nearly anything and stores something else, up to a network that is open to everyone. So values are
    judged before they are sent, and what was stored is compared with what was sent. Where it differs, the task fails, and puts
    back what was before; a network that it made is deleted.
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
      - The network, 16 hexadecimal digits. A self-hosted controller's begin with its node id.
      - On Central, a network without it is found by I(name), and made when there is none.
    type: str
  network_number:
    description:
      - The last six digits of the id, for a self-hosted controller.
    type: str
  state:
    description:
      - Whether the network is there.
    type: str
    choices: [present, absent]
    default: present
  name:
    description:
      - Its name.
    type: str
  description:
    description:
      - Its description. Only Central has one.
    type: str
  private:
    description:
      - Whether members have to be authorised. A new network is private unless this says otherwise.
    type: bool
  broadcast:
    description:
      - Whether broadcasts are carried. IPv4 needs that.
    type: bool
  mtu:
    description:
      - The MTU of members' devices, from 1280 to 10000.
    type: int
  multicast_limit:
    description:
      - How many members get a multicast packet. 0 ends IPv4 on the network and needs I(confirm_multicast_zero).
    type: int
  confirm_multicast_zero:
    description:
      - Says that 0 is meant.
    type: bool
    default: false
  pools:
    description:
      - Ranges from which members get addresses.
    type: list
    elements: dict
    suboptions:
      start:
        description:
          - The first address.
        type: str
        required: true
      end:
        description:
          - The last one.
        type: str
        required: true
  routes:
    description:
      - Routes that members get. An address reaches a member only when a route without I(routes[].via) holds it.
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
          - The next hop. Left out, members are reached directly.
        type: str
  exact:
    description:
      - Whether I(routes) and I(pools) are all that there are; others go.
    type: bool
    default: false
  v4_assign:
    description:
      - Whether members get IPv4 addresses from the pools.
    type: bool
  v6_assign:
    description:
      - Which IPv6 addresses members get. What is not given stays.
    type: dict
    suboptions:
      zt:
        description:
          - Those of the pools.
        type: bool
      rfc4193:
        description:
          - One made of the ids.
        type: bool
      sixplane:
        description:
          - A /80 made of the ids.
        type: bool
  dns:
    description:
      - What members are told of names. An empty dict clears it. Nodes heed it with I(allow_dns), and on Linux only with a
        program that sets the resolver.
    type: dict
    suboptions:
      domain:
        description:
          - The domain.
        type: str
        default: ''
      servers:
        description:
          - Addresses of the name servers.
        type: list
        elements: str
  rules:
    description:
      - The rules of a self-hosted controller, all of them in order, for example one of type C(ACTION_ACCEPT).
    type: list
    elements: dict
  flow_rules:
    description:
      - The rules of Central v1, as text. Those of Central v2 are not supported.
    type: str
  force:
    description:
      - Whether a network that has members is deleted.
    type: bool
    default: false
seealso:
  - module: thinkube.infra.zerotier_member
  - module: thinkube.infra.zerotier_info
"""

EXAMPLES = r"""
- name: A network of the controller on this host
  thinkube.infra.zerotier_network:
    network_number: 00c0de
    controller: {kind: self_hosted}
    name: lab
    routes:
      - target: 192.168.191.0/24
    pools:
      - {start: 192.168.191.10, end: 192.168.191.99}
    v4_assign: true

- name: A route is added to a network on Central
  thinkube.infra.zerotier_network:
    network_id: "{{ zerotier_network_id }}"
    controller: {kind: central_v1, token_file: /root/central.token}
    routes:
      - {target: 192.168.1.0/24, via: 192.168.191.101}
  delegate_to: localhost
"""

RETURN = r"""
network_id:
  description: The network's id.
  returned: success
  type: str
network:
  description: The network as the controller has it.
  returned: success
  type: dict
  contains:
    id:
      description: Its id.
      type: str
    name:
      description: Its name.
      type: str
    description:
      description: Its description, on Central.
      type: str
    private:
      description: Whether members have to be authorised.
      type: bool
    broadcast:
      description: Whether broadcasts are carried.
      type: bool
    mtu:
      description: The MTU of members' devices.
      type: int
    multicast_limit:
      description: How many members get a multicast packet.
      type: int
    pools:
      description: Ranges from which members get addresses.
      type: list
      elements: dict
      contains:
        start:
          description: The first address.
          type: str
        end:
          description: The last one.
          type: str
    routes:
      description: Routes that members get.
      type: list
      elements: dict
      contains:
        target:
          description: Where it leads.
          type: str
        via:
          description: The next hop; empty where there is none.
          type: str
    v4_assign:
      description: Whether members get IPv4 addresses from the pools.
      type: bool
    v6_assign:
      description: Which IPv6 addresses members get.
      type: dict
      contains:
        zt:
          description: Those of the pools.
          type: bool
        rfc4193:
          description: One made of the ids, a /128 of a /88.
          type: bool
        sixplane:
          description: A /80 made of the ids.
          type: bool
    dns:
      description: What members are told of names.
      type: dict
      contains:
        domain:
          description: The domain.
          type: str
        servers:
          description: The name servers.
          type: list
          elements: str
    rules:
      description: The rules of a self-hosted controller.
      type: list
      elements: dict
    flow_rules:
      description: The rules of Central v1, as text.
      type: str
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
        - C(conflict) - somebody else changed the object while this task did.
        - C(controller_missing) - that zerotier-one was built without a controller.
        - C(controller_unreachable) - the controller does not answer, or only with errors that pass.
        - C(failed) - a step was refused; msg has the reason.
        - C(in_use) - the network has members.
        - C(internal) - a defect in the module; please report it.
        - C(invalid_argument) - an option's value is refused; nothing was touched.
        - C(needs_collection) - the task needs a second host; run it through the collection, not as a stand-alone program.
        - C(network_unknown) - the controller has no such network.
        - C(not_converged) - every step was done and the state is still not the wanted one.
        - C(service_missing) - the host has no ZeroTier service, or its token is not in its home folder.
        - C(service_unreachable) - the host's ZeroTier service does not answer.
        - C(stored_otherwise) - the controller took a change and stored something else.
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
"""
