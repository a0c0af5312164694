# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)

# The documentation of the module; the module itself is modules/gpu_info, in Go.

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_info
short_description: Read a host's NVIDIA cards and their driver, and have the cards compute
version_added: 0.1.0
author:
  - thinkube contributors (@thinkube)
description:
  - Reads which NVIDIA cards a host has, what each is bound to, and what its driver says about it - memory, utilization,
    processes, MIG, persistence mode, ECC.
  - A host without a card or without a driver is no failure. I(problem) says what keeps the driver from answering, and the
    cards are listed as far as the PCI bus tells. What is not known is C(null), never an empty list or a zero.
  - With I(cuda_check), every card that is not reserved for a guest computes something, and each result is compared. It
    needs the driver alone, no CUDA toolkit and no compiler.
  - The driver is asked by a process of its own. If the driver hangs, the task fails when I(timeout) has passed, and a
    process that cannot be killed is left behind.
  - Asking the driver wakes cards that sleep. With I(cuda_check), CUDA may load the kernel module C(nvidia_uvm).
attributes:
  check_mode:
    description: Does the same, since it changes nothing.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
options:
  cuda_check:
    description:
      - Whether to have every card compute, or each instance of one that MIG divides. The task fails if one computes wrong
        or not at all, and if there is none to compute on.
      - Cards that are bound to a VFIO driver are left alone.
    type: bool
    default: false
  timeout:
    description:
      - How long the task may take, for example C(90s) or C(5m). A number is one of seconds.
    type: str
    default: 60s
requirements:
  - A host with glibc 2.34 or newer, such as Debian 12 or Ubuntu 22.04; no Python is needed there.
  - For what the driver says, NVIDIA's driver 450 or newer with C(libnvidia-ml.so.1); for I(cuda_check) C(libcuda.so.1),
    and cards of the Maxwell generation or newer.
notes:
  - Libraries that are not where the host looks for them are found with C(environment) and C(LD_LIBRARY_PATH).
"""

EXAMPLES = r"""
- name: Look at the cards
  thinkube.infra.gpu_info:
  register: gpu

- name: The host has two cards for guests, and one that its own driver answers for
  ansible.builtin.assert:
    that:
      - gpu.cards | selectattr('state', 'eq', 'reserved') | length == 2
      - gpu.cards | selectattr('state', 'eq', 'ok') | length == 1

- name: Every card computes, and computes right
  thinkube.infra.gpu_info:
    cuda_check: true
    timeout: 2m
"""

RETURN = r"""
driver:
  description: NVIDIA's driver.
  returned: success
  type: dict
  contains:
    loaded:
      description: Whether the kernel module C(nvidia) is loaded.
      type: bool
    version:
      description: The version of the kernel module, or C(null).
      type: str
    nvml_version:
      description: The version of the library NVML, or C(null).
      type: str
    library:
      description: The file that NVML was loaded from, or C(null).
      type: str
    cuda_version:
      description: The newest CUDA that the driver can do, or C(null).
      type: str
  sample:
    loaded: true
    version: 550.54.15
    nvml_version: 12.550.54.15
    library: /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.550.54.15
    cuda_version: "12.4"
