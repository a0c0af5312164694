# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)
"""The messages between a task, the broker and the agent on the host: modules/internal/agent/frame.go has the other end.

A frame is its payload's length (4 bytes), the call's id (4 bytes), both big endian, its kind (1 byte) and the payload.
"""

from __future__ import annotations

import os
import socket
import struct

HEADER = struct.Struct(">IIc")
MAX_PAYLOAD = 64 << 20

# To the agent.
TASK = b"x"
PEER = b"p"
CANCEL = b"c"
PING = b"i"

# From the agent; the broker passes the answer on to the task.
ANSWER = b"a"
PONG = b"o"

# From a task to the broker: the first byte of a connection says what it is for.
CONNECTION_TASK = b"T"
CONNECTION_CHANNEL = b"C"
ABOUT = b"h"  # JSON: which channel is meant
UNAVAILABLE = b"u"  # the channel could not be started; the payload says why

# From the broker to a task.
START = b"w"  # there is no channel: the task is to start it
NONE = b"n"  # there is none and will be none for now; the payload says why
SENT = b"f"  # from here on the agent may have the task
TAKEN = b"t"  # the channel is in the broker's hands
BROKEN = b"b"  # the channel broke; the payload is what the agent's side wrote to stderr last


_CREDENTIALS = struct.Struct("3i")


def same_user(sock):
    """Whether the other end of a unix socket is a process of this user: SO_PEERCRED, socket(7)."""
    _pid, uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return uid == os.geteuid()


def pack(kind, payload=b"", call=0):
    return HEADER.pack(len(payload), call, kind) + payload


class Splitter:
    """Frames out of bytes that come in pieces."""

    def __init__(self):
        self.data = bytearray()

    def feed(self, piece):
        """The frames that are complete now, as (kind, call, payload). ValueError if this is no stream of frames."""
        self.data += piece
        while len(self.data) >= HEADER.size:
            size, call, kind = HEADER.unpack_from(self.data)
            if size > MAX_PAYLOAD:
                raise ValueError("a frame of %d bytes" % size)
            end = HEADER.size + size
            if len(self.data) < end:
                return
            payload = bytes(self.data[HEADER.size:end])
            del self.data[:end]
            yield kind, call, payload


def receive(sock):
    """The next frame from a blocking socket: (kind, payload). EOFError if the other end is gone."""
    size, _call, kind = HEADER.unpack(_exactly(sock, HEADER.size))
    if size > MAX_PAYLOAD:
        raise EOFError("a frame of %d bytes" % size)
    return kind, _exactly(sock, size)


def _exactly(sock, size):
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = sock.recv_into(view)
        if not got:
            raise EOFError("the connection has ended")
        view = view[got:]
    return bytes(data)
