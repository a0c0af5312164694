# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Carries a task of any module of this collection to its host.

All modules are one program per operating system and architecture (libexec). It is kept on the host and run once
per task, with the arguments on its stdin: one round trip, no temporary file, no Python on the host.
meta/runtime.yml routes every module here. What a module does, and what it means, is the program's matter.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shlex
import time

from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.common.json import AnsibleJSONEncoder
from ansible.module_utils.common.text.converters import to_text
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.thinkube.infra.plugins.plugin_utils import answer, program

display = Display()

LIBEXEC = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "libexec")

# A module that asks other hosts more often than this turns in a circle.
MAX_PASSES = 20


class Refused(AnsibleError):
    """The module could not be run. AnsibleActionFail would add a traceback of this file to every such result."""

    def __init__(self, msg, hint=None, **more):
        super().__init__(msg)
        self.result = answer.failure(msg, hint, **more)


class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        self._supports_async = True
        super().run(tmp, task_vars)
        # The place of the agent: a channel to a program that stays on the host would take the envelopes
        # below, and everything here would be its fallback.
        try:
            self._refuse_impossible_ways()
            return self._start(task_vars) if self._task.async_val else self._run_module(task_vars)
        except Refused as refused:
            return refused.result

    # --- one task

    def _run_module(self, task_vars):
        """Runs the module; where it pauses to ask another host, carries question and answer."""
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        envelope = dict(self._envelope(task_vars), key=key, answers={}, resume="")
        undo = []
        result = None
        try:
            for _ in range(MAX_PASSES):
                raw, data = self._call("exec", envelope, task_vars)
                if data is None:
                    result = answer.module_failure(raw)
                    return result
                question = data.get("_thinkube_ask")
                if question is None:
                    result = answer.clean(data)
                    return result
                if question.get("reconnect"):
                    reply = self._reconnect(question["reconnect"])
                else:
                    reply = self._ask(question, envelope, task_vars, undo)
                envelope["answers"][question["id"]] = reply
                envelope["resume"] = data.get("_thinkube_resume", "")
            raise Refused("the module asked other hosts %d times without coming to an end" % MAX_PASSES)
        finally:
            self._undo(undo, envelope, task_vars, result)

    def _start(self, task_vars):
        """Starts the module in the background; async_status, which is Python, reads what becomes of it."""
        # The folder is expanded as async_status will, which does not always take ~ for HOME.
        folder = self._remote_expand_user(self.get_shell_option("async_dir", default="~/.ansible_async"))
        job = dict(jid="j%d" % secrets.randbelow(10**12), timeout=self._task.async_val, dir=folder)
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        envelope = dict(self._envelope(task_vars), key=key, answers={}, resume="", **{"async": job})
        raw, data = self._call("async", envelope, task_vars, python=self._pythons(task_vars))
        if data is None:
            return answer.module_failure(raw)
        # As for every module that ansible-core starts in the background.
        return dict(answer.clean(data), changed=True)

    # --- a new connection

    def _reconnect(self, seconds):
        """Drops the connection and opens a new one, for which it tries that long: the host's network is changing.

        A connection that was kept open proves nothing about the way to the host as it is now.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                self._connection.reset()
                # A host that is half there takes connections and says nothing: ssh's own timeout ends that.
                if marked(self._shell("cat >/dev/null; echo " + program.SOUND, b"\n"), program.SOUND) is not None:
                    return dict(answer=True)
                problem = "it answers, and not as a shell"
            except AnsibleConnectionFailure as error:
                problem = to_text(error)
            if time.monotonic() > end:
                raise AnsibleConnectionFailure("the host did not come back within %d seconds: %s" % (seconds, problem))
            time.sleep(0.2)

    # --- questions to other hosts

    def _ask(self, question, envelope, task_vars, undo):
        """Puts a module's question to another host. What must be undone after the task is added to undo.

        Whatever goes wrong there is an answer, for the module to judge; it must not look like a failure to reach
        the task's own host.
        """
        name = question["host"]
        try:
            other, variables = self._on(name, task_vars)
            reply = other._peer(question, envelope, variables)
        except AnsibleError as error:
            return answer.failure("asking host %r: %s" % (str(name), to_text(error)))
        if reply.get("finally"):
            undo.insert(0, (name, reply.pop("finally")))
        return reply

    def _peer(self, question, envelope, task_vars):
        """Answers, on this action's host, a question of the module that runs elsewhere."""
        args = {}
        self._update_module_args(self._task.action, args, task_vars)
        request = dict(
            module=envelope["module"],
            key=envelope["key"],
            peer=question["peer"],
            request=question.get("request", {}),
            args=args,
        )
        raw, data = self._call("peer", request, task_vars)
        return answer.module_failure(raw) if data is None else data

    def _undo(self, undo, envelope, task_vars, result):
        """Takes back on other hosts what was done for this task, the newest first. A failure there is a warning."""
        for name, request in undo:
            try:
                other, variables = self._on(name, task_vars)
                reply = other._peer(request, envelope, variables)
            except AnsibleError as error:
                reply = answer.failure(to_text(error))
            if not reply.get("failed"):
                continue
            warning = "%s on host %s after the task failed: %s" % (request["peer"], name, reply.get("msg"))
            if result is None:
                display.warning(warning)
            else:
                result.setdefault("warnings", []).append(warning)

    def _on(self, name, task_vars):
        """This action on the named inventory host; itself if the task runs there anyway."""
        if name == (self._task.delegate_to or task_vars["inventory_hostname"]):
            return self, task_vars
        others = self.__dict__.setdefault("_others", {})
        if name not in others:
            # Imported here because most tasks ask nobody, and each task would pay for it.
            from ansible_collections.thinkube.infra.plugins.plugin_utils.other_host import action_on

            other, variables = action_on(self, name, task_vars)
            other._refuse_impossible_ways()
            others[name] = other, variables
        return others[name]

    # --- one call

    def _call(self, mode, envelope, task_vars, python=None):
        """Runs the program on the host: (what it printed, its JSON object or None).

        A program that is missing is uploaded; one that gave no answer is checked, since a damaged file
        shows in many ways (and a check before every call would cost more than the call).
        """
        stdin = json.dumps(envelope, cls=AnsibleJSONEncoder, vault_to_text=True).encode()
        programs = self._programs()
        line = program.run_line(programs, mode, self._environment(), python)
        uploaded = False
        while True:
            raw = self._shell(line, stdin)
            machine = marked(raw, program.MISSING)
            if machine is None:
                failed = marked(raw, program.FAILED)
                if failed is not None:
                    raise Refused(
                        "async needs Python on the host, which has none of %s; nothing was started" % ", ".join(python),
                        "ansible-core reads the state of a background task with Python: run the task without async",
                    )
                data = answer.parse(raw)
                if data is not None or uploaded:
                    return raw, data
                machine = marked(self._shell(program.check_line(programs), b"\n"), program.MISSING)
                if machine is None:
                    return raw, None
                display.vvv("the program kept on the host was damaged", host=self._play_context.remote_addr)
            elif uploaded:
                raise Refused("the program was uploaded and is missing again: something on the host removes it")
            self._upload(programs, machine)
            uploaded = True

    def _upload(self, programs, machine):
        fitting = [p for p in programs if p.runs_on(machine)]
        if not fitting:
            known = ", ".join("%s/%s" % (p.system, p.arch) for p in programs)
            raise Refused("no program for this host (%s): the collection has %s" % (machine, known))
        display.vvv("uploading %s" % fitting[0].name, host=self._play_context.remote_addr)
        raw = self._shell(program.upload_line(fitting[0], secrets.token_hex(8)), fitting[0].packed())
        failed = marked(raw, program.FAILED)
        if failed is not None:
            raise Refused("copying the program to the host: %s" % failed, "the module was not started; make room or another folder")
        if marked(raw, program.SOUND) is None:
            raise Refused("copying the program to the host failed", stdout=raw["stdout"], stderr=raw["stderr"], rc=raw["rc"])

    def _shell(self, line, stdin):
        return self._low_level_execute_command(line, in_data=stdin, executable="/bin/sh")

    # --- what a call needs

    def _envelope(self, task_vars):
        args = dict(self._task.args)
        self._update_module_args(self._task.action, args, task_vars)
        return dict(module=self._task.action.rpartition(".")[2], args=args)

    def _environment(self):
        environment = {}
        self._compute_environment_string(environment)
        return {name: to_text(value) for name, value in environment.items()}

    def _programs(self):
        programs = program.programs_in(LIBEXEC)
        if not programs:
            raise Refused(
                "the collection has no programs in %s" % LIBEXEC,
                'in a checkout, run "make build"; a collection that was installed has them: install it again',
            )
        return programs

    def _pythons(self, task_vars):
        """The interpreters that ansible-core would try on this host."""
        variables = task_vars
        if self._task.delegate_to:
            variables = task_vars.get("ansible_delegated_vars", {}).get(self._task.delegate_to, task_vars)
        wanted = self._templar.template(C.config.get_config_value("INTERPRETER_PYTHON", variables=variables))
        if not wanted.startswith("auto"):
            return shlex.split(wanted)[:1]
        return C.config.get_config_value("INTERPRETER_PYTHON_FALLBACK", variables=variables)

    def _refuse_impossible_ways(self):
        """The arguments travel on stdin, which not every connection and become plugin can pass on."""
        if getattr(self._connection._shell, "_IS_WINDOWS", False):
            raise Refused("the modules of this collection need a POSIX shell on the host")
        if not self._connection.has_pipelining:
            raise Refused(
                "the connection plugin %r cannot pass data to a program's stdin" % self._connection.transport,
                "use ansible_connection: ssh",
            )
        become = self._connection.become
        if become and become.name.rpartition(".")[2] == "su":
            raise Refused("become with su cannot pass data to a program's stdin", "use become_method: sudo, or connect as the user")


def marked(raw, marker):
    """The text after a marker, or None. Login scripts may print lines of their own around it."""
    for line in raw["stdout"].splitlines():
        if line.startswith(marker):
            return line[len(marker):].strip()
    return None
