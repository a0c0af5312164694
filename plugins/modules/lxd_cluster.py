# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)

# The documentation of the module; the module itself is modules/lxd_cluster, in Go.

from __future__ import annotations

DOCUMENTATION = r"""
module: lxd_cluster
short_description: Make a host a member of an LXD cluster, or take it out
version_added: 0.1.0
author:
  - thinkube contributors (@thinkube)
description:
  - Makes the host's LXD server the first member of a new cluster, or lets it join one, and keeps what can be set of a
    member - its description, failure domain, groups and roles.
  - Run it on every host, for that host. A host that joins gets its join token from the host named in I(via), by itself
    and in the same task. The token is issued just before it is used, used once, revoked when it was not used, and never
    written to a disk, to facts or to any output.
  - Before a join changes anything, the task looks for every reason why it would fail - an address that is not on the host,
    data on the server, a missing member key, other versions, other clocks, and hosts that cannot reach each other in both
    directions.
  - Hosts that join at the same time do so one after the other. A task that was interrupted at any point is finished by
    running it again.
  - Nothing that exists is ever deleted to make a join possible.
attributes:
  check_mode:
    description: Says what would be done and changes nothing. No join token is issued.
    support: full
  diff_mode:
    description: Shows the cluster as the host sees it, before and after.
    support: full
extends_documentation_fragment:
  - thinkube.infra.lxd
options:
  name:
    description:
      - The member's name in the cluster.
      - With I(state=absent) it may be another member than the host that the task runs on.
    type: str
    required: true
  state:
    description:
      - With C(present) the host is a member and has what the other options say.
      - With C(absent) the member has left the cluster. The server then has the addresses that it had before this module
        changed them. Members that hold instances or volumes are refused.
    type: str
    choices: [present, absent]
    default: present
  address:
    description:
      - The IP address of this host that the other members reach it at, with or without a port (C(8443) if left out).
      - Neither a wildcard nor a loopback address. Needed with I(state=present).
    type: str
  cluster:
    description:
      - A name for the cluster. LXD has none, so it is kept in the server's configuration key C(user.thinkube.cluster).
      - A server that is in a cluster of another name is refused.
    type: str
  bootstrap:
    description:
      - This host makes the cluster when it is in none.
      - Exactly one of I(bootstrap), I(via) and I(join_token) is needed with I(state=present).
    type: bool
    default: false
  via:
    description:
      - The inventory name of a host that is a member; this host joins its cluster.
      - Needs the collection's action plugin, which reaches that host with its own connection and become settings.
    type: str
  join_token:
    description:
      - A token made by C(lxc cluster add), instead of I(via).
      - It is secret and never shown.
    type: str
  member_config:
    description:
      - What differs from member to member, for the join. The cluster says which keys it needs; those that are missing are
        named in check mode already.
    type: dict
    suboptions:
      storage_pools:
        description:
          - Keys and values by storage pool, for example C(source) and C(size).
          - A key with the value C(null) is left to LXD.
        type: dict
      networks:
        description:
          - Keys and values by network, for example C(parent).
          - A key with the value C(null) is left to LXD.
        type: dict
  description:
    description:
      - The member's description.
      - Left out, it is not managed.
    type: str
  failure_domain:
    description:
      - Where the member stands, for example a rack. LXD spreads its database over the domains.
      - Left out, it is not managed.
    type: str
  groups:
    description:
      - The cluster groups that the member is in. The groups must exist.
      - Left out, they are not managed.
    type: list
    elements: str
  roles:
    description:
      - The member's manual roles. Those of the database are LXD's own and are refused.
      - Left out, they are not managed.
    type: list
    elements: str
  force:
    description:
      - With I(state=absent), remove a member that does not answer. Its own server must be installed anew then.
      - Also take out a host that somebody else made a member; without it, such a host stays one, and the task says so.
    type: bool
    default: false
  allow_quorum_loss:
    description:
      - With I(force=true), go on although the cluster's database will stand still.
    type: bool
    default: false
  confirm:
    description:
      - The cluster's name, which is asked for when the last member is removed. That ends the cluster and makes the server
        a stand-alone one with an empty database.
    type: str
seealso:
  - module: thinkube.infra.lxd_info
  - module: thinkube.infra.lxd_storage_pool
  - module: thinkube.infra.lxd_network
"""

