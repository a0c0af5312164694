# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Carries a task of any module of this collection to its host.

All modules are one program per operating system and architecture (libexec), which is kept on the host; a module that
cannot be in it has one of its own, carried in the same way. It is started once and then takes every task (the agent), or,
where that cannot be, is run once per task with the arguments on its stdin (exec). No temporary file and no Python on the
host either way. docs/transport.md has it in a page.
meta/runtime.yml routes every module here. What a module does, and what it means, is the program's matter.
"""

from __future__ import annotations

import base64
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

# The package of the modules is not used here. It is loaded in Ansible's main process, with this file; otherwise each
# worker would do it, for every task, when ansible-core looks for the module.
import ansible_collections.thinkube.infra.plugins.modules  # noqa: F401
from ansible_collections.thinkube.infra.plugins.plugin_utils import agent, answer, frames, program

display = Display()

LIBEXEC = program.Folder(os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "libexec"))

# Made here because making it costs a worker as much as using it.
ENCODER = AnsibleJSONEncoder(vault_to_text=True)

# A module that asks other hosts more often than this turns in a circle.
MAX_PASSES = 20

TRANSPORTS = ("auto", "agent", "exec")


class Refused(AnsibleError):
    """The module could not be run. AnsibleActionFail would add a traceback of this file to every such result."""

    def __init__(self, msg, hint=None, **more):
        super().__init__(msg)
        self.result = answer.failure(msg, hint, **more)


class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        self._supports_async = True
        super().run(tmp, task_vars)
        try:
            self._refuse_impossible_ways()
            return self._start(task_vars) if self._task.async_val else self._run_module(task_vars)
        except Refused as refused:
            return refused.result

    # --- one task

    def _run_module(self, task_vars):
        """Runs the module; where it pauses to ask another host, carries question and answer."""
        carry = self._carrier("exec", task_vars)
        envelope = self._envelope(task_vars)
        undo = []
        result = None
        try:
            for _ in range(MAX_PASSES):
                raw, data = carry(envelope)
                if data is None:
                    result = answer.module_failure(raw)
                    return result
                question = data.get("_thinkube_ask")
                if question is None:
                    result = answer.clean(data)
                    return result
                if question.get("reconnect"):
                    reply = self._reconnect(question["reconnect"])
                    carry = self._carrier("exec", task_vars, anew=True)
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
        envelope = dict(self._envelope(task_vars), **{"async": job})
        raw, data = self._carrier("async", task_vars, python=self._pythons(task_vars))(envelope)
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
        raw, data = self._carrier("peer", task_vars)(request)
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

    def _carrier(self, mode, task_vars, python=None, anew=False):
        """A function that has an envelope answered on the host: (what was printed, its JSON object or None).

        anew: not by an agent, whose channel is older than the connection that was just opened.
        Asked for before there is an envelope: the broker, another process, wakes while this one makes it.
        """
        programs = self._programs()
        environment = self._environment()
        transport = self._variable(task_vars, "thinkube_transport", "auto")
        if transport not in TRANSPORTS:
            raise Refused("thinkube_transport is %r: must be one of %s" % (transport, ", ".join(TRANSPORTS)))

        def by_exec(envelope):
            return self._call_exec(mode, encoded(envelope), programs, environment, python)

        def instead(why):
            if transport == "agent" and mode != "async":
                raise Refused("no agent on the host: %s" % why, "thinkube_transport: auto uses exec then") from why
            display.v("thinkube.infra: exec in place of the agent: %s" % why, host=self._play_context.remote_addr)
            return by_exec

        def by_agent(envelope):
            try:
                return self._call_agent(line, mode, encoded(envelope), programs, environment)
            except agent.Unavailable as why:
                return instead(why)(envelope)
            except agent.Lost as lost:
                return self._lost(lost)

        if transport == "exec" or anew:
            return by_exec
        try:
            line = self._line(mode, programs, environment, task_vars)
        except agent.Unavailable as why:
            return instead(why)
        return by_agent

    def _line(self, mode, programs, environment, task_vars):
        if mode == "async":
            raise agent.Unavailable("a task with async outlives its connection")
        why = agent.impossible(self._connection)
        if why:
            raise agent.Unavailable(why)
        return agent.Line(
            key=agent.key(self._connection, self._play_context, environment, programs),
            host="%s@%s" % (self._play_context.remote_user, self._play_context.remote_addr),
            idle=self._seconds(task_vars, "thinkube_agent_idle"),
            timeout=self._connection.get_option("timeout"),
            silence=self._seconds(task_vars, "thinkube_agent_silence"),
        )

    def _call_agent(self, line, mode, request, programs, environment):
        kind = {"exec": frames.TASK, "peer": frames.PEER}[mode]
        stdout = line.call(kind, request, lambda: self._start_agent(programs, environment, line.about["idle"]))
        raw = dict(stdout=stdout, stderr="", rc=0)
        return raw, answer.parse(raw)

    def _start_agent(self, programs, environment, idle):
        takeover = agent.Takeover(self._connection, idle)
        line = program.run_line(programs, "agent", environment)
        raw, fds = self._with_program(programs, lambda: takeover.run(lambda greeting: self._shell(line, greeting)))
        if fds is None:
            said = [line for line in (raw["stdout"] + "\n" + raw["stderr"]).splitlines() if line.strip() and program.ENDED not in line]
            raise agent.Unavailable(said[-1] if said else "it ended at once, with code %s" % raw["rc"])
        return fds, takeover.control

    def _lost(self, lost):
        """The result of a task whose agent ended before it answered."""
        code = marked(dict(stdout=lost.stderr), program.ENDED)
        if code is not None:  # the program crashed, as it can in exec
            stderr = "".join(line + "\n" for line in lost.stderr.splitlines() if not line.startswith(program.ENDED))
            return dict(stdout="", stderr=stderr, rc=int(code)), None
        raise Refused(
            "%s while the task ran" % lost,
            "the task may still be running on the host, to its end: wait for it, then run the play again",
            **({"module_stderr": lost.stderr} if lost.stderr else {})
        )

    def _call_exec(self, mode, request, programs, environment, python):
        line = program.run_line(programs, mode, environment, python)

        def attempt():
            raw = self._shell(line, request)
            return raw, answer.parse(raw)

        return self._with_program(programs, attempt, python)

    def _with_program(self, programs, attempt, python=None):
        """attempt() runs the program on the host: (what it printed, what became of it or None).

        A program that is missing is uploaded; one that gave nothing is checked, since a damaged file shows in many
        ways (and a check before every call would cost more than the call). Then it is run once more.
        """
        raw, value = attempt()
        if value is not None:
            return raw, value
        refuse_failed(marked(raw, program.FAILED), python)
        machine = marked(raw, program.MISSING)
        if machine is None:
            machine = marked(self._shell(program.check_line(programs), b"\n"), program.MISSING)
            if machine is None:
                refuse_unrunnable(raw)
                return raw, None
            display.vvv("the program kept on the host was damaged", host=self._play_context.remote_addr)
        self._upload(programs, machine)
        raw, value = attempt()
        if value is None:
            if marked(raw, program.MISSING) is not None:
                raise Refused("the program was uploaded and is missing again: something on the host removes it")
            refuse_unrunnable(raw)
        return raw, value

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
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        module = self._module_name()
        return dict(module=module, args=args, connection=self._connection.transport, key=key, answers={}, resume="")

    def _module_name(self):
        return self._task.action.rpartition(".")[2]

    def _environment(self):
        environment = {}
        self._compute_environment_string(environment)
        return {name: to_text(value) for name, value in environment.items()}

    def _variable(self, task_vars, name, default):
        """A variable of the host that the task is carried to."""
        variables = self._host_variables(task_vars)
        return self._templar.template(variables[name]) if name in variables else default

    def _host_variables(self, task_vars):
        if self._task.delegate_to:
            return task_vars.get("ansible_delegated_vars", {}).get(self._task.delegate_to, task_vars)
        return task_vars

    def _seconds(self, task_vars, name):
        seconds = self._variable(task_vars, name, 60)
        if not str(seconds).isdecimal() or not 1 <= int(seconds) <= 86400:
            raise Refused("%s is %r: must be a whole number of seconds from 1 to 86400" % (name, seconds))
        return int(seconds)

    def _programs(self):
        programs = LIBEXEC.programs(self._module_name())
        if not programs:
            raise Refused(
                "the collection has no programs in %s" % LIBEXEC.path,
                'in a checkout, run "make build"; a collection that was installed has them: install it again',
            )
        return programs

    def _pythons(self, task_vars):
        """The interpreters that ansible-core would try on this host."""
        variables = self._host_variables(task_vars)
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


def encoded(envelope):
    return ENCODER.encode(envelope).encode()


def refuse_failed(word, python):
    """What the shell line on the host found before it started the program."""
    if word == program.TERMINAL:
        raise Refused(
            "ssh gives the program a terminal on the host, which changes what passes through it; nothing was started",
            "take -t and RequestTTY out of the ssh options",
        )
    if word == program.NO_PYTHON:
        raise Refused(
            "async needs Python on the host, which has none of %s; nothing was started" % ", ".join(python),
            "ansible-core reads the state of a background task with Python: run the task without async",
        )


def refuse_unrunnable(raw):
    """A sound program that the host cannot start: it was built for another C library than the host has.

    127 and 126 are the shell's codes for what it cannot find (the dynamic linker that the program names) and cannot run.
    """
    if raw["rc"] in (126, 127) or "version `GLIBC_" in raw["stderr"]:
        said = [line for line in (raw["stderr"] + "\n" + raw["stdout"]).splitlines() if line.strip()]
        raise Refused(
            "the host cannot start the module's program: %s" % (said[-1] if said else "its shell ended with code %s" % raw["rc"]),
            "the module needs a host with the C library that its documentation names under requirements",
        )


def marked(raw, marker):
    """The text after a marker, or None. Login scripts may print around it, also what has no end of line."""
    for line in raw["stdout"].splitlines():
        _before, found, text = line.partition(marker)
        if found:
            return text.strip()
    return None
