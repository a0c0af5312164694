# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Connection of the transport tests: one that cannot pass stdin, and must never be asked to."""

from __future__ import annotations

from ansible.errors import AnsibleError
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: terminal
short_description: a connection without stdin
description: For the tests of the transport.
author: thinkube contributors
options: {}
"""


class Connection(ConnectionBase):
    transport = "terminal"
    has_pipelining = False

    def _connect(self):
        self._connected = True

    def exec_command(self, cmd, in_data=None, sudoable=False):
        raise AnsibleError("nothing may be run over this connection")

    def put_file(self, in_path, out_path):
        raise AnsibleError("this connection copies no files")

    def fetch_file(self, in_path, out_path):
        raise AnsibleError("this connection copies no files")

    def close(self):
        self._connected = False
