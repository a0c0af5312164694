# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)

# The documentation of the module; the module itself is modules/net_bridge_info, in Go.

from __future__ import annotations

DOCUMENTATION = r"""
module: net_bridge_info
short_description: Read a host's bridges and how they are written down
version_added: 0.1.0
author:
  - thinkube contributors (@thinkube)
description:
  - Reads bridges with their ports, addresses and routes from the kernel, who manages them and in which files, and whether
    kernel and files are still as M(thinkube.infra.net_bridge) made them.
  - Reading what other users may not read, such as that module's record, needs root.
attributes:
  check_mode:
    description: Does the same, since it changes nothing.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
options:
  name:
    description:
      - The bridge to read. Left out, all of them.
    type: str
  probe:
    description:
      - Whether to look for the gateways, by ARP or neighbour discovery. Needs root.
    type: bool
    default: false
seealso:
  - module: thinkube.infra.net_bridge
"""

EXAMPLES = r"""
- name: Look at the bridge
  thinkube.infra.net_bridge_info:
    name: br0
  register: net

- name: It is as it was made, and its ports forward
  ansible.builtin.assert:
    that:
      - net.bridges | length == 1
      - net.bridges[0].agrees
      - net.bridges[0].ports | rejectattr('state', 'eq', 'forwarding') | length == 0
"""

RETURN = r"""
bridges:
  description: The bridges; an empty list when there is none, or none of that name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The bridge's name.
      type: str
    mac:
      description: Its MAC.
      type: str
    mtu:
      description: Its MTU.
      type: int
    up:
      description: Whether it is set up.
      type: bool
    carrier:
      description: Whether a port of it has a carrier.
      type: bool
    stp:
      description: Whether it takes part in the spanning tree.
      type: bool
    forward_delay:
      description: How many seconds a port waits before it forwards, with I(stp).
      type: int
    vlan_filtering:
      description: Whether it heeds VLAN tags.
      type: bool
    ports:
      description: Its ports.
      type: list
      elements: dict
      contains:
        name:
          description: The link's name.
          type: str
        mac:
          description: The link's MAC.
          type: str
        carrier:
          description: Whether it has a carrier.
          type: bool
        state:
          description: C(forwarding), C(learning), C(listening), C(blocking) or C(disabled).
          type: str
        managed:
          description: Whether M(thinkube.infra.net_bridge) made it a port. Others belong to virtual machines, for example.
          type: bool
    addresses:
      description: Its addresses with their prefix lengths, without the IPv6 link-local one.
      type: list
      elements: str
    gateways:
      description: The next hops of the default routes over it.
      type: list
      elements: str
    answering:
      description: The gateways that answered, with I(probe).
      type: list
      elements: str
    routes:
      description: The routes over it in all tables, without those that the kernel makes for addresses.
      type: list
      elements: str
    managed:
      description: Whether M(thinkube.infra.net_bridge) made it.
      type: bool
    manager:
      description: Whose files configure it - C(netplan), C(networkd), C(networkmanager), C(ifupdown), or empty.
      type: str
    files:
      description: The files that configure it and its ports.
      type: list
      elements: dict
      contains:
        path:
          description: The file.
          type: str
        owner:
          description: Who reads it.
          type: str
    agrees:
      description: Whether kernel and files are as they were made; C(null) for bridges of others.
      type: bool
    differences:
      description: What is not as it was made, a line each.
      type: list
      elements: str
  sample:
    - name: br0
      ports:
        - name: enp3s0
          state: forwarding
      addresses: [192.168.1.10/24]
      agrees: true
armed:
  description: A change that is staged, waits to be confirmed, or was undone; C(null) when there is none.
  returned: success
  type: dict
  contains:
    ticket:
      description: Its name.
      type: str
    bridge:
      description: The bridge that it is about.
      type: str
    phase:
      description: C(staged), C(armed), C(applying), C(applied), C(confirmed), C(restoring) or C(rolled_back).
      type: str
    summary:
      description: What it does.
      type: str
    guarded:
      description: Whether the process that would undo it runs.
      type: bool
    reason:
      description: Why it was undone.
      type: str
    failed:
      description: What could not be undone.
      type: str
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
        - C(failed) - a step was refused; msg has the reason.
        - C(internal) - a defect in the module; please report it.
        - C(invalid_argument) - an option's value is refused; nothing was touched.
        - C(needs_collection) - the task needs a second host; run it through the collection, not as a stand-alone program.
        - C(timeout) - a deadline has passed.
      type: str
"""
