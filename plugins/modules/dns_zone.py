# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)

# The documentation of the module; the module itself is modules/dns_zone, in Go.

from __future__ import annotations

DOCUMENTATION = r"""
module: dns_zone
short_description: Make the records of a DNS zone what the inventory says
version_added: 0.1.0
author:
  - thinkube contributors (@thinkube)
description:
  - Compares a list of records with what the zone has (transferred as a whole, AXFR) and sends the difference to the zone's
    primary as dynamic updates (RFC 2136) over TCP. It works with every server that has both, such as BIND and Knot.
  - Each update is done by the server as a whole or not at all, and depends on what was read. A record that somebody else
    changes meanwhile is never overwritten; the module reads and plans again.
  - What cannot be read is an error, never an empty zone.
  - A plan that would change or delete more than 30 % of at least 10 records, or the zone's own NS or SOA records, is refused
    unless I(force) is set.
  - Records that a server makes itself when it signs a zone are neither seen nor touched.
attributes:
  check_mode:
    description: Says what would be done and changes nothing.
    support: full
  diff_mode:
    description: Shows the zone before and after.
    support: full
options:
  name:
    description:
      - The zone's name, or for a reverse zone the prefix that it covers, for example C(192.168.1.0/24).
      - Names in other scripts are taken, here and in records; they are shown in both forms.
    type: str
    required: true
  state:
    description:
      - With C(present) the records are as listed.
      - With C(absent) those that are listed are removed, or with I(manage=owned) all that the module made. The zone itself stays,
        unless I(create) is set, which removes a zone that this module made.
    type: str
    choices: [present, absent]
    default: present
  mode:
    description:
      - With C(update) the difference is sent as dynamic updates.
      - With C(file), for servers without these, the zone's file is written anew on the server itself. The server's own check has to
        pass it, it takes the place of the old one in one step with a serial that is one more, and the task waits until the
        server serves it. Comments are lost, and a zone that the server changes by itself is refused.
      - A file that somebody else writes to meanwhile is not overwritten, but read again. One that has another serial than what is
        served, because a run was cut or somebody edited it by hand, is loaded.
    type: str
    choices: [update, file]
    default: update
  server:
    description:
      - The zone's primary, which takes updates, by address or name.
    type: str
    default: 127.0.0.1
  port:
    description:
      - Its port.
    type: int
    default: 53
  tsig:
    description:
      - The key that updates are signed with, and transfers too unless I(transfer_tsig) is given.
      - Answers that are not signed with it are refused.
    type: dict
    suboptions: &tsig
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
  transfer_server:
    description:
      - Where the zone is read, if not at I(server), for example at the server that signs it.
    type: str
  transfer_port:
    description:
      - Its port. Only used with I(transfer_server).
    type: int
    default: 53
  transfer_tsig:
    description:
      - The key for transfers.
    type: dict
    suboptions: *tsig
  records:
    description:
      - The records, by name and type. All values of one name and type belong together; what is not listed among them is removed.
    type: list
    elements: dict
    suboptions: &records
      name:
        description:
          - The name, relative to the zone or with a dot at its end. C(@) is the zone itself, C(*) a wildcard.
        type: str
        required: true
      type:
        description:
          - C(A), C(AAAA), C(CAA), C(CNAME), C(DS), C(HTTPS), C(LOC), C(MX), C(NAPTR), C(NS), C(PTR), C(SRV), C(SSHFP), C(SVCB),
            C(TLSA) or C(TXT); any other as C(TYPE12345).
        type: str
        required: true
      values:
        description:
          - The data as zone files have it. Names in it are relative to the zone when they have no dot; others must end in one.
          - For C(TXT) the text itself, without quotes and however long. A list gives the single strings that it is made of.
          - For C(TYPE12345) as RFC 3597 writes it, for example C(\# 4 0a000001).
          - With I(state=absent) the values to remove; left out, all.
        type: list
      ttl:
        description:
          - How long it may be remembered, in seconds. Default is the module's I(ttl).
        type: int
      state:
        description:
          - Whether it is there.
        type: str
        choices: [present, absent]
        default: present
  reverse_of:
    description:
      - Derives PTR records for this reverse zone from the A and AAAA records of another zone. An address with several names gets
        the first; wildcards get none. What I(records) says wins.
    type: dict
    suboptions:
      zone:
        description:
          - The other zone's name.
        type: str
        required: true
      records:
        description:
          - Its records, as in I(records).
        type: list
        elements: dict
        required: true
        suboptions: *records
  ttl:
    description:
      - How long records may be remembered, in seconds, unless they say otherwise.
    type: int
    default: 3600
  soa:
    description:
      - What the zone says about itself. What is left out stays; the serial is the server's, or one more when this changes.
    type: dict
    suboptions:
      primary:
        description:
          - The name of the primary server.
        type: str
      mail:
        description:
          - The mail address of whoever is responsible, or its domain name form.
        type: str
      refresh:
        description:
          - How often secondaries ask, in seconds.
        type: int
      retry:
        description:
          - How soon they ask again after a failure, in seconds.
        type: int
      expire:
        description:
          - How long they answer without having reached the primary, in seconds.
        type: int
      minimum:
        description:
          - How long it may be remembered that a name does not exist, in seconds.
        type: int
      ttl:
        description:
          - How long the SOA record itself may be remembered, in seconds.
        type: int
  manage:
    description:
      - What besides the listed records is this task's business.
      - With C(listed) nothing is.
      - With C(zone) the whole zone is. What is not listed is deleted, but for I(ignore), the zone's own NS records unless others
        are listed, and types that this module cannot read.
      - With C(owned) all is that earlier tasks with the same I(owner) made. Each name has a marker, a TXT record
        C(NAME._owner-OWNER.ZONE) with the types. What somebody else made is refused, or left alone if it is the same.
    type: str
    choices: [listed, zone, owned]
    default: listed
  owner:
    description:
      - Whose markers are used with I(manage=owned).
    type: str
    default: thinkube
  ignore:
    description:
      - Patterns of names relative to the zone, each perhaps with a type after a space, that I(manage) leaves alone, for example
        C(_acme-challenge*) or C(*.dyn A).
    type: list
    elements: str
  create:
    description:
      - Make the zone if the server does not have it, with the listed records and what I(soa) says. The task has to run on the server.
      - A zone that the server does not take leaves nothing behind. The serial begins with the date (year, month, day, and the
        quarter of an hour in it as two digits), or goes on from that of the file where there is one, so that secondaries that knew
        an earlier zone of the name take the new one.
      - A zone that this module made and that the server has lost is not made anew over its file, which holds what others have put into
        it - the server is told to serve the file again, and the task goes on from there.
      - With I(state=absent) the zone is removed if this module made it and the server has it in the same file; of one that was made or
        removed by halves, what is left.
      - BIND is told with C(rndc addzone), for which it needs C(allow-new-zones yes); Knot by its configuration database, which
        it has to be started with (C(-C)), or the zone is gone after a restart.
    type: bool
    default: false
  program:
    description:
      - Which server it is. Only used with I(mode=file) and I(create).
    type: str
    choices: [bind, knot]
    default: bind
  control:
    description:
      - How the server is spoken to, if not in the usual way - the configuration file of rndc, or the socket of knotc.
    type: path
  file:
    description:
      - The absolute path of the zone's file. Needed with I(mode=file) and I(create).
    type: path
  config:
    description:
      - The configuration of a zone that is made - for BIND the statements that C(addzone) takes after type and file, for Knot
        one item and its value a line. Comments in BIND's are left out.
      - It is no place for secrets, since it is on the command line of C(rndc) or C(knotc) for a moment.
      - Left out, BIND lets the keys of I(tsig) and I(transfer_tsig) update and transfer the zone. Without keys its own defaults hold, by
        which up to 9.18 everybody may transfer it, unless the server's options say otherwise; C(allow-transfer) belongs here then.
    type: str
  include:
    description:
      - A file that BIND's configuration includes. Zones that are made get a line in it, in place of C(rndc addzone).
      - It has to be given with I(state=absent), too.
    type: path
  force:
    description:
      - Allow plans that would otherwise be refused as going too far, and with I(manage=owned) take over what somebody else made.
      - With I(create=true) and I(state=absent) that are those that remove a zone with 10 records or more, unless I(records) lists them,
        with records that I(ignore) leaves to others, or one that cannot be read.
    type: bool
    default: false
  settle:
    description:
      - How long to wait until a change is seen where the zone is read, for example "10s".
    type: str
    default: 10s
  timeout:
    description:
      - How long the task may take, for example "60s".
    type: str
    default: 60s
notes:
  - Every refused record is reported at once, each with the id of the rule that it breaks - C(apex-ns), C(bailiwick), C(caa-flags), C(caa-tag),
    C(cname-alone), C(cname-apex), C(cname-single), C(dnssec-type), C(ds-apex), C(duplicate), C(idn), C(message-size), C(mx-null), C(name-form),
    C(name-length), C(ns-glue), C(one-ttl), C(rdata), C(rdata-length), C(reverse-prefix), C(soa-input), C(soa-mail), C(srv-name),
    C(target-not-cname), C(trailing-dot), C(ttl-range), C(txt-quotes), C(txt-string), C(type-unknown), C(wildcard-leftmost).
  - Texts are compared as a whole, however they are divided, unless the division was given.
seealso:
  - name: RFC 2136
    description: Dynamic updates in the domain name system.
    link: https://www.rfc-editor.org/rfc/rfc2136
"""

