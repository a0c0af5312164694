# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)

# The documentation of the module; the module itself is modules/kernel_cmdline, in Go.

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_cmdline
short_description: Have parameters on the kernel command line, or keep them off it
version_added: 0.1.0
author:
  - thinkube contributors (@thinkube)
description:
  - Adds parameters to the kernel command line, and leaves parameters out of it, with whatever boots the host - GRUB, grubby,
    kernel-install (systemd-boot), kernelstub, proxmox-boot-tool.
  - For GRUB it has a file of its own in C(/etc/default/grub.d), and nobody's line is edited. Others have one line only; there,
    what was added and left out is recorded, and taken back without touching what somebody added since.
  - Afterwards the entries that the host starts with are read and must have the parameters. If the boot loader's tool fails,
    files and entries are as they were.
  - Warns of parameters that come more than once, and of those for the IOMMU of the other maker's processors.
attributes:
  check_mode:
    description: Says what would be done and changes nothing.
    support: full
  diff_mode:
    description: Shows file and entries before and after.
    support: full
options:
  name:
    description:
      - Tells the parameters of one purpose from those of another; part of the file's name. Small letters, digits and hyphens.
    type: str
    default: thinkube
  state:
    description:
      - With C(present) the entries are as I(present) and I(absent) say.
      - With C(absent) what was done under that I(name) is taken back.
    type: str
    choices: [present, absent]
    default: present
  present:
    description:
      - Parameters that are to be there, for example C(iommu=pt). One that is there already is not added again.
    type: list
    elements: str
  absent:
    description:
      - Parameters that are not to be there, whoever set them - C(name=value) is that very one, and C(name) alone stands for
        every value.
    type: list
    elements: str
  boot_loader:
    description:
      - The boot loader. C(auto) is the one whose tool and files are found; not GRUB where the firmware says that systemd-boot
        started the host. Entries of other systems on the same disk are left alone.
    type: str
    choices: [auto, grub, grubby, kernel-install, kernelstub, proxmox-boot-tool]
    default: auto
  root:
    description:
      - The folder of a system that does not run, such as one being installed.
    type: path
    default: /
  timeout:
    description:
      - How long the task may take, for example C(10m).
    type: str
    default: 10m
notes:
  - Needs root on the host. What was there before is kept in C(/var/lib/thinkube/kernel_cmdline).
  - Whether an IOMMU is on is told by M(thinkube.infra.gpu_vfio_info), never by a parameter.
seealso:
  - module: thinkube.infra.gpu_vfio
"""

EXAMPLES = r"""
- name: The IOMMU is on, and out of the way of the host's own devices
  thinkube.infra.kernel_cmdline:
    name: gpu
    present: [intel_iommu=on, iommu=pt]
    absent: [amd_iommu]
  register: cmdline

- name: Restart the host where it runs with another line
  ansible.builtin.reboot:
  when: cmdline.reboot_required

- name: Take it back
  thinkube.infra.kernel_cmdline:
    name: gpu
    state: absent
"""

RETURN = r"""
boot_loader:
  description: The boot loader that is meant.
  returned: success
  type: str
  sample: grub
configured:
  description: The line of its first entry.
  returned: success
  type: list
  elements: str
  sample: [root=UUID=1, ro, quiet, iommu=pt]
running:
  description: The line that the running kernel was started with.
  returned: success
  type: list
  elements: str
files:
  description: The file that has the parameters, where this module wrote one.
  returned: success
  type: list
  elements: str
  sample: [/etc/default/grub.d/95-gpu.cfg]
findings:
  description: Parameters that come more than once, are for another processor, or did not reach the running kernel, a line each.
  returned: success
  type: list
  elements: str
  sample: ["/proc/cmdline: intel_iommu=on comes 8 times"]
reboot_required:
  description:
    - Whether the running kernel was started without what is wanted, or with what is not.
    - Not where the host has been started since its entries had it - another restart is of no use then, and I(findings) says so.
  returned: success
  type: bool
reboot_reasons:
  description: Why, a line each.
  returned: success
  type: list
  elements: str
plan:
  description: What was done, one line for each step; in check mode what would be done.
  returned: success
  type: list
  elements: str
  sample:
    - 'create kernel parameters "gpu" (write /etc/default/grub.d/95-gpu.cfg, iommu=pt is missing, have grub take it)'
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
        - C(failed) - a step was refused; msg has the reason.
        - C(foreign_file) - the file that this module uses was written by somebody else.
        - C(internal) - a defect in the module; please report it.
        - C(invalid_argument) - an option's value is refused; nothing was touched.
        - C(needs_collection) - the task needs a second host; run it through the collection, not as a stand-alone program.
        - C(no_boot_loader) - no boot loader is found that this module knows, or not the one that was named.
        - C(not_converged) - every step was done and the state is still not the wanted one.
        - C(other_boot_loader) - the parameters were set for another boot loader, which has to be cleaned up first.
        - C(quoted_parameter) - a parameter that is not to be there has a space in quotes, which the boot loader cannot be told to leave out.
        - C(read_only) - the boot loader's files cannot be written.
        - C(refresh_failed) - the boot loader's tool failed, or did not take the parameters; files are as they were.
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
