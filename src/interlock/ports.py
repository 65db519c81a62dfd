"""What the outside must satisfy. Adapters implement these; nothing here does anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Generator, Mapping, Sequence

    from interlock.core.runs import RunStatus, SessionStatus, SessionVerb
    from interlock.core.sessions import Event, NewEvent, Pruned, Retention, Run, RunChange, Session
    from interlock.core.workers import Answer, Held, Wish, Worker


class TimerHandle(Protocol):
    """A callback that has been asked for and may still be called off."""

    def cancel(self) -> None: ...


@runtime_checkable
class Clock(Protocol):
    """Where time comes from. ``now`` is in seconds since the epoch and never runs backwards."""

    def now(self) -> float: ...

    def call_at(self, when: float, callback: Callable[[], None]) -> TimerHandle:
        """Call *callback* once ``now() >= when``, from the running event loop."""
        ...


@runtime_checkable
class Settings(Protocol):
    """A small durable map of text. A write that has returned survives a crash."""

    async def get(self, key: str) -> str | None: ...

    async def set(self, key: str, value: str) -> None: ...

    async def delete(self, key: str) -> None: ...

    async def items(self, prefix: str = "") -> dict[str, str]:
        """Every entry whose key begins with *prefix*."""
        ...


class ProviderUsage(Protocol):
    """What a provider says about the work it is doing for this account."""

    @property
    def concurrent_sessions(self) -> int: ...

    @property
    def limit(self) -> int | None: ...


class Fenced(Protocol):
    """What was granted once; the fence says when."""

    @property
    def fence(self) -> int: ...


class UsageSource(Protocol):
    """Asks a provider how much work it counts for this account; None if it cannot tell."""

    def __call__(self, provider_id: str, /) -> Awaitable[ProviderUsage | None] | ProviderUsage | None: ...


class Acquiring(Protocol):
    """What ``acquire`` returns: to be awaited, or entered with ``async with``."""

    def __await__(self) -> Generator[Any, None, Any]: ...

    def __aenter__(self) -> Awaitable[Any]: ...

    def __aexit__(self, *exit_: Any) -> Awaitable[Any]: ...


@runtime_checkable
class Admission(Protocol):
    """Who may run now. In process, through a server or through Redis: the same semantics."""

    def acquire(
        self,
        *names: str,
        key: str | None = None,
        owner: str | None = None,
        parent: Any = None,
        priority: int = 0,
        since: float | None = None,
        timeout: float | None = ...,
        lease: float | None = None,
    ) -> Acquiring: ...

    def try_acquire(self, *names: str, parent: Any = None, priority: int = 0) -> Any: ...

    def release_key(self, key: str) -> bool:
        """Release the permit held under *key*, if there is one."""
        ...

    def renew(self, permit: Any, lease: float) -> Any:
        """Let the lease of *permit* end *lease* seconds from now; None if it is gone already."""
        ...

    async def set_limit(self, name: str, capacity: int | None, *, cooldown: float = 0.0) -> None: ...

    async def remove_limit(self, name: str) -> None: ...

    async def release_owner(self, owner: str) -> int: ...

    async def refresh(self) -> None: ...

    async def aclose(self) -> None: ...

    def limits(self) -> Mapping[str, Any]: ...

    def waiting(self) -> Sequence[Any]: ...

    def holders(self, name: str) -> Sequence[Any]: ...

    def explain(self, waiter_id: str) -> Any: ...

    def snapshot(self) -> Any: ...


class Store(Settings, Protocol):
    """Sessions, their runs, their logs of events, and settings.

    Every write is one transaction: it happens whole or not at all, and is durable when its call returns. A
    caller that is cancelled does not know whether it happened. What is given out is the caller's own. All
    raise `StoreError` where the store fails and `Unavailable` once it is closed.
    """

    async def create_session(self, session: Session, events: Sequence[NewEvent] = ()) -> Session:
        """Write *session* with its first events; where its id is known, nothing is written.

        The session as it is stored then.
        """
        ...

    async def change_session(
        self, session_id: str, verb: SessionVerb, at: float, events: Sequence[NewEvent] = ()
    ) -> Session | None:
        """Move the session's status and log *events*; None, and nothing, where its status forbids the verb.

        Raises `SessionNotFound`.
        """
        ...

    async def delete_session(self, session_id: str) -> None:
        """Remove the session with its runs and events, if there."""
        ...

    async def submit_run(
        self, run: Run, events: Sequence[NewEvent] = (), *, room: int | None = None
    ) -> tuple[Run, bool]:
        """Write *run*, behind all that its session had before, with *events*: the run, and whether it is new.

        A run of the session with the same ``idempotency_key`` is given back instead, and nothing is written.
        Raises `SessionNotFound`, `InvalidStatus` where the session has ended, and `QueueFull` where *room* of
        its runs have not ended.
        """
        ...

    async def change_run(self, run_id: str, change: RunChange, events: Sequence[NewEvent] = ()) -> Run | None:
        """Do *change* and log *events*; None, and nothing, where the run is not as it demands.

        Raises `RunNotFound`.
        """
        ...

    async def append(
        self,
        session_id: str,
        events: Sequence[NewEvent],
        *,
        run_id: str | None = None,
        attempt: int | None = None,
    ) -> int:
        """Log *events*, in their order; the sequence number of the last.

        With *run_id*, only while that run is in flight in that *attempt*: `StaleFence` otherwise. An event
        whose id the session's log has is not logged again. Raises `SessionNotFound`.
        """
        ...

    async def get_session(self, session_id: str) -> Session:
        """Raises `SessionNotFound`."""
        ...

    async def list_sessions(
        self,
        *,
        statuses: Collection[SessionStatus] | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> list[Session]:
        """By creation, then id; *after* is the id of the last one of the page before."""
        ...

    async def get_run(self, run_id: str) -> Run:
        """Raises `RunNotFound`."""
        ...

    async def list_runs(
        self,
        session_id: str | None = None,
        *,
        statuses: Collection[RunStatus] | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> list[Run]:
        """By submission; *after* is the id of the last one of the page before."""
        ...

    async def get_events(
        self,
        session_id: str,
        *,
        after: int = 0,
        before: int | None = None,
        run_id: str | None = None,
        types: Collection[str] | None = None,
        since: float | None = None,
        limit: int | None = None,
    ) -> list[Event]:
        """The session's events between two sequence numbers (neither included), not older than *since*.

        In their order; all filters count, the limit last. Raises `SessionNotFound`.
        """
        ...

    async def get_latest_sequence(self, session_id: str) -> int:
        """The number of the last event, 0 if there is none. Raises `SessionNotFound`."""
        ...

    def watch(self, session_id: str, callback: Callable[[], None]) -> Callable[[], None]:
        """Have *callback* called on this event loop soon after events were logged; what ends that.

        It is a hint: it may come late, once for many events, or (across processes) not at all.
        """
        ...

    async def prune(self, retention: Retention, now: float) -> Pruned:
        """Remove what *retention* does not keep. Sequence numbers are never used again."""
        ...

    async def aclose(self) -> None: ...


@runtime_checkable
class SharedStore(Store, Protocol):
    """A store that several processes use at once: each session is held by one worker at a time.

    Who is alive is decided by the store's clock. Of a session that was ever held, only the present holder
    changes runs and logs their events: for others, `change_run` finds a run not to be as they demand, unless
    they cancel one that waits, and `append` raises `StaleFence`.
    """

    async def hold(self, worker: Worker, lease: float, *, most: int) -> Mapping[str, Held] | None:
        """Renew the lease of *worker* for so many seconds, and have it hold what needs a holder.

        *most* is how many sessions more, of its agents, with unfinished runs. All that it holds, by id; None
        where its lease had run out: it holds nothing, and needs another id.
        """
        ...

    async def let_go(self, worker_id: str, session_ids: Collection[str] | None = None) -> None:
        """Hold these sessions no more; without them, none, and be a worker no more."""
        ...

    async def workers(self) -> list[Worker]:
        """Who works, by when they started; those who died are there for some minutes."""
        ...

    async def unfinished(self, session_id: str) -> tuple[list[str], list[str]]:
        """The ids of the session's runs that are in flight, and of those that wait, by submission."""
        ...

    async def complete(self, session_id: str, at: float, events: Sequence[NewEvent] = ()) -> Session | None:
        """End the session and log *events*; None, and nothing, where it has unfinished runs or has ended."""
        ...

    async def wish(self, wish: Wish) -> int:
        """Have the worker that holds the session do this; its key. Raises `SessionNotFound`."""
        ...

    async def wishes(self, session_id: str) -> list[Wish]:
        """What was wished and nobody has answered, in that order."""
        ...

    async def answer(self, key: int, answer: Answer, session_id: str) -> None:
        """Say what became of a wish."""
        ...

    async def answered(self, key: int) -> Answer | None:
        """What became of a wish; None as long as nobody has said."""
        ...

    def watch_work(self, callback: Callable[[str | None], None]) -> Callable[[], None]:
        """Have *callback* called with the session for whose holder there is something to do.

        None where it may be any. A hint, as those of `watch`; what ends it.
        """
        ...
