"""What `schedules.py` explores of `RemoteAdmission`: client and server in one loop, and no wire between them.

Both ends are the real ones but for the socket: a message takes one turn of the loop, and the connection may
be cut between any two of them, with what was on the way. Needs msgspec: not every Python at hand runs these.
"""

from __future__ import annotations

import asyncio
from asyncio.events import _get_running_loop
from collections.abc import Callable
from functools import partial
from typing import Any

from interlock.admission.leased import asks, exchange, leases
from interlock.admission.local import LocalAdmission
from interlock.admission.remote import RemoteAdmission, link
from interlock.errors import InvalidOperation, Unavailable, ValidationError
from interlock.http.permits.desk import PermitDesk
from interlock.http.permits.stream import _Connection
from interlock.http.permits.words import operations
from interlock.http.problems import encoded
from interlock.stores.memory import MemoryStore
from schedules import Loop, World, standing_at

SCENARIOS: dict[str, Callable[..., World]] = {}

_real_now = leases.now


def _loop_now() -> float:
    """The client's clock: that of the explored loop, so that a replay sees the ages that it saw before."""
    loop = _get_running_loop()
    return loop.time() if isinstance(loop, Loop) else _real_now()


for _room in (asks, exchange, leases, link):
    _room.now = _loop_now  # type: ignore[attr-defined]


class LoopClock:
    """Time as the loop has it, from a moment that leases can be counted from."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def now(self) -> float:
        return 1000.0 + self._loop.time()

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        if when - self.now() > 1000:  # the leases: the client's do not end either
            return asyncio.TimerHandle(when, callback, (), self._loop)
        return self._loop.call_at(when - 1000.0, callback)


class Wire:
    """`interlock.admission.remote.websocket.Socket`, with the server's end behind it."""

    def __init__(self, world: RemoteFleet, received: Callable[[bytes], None]) -> None:
        self._world = world
        self._received = received
        self._loop = world.loop
        self._server: Any = None
        self.ended = False
        self.greeted = world.loop.create_future()
        self.lost = world.loop.create_future()

    async def connect(self, path: str, within: float) -> None:
        opened = self._loop.create_future()
        self._loop.call_soon(lambda: opened.done() or opened.set_result(None))
        await opened
        if self._world.refusals:
            self._world.refusals -= 1
            raise OSError("refused")
        self._server = _Connection(self._world.desk, None, None)  # type: ignore[arg-type]
        self._server._stir = lambda: self._loop.call_soon(self._answer)
        self._world.wire = self

    def send(self, message: bytes) -> None:
        self._loop.call_soon(self._deliver, message)

    def _deliver(self, message: bytes) -> None:
        if not self.ended:
            for operation in operations(message):
                self._server._handlers[type(operation)](operation)
                self._server._heard += 1
            self._loop.call_soon(self._answer)

    def _answer(self) -> None:
        if not self.ended:
            out, self._server._out = self._server._out, []
            self._received(encoded((self._server._heard, out)))

    def abort(self) -> None:
        self._end()

    def cut(self) -> None:
        """The connection breaks; what was on the way is lost."""
        self._end()

    def _end(self) -> None:
        if self.ended:
            return
        self.ended = True
        if self._server is not None:
            self._server._leave()
        if not self.greeted.done():
            self.greeted.set_exception(OSError("cut"))
            self.greeted.exception()
        if not self.lost.done():
            self.lost.set_result("cut")


