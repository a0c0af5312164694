# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)

# The documentation of the module; the module itself is modules/net_bridge, in Go.

from __future__ import annotations

DOCUMENTATION = r"""
module: net_bridge
short_description: Move a host's uplink into a bridge without losing the host
version_added: 0.1.0
author:
  - thinkube contributors (@thinkube)
description:
  - Makes a bridge that has a link as its port and takes over everything the link had - addresses, DHCP, routes of all tables,
    rules, DNS, MTU and MAC - in the kernel and in the configuration files of whoever manages the host's network.
  - The change undoes itself unless it is confirmed over a new connection. Before anything changes, all that was there is
    stored, and a guard runs on the host that outlives the connection and the task. The task opens the new connection and
    confirms by itself. If it cannot, the host is as it was after I(confirm_timeout), files and kernel; if the host was
    restarted meanwhile, it comes up as it was.
  - What somebody wrote about the port is carried over to the bridge as it stands, not translated. What was there before is
    kept, and I(state=absent) puts it back byte for byte, with the same safety.
attributes:
  check_mode:
    description: Says what would be done and changes nothing.
    support: full
  diff_mode:
    description: Shows links, addresses, routes, rules and configuration files before and after.
    support: full
options:
  name:
    description:
      - The bridge's name, for example C(br0). At most 15 letters, digits, dots, hyphens and underscores.
    type: str
    required: true
  state:
    description:
      - With C(present) the bridge exists, has the ports, and is the host's uplink.
      - With C(absent) what this module did is taken back. A bridge that it did not make is left alone. Refused while other
        ports, such as those of virtual machines, are in the bridge.
    type: str
    choices: [present, absent]
    default: present
  ports:
    description:
      - The links that become ports, by name or by MAC.
      - C(auto) is the link of the default route; refused when default routes lead over several.
      - Of several the first gives the bridge its MAC and, with I(addresses=inherit), all else; a further one may have no
        addresses or routes of its own then. All have the same manager, or further ones none. With ifupdown there can be one.
      - The ports of a bridge that this module made cannot be changed. Take it back and make it anew.
    type: list
    elements: str
    default: [auto]
  addresses:
    description:
      - The bridge's addresses with their prefix lengths, for example C(192.168.1.10/24). They take the place of all that the
        port has, DHCP included. Refused when another host answers for one of them.
      - C(inherit) is everything that the first port has, DHCP included.
    type: list
    elements: str
    default: [inherit]
  gateway4:
    description:
      - The IPv4 gateway, C(none), or C(inherit) for the present one.
    type: str
    default: inherit
  gateway6:
    description:
      - The same for IPv6.
    type: str
    default: inherit
  nameservers:
    description:
      - The name servers' addresses. Left out, they stay as configured.
    type: list
    elements: str
  search:
    description:
      - The domains that names are looked up in. Left out, they stay as configured.
    type: list
    elements: str
  routes:
    description:
      - Static routes over the bridge, beside those that the port has.
    type: list
    elements: dict
    suboptions:
      to:
        description:
          - The destination's prefix.
        type: str
        required: true
      via:
        description:
          - The next hop's address. Left out, the destination is on the link itself.
        type: str
      table:
        description:
          - The routing table; 0 is C(main).
        type: int
        default: 0
      metric:
        description:
          - The route's metric; of routes to the same destination the least counts.
        type: int
        default: 0
      on_link:
        description:
          - The next hop is taken to be on the link even though no address says so.
        type: bool
        default: false
  mtu:
    description:
      - The MTU of bridge and ports. Left out, it stays.
    type: int
  mac:
    description:
      - The bridge's MAC. C(port) is the first port's, so that switches, DHCP servers and neighbours see no change. It is
        written into the configuration as well.
    type: str
    default: port
  stp:
    description:
      - Whether the bridge takes part in the spanning tree.
    type: bool
    default: false
  forward_delay:
    description:
      - Seconds that a port listens and learns before it forwards. Left out, 0, and 15 with I(stp).
    type: int
  vlan_filtering:
    description:
      - Whether the bridge heeds VLAN tags. Untagged traffic is in VLAN 1 then, the host's own as well.
    type: bool
    default: false
  ipv6:
    description:
      - C(inherit) is as the port has it, C(ra) takes router advertisements, C(static) does not, C(off) is no IPv6 at all.
      - An address that was made from the MAC stays the same, since the MAC does. One that NetworkManager made with
        C(addr-gen-mode=stable-privacy) does not.
    type: str
    choices: [inherit, ra, static, 'off']
    default: inherit
  manager:
    description:
      - Who manages the host's network, and whose files are written. C(auto) is who configured the port.
    type: str
    choices: [auto, netplan, networkd, networkmanager, ifupdown]
    default: auto
  exclusive:
    description:
      - Whether other configuration that touches the port may be changed or set aside. It is kept, and comes back with
        I(state=absent). Without it, a host where that is needed is refused. (systemd-networkd never needs it.)
    type: bool
    default: true
  phase:
    description:
      - C(apply) does everything, including the confirmation when the task runs through the collection.
      - C(plan) only tells the steps; C(stage) also has the files checked and stores what would be done.
      - C(confirm) makes a change stay that was applied and waits; C(rollback) undoes it at once.
    type: str
    choices: [plan, stage, apply, confirm, rollback]
    default: apply
  confirm_timeout:
    description:
      - How long the change waits for its confirmation before it is undone, for example C(90s); 10s to 1h.
      - C(0) is a change that nobody needs to confirm; it is undone only if it fails by itself.
    type: str
    default: 90s
  probes:
    description:
      - What must work after the change, or it is undone. Of C(gateway) (ARP or neighbour discovery), C(controller) (TCP) and
        C(dns), what did not work before is left out, except for a new gateway.
      - C(tcp:ADDRESS:PORT) must take a connection afterwards in any case.
    type: list
    elements: str
    default: [gateway, controller, dns]
  ticket:
    description:
      - The change's name. Left out, one is made up. I(phase=confirm) with a ticket confirms that change only.
    type: str
notes:
  - Without systemd, the guard is a detached process. A restart of the host before the confirmation then leaves the new
    files in place until a task with I(phase=rollback).
  - Needs root.
seealso:
  - module: thinkube.infra.net_bridge_info
"""

