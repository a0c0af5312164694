# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Callback of the benchmark: when each task started, and when all was over. Results must be those of the module."""

from __future__ import annotations

import os
import time

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: clock
type: aggregate
short_description: times of task starts
description: For the benchmark.
options: {}
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "clock"

    def _write(self, line):
        with open(os.environ["CLOCK_TO"], "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _tick(self, *args, **kwargs):
        self._write("%.6f" % time.monotonic())

    v2_playbook_on_task_start = _tick
    v2_playbook_on_stats = _tick

    def v2_runner_on_ok(self, result):
        # failed_when makes every result one of these.
        data = result._result
        said = str(data.get("msg", data.get("ping", "")))
        if os.environ["CLOCK_SAYS"] not in said:
            self._write("%s: %r" % (result._host.get_name(), said or data))
