# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)

# The documentation of the module; the module itself is modules/dns_query, in Go.

from __future__ import annotations

DOCUMENTATION = r"""
module: dns_query
short_description: Ask DNS and compare the answer with what it should be
version_added: 0.1.0
author:
  - thinkube contributors (@thinkube)
description:
  - Asks a DNS server, or the resolver that the host's programs use, for the records of one name and type.
  - With I(expect) the task fails unless the answer has exactly these values, in any order. It asks again until it does or
    I(timeout) is over.
  - Servers that refuse, fail, do not answer or answer something else are a failure, not an empty answer.
attributes:
  check_mode:
    description: Changes nothing in any mode.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
options:
  name:
    description:
      - The name, with or without a dot at its end. With I(type=PTR) it may be an address.
    type: str
    required: true
  type:
    description:
      - The type of record, by its name or as C(TYPE65280). What is no type of record, such as C(ANY), is refused.
    type: str
    default: A
  origin:
    description:
      - The zone that I(name), and names in I(expect), are relative to when they have no dot at their end, as in M(thinkube.infra.dns_zone);
        then C(@) is the zone itself. For a reverse zone it may be a prefix. By default it is the root, so that a name without the dot is the same as one with it.
    type: str
    default: "."
  server:
    description:
      - The server to ask, by address or name. Left out, those in C(/etc/resolv.conf) are asked, as programs do; with
        systemd-resolved that is its stub.
    type: str
  port:
    description:
      - The server's port. Only used with I(server).
    type: int
    default: 53
  expect:
    description:
      - The values that the answer must have, as zone files have them, in any order and form. Names in them with dots end in one;
        texts are written without quotes. An empty list means that there must be none. Values of a C(SOA), and of C(DNSKEY) and the
        other types that a server makes by signing, are written as they are returned.
      - The answer may be reached through aliases (CNAME) that the server gives along with it.
    type: list
  tcp:
    description:
      - Ask over TCP. Otherwise that is done when an answer does not fit into a datagram.
    type: bool
    default: false
  dnssec:
    description:
      - Ask for signatures, and for the server's word on whether it has verified them (C(authenticated)).
    type: bool
    default: false
  recurse:
    description:
      - Ask the server to ask others.
    type: bool
    default: true
  tsig:
    description:
      - The key that questions are signed with; answers must be, too.
    type: dict
    suboptions:
      name:
        description:
          - The key's name as the server knows it. Not needed when I(file) has it.
        type: str
      algorithm:
        description:
          - The algorithm; C(hmac-sha256) unless I(file) says another.
        type: str
        choices: [hmac-sha224, hmac-sha256, hmac-sha384, hmac-sha512, hmac-md5]
      secret:
        description:
          - The secret in base64.
          - It is secret and never shown.
        type: str
      file:
        description:
          - A file on the host that runs the task, in place of I(secret), as C(tsig-keygen) or C(keymgr -t) write it, or with
            the secret alone.
        type: path
      allow_md5:
        description:
          - Allow C(hmac-md5), which is broken.
        type: bool
        default: false
  attempt_timeout:
    description:
      - How long one question may take, for example "2s".
    type: str
    default: 2s
  timeout:
    description:
      - How long to ask, for example "10s".
    type: str
    default: 10s
seealso:
  - module: thinkube.infra.dns_zone
"""

EXAMPLES = r"""
- name: This host finds the service
  thinkube.infra.dns_query:
    name: www.example.com
    expect: [192.168.1.200]

- name: The server itself says so, about the address too
  thinkube.infra.dns_query:
    name: 192.168.1.101
    type: PTR
    server: 192.168.1.100
    recurse: false
    expect: [host1.example.com.]

- name: Nobody outside may use the server for other names
  thinkube.infra.dns_query:
    name: example.org
    server: 192.168.1.100
  register: refused
  failed_when: refused.failure.code | default('') != 'refused'
"""

RETURN = r"""
answer:
  description: What was answered, and how.
  returned: success
  type: dict
  contains:
    name:
      description: The name that was asked for.
      type: str
      sample: www.example.com.
    type:
      description: The type that was asked for.
      type: str
      sample: A
    server:
      description: The server that answered, with its port.
      type: str
      sample: 192.168.1.100:53
    rcode:
      description: C(NOERROR), or C(NXDOMAIN) when there is no such name.
      type: str
      sample: NOERROR
    values:
      description: The data, as zone files have it.
      type: list
      elements: str
      sample: [192.168.1.200]
    ttl:
      description: How long it may be remembered, in seconds. C(null) when there are no values.
      type: int
      sample: 300
    aliases:
      description: The names that the answer leads over (CNAME).
      type: list
      elements: str
      sample: []
    authoritative:
      description: Whether the server has the zone itself.
      type: bool
      sample: true
    authenticated:
      description: Whether the server says that it has verified the signatures. Only with I(dnssec).
      type: bool
      sample: false
    network:
      description: C(udp) or C(tcp).
      type: str
      sample: udp
    attempts:
      description: How often it was asked.
      type: int
      sample: 1
    milliseconds:
      description: How long the last question took.
      type: float
      sample: 0.412
hint:
  description: What to do about the failure, where there is something to do.
  returned: failure
  type: str
failure:
  description: What kind of failure it was.
  returned: failure
  type: dict
  contains:
    code:
      description:
        - The kind of failure.
        - C(failed) - a step was refused; msg has the reason.
        - C(internal) - a defect in the module; please report it.
        - C(invalid_argument) - an option's value is refused; nothing was touched.
        - C(malformed_answer) - the server's answer breaks the protocol, so nothing of it is believed.
        - C(needs_collection) - the task needs a second host; run it through the collection, not as a stand-alone program.
        - C(refused) - the server refuses; msg has its response code.
        - C(timeout) - a deadline has passed.
        - C(tsig) - the TSIG key cannot be read, the server does not take it, or the answer's signature is wrong.
        - C(unexpected) - the answer is not the expected one, also when the time was over; msg has both.
        - C(unreachable) - the server cannot be reached, or ends the connection.
      type: str
"""
