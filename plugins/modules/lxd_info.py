# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)

# The documentation of the module; the module itself is modules/lxd_info, in Go.

from __future__ import annotations

DOCUMENTATION = r"""
module: lxd_info
short_description: Read what an LXD server and its cluster are and hold
version_added: 0.1.0
author:
  - thinkube contributors (@thinkube)
description:
  - Reads the host's LXD server, its cluster with its members and the state of the database, and the storage pools, networks
    and profiles, the first two as they are on every member.
  - Sizes are numbers of bytes, conditions are booleans. A member that does not answer is part of the result and no failure.
attributes:
  check_mode:
    description: Does the same, since it changes nothing.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
extends_documentation_fragment:
  - thinkube.infra.lxd
options:
  gather:
    description:
      - What to read. The rest is C(null).
    type: list
    elements: str
    choices: [server, cluster, storage_pools, networks, profiles]
    default: [server, cluster, storage_pools, networks, profiles]
  missing_ok:
    description:
      - A host without LXD gives C(installed=false) instead of a failure.
    type: bool
    default: false
seealso:
  - module: thinkube.infra.lxd_cluster
"""

EXAMPLES = r"""
- name: Look at the cluster
  thinkube.infra.lxd_info:
  register: lxd

- name: Every member is online, and one database voter may fail
  ansible.builtin.assert:
    that:
      - lxd.cluster.members | rejectattr('online') | length == 0
      - lxd.cluster.quorum.margin >= 1

- name: Is LXD installed, and is it in a cluster?
  thinkube.infra.lxd_info:
    gather: [server]
    missing_ok: true
"""