EXAMPLES = r"""
- name: The first host makes the cluster
  thinkube.infra.lxd_cluster:
    name: "{{ inventory_hostname }}"
    address: "{{ lan_ip }}"
    cluster: home
    bootstrap: true
  when: inventory_hostname in groups.lxd_primary

- name: Every other host joins it
  thinkube.infra.lxd_cluster:
    name: "{{ inventory_hostname }}"
    address: "{{ lan_ip }}"
    cluster: home
    via: "{{ groups.lxd_primary | first }}"
    member_config:
      storage_pools:
        default:
          source: /dev/disk/by-id/nvme-EXAMPLE
    failure_domain: cellar
  when: inventory_hostname in groups.lxd_secondary

- name: A member leaves
  thinkube.infra.lxd_cluster:
    name: "{{ inventory_hostname }}"
    state: absent

- name: A member that burnt down is removed, by another one
  thinkube.infra.lxd_cluster:
    name: server3
    state: absent
    force: true

- name: The last member becomes a stand-alone server again
  thinkube.infra.lxd_cluster:
    name: "{{ inventory_hostname }}"
    state: absent
    confirm: home
"""

RETURN = r"""
member:
  description: The member after the task, in check mode as it would be. C(null) if there is none.
  returned: success
  type: dict
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
cluster:
  description: The cluster that the host's server is in after the task.
  returned: success
  type: dict
  contains:
    enabled:
      description: Whether the server is in a cluster.
      type: bool
      sample: true
    name:
      description: The cluster's name, empty if it was given none.
      type: str
      sample: home
    members:
      description: All members by name.
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
plan:
  description: What was done, one line for each step; in check mode what would be done.
  returned: success
  type: list
  elements: str
  sample:
    - change server address to 192.168.1.101:8443
    - create cluster with this server as its first member "server1"
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
        - C(address) - the address is not on this host, or not the one that the member has in its cluster.
        - C(clock_skew) - the two hosts' clocks differ too much.
        - C(confirm) - removing the last member needs the cluster's name in confirm.
        - C(conflict) - somebody else changed the object while this task did.
        - C(disk_full) - the server has no space left for the change.
        - C(failed) - a step was refused; msg has the reason.
        - C(holds_data) - the server holds data that the change would destroy.
        - C(internal) - a defect in the module; please report it.
        - C(invalid_argument) - an option's value is refused; nothing was touched.
        - C(join_in_progress) - another host is joining and did not end in time.
        - C(member_config) - the cluster needs a configuration key for the new member that member_config does not give.
        - C(member_offline) - a cluster member that the change needs is not online.
        - C(name) - the server is a member under another name, or another member has the name.
        - C(needs_collection) - the task needs a second host; run it through the collection, not as a stand-alone program.
        - C(not_answering) - the socket is there but no daemon answers on it.
        - C(not_clustered) - the host named in via is in no cluster.
        - C(not_converged) - every step was done and the state is still not the wanted one.
        - C(not_installed) - there is no LXD socket on the host.
        - C(not_reachable) - one of the two hosts cannot connect to the other.
        - C(other_cluster) - the server is a member of another cluster.
        - C(permission) - the user may not use the socket; it belongs to root and the group lxd.
        - C(quorum) - the cluster's database would lose its quorum.
        - C(timeout) - a deadline has passed.
        - C(token) - the join token is no token, is for another member or another cluster, or was refused.
        - C(token_expired) - the join token has expired.
        - C(version_skew) - the two servers are not of one version.
      type: str
    step:
      description: The step that failed, as it is named in C(plan).
      type: str
    done:
      description: The steps that were done before.
      type: list
      elements: str
"""
