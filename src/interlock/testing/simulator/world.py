"""One variant, lived through: sessions as tasks on a virtual clock, over the real admission and gate."""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_left, insort
from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final

from interlock.admission.local import LocalAdmission
from interlock.admission.validation import to_ms
from interlock.errors import AcquireTimeout, LimitExceeded
from interlock.governor import ConcurrencyGovernor
from interlock.limiter import ConcurrencyLimiter
from interlock.provider.gate import ProviderGate
from interlock.provider.policy import ProviderPolicy
from interlock.provider.retry import helps_to_retry, report_refusal, seconds_before
from interlock.provider.signals import RateLimitSignal
from interlock.testing.account import Account
from interlock.testing.virtual_time import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from interlock.testing.simulator.scenario import ProviderScenario, Variant
    from interlock.testing.simulator.workload import Plan, PlannedCall, PlannedSession, PlannedTurn

LAYERS: Final = ("streams", "global")
"""What a gateway's call takes besides its provider, where these are limited."""
_ENDLESS: Final = 1 << 40
_EVERY: Final = 256
"""Calls between two words about the progress."""


@dataclass(slots=True)
class CallRecord:
    """One call as it went; times in seconds since the beginning. *granted* is None if it gave up."""

    number: int
    conversation: str
    provider: str
    priority: int
    since: float
    at: float
    hold: float
    granted: float | None = None
    ended: float = 0.0
    attempts: int = 0
    waited: float = 0.0
    passed: int = 0
    """How many calls with a younger prompt went while it waited."""


class _Line:
    """Who waits for one provider, by the age of the prompt: to count who is passed by younger ones."""

    def __init__(self) -> None:
        self._waiting: list[tuple[tuple[int, ...], CallRecord]] = []

    def enter(self, call: CallRecord) -> None:
        insort(self._waiting, (_age(call), call))

    def leave(self, call: CallRecord) -> None:
        del self._waiting[bisect_left(self._waiting, (_age(call),))]

    def goes(self, call: CallRecord) -> None:
        """*call* leaves, granted."""
        self.leave(call)
        for _, elder in self._waiting[: bisect_left(self._waiting, (_age(call)[:2],))]:
            elder.passed += 1


