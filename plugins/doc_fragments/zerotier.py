# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every module that speaks to ZeroTier has in common."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  home:
    description:
      - The home folder of the host's ZeroTier service. Port and token are read from it.
      - The variable C(ZT_HOME) of the environment is taken when the option is not given.
    type: path
    default: /var/lib/zerotier-one
  api_url:
    description:
      - Where the service listens, for example C(http://127.0.0.1:9993). Left out, it is 127.0.0.1 and the port in the home
        folder. Other addresses than loopback need https.
      - The variable C(ZT_URL) of the environment is taken when the option is not given.
    type: str
  authtoken:
    description:
      - The token of the service. Left out, it is read from a file.
      - It is secret and never shown.
    type: str
  authtoken_file:
    description:
      - The file with the token, on the host that the task runs on. Left out, C(authtoken.secret) in the home folder.
    type: path
  controller:
    description:
      - The controller that authorises the network's members. It is never guessed, since that would send the token to the
        wrong place.
    type: dict
    suboptions:
      kind:
        description:
          - C(self_hosted) is the controller in a zerotier-one, C(central_v1) the older ZeroTier Central, C(central_v2) the
            newer one.
          - The two kinds of Central are built from its published documents alone, and were never run against it.
        type: str
        choices: [none, self_hosted, central_v1, central_v2]
        default: none
      url:
        description:
          - Where it is. Left out, Central's own address, or the host's own service with C(self_hosted).
        type: str
      token:
        description:
          - The token of Central, or of the zerotier-one that is the controller. With C(self_hosted) and without I(url) that
            of the host's own service is taken.
          - It is secret and never shown.
        type: str
      token_file:
        description:
          - A file with the token, on the host that the task runs on.
        type: path
      network_group:
        description:
          - The network group of C(central_v2) in which a network is looked for by its name, and made.
        type: str
      ca_path:
        description:
          - A file with the certificates, in PEM form, that the controller's is checked with. Left out, those of the system.
        type: path
      validate_certs:
        description:
          - Whether its certificate is checked.
        type: bool
        default: true
      allow_insecure:
        description:
          - Whether the token may be sent over plain HTTP to another host, where everybody on the way can read it.
        type: bool
        default: false
      timeout:
        description:
          - How long one request may take, for example C(10s).
        type: str
        default: 10s
      deadline:
        description:
          - How long all requests of the controller may take together, pauses and tries included. What the task then puts back has
            a minute more.
        type: str
        default: 2m
      retries:
        description:
          - How often a request is made again that failed in a way that can pass (no answer, status 5xx). The pauses grow, are
            partly left to chance, and follow what the controller says of its limits.
          - Status 429 does not count, since it depends on how many hosts ask at once. Only C(controller.deadline) ends that.
        type: int
        default: 6
notes:
  - Written for and tested against recordings of zerotier-one 1.14.1. Packages of 1.16 and later have no controller.
  - The service listens on the host's loopback. Reading its token needs root.
"""
