# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Print the fingerprint of every primary key in a file, one a line: a host has no gpg unless somebody installed it."""

from __future__ import annotations

import base64
import hashlib
import sys

PUBLIC_KEY = 6  # RFC 4880, 4.3


def dearmor(data):
    """Gives the bytes of all armoured blocks, or what is not armoured as it is (RFC 4880, 6.2)."""
    if b"-----BEGIN PGP" not in data:
        return data

    raw = b""
    for block in data.replace(b"\r", b"").split(b"-----BEGIN PGP PUBLIC KEY BLOCK-----")[1:]:
        body = block.split(b"-----END", 1)[0].split(b"\n\n", 1)[1]
        raw += base64.b64decode(b"".join(line for line in body.split(b"\n") if not line.startswith(b"=")))

    return raw


def packets(raw):
    """Yields tag and body of each packet (RFC 4880, 4.2)."""
    at = 0
    while at < len(raw):
        head = raw[at]
        if not head & 0x80:
            sys.exit("this is no OpenPGP key")

        at += 1
        if head & 0x40:
            tag, first = head & 0x3F, raw[at]
            if first < 192:
                size, width = first, 1
            elif first < 224:
                size, width = ((first - 192) << 8) + raw[at + 1] + 192, 2
            elif first == 255:
                size, width = int.from_bytes(raw[at + 1:at + 5], "big"), 5
            else:
                sys.exit("a key in parts is not expected")
        else:
            tag, kind = head >> 2 & 0x0F, head & 3
            if kind == 3:
                sys.exit("a packet without length is not expected")
            width = 1 << kind
            size = int.from_bytes(raw[at:at + width], "big")

        at += width
        yield tag, raw[at:at + size]
        at += size


with open(sys.argv[1], "rb") as file:
    for tag, body in packets(dearmor(file.read())):
        if tag != PUBLIC_KEY:
            continue
        if body[0] != 4:
            sys.exit("a key of version %d is not expected" % body[0])
        # RFC 4880, 12.2
        print(hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body).hexdigest().upper())
