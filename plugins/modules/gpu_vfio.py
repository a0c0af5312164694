# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)

# The documentation of the module; the module itself is modules/gpu_vfio, in Go.

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_vfio
short_description: Reserve GPUs for virtual machines, each by its address, and give them back
version_added: 0.1.0
author:
  - thinkube contributors (@thinkube)
description:
  - Gives graphics cards to the driver vfio-pci, with all functions of their slots, so that virtual machines can have them - now
    where that is possible, and from then on each time the host starts, before a driver of the host's has seen them.
  - Cards are told apart by their address, so that of two identical cards one is reserved and the other is not. At the next starts
    also their place must be the same, behind the same bridges. Where another card has the address then, or the host's display
    is on the card, nothing of it is taken.
  - Refuses what would hurt the host, and says why and what to do - the host's own display, a card that somebody uses, a card that
    shares its IOMMU group with other devices, an IOMMU that is off in the firmware or in the kernel.
  - All functions of a card change their driver, or none. If making the initramfs fails, all files are as they were.
  - It looks again at a card right before its drivers change. Where somebody has come to use it while the initramfs was made, the
    task fails as if that had been so before, and the card is prepared for the next start.
  - LXD gives the companions of a card back to the host when a virtual machine stops. The next run notices and repairs it.
  - What is reserved is the whole list. A card that an earlier run reserved and that is not in the list any more is given back.
attributes:
  check_mode:
    description: Says what would be done and changes nothing.
    support: full
  diff_mode:
    description: Shows devices, files and initramfs images before and after.
    support: full
options:
  devices:
    description:
      - The cards, by the PCI addresses of their GPUs, C(0000:01:00.0) or short C(01:00.0). All parts are hexadecimal. Write them
        in quotes - YAML takes 01:00.0 without quotes for a number in base 60.
      - An empty list gives back everything that was reserved.
      - With I(state=absent), the cards to give back; left out, all.
    type: list
    elements: str
  state:
    description:
      - With C(present) exactly these cards are reserved by this module.
      - With C(absent) what this module did is taken back - each function has the driver that it had before it was reserved. A
        card that is in use by a virtual machine is refused.
    type: str
    choices: [present, absent]
    default: present
  select:
    description:
      - Picks cards by what they are, in place of I(devices). Cards that are reserved already are picked first. One that is
        reserved and is not there any more, or does not answer, is an error, since nobody can say whether it would be picked;
        I(state=absent) with its address in I(devices) gives it up.
      - It is an error with I(state=absent).
    type: dict
    suboptions:
      id:
        description:
          - The vendor, or vendor and device, in hexadecimal digits, for example C(10de) or C(10de:2684).
        type: str
      count:
        description:
          - How many. Cards that cannot be reserved are passed over; with too few left the task fails and says why. Left out,
            all are picked, and one that cannot be reserved is refused.
        type: int
      all_except:
        description:
          - C(boot_display) leaves out the cards that show the host's display. Without I(select.id) also what is part of the
            processor (its graphics, its neural unit) and the displays of management controllers; name those to have them.
        type: str
        choices: [boot_display]
  host_devices:
    description:
      - Cards that stay with the host whatever I(select) picks. It is an error if one of them is in I(devices).
    type: list
    elements: str
  companions:
    description:
      - What goes along with a card - C(group) is all functions of its slot, and of its IOMMU group what I(allow_group_members)
        names; C(slot) leaves the latter with the host, which only works if they have no driver.
    type: str
    choices: [group, slot]
    default: group
  allow_group_members:
    description:
      - Other devices, by address, that may go along since they share the card's IOMMU group. The host loses them. Bridges need
        not be named.
    type: list
    elements: str
  driver:
    description:
      - The driver. C(auto) is C(vfio-pci), or the variant of it that the kernel has for this very card. C(-) and C(_) are the same.
      - One that the running kernel does not have is refused before anything is written; with I(apply_now=false) or I(root), one that
        no installed kernel has.
    type: str
    default: auto
  allow_boot_display:
    description:
      - Whether a card may be reserved that shows the host's display, or that is the only one of a desktop. What
        I(allow_group_members) names is asked the same.
    type: bool
    default: false
  apply_now:
    description:
      - Whether the functions change their drivers now. Otherwise everything is prepared, and I(reboot_required) says that the
        host has to start again.
    type: bool
    default: true
  stage:
    description:
      - How a card is reserved when the host starts. C(initramfs) is a udev rule that is in the initramfs too, made again by
        initramfs-tools or dracut when it is stale; C(udev) is the rule alone, enough where no driver of the card is in the
        initramfs; C(none) is nothing, and an error where nothing is done now either (I(apply_now=false) or I(root)).
      - Functions whose drivers are part of the kernel, or may be (below I(root)), get a systemd unit as well, since those have them
        before any rule. Without systemd there is a warning.
      - With I(state=absent), what stays reserved stays at the stage that it has.
    type: str
    choices: [initramfs, udev, none]
    default: initramfs
  root:
    description:
      - The folder of a system that does not run, such as one being installed. Files and initramfs are made there, and no
        function changes its driver. The hardware is that of C(sys) in the folder where it is mounted there, or of this host.
    type: path
    default: /
  timeout:
    description:
      - How long the task may take, for example C(15m). Most of it is for making the initramfs.
    type: str
    default: 15m