EXAMPLES = r"""
- name: The uplink is in bridge br0, with all that it had
  thinkube.infra.net_bridge:
    name: br0

- name: What would that do?
  thinkube.infra.net_bridge:
    name: br0
  check_mode: true

- name: Two addresses in place of DHCP, and more time to come back
  thinkube.infra.net_bridge:
    name: br0
    ports: [enp3s0]
    addresses: [192.168.1.10/24, "fd00:1::10/64"]
    gateway4: 192.168.1.1
    nameservers: [192.168.1.1]
    confirm_timeout: 3m

- name: Only static IPv6, whatever routers advertise
  thinkube.infra.net_bridge:
    name: br0
    ipv6: static

- name: The first of two steps - everything is checked and written down, and nothing changes
  thinkube.infra.net_bridge:
    name: br0
    phase: stage

- name: A change that waits is as it should be
  thinkube.infra.net_bridge:
    name: br0
    phase: confirm

- name: A change that waits, or was cut off, is undone
  thinkube.infra.net_bridge:
    name: br0
    phase: rollback

- name: The network is as it was before
  thinkube.infra.net_bridge:
    name: br0
    state: absent
"""

RETURN = r"""
bridge:
  description: The bridge; C(null) when there is none.
  returned: success
  type: dict
  contains:
    name:
      description: Its name.
      type: str
    mac:
      description: Its MAC.
      type: str
    mtu:
      description: Its MTU.
      type: int
    ports:
      description: The names of its ports.
      type: list
      elements: str
    addresses:
      description: Its addresses with their prefix lengths, without the IPv6 link-local one.
      type: list
      elements: str
    gateways:
      description: The next hops of the default routes over it.
      type: list
      elements: str
    stp:
      description: Whether it takes part in the spanning tree.
      type: bool
  sample:
    name: br0
    mac: "02:00:00:00:00:01"
    mtu: 1500
    ports: [enp3s0]
    addresses: [192.168.1.10/24]
    gateways: [192.168.1.1]
    stp: false
manager:
  description: Who manages the network; empty when that is not known.
  returned: success
  type: str
  sample: networkd
steps:
  description: What was or would be done, a line each, in the kernel and in files.
  returned: success
  type: list
  elements: str
  sample:
    - add bridge "br0"
    - make link "enp3s0" a port of "br0"
files:
  description: The configuration files that were written, changed or set aside.
  returned: success
  type: list
  elements: str
  sample: [/etc/systemd/network/05-thinkube-br0.netdev]
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
      description: C(staged), C(armed), C(applying), C(applied), C(confirmed), C(restoring), C(stuck) or C(rolled_back).
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
    wanted:
      description: Stands for the options that it was made from.
      type: str
    ours:
      description: Whether this very task armed it.
      type: bool
plan:
  description: What was done, one line for each step; in check mode what would be done.
  returned: success
  type: list
  elements: str
  sample:
    - 'create bridge "br0" with port enp3s0: 192.168.1.10/24'
hint:
  description: What to do about the failure, where there is something to do.
  returned: failure
  type: str
failure:
  description: What kind of failure it was and how far the task came.
  returned: failure
  type: dict
  contains:
    code:
      description:
        - The kind of failure.
        - C(address) - an address or gateway does not fit the others.
        - C(address_in_use) - another host answers for an address that the bridge is to have.
        - C(ambiguous_port) - which link is the uplink cannot be told; there is no default route, or several lead over different links.
        - C(armed_change) - an earlier change is neither confirmed nor undone.
        - C(conflict) - somebody else changed the object while this task did.
        - C(failed) - a step was refused; msg has the reason.
        - C(files_changed) - a file that this module wrote was changed by somebody else since.
        - C(foreign_bridge) - a bridge of that name was made by somebody else and is not as asked for.
        - C(in_use) - the bridge has ports of others, such as virtual machines.
        - C(internal) - a defect in the module; please report it.
        - C(invalid_argument) - an option's value is refused; nothing was touched.
        - C(invalid_config) - the files that were to be written would be refused or misread; nothing was touched.
        - C(manager) - nobody, or more than one, manages the port's network.
        - C(name_taken) - a link of the bridge's name exists and is no bridge.
        - C(needs_collection) - the task needs a second host; run it through the collection, not as a stand-alone program.
        - C(not_converged) - every step was done and the state is still not the wanted one.
        - C(not_undone) - the change was made and could not be undone altogether; what was there before is kept on the host.
        - C(old_connection) - a confirmation has to come over an ssh connection that was opened after the change.
        - C(port) - a port does not exist, or cannot or must not become one.
        - C(read_only) - the manager's files cannot be written.
        - C(rolled_back) - the change was made and undone again; msg says why.
        - C(timeout) - a deadline has passed.
        - C(unsupported) - the network's manager cannot say what is asked for, or its files would have to be changed for other links too.
      type: str
    step:
      description: The step that failed, as it is named in C(plan).
      type: str
    done:
      description: The steps that were done before.
      type: list
      elements: str
"""