EXAMPLES = r"""
- name: The services of a site
  thinkube.infra.dns_zone:
    name: example.com
    server: 192.168.1.100
    tsig:
      file: /etc/bind/thinkube/update.key
    records:
      - {name: "@", type: A, values: [192.168.1.200]}
      - {name: "*", type: A, values: [192.168.1.200]}
      - {name: host1, type: A, values: [192.168.1.101], ttl: 300}
      - {name: "@", type: TXT, values: ["v=spf1 -all"]}
      - {name: old, type: A, state: absent}

- name: The reverse zone of the LAN, and nothing else in it
  thinkube.infra.dns_zone:
    name: 192.168.1.0/24
    tsig:
      name: update
      secret: "{{ dns_update_secret }}"
    manage: zone
    reverse_of:
      zone: example.com
      records: "{{ dns_records }}"

- name: A zone that the server may not have yet
  thinkube.infra.dns_zone:
    name: example.com
    create: true
    file: /var/lib/bind/example.com.zone
    tsig:
      file: /etc/bind/update.key
    soa:
      primary: ns1
      mail: hostmaster@example.com
    records:
      - {name: "@", type: NS, values: [ns1]}
      - {name: ns1, type: A, values: [192.168.1.100]}

- name: A zone on a server that takes no updates
  thinkube.infra.dns_zone:
    name: example.net
    mode: file
    file: /etc/bind/db.example.net
    records:
      - {name: www, type: A, values: [192.168.1.200]}

- name: What this site put into a shared zone
  thinkube.infra.dns_zone:
    name: shared.example.com
    server: ns.example.com
    manage: owned
    owner: site1
    records: "{{ dns_records }}"
"""

