# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)
"""The programs in libexec and the shell lines that run, upload and check them on a host.

Every line is run by /bin/sh on the host and speaks to the controller in one way only: a line on stdout
that starts with a marker. Where a program is kept on the host, first match wins:

1. $HOME/.cache/thinkube, when both $HOME and the folder belong to the user
2. /var/tmp/thinkube-UID
3. /tmp/thinkube-UID

A folder counts only if it belongs to the user who runs the program, is no symbolic link (2 and 3: anybody may
create those names), can be written, and programs in it may run (not noexec).
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import struct

# The line "MISSING <system>/<machine>" (exit code 97): the host has no program, or none exists for it.
MISSING = "THINKUBE-MISSING"
# The line "FAILED <text>": the text says what could not be done, or is one of the two words below.
FAILED = "THINKUBE-FAILED"
TERMINAL = "terminal"
NO_PYTHON = "no Python"
SOUND = "THINKUBE-SOUND"
# The line "ENDED <exit code>" on stderr: the agent ended in another way than it should.
ENDED = "THINKUBE-ENDED"

# What `uname -m` says for each of Go's names.
MACHINES = {"amd64": ("x86_64", "amd64"), "arm64": ("aarch64", "arm64")}

# Between the first name and the system stands the module that the program is for; the bundle, which has all others, has none.
_NAME = re.compile(r"^(thinkube(?:_([a-z0-9_]+))?)_([a-z0-9]+)_([a-z0-9]+)\.gz$")
_SUM_LINE = re.compile(rb"^([0-9a-f]{64})\s*$")

# Sets p to the cached program. The common case forks nothing but uname.
# -O is "belongs to the effective user": with a foreign HOME (sudo without -H) another user could swap the program.
_FIND = """p= c=$HOME/.cache/thinkube
if [ -O "$HOME" ] && [ -O "$c" ] && [ -x "$c/$f" ]; then p=$c/$f
else u=`id -u`; for c in /var/tmp/thinkube-$u /tmp/thinkube-$u; do
if [ -O "$c" ] && [ ! -L "$c" ] && [ -x "$c/$f" ]; then p=$c/$f; break; fi; done; fi
"""

# Reads stdin to its end: a connection plugin that finds its pipe closed early would call the host unreachable.
_DRAIN = "cat >/dev/null"
# The agent's stdin stays open: it is greeted with one line.
_GREETING = "read -r greeting"

_SUM = """sum() { if command -v sha256sum; then sha256sum; elif command -v shasum; then shasum -a 256;
else openssl dgst -sha256 -r; fi 2>&1; } ; hash() { sum <"$1" | { while read s r; do [ ${#s} = 64 ] && echo "$s"; done; }; }
"""

_UPLOAD = """LC_ALL=C; export LC_ALL; umask 077; why=
fit() { d=$1
if ! [ -d "$d" ]; then e=`mkdir -p "$d" 2>&1` || { why="$why; $e"; return 1; }; fi
if ! [ -O "$d" ] || [ -L "$d" ]; then why="$why; $d: belongs to somebody else"; return 1; fi
chmod 700 "$d" 2>/dev/null; e=`{ : >"$d/$t"; } 2>&1` || { why="$why; $d: ${e##*: }"; return 1; }
chmod 700 "$d/$t"; if ! [ -x "$d/$t" ]; then rm -f "$d/$t"; why="$why; $d: mounted noexec"; return 1; fi; }
home() { if [ -O "$HOME" ]; then fit "$HOME/.cache/thinkube"; else why="; HOME ($HOME): not a folder of this user"; return 1; fi; }
fail() { DRAIN; echo "FAILED $1"; exit 96; }
u=`id -u`
home || fit /var/tmp/thinkube-$u || fit /tmp/thinkube-$u || fail "no folder to keep the program in: ${why#; }"
trap 'rm -f "$d/$t"' 0; trap 'exit 1' 1 2 15
chmod 600 "$d/$t"
e=`{ gzip -dc >"$d/$t"; } 2>&1` || { a=`df -Pk "$d" | { read a; read a b c n r; echo $n; }`
fail "unpacking the program into $d: ${e##*gzip: } ($a KiB free, NEED KiB needed)"; }
s=`hash "$d/$t"`; [ "$s" = "$h" ] || fail "the program in $d is not what was sent: sha256 ${s:-could not be computed}, expected $h"
e=`chmod 700 "$d/$t" 2>&1 && mv -f "$d/$t" "$d/$f" 2>&1` || fail "renaming the program in $d: $e"
trap - 0
find "$d" -type f -name "${f%-*}-*" ! -name "$f" -mmin +60 -exec rm -f {} + 2>/dev/null
echo SOUND
"""


class Program:
    """One program of libexec.

    A host keeps it under a name with its hash, so that another build is another file and a task never runs
    a program that its own controller did not send.
    """

    def __init__(self, path, kind, system, arch):
        self.path = path
        self.kind = kind
        self.system = system
        self.arch = arch
        # The sum comes from the build: summing 15 MB would cost more than the task.
        self.sidecar = path[: -len(".gz")] + ".sha256"
        # Read as bytes: a worker would load the encoding first.
        with open(self.sidecar, "rb") as sidecar:
            found = _SUM_LINE.match(sidecar.read())
        if not found:
            raise ValueError("%s: the file of its sha256 is damaged" % path)
        self.sha256 = found.group(1).decode()

    @property
    def name(self):
        return "%s_%s_%s-%s" % (self.kind, self.system, self.arch, self.sha256[:32])

    def packed(self):
        with open(self.path, "rb") as file:
            return file.read()

    def unpacked_kib(self):
        # RFC 1952, 2.3.1: the last four bytes are the unpacked size.
        with open(self.path, "rb") as file:
            file.seek(-4, os.SEEK_END)
            return struct.unpack("<I", file.read())[0] // 1024 + 1

    def runs_on(self, machine):
        """machine: "<uname -s>/<uname -m>"."""
        return machine in self.patterns()

    def patterns(self):
        return ["%s/%s" % (self.system.capitalize(), m) for m in MACHINES.get(self.arch, (self.arch,))]


class Folder:
    """The programs in a folder, which a build may change while a play runs.

    Made in Ansible's main process, so that the workers, which are its forks, need only see that nothing changed.
    """

    def __init__(self, path):
        self.path = path
        self._programs = {}  # by module; None: the bundle
        self._seen = {}
        with contextlib.suppress(OSError, ValueError):  # the task will say it
            self._read()

    def programs(self, module):
        """The programs that have a module: its own if it has any, else the bundle. An empty list if there is none.

        A module has one of its own where it cannot be in the bundle, which is static.
        """
        owner = self._owner(module)
        if self._seen.get(owner) is None or self._state(owner) != self._seen[owner]:
            self._read()
            owner = self._owner(module)
        return self._programs.get(owner, [])

    def _owner(self, module):
        return module if module in self._programs else None

    def _read(self):
        names = sorted(os.listdir(self.path)) if os.path.isdir(self.path) else []
        found = {None: []}
        for name in names:
            m = _NAME.match(name)
            if m:
                kind, module, system, arch = m.groups()
                found.setdefault(module, []).append(Program(os.path.join(self.path, name), kind, system, arch))
        self._programs = found
        self._seen = {module: self._state(module) for module in found}

    def _state(self, owner):
        """What differs when another program is there, or one with another sum. Only what the task needs is looked at."""
        try:
            found = [os.stat(path) for path in (self.path, *(p.sidecar for p in self._programs[owner]))]
        except OSError:
            return None
        return [(f.st_ino, f.st_mtime_ns, f.st_size) for f in found]


def _choose(programs, take=_DRAIN):
    """Sets f to the program's name by the machine and p to the cached program, or to nothing; defines missing."""
    arms = ["%s) f=%s;;" % ("|".join(p.patterns()), p.name) for p in programs]
    missing = 'missing() { %s; echo "%s $1"; exit 97; }\n' % (take, MISSING)
    case = "set -- `uname -sm`; m=$1/$2\ncase $m in %s *) missing $m;; esac\n" % " ".join(arms)
    return missing + case + _FIND


def run_line(programs, mode, environment, python=None):
    """Runs the cached program with the caller's stdin.

    environment: for the program alone, so that a HOME set for a task does not move the cache.
    python: interpreters of which one must exist on the host, else the program is not started.
    The shell stays as the parent: a program killed by a signal must end in an exit code, since ssh
    answers a signal with its own 255, which Ansible takes for an unreachable host.
    """
    variables = ["%s=%s" % (name, shlex.quote(value)) for name, value in environment.items()]
    line = '[ ! -t 0 ] || { echo "%s %s"; exit 96; }\n' % (FAILED, TERMINAL)
    line += _choose(programs, _GREETING if mode == "agent" else _DRAIN) + '[ "$p" ] || missing $m\n'
    if python:
        found = " || ".join("command -v %s" % shlex.quote(name) for name in python)
        line += '{ %s; } >/dev/null 2>&1 || { %s; echo "%s %s"; exit 96; }\n' % (found, _DRAIN, FAILED, NO_PYTHON)
    line += " ".join((["env"] + variables if variables else []) + ['"$p" %s\n' % mode])
    if mode == "agent":
        line += 'r=$?; [ $r = 0 ] || echo "%s $r" >&2; exit $r' % ENDED
    else:
        line += "exit $?"
    return line


def check_line(programs):
    """Says SOUND if the cached program is the expected one; else removes it and ends with MISSING."""
    sums = " ".join("%s) h=%s;;" % (p.name, p.sha256) for p in programs)
    return (
        _choose(programs) + _SUM + '[ "$p" ] || missing $m\n'
        "case $f in %s esac\n"
        'if [ "`hash "$p"`" = "$h" ]; then echo %s; else rm -f "$p"; missing $m; fi' % (sums, SOUND)
    )


def upload_line(program, token):
    """Puts the program, packed on stdin, into the cache; says SOUND or FAILED.

    Uploads may race: each writes a name of its own (token) and renames it. Other programs are removed when they
    were written more than an hour ago; a play that still uses one uploads it again.
    """
    names = "f=%s h=%s t=%s.part-%s\n" % (program.name, program.sha256, program.name, token)
    body = _UPLOAD.replace("DRAIN", _DRAIN).replace("FAILED", FAILED).replace("SOUND", SOUND)
    return names + _SUM + body.replace("NEED", str(program.unpacked_kib()))
