"""The page about security promises nothing that is not tested, and leaves nothing out."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from interlock.config import GatewayConfig, ServerConfig
from interlock.http.connections.chunks import LONGEST_EXTENSION
from interlock.http.connections.places import LOOPBACK_TIMES
from interlock.http.connections.protocol import LONGEST_HEADERS, LONGEST_TARGET, MOST_HEADERS, Patience
from interlock.http.streaming import LONGEST_SECONDS, MOST_PER_TOKEN, MOST_STREAMS, STALL_SECONDS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/security.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| (X[0-9]+) \| (.+) \|$", PAGE, re.MULTILINE))


def test_every_row_is_there_once_and_in_order() -> None:
    assert re.findall(r"^\| (X[0-9]+) \|", PAGE, re.MULTILINE) == [f"X{n}" for n in range(1, 39)]


@cache
def known_in(file: str) -> set[str]:
    """The names of the tests that *file* has."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("row", ROWS)
def test_its_tests_exist(row: str) -> None:
    """By file and name, at least one."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", ROWS[row])
    assert named
    assert [f"{file}::{name}" for file, name in named if name not in known_in(file)] == []
    assert ROWS[row].count("::") == len(named)


def test_its_numbers_are_those_that_hold() -> None:
    """The table of bounds says what the defaults are."""
    server, patience = ServerConfig(), Patience()
    assert server.max_connections_per_address is not None
    each = server.max_connections_per_address
    told = [
        f"{server.max_connections:,}; of one address {each}, of this machine {each * LOOPBACK_TIMES}",
        f"{MOST_HEADERS}, {LONGEST_HEADERS >> 10} KiB in all",
        f"{LONGEST_TARGET >> 10} KiB",
        f"{patience.head:.0f} s",
        f"{patience.body:.0f} s, and 1 s more for each {patience.rate >> 10} KiB",
        f"{patience.idle:.0f} s, longer",
        f"{GatewayConfig().max_body >> 20} MiB on the gateway",
        f"{server.max_waiting:,}; for one limit {server.max_waiting_per_limit:,}; "
        f"{server.max_waiting_bytes >> 20} MiB of bodies",
        f"{MOST_STREAMS}; of one token {MOST_PER_TOKEN}",
        f"an hour; {STALL_SECONDS:.0f} s",
    ]
    table = PAGE.split("## Connections")[1].split("##")[0]
    assert [one for one in told if f"| {one}" not in table] == []
    assert (LONGEST_SECONDS, LONGEST_EXTENSION) == (3600, 256)
