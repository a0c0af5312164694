# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)
"""From what a program printed to a task result, as ansible-core treats the output of a module.

ansible-core does this in ActionBase._parse_returned_data and _execute_module, which cannot be used without its way
of starting a module.
"""

from __future__ import annotations

import json

from ansible.module_utils.json_utils import _filter_non_json_lines
from ansible.utils.display import Display

display = Display()


def parse(raw):
    """The JSON object that a program printed, or None. Lines before it are dropped, lines after it warned about."""
    try:
        data = json.loads(raw["stdout"])
        if isinstance(data, dict):
            return data
    except ValueError:
        pass
    try:
        text, warnings = _filter_non_json_lines(raw["stdout"], objects_only=True)
        data = json.loads(text)
    except ValueError:
        return None
    for warning in warnings:
        display.warning(warning)
    return data


def failure(msg, hint=None, **more):
    """A failed result in the form that all modules of the collection use."""
    return dict(failed=True, msg=msg, **({"hint": hint} if hint else {}), **more)


def module_failure(raw):
    """The result of a program that ended without an answer."""
    return dict(
        failed=True,
        _ansible_parsed=False,
        msg="MODULE FAILURE\nSee stdout/stderr for the exact error",
        module_stdout=raw["stdout"],
        module_stderr=raw["stderr"],
        rc=raw["rc"],
    )


def clean(data):
    """A module's answer as a task result."""
    # Keys with a meaning to ansible-core that only the controller may give. Their values are not shown.
    internal = sorted(key for key in data if key.startswith("_ansible_") or key in ("add_host", "add_group"))
    for key in internal:
        del data[key]
    if internal:
        display.warning("Removed unexpected internal keys in module return: %s" % ", ".join(internal))
    for fact in list(data.get("ansible_facts") or ()):
        if fact.startswith(("discovered_interpreter_", "ansible_discovered_interpreter_")):
            del data["ansible_facts"][fact]

    # "results" is the key of loops; ansible-core lets a module keep it only if it is a list.
    if "results" in data and not isinstance(data["results"], list):
        data["ansible_module_results"] = data.pop("results")
        display.warning("Found internal 'results' key in module return, renamed to 'ansible_module_results'.")
    for stream in ("stdout", "stderr"):
        if stream in data and stream + "_lines" not in data:
            data[stream + "_lines"] = (data[stream] or "").splitlines()
    data["_ansible_parsed"] = True
    return data
