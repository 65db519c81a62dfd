"""What the outside must satisfy. Adapters implement these; nothing here does anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence


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
