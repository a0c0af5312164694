# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)

# The documentation of the module; the module itself is modules/lxd_storage_pool, in Go.

from __future__ import annotations

DOCUMENTATION = r"""
module: lxd_storage_pool
short_description: Manage one LXD storage pool on all members of a cluster
version_added: 0.1.0
author:
  - thinkube contributors (@thinkube)
description:
  - Creates, changes and deletes a storage pool of an LXD server, or of all members of an LXD cluster.
  - Run the task on one member; it acts on all. In a cluster the pool is defined on every member first, then created on
    all. A task that was interrupted at any point, or that a member refused, is finished by running it again.
  - Values are compared as the server means them. C(1GiB) and C(1073741824) are the same size, and a source that the
    server has rewritten is compared with what it was made from.
  - What can only be set at creation, such as the driver or the source, is never changed; the task fails and names both values.
  - Before anything is made, the task looks for what would stop it half-way - members that are not online or lack the
    driver, a size that does not fit, and a source on this host that does not exist or holds data.
  - What this module did is noted in the pool itself (configuration keys C(user.thinkube.created) and
    C(user.thinkube.undo)), so that I(state=absent) can take back exactly that, from every member.
attributes:
  check_mode:
    description: Says what would be done and changes nothing.
    support: full
  diff_mode:
    description: Shows the pool on all members before and after.
    support: full
extends_documentation_fragment:
  - thinkube.infra.lxd
options:
  name:
    description:
      - The pool's name.
    type: str
    required: true
  state:
    description:
      - With C(present) the pool exists on every member and has what the other options say.
      - With C(absent) what this module did is taken back. A pool that it made is deleted, unless something uses it; one
        that it changed gets back what it had, as far as nobody else has changed it since; one that it never touched is left
        alone (see I(force)). A pool that is only defined, and not made on any member yet, is deleted in any case.
    type: str
    choices: [present, absent]
    default: present
  driver:
    description:
      - The storage driver, for example C(dir), C(btrfs), C(zfs) or C(lvm).
      - Needed when the pool does not exist. It cannot be changed afterwards.
    type: str
  description:
    description:
      - The pool's description.
      - Left out, the description is not managed.
    type: str
  config:
    description:
      - Config keys and their values. Numbers and booleans become the text that LXD keeps.
      - Keys that every member has for itself, such as C(size) and C(source), hold for all members here.
      - A key with the value C(null) is removed. Keys that are not named stay as they are.
    type: dict
  members:
    description:
      - Config keys of single members, by the members' names. They win over I(config).
      - Only keys that a member has for itself can be given - C(lvm.thinpool_name), C(lvm.vg_name), C(size), C(source),
        C(source.recover), C(source.wipe), C(zfs.pool_name), and those that the cluster itself names.
      - A server in no cluster is its own only member.
    type: dict
  force:
    description:
      - With I(state=absent), delete also a pool that this module did not make.
      - A pool that something uses is never deleted.
    type: bool
    default: false
notes:
  - LXD up to 5.0 cannot enlarge the file of a pool; newer versions can. No version can make it smaller.
  - A host that joins the cluster later gets the pool when it joins, with what it needs of its own given there (module
    M(thinkube.infra.lxd_cluster), option C(member_config)).
seealso:
  - module: thinkube.infra.lxd_cluster
  - module: thinkube.infra.lxd_info
  - name: Storage drivers
    description: What keys each driver has.
    link: https://documentation.ubuntu.com/lxd/en/latest/reference/storage_drivers/
"""

EXAMPLES = r"""
- name: A pool in a file on every member, larger on one of them
  thinkube.infra.lxd_storage_pool:
    name: local
    driver: btrfs
    description: What instances live on
    config:
      size: 100GiB
    members:
      bigone:
        size: 400GiB
  run_once: true

- name: A pool on a disk of its own, which has another name on each member
  thinkube.infra.lxd_storage_pool:
    name: fast
    driver: zfs
    members:
      host1:
        source: /dev/disk/by-id/nvme-one
      host2:
        source: /dev/disk/by-id/nvme-two
  run_once: true

- name: A limit for all, and no longer a note
  thinkube.infra.lxd_storage_pool:
    name: local
    config:
      rsync.bwlimit: 100MB
      user.note:
  run_once: true

- name: Take back what the tasks above did
  thinkube.infra.lxd_storage_pool:
    name: local
    state: absent
  run_once: true
"""

RETURN = r"""
pool:
  description: The pool after the task, in check mode as it would be. C(null) if there is none.
  returned: success
  type: dict
  contains:
    name:
      description: The pool's name.
      type: str
      sample: local
    driver:
      description: The storage driver.
      type: str
      sample: btrfs
    status:
      description: The pool's status in the cluster.
      type: str
      sample: Created
    description:
      description: The pool's description.
      type: str
      sample: What instances live on
    config:
      description: The config keys that all members share.
      type: dict
      sample:
        rsync.bwlimit: 100MB
    members:
      description: The pool on each member, by the member's name, with its status there and the config keys of its own.
      type: dict
      sample:
        host1:
          status: Created
          config:
            size: 100GiB
            source: /var/lib/lxd/disks/local.img
plan:
  description: What was done, one line for each step; in check mode what would be done.
  returned: success
  type: list
  elements: str
  sample:
    - 'create storage pool "local" on member "host1" (define it, size=100GiB)'
    - 'create storage pool "local" (driver btrfs)'
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
        - C(driver_missing) - a member's server cannot use the driver because tools or a kernel module are missing there.
        - C(failed) - a step was refused; msg has the reason.
        - C(immutable) - a value that is only taken at creation differs from what is there.
        - C(in_use) - the object is to be deleted and is still used.
        - C(internal) - a defect in the module; please report it.
        - C(invalid_argument) - an option's value is refused; nothing was touched.
        - C(member_offline) - a cluster member that the change needs is not online.
        - C(missing_on_member) - the object is created and a cluster member does not have it.
        - C(needs_collection) - the task needs a second host; run it through the collection, not as a stand-alone program.
        - C(not_answering) - the socket is there but no daemon answers on it.
        - C(not_converged) - every step was done and the state is still not the wanted one.
        - C(not_installed) - there is no LXD socket on the host.
        - C(permission) - the user may not use the socket; it belongs to root and the group lxd.
        - C(source_in_use) - the pool's source holds data or is in use.
        - C(source_missing) - the pool's source does not exist.
        - C(timeout) - a deadline has passed.
        - C(unavailable) - the object exists and a cluster member could not bring it up.
      type: str
    step:
      description: The step that failed, as it is named in C(plan).
      type: str
    done:
      description: The steps that were done before.
      type: list
      elements: str
"""