RETURN = r"""
zone:
  description: The zone after the task, in check mode as it would be.
  returned: success
  type: dict
  contains:
    name:
      description: The zone's name.
      type: str
      sample: example.com.
    display:
      description: The name for people, in its own script where it has one.
      type: str
      sample: example.com
    serial:
      description: The serial of the zone.
      type: int
      sample: 42
    primary:
      description: The primary server that the SOA names.
      type: str
      sample: ns1.example.com.
    signed:
      description: Whether the zone is signed.
      type: bool
      sample: false
    records:
      description: How many records it has, without the SOA and those made by signing.
      type: int
      sample: 17
plan:
  description: What was done, one line for each name and type; in check mode what would be done.
  returned: success
  type: list
  elements: str
  sample:
    - create records www.example.com A (192.168.1.200, ttl 3600)
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
        - C(dynamic) - the server changes the zone by itself, so that its file is not the zone.
        - C(failed) - a step was refused; msg has the reason.
        - C(foreign) - a record (with I(manage=owned)) or the file of a zone that is to be made is somebody else's, and differs.
        - C(internal) - a defect in the module; please report it.
        - C(invalid_argument) - an option's value is refused; nothing was touched.
        - C(malformed_answer) - the server's answer breaks the protocol, so nothing of it is believed.
        - C(needs_collection) - the task needs a second host; run it through the collection, not as a stand-alone program.
        - C(not_converged) - every step was done and the state is still not the wanted one.
        - C(refused) - the server refuses; msg has its response code.
        - C(rules) - the zone would break a rule together with what is there already; msg has the rule's id; or the server's own check refuses its file.
        - C(server_tool) - a tool of the server (rndc, knotc, ...) is missing or refuses.
        - C(timeout) - a deadline has passed.
        - C(tsig) - the TSIG key cannot be read, the server does not take it, or the answer's signature is wrong.
        - C(unreachable) - the server cannot be reached, or ends the connection.
        - C(unsafe) - the plan would change or delete more than anybody usually means to, or the zone's own NS or SOA; force allows it.
        - C(zone_file) - the zone's file cannot be read or written, or holds what would be lost.
        - C(zone_missing) - the server has no such zone, and create is not set.
      type: str
    step:
      description: The step that failed, as it is named in C(plan).
      type: str
    done:
      description: The steps that were done before.
      type: list
      elements: str
"""
