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
import struct
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

    def __init__(self, number, worker):
        self.number = number
        self.worker = worker
        self.ended = asyncio.get_running_loop().create_future()

    def end(self):
        if not self.ended.done():
            self.ended.set_result(None)


class Channel:
    """The stdin, stdout and stderr of one ssh process, behind which an agent runs, and its pidfd."""

    def __init__(self, broker, about):
        self.broker = broker
        self.key, self.host, self.idle, self.patience = about["key"], about["host"], about["idle"], about["timeout"]
        self.control = about["control"]
        self.identity = _identity(self.control)
        self.calls = {}
        self.numbers = 0
        self.heard = self.used = time.monotonic()
        self.pong = None
        self.retired = False
        self.closing = False
        self.stderr = bytearray()
        self.timer = None

    async def attach(self, stdin, stdout, stderr, process):
        self.process = process
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, open(stdin, "wb", 0))
        self.writer = asyncio.StreamWriter(transport, protocol, None, loop)
        self.reader, errors = await _readable(stdout), await _readable(stderr)
        self.errors = asyncio.create_task(self._read_errors(errors))
        self.answers = asyncio.create_task(self._read_answers())
        self._rest()

    # --- from the agent

    async def _read_answers(self):
        try:
            while True:
                size, number, kind = frames.HEADER.unpack(await self.reader.readexactly(frames.HEADER.size))
                if size > frames.MAX_PAYLOAD:
                    raise ValueError("a frame of %d bytes" % size)
                self._take(kind, number, await self.reader.readexactly(size))
        except (asyncio.IncompleteReadError, OSError, ValueError) as error:
            log.info("channel %s ended: %s", self.host, error)
        except asyncio.CancelledError:
            log.info("channel %s was cut", self.host)
        await self._broken()

    def _take(self, kind, number, payload):
        self.heard = time.monotonic()
        if kind == frames.PONG:
            if self.pong and not self.pong.done():
                self.pong.set_result(True)
            return
        call = self.calls.get(number)
        if call is None:
            return  # it was cancelled
        call.worker.write(frames.pack(kind, payload))
        if kind == frames.ANSWER:
            self.forget(call)

    async def _read_errors(self, reader):
        while True:
            chunk = await reader.read(4096)
            if not chunk:
                return
            self.stderr += chunk
            del self.stderr[:-STDERR_KEPT]

    async def _broken(self):
        """Tells everybody who waits what is known."""
        self.broker.remove(self)
        # The last words come on another pipe, which a master connection may hold open.
        await asyncio.wait({self.errors}, timeout=1)
        for call in list(self.calls.values()):
            call.worker.write(frames.pack(frames.BROKEN, bytes(self.stderr)))
            self.forget(call)
        if self.pong and not self.pong.done():
            self.pong.set_result(False)
        self.close()
        self.timer.cancel()
        os.close(self.process)
        self.broker.ended(self)

    # --- to the agent

    def send(self, kind, request, worker):
        if not self.calls:
            self.stderr.clear()  # what an earlier task left there is not this one's
        self.numbers = self.numbers % 0xFFFFFFFF + 1
        call = self.calls[self.numbers] = Call(self.numbers, worker)
        # In this order: a task that has not seen this was never sent, whatever ends when.
        worker.write(frames.pack(frames.SENT))
        self.writer.write(frames.pack(kind, request, call.number))
        self._rest()
        return call

    def cancel(self, call):
        self.writer.write(frames.pack(frames.CANCEL, call=call.number))
        self.forget(call)

    def forget(self, call):
        self.calls.pop(call.number, None)
        call.end()
        self._rest()

    async def alive(self):
        """Whether the agent answers. One that was heard just now is not asked."""
        if self.writer.is_closing():
            return False
        if time.monotonic() - self.heard < QUIET:
            return True
        if self.pong is None or self.pong.done():
            self.pong = asyncio.get_running_loop().create_future()
            self.writer.write(frames.pack(frames.PING))
        try:
            return await asyncio.wait_for(asyncio.shield(self.pong), self.patience)
        except asyncio.TimeoutError:
            return False

    # --- its end

    def was_reset(self):
        """Whether the connection that this channel belongs to was closed for new sessions (meta: reset_connection)."""
        return _identity(self.control) != self.identity

    def _rest(self):
        """Called whenever something happened: the time until the channel is closed begins anew."""
        if self.closing:
            return
        if self.timer:
            self.timer.cancel()
        self.timer = None
        if not self.calls:
            self.timer = asyncio.get_running_loop().call_later(0 if self.retired else self.idle, self.close)

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
        self.writer.close()
        if self.timer:
            self.timer.cancel()
        self.timer = asyncio.get_running_loop().call_later(LINGER, self._terminate)

    def _terminate(self):
        log.info("ssh to %s does not end by itself", self.host)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.process, signal.SIGTERM)
        self.answers.cancel()