class RemoteFleet(World):
    """Tasks over one client; the last step of every schedule closes it."""

    def __init__(self, loop: Loop, tasks: int, cancels: int) -> None:
        super().__init__(loop, cancels)
        self.size = tasks
        self.server = LocalAdmission(clock=LoopClock(loop))
        self.server.configure("a", 1)
        self.desk = PermitDesk(self.server, MemoryStore())
        self.desk.is_safe = lambda *_: True  # type: ignore[method-assign]
        self.remote = RemoteAdmission("http://server", lease=86_400.0)
        self.remote._keeper.start = lambda: None  # type: ignore[method-assign]
        link = self.remote._link
        link._socket_type = lambda url, token, received: Wire(self, received)  # type: ignore[assignment,misc]
        link._jitter = lambda low, high: 1.0  # type: ignore[method-assign,assignment]
        link._note = lambda trouble: None  # type: ignore[method-assign]
        stop = link.stop
        link.stop = lambda within: stop(None)  # type: ignore[method-assign, arg-type]
        self.refusals = 0
        """So many connections are refused first."""
        self.wire: Wire | None = None
        self.closing = False
        self.dashed = self.dashes_first = 0
        """How many dashes there were, and how many there have to be before anybody is cancelled."""
        self.beats = self.beats_first = 0
        """The same of heartbeats, before everything stops."""
        self.errors: tuple[type[BaseException], ...] = ()
        self.leaves = 0
        """Units that may be out at the end: of leases that nobody is there to renew."""

    # what tasks do

    async def enter(self, name: str, *limits: str, **asked: Any) -> None:
        async with self.remote.acquire(*limits, **{"timeout": None} | asked) as permit:
            await self.section(name, permit)

    async def dash(self, *limits: str, **asked: Any) -> None:
        async with self.remote.acquire(*limits, **{"timeout": None} | asked) as permit:
            assert not permit.released, "a dash with a permit that had been released"
            self.dashed += 1

    def all_do(self, way: Callable[..., Any], *args: Any, **asked: Any) -> None:
        self.todo += [partial(way, str(n), *args, **asked) for n in range(self.size)]

    def cut(self) -> None:
        if self.wire is not None:
            self.wire.cut()

    def stop_everything(self) -> None:
        """As at the end of `asyncio.run`: every task is cancelled, the connection's own as well."""
        owner = self.remote._link._task
        if owner is not None and not owner.done():
            self.loop.report.cancelled_at.update(standing_at(owner))
            owner.cancel()
        for task in self.tasks:
            if not task.done() and task not in self.cancelled:
                self.cancels += 1
                self._cancel(task)
        self.todo.clear()
        self.leaves = 1

    # what happens

    def possible(self) -> list[str]:
        if not self.todo and all(task.done() for task in self.tasks) and not self.closing:
            return ["close"]
        labels = super().possible()
        if self.beats >= 6 and len(labels) > 1 and "fire" in labels:
            labels.remove("fire")  # the heart would beat for ever
        if self.dashed < self.dashes_first:
            labels = [label for label in labels if not label.startswith("cancel")]
        if self.beats < self.beats_first and len(labels) > 1 and "stop everything" in labels:
            labels.remove("stop everything")
        return labels

    def do(self, label: str) -> None:
        if label == "close":
            self.closing = True
            self.once.clear()
            self.cancels = 0
            self.tasks.append(self.loop.create_task(self.remote.aclose()))
        else:
            self.beats += label == "fire"
            super().do(label)

    # what must hold

    def check(self) -> None:
        self.server.kernel.check()
        used = self.server.limits()["a"].used
        assert used <= 1, f"{used} of 1 in use"
        inside = {permit.id for permit in self.inside.values() if permit is not None}
        assert len(inside) <= 1, f"{inside} are inside"
        for permit_id in inside:
            assert permit_id in self.server.kernel.permits, f"{permit_id} is inside and not held"

    def final(self) -> None:
        super().final()
        remote = self.remote
        assert not self.server.waiting(), "somebody waits and nobody awaits it"
        assert not remote._asks, "a request is kept that nobody waits for"
        assert not remote._sharing, "a key is kept that nobody asks for"
        assert not remote._held, "a permit is kept that nobody has"
        used = self.server.limits()["a"].used
        assert used <= self.leaves, f"{used} units are left behind"

    def ended(self, number: int, error: BaseException | None) -> None:
        assert error is None or isinstance(error, self.errors), f"task {number} raised {error!r}"


def scenario(
    cancels: int = 2,
) -> Callable[[Callable[[RemoteFleet], None]], Callable[[RemoteFleet], None]]:
    """Enter it under its name; *cancels* unless the caller of the scenario wants another number of them."""
    usual = cancels

    def enter(fill: Callable[[RemoteFleet], None]) -> Callable[[RemoteFleet], None]:
        def build(loop: Loop, tasks: int = 3, cancels: int | None = None) -> World:
            fleet = RemoteFleet(loop, tasks, usual if cancels is None else cancels)
            fill(fleet)
            return fleet

        SCENARIOS[fill.__name__] = build
        return fill

    return enter


@scenario()
def remote_entered(fleet: RemoteFleet) -> None:
    """One limit, three tasks, over the wire."""
    fleet.all_do(fleet.enter, "a")


