"""The library's view as the `View` that readings are taken from."""

from __future__ import annotations

from typing import Any

from interlock.admission.readings import Holder, LimitReading, Waiting
from interlock.admission.view import Obstacle, Place, View
from interlock.admission.wire import is_generated


def view_of(said: dict[str, Any], at: float, ahead_ms: int) -> View:
    """*said* at *at* (seconds since the epoch); the wall clock is *ahead_ms* of the logical one."""

    def seconds(logical_ms: Any) -> float:
        return (int(logical_ms) + ahead_ms) / 1000

    def maybe(logical_ms: Any) -> float | None:
        return None if logical_ms is False else seconds(logical_ms)

    limits = tuple(
        LimitReading(
            name=limit["name"],
            capacity=limit["capacity"] or None,
            used=limit["used"],
            cooling=limit["cooling"],
            waiting=limit["waiting"],
            paused_until=maybe(limit["paused_until"]),
            gated=limit["gated"],
        )
        for limit in said["limits"]
    )
    held = tuple(
        Holder(
            id=permit["id"],
            key=None if is_generated(permit["id"]) else permit["id"],
            owner=permit["owner"] or None,
            limits=tuple(permit["limits"]),
            fence=permit["fence"],
            granted_at=seconds(permit["granted"]),
            touched_at=maybe(permit["touched"]),
        )
        for permit in said["held"]
    )
    places = tuple(
        Place(
            Waiting(
                id=place["id"],
                key=None if place["reclaims"] or is_generated(place["id"]) else place["id"],
                owner=place["owner"] or None,
                limits=tuple(place["limits"]),
                priority=int(place["priority"]),
                since=place["since"] / 1000,  # it came from a wall clock, or is about to be compared with one
                arrived_at=seconds(place["arrived"]),
                deadline=maybe(place["deadline"]),
                position=position,
            ),
            tuple(place["charged"]),
            tuple(Obstacle(limit, why, missing) for limit, why, missing in place["obstacles"]),
        )
        for place, position in zip(said["places"], _positions(said["places"]), strict=True)
    )
    return View(at=at, whole=said["whole"], limits=limits, places=places, held=held)


def _positions(places: list[dict[str, Any]]) -> list[int]:
    """How many of those who wait for a limit that each is charged for go before it."""
    before: dict[str, set[int]] = {}
    found = []
    for number, place in enumerate(places):
        elders = set[int]().union(*(before.get(name, ()) for name in place["charged"]))
        found.append(len(elders))
        for name in place["charged"]:
            before.setdefault(name, set()).add(number)
    return found
