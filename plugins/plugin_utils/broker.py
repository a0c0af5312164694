# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)
"""The process on the controller that holds the channels to the agents while Ansible's workers come and go.

One for each ansible-playbook, started by the first task that needs it (agent.py), as a program of its own:

    broker.py LISTENING_SOCKET ITS_PATH CONTROLLER_PIDFD SECONDS

It reads no files and knows nothing of Ansible. It ends when the controller has ended and no task waits any more, or
when there was nothing to do for SECONDS. With it end all channels, and with these the agents. For debugging, the
environment variable THINKUBE_BROKER_LOG names a file in which it notes what happens (no arguments, no results).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import frames  # noqa: E402  # run as a program, there is no package

log = logging.getLogger("broker")

# A channel that was quiet for longer (seconds) is tried before a task is sent: the host may have been rebooted.
QUIET = 2
# A host where starting the agent failed is not tried again for so long (seconds).
PAUSE_AFTER_FAILURE = 60
# Channels over one ssh connection at most: each is a session, of which sshd allows 10 by default.
CHANNELS_PER_CONNECTION = 6
# An ssh that does not end when its channel is closed (the host is gone) is ended after so long (seconds).
LINGER = 5
# What is kept of stderr (bytes): enough for the stack of a crash.
STDERR_KEPT = 32 << 10


class Call:
    """A task that was sent to an agent."""

    def __init__(self, number, task):
        self.number = number
        self.task = task


class Answers(asyncio.Protocol):
    """What an agent sends."""

    def __init__(self, channel):
        self.channel = channel
        self.frames = frames.Splitter()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        try:
            for kind, number, payload in self.frames.feed(data):
                self.channel.take(kind, number, payload)
        except ValueError as error:
            log.error("from %s: %s", self.channel.host, error)
            self.transport.close()

    def connection_lost(self, exc):
        self.channel.lost()


class LastWords(asyncio.Protocol):
    """What an agent, or ssh, writes to stderr."""

    def __init__(self):
        self.text = bytearray()
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, data):
        self.text += data
        del self.text[:-STDERR_KEPT]

    def connection_lost(self, exc):
        self.ended.set_result(None)


class Channel:
    """The stdin, stdout and stderr of one ssh process, behind which an agent runs, and its pidfd."""

    def __init__(self, broker, about):
        self.broker = broker
        self.loop = asyncio.get_running_loop()
        self.key, self.host, self.idle = about["key"], about["host"], about["idle"]
        self.patience, self.silence = about["timeout"], about["silence"]
        self.control = about["control"]
        self.identity = _identity(self.control)
        self.calls = {}
        self.numbers = 0
        self.heard = self.used = time.monotonic()
        self.pong = None
        self.retired = False
        self.closing = False
        self.timer = None

    async def attach(self, stdin, stdout, stderr, process):
        self.process = process
        self.out, _protocol = await self.loop.connect_write_pipe(asyncio.BaseProtocol, open(stdin, "wb", 0))
        _transport, self.errors = await self.loop.connect_read_pipe(LastWords, open(stderr, "rb", 0))
        self.answers, _protocol = await self.loop.connect_read_pipe(lambda: Answers(self), open(stdout, "rb", 0))
        self._rest()

    # --- from the agent

    def take(self, kind, number, payload):
        self.heard = time.monotonic()
        if kind == frames.PONG:
            self._answer_ping(True)
        call = self.calls.get(number)  # none if it was cancelled
        if call and kind == frames.ANSWER:
            self.forget(call)
            call.task.finish(frames.pack(kind, payload))

    def lost(self):
        log.info("channel %s ended", self.host)
        self.end = self.loop.create_task(self._break())

    async def _break(self):
        """Tells everybody who waits what is known."""
        self.close()
        self.timer.cancel()
        self._answer_ping(False)
        # The last words come on another pipe, which a master connection may hold open.
        await asyncio.wait({self.errors.ended}, timeout=1)
        for call in list(self.calls.values()):
            self.forget(call)
            call.task.finish(frames.pack(frames.BROKEN, bytes(self.errors.text)))
        os.close(self.process)
        self.broker.ended(self)

    # --- to the agent

    def send(self, kind, request, task):
        if not self.calls:
            self.errors.text.clear()  # what an earlier task left there is not this one's
        self.used = time.monotonic()
        self.numbers = self.numbers % 0xFFFFFFFF + 1
        call = self.calls[self.numbers] = Call(self.numbers, task)
        # In this order: a task that has not seen this was never sent, whatever ends when.
        task.send(frames.pack(frames.SENT))
        self.out.write(frames.pack(kind, request, call.number))
        self._rest()
        return call

    def cancel(self, call):
        log.info("a task on %s was cancelled", self.host)
        self.out.write(frames.pack(frames.CANCEL, call=call.number))
        self.forget(call)

    def forget(self, call):
        self.calls.pop(call.number, None)
        self._rest()

    def is_fresh(self):
        """Whether a task can be sent at once."""
        return not self.out.is_closing() and time.monotonic() - self.heard < QUIET and not self.was_reset()

    async def is_alive(self, patience):
        """Whether the agent answers within so many seconds."""
        if self.out.is_closing():
            return False
        if self.pong is None or self.pong.done():
            self.pong = self.loop.create_future()
            self.out.write(frames.pack(frames.PING))
        try:
            return await asyncio.wait_for(asyncio.shield(self.pong), patience)
        except asyncio.TimeoutError:
            return False

    def _answer_ping(self, alive):
        if self.pong and not self.pong.done():
            self.pong.set_result(alive)

    async def _watch(self):
        """While tasks run: a host without power says nothing, and ssh alone would wait for hours."""
        if time.monotonic() - self.heard < self.silence / 2 or await self.is_alive(self.silence / 2):
            self._rest()
        elif not self.closing:
            self._cut()

    # --- its end

    def was_reset(self):
        """Whether the connection that this channel belongs to was closed for new sessions (meta: reset_connection)."""
        return _identity(self.control) != self.identity

    def _rest(self):
        """Called whenever something happened: what is to come of it when nothing happens any more begins anew."""
        if self.closing:
            return
        if self.timer:
            self.timer.cancel()
        if self.calls:
            self.timer = self.loop.call_later(self.silence / 2, self._start_watch)
        else:
            self.timer = self.loop.call_later(0 if self.retired else self.idle, self.close)

    def _start_watch(self):
        self.watch = self.loop.create_task(self._watch())

    def retire(self):
        """No new tasks; the end comes with the last one that runs."""
        self.broker.remove(self)
        self.retired = True
        self._rest()

    def close(self):
        """Tells the agent to end; the channel has ended when nothing more can come from there."""
        if self.closing:
            return
        self.closing = True
        self.broker.remove(self)
        self.out.close()
        if self.timer:
            self.timer.cancel()
        self.timer = self.loop.call_later(LINGER, self._cut)

    def _cut(self):
        log.info("ssh to %s does not end by itself, or its host is silent", self.host)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.process, signal.SIGTERM)
        self.answers.close()


class Connection:
    """A task that waits for its answer, or one that brings a channel.

    Not asyncio's streams: file descriptors come with the first byte, which they would drop, and each of their steps
    would cost a task a turn of the loop.
    """

    def __init__(self, broker, sock):
        self.broker = broker
        self.sock = sock
        self.loop = asyncio.get_running_loop()
        self.purpose = None
        self.fds = []
        self.short = False
        self.input = frames.Splitter()
        self.output = bytearray()
        self.channel = self.call = None
        self.word = None
        self.closing = False
        self.ended = False
        self.loop.add_reader(sock, self._read)
        self._read()

    def _read(self):
        try:
            if self.purpose is None:
                self.purpose, self.fds, flags, _address = socket.recv_fds(self.sock, 1, 4)
                self.short = flags & socket.MSG_CTRUNC
            while not self.ended:
                piece = self.sock.recv(1 << 18)
                if not piece:
                    self._gone()
                    return
                for kind, _call, payload in self.input.feed(piece):
                    self._take(kind, payload)
        except BlockingIOError:
            pass
        except (OSError, ValueError) as error:
            log.info("a connection ended: %s", error)
            self._gone()
        except Exception:
            log.exception("a defect in the broker")
            self._gone()

    def _take(self, kind, payload):
        if kind == frames.ABOUT:
            self.about = json.loads(payload)
            if self.purpose == frames.CONNECTION_CHANNEL:
                self.work = self.loop.create_task(self._or_gone(self.broker.take_channel(self)))
        elif kind in (frames.TASK, frames.PEER):
            self.kind, self.request = kind, payload
            channel = self.broker.channels.get(self.about["key"])
            if channel and channel.is_fresh():
                self._carry(channel)
            else:
                self.work = self.loop.create_task(self._or_gone(self._wait_for_channel()))
        elif kind == frames.UNAVAILABLE and self.word and not self.word.done():
            self.word.set_result(payload)

    async def _or_gone(self, work):
        try:
            await work
        except Exception:
            log.exception("a defect in the broker")
            self._gone()

    async def _wait_for_channel(self):
        channel = await self.broker.channel_for(self)
        if channel and not self.ended:
            self._carry(channel)

    def _carry(self, channel):
        self.channel = channel
        self.call = channel.send(self.kind, self.request, self)
        self.request = None

    # --- to the task

    def send(self, data):
        if self.ended:
            return
        self.output += data
        self._write()

    def finish(self, data):
        """The last that it is told."""
        self.call = None
        self.closing = True
        self.send(data)

    def _write(self):
        try:
            sent = self.sock.send(self.output)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._gone()
            return
        del self.output[:sent]
        if self.output:
            self.loop.add_writer(self.sock, self._write)
        else:
            self.loop.remove_writer(self.sock)
            if self.closing:
                self._close()

    def _gone(self):
        """The task has ended without waiting for its answer, or in the middle of something."""
        call, self.call = self.call, None
        if call:
            self.channel.cancel(call)
        if self.word and not self.word.done():
            self.word.set_result(None)
        self._close()

    def _close(self):
        if self.ended:
            return
        self.ended = True
        self.loop.remove_reader(self.sock)
        self.loop.remove_writer(self.sock)
        self.sock.close()
        for fd in self.fds:
            os.close(fd)
        self.broker.disconnected(self)


class Broker:
    def __init__(self, seconds):
        self.seconds = seconds
        self.loop = asyncio.get_running_loop()
        self.channels = {}  # by key: what new tasks may use
        self.open = set()  # what has not ended yet
        self.starting = {}
        self.failed = {}  # by key: until when, and why
        self.connections = set()
        self.controller_gone = False
        self.timer = None
        self.end = self.loop.create_future()

    async def serve(self, listener, path, pidfd):
        self.loop.add_reader(pidfd, self._controller_gone, pidfd)
        self.loop.add_reader(listener, self._accept, listener)
        self._rest()
        await self.end
        # In this order: a task that finds no socket starts another broker, one whose connection ends tries again.
        with contextlib.suppress(OSError):
            os.unlink(path)
        self.loop.remove_reader(listener)
        listener.close()

    def _accept(self, listener):
        try:
            sock, _address = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # no file descriptor is free: when a task has ended, there is one
            log.error("accepting a connection: %s", error)
            self.loop.remove_reader(listener)
            self.loop.call_later(0.1, self.loop.add_reader, listener, self._accept, listener)
            return
        if not frames.same_user(sock):
            log.warning("a connection of another user was closed")
            sock.close()
            return
        sock.setblocking(False)
        connection = Connection(self, sock)
        if not connection.ended:
            self.connections.add(connection)
        self._rest()

    def disconnected(self, connection):
        self.connections.discard(connection)
        self._rest()

    # --- channels

    async def take_channel(self, connection):
        """A task has started an agent, and hands over its pipes."""
        if connection.short:
            connection.finish(frames.pack(frames.NONE, b"the broker on the controller has no file descriptors left (ulimit -n)"))
            return
        channel = Channel(self, connection.about)
        fds, connection.fds = connection.fds, []
        await channel.attach(*fds)
        self.open.add(channel)
        log.info("channel %s started", channel.host)
        same = [c for c in self.channels.values() if c.control == channel.control]
        resting = [c for c in same if not c.calls]
        if len(same) >= CHANNELS_PER_CONNECTION and resting:
            min(resting, key=lambda c: c.used).retire()
        self.channels[channel.key] = channel
        self._started(channel.key, None)
        connection.finish(frames.pack(frames.TAKEN))

    def _started(self, key, failure):
        if key in self.starting:
            self.starting.pop(key).set_result(failure)

    def remove(self, channel):
        if self.channels.get(channel.key) is channel:
            del self.channels[channel.key]

    def ended(self, channel):
        self.open.discard(channel)
        self._rest()

    async def _usable(self, key):
        channel = self.channels.get(key)
        if channel is None or channel.is_fresh():
            return channel
        if channel.was_reset() or not await channel.is_alive(channel.patience):
            log.info("channel %s is not used any more", channel.host)
            channel.retire()
        return self.channels.get(key)

    async def channel_for(self, connection):
        """The channel for a task, or None if it will have none. The first who asks is told to start it."""
        key = connection.about["key"]
        while not connection.ended:
            channel = await self._usable(key)
            if channel:
                return channel
            until, why = self.failed.get(key, (0, None))
            if time.monotonic() > until:
                self.failed.pop(key, None)
                why = None
            if why is None and key in self.starting:
                why = await asyncio.shield(self.starting[key])
            elif why is None:
                await self._have_started(key, connection)
            if why is not None:
                connection.finish(frames.pack(frames.NONE, why))
        return None

    async def _have_started(self, key, connection):
        started = self.starting[key] = self.loop.create_future()
        connection.word = self.loop.create_future()
        connection.send(frames.pack(frames.START))
        await asyncio.wait({started, connection.word}, return_when=asyncio.FIRST_COMPLETED)
        if started.done():
            return
        why = connection.word.result()
        if why is None:
            # The host could not be reached, or the task was ended: neither says anything about the next.
            self._started(key, b"another task could not reach the host")
        else:
            self.failed[key] = (time.monotonic() + PAUSE_AFTER_FAILURE, why)
            self._started(key, why)

    # --- the end

    def _controller_gone(self, pidfd):
        self.loop.remove_reader(pidfd)
        log.info("the controller has ended")
        self.controller_gone = True
        for channel in list(self.channels.values()):
            channel.retire()
        self._rest()

    def _rest(self):
        """Called whenever something began or ended: when nothing is left, the time until the broker's end begins."""
        if self.timer:
            self.timer.cancel()
        self.timer = None
        if not self.open and not self.connections and not self.end.done():
            self.timer = self.loop.call_later(0 if self.controller_gone else self.seconds, self.end.set_result, None)


def _identity(path):
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


async def main(listener_fd, path, pidfd, seconds):
    log_file = os.environ.get("THINKUBE_BROKER_LOG")
    if log_file:
        logging.basicConfig(filename=log_file, level=logging.INFO, format="%(asctime)s %(process)d %(message)s")
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # four for each channel, one for each task
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    listener = socket.socket(fileno=listener_fd)
    listener.setblocking(False)
    await Broker(seconds).serve(listener, path, pidfd)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
