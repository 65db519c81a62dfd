"""What an agent is given: what it should do, and everything that it may do for its run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interlock.errors import RunCancelled, RunInterrupted, StaleFence
from interlock.session.values import check_count, check_emitted, event, plain_object

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interlock.core.sessions import Run
    from interlock.governor import ConcurrencyGovernor
    from interlock.ports import Acquiring, Clock, Store
    from interlock.provider.gate import ProviderGate
    from interlock.session.attempt import Attempt


class RunContext:
    """One attempt at a run, as its agent sees it.

    ``input`` and ``metadata`` are what was submitted, ``submitted_at`` is in seconds since the epoch.
    ``governor`` and ``gate`` are the fleet's, where there are any: what is acquired through them is in this
    run's name, with its priority, and as old as the run.
    """

    def __init__(
        self,
        run: Run,
        attempt: Attempt,
        store: Store,
        clock: Clock,
        governor: ConcurrencyGovernor | None,
        gate: ProviderGate | None,
    ) -> None:
        self.session_id = run.session_id
        self.run_id = run.id
        self.attempt = run.attempt
        self.input: Any = run.input
        self.metadata: dict[str, Any] = dict(run.metadata)
        self.submitted_at = run.submitted_at
        self.clock = clock
        self.governor = None if governor is None else BoundGovernor(governor, run)
        self.gate = None if gate is None else BoundGate(gate, run)
        self._store = store
        self._attempt = attempt

    @property
    def cancelled(self) -> bool:
        """Whether it should end: it was cancelled or interrupted, or has outlived its timeout."""
        return self._attempt.stopping is not None

    @property
    def paused(self) -> bool:
        """Whether `checkpoint` would wait."""
        return self._attempt.paused

    async def emit(
        self,
        type: str,  # noqa: A002 - the word for it
        data: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> int:
        """Log an event of this run; durable when this returns its sequence number.

        Raises `ValidationError` for a type that is unknown or not the agent's to write and for what is not
        JSON, and `StaleFence` once this attempt has ended.
        """
        check_emitted(type)
        body, more = plain_object("data", data), plain_object("metadata", metadata)
        if self._attempt.ended:
            raise StaleFence(f"attempt {self.attempt} of run {self.run_id!r} has ended; nothing was logged")
        logged = event(type, self.clock.now(), body, self.run_id, more)
        return await self._store.append(self.session_id, [logged], run_id=self.run_id, attempt=self.attempt)

    async def checkpoint(self) -> None:
        """Wait while the run is paused. Raises `RunCancelled` or `RunInterrupted` once it should end."""
        while self._attempt.paused and not self.cancelled:
            await self._attempt.resumed()
        if self._attempt.stopping == "interrupt":
            raise RunInterrupted(f"run {self.run_id!r} was interrupted", run_id=self.run_id)
        if self.cancelled:
            raise RunCancelled(f"run {self.run_id!r} was cancelled", run_id=self.run_id)

    def usage(self, input_tokens: int = 0, output_tokens: int = 0) -> None:
        """Count tokens; what is counted is added up in the run's ``token_usage``."""
        for name, count in (("input_tokens", input_tokens), ("output_tokens", output_tokens)):
            if check_count(name, count, 0):
                self._attempt.usage[name] = self._attempt.usage.get(name, 0) + count

    def __repr__(self) -> str:
        return f"<RunContext {self.run_id} of session {self.session_id!r}, attempt {self.attempt}>"


class BoundGovernor:
    """The fleet's governor, asked in the name of one run. What is given explicitly counts."""

    def __init__(self, governor: ConcurrencyGovernor, run: Run) -> None:
        self.governor = governor
        self._own: dict[str, Any] = {"owner": run.id, "priority": run.priority, "since": run.submitted_at}

    def acquire_stream(self, **asked: Any) -> Acquiring:
        """See `ConcurrencyGovernor.acquire_stream`."""
        return self.governor.acquire_stream(**self._own | asked)

    def acquire_tool(self, **asked: Any) -> Acquiring:
        """See `ConcurrencyGovernor.acquire_tool`."""
        return self.governor.acquire_tool(**self._own | asked)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.governor, name)


class BoundGate:
    """The fleet's provider gate, asked in the name of one run. What is given explicitly counts."""

    def __init__(self, gate: ProviderGate, run: Run) -> None:
        self.gate = gate
        self._run = run

    def acquire(self, provider_id: str, conversation_id: str | None = None, **asked: Any) -> Acquiring:
        """See `ProviderGate.acquire`."""
        own = {"prompt_started_at": self._run.submitted_at, "priority": self._run.priority}
        return self.gate.acquire(provider_id, conversation_id or self._run.id, **own | asked)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.gate, name)