cards:
  description:
    - The cards, by their addresses. Other functions of a card, such as its sound, are not listed.
    - A value is C(null) when it is not known, or the card has no such thing; I(not_supported) names the latter.
  returned: success
  type: list
  elements: dict
  contains:
    address:
      description: The PCI address, as C(dddd:bb:dd.f).
      type: str
    kernel_driver:
      description: The driver that the card is bound to, for example C(nvidia), C(nouveau) or C(vfio-pci); C(null) for none.
      type: str
    state:
      description:
        - C(ok) - NVIDIA's driver answers for it.
        - C(reserved) - it is bound to a VFIO driver, for a guest.
        - C(lost) - it has fallen off the bus.
        - C(unknown) - nobody answers for it; I(reason) says why.
      type: str
    reason:
      description: Why the state is not C(ok); else C(null).
      type: str
    index:
      description: NVML's number of the card, which changes when cards come and go.
      type: int
    minor:
      description: The N of C(/dev/nvidiaN).
      type: int
    uuid:
      description: Its UUID.
      type: str
    name:
      description: Its name.
      type: str
    memory:
      description: Its memory, in bytes.
      type: dict
      contains:
        total:
          description: All of it.
          type: int
        used:
          description: What is allocated, what the driver keeps for itself included.
          type: int
        free:
          description: What is not.
          type: int
    utilization:
      description: In percent of the last sample period, which is between a sixth of a second and a second.
      type: dict
      contains:
        gpu:
          description: How long something ran on it.
          type: int
        memory:
          description: How long its memory was read or written.
          type: int
    persistence_mode:
      description: Whether the driver keeps the card initialized when nobody uses it.
      type: bool
    ecc:
      description: The error correction of its memory.
      type: dict
      contains:
        enabled:
          description: Whether it is on.
          type: bool
        pending:
          description: Whether it is on after the next reboot.
          type: bool
        corrected:
          description: Errors that were corrected since the driver was loaded; C(null) while it is off.
          type: int
        uncorrected:
          description: Errors that could not be corrected, likewise.
          type: int
    mig:
      description: Whether the card is divided into instances.
      type: dict
      contains:
        enabled:
          description: Whether MIG is on.
          type: bool
        pending:
          description: Whether it is on after the next reset.
          type: bool
        devices:
          description: The instances.
          type: list
          elements: dict
          contains:
            uuid:
              description: Its UUID, which CUDA takes in the place of a card's.
              type: str
            name:
              description: Its name.
              type: str
            memory:
              description: Its memory, in bytes.
              type: dict
              contains:
                total:
                  description: All of it.
                  type: int
                used:
                  description: What is allocated.
                  type: int
                free:
                  description: What is not.
                  type: int
    processes:
      description: The processes that use the card; an empty list when there are none, C(null) when that is not known.
      type: list
      elements: dict
      contains:
        pid:
          description: Its number, as the driver sees it; in a container that may be another than there.
          type: int
        name:
          description: Its name, without arguments; C(null) when it cannot be seen.
          type: str
        type:
          description: C(compute), C(graphics) or C(mps), a client of the Multi-Process Service.
          type: str
        memory:
          description: How many bytes of the card's memory it has; C(null) when the driver does not know.
          type: int
    not_supported:
      description: What the card, or its driver, does not have.
      type: list
      elements: str
    errors:
      description: What could not be read, and why.
      type: list
      elements: str
    compute_verified:
      description: C(true) when the card computed right; C(null) when it did not have to.
      type: bool
  sample:
    - address: 0000:3b:00.0
      kernel_driver: nvidia
      state: ok
      reason: null
      index: 0
      minor: 0
      uuid: GPU-2b8b3c7e-41e6-3c0f-9d2e-0f6a1d2c3b4a
      name: NVIDIA A100-PCIE-40GB
      memory: {total: 42949672960, used: 2147483648, free: 40802189312}
      utilization: {gpu: 12, memory: 3}
      persistence_mode: true
      ecc: {enabled: true, pending: true, corrected: 0, uncorrected: 0}
      mig: {enabled: false, pending: false, devices: []}
      processes:
        - {pid: 4711, name: python3, type: compute, memory: 1610612736}
      not_supported: []
      errors: []
      compute_verified: null
problem:
  description: What keeps NVIDIA's driver from answering; C(null) when it answers.
  returned: success
  type: dict
  contains:
    code:
      description:
        - C(no_card) - the host has no NVIDIA card.
        - C(driver_not_loaded) - there is a card, and the driver is not loaded or has not taken it.
        - C(library_missing) - the driver is loaded, and its library cannot be.
        - C(version_mismatch) - driver and library are of different versions.
        - C(no_permission) - the user may not use the driver.
        - C(driver_failed) - the driver gives an error.
        - C(driver_crashed) - the driver's library ended the process that asked it.
      type: str
    text:
      description: The same in a sentence.
      type: str
    hint:
      description: What to do about it; may be empty.
      type: str
  sample:
    code: version_mismatch
    text: "the driver in the kernel and its library are of different versions: the kernel has 535.183.01, the library is
      /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.550.54.15"
    hint: "the driver was updated while the old one is in use: reboot, or unload the kernel modules of nvidia and load them
      again"
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
        - C(cuda_failed) - a card did not compute; msg has the reason.
        - C(failed) - a step was refused; msg has the reason.
        - C(internal) - a defect in the module; please report it.
        - C(invalid_argument) - an option's value is refused; nothing was touched.
        - C(needs_collection) - the task needs a second host; run it through the collection, not as a stand-alone program.
        - "C(not_checked) - nothing was computed: there is no card for that, or its driver cannot be asked."
        - C(timeout) - a deadline has passed.
        - C(wrong_result) - a card computed something wrong; msg names it.
      type: str
"""