notes:
  - Needs root on the host. Reads sysfs and proc; for cards with NVIDIA's driver it asks C(nvidia-smi) for the persistence mode.
  - What was there before is kept in C(/var/lib/thinkube/gpu_vfio).
seealso:
  - module: thinkube.infra.gpu_vfio_info
  - module: thinkube.infra.kernel_cmdline
"""

EXAMPLES = r"""
- name: The second of two identical cards is for virtual machines
  thinkube.infra.gpu_vfio:
    devices: ["02:00.0"]
  register: gpu

- name: Restart the host where that is the only way
  ansible.builtin.reboot:
  when: gpu.reboot_required

- name: All cards but the one that shows the host's display
  thinkube.infra.gpu_vfio:
    select:
      all_except: boot_display

- name: One card of that kind, whichever is free
  thinkube.infra.gpu_vfio:
    select:
      id: "10de:2684"
      count: 1

- name: Give everything back
  thinkube.infra.gpu_vfio:
    state: absent
"""

RETURN = r"""
devices:
  description: The functions that are reserved, in the order of their addresses.
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
    kind:
      description: What it is, in words.
      type: str
    card:
      description: The address of the GPU that it goes with.
      type: str
    group:
      description: The IOMMU group; empty when it is in none.
      type: str
    driver:
      description: The driver that it has now; empty when there is none.
      type: str
    override:
      description: The driver that it is set to have; empty when it is not set.
      type: str
    reset_methods:
      description: How the kernel can reset it. With none, a virtual machine may find it as the last one left it.
      type: list
      elements: str
  sample:
    - address: "0000:02:00.0"
      id: "10de:2684"
      class: "030000"
      kind: GPU
      card: "0000:02:00.0"
      group: "7"
      driver: vfio-pci
      override: vfio-pci
      reset_methods: [flr, bus]
groups:
  description: The IOMMU groups of these functions.
  returned: success
  type: list
  elements: dict
  contains:
    group:
      description: The group's number.
      type: str
    members:
      description: All devices in it.
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
          description: The driver that it has now.
          type: str
        reserved:
          description: Whether this module reserved it.
          type: bool
    viable:
      description: Whether a virtual machine can have the group - nothing in it is with a driver of the host's.
      type: bool
files:
  description: The files of this module that are there.
  returned: success
  type: list
  elements: str
  sample: [/etc/udev/rules.d/05-thinkube-gpu-vfio.rules]
reboot_required:
  description:
    - Whether the host has to start again before it is as wanted. It is false, with a warning that says so, where the host has been
      started with what is prepared and a card is with the host all the same - another start would change nothing.
  returned: success
  type: bool
reboot_reasons:
  description: Why, a line each.
  returned: success
  type: list
  elements: str
  sample: ["0000:02:00.0 is with nouveau until then, and not with vfio-pci"]
plan:
  description: What was done, one line for each step; in check mode what would be done.
  returned: success
  type: list
  elements: str
  sample:
    - 'change card 0000:02:00.0 (0000:02:00.0 to vfio-pci, 0000:02:00.1 to vfio-pci)'
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
        - C(bind_failed) - a function did not change its driver; all of the card have those that they had; the hint says what the next start of the host does.
        - C(boot_display) - the host's display is on the card.
        - C(conflict) - somebody else changed the object while this task did.
        - C(contained) - it runs in a container from where the host's processes cannot be seen, and a card would have to change its driver now.
        - C(failed) - a step was refused; msg has the reason.
        - C(foreign_file) - a file of the name that this module uses was written by somebody else.
        - C(held_by_driver) - nobody uses the card, and its driver would not let go of it, as NVIDIA's in persistence mode.
        - C(in_use) - somebody uses the card; msg names processes and files, or disks and network interfaces.
        - C(initramfs_failed) - making the initramfs failed; files and images are as they were.
        - C(internal) - a defect in the module; please report it.
        - C(invalid_argument) - an option's value is refused; nothing was touched.
        - C(iommu_off_firmware) - the IOMMU is off in the firmware.
        - C(iommu_off_kernel) - the firmware has an IOMMU and the kernel does not use it.
        - C(last_display) - it is a desktop, and no GPU would be left for it.
        - C(lost) - the card does not answer, or one that is reserved is not there any more.
        - C(needs_collection) - the task needs a second host; run it through the collection, not as a stand-alone program.
        - C(no_driver) - the driver is not there.
        - C(no_initramfs) - nobody is found who makes the initramfs, or it has no image.
        - C(not_converged) - every step was done and the state is still not the wanted one.
        - C(not_found) - the host has no PCI device of that address.
        - C(not_gpu) - the address is not that of a GPU.
        - C(not_isolated) - the card is in no IOMMU group, or in one with devices that are not its own.
        - C(read_only) - sysfs or the files cannot be written.
        - C(timeout) - a deadline has passed.
        - C(too_few) - fewer cards than asked for fit the selector and can be reserved; msg says why each other cannot.
        - C(virtual_functions) - the card is divided into SR-IOV virtual functions or mediated devices, or is a virtual function itself.
      type: str
    step:
      description: The step that failed, as it is named in C(plan).
      type: str
    done:
      description: The steps that were done before.
      type: list
      elements: str
"""
