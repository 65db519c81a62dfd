"""Asking a provider how much it counts, and letting waiters in accordingly.

One poll at a time, with a deadline; at most one cadence timer, which nothing pushes back; an answer, a
failure and a hang all end in one place, so that nobody waits for ever at a gate whose provider is
silent.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING

from interlock.core.headroom import admissible
from interlock.provider.signals import count as whole_count
from interlock.provider.usage import ProviderUsage

if TYPE_CHECKING:
    from interlock.admission.local import LocalAdmission
    from interlock.ports import TimerHandle, UsageSource
    from interlock.provider.policy import ProviderPolicy

log = logging.getLogger(__name__)


class UsagePoller:
    """Answers the gate of one limit of *admission* with what *fetch* says about *provider_id*."""

    def __init__(
        self,
        admission: LocalAdmission,
        limit_name: str,
        provider_id: str,
        fetch: UsageSource,
        policy: ProviderPolicy,
    ) -> None:
        self._admission = admission
        self._clock = admission.clock
        self._limit_name = limit_name
        self._provider_id = provider_id
        self._fetch = fetch
        self._policy = policy
        self._poll: asyncio.Task[ProviderUsage | None] | None = None
        self._stray: asyncio.Task[ProviderUsage | None] | None = None
        self._deadline: TimerHandle | None = None
        self._cadence: TimerHandle | None = None
        self._again = False
        self._granted_before = 0
        self._next_at = 0.0
        self._closed = False
        self._warned_of: int | None = None
        self.reading: ProviderUsage | None = None
        self.read_at: float | None = None

    def waiting(self, recycled: bool) -> None:
        """Somebody waits at the gate. Room that came back is worth asking at once; else the cadence does."""
        if self._closed:
            return
        if self._poll is not None:
            self._again = self._again or recycled
        elif recycled or self._cadence is None:
            self._ask()

    @property
    def fresh(self) -> ProviderUsage | None:
        """The last reading, while it is young enough to mean something."""
        if self.read_at is None or self._clock.now() - self.read_at > self._policy.usage_stale:
            return None
        return self.reading

    def settle_in(self) -> None:
        """The loop is another one: what was set or asked in the last one answers nobody any more."""
        for timer in (self._cadence, self._deadline):
            if timer is not None:
                timer.cancel()
        self._cadence = self._deadline = self._poll = self._stray = None
        self._again = False

    def close(self) -> None:
        self._closed = True
        for timer in (self._cadence, self._deadline):
            if timer is not None:
                timer.cancel()
        for task in (self._poll, self._stray):
            if task is not None:
                task.cancel()

    def _ask(self) -> None:
        if self._cadence is not None:
            self._cadence.cancel()
            self._cadence = None
        now = self._clock.now()
        self._next_at = now + self._policy.usage_repoll
        settled_by = now - self._policy.usage_settle
        gate = self._admission.gate_reading(self._limit_name, since=settled_by)
        self._granted_before = gate.granted - gate.granted_since
        if self._stray is not None and not self._stray.done():
            self._answer(None)  # the last one ignored its cancellation; polls never overlap
            return
        self._poll = asyncio.get_running_loop().create_task(self._read())
        self._poll.add_done_callback(self._read_done)
        self._deadline = self._clock.call_at(now + self._policy.usage_timeout, self._give_up)

    async def _read(self) -> ProviderUsage | None:
        answer = self._fetch(self._provider_id)
        usage = await answer if inspect.isawaitable(answer) else answer
        count = getattr(usage, "concurrent_sessions", None)
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            return None
        return ProviderUsage(count, whole_count(getattr(usage, "limit", None)) or None)

    def _read_done(self, task: asyncio.Task[ProviderUsage | None]) -> None:
        usage = None
        if not task.cancelled():
            if (error := task.exception()) is not None:
                log.warning("usage of %r could not be read: %r", self._provider_id, error)
            else:
                usage = task.result()
        if task is self._poll:
            self._poll = None
            if self._deadline is not None:
                self._deadline.cancel()
            self._answer(usage)

    def _give_up(self) -> None:
        if self._poll is not None:
            self._stray, self._poll = self._poll, None
            self._stray.cancel()
            self._answer(None)

    def _answer(self, usage: ProviderUsage | None) -> None:
        if self._closed:
            return
        now = self._clock.now()
        gate = self._admission.gate_reading(self._limit_name)
        fresh_until = now  # what nobody takes of no answer at all lapses at once
        if usage is not None:
            self.reading, self.read_at = usage, now
            self._compare(usage.limit, gate.capacity)
            fresh_until = now + self._policy.usage_stale
        if gate.capacity is not None:
            since = gate.granted - self._granted_before
            reported = None if usage is None else usage.concurrent_sessions
            count = admissible(gate.capacity, gate.used, reported, since)
            self._admission.admit(self._limit_name, count, fresh_until)
        if not self._admission.gate_reading(self._limit_name).waiting:
            self._again = False
            return
        if self._again:
            self._again = False
            self._ask()
        elif self._poll is None and self._cadence is None:
            self._cadence = self._clock.call_at(max(now, self._next_at), self._due)

    def _compare(self, advertised: int | None, capacity: int | None) -> None:
        if advertised is None or capacity is None or capacity <= advertised or advertised == self._warned_of:
            return
        self._warned_of = advertised
        log.warning("%s allows %d at once, its limit here is %d", self._provider_id, advertised, capacity)

    def _due(self) -> None:
        self._cadence = None
        gate = self._admission.gate_reading(self._limit_name)
        # Where nobody could go whatever the answer, the room that comes back asks again.
        if self._poll is None and gate.waiting and gate.room:
            self._ask()
