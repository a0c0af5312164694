# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)
"""A task's side of the agent: how it finds the broker, hands it a channel and has a request carried to the host.

Ansible runs each task in a process of its own, which cannot keep anything. So one process per ansible-playbook (the
broker) holds the channels. It is reached by a socket in the folder that ansible-core makes for each run, that only this
user may enter, and that is removed when the run is over.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import select
import socket
import struct
import subprocess
import sys
import termios

from ansible import constants as C
from ansible.module_utils.common.text.converters import to_bytes, to_text

from ansible_collections.thinkube.infra.plugins.plugin_utils import frames

BROKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "broker.py")

# How often a task that was not sent yet is tried on a new channel.
ATTEMPTS = 3
# The agent stays this many seconds longer than the broker would have it, and then ends by itself: it only comes to that
# when the controller vanished without a word.
GRACE = 10
GONE = "the broker on the controller ended"


class Unavailable(Exception):
    """There is no agent for this task, and the text says why. The task was not sent to any."""


class Lost(Exception):
    """The channel broke when the agent had the task. stderr is what came last from there."""

    def __init__(self, msg, stderr=""):
        super().__init__(msg)
        self.stderr = stderr


class _NotSent(Exception):
    """The broker or the channel went away before the task was sent."""


# --- one request


class Line:
    """A task's line to the broker, which is reached at once, and told what is wanted when that is known."""

    def __init__(self, **about):
        """about: key (which channel), host (for the log), idle (seconds until the channel is closed), timeout (seconds in
        which the agent must show that it is alive, before a task), silence (the same while tasks run)."""
        self.about = about
        self.early = None
        with contextlib.suppress(_NotSent):
            self.early = self._connect()

    def call(self, kind, request, start):
        """Has a request answered by the agent: the text that it gave.

        start: gives the file descriptors of a channel and the path of the connection's control socket, or raises.
        """
        if len(request) > frames.MAX_PAYLOAD:
            raise Unavailable("the task has %d bytes: at most %d" % (len(request), frames.MAX_PAYLOAD))
        for _attempt in range(ATTEMPTS):
            try:
                return self._call(kind, request, start)
            except _NotSent as error:
                why = error
        raise Unavailable(str(why))

    def _connect(self):
        broker = _connect(self.about["idle"])
        _tell(broker, frames.CONNECTION_TASK + frames.pack(frames.ABOUT, json.dumps(self.about).encode()))
        return broker

    def _call(self, kind, request, start):
        early, self.early = self.early, None
        with early or self._connect() as broker:
            _tell(broker, frames.pack(kind, request))
            what, payload = _hear(broker)
            if what == frames.START:
                self._start(broker, start)
                what, payload = _hear(broker)
            if what == frames.SENT:
                what, payload = _hear(broker, Lost)
        if what == frames.ANSWER:
            return to_text(payload, errors="surrogate_then_replace")
        if what == frames.BROKEN:
            raise Lost("the connection to the host broke", to_text(payload))
        raise Unavailable(to_text(payload))

    def _start(self, broker, start):
        try:
            fds, control = start()
        except Unavailable as error:
            with contextlib.suppress(OSError):
                broker.sendall(frames.pack(frames.UNAVAILABLE, to_bytes(str(error))))
            raise
        try:
            with _connect(self.about["idle"]) as other:
                hello = frames.pack(frames.ABOUT, json.dumps(dict(self.about, control=control)).encode())
                _tell(other, hello, (frames.CONNECTION_CHANNEL, fds))
                what, payload = _hear(other)
        finally:
            for fd in fds:
                os.close(fd)
        if what != frames.TAKEN:
            raise Unavailable(to_text(payload))


def _tell(broker, data, channel=None):
    """channel: the first byte and the file descriptors that come with it."""
    try:
        if channel:
            socket.send_fds(broker, [channel[0]], channel[1])
        broker.sendall(data)
    except OSError as cause:
        raise _NotSent(GONE) from cause


def _hear(broker, otherwise=_NotSent):
    """The next frame; otherwise is what it means if the broker goes away instead."""
    try:
        return frames.receive(broker)
    except (OSError, EOFError) as cause:
        raise otherwise(GONE) from cause


# --- the broker


def impossible(connection):
    """Why there can be no agent behind this connection, or None."""
    if not hasattr(connection, "_send_initial_data"):
        return "a connection of type %r holds no channel" % connection.transport
    if not hasattr(socket, "SO_PEERCRED") or not hasattr(os, "pidfd_open"):
        return "the controller must be a Linux machine"
    return None


