"""One gate for every provider: how many calls may be in flight there, and what a 429 does about it.

The claims are the kernel's (`provider:<id>`, ordered by when each prompt began); this module decides
the numbers: the operator's limit and the one in force, cooldowns, pauses, what the provider itself
reports, and slots whose holder shows no sign of life. Everything is counted, with a limit or without
one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from interlock.admission.callback import call_back
from interlock.admission.local import LocalAdmission
from interlock.admission.permit import DEFAULT_TIMEOUT, Acquisition, Permit
from interlock.admission.readings import LimitReading, read_limit
from interlock.admission.validation import check_capacity
from interlock.core import headroom as headrooms
from interlock.core.headroom import Headroom
from interlock.errors import Unavailable, ValidationError
from interlock.provider.persistence import CooldownSetting, SettingsWriter
from interlock.provider.policy import ProviderPolicy, Recovery
from interlock.provider.poller import UsagePoller
from interlock.provider.signals import REASONS
from interlock.provider.state import Provider, ProviderStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from interlock.ports import Clock, Settings, TimerHandle, UsageSource
    from interlock.provider.signals import Reason

_LONGEST_PAUSE = 86_400.0


class ProviderGate:
    """Limits the calls in flight at each provider; see `ProviderPolicy` for the times.

    Args:
        clock: where time comes from, unless *admission* brings one.
        admission: shared with other parts, so that one request can claim a provider and other limits at once.
        fetch_usage: asks a provider what it counts; with it, waiters go only as the provider has room.
        settings: where limits, reductions and cooldowns survive a restart; loaded before the first grant.
        policies, usage_sources: for single providers, in place of the times and *fetch_usage* given here.
        on_pause, on_limit_reduced, on_reclaim: called after the state has changed; what they raise is logged.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        admission: LocalAdmission | None = None,
        fetch_usage: UsageSource | None = None,
        settings: Settings | None = None,
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
        if not 0 < watchdog_interval <= 86_400:
            raise ValidationError(f"watchdog_interval is {watchdog_interval!r}; allowed are seconds above 0")
        self._policies = dict(policies or {})
        self._own_admission = admission is None
        self.admission = admission or LocalAdmission(clock=clock)
        self.clock = self.admission.clock
        self._fetch_usage = fetch_usage
        self._usage_sources = dict(usage_sources or {})
        self._writer = None if settings is None else SettingsWriter(settings)
        self._loaded = settings is None
        self._watchdog_interval = watchdog_interval
        self._watchdog: TimerHandle | None = None
        self._on_pause = on_pause
        self._on_limit_reduced = on_limit_reduced
        self._on_reclaim = on_reclaim
        self._providers: dict[str, Provider] = {}
        self._closed = False

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
        gate is closed.
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
        request.first(self._ready)
        if self._watchdog is None:
            self._watch()
        return request

    async def _ready(self) -> None:
        if not self._loaded:
            await self.load()
        if self._closed:
            raise Unavailable("the gate is closed")

    # -- 429

    def report_rate_limit(
        self,
        provider_id: str,
        retry_after: float | None = None,
        *,
        permit: Permit | None = None,
        reason: Reason = "concurrency",
    ) -> None:
        """The provider answered "too much": pause it for *retry_after* seconds (default: ``default_pause``).

        ``concurrency`` also cuts the limit by one: once an episode when the *permit* is given under which the
        answer came, always without it. ``rate``, ``overload`` and ``quota`` only pause. A pause only grows.
        """
        if reason not in REASONS:
            raise ValidationError(f"reason is {reason!r}; allowed are {', '.join(REASONS)}")
        provider = self._provider(provider_id)
        seconds = provider.policy.default_pause if retry_after is None else retry_after
        if not 0 <= seconds <= _LONGEST_PAUSE:  # also False for NaN
            seconds = provider.policy.default_pause
        provider.reason = reason
        until = self.clock.now() + seconds
        provider.reported_until = max(provider.reported_until, until)
        self.admission.pause(provider.limit_name, until)
        before = provider.headroom
        if reason == "concurrency":
            fence = None if permit is None else permit.fence
            provider.headroom = headrooms.cut(before, self.admission.kernel.fence, fence)
        self._schedule_recovery(provider)
        if provider.headroom is not before:
            self._apply(provider)
            self._note(provider)
        if self._on_pause is not None:
            call_back(self._on_pause, provider_id, seconds)
        after = provider.headroom
        if self._on_limit_reduced is not None and after is not before:
            call_back(self._on_limit_reduced, provider_id, after.effective, before.effective)

    def pause(self, provider_id: str, seconds: float) -> None:
        """Admit nobody to *provider_id* for *seconds*; a pause only grows."""
        if not 0 <= seconds <= _LONGEST_PAUSE:
            raise ValidationError(f"seconds is {seconds!r}; allowed are 0 to {_LONGEST_PAUSE:g}")
        self.admission.pause(self._provider(provider_id).limit_name, self.clock.now() + seconds)

    def resume(self, provider_id: str) -> None:
        """End the pause of *provider_id* now."""
        provider = self._provider(provider_id)
        provider.reported_until = 0.0
        self.admission.resume(provider.limit_name)

    # -- settings

    async def set_limit(self, provider_id: str, limit: int | None) -> None:
        """The operator's limit, in force at once; forgets any reduction. Returns when it is durable."""
        if limit is None:
            await self.remove_limit(provider_id)
            return
        check_capacity(f"provider:{provider_id}", limit)
        await self.load()
        await self._change(provider_id, headrooms.configured(limit))

    async def remove_limit(self, provider_id: str) -> bool:
        """Count *provider_id* without a limit: its pause ends and all who wait go. False if it had none."""
        await self.load()
        known = self.get_limit(provider_id) is not None
        self.resume(provider_id)
        await self._change(provider_id, Headroom())
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
        self._apply(provider)

    def get_limit(self, provider_id: str) -> int | None:
        """The limit in force."""
        provider = self._providers.get(provider_id)
        return None if provider is None else provider.headroom.effective

    def limits(self) -> dict[str, int]:
        """Every limit in force."""
        limits = {name: provider.headroom.effective for name, provider in self._providers.items()}
        return {name: limit for name, limit in sorted(limits.items()) if limit is not None}

    async def set_cooldown(
        self,
        provider_id: str,
        cooldown: float,
        *,
        cancelled: float | None = None,
        failed: float | None = None,
    ) -> None:
        """How long a slot stays taken after its release, in seconds, by how the call ended (None: as after
        success). Holds for later releases; needs no limit. Returns when it is durable."""
        for name, seconds in (("cooldown", cooldown), ("cancelled", cancelled), ("failed", failed)):
            if seconds is not None and not 0 <= seconds <= 86_400:
                raise ValidationError(f"{name} is {seconds!r}; allowed are 0 to 86400 seconds")
        await self.load()
        provider = self._provider(provider_id)
        provider.cooldown = CooldownSetting(cooldown, cancelled, failed)
        self._apply(provider)
        await self._save(provider)

    def get_cooldown(self, provider_id: str) -> float | None:
        """Seconds; None when neither a limit nor a cooldown was set."""
        return self.cooldowns().get(provider_id)

    def cooldowns(self) -> dict[str, float]:
        """The cooldown in force of every provider that has a limit or a cooldown of its own."""
        return {
            name: self._cooldown(provider).success
            for name, provider in sorted(self._providers.items())
            if provider.cooldown is not None or provider.headroom.effective is not None
        }

    async def load(self) -> None:
        """Take over what an earlier gate left in *settings*; done once, before the first grant."""
        if self._loaded or self._writer is None:
            return
        records = await self._writer.load()
        if self._loaded:  # somebody else awaited the same meanwhile
            return
        self._loaded = True
        for provider_id, record in records.items():
            if not 0 < len(provider_id) <= 128:
                continue  # nobody's: it is left alone
            provider = self._provider(provider_id)
            cut_meanwhile = provider.headroom.reduced
            provider.removed = record.removed
            provider.operator_limit = record.limit
            if (kept := record.headroom(provider.headroom.configured)) is not None:
                provider.headroom = kept
                provider.reason = record.known_reason()
            provider.cooldown = record.cooldown_setting() or provider.cooldown
            if cut_meanwhile:
                provider.headroom = headrooms.cut(provider.headroom, self.admission.kernel.fence)
                provider.reason = "concurrency"
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
        usage = None if provider.poller is None else provider.poller.fresh
        paused = reading.paused_until is not None
        said = paused and (reading.paused_until or 0.0) <= provider.reported_until + 0.001
        return ProviderStatus(
            provider_id=provider_id,
            limit=provider.headroom.effective,
            configured_limit=provider.headroom.configured,
            in_flight=reading.used,
            cooling=reading.cooling,
            queued=reading.waiting,
            paused=paused,
            paused_until=reading.paused_until,
            cooldown=self._cooldown(provider).success,
            auto_reduced=provider.headroom.reduced,
            auto_reduced_from=provider.headroom.reduced_from,
            notice=provider.notice,
            upstream_in_flight=None if usage is None else usage.concurrent_sessions,
            reason=provider.reason if said or provider.headroom.reduced else None,
        )

    def reading(self, provider_id: str) -> LimitReading:
        """What is in flight at *provider_id* now; ``capacity`` is the limit in force."""
        limit = self.admission.kernel.limits[self._provider(provider_id).limit_name]
        return read_limit(limit)

    def statuses(self) -> tuple[ProviderStatus, ...]:
        """Every provider that has a limit or a pause, by name."""
        found = (self.status(provider_id) for provider_id in sorted(self._providers))
        return tuple(status for status in found if status is not None)

    async def aclose(self) -> None:
        """Stop admitting: queued acquires end with `Unavailable`; what was changed is written first."""
        self._closed = True
        timers = [provider.recovery for provider in self._providers.values()] + [self._watchdog]
        for timer in timers:
            if timer is not None:
                timer.cancel()
        for provider in self._providers.values():
            if provider.poller is not None:
                provider.poller.close()
            self.admission.turn_away(
                provider.limit_name, Unavailable("the gate was closed while this waited")
            )
        if self._writer is not None:
            await self._writer.aclose()
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
            if not 0 < len(provider_id) <= 128:
                raise ValidationError(f"a provider's id is {provider_id!r}; allowed are 1 to 128 characters")
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

    def _apply(self, provider: Provider) -> None:
        cooldown = self._cooldown(provider)
        limit = provider.headroom.effective
        self.admission.configure(
            provider.limit_name,
            limit,
            cooldown=cooldown.success,
            cooldown_cancelled=cooldown.cancelled,
            cooldown_failed=cooldown.failed,
            gated=limit is not None and provider.poller is not None,
        )

    def _cooldown(self, provider: Provider) -> CooldownSetting:
        return provider.cooldown or provider.preset_cooldown

    async def _change(self, provider_id: str, headroom: Headroom) -> None:
        provider = self._provider(provider_id)
        provider.headroom = replace(headroom, cut_fence=provider.headroom.cut_fence)
        provider.operator_limit = headroom.configured
        provider.removed = headroom.configured is None and provider.preset_limit is not None
        self._schedule_recovery(provider)
        self._apply(provider)
        await self._save(provider)

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
        if provider.policy.recovery == "probe" and provider.headroom.reduced and not self._closed:
            due = self.clock.now() + provider.policy.recovery_window
            provider.recovery = self.clock.call_at(due, lambda: self._recover(provider))

    def _recover(self, provider: Provider) -> None:
        provider.recovery = None
        provider.headroom = headrooms.recover(provider.headroom)
        self._apply(provider)
        self._note(provider)
        self._schedule_recovery(provider)

    def _watch(self) -> None:
        try:
            self._watchdog = self.clock.call_at(self.clock.now() + self._watchdog_interval, self._sweep)
        except RuntimeError:
            self._watchdog = None  # asked for outside of a loop: the next acquire arms it

    def _sweep(self) -> None:
        """Take back slots whose holder made no progress; they cool like any other (the upstream may still
        be at work for them)."""
        self._watchdog = None
        if self._closed:
            return
        now_ms = round(self.clock.now() * 1000)
        for provider in list(self._providers.values()):
            limit = self.admission.kernel.limits[provider.limit_name]
            for record in self.admission.kernel.holders(limit):
                idle_ms = now_ms - max(record.granted_ms, record.touched_ms or 0)
                if idle_ms <= provider.policy.slot_timeout * 1000 or not self.admission.revoke(record):
                    continue
                if self._on_reclaim is not None:
                    held_seconds = (now_ms - record.granted_ms) / 1000
                    call_back(self._on_reclaim, provider.id, record.owner, held_seconds)
        limits = [self.admission.kernel.limits[one.limit_name] for one in self._providers.values()]
        if any(limit.used or limit.waiters for limit in limits):
            self._watch()
