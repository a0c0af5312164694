# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)

# The documentation of the module; the module itself is modules/zerotier_info, in Go.

from __future__ import annotations

DOCUMENTATION = r"""
module: zerotier_info
short_description: Read a host's ZeroTier service and a controller's members
version_added: 0.1.0
author:
  - thinkube contributors (@thinkube)
description:
  - Reads the host's ZeroTier service - who it is, its networks with what the kernel has of them, the nodes it knows - and
    what a controller has of one network and its members.
attributes:
  check_mode:
    description: Does the same, since it changes nothing.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
extends_documentation_fragment:
  - thinkube.infra.zerotier
options:
  network_id:
    description:
      - The network to read. Left out, all of the host's; with I(controller) it is needed.
    type: str
  service:
    description:
      - Whether to read the host's service; without it, only the controller is asked.
    type: bool
    default: true
  peers:
    description:
      - Whether to read the nodes that the service knows.
    type: bool
    default: false
seealso:
  - module: thinkube.infra.zerotier_member
  - module: thinkube.infra.zerotier_network
"""

EXAMPLES = r"""
- name: Look at the host's ZeroTier
  thinkube.infra.zerotier_info:
  register: zerotier

- name: It is online, and in the network
  ansible.builtin.assert:
    that:
      - zerotier.online
      - zerotier.networks | selectattr('id', 'eq', zerotier_network_id) | selectattr('status', 'eq', 'OK') | length == 1
"""

RETURN = r"""
installed:
  description: Whether the host has a ZeroTier service. Without one, everything about it is empty.
  returned: success
  type: bool
node_id:
  description: The node's id, ten digits.
  returned: success
  type: str
online:
  description: Whether it reaches a root server.
  returned: success
  type: bool
version:
  description: The service's version.
  returned: success
  type: str
networks:
  description: The networks that it has joined.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: The network's id.
      type: str
    name:
      description: Its name.
      type: str
    status:
      description: C(OK), C(REQUESTING_CONFIGURATION), C(ACCESS_DENIED), C(NOT_FOUND), ...
      type: str
    type:
      description: C(PRIVATE) or C(PUBLIC).
      type: str
    device:
      description: The network device.
      type: str
    mac:
      description: Its MAC.
      type: str
    mtu:
      description: Its MTU.
      type: int
    bridge:
      description: Whether the node may bridge.
      type: bool
    assigned:
      description: Addresses that the controller gave. They need not be in the kernel.
      type: list
      elements: str
    routes:
      description: The network's routes.
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
      type: dict
      contains:
        domain:
          description: The domain.
          type: str
        servers:
          description: The name servers.
          type: list
          elements: str
    allow:
      description: What the node lets the network do.
      type: dict
      contains:
        managed:
          description: Set addresses and routes.
          type: bool
        global:
          description: Set public ones.
          type: bool
        default:
          description: Set the default route.
          type: bool
        dns:
          description: Set name servers.
          type: bool
    authentication_url:
      description: Where a person signs in, with status C(AUTHENTICATION_REQUIRED).
      type: str
    kernel_addresses:
      description: Addresses that the device has, with prefix lengths.
      type: list
      elements: str
    rfc4193_address:
      description: The node's address with that assignment mode, whether it is on or not.
      type: str
    sixplane_address:
      description: The node's address with that assignment mode, whether it is on or not.
      type: str
peers:
  description: The nodes that the service knows, with I(peers).
  returned: success
  type: list
  elements: dict
  contains:
    address:
      description: The node's id.
      type: str
    role:
      description: C(PLANET), C(MOON) or C(LEAF).
      type: str
    version:
      description: Its version.
      type: str
    latency:
      description: Milliseconds; -1 when it is not known.
      type: int
    paths:
      description: Ways to it.
      type: list
      elements: dict
      contains:
        address:
          description: Address and port.
          type: str
        active:
          description: Whether it is in use.
          type: bool
        preferred:
          description: Whether it is the one.
          type: bool
network:
  description: The network as the controller has it, with I(controller).
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
members:
  description: The network's members as the controller has them, with I(controller).
  returned: success
  type: list
  elements: dict
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
        - C(controller_missing) - that zerotier-one was built without a controller.
        - C(controller_unreachable) - the controller does not answer, or only with errors that pass.
        - C(failed) - a step was refused; msg has the reason.
        - C(internal) - a defect in the module; please report it.
        - C(invalid_argument) - an option's value is refused; nothing was touched.
        - C(needs_collection) - the task needs a second host; run it through the collection, not as a stand-alone program.
        - C(network_unknown) - the controller has no such network.
        - C(service_missing) - the host has no ZeroTier service, or its token is not in its home folder.
        - C(service_unreachable) - the host's ZeroTier service does not answer.
        - C(timeout) - a deadline has passed.
        - C(token_refused) - the service or the controller refuses the token, or the place that the call came from.
        - C(tun_unusable) - the service cannot make a network device because /dev/net/tun is not usable.
        - C(unexpected_answer) - an answer is not what the interface is documented or was seen to give.
      type: str
"""
