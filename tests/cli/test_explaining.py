"""A wait as a tree: every kind of obstacle with who is behind it, and what would take it away."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from interlock.cli.explaining import tree

NOW_MS = 1_000_000.0


def block(why: str, limit: str = "provider:p", **more: Any) -> dict[str, Any]:
    numbers = {"missing": 0, "used": 4, "capacity": 4, "until": None, "ahead": [], "holders": []}
    return {"limit": limit, "why": why, "text": f"{limit!r} is {why}", **numbers, **more}


def holder(owner: str, seconds: float, **more: Any) -> dict[str, Any]:
    return {"id": f"permit-{owner}", "owner": owner, "grantedAt": NOW_MS - seconds * 1000, **more}


def drawn(*blocks: dict[str, Any], **more: Any) -> list[str]:
    waiter = {
        "id": "waiter-7",
        "limits": ["provider:p", "global"],
        "arrivedAt": NOW_MS - 12_400,
        "position": 2,
    }
    out = io.StringIO()
    console = Console(file=out, width=120, markup=False, highlight=False)
    console.print(tree({**waiter, **more, "blocks": list(blocks)}, NOW_MS))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_wait_is_a_tree() -> None:
    """The waiter, its limits, their holders with their age and their last sign of life, the way out."""
    full = block("full", missing=1, holders=[holder("ada", 30, touchedAt=NOW_MS - 2000), holder("[b]", 3)])
    paused = block("paused", "provider:q", until=NOW_MS + 41_000)
    assert drawn(full, paused, owner="ben", deadline=NOW_MS + 60_000) == [
        "waiter-7 (ben) waits for provider:p, global since 12.4 s, 2 ahead, gives up in 60.0 s",
        "├── 'provider:p' is full",
        "│   ├── ada since 30.0 s, last sign of life 2.0 s ago",
        "│   ├── [b] since 3.0 s",
        "│   └── → goes when 1 slot comes back, or by: interlock limits set p 5",
        "└── 'provider:q' is paused",
        "    └── → opens in 41.0 s, or by: interlock resume q",
    ]


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (block("never_fits", "tools", missing=2), "never goes, unless by: interlock limits set tools 6"),
        (block("gate", missing=1), "goes when the provider reports room"),
        (block("reserved", missing=1, ahead=["a", "b"]), "goes after a, b"),
        (
            block("behind", ahead=[f"w{n}" for n in range(12)]),
            "goes after w0, w1, w2, w3, w4, w5, w6, w7, w8, w9 and 2 more",
        ),
        (block("full", missing=2, ahead=["a"]), "goes when the 1 ahead have gone and 2 slots come back"),
        (
            block("full", "tools", missing=3),
            "goes when 3 slots come back, or by: interlock limits set tools 7",
        ),
        (block("paused", until=NOW_MS - 5), "opens in 0.0 s, or by: interlock resume p"),
        (block("paused", "tools", until=NOW_MS + 5000), "opens in 5.0 s"),
    ],
)
def test_every_obstacle_has_its_way_out(one: dict[str, Any], said: str) -> None:
    assert drawn(one)[-1] == f"    └── → {said}"


def test_what_is_long_is_cut_and_what_steers_is_not_written() -> None:
    lines = drawn(block("full", missing=1, holders=[holder(f"a\x1b[2J{n}", n) for n in range(25)]))
    assert len(lines) == 2 + 10 + 1 + 1
    assert lines[-2] == "    ├── and 15 more"
    assert "\x1b" not in "".join(lines)


def test_who_goes_at_once_is_told_so() -> None:
    assert drawn()[1:] == ["└── nothing is in its way: it goes at once"]
