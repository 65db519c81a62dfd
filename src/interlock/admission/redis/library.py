"""The kernel's Lua library: its text, and the name under which a server has it.

The name carries a hash of the text, so that clients of two versions never replace each other's library, and
a server that has the name has this very text. A function rather than a script: its many parts are made once,
when it is loaded, not at every call.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import NamedTuple

PARTS = (
    "store",
    "records",
    "ledger",
    "granter",
    "deadlock",
    "queue",
    "kernel",
    "explain",
    "clock",
    "clients",
    "words",
    "orders",
    "readings",
    "main",
)
"""The files of the library, in the order in which they build on each other."""


class Library(NamedTuple):
    """What ``FUNCTION LOAD`` takes, and what ``FCALL`` calls."""

    name: str
    text: str


def build(body: str, *, testing: bool = False) -> Library:
    """A library of *body*; one for *testing* takes the time from the request, where that says one."""
    named = f"local TESTING = {str(testing).lower()}\n{body}"
    name = f"interlock_{sha256(named.encode()).hexdigest()[:16]}"
    return Library(name, f'#!lua name={name}\nlocal NAME = "{name}"\n{named}')


@cache
def source() -> str:
    """The parts as one text."""
    here = files(__package__)
    return "\n".join(here.joinpath(f"{part}.lua").read_text(encoding="utf-8") for part in PARTS)


@cache
def library() -> Library:
    """The library that clients use."""
    return build(source())


def keys(namespace: str) -> tuple[str, str, str]:
    """The two keys of *namespace* and what its channels' names begin with, all of one hash tag.

    What has another meaning in a key is written as %XX, so that two namespaces never share one.
    """
    from urllib.parse import quote

    root = f"{{interlock:{quote(namespace, safe='')}}}"
    return f"{root}:records", f"{root}:lists", root