class World:
    """The fleet of *variant* and its providers; *ended* hears now and then how many calls are done."""

    def __init__(self, variant: Variant, ended: Callable[[int], object]) -> None:
        settings = variant.settings
        self.clock = VirtualClock()
        self.admission = LocalAdmission(clock=self.clock)
        self.calls: list[CallRecord] = []
        self.turns: dict[tuple[str, float], tuple[float, bool]] = {}
        """By conversation and begin: when the last call of a turn ended, and whether all were answered."""
        self._settings = settings
        self._ended = ended
        self._done = 0
        self._random = Random(f"{settings.seed}:order")  # noqa: S311 - repeatable on purpose
        limited = {
            name: getattr(settings.limits, "global_" if name == "global" else name)
            for name in ("sessions", "runs", "streams", "tools", "global")
        }
        self._limited = {name for name, capacity in limited.items() if capacity is not None}
        for name, capacity in limited.items():
            self.admission.configure(name, capacity)
        self._limiter = ConcurrencyLimiter(admission=self.admission)
        self._governor = ConcurrencyGovernor(admission=self.admission)
        self._also = tuple(name for name in LAYERS if name in self._limited)
        self.gate = ProviderGate(
            admission=self.admission,
            policies={name: _policy(one) for name, one in settings.providers.items()},
        )
        self.accounts: dict[str, Account] = {}
        self.demand: Counter[str] = Counter()
        """By provider: the most that it had to count at once, calls included that it refused."""
        self._lines: dict[str, _Line] = {}
        for name, provider in settings.providers.items():
            self.gate.preset(
                name,
                provider.limit,
                cooldown=provider.cooldown,
                cancelled=provider.cooldown_cancelled,
                failed=provider.cooldown_failed,
            )
            self.accounts[name] = _account(provider, settings.seed, self.clock)
            self._lines[name] = _Line()

    async def run(self, plan: Plan) -> None:
        """Let all of *plan* happen, however long that takes on the virtual clock."""
        living = asyncio.ensure_future(self._live(plan))
        try:
            while not living.done():
                if not await self.clock.step() and not living.done():
                    raise RuntimeError(
                        "the simulated fleet stands still: nothing is due, and not all is done"
                    )
        finally:
            living.cancel()
            await asyncio.wait((living,))
        living.result()
        await self.gate.aclose()
        await self.admission.aclose()

    async def _live(self, plan: Plan) -> None:
        """Sessions start when they are due and, in a lane with so many agents, when one is free."""
        lanes: list[Iterator[PlannedSession]] = [
            iter([one for one in plan.sessions if one.lane == lane]) for lane in range(len(plan.agents))
        ]
        async with asyncio.TaskGroup() as group:
            for sessions, agents in zip(lanes, plan.agents, strict=True):
                if agents is None:
                    group.create_task(self._arrive(group, sessions))
                    continue
                for _ in range(min(agents, len(plan.sessions))):
                    group.create_task(self._agent(sessions))

    async def _arrive(self, group: asyncio.TaskGroup, sessions: Iterator[PlannedSession]) -> None:
        for session in sessions:
            await self._until(session.start)
            group.create_task(self._session(session))

    async def _agent(self, sessions: Iterator[PlannedSession]) -> None:
        for session in sessions:
            await self._until(session.start)
            await self._session(session)

    async def _until(self, when: float) -> None:
        if when > self.clock.now():
            await self.clock.sleep(when - self.clock.now())

    # -- a session

    async def _session(self, session: PlannedSession) -> None:
        if "sessions" not in self._limited:
            await self._turns(session)
            return
        async with self._limiter.acquire_session_slot(session.id, timeout=None):
            await self._turns(session)

    async def _turns(self, session: PlannedSession) -> None:
        for number, turn in enumerate(session.turns):
            if turn.think:
                await self.clock.sleep(turn.think)
            since = self.clock.now() if turn.since is None else turn.since
            if "runs" not in self._limited:
                await self._turn(session, turn, since)
                continue
            async with self._limiter.acquire_run_slot(session.id, f"{session.id}:{number}", timeout=None):
                await self._turn(session, turn, since)

    async def _turn(self, session: PlannedSession, turn: PlannedTurn, since: float) -> None:
        for planned in turn.calls:
            if planned.tool:
                await self._tool(planned.tool)
            answered = await self._call(session, planned, since)
            key = session.id, since
            _, so_far = self.turns.get(key, (0.0, True))
            self.turns[key] = self.clock.now(), so_far and answered
            if not answered:
                return

    async def _tool(self, seconds: float) -> None:
        if self._limited.isdisjoint(("tools", "global")):
            await self.clock.sleep(seconds)
            return
        async with self._governor.acquire_tool(timeout=None):
            await self.clock.sleep(seconds)

    # -- a call

    async def _call(self, session: PlannedSession, planned: PlannedCall, since: float) -> bool:
        """One call as the gateway makes it; whether it was answered before its caller gave up."""
        # Whatever else is due at this instant goes first: else a recorded log could not say who was first.
        await self.clock.sleep(0)
        now = self.clock.now()
        call = CallRecord(
            len(self.calls), session.id, session.provider, session.priority, since, now, planned.hold
        )
        self.calls.append(call)
        answered = await self._attempts(call, now + self._settings.timeout)
        call.ended = self.clock.now()
        self._done += 1
        if self._done % _EVERY == 0:
            self._ended(self._done)
        return answered

    async def _attempts(self, call: CallRecord, deadline: float) -> bool:
        clock, gate, provider = self.clock, self.gate, call.provider
        account = self.accounts[provider]
        ordered_by = self._ordered_by(call)
        for attempt in itertools.count():
            asked = clock.now()
            if attempt and (away := seconds_before(gate, provider, attempt)):
                await clock.sleep(away)
            line = self._lines[provider]
            line.enter(call)
            try:
                permit = await gate.acquire(
                    provider,
                    call.conversation,
                    prompt_started_at=ordered_by,
                    priority=call.priority,
                    timeout=max(0.0, deadline - clock.now()),
                    also=self._also,
                )
            except (AcquireTimeout, LimitExceeded):
                line.leave(call)
                return False
            finally:
                call.waited += clock.now() - asked
            line.goes(call)
            call.attempts += 1
            self.demand[provider] = max(self.demand[provider], account.counted + 1)
            unit = account.begin()
            if unit is None:
                signal = _refusal(self._settings.providers[provider])
                report_refusal(gate, provider, permit, signal)
                again = helps_to_retry(gate, provider, 429, signal, attempt=attempt, deadline=deadline)
                permit.release("failed")
                if again:
                    continue
                return False
            call.granted = clock.now()
            await clock.sleep(call.hold * (2 if account.punished else 1))
            account.end(unit)
            permit.release()
            return True
        raise AssertionError

    def _ordered_by(self, call: CallRecord) -> float | None:
        match self._settings.order:
            case "oldest-prompt":
                return call.since
            case "arrival":
                return None
        return self._random.uniform(0.0, self.clock.now())


def _age(call: CallRecord) -> tuple[int, ...]:
    """As the kernel counts it, in milliseconds; the number tells apart what came at once."""
    return call.priority, to_ms(call.since), call.number


def _policy(provider: ProviderScenario) -> ProviderPolicy:
    return ProviderPolicy(
        default_cooldown=provider.cooldown,
        default_pause=provider.default_pause,
        recovery=provider.recovery,
        recovery_window=provider.recovery_window,
        slot_timeout=86_400.0,  # nothing here is ever without a sign of life
    )


def _account(provider: ProviderScenario, seed: int, clock: VirtualClock) -> Account:
    up = provider.upstream
    if up is None:
        return Account(limit=_ENDLESS, hard_cap=_ENDLESS, lag=0.0, now=clock.now)
    cap = up.limit + 1 if up.hard_cap is None else up.hard_cap
    account = Account(limit=up.limit, hard_cap=cap, lag=up.lag, penalty=up.penalty, seed=seed, now=clock.now)
    account.set_foreign(up.foreign)
    return account


def _refusal(provider: ProviderScenario) -> RateLimitSignal:
    retry_after: Any = None if provider.upstream is None else provider.upstream.retry_after
    return RateLimitSignal("concurrency", retry_after, message="simulated", status=429)
