"""What `interlock top` draws, as text: it follows from the state, the moment and the size."""

from __future__ import annotations

from typing import Any

import pytest
from rich.cells import cell_len

from interlock.cli.frame import KEYS, View, frame, gates, slots

NOW_MS = 100_000


def limit(name: str, capacity: int | None, used: int = 0, **more: Any) -> dict[str, Any]:
    row = {"cooling": 0, "waiting": 0, "waitingSince": None, "pausedUntil": None, "pausedBy": None}
    return {"name": name, "capacity": capacity, "used": used, "gated": False, **row, **more}


LIMITS = [
    limit("provider:openai", 4, 4, cooling=1, waiting=12, waitingSince=NOW_MS - 12_400),
    limit("provider:anthropic", None, 9),
    limit("provider:mistral-of-the-west-and-long", 30, 2, pausedUntil=NOW_MS + 41_200, pausedBy="rate"),
    limit("global", 200, 37),
    limit("tools", 8, 3),
    limit("sessions", None, 2),
    limit("streams", None),
]
REDUCED = {"limit": 4, "configuredLimit": 6, "autoReduced": True, "upstreamInFlight": 5, "upstreamLimit": 8}
POOL = {"size": 10, "available": 2, "inUse": 11, "overflow": 1, "maxOverflow": 5, "waiting": 4}
RUNS = {"agent": "coder", "running": 2, "queued": 7, "maxConcurrentRuns": 2}


def rows(*limits: dict[str, Any]) -> dict[str, Any]:
    return {"limits": {one["name"]: one for one in limits}, "providers": {}, "pools": {}, "sessions": {}}


def fleet() -> dict[str, Any]:
    pool = {"name": "coders", **POOL, "starting": 0, "preparing": 1, "closing": 0, "failures": 0}
    return rows(*LIMITS) | {
        "providers": {"openai": REDUCED},
        "pools": {"coders": pool},
        "sessions": {"s1": {"id": "s1", **RUNS}},
    }


def drawn(state: Any, view: View, width: int, height: int | None = None) -> list[str]:
    lines = [line.plain for line in frame(state, view, NOW_MS, width, height)]
    assert max(map(cell_len, lines)) <= width
    return [line.rstrip() for line in lines]


def test_a_frame_at_80_columns() -> None:
    view = View("http://127.0.0.1:7411", selected="provider:openai")
    assert (
        "\n".join(drawn(fleet(), view, 80))
        == """\
http://127.0.0.1:7411   14 in flight   12 waiting   by name
providers
  anthropic         █████████             9/∞
  mistral-of-the-…  █···················· 2/30     paused for 42 s (rate)
▸ openai            ███▒                  4/4      12 waiting, longest 12.4 s
                    reduced from 6 to 4 after a 429 · 5/8 upstream
limits
  global            ████················· 37/200
  sessions          ██                    2/∞
  tools             ███·····              3/8
pools
  coders            ███████████▒          11/10    4 waiting · 1/5 overflow
                    1 preparing
sessions
  s1                ██                    2/2      7 queued
q quit   s sort   ↑↓ select   p pause/resume   r restore"""
    )


def test_a_frame_at_120_columns() -> None:
    view = View("http://127.0.0.1:7411", sort="use", keys=False)
    assert (
        "\n".join(drawn(fleet(), view, 120))
        == """\
http://127.0.0.1:7411   14 in flight   12 waiting   by use
providers
  openai                    ███▒                             4/4      12 waiting, longest 12.4 s
                            reduced from 6 to 4 after a 429 · 5/8 upstream
  mistral-of-the-west-and…  ██····························   2/30     paused for 42 s (rate)
  anthropic                 █████████                        9/∞
limits
  tools                     ███·····                         3/8
  global                    ██████·························· 37/200
  sessions                  ██                               2/∞
pools
  coders                    ███████████▒                     11/10    4 waiting · 1/5 overflow · 1 preparing
sessions
  s1                        ██                               2/2      7 queued"""
    )


def test_a_lost_connection_and_what_a_key_did_are_said() -> None:
    view = View("http://x", lost="lost the connection to http://x (refused); trying again", said="p: open")
    lines = drawn(rows(), view, 80)
    assert lines == [
        "http://x   0 in flight   0 waiting   by name",
        "lost the connection to http://x (refused); trying again",
        "p: open",
    ]


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("name", ["provider:a", "provider:b", "provider:c", "x", "y"]),
        ("queue", ["provider:c", "provider:a", "provider:b", "y", "x"]),
        ("use", ["provider:b", "provider:c", "provider:a", "x", "y"]),
    ],
)
def test_gates_are_sorted(sort: str, names: list[str]) -> None:
    """Providers first; a limit that nobody set and nobody uses is left out."""
    limits = rows(
        limit("provider:a", None, 50, waiting=1),
        limit("provider:b", 2, 2),
        limit("provider:c", 4, 3, waiting=9),
        limit("x", 2, 1),
        limit("y", 4, 1, waiting=1),
        limit("z", None),
    )
    assert gates(limits, sort) == names


@pytest.mark.parametrize(
    ("gate", "shown"),
    [
        ((0, 0, 4), "····"),
        ((2, 1, 4), "██▒·"),
        ((5, 0, 4), "█████"),  # lowered below what is held
        ((3, 2, None), "███▒▒"),
        ((50, 5, None), "██████████"),
        ((1, 1, 1000), "█▒········"),  # what is there is shown, however little
        ((998, 1, 1000), "████████▒·"),
        ((1000, 0, 1000), "██████████"),
        ((500, 0, 1000), "█████·····"),
    ],
)
def test_slots(gate: Any, shown: str) -> None:
    assert slots(*gate, width=10) == shown


@pytest.mark.parametrize("width", [1, 2, 5, 13])
def test_slots_of_any_numbers_fit(width: int) -> None:
    for held in range(13):
        for cooling in range(13):
            for capacity in (None, 1, 2, 5, 10, 30):
                bar = slots(held, cooling, capacity, 5)
                assert len(bar) <= 5
                assert ("█" in bar) >= (held > 0) or cooling
                assert ("▒" in bar) == (cooling > 0) or capacity is None


@pytest.mark.parametrize("selected", [0, 7, 150, 299])
def test_what_is_selected_is_on_the_screen(selected: int) -> None:
    """With the heading and the keys, and no line more than there is room for."""
    state = rows(*(limit(f"provider:p{number:03}", 2, waiting=1) for number in range(300)))
    lines = drawn(state, View("http://x", selected=f"provider:p{selected:03}"), 80, 24)
    assert len(lines) == 24
    assert [line for line in lines if line.startswith(f"▸ p{selected:03}")]
    assert (lines[0][:8], lines[-1]) == ("http://x", KEYS)


@pytest.mark.parametrize("width", [1, 20, 40, 61, 300])
def test_no_line_is_wider_than_the_screen(width: int) -> None:
    """Whatever the names are; nothing in them steers the terminal."""
    state = fleet()
    for name in ("provider:" + "x" * 128, "日本語" * 20, "a\x1b[2Jb\nc"):
        state["limits"][name] = limit(name, 1_000_000, 999_999, waiting=10_000, waitingSince=0)
    for line in frame(state, View("http://x" + "y" * 300), NOW_MS, width):
        assert cell_len(line.plain) <= max(40, width)
        assert "\x1b" not in line.plain
        assert "\n" not in line.plain
