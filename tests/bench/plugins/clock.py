# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Callback of the benchmark: when each task started, and when all was over."""

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

    def _tick(self, *args, **kwargs):
        with open(os.environ["CLOCK_TO"], "a", encoding="ascii") as file:
            file.write("%.6f\n" % time.monotonic())

    v2_playbook_on_task_start = _tick
    v2_playbook_on_stats = _tick
