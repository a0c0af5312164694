# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)

# The documentation of the module; the module itself is modules/dns_client, in Go.

from __future__ import annotations

DOCUMENTATION = r"""
module: dns_client
short_description: Make a host ask given DNS servers for given domains
version_added: 0.1.0
author:
  - thinkube contributors (@thinkube)
description:
  - With systemd-resolved writes a drop-in file of its own. Domains for routing, whose names are asked for at the servers, and
    domains for searching, in which names without dots are looked for, are told apart.
  - Where NetworkManager writes /etc/resolv.conf, writes a drop-in file of its own for it, and on hosts where /etc/resolv.conf is
    a plain file, that. The servers are asked for all names then, in place of any others, so they have to resolve those of
    others, too.
  - Changes nothing when the servers do not answer for the domains. After a change asks for each domain as the host's programs
    do, and unless the answer is that of the servers, gives the host back what it had, and fails.
  - A search domain that has a wildcard, of whatever type, is refused; every name would be found in it. While the servers do not answer
    that is not known, which check mode and I(verify=false) report.
  - Settings in other files of systemd-resolved or NetworkManager that may overrule this one are shown as warnings, and so are DHCP
    clients (dhclient, dhcpcd) that write a plain C(/etc/resolv.conf) anew at each lease. These have to be told not to, or which servers
    to write.
  - What was there before, also a link, is kept under /var/lib/thinkube/dns_client, and I(state=absent) puts it back. It does not
    when somebody has changed the file since.
attributes:
  check_mode:
    description: Says what would be done and changes nothing.
    support: full
  diff_mode:
    description: Shows the file before and after.
    support: full
options:
  name:
    description:
      - The name of the drop-in file, without its ending, and of the record of what was there before.
    type: str
    default: 10-thinkube
  state:
    description:
      - With C(present) the host asks the servers.
      - With C(absent) it resolves as before.
    type: str
    choices: [present, absent]
    default: present
  servers:
    description:
      - The addresses of the DNS servers. Needed with I(state=present).
    type: list
    elements: str
  routing_domains:
    description:
      - The domains whose names are asked for at the servers. A prefix such as C(192.168.1.0/24) stands for its reverse zone.
    type: list
    elements: str
  search_domains:
    description:
      - The domains in which short names are looked for. They are asked for at the servers, too.
    type: list
    elements: str
  fallback:
    description:
      - Servers that are asked when no other is known; without systemd-resolved after the others, three in all.
    type: list
    elements: str
  manager:
    description:
      - Who resolves names on the host. C(auto) finds it out; C(resolvconf) makes /etc/resolv.conf a plain file, whatever it was.
    type: str
    choices: [auto, resolved, networkmanager, resolvconf]
    default: auto
  verify:
    description:
      - Whether the domains have to be resolved for the change to be made, and to stay.
    type: bool
    default: true
  settle:
    description:
      - How long the resolver may take for that after a change, for example "10s".
    type: str
    default: 10s
  timeout:
    description:
      - How long the task may take, for example "60s".
    type: str
    default: 60s
seealso:
  - module: thinkube.infra.dns_query
  - module: thinkube.infra.dns_zone
"""

EXAMPLES = r"""
- name: Names of the site come from its own server
  thinkube.infra.dns_client:
    servers: [192.168.1.100]
    routing_domains: [example.com, kn.example.com]

- name: As it was before
  thinkube.infra.dns_client:
    state: absent
"""

RETURN = r"""
client:
  description: How the host resolves names after the task.
  returned: success
  type: dict
  contains:
    manager:
      description: C(resolved), C(networkmanager) or C(resolvconf).
      type: str
      sample: resolved
    file:
      description: The file that says so.
      type: str
      sample: /etc/systemd/resolved.conf.d/10-thinkube.conf
    managed:
      description: Whether this module wrote it.
      type: bool
      sample: true
    overruled_by:
      description: Settings in other files, and programs, that may overrule it.
      type: list
      elements: str
      sample: []
    not_resolving:
      description: The domains that the host does not resolve, and why.
      type: list
      elements: str
      sample: []
plan:
  description: What was done; in check mode what would be done.
  returned: success
  type: list
  elements: str
  sample:
    - 'create resolver resolved (/etc/systemd/resolved.conf.d/10-thinkube.conf: servers 192.168.1.100; for example.com)'
hint:
  description: What to do about the failure, where there is something to do.
  returned: failure
  type: str
failure:
  description: What kind of failure it was and how far the task came.
  returned: failure
  type: dict
  contains:
    code:
      description:
        - The kind of failure.
        - C(conflict) - somebody else changed the object while this task did.
        - C(failed) - a step was refused; msg has the reason.
        - C(files_changed) - the file was changed by somebody else since this module wrote it.
        - C(internal) - a defect in the module; please report it.
        - C(invalid_argument) - an option's value is refused; nothing was touched.
        - C(malformed_answer) - the server's answer breaks the protocol, so nothing of it is believed.
        - C(needs_collection) - the task needs a second host; run it through the collection, not as a stand-alone program.
        - C(not_converged) - every step was done and the state is still not the wanted one.
        - C(not_resolving) - with the new setting the host did not resolve the domains, so it has the former one again.
        - C(refused) - the server refuses; msg has its response code.
        - C(service) - systemd-resolved cannot be restarted, or NetworkManager not reloaded.
        - C(timeout) - a deadline has passed.
        - C(tsig) - the TSIG key cannot be read, the server does not take it, or the answer's signature is wrong.
        - C(unreachable) - the server cannot be reached, or ends the connection.
        - C(unsupported) - nobody, or somebody whom this module does not know, manages the host's resolver, or cannot do what is asked for.
        - C(wildcard_search) - a search domain has a wildcard, so that every name would be found in it.
      type: str
    step:
      description: The step that failed, as it is named in C(plan).
      type: str
    done:
      description: The steps that were done before.
      type: list
      elements: str
"""
