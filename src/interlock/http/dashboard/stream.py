"""``GET /dashboard/stream``: a page as a stream of HTML, first whole, then the pieces that have changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlock.http.dashboard.fleet import pulse
from interlock.http.dashboard.parts import Told
from interlock.http.streaming import PING, PING_SECONDS, EventStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.http.access.caller import Caller
    from interlock.http.changes import FleetStreams
    from interlock.http.dashboard.fleet import View
    from interlock.http.streaming import Put


async def once(fleet: FleetStreams, view: View) -> str:
    """The page as it is now, for one who wants no stream."""
    return Told().whole(await view.parts(fleet.read()))


class PageStream(EventStream):
    """One reader of *view*. Its fleet is that of `/events`: one look serves all."""

    def __init__(self, fleet: FleetStreams, view: View, ready: Callable[[], bool], caller: Caller) -> None:
        self._fleet = fleet
        self._view = view
        self._ready = ready
        self._closed = False
        super().__init__(fleet, caller)

    def close(self) -> None:
        self._closed = True
        self._fleet.wake()

    async def send_all(self, put: Put) -> None:
        fleet, clock, told = self._fleet, self._clock, Told()
        fleet.look()
        version, head = fleet.version, Told()
        parts, top = await self._view.parts(fleet.state), [pulse(fleet.state, self._ready())]
        await put(self._event("view", told.whole(parts) + head.patch(top)))
        ping, look = clock.now() + PING_SECONDS, clock.now() + self._view.every
        while not self._closed:
            if fleet.version == version and clock.now() < min(ping, look):
                await fleet.newer(version, min(ping, look))
                continue
            version, look = fleet.version, clock.now() + self._view.every
            parts, top = await self._view.parts(fleet.state), [pulse(fleet.state, self._ready())]
            if not told.knows(parts):
                await put(self._event("view", told.whole(parts) + head.patch(top)))
            elif pieces := told.patch(parts) + head.patch(top):
                await put(self._event("patch", pieces))
            elif clock.now() >= ping:
                await put(PING)
            else:
                continue
            ping = clock.now() + PING_SECONDS

    def _event(self, name: str, html: str) -> bytes:
        at = round(self._clock.now() * 1000)
        data = html.replace("\r", "&#13;").replace("\n", "\ndata: ")
        return f"id: {at}\nevent: {name}\ndata: {data}\n\n".encode("utf-8", "replace")
