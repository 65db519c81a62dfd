"""What the tests of the provider gate share: a scene on virtual time, its callers, a provider's own count."""

from __future__ import annotations

import asyncio
from typing import Any

from interlock.admission.permit import Acquisition, Permit
from interlock.provider.gate import ProviderGate, ProviderStatus
from interlock.provider.usage import ProviderUsage
from interlock.testing import VirtualClock
from interlock.testing.virtual_time import idle

P = "umans"
START = 1000.0


class Caller:
    """Somebody who asked at the gate, in a task of its own, and keeps the permit."""

    task: asyncio.Task[Permit]

    def __init__(self, name: str) -> None:
        self.name = name
        self.queued = 0
        """How often it was told that it has to wait."""

    @property
    def waits(self) -> bool:
        return not self.task.done()

    @property
    def permit(self) -> Permit:
        assert not self.waits, f"{self.name} waits still"
        return self.task.result()

    @property
    def error(self) -> BaseException | None:
        assert not self.waits, f"{self.name} waits still"
        return self.task.exception()


class Account:
    """What the provider counts, as the gate may ask for it: a number, something odd, or a future of one."""

    def __init__(self, answer: Any = 0) -> None:
        self.answer = answer
        self.asked_at: list[float] = []
        self.asked_about: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self.clock: VirtualClock | None = None

    @property
    def polls(self) -> int:
        return len(self.asked_at)

    def silent(self) -> asyncio.Future[Any]:
        """From now on the answer is what this future gets."""
        self.answer = asyncio.get_running_loop().create_future()
        return self.answer

    async def __call__(self, provider_id: str) -> Any:
        assert self.clock is not None
        self.asked_at.append(self.clock.now())
        self.asked_about.append(provider_id)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            answer = await asyncio.shield(self.answer) if asyncio.isfuture(self.answer) else self.answer
        finally:
            self.at_once -= 1
        if isinstance(answer, BaseException):
            raise answer
        return ProviderUsage(answer) if type(answer) is int else answer


class Scene:
    """A gate on virtual time, those who ask at it, and what its callbacks said."""

    def __init__(self, clock: VirtualClock, **options: Any) -> None:
        self.clock = clock
        if isinstance(options.get("fetch_usage"), Account):
            options["fetch_usage"].clock = clock
        time = {} if "admission" in options else {"clock": clock}
        self.told: list[tuple[Any, ...]] = []
        callbacks = {name: self._note(name) for name in ("on_pause", "on_limit_reduced", "on_reclaim")}
        self.gate = ProviderGate(**(time | callbacks | options))
        self.settings = options.get("settings")
        self.callers: list[Caller] = []
        self.let_in: list[str] = []
        """The names of those who got a permit, in order."""

    def _note(self, name: str) -> Any:
        return lambda *arguments: self.told.append((name, *arguments))

    async def ask(self, name: str = "c", provider_id: str = P, **asked: Any) -> Caller:
        """Have somebody ask, and see how far that goes at once."""
        caller = Caller(name)
        self.callers.append(caller)

        def queued() -> None:
            caller.queued += 1

        acquisition = self.gate.acquire(provider_id, name, **({"on_queued": queued} | asked))
        caller.task = asyncio.create_task(self._ask(caller, acquisition))
        await idle()
        return caller

    async def _ask(self, caller: Caller, acquisition: Acquisition) -> Permit:
        permit = await acquisition
        self.let_in.append(caller.name)
        return permit

    async def hold(self, name: str = "c", provider_id: str = P, **asked: Any) -> Permit:
        """Ask, and be let in at once."""
        caller = await self.ask(name, provider_id, **asked)
        assert not caller.waits, f"{name} should have had room: {self.gate.admission!r}"
        assert caller.queued == 0
        return caller.permit

    async def holds(self, count: int, provider_id: str = P) -> list[Permit]:
        return [await self.hold(f"h{number}", provider_id) for number in range(count)]

    async def queue(self, name: str = "c", provider_id: str = P, **asked: Any) -> Caller:
        """Ask, and have to wait."""
        caller = await self.ask(name, provider_id, **asked)
        assert caller.waits, f"{name} should have had to wait: {self.gate.admission!r}"
        return caller

    async def line_up(self, count: int, **asked: Any) -> list[Caller]:
        """So many who wait at the gate, and one question to the provider about all of them."""
        self.gate.pause(P, 60)
        waiters = [await self.queue(f"w{number}", **asked) for number in range(count)]
        self.gate.resume(P)
        await idle()
        return waiters

    async def release(self, *permits: Permit, outcome: Any = "success") -> None:
        for permit in permits:
            assert permit.release(outcome)
        await idle()

    def status(self, provider_id: str = P) -> ProviderStatus:
        status = self.gate.status(provider_id)
        assert status is not None
        return status

    def in_flight(self, provider_id: str = P) -> int:
        return self.gate.reading(provider_id).used

    async def end(self) -> None:
        for caller in self.callers:
            caller.task.cancel()
        await asyncio.gather(*(caller.task for caller in self.callers), return_exceptions=True)
        for caller in self.callers:
            if not caller.task.cancelled() and caller.task.exception() is None:
                caller.permit.release()
        self.gate.admission.kernel.check()
        await self.gate.aclose()


def at_once(acquisition: Acquisition) -> Permit:
    """What awaiting *acquisition* gives without being suspended even once."""
    try:
        next(acquisition.__await__())
    except StopIteration as done:
        return done.value
    raise AssertionError("it had to wait")


def admitted(callers: list[Caller]) -> int:
    """How many of them wait no more."""
    return sum(not caller.waits for caller in callers)
