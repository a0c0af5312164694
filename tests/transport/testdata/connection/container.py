# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Connection of the transport tests: enters a folder as container connections enter a container.

It runs commands and passes stdin, and refuses to copy files: carrying a task must not need that.
"""

from __future__ import annotations

import shutil
import subprocess

from ansible.errors import AnsibleError
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: container
short_description: a folder as a host
description: For the tests of the transport.
author: thinkube contributors
options:
  remote_addr:
    description: The folder.
    type: path
    vars:
      - name: ansible_host
"""


class Connection(ConnectionBase):
    transport = "container"
    has_pipelining = True

    def _connect(self):
        self._connected = True

    def exec_command(self, cmd, in_data=None, sudoable=False):
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        argv = [shutil.which("chroot"), self.get_option("remote_addr"), "/bin/sh", "-c", cmd]
        environment = {"PATH": "/bin", "HOME": "/root"}
        done = subprocess.run(argv, input=in_data, capture_output=True, env=environment, check=False)
        return done.returncode, done.stdout, done.stderr

    def put_file(self, in_path, out_path):
        raise AnsibleError("this connection copies no files")

    def fetch_file(self, in_path, out_path):
        raise AnsibleError("this connection copies no files")

    def close(self):
        self._connected = False