RETURN = r"""
installed:
  description: Whether the host has an LXD server. It is C(false) only with I(missing_ok=true).
  returned: success
  type: bool
  sample: true
server:
  description: The host's own server.
  returned: success
  type: dict
  contains:
    product:
      description: C(LXD), or C(Incus).
      type: str
      sample: LXD
    version:
      description: Its version.
      type: str
      sample: 5.21.2
    name:
      description: Its name, which in a cluster is that of the member.
      type: str
      sample: server1
    socket:
      description: The socket that it was asked at.
      type: str
      sample: /var/snap/lxd/common/lxd/unix.socket
    https_address:
      description: Where its API is on the network, empty if it is not.
      type: str
      sample: 192.168.1.101:8443
    cluster_address:
      description: Where the other members reach it, empty if it is in no cluster.
      type: str
      sample: 192.168.1.101:8443
    clustered:
      description: Whether it is in a cluster.
      type: bool
      sample: true
    certificate_fingerprint:
      description: SHA-256 of the server's certificate, which in a cluster is the cluster's.
      type: str
      sample: 9dfa2a26c1a3a5c5ad0a3a0dbd9f3f9f38b1f5f7f8f0a9f5a8c0dfa6c3a4b1e2
    storage_drivers:
      description: The storage drivers that it can use, sorted.
      type: list
      elements: str
      sample: [btrfs, dir, lvm, zfs]
    api_extensions:
      description: How many API extensions it has. Members of a cluster have the same.
      type: int
      sample: 402
cluster:
  description: The cluster that the server is in.
  returned: success
  type: dict
  contains:
    enabled:
      description: Whether it is in one.
      type: bool
      sample: true
    name:
      description: The cluster's name, empty if it was given none.
      type: str
      sample: home
    members:
      description: All members by name, none for a stand-alone server.
      type: list
      elements: dict
      contains:
        name:
          description: The member's name.
          type: str
          sample: server1
        address:
          description: Where the other members reach it.
          type: str
          sample: 192.168.1.101:8443
        status:
          description: LXD's word for its state, which is C(Online), C(Offline), C(Evacuated) or C(Blocked).
          type: str
          sample: Online
        online:
          description: Whether it answers. An evacuated member does.
          type: bool
          sample: true
        message:
          description: What LXD says about a member that is not online.
          type: str
        roles:
          description: Its roles, sorted, those that LXD gives by itself included.
          type: list
          elements: str
          sample: [database]
        voter:
          description: Whether it counts for the quorum of the database.
          type: bool
          sample: true
        groups:
          description: The cluster groups that it is in, sorted.
          type: list
          elements: str
          sample: [default]
        failure_domain:
          description: Where it stands; LXD spreads its database over the domains.
          type: str
          sample: default
        description:
          description: Its description.
          type: str
        architecture:
          description: Its architecture, in the kernel's words.
          type: str
          sample: x86_64
    quorum:
      description: How many database voters the cluster can still lose.
      type: dict
      contains:
        voters:
          description: Members whose vote counts.
          type: int
          sample: 3
        online_voters:
          description: Those of them that are online.
          type: int
          sample: 3
        margin:
          description: Voters that may still fail. When it is negative, the database stands still.
          type: int
          sample: 1
storage_pools:
  description: The storage pools by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The pool's name.
      type: str
      sample: default
    driver:
      description: Its driver.
      type: str
      sample: zfs
    status:
      description: LXD's word for its state, which is C(Created) when all is well.
      type: str
      sample: Created
    description:
      description: Its description.
      type: str
    config:
      description: The config keys that all members share.
      type: dict
    used_by:
      description: API paths of what uses it.
      type: list
      elements: str
    members:
      description: The pool on every member. A stand-alone server is one member of its own name.
      type: dict
      contains:
        <member>:
          description: The pool on this member.
          type: dict
          contains:
            status:
              description: LXD's word for its state there.
              type: str
              sample: Created
            config:
              description: All config keys, those of this member included.
              type: dict
              sample:
                source: tank
                zfs.pool_name: tank
            space_total:
              description: Its size in bytes.
              type: int
              sample: 751619276800
            space_used:
              description: How many bytes are used.
              type: int
              sample: 91331624960
            usable:
              description: Whether it is created there and answers.
              type: bool
              sample: true
            error:
              description: Why it is not usable, else empty.
              type: str
networks:
  description: The networks that LXD manages, by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The network's name.
      type: str
      sample: lxdbr0
    type:
      description: Its type.
      type: str
      sample: bridge
    status:
      description: LXD's word for its state, which is C(Created) when all is well.
      type: str
      sample: Created
    description:
      description: Its description.
      type: str
    config:
      description: The config keys that all members share.
      type: dict
      sample:
        ipv4.address: 192.168.100.1/24
        ipv4.nat: "true"
    used_by:
      description: API paths of what uses it.
      type: list
      elements: str
    members:
      description: The network on every member. A stand-alone server is one member of its own name.
      type: dict
      contains:
        <member>:
          description: The network on this member.
          type: dict
          contains:
            status:
              description: LXD's word for its state there.
              type: str
              sample: Created
            config:
              description: All config keys, those of this member included.
              type: dict
            state:
              description: Whether the interface is C(up) or C(down).
              type: str
              sample: up
            addresses:
              description: Its addresses with their prefix lengths, sorted.
              type: list
              elements: str
              sample: [192.168.100.1/24]
            usable:
              description: Whether it is created there and its interface is up.
              type: bool
              sample: true
            error:
              description: Why it is not usable, else empty.
              type: str
profiles:
  description: The profiles of the default project, by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The profile's name.
      type: str
      sample: default
    description:
      description: Its description.
      type: str
    config:
      description: Its config keys.
      type: dict
    devices:
      description: Its devices by name.
      type: dict
    used_by:
      description: API paths of the instances that use it.
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
        - C(disk_full) - the server has no space left for the change.
        - C(failed) - a step was refused; msg has the reason.
        - C(internal) - a defect in the module; please report it.
        - C(invalid_argument) - an option's value is refused; nothing was touched.
        - C(member_offline) - a cluster member that the change needs is not online.
        - C(needs_collection) - the task needs a second host; run it through the collection, not as a stand-alone program.
        - C(not_answering) - the socket is there but no daemon answers on it.
        - C(not_installed) - there is no LXD socket on the host.
        - C(permission) - the user may not use the socket; it belongs to root and the group lxd.
        - C(timeout) - a deadline has passed.
      type: str
"""