def _connect(idle):
    """A connection to this run's broker, which is started if there is none."""
    try:
        folder = os.open(C.DEFAULT_LOCAL_TMP, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            return _reach(folder, idle)
        finally:
            os.close(folder)
    except OSError as error:
        raise Unavailable("reaching the broker on the controller: %s" % error) from error


def _reach(folder, idle):
    found = os.fstat(folder)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise Unavailable("the folder %s is not private to this user" % C.DEFAULT_LOCAL_TMP)
    # By way of the folder's file descriptor: the path of a socket may have 107 characters, that of a home has more.
    path = "/proc/self/fd/%d/thinkube.sock" % folder
    sock = _try(path)
    if sock is None:
        with open(os.path.join(C.DEFAULT_LOCAL_TMP, "thinkube.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            sock = _try(path)
            if sock is None:
                _start_broker(path, idle)
                sock = _try(path)
    if sock is None:
        raise Unavailable("the broker on the controller ended at once")
    if not frames.same_user(sock):
        sock.close()
        raise Unavailable("the broker's socket belongs to another user")
    return sock


def _try(path):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    return sock


def _start_broker(path, idle):
    """Starts it with a socket that listens already, so that nobody has to wait until it runs."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    pidfd = os.pidfd_open(os.getppid())  # of ansible-playbook
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            mask = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(mask)
            listener.listen(128)
            _spawn(listener.fileno(), pidfd, idle)
    finally:
        os.close(pidfd)


def _spawn(listener, pidfd, idle):
    subprocess.Popen(
        [sys.executable, "-I", "-S", BROKER, str(listener), os.path.join(C.DEFAULT_LOCAL_TMP, "thinkube.sock"), str(pidfd), str(idle)],
        pass_fds=(listener, pidfd),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
        env={name: os.environ[name] for name in ("PATH", "LANG", "THINKUBE_BROKER_LOG") if name in os.environ},
    )


# --- a channel


class _Taken(BaseException):
    """Ends the connection plugin's wait for a process that goes on. Not an Exception: these are retried there."""


class Takeover:
    """Starts the agent by the connection plugin's own means, and takes its pipes when all questions are answered.

    ansible-core's ssh plugin builds the command line, feeds sshpass and sudo, and calls _send_initial_data when the
    program on the host is about to read its stdin. There the agent is greeted; when it answers, the pipes are kept.
    If it does not, the plugin goes on as always, and its errors are what the user sees.
    """

    def __init__(self, connection, idle):
        self.connection = connection
        nonce = secrets.token_hex(16)
        self.greeting = b"THINKUBE-HELLO %s %d\n" % (nonce.encode(), idle + GRACE)
        self.ready = b"THINKUBE-AGENT %s\n" % nonce.encode()
        self.seen = b""  # what was read of stdout
        self.why = None  # why the pipes were not taken, if it was not for the program on the host
        self.fds = None
        self.control = None

    def run(self, execute):
        """execute(greeting) runs the agent's command line by way of the connection: (what it gave, None), or (None,
        the file descriptors of stdin, stdout, stderr and the process) if it is ready."""
        self.seen = b""
        self.connection._send_initial_data = self._greet
        try:
            raw = execute(self.greeting)
        except _Taken:
            return None, self.fds
        finally:
            del self.connection._send_initial_data
        if self.why:
            raise Unavailable(self.why)
        raw["stdout"] = to_text(self.seen, errors="surrogate_then_replace") + raw["stdout"]
        return raw, None

    def _greet(self, stdin, greeting, process):
        # ansible-core's reset_connection closes the shared connection, which is seen by its socket. On one that is not
        # shared it does nothing, since each task logs in anew there: an agent, which does not, would be something else.
        self.control = _control_path(process.args, self.connection)
        if self.control is None:
            self.why = "the ssh connection is not shared (ControlMaster)"
        # An ssh that has ended says why when the plugin asks for its exit code.
        with contextlib.suppress(OSError):
            if self.control is not None:
                stdin.write(greeting)
                stdin.flush()
                if self._is_ready(process):
                    self._take(stdin, process)
        with contextlib.suppress(OSError):
            stdin.close()

    def _take(self, stdin, process):
        if not os.path.exists(self.control):
            self.why = "the ssh connection is not shared (no socket %s)" % self.control
            return
        self.fds = [os.dup(pipe.fileno()) for pipe in (stdin, process.stdout, process.stderr)]
        self.fds.append(os.pidfd_open(process.pid))
        raise _Taken

    def _is_ready(self, process):
        """Reads stdout to the agent's first line or to the end. Login scripts may print before it."""
        out, errors = process.stdout.fileno(), process.stderr.fileno()
        while True:
            # stderr is left to the plugin, unless there is so much that ssh would wait for somebody to read it.
            readable = _readable(out, 0.2)
            _keep_short(errors)
            if not readable:
                continue
            chunk = os.read(out, 4096)
            self.seen += chunk
            if self.seen.endswith(self.ready):
                return True
            if not chunk:
                return False


def _readable(fd, seconds):
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return poll.poll(seconds * 1000)


def _keep_short(pipe):
    """Reads away what would fill a pipe: ssh at -vvvv is talkative."""
    waiting = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0]
    if waiting > 32 << 10:
        os.read(pipe, waiting)


def _control_path(args, connection):
    """The control socket of the ssh connection that was used, or None if it is not shared."""
    ssh = to_bytes(connection.get_option("ssh_executable"))
    command = [to_bytes(arg) for arg in args]
    try:
        # The last two are the host and the command; sshpass may stand before ssh.
        query = command[command.index(ssh):-2] + [b"-G", command[-2]]
        listing = subprocess.run(query, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=True).stdout
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    for line in listing.splitlines():
        name, _space, value = line.partition(b" ")
        if name.lower() == b"controlpath" and value not in (b"", b"none"):
            return to_text(value)
    return None


# --- which channel


def key(connection, play_context, environment, programs):
    """A name for the channel that fits exactly these: another password or option is another channel.

    The name is a hash of secrets too. It goes to the broker, and nowhere else.
    """
    become = connection.become
    parts = [
        sorted(connection._options.items()),
        become and [become._load_name, sorted(become._options.items())],
        [play_context.remote_addr, play_context.port, play_context.remote_user, play_context.password, play_context.become_pass],
        sorted(environment.items()),
        [p.sha256 for p in programs],
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
