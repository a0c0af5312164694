# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)
"""A second host within one task: an action on another inventory host, as `delegate_to` would reach it."""

from __future__ import annotations

from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.executor.task_executor import TaskExecutor
from ansible.playbook.play_context import PlayContext


class _Connector(TaskExecutor):
    """ansible-core's own way from variables to a connection, without a task to execute.

    Borrowed rather than written again: which option of which connection, become and shell plugin comes from
    which variable differs between versions of ansible-core.
    """

    _task = None  # in ansible-core 2.22 a property that gives the task being run

    def __init__(self, action, task, play_context):
        # TaskExecutor.__init__ is left out on purpose: its parameters differ by version and prepare a run.
        self._task = task
        self._play_context = play_context
        self._loader = action._loader
        self._shared_loader_obj = action._shared_loader_obj
        self._new_stdin = None
        self._connection = None

    def connect(self, variables, templar):
        name = variables.get("ansible_connection")
        name = self._task.connection if name is None else templar.template(name)
        self._connection = self._get_connection(variables, templar, name)
        self._set_connection_options(variables, templar)
        return self._connection


def action_on(action, host_name, task_vars):
    """The same action, and the variables to run it with, on another host of the inventory.

    Connection, address, user, port, key and become come from the other host's variables, else from the task's
    keywords and the command line. Raises AnsibleError if the inventory does not have the host.
    """
    hostvars = task_vars["hostvars"]
    host = hostvars._inventory.get_host(host_name)
    if host is None:
        raise AnsibleError("host %r is not in the inventory" % str(host_name))

    task = action._task.copy()
    task.delegate_to = None
    task.async_val = 0
    play = action._task._parent._play
    variables = hostvars._variable_manager.get_vars(play=play, host=host, task=task)
    templar = action._templar.copy_with_new_env(available_variables=variables)

    context = _fresh_context(action, play, task_vars)
    context = context.set_task_and_variable_override(task=task, variables=variables, templar=templar)
    context.post_validate(templar=templar)
    context.remote_addr = context.remote_addr or host.address

    connection = _Connector(action, task, context).connect(variables, templar)
    other = type(action)(
        task=task,
        connection=connection,
        play_context=connection._play_context,
        loader=action._loader,
        templar=templar,
        shared_loader_obj=action._shared_loader_obj,
    )
    return other, variables


def _fresh_context(action, play, task_vars):
    """A play context as before any host: the passwords of the command line, never those of the task's own host."""
    old = action._play_context
    context = PlayContext(play=play, connection_lockfd=old.connection_lockfd)
    for attribute in ("password", "become_pass"):
        if not any(name in task_vars for name in C.MAGIC_VARIABLE_MAPPING[attribute]):
            setattr(context, attribute, getattr(old, attribute))
    return context
