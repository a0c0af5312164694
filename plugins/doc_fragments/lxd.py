# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every module that talks to the LXD server of its host has in common."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  socket:
    description:
      - The server's unix socket on the host.
      - Left out, it is found by itself where the snap and the distributions' packages put it.
    type: path
  timeout:
    description:
      - How long the task may take, for example C(90s) or C(5m). A number is one of seconds. Waiting for another task of
        this collection that works on the same server counts.
      - When it has passed, the task fails and says what was done until then; running it again goes on from there.
    type: str
    default: 5m
requirements:
  - LXD 5.0 or newer on the host; no Python is needed there.
  - A user that the server trusts, which is root or a member of the group that owns the socket.
notes:
  - The module talks to the server through its unix socket on the host. It starts no C(lxc) and reads no text that is
    meant for people.
"""