class Broker:
    def __init__(self, seconds):
        self.seconds = seconds
        self.channels = {}  # by key: what new tasks may use
        self.open = set()  # what has not ended yet
        self.starting = {}
        self.failed = {}  # by key: until when, and why
        self.connections = set()
        self.controller_gone = False
        self.timer = None
        self.end = asyncio.get_running_loop().create_future()

    async def serve(self, listener, path, pidfd):
        loop = asyncio.get_running_loop()
        loop.add_reader(pidfd, self._controller_gone, pidfd)
        accepting = asyncio.create_task(self._accept(listener))
        self._rest()
        await self.end
        # In this order: a task that finds no socket starts another broker, one whose connection ends tries again.
        with contextlib.suppress(OSError):
            os.unlink(path)
        accepting.cancel()

    async def _accept(self, listener):
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _address = await loop.sock_accept(listener)
            except OSError as error:  # no file descriptor is free: when a task has ended, there is one
                log.error("accepting a connection: %s", error)
                await asyncio.sleep(0.1)
                continue
            # Kept, because asyncio itself does not keep its tasks from the garbage collector.
            task = asyncio.create_task(self._connection(sock))
            self.connections.add(task)
            task.add_done_callback(self._disconnected)
            self._rest()

    def _disconnected(self, task):
        self.connections.discard(task)
        self._rest()

    async def _connection(self, sock):
        try:
            if not same_user(sock):
                log.warning("a connection of another user was closed")
                return
            await self._converse(sock)
        except (OSError, EOFError, asyncio.IncompleteReadError) as error:
            log.info("connection ended: %r", error)
        except Exception:
            log.exception("a defect in the broker")
        finally:
            sock.close()

    async def _converse(self, sock):
        # One byte, because file descriptors come with the first bytes and a stream would drop them.
        purpose, fds, flags = await _first_byte(sock)
        try:
            reader, worker = await asyncio.open_connection(sock=sock)
            about = json.loads((await _frame(reader))[1])
            if flags & socket.MSG_CTRUNC:
                worker.write(frames.pack(frames.NONE, b"the broker on the controller has no file descriptors left (ulimit -n)"))
            elif purpose == frames.CONNECTION_CHANNEL:
                fds, taken = [], fds
                await self._take_channel(about, taken)
                worker.write(frames.pack(frames.TAKEN))
            elif purpose == frames.CONNECTION_TASK:
                await self._carry(about, reader, worker)
            worker.close()
            await worker.wait_closed()  # what was written is on its way
        finally:
            for fd in fds:
                os.close(fd)

    # --- channels

    async def _take_channel(self, about, fds):
        channel = Channel(self, about)
        await channel.attach(*fds)
        self.open.add(channel)
        log.info("channel %s started", channel.host)
        same = [c for c in self.channels.values() if c.control == channel.control]
        resting = [c for c in same if not c.calls]
        if len(same) >= CHANNELS_PER_CONNECTION and resting:
            min(resting, key=lambda c: c.used).retire()
        self.channels[channel.key] = channel
        self._started(channel.key, None)

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
        if channel is None:
            return None
        if channel.was_reset() or not await channel.alive():
            log.info("channel %s is not used any more", channel.host)
            channel.retire()
            return None
        channel.used = time.monotonic()
        return channel if self.channels.get(key) is channel else None

    async def _channel(self, key, reader, worker):
        """The channel for a task, or None if it will have none. The first who asks is told to start it."""
        while True:
            channel = await self._usable(key)
            if channel:
                return channel
            until, why = self.failed.get(key, (0, None))
            if time.monotonic() > until:
                self.failed.pop(key, None)
                why = None
            if key in self.channels:
                continue
            if why is None and key in self.starting:
                why = await asyncio.shield(self.starting[key])
            elif why is None:
                await self._have_started(key, reader, worker)
            if why is not None:
                worker.write(frames.pack(frames.NONE, why))
                return None
            if worker.is_closing() or reader.at_eof():
                return None

    async def _have_started(self, key, reader, worker):
        started = self.starting[key] = asyncio.get_running_loop().create_future()
        worker.write(frames.pack(frames.START))
        word = asyncio.create_task(_frame(reader))
        await asyncio.wait({started, word}, return_when=asyncio.FIRST_COMPLETED)
        if started.done():
            # A task says nothing more once its channel is here; what it would say next is that it is gone.
            word.cancel()
            await asyncio.wait({word})
            return
        why = b"another task could not reach the host"
        # Without a word the host could not be reached, or the task was ended: neither says anything about the next.
        with contextlib.suppress(OSError, EOFError, asyncio.IncompleteReadError):
            _kind, why = word.result()
            self.failed[key] = (time.monotonic() + PAUSE_AFTER_FAILURE, why)
        self._started(key, why)

    # --- tasks

    async def _carry(self, about, reader, worker):
        kind, request = await _frame(reader)
        channel = await self._channel(about["key"], reader, worker)
        if channel is None or reader.at_eof():
            return
        call = channel.send(kind, request, worker)
        gone = asyncio.create_task(reader.read(1))
        await asyncio.wait({call.ended, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not call.ended.done():
            log.info("a task on %s was cancelled", channel.host)
            channel.cancel(call)

    # --- the end

    def _controller_gone(self, pidfd):
        asyncio.get_running_loop().remove_reader(pidfd)
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
            self.timer = asyncio.get_running_loop().call_later(0 if self.controller_gone else self.seconds, self._stop)

    def _stop(self):
        if not self.end.done():
            self.end.set_result(None)


def same_user(sock):
    """Whether the other end of a unix socket is a process of this user: SO_PEERCRED, socket(7)."""
    _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return uid == os.geteuid()


def _identity(path):
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


async def _frame(reader):
    size, _number, kind = frames.HEADER.unpack(await reader.readexactly(frames.HEADER.size))
    if size > frames.MAX_PAYLOAD:
        raise EOFError("a frame of %d bytes" % size)
    return kind, await reader.readexactly(size)


async def _readable(fd):
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), open(fd, "rb", 0))
    return reader


async def _first_byte(sock):
    while True:
        try:
            return socket.recv_fds(sock, 1, 4)[:3]
        except BlockingIOError:
            await _readable_now(sock)


async def _readable_now(sock):
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(sock, ready.set_result, None)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


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
