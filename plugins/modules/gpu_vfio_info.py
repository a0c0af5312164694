# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)

# The documentation of the module; the module itself is modules/gpu_vfio_info, in Go.

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_vfio_info
short_description: Read which GPUs a host has, which can be reserved, and why others cannot
version_added: 0.1.0
author:
  - thinkube contributors (@thinkube)
description:
  - Reads graphics cards with their functions, IOMMU groups, drivers and users from sysfs and proc, and says in words which of them
    M(thinkube.infra.gpu_vfio) could reserve and what is in the way of the others.
attributes:
  check_mode:
    description: Does the same, since it changes nothing.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
options:
  devices:
    description:
      - The cards to look at, by the PCI addresses of their GPUs. Left out, all. One that the host does not have is an error.
    type: list
    elements: str
  allow_group_members:
    description:
      - Devices that may go along, as with M(thinkube.infra.gpu_vfio).
    type: list
    elements: str
notes:
  - Needs root on the host, since others are not told who uses a card.
seealso:
  - module: thinkube.infra.gpu_vfio
"""

EXAMPLES = r"""
- name: Look at the cards
  thinkube.infra.gpu_vfio_info:
  register: host

- name: Say what could be done with each
  ansible.builtin.debug:
    msg: "{{ host.gpus | map(attribute='summary') }}"
"""

RETURN = r"""
gpus:
  description: The GPUs, in the order of their addresses.
  returned: success
  type: list
  elements: dict
  contains:
    address:
      description: The PCI address.
      type: str
    id:
      description: Vendor and device.
      type: str
    class:
      description: The PCI class, six hexadecimal digits.
      type: str
    driver:
      description: The driver that it has; empty when there is none.
      type: str
    group:
      description: The IOMMU group; empty when it is in none.
      type: str
    functions:
      description: All functions of its slot, itself among them.
      type: list
      elements: dict
      contains:
        address:
          description: The PCI address.
          type: str
        id:
          description: Vendor and device.
          type: str
        kind:
          description: What it is, in words.
          type: str
        driver:
          description: The driver that it has; empty when there is none.
          type: str
        override:
          description: The driver that it is set to have; empty when it is not set.
          type: str
        bridge:
          description: Whether it is a bridge, which is no matter to the group.
          type: bool
    group_members:
      description: Everything in its IOMMU group, itself among them.
      type: list
      elements: dict
      contains:
        address:
          description: The PCI address.
          type: str
        id:
          description: Vendor and device.
          type: str
        kind:
          description: What it is, in words.
          type: str
        driver:
          description: The driver that it has; empty when there is none.
          type: str
        override:
          description: The driver that it is set to have; empty when it is not set.
          type: str
        bridge:
          description: Whether it is a bridge, which is no matter to the group.
          type: bool
    reset_methods:
      description: How the kernel can reset it.
      type: list
      elements: str
    shows_host:
      description: Whether the host's display is on it.
      type: bool
    reserved:
      description: Whether all its functions are with VFIO.
      type: bool
    viable:
      description: Whether nothing in its IOMMU group is with a driver of the host's.
      type: bool
    eligible:
      description: Whether it can be reserved, or is.
      type: bool
    reasons:
      description: Why it cannot.
      type: list
      elements: dict
      contains:
        code:
          description: The failure code that M(thinkube.infra.gpu_vfio) would give.
          type: str
        reason:
          description: The reason, in words.
          type: str
        hint:
          description: What to do about it.
          type: str
    users:
      description: Who uses it, a line each - processes, mounted disks, network interfaces that are up.
      type: list
      elements: str
    held:
      description: Why its driver would not let go of it although nobody uses it, a line each, as NVIDIA's in persistence mode.
      type: list
      elements: str
    summary:
      description: All of it in one line.
      type: str
  sample:
    - address: "0000:01:00.0"
      id: "10de:2684"
      driver: nouveau
      eligible: true
      summary: 0000:01:00.0 (GPU 10de:2684, driver nouveau) can be reserved; it has 3 functions
iommu:
  description: The host's IOMMU.
  returned: success
  type: dict
  contains:
    enabled:
      description: Whether it is on - there are IOMMU groups.
      type: bool
    table:
      description: The firmware's table that describes it - C(DMAR) (Intel), C(IVRS) (AMD), C(IORT) (arm64), or empty.
      type: str
    units:
      description: The units that the kernel drives.
      type: list
      elements: str
    groups:
      description: How many groups there are.
      type: int
    cpu_vendor:
      description: The processor's maker as the kernel names it, C(GenuineIntel) or C(AuthenticAMD); empty on arm64.
      type: str
    reason:
      description: Why it is off; empty when it is on.
      type: str
    hint:
      description: What to do about that.
      type: str
nvswitches:
  description: NVIDIA's switches between cards, by address. They are told and never reserved.
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
        - C(failed) - a step was refused; msg has the reason.
        - C(internal) - a defect in the module; please report it.
        - C(invalid_argument) - an option's value is refused; nothing was touched.
        - C(needs_collection) - the task needs a second host; run it through the collection, not as a stand-alone program.
        - C(not_found) - the host has no PCI device of that address.
        - C(not_gpu) - the address is not that of a GPU.
        - C(timeout) - a deadline has passed.
      type: str
"""
