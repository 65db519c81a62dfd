"""One gate for every provider: how many calls may be in flight there, and what a 429 does about it.

The claims are the kernel's (`provider:<id>`, ordered by when each prompt began); this module decides
the numbers: the operator's limit and the one in force, cooldowns, pauses, what the provider itself
reports, and slots whose holder shows no sign of life. Everything is counted, with a limit or without
one.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio.events import _get_running_loop
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from interlock.admission.callback import call_back
from interlock.admission.local import LocalAdmission
from interlock.admission.permit import DEFAULT_TIMEOUT, Acquisition, Permit
from interlock.admission.readings import LimitReading, read_limit
from interlock.admission.remote import RemoteAdmission
from interlock.admission.validation import check_capacity, check_seconds
from interlock.core import headroom as headrooms
from interlock.core.headroom import Headroom
from interlock.errors import AcquireTimeout, Unavailable, ValidationError
from interlock.ledger import OPERATOR, START, Cause
from interlock.provider.in_force import InForce
from interlock.provider.persistence import CooldownSetting, SettingsWriter, Shared
from interlock.provider.policy import (
    LONGEST_PAUSE,
    ProviderPolicy,
    Recovery,
    check_cooldowns,
    check_pause,
    check_provider,
)
from interlock.provider.poller import UsagePoller
from interlock.provider.signals import REASONS
from interlock.provider.state import Provider, ProviderStatus, Refusals
from interlock.provider.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from interlock.ledger import Ledger
    from interlock.ports import Admission, Clock, Fenced, Settings, UsageSource
    from interlock.provider.signals import Reason

log = logging.getLogger(__name__)

_READS_WITHIN = 1.0
"""Seconds for the settings where the caller has none to give."""
_CLOSES_WITHIN = 10.0


class ProviderGate(InForce):
    """Limits the calls in flight at each provider; see `ProviderPolicy` for the times.

    Args:
        clock: where time comes from, unless *admission* brings one.
        admission: shared with other parts, so that one request can claim a provider and other limits at once.
        fetch_usage: asks a provider what it counts; with it, waiters go only as the provider has room.
        settings: where limits, reductions and cooldowns survive a restart; loaded before the first grant.
        ledger: is told every change of a limit.
        policies, usage_sources: for single providers, in place of the times and *fetch_usage* given here.
        on_pause, on_limit_reduced, on_reclaim: called after the state has changed; what they raise is logged.
    """

    def __new__(cls, *, admission: Admission | None = None, **_: Any) -> ProviderGate:
        """Where the admission is a server's, so is the gate: a `RemoteGate`."""
        if cls is ProviderGate and isinstance(admission, RemoteAdmission):
            from interlock.provider.remote import RemoteGate

            return super().__new__(RemoteGate)
        return super().__new__(cls)

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        admission: Admission | None = None,
        fetch_usage: UsageSource | None = None,
        settings: Settings | None = None,
        ledger: Ledger | None = None,
        default_cooldown: float = 0.35,
        default_pause: float = 30.0,
        slot_timeout: float = 300.0,
        watchdog_interval: float = 30.0,
        usage_repoll: float = 1.0,
        usage_timeout: float = 2.0,
        usage_stale: float = 5.0,
        recovery: Recovery = "manual",
        recovery_window: float = 30.0,
        policies: Mapping[str, ProviderPolicy] | None = None,
        usage_sources: Mapping[str, UsageSource] | None = None,
        on_pause: Callable[[str, float], object] | None = None,
        on_limit_reduced: Callable[[str, int, int], object] | None = None,
        on_reclaim: Callable[[str, str | None, float], object] | None = None,
    ) -> None:
        self._policy = ProviderPolicy(
            default_cooldown=default_cooldown,
            default_pause=default_pause,
            slot_timeout=slot_timeout,
            usage_repoll=usage_repoll,
            usage_timeout=usage_timeout,
            usage_stale=usage_stale,
            recovery=recovery,
            recovery_window=recovery_window,
        )
        self._policies = dict(policies or {})
        self._own_admission = admission is None
        if not isinstance(admission, LocalAdmission | None):
            raise ValidationError(
                "admission is of a foreign kind; allowed are LocalAdmission and RemoteAdmission"
            )
        self.admission = admission or LocalAdmission(clock=clock)
        self.clock = self.admission.clock
        self._fetch_usage = fetch_usage
        self._usage_sources = dict(usage_sources or {})
        self._writer = None if settings is None else SettingsWriter(settings, self.clock)
        self._ledger = ledger
        self._loaded = settings is None
        self._loading = Shared(self._load)
        self._on_pause = on_pause
        self._on_limit_reduced = on_limit_reduced
        self._providers: dict[str, Provider] = {}
        self._watchdog = Watchdog(self.admission, self._providers, watchdog_interval, on_reclaim)
        self.refusals = Refusals()
        self.closed = False

    # -- asking

    def acquire(
        self,
        provider_id: str,
        conversation_id: str | None = None,
        *,
        prompt_started_at: float | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        on_queued: Callable[[], object] | None = None,
        priority: int = 0,
        parent: Permit | None = None,
        also: tuple[str, ...] = (),
    ) -> Acquisition:
        """Ask for one slot of *provider_id*, oldest *prompt_started_at* (seconds since the epoch) first.

        *conversation_id* names the holder. *also* are further limits of the same admission, taken
        together with the slot or not at all. Raises as `LocalAdmission.acquire`; `Unavailable` once the
        gate is closed. *timeout* includes the reading of the settings; 0 allows a second for it.
        """
        provider = self._provider(provider_id)
        request = self.admission.acquire(
            provider.limit_name,
            *also,
            owner=conversation_id,
            parent=parent,
            priority=priority,
            since=prompt_started_at,
            timeout=timeout,
            on_queued=on_queued,
        )
        request.first(self._ready if self._loaded else partial(self._ready, request))
        return request

    async def _ready(self, request: Acquisition | None = None) -> None:
        if request is not None and not self._loaded and not self.closed:
            await self._loaded_for(request)
        if self.closed:
            raise Unavailable("the gate is closed")
        if self._watchdog.wake():
            self._settle_in()

    def _settle_in(self) -> None:
        """A second asyncio.run(), perhaps: timers that were set belong to a loop that no longer turns."""
        for provider in self._providers.values():
            if provider.recovery_loop is not asyncio.get_running_loop():
                self._schedule_recovery(provider)
            if provider.poller is not None:
                provider.poller.settle_in()

    async def _loaded_for(self, request: Acquisition) -> None:
        began, timeout = self.clock.now(), request.timeout
        check_seconds("timeout", timeout)
        patience = _READS_WITHIN if timeout == 0 else timeout
        until = None if patience is None else began + patience
        if not await self._loading.wait(self.clock, until):
            reason = f"the settings of the gate were not read within {patience:g} s"
            raise AcquireTimeout(reason) if timeout else Unavailable(reason)
        if timeout:
            request.timeout = max(0.001, began + timeout - self.clock.now())

    # -- 429

    def report_rate_limit(
        self,
        provider_id: str,
        retry_after: float | None = None,
        *,
        permit: Fenced | None = None,
        reason: Reason = "concurrency",
        evidence: str = "",
    ) -> None:
        """The provider answered "too much": pause it for *retry_after* seconds (default: ``default_pause``).

        ``concurrency`` also cuts the limit by one: once an episode when the *permit* is given under which the
        answer came, always without it. ``rate``, ``overload`` and ``quota`` only pause. A pause only grows.
        *evidence* is what the provider said, for the ledger.
        """
        if reason not in REASONS:
            raise ValidationError(f"reason is {reason!r}; allowed are {', '.join(REASONS)}")
        provider = self._provider(provider_id)
        seconds = provider.policy.default_pause if retry_after is None else retry_after
        if not 0 <= seconds <= LONGEST_PAUSE:  # also False for NaN
            seconds = provider.policy.default_pause
        until = self.clock.now() + seconds
        provider.reported_until = max(provider.reported_until, until)
        self.admission.pause(provider.limit_name, until)
        before, known, provider.reason = provider.headroom, provider.record(), reason
        self.refusals[provider_id, reason] += 1
        if reason == "concurrency":
            fence = None if permit is None else permit.fence
            provider.headroom = headrooms.cut(before, self.admission.kernel.fence, fence)
        self._schedule_recovery(provider)
        if provider.headroom is not before:
            self._apply(provider, Cause("429", evidence or f"{reason}, reported without its words"))
        if provider.record() != known:
            self._note(provider)
        if self._on_pause is not None:
            call_back(self._on_pause, provider_id, seconds)
        after = provider.headroom
        if self._on_limit_reduced is not None and after is not before:
            call_back(self._on_limit_reduced, provider_id, after.effective, before.effective)

    def pause(self, provider_id: str, seconds: float) -> None:
        """Admit nobody to *provider_id* for *seconds*; a pause only grows."""
        check_pause(seconds)
        self.admission.pause(self._provider(provider_id).limit_name, self.clock.now() + seconds)

    def resume(self, provider_id: str) -> None:
        """End the pause of *provider_id* now."""
        provider = self._provider(provider_id)
        provider.reported_until = 0.0
        self.admission.resume(provider.limit_name)

    # -- settings

    async def set_limit(self, provider_id: str, limit: int | None, *, cause: Cause = OPERATOR) -> None:
        """The operator's limit, in force at once; forgets any reduction. Returns when it is durable."""
        if limit is None:
            await self.remove_limit(provider_id, cause=cause)
            return
        check_capacity(f"provider:{provider_id}", limit)
        await self.load()
        await self._change(provider_id, headrooms.configured(limit), cause)

    async def remove_limit(self, provider_id: str, *, cause: Cause = OPERATOR) -> bool:
        """Count *provider_id* without a limit: its pause ends and all who wait go. False if it had none."""
        await self.load()
        known = self.get_limit(provider_id) is not None
        self.resume(provider_id)
        await self._change(provider_id, Headroom(), cause)
        return known

    def preset(
        self,
        provider_id: str,
        limit: int | None,
        *,
        cooldown: float,
        cancelled: float | None = None,
        failed: float | None = None,
    ) -> None:
        """What a configuration file says: in force unless the settings that are loaded later know better."""
        provider = self._provider(provider_id)
        provider.headroom = headrooms.configured(limit)
        provider.preset_limit = limit
        provider.preset_cooldown = CooldownSetting(cooldown, cancelled, failed)
        self._apply(provider, Cause("file"))

    async def set_cooldown(
        self,
        provider_id: str,
        cooldown: float | None,
        *,
        cancelled: float | None = None,
        failed: float | None = None,
    ) -> None:
        """How long a slot stays taken after its release, in seconds, by how the call ended (None: as after
        success). Holds for later releases; needs no limit. Returns when it is durable.

        None as *cooldown* goes back to the configuration's cooldown, or the default.
        """
        check_cooldowns(cooldown, cancelled, failed)
        await self.load()
        provider = self._provider(provider_id)
        provider.cooldown = None if cooldown is None else CooldownSetting(cooldown, cancelled, failed)
        self._apply(provider)
        await self._save(provider)

    async def load(self) -> None:
        """Take over what an earlier gate left in *settings*; done once, before the first grant."""
        if not self._loaded:
            await self._loading.wait(self.clock, None)

    async def _load(self) -> None:
        assert self._writer is not None
        records = await self._writer.load()
        self._loaded = True
        for provider_id, record in records.items():
            if not 0 < len(provider_id) <= 128:
                continue  # nobody's: it is left alone
            provider = self._provider(provider_id)
            provider.take_over(record, self.admission.kernel.fence)
            self._apply(provider)
            self._schedule_recovery(provider)
        for provider in self._providers.values():
            if provider.headroom.reduced:  # also what was cut before anything was known
                self._note(provider)

    # -- readings

    def status(self, provider_id: str) -> ProviderStatus | None:
        """One provider; None if it has neither a limit nor a pause."""
        provider = self._providers.get(provider_id)
        if provider is None:
            return None
        reading = self.reading(provider_id)
        if provider.headroom.effective is None and reading.paused_until is None:
            return None
        return provider.status(reading)

    def reading(self, provider_id: str) -> LimitReading:
        """What is in flight at *provider_id* now; ``capacity`` is the limit in force."""
        limit = self.admission.kernel.limits[self._provider(provider_id).limit_name]
        return read_limit(limit)

    def statuses(self) -> tuple[ProviderStatus, ...]:
        """Every provider that has a limit or a pause, by name."""
        return tuple(one for name in sorted(self._providers) if (one := self.status(name)) is not None)

    async def aclose(self) -> None:
        """Stop admitting: queued acquires end with `Unavailable`; what was changed is written first.

        It takes 10 seconds at most: what a store that hangs has not taken by then is named in the log.
        """
        self.closed = True
        self._watchdog.close()
        for provider in self._providers.values():
            if provider.recovery is not None:
                provider.recovery.cancel()
            if provider.poller is not None:
                provider.poller.close()
            self.admission.turn_away(
                provider.limit_name, Unavailable("the gate was closed while this waited")
            )
        if self._writer is not None:
            until = self.clock.now() + _CLOSES_WITHIN
            if not self._loaded and any(one.headroom.reduced for one in self._providers.values()):
                try:
                    await self._loading.wait(self.clock, until)
                except Exception as error:
                    log.warning("what was cut was not written, since the settings were not read: %r", error)
            self._loading.close()
            await self._writer.aclose(until)
        if self._own_admission:
            await self.admission.aclose()

    async def __aenter__(self) -> ProviderGate:
        await self.load()
        return self

    async def __aexit__(self, *exit_: Any) -> None:
        await self.aclose()

    # -- inside

    def _provider(self, provider_id: str) -> Provider:
        provider = self._providers.get(provider_id)
        if provider is None:
            check_provider(provider_id)
            provider = Provider(provider_id, self._policies.get(provider_id, self._policy))
            self._providers[provider_id] = provider
            fetch = self._usage_sources.get(provider_id, self._fetch_usage)
            if fetch is not None:
                provider.poller = UsagePoller(
                    self.admission, provider.limit_name, provider_id, fetch, provider.policy
                )
                self.admission.listen_at_gate(provider.limit_name, provider.poller.waiting)
            self._apply(provider)
        return provider

    def _apply(self, provider: Provider, cause: Cause = START) -> None:
        cooldown = provider.cooldown_in_force
        limit = provider.headroom.effective
        self.admission.configure(
            provider.limit_name,
            limit,
            cooldown=cooldown.success,
            cooldown_cancelled=cooldown.cancelled,
            cooldown_failed=cooldown.failed,
            gated=limit is not None and provider.poller is not None,
        )
        if self._ledger is not None:
            self._ledger.note(provider.limit_name, limit, cause)

    async def _change(self, provider_id: str, headroom: Headroom, cause: Cause) -> None:
        provider = self._provider(provider_id)
        before = provider.headroom
        if cause.by == "operator" and before.reduced and before.configured == headroom.configured:
            cause = cause._replace(by="restore")
        provider.headroom = replace(headroom, cut_fence=provider.headroom.cut_fence)
        provider.operator_limit = headroom.configured
        provider.removed = headroom.configured is None and provider.preset_limit is not None
        self._schedule_recovery(provider)
        self._apply(provider, cause)
        await self._save(provider)
        if self._ledger is not None:
            await self._ledger.written()

    async def _save(self, provider: Provider) -> None:
        if self._writer is not None:
            await self._writer.write(provider.id, provider.record())

    def _note(self, provider: Provider) -> None:
        if self._writer is not None and self._loaded:  # before that, what is stored is not known yet
            self._writer.note(provider.id, provider.record())

    def _schedule_recovery(self, provider: Provider) -> None:
        if provider.recovery is not None:
            provider.recovery.cancel()
            provider.recovery = None
        if provider.policy.recovery == "probe" and provider.headroom.reduced and not self.closed:
            due = self.clock.now() + provider.policy.recovery_window
            provider.recovery = self.clock.call_at(due, lambda: self._recover(provider))
            provider.recovery_loop = _get_running_loop()

    def _recover(self, provider: Provider) -> None:
        provider.recovery = None
        provider.headroom = headrooms.recover(provider.headroom)
        self._apply(provider, Cause("recovery", f"no 429 for {provider.policy.recovery_window:g} s"))
        self._note(provider)
        self._schedule_recovery(provider)
