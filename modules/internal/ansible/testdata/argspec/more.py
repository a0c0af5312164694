#!/usr/bin/python3
# SPDX-FileCopyrightText: The thinkube.infra authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Record what ansible-core's argument validator answers to more arguments than the corpus has.

PYTHONPATH=<directory that holds ansible-core 2.19> python3 more.py > more-2.19.jsonl

The spec is that of the struct moreArgs in more_test.go. A line has the arguments, and either the error or what became
of the arguments that were given. Cases in which core crashes are left out."""

import copy
import json
import os
import sys

os.environ.clear()
os.environ.update(HOME="/home/u", X_DIR="/srv", X_SECRET="from env")

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator  # noqa: E402
from ansible.module_utils.common.parameters import env_fallback  # noqa: E402
from ansible.module_utils.common.warnings import get_warning_messages  # noqa: E402
from ansible.module_utils.errors import UnsupportedError  # noqa: E402

INNER = dict(p=dict(type="int"), q=dict(type="str", no_log=True, aliases=["qq"]),
             r=dict(type="list", elements="float"), s=dict(type="bool", default=False))
SUB = dict(
    a=dict(type="int", required=True), b=dict(type="bool", default=True), c=dict(type="str", choices=["x", "y"]),
    pw=dict(type="str", no_log=True, aliases=["passwd"]),
    old=dict(type="str", removed_in_version="2.0.0", removed_from_collection="t.bin"),
    new=dict(type="str", aliases=["legacy"], deprecated_aliases=[dict(name="legacy", date="2030-01-01", collection_name="t.bin")]),
    deep=dict(type="dict", options=INNER), deeps=dict(type="list", elements="dict", options=INNER),
    key=dict(type="str", no_log=True, fallback=(env_fallback, ["X_NONE", "X_SECRET"])),
)
SUBRULES = dict(mutually_exclusive=[("c", "deep")], required_together=[("new", "pw")], required_one_of=[("b", "c")],
                required_if=[("b", False, ["c"])], required_by={"c": ["pw"]})
SPEC = dict(
    str=dict(type="str", aliases=["text", "txt"]), word=dict(type="str", choices=["yes", "no", "maybe"]),
    sdef=dict(type="str", choices=["on", "off", "yes"], default="on"),
    int=dict(type="int"), idef=dict(type="int", default=3), ich=dict(type="int", choices=[1, 2]), float=dict(type="float"),
    bool=dict(type="bool"), bdef=dict(type="bool", default=True), path=dict(type="path"), json=dict(type="json"),
    raw=dict(type="raw"), bytes=dict(type="bytes", default="1K"), bits=dict(type="bits"), dict=dict(type="dict"),
    ddef=dict(type="dict", default={"k": 1}), list=dict(type="list"), ldef=dict(type="list", elements="str", default=["u"]),
    lch=dict(type="list", elements="str", choices=["a", "b"]), lint=dict(type="list", elements="int"),
    lfloat=dict(type="list", elements="float"), lbool=dict(type="list", elements="bool"),
    lpath=dict(type="list", elements="path"), lbytes=dict(type="list", elements="bytes"), ldict=dict(type="list", elements="dict"),
    dir=dict(type="path", fallback=(env_fallback, ["X_NONE", "X_DIR"])), req=dict(type="list", elements="str", required=True),
    sub=dict(type="dict", options=SUB, **SUBRULES), subs=dict(type="list", elements="dict", options=SUB, **SUBRULES),
    app=dict(type="dict", options=INNER, apply_defaults=True),
)

NUMBERS = [0, -5, 1.0, -0.0, 1.5, 1e300, 2**63, -(2**63), 10**25, 5e22, True, "1_0", "_1__0", "+5", "-3.", ".5", ".", "1.0", "1.5", "1e3",
           "1e-3", "1500e-2", "0x10", " 7\n", "\u00a07\u2003", "inf", "-Infinity", "nan", "+nan", "1e", "--1", "1 0", "1e5", "1.e2"]
SIZES = ["1k", "1KB", "1Kb", "1kB", "2gb", "3kilobyte", "3KiloByte", "4megabit", "5Mb", "7b", "7B", "7byte", "7bit", ".5G", "8.K", "1Z",
         "1zetabyte", "1zettabyte", "5Y", "1X", " 2GB", "2GB ", "2  GB", "-1", "1e3K", 10.0, 1.5, 2.5, 10**20, True, [1], ""]
BOOLS = [0.0, 1.0, 2, -1, " yes ", "\tTrue\n", "T", "oN", "ye", "None", {"a": 1}, 10**30]
PATHS = ["~root", "~root/x/", "~/", "~~", "x/~", "$HOME", "${HOME}/x", "${HOME}x$HOME", "$NOPE/x", "${", "${}", "$", "$$HOME", "\\$HOME",
         "~$HOME", "$X_DIR/a//b/../c", [1, "a"], 1.0, {"a": None}]
DICTS = ["{}", "{", "{a}", "{'a'}", "{'a': 1, }", "{'a': 'x' \"y\"}", "{'a' 'b': 1}", "{'a': u'z', r'b\\n': '\\x41\\u0042\\n\\q\\101'}",
         "{'a': -1, 'b': +2.5, 'c': - 3}", "{'a': 0x1F, 'b': 0b11, 'c': 0o17, 'd': 1_000}", "{'a': --1}", "{'a': 1+2}", "{'a': 010}",
         "{'a': 00}", "{'a': 0_0}", "{'a': 1__0}", "{'a': 1_}", "{'a': 1e5, 'b': .5e+3, 'c': 5E-1, 'd': 1., 'e': 010.5}", "{'a': 1e}",
         "{'a': '''t'r''', 'b': \"\"\"q\n\"\"\"}", "{'a': 'l\nm'}", "{'a': (1), 'b': (), 'c': (1,), 'd': (1, [2, {}])}",
         "{'a': True, 'b': False, 'c': None # d\n}", "{'a': Truex}", "{'a': true}", "{'a': 1 'b': 2}", "{'a': 1} x", "{'a': 1} ", "{None: 1, 1.5: 2, 7: 3}",
         "{[1]: 2}", "{**{}}", "{'a': f'x'}", "{'a': x}", "{'a': 1}['a']", '{"a": [1, 2.0, 1e5, true, null, "\\u017e\\ud83d\\ude00"]}', '{"a": 1} ',
         ' {"a": 1}', "a=b=c", "a=", "=a", "a=1 b", "a=1\tb=2", "\ta=1\n", "a='x y' b=\"z\\\"w\"", "x=\"", "x='a,b", "a\\ b=c\\=d", "a=\\", "a=1,,b=2", "a=1, b=2",
         "a", 5, True, ["a=1"]]
LISTS = [",", "a,,b", " a", 1.0, 10**30, {"a": 1}, [], [[1]], ["a", None, {"b": [1.5, None, True]}]]
TEXTS = [[None, True, 1.0, "it's", 'q"', "'\"", "\n\t\\\x00\x7f\u017e\u2028\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")],
         {"k": {"l": []}}, 1e16, 1e15, 1e-4, 1e-5, 123456789.125, 10**25, -0.0, False]
ARGS = [dict(raw=1, bogus=1), dict(bogus=1, idef="x"), dict(text="a", txt="b"), dict(str="a", txt="b"), dict(dir="/given"), dict(dir=None), {}]
SUBS = [
    {}, dict(a=1), dict(a=1, c="x"), dict(a=1, c="x", pw="p"), dict(a=1, passwd="p", new="n"), dict(a=1, legacy="n"), dict(a=1, legacy="n", new="m", pw="p"),
    dict(a=1, b="no"), dict(a=1, b="no", c="y", pw="s"), dict(a=1, c="x", deep={}), dict(a=1, c=None), dict(a=None), dict(a=1, old="o"),
    dict(a=1, deep=dict(p="x")), dict(a=1, deep="p=5 qq=z"), dict(a=1, deep=dict(q=1, qq=2)), dict(a=1, deep=dict(r="1,2.5")), dict(a=1, deep=dict(r=["x"])),
    dict(a=1, deep=dict(zz=1), yy=2), dict(a=1, deeps=[dict(p=1), "p=2", dict(s="on")]), dict(a=1, deeps=[dict(p=[])]), dict(a=1, deeps="p=1"),
    dict(a=1, key="given"), dict(a=1, key=None), dict(a=1, deep=5), dict(a=1, deep=[]), dict(a=1, deeps=[5]),
    "a=1", "a=x", "b=1", '{"a": "2", "deep": {"s": "off"}}', "{'a': [1]}", "nothing", [], 5, None,
]


def cases():
    for option, values in [
        ("int", NUMBERS), ("float", NUMBERS), ("lint", [NUMBERS[:6], "1,x"]), ("lfloat", ["1,2", ["a"]]), ("idef", [None, "5"]),
        ("ich", ["1", 2.0, True, 3, None]), ("bytes", SIZES + [None]), ("bits", SIZES), ("lbytes", ["1K,2M", [None]]), ("bool", BOOLS),
        ("bdef", [None]), ("lbool", ["yes,no,1", [None]]), ("path", PATHS), ("lpath", ["~,$HOME", [None]]), ("dict", DICTS), ("ddef", [None, "a=1"]),
        ("ldict", ["a=1,b=2", ["a=1", {}], ["x"], [None]]), ("list", LISTS), ("ldef", LISTS + [None]), ("req", LISTS + [None]),
        ("lch", ["a", "a,c,d", ["b", 1], []]), ("str", TEXTS), ("json", TEXTS + [" x ", 5, None]), ("raw", TEXTS[:2]),
        ("word", ["yes", True, False, "True", "False", "true", None]), ("sdef", [True, False, "yes", "off", None]),
        ("sub", SUBS), ("subs", [[sub] for sub in SUBS] + SUBS + [[dict(a=1), dict(a="x")]]), ("app", [None, {}, dict(p=1), dict(x=1), "p=3"]),
    ]:
        for value in values:
            yield {option: value}
    yield from ARGS


def kept(value):
    """JSON has no NaN and no infinity."""
    if isinstance(value, float) and value - value != 0:
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    if isinstance(value, dict):
        return {key: kept(item) for key, item in value.items()}
    return [kept(item) for item in value] if isinstance(value, (list, tuple)) else value


for args in cases():
    args = json.loads(json.dumps(dict(dict(req=["r"]), **args)))
    seen = len(get_warning_messages())
    try:
        result = ArgumentSpecValidator(SPEC).validate(copy.deepcopy(args))
    except Exception as error:  # a crash of core
        print("left out:", args, repr(error), file=sys.stderr)
        continue
    line = dict(args=args, warnings=sorted(
        ["Both option %(option)s and its alias %(alias)s are set." % w for w in result._warnings] + list(get_warning_messages())[seen:]))
    line["deprecations"] = sorted(d["msg"] for d in result._deprecations)
    if result.error_messages:
        unsupported = isinstance(result.errors[0], UnsupportedError)
        line["msg"] = ("Unsupported parameters for (t.bin.x) module: " if unsupported else "") + result.errors.msg
    else:
        names = set(args) | {"dir", "app"} | ({"str"} if set(args) & {"text", "txt"} else set())
        line["params"] = kept({name: result.validated_parameters[name] for name in names})
    line = json.loads(json.dumps(line, allow_nan=False))  # keys that are not text become text, and can be sorted
    print(json.dumps(line, sort_keys=True))