@scenario()
def remote_cut(fleet: RemoteFleet) -> None:
    """The connection breaks once, anywhere."""
    fleet.all_do(fleet.enter, "a")
    fleet.once["cut"] = fleet.cut


@scenario()
def remote_keyed(fleet: RemoteFleet) -> None:
    """One key: one permit, or one wait, whoever gives up."""
    fleet.all_do(fleet.enter, "a", key="k")
    fleet.once["cut"] = fleet.cut


@scenario()
def remote_keyed_dash(fleet: RemoteFleet) -> None:
    """One key, and holders that are gone before the others have noticed that they hold it."""
    fleet.todo += [partial(fleet.dash, "a", key="k") for _ in range(fleet.size)]


@scenario(cancels=1)
def remote_keyed_again(fleet: RemoteFleet) -> None:
    """As before, and somebody else who takes the unit, so that the key has to wait once more."""
    fleet.todo += [partial(fleet.dash, "a", key="k") for _ in range(fleet.size - 1)]
    fleet.todo.insert(0, partial(fleet.enter, "0", "a"))
    fleet.dashes_first = 1


@scenario()
def remote_calls(fleet: RemoteFleet) -> None:
    """What the server is told about limits and owners."""
    fleet.errors = (Unavailable,)  # time may leap

    async def change() -> None:
        await fleet.remote.set_limit("b", 1)
        await fleet.remote.remove_limit("b")

    async def read() -> None:
        await fleet.remote.refresh()
        assert "a" in fleet.remote.limits()
        await fleet.remote.call("view", True, 0)

    async def release() -> None:
        assert await fleet.remote.release_owner("nobody") == 0

    fleet.todo += [release, change, read]


@scenario()
def remote_removed(fleet: RemoteFleet) -> None:
    """A limit goes while somebody waits for it."""
    fleet.errors = (Unavailable, InvalidOperation, ValidationError)
    fleet.server.configure("b", 1)
    fleet.todo += [
        partial(fleet.remote.remove_limit, "b"),
        *(partial(fleet.enter, str(n), "a", "b") for n in range(fleet.size - 1)),
    ]


@scenario()
def remote_lent(fleet: RemoteFleet) -> None:
    """A permit is lent, and wanted back while others have its unit."""

    async def lend() -> None:
        async with fleet.remote.acquire("a", timeout=None) as permit:
            async with permit.lend(timeout=None):
                await fleet.section("lending")
            await fleet.section("back", permit)

    fleet.todo += [lend, *(partial(fleet.enter, str(n), "a") for n in range(fleet.size - 1))]


@scenario(cancels=1)
def remote_wanted_back(fleet: RemoteFleet) -> None:
    """A lent permit waits for its unit, which somebody has for as long as he likes."""

    async def lend() -> None:
        permit = await fleet.remote.acquire("a", timeout=None)
        lending, borrowed = permit.lend(timeout=None), None
        await lending.__aenter__()
        try:
            borrowed = await fleet.remote.acquire("a", timeout=None)
            fleet.once["give back"] = borrowed.release
            await lending.__aexit__(None, None, None)
        finally:
            permit.release()
            if borrowed is not None:
                borrowed.release()

    fleet.todo += [lend]


@scenario()
def remote_closed(fleet: RemoteFleet) -> None:
    """Closed while others wait and hold, by one who may be cancelled at it."""
    fleet.errors = (Unavailable,)
    fleet.leaves = 1
    fleet.all_do(fleet.enter, "a")
    fleet.todo[-1] = fleet.remote.aclose


@scenario()
def remote_ends(fleet: RemoteFleet) -> None:
    """The event loop ends around it all."""
    fleet.all_do(fleet.enter, "a")
    fleet.once["cut"] = fleet.cut
    fleet.once["stop everything"] = fleet.stop_everything


@scenario(cancels=0)
def remote_ends_later(fleet: RemoteFleet) -> None:
    """The same once the connection has been there for a while."""
    fleet.all_do(fleet.enter, "a")
    fleet.once["stop everything"] = fleet.stop_everything
    fleet.beats_first = 2


@scenario(cancels=0)
def remote_ends_unconnected(fleet: RemoteFleet) -> None:
    """The same while there is no server."""
    fleet.all_do(fleet.enter, "a")
    fleet.refusals = 3
    fleet.once["stop everything"] = fleet.stop_everything
    fleet.beats_first = 1
