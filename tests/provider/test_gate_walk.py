"""Whatever is done at a provider gate, in whatever order: seeded walks against a count of our own.

The count here knows permits and cooldowns only. A failure prints its seed and the way that led there; the
seed is the test's parameter.
"""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import pytest

from interlock import AcquireTimeout, LimitExceeded
from interlock.admission.permit import Acquisition, Permit
from interlock.testing import VirtualClock
from interlock.testing.virtual_time import idle
from provider.gates import START, Account, Caller, P, Scene

STEPS = 250
PAUSES = [None, 0, 0, 0.2, 0.5, 3, -1, math.nan, 10**12]


class Count(Account):
    """A provider's count that also remembers when the question was asked that is answered next."""

    asked_at_fence: int | None = 0
    """None: the limit was removed meanwhile, and the answer is held against our own count only."""
    reported: int | None = None

    def __init__(self, walk: Walk) -> None:
        super().__init__(0)
        self.walk = walk

    async def __call__(self, provider_id: str) -> Any:
        self.asked_at_fence = self.walk.fence
        self.reported = None
        usage = await super().__call__(provider_id)
        self.reported = None if usage is None else usage.concurrent_sessions
        return usage


class Walk(Scene):
    """A gate, everything that may happen to it, and what must hold whenever somebody is let in."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.account = Count(self)
        recovery = self.random.choice(["manual", "probe"])
        super().__init__(
            VirtualClock(START),
            fetch_usage=self.account if self.random.random() < 0.7 else None,
            recovery=recovery,
            recovery_window=10.0,
            default_pause=2.0,
            slot_timeout=20.0,
            on_reclaim=self._reclaimed,
        )
        self.way: list[str] = []
        self.held: dict[Permit, Caller] = {}
        self.cooling: list[int] = []
        """When, in milliseconds, each of the slots that cool has cooled."""
        self.cooldown = {"success": 0.35, "cancelled": 0.35, "failed": 0.35}
        self.granted_to_nobody = 0
        """Grants that met a caller who had been cancelled: unused, so they do not cool."""
        self.reading: tuple[int, int, float] | None = None
        """The last answer: the fence when it came, how many it admits, until when it means something."""
        self.broken: list[object] = []
        """What was found wrong where an AssertionError would reach nobody."""
        self.seen: set[str] = set()
        """The rare things that happened on the way."""
        admission = self.gate.admission
        self._admit, admission.admit = admission.admit, self._answered  # type: ignore[method-assign]

    @property
    def fence(self) -> int:
        """How many were let in so far."""
        return self.gate.admission.kernel.fence

    def must(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.broken.append(otherwise)

    def _answered(self, name: str, count: int, fresh_until: float | None = None) -> None:
        """What one answer admits: no more than the limit leaves of what is in flight here or there."""
        reading, reported, asked_at = self.gate.reading(P), self.account.reported, self.account.asked_at_fence
        assert reading.capacity is not None
        in_flight = reading.used
        if reported is not None and asked_at is not None:
            in_flight = max(in_flight, reported + self.fence - asked_at)
        room = max(0, reading.capacity - in_flight)
        exact = reported is not None and asked_at is not None
        said = f"{reported} reported, room for {room}, {count} admitted"
        self.must(count == room if exact else count <= room, said)
        now = self.clock.now()
        lasting = fresh_until is not None and fresh_until > now
        self.must(lasting == (reported is not None), f"{reported} is believed until {fresh_until}")
        self.reading = self.fence, count, fresh_until if lasting and fresh_until is not None else now
        self._admit(name, count, fresh_until)
        if reported is None:
            self.seen.add("unknown")
            return
        self.seen.add("known")
        if reported < in_flight > reading.used:
            self.seen.add("granted since it was asked")
        if count == 0 and reading.used < reading.capacity:
            self.seen.add("adverse")

    async def _ask(self, caller: Caller, acquisition: Acquisition) -> Permit:
        permit = await super()._ask(caller, acquisition)
        self.held[permit] = caller
        now, reading = self.clock.now(), self.gate.reading(P)
        assert reading.paused_until is None, f"{caller.name} goes in during a pause"
        if reading.capacity is not None:
            assert reading.used <= reading.capacity, f"{caller.name} makes {reading.used}"
        if reading.gated:
            since, count, until = self.reading or (0, 0, -math.inf)
            if caller.queued:
                assert now <= until, f"{caller.name} waited and goes without an answer"
                self.seen.add("waiter on a reading")
            if now < until or caller.queued:
                assert self.fence - since <= count, f"{caller.name} is one more than the {count} admitted"
            if now < until and not caller.queued:
                self.seen.add("newcomer on a reading")
        return permit

    def _reclaimed(self, provider_id: str, conversation_id: str, held_seconds: float) -> None:
        permit = next(one for one, caller in self.held.items() if one.lost and caller.name == conversation_id)
        self.must(held_seconds > 20, f"{conversation_id} lost its slot after {held_seconds} s")
        self.seen.add("reclaimed")
        self._cool(permit, "failed")

    def _cool(self, permit: Permit, outcome: str) -> None:
        del self.held[permit]
        self.cooling.append(self.cooled_at(outcome))

    def cooled_at(self, outcome: str) -> int:
        return round((self.clock.now() + self.cooldown[outcome]) * 1000)

    # what may happen

    def some(self, callers: list[Any]) -> Any:
        return self.random.choice(callers) if callers else None

    async def ask_(self) -> str:
        choose = self.random.choice
        asked: dict[str, Any] = {"timeout": choose([None, None, None, 0, 0.4, 7])}
        if choose([True, False]):
            asked["prompt_started_at"] = self.clock.now() + choose([-500, -3, 0, 60])
        if choose([True, False, False]):
            asked["priority"] = choose([-1, 1])
        await self.ask(f"c{len(self.callers)}", **asked)
        return str(asked)

    async def release_(self) -> str:
        permit, outcome = self.some(list(self.held)), self.random.choice(list(self.cooldown))
        if permit is None:
            return "nobody"
        name = self.held[permit].name
        assert permit.release(outcome)
        assert not permit.release()
        self._cool(permit, outcome)
        return f"{name} as {outcome}"

    async def cancel_(self) -> str:
        caller = self.some([caller for caller in self.callers if caller.waits])
        if caller is not None:
            caller.task.cancel()
        return "nobody" if caller is None else caller.name

    async def late_(self) -> str:
        """A question whose answer comes when others were let in, or nobody waits any more."""
        reply = self.account.silent()
        self.gate.resume(P)
        await idle()
        await self.gate.set_limit(P, self.random.randint(3, 6))
        await self.ask(f"c{len(self.callers)}", timeout=None)
        for caller in self.callers:
            if caller.waits and self.random.random() < 0.9:
                caller.task.cancel()
        await idle()
        asked = [await self.ask_() for _ in range(self.random.randint(0, 4))]
        if self.random.random() < 0.2:
            await self.remove_limit_()
            asked.append(await self.set_limit_())
        self.account.answer = self.random.choice([0, 2, None])
        reply.set_result(self.random.choice([1, 1, 2, 3, None]))
        return ", ".join(asked)

    async def release_and_cancel_(self) -> str:
        """In one step, so that the grant meets the cancelled."""
        released = await self.release_()
        for waiting in self.gate.admission.waiting()[:2]:
            next(caller for caller in self.callers if caller.name == waiting.owner).task.cancel()
        for caller in self.callers:
            if caller.waits and self.random.random() < 0.3:
                caller.task.cancel()
        return released

    async def touch_(self) -> str:
        for permit in self.held:
            if self.random.random() < 0.5:
                permit.touch()
        return ""

    async def report_(self) -> str:
        permit = self.random.choice([None, self.some(list(self.held))])
        reason = self.random.choice(["concurrency", "concurrency", "rate", "overload", "quota"])
        before, until = self.gate.get_limit(P), self.gate.reading(P).paused_until
        retry_after = self.random.choice(PAUSES)
        self.gate.report_rate_limit(P, retry_after, permit=permit, reason=reason)
        after = self.gate.get_limit(P)
        assert after in (before, None if before is None else max(1, before - 1))
        assert reason == "concurrency" or after == before
        assert until is None or (self.gate.reading(P).paused_until or 0) >= until, "a pause shrank"
        return f"{retry_after} {reason} {permit}"

    async def pause_(self) -> str:
        self.gate.pause(P, seconds := self.random.choice([0, 0.2, 5]))
        return str(seconds)

    async def resume_(self) -> str:
        self.gate.resume(P)
        return ""

    async def set_limit_(self) -> str:
        await self.gate.set_limit(P, limit := self.random.randint(1, 6))
        assert self.gate.get_limit(P) == limit
        return str(limit)

    async def remove_limit_(self) -> str:
        await self.gate.remove_limit(P)
        await idle()
        self.reading = self.account.asked_at_fence = None
        return ""

    async def set_cooldown_(self) -> str:
        self.cooldown = {outcome: self.random.choice([0, 0, 0.1, 0.35, 2]) for outcome in self.cooldown}
        success, cancelled, failed = self.cooldown.values()
        await self.gate.set_cooldown(P, success, cancelled=cancelled, failed=failed)
        return str(self.cooldown)

    async def usage_(self) -> str:
        answer = self.random.choice(
            [0, 0, 1, 2, 3, 6, 10**9, None, RuntimeError("no usage"), "silent", "silent"]
        )
        if answer == "silent":
            self.account.silent()
        else:
            self.account.answer = answer
        return repr(answer)

    async def answer_(self) -> str:
        if not asyncio.isfuture(self.account.answer) or self.account.answer.done():
            return "nobody"
        self.account.answer.set_result(self.random.choice([0, 1, 4, None]))
        return repr(self.account.answer.result())

    async def advance_(self) -> str:
        seconds = self.random.choice([0.001, 0.1, 0.1, 0.35, 0.35, 1, 1, 2.5, 6, 31])
        before = self.gate.get_limit(P) or math.inf
        await self.clock.advance(seconds)
        self.seen |= {"recovered"} if (self.gate.get_limit(P) or 0) > before else set()
        return str(seconds)

    async def step(self, what: str) -> None:
        self.way.append(f"{self.clock.now():g} {what}")
        self.way[-1] += f" {await getattr(self, what + '_')()}"
        await idle()
        self.check()

    def check(self) -> None:
        """What is in flight is what was let in and has not cooled, by our own count."""
        assert not self.broken, self.broken[0]
        lost = self.fence - len(self.let_in) - self.granted_to_nobody
        if lost:
            self.granted_to_nobody += lost
            self.seen.add("granted to the cancelled")
        for caller in self.callers:
            if not caller.waits and not caller.task.cancelled() and caller.error is not None:
                assert isinstance(caller.error, AcquireTimeout | LimitExceeded), repr(caller.error)
                self.seen |= {"timed out"} if isinstance(caller.error, AcquireTimeout) else set()
        now_ms = round(self.clock.now() * 1000)
        self.cooling = [until for until in self.cooling if until > now_ms]
        reading = self.gate.reading(P)
        assert (reading.used, reading.cooling) == (len(self.held) + len(self.cooling), len(self.cooling))
        assert reading.waiting == sum(caller.waits for caller in self.callers)
        status = self.gate.status(P)
        if status is not None and status.limit is not None and status.configured_limit is not None:
            assert 1 <= status.limit <= status.configured_limit
            assert status.auto_reduced == (status.limit < status.configured_limit)
            assert status.auto_reduced == (status.notice is not None)
            self.seen |= {"reduced"} if status.auto_reduced else set()
            self.seen |= {"over the limit"} if status.in_flight > status.limit else set()
        self.gate.admission.kernel.check()

    async def all_go(self) -> None:
        """Nothing is left that could keep anybody out: whoever waits is served, then all is given back."""
        self.account.answer = 0
        await self.clock.advance(3)
        await self.set_limit_()
        for _ in range(10 * len(self.callers)):
            self.gate.resume(P)
            await idle()
            if not self.held and not any(caller.waits for caller in self.callers):
                break
            while self.held:
                await self.step("release")
            await self.clock.advance(2.5)
            self.check()
        for caller in self.callers:
            assert not caller.waits, f"{caller.name} waits for ever"
        await self.clock.advance(2.5)
        reading = self.gate.reading(P)
        assert (reading.used, reading.cooling, reading.waiting) == (0, 0, 0)


WEIGHTS = {
    "ask": 10,
    "release": 6,
    "cancel": 1,
    "late": 1.5,
    "release_and_cancel": 3,
    "touch": 1,
    "report": 2,
    "pause": 1,
    "resume": 2,
    "set_limit": 2,
    "remove_limit": 0.3,
    "set_cooldown": 1,
    "usage": 4,
    "answer": 3,
    "advance": 6,
}


RARE = {
    "known",
    "unknown",
    "adverse",
    "granted since it was asked",
    "granted to the cancelled",
    "newcomer on a reading",
    "over the limit",
    "recovered",
    "reclaimed",
    "reduced",
    "timed out",
    "waiter on a reading",
}


async def go(seed: int) -> set[str]:
    """One walk to its end; what it has seen."""
    walk = Walk(seed)
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: walk.broken.append(context))
    try:
        await walk.step("set_limit")
        for _ in range(STEPS):
            await walk.step(walk.random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0])
        await walk.all_go()
    except BaseException as broken:
        broken.add_note(f"seed {seed}, after:\n  " + "\n  ".join(walk.way[-30:]))
        raise
    finally:
        loop.set_exception_handler(handler)
        await walk.end()
    return walk.seen


@pytest.mark.parametrize("seed", range(30))
async def test_whatever_happens(seed: int) -> None:
    """Never over the limit in force, never past what a reading admits, and nothing is left at the end."""
    await go(seed)


async def test_the_walks_get_around() -> None:
    """Together some of them see everything that is rare: else their silence would mean little."""
    seen = set().union(*[await go(seed) for seed in range(1000, 1040)])
    assert RARE - seen == set()
