# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)

# The documentation of the module; the module itself is modules/lxd_network, in Go.

from __future__ import annotations

DOCUMENTATION = r"""
module: lxd_network
short_description: Manage one LXD network on all members of a cluster
version_added: 0.1.0
author:
  - thinkube contributors (@thinkube)
description:
  - Creates, changes and deletes a network of an LXD server, or of all members of an LXD cluster.
  - Run the task on one member; it acts on all. In a cluster the network is defined on every member first, then created on
    all. A task that was interrupted at any point, or that a member refused, is finished by running it again.
  - Before anything is made, the task looks for what would stop it half-way or cut hosts off - members that are not online,
    an interface of the network's name that LXD does not manage, interfaces that the network is to use and that a member
    lacks, and subnets that other networks or interfaces of members have already.
  - What this module did is noted in the network itself (configuration keys C(user.thinkube.created) and
    C(user.thinkube.undo)), so that I(state=absent) can take back exactly that, from every member.
attributes:
  check_mode:
    description: Says what would be done and changes nothing.
    support: full
  diff_mode:
    description: Shows the network on all members before and after.
    support: full
extends_documentation_fragment:
  - thinkube.infra.lxd
options:
  name:
    description:
      - The network's name. A bridge is an interface of the same name, so it has 2 to 15 characters.
    type: str
    required: true
  state:
    description:
      - With C(present) the network exists on every member and has what the other options say.
      - With C(absent) what this module did is taken back. A network that it made is deleted, unless something uses it; one
        that it changed gets back what it had, as far as nobody else has changed it since; one that it never touched is left
        alone (see I(force)). A network that is only defined, and not made on any member yet, is deleted in any case.
    type: str
    choices: [present, absent]
    default: present
  type:
    description:
      - The network's type, for example C(bridge), C(macvlan), C(physical), C(sriov) or C(ovn). It cannot be changed
        afterwards.
      - Left out, a new network becomes a C(bridge), and an existing one may be of any type.
    type: str
  description:
    description:
      - The network's description.
      - Left out, the description is not managed.
    type: str
  config:
    description:
      - Config keys and their values. Numbers and booleans become the text that LXD keeps.
      - Keys that every member has for itself, such as C(parent), hold for all members here.
      - A key with the value C(null) is removed. Keys that are not named stay as they are.
      - C(ipv4.address) and C(ipv6.address) are C(none), an address with its prefix length, or C(auto). With C(auto) the
        server chooses once, and keeps it.
    type: dict
  members:
    description:
      - Config keys of single members, by the members' names. They win over I(config).
      - Only keys that a member has for itself can be given - C(acceleration.parent), C(bgp.ipv4.nexthop),
        C(bgp.ipv6.nexthop), C(bridge.external_interfaces), C(parent), and those that the cluster itself names.
      - A server in no cluster is its own only member.
    type: dict
  force:
    description:
      - With I(state=absent), delete also a network that this module did not make.
      - A network that something uses is never deleted.
    type: bool
    default: false
notes:
  - LXD lists the interfaces of the member that is asked only. Of the other members, those are looked at that have the same
    names as on this one, the network cards, and the addresses that they have in the cluster.
  - A host that joins the cluster later gets the network when it joins, with what it needs of its own given there (module
    M(thinkube.infra.lxd_cluster), option C(member_config)).
seealso:
  - module: thinkube.infra.lxd_cluster
  - module: thinkube.infra.lxd_info
  - name: Networks
    description: What keys each type of network has.
    link: https://documentation.ubuntu.com/lxd/en/latest/reference/networks/
"""

EXAMPLES = r"""
- name: A bridge with the same subnet on every member
  thinkube.infra.lxd_network:
    name: lxdbr0
    description: Where instances are by default
    config:
      ipv4.address: "{{ lxd_subnet }}"
      ipv4.nat: true
      ipv6.address: none
  run_once: true

- name: Instances on the hosts' own network
  thinkube.infra.lxd_network:
    name: lan
    type: macvlan
    config:
      parent: eno1
    members:
      host2:
        parent: enp3s0
  run_once: true

- name: Take back what the tasks above did
  thinkube.infra.lxd_network:
    name: "{{ item }}"
    state: absent
  loop:
    - lxdbr0
    - lan
  run_once: true
"""

RETURN = r"""
network:
  description: The network after the task, in check mode as it would be. C(null) if there is none.
  returned: success
  type: dict
  contains:
    name:
      description: The network's name.
      type: str
      sample: lxdbr0
    type:
      description: The network's type.
      type: str
      sample: bridge
    status:
      description: The network's status in the cluster.
      type: str
      sample: Created
    description:
      description: The network's description.
      type: str
      sample: Where instances are by default
    config:
      description: The config keys that all members share.
      type: dict
      sample:
        ipv4.address: 10.20.30.1/24
        ipv4.nat: "true"
        ipv6.address: none
    members:
      description: The network on each member, by the member's name, with its status there and the config keys of its own.
      type: dict
      sample:
        host1:
          status: Created
          config: {}
plan:
  description: What was done, one line for each step; in check mode what would be done.
  returned: success
  type: list
  elements: str
  sample:
    - 'create network "lxdbr0" on member "host1" (define it)'
    - 'create network "lxdbr0" (type bridge, ipv4.address=10.20.30.1/24, ipv4.nat=true, ipv6.address=none)'
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
        - C(conflict) - somebody else changed the object while this task did.
        - C(disk_full) - the server has no space left for the change.
        - C(failed) - a step was refused; msg has the reason.
        - C(immutable) - a value that is only taken at creation differs from what is there.
        - C(in_use) - the object is to be deleted and is still used.
        - C(internal) - a defect in the module; please report it.
        - C(invalid_argument) - an option's value is refused; nothing was touched.
        - C(member_offline) - a cluster member that the change needs is not online.
        - C(missing_on_member) - the object is created and a cluster member does not have it.
        - C(needs_collection) - the task needs a second host; run it through the collection, not as a stand-alone program.
        - C(no_interface) - a member does not have the interface that the network is to use.
        - C(not_answering) - the socket is there but no daemon answers on it.
        - C(not_converged) - every step was done and the state is still not the wanted one.
        - C(not_installed) - there is no LXD socket on the host.
        - C(overlap) - the network's subnet overlaps with another network or with an interface of a member.
        - C(permission) - the user may not use the socket; it belongs to root and the group lxd.
        - C(timeout) - a deadline has passed.
        - C(tool_missing) - a member lacks a program that its server needs for the network, such as dnsmasq.
        - C(unavailable) - the object exists and a cluster member could not bring it up.
        - C(unmanaged) - a member has an interface of that name that LXD does not manage.
      type: str
    step:
      description: The step that failed, as it is named in C(plan).
      type: str
    done:
      description: The steps that were done before.
      type: list
      elements: str
"""
