# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)

# The documentation of the module; the module itself is modules/lxd_profile, in Go.

from __future__ import annotations

DOCUMENTATION = r"""
module: lxd_profile
short_description: Manage one LXD profile
version_added: 0.1.0
author:
  - thinkube contributors (@thinkube)
description:
  - Creates, changes and deletes a profile of an LXD server or cluster, with its description, config and devices.
  - A profile belongs to the whole cluster. Run the task on one member.
  - What the module changed is noted in the profile itself (in the keys C(user.thinkube.created) and C(user.thinkube.undo),
    which are not part of what it returns), so that I(state=absent) can take back exactly that.
attributes:
  check_mode:
    description: Says what would be done and changes nothing.
    support: full
  diff_mode:
    description: Shows the profile before and after.
    support: full
extends_documentation_fragment:
  - thinkube.infra.lxd
options:
  name:
    description:
      - The profile's name.
    type: str
    required: true
  state:
    description:
      - With C(present) the profile has what the other options say.
      - With C(absent) what this module did is taken back. A profile that it made is deleted, one that it changed becomes
        what it was before, and one that it never touched is left alone (see I(force)).
    type: str
    choices: [present, absent]
    default: present
  description:
    description:
      - The profile's description.
      - Left out, the description is not managed.
    type: str
  config:
    description:
      - Config keys and their values, for example C(limits.cpu). Numbers and booleans become the text that LXD keeps.
      - A key with the value C(null) is removed.
      - Keys that are no instance option of LXD are warned about; C(user.) keys are free.
      - Left out, the config is not managed, in both modes.
    type: dict
  devices:
    description:
      - Devices by name, each a dict of its keys, among them C(type).
      - A device that is C(null) or an empty dict is removed.
      - Left out, the devices are not managed, in both modes.
    type: dict
  mode:
    description:
      - With C(merge) keys and devices that the options do not name stay as they are.
      - With C(replace) they are removed.
    type: str
    choices: [merge, replace]
    default: merge
  project:
    description:
      - The project that the profile belongs to.
    type: str
    default: default
  force:
    description:
      - With I(state=absent), delete also a profile that this module neither made nor changed.
    type: bool
    default: false
seealso:
  - module: thinkube.infra.lxd_info
  - name: Instance options
    description: What config keys and devices mean.
    link: https://documentation.ubuntu.com/lxd/en/latest/reference/instance_options/
"""

EXAMPLES = r"""
- name: A profile for virtual machines
  thinkube.infra.lxd_profile:
    name: vm-resources
    description: Sizes of our virtual machines
    config:
      limits.cpu: 4
      limits.memory: 8GiB
    devices:
      root:
        type: disk
        path: /
        pool: "{{ storage_pool }}"
        size: 40GiB

- name: The network card and nothing else
  thinkube.infra.lxd_profile:
    name: vm-networks
    mode: replace
    devices:
      eth0:
        type: nic
        network: lxdbr0
        name: eth0

- name: Give up a config key and a device
  thinkube.infra.lxd_profile:
    name: vm-networks
    config:
      limits.cpu:
    devices:
      eth1: {}

- name: Take back what the tasks above did
  thinkube.infra.lxd_profile:
    name: "{{ item }}"
    state: absent
  loop:
    - vm-resources
    - vm-networks
"""

RETURN = r"""
profile:
  description: The profile after the task, in check mode as it would be. C(null) if there is none.
  returned: success
  type: dict
  contains:
    name:
      description: The profile's name.
      type: str
      sample: vm-resources
    description:
      description: The profile's description.
      type: str
      sample: Sizes of our virtual machines
    config:
      description: All config keys.
      type: dict
      sample:
        limits.cpu: "4"
        limits.memory: 8GiB
    devices:
      description: All devices by name.
      type: dict
      sample:
        eth0:
          name: eth0
          network: lxdbr0
          type: nic
plan:
  description: What was done, one line for each step; in check mode what would be done.
  returned: success
  type: list
  elements: str
  sample:
    - 'create profile "vm-resources" with 2 config keys and devices ["root"]'
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
        - C(built_in) - the profile is the built-in one, which LXD never deletes.
        - C(conflict) - somebody else changed the object while this task did.
        - C(disk_full) - the server has no space left for the change.
        - C(failed) - a step was refused; msg has the reason.
        - C(in_use) - the profile is to be deleted and instances still use it.
        - C(internal) - a defect in the module; please report it.
        - C(invalid_argument) - an option's value is refused; nothing was touched.
        - C(member_offline) - a cluster member that the change needs is not online.
        - C(needs_collection) - the task needs a second host; run it through the collection, not as a stand-alone program.
        - C(not_answering) - the socket is there but no daemon answers on it.
        - C(not_converged) - every step was done and the state is still not the wanted one.
        - C(not_installed) - there is no LXD socket on the host.
        - C(permission) - the user may not use the socket; it belongs to root and the group lxd.
        - C(timeout) - a deadline has passed.
      type: str
    step:
      description: The step that failed, as it is named in C(plan).
      type: str
    done:
      description: The steps that were done before.
      type: list
      elements: str
"""
