"""A limit as a row of slots."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Kind = Literal["held", "cooling", "over", "free", "quarantined", "busy", "idle"]
MOST_CELLS: Final = 40
"""A limit with more slots is shown in proportion."""


class Slots(NamedTuple):
    """The cells of a row, the words for them, and for how many slots each cell stands."""

    cells: tuple[Kind, ...]
    label: str
    each: float = 1.0


def slots(held: int, cooling: int, capacity: int | None, *, quarantined: bool = False) -> Slots:
    """Those of a limit; an unlimited one has as many as are taken. What is free may be *quarantined*."""
    taken = held + cooling
    over = 0 if capacity is None else max(0, taken - capacity)
    beyond = min(over, held)  # what cools was let in when there was room
    free = 0 if capacity is None else max(0, capacity - taken)
    counts: dict[Kind, int] = {"held": held - beyond, "over": beyond, "cooling": cooling}
    counts["quarantined" if quarantined else "free"] = free
    words = [
        f"{held} held",
        f"{cooling} cooling" if cooling else "",
        f"{over} over the limit" if over else "",
    ]
    spare = "in quarantine" if quarantined else "free"
    words.append("unlimited" if capacity is None else f"{free} {spare} of {capacity}")
    return _row(counts, ", ".join(filter(None, words)))


def pool_slots(in_use: int, busy: int, available: int, size: int) -> Slots:
    """Those of a pool: agents that are out, that start or are prepared, that rest; and places of none yet."""
    none = max(0, size - in_use - busy - available)
    counts: dict[Kind, int] = {"held": in_use, "busy": busy, "idle": available, "free": none}
    words = [f"{in_use} in use", f"{busy} starting" if busy else "", f"{available} idle", f"size {size}"]
    return _row(counts, ", ".join(filter(None, words)))


def _row(counts: dict[Kind, int], label: str) -> Slots:
    total = sum(counts.values())
    if total <= MOST_CELLS:
        return Slots(tuple(kind for kind, count in counts.items() for _ in range(count)), label)
    there = {kind: count for kind, count in counts.items() if count}
    shares = {kind: max(1, count * MOST_CELLS // total) for kind, count in there.items()}
    largest = max(there, key=lambda kind: there[kind])
    shares[largest] += MOST_CELLS - sum(shares.values())
    cells = tuple(kind for kind, share in shares.items() for _ in range(share))
    return Slots(cells, label, total / MOST_CELLS)
