"""How many may wait at once for what they asked over the network. Who asks in this process is not counted in.

Without a bound, whoever asks faster than it is served fills the server's memory, and everybody behind waits
for what nobody wants any more.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from interlock.errors import QueueFull

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from interlock.core.kernel import Kernel
    from interlock.http.access.caller import Caller

MOST = 10_000
MOST_PER_LIMIT = 2_000
MOST_BYTES = 32 << 20
"""Of the bodies of waiting calls, for each token that is no admin's."""


class WaitingRoom:
    """The bounds of those who wait at *kernel*; None is without one."""

    def __init__(
        self,
        kernel: Kernel,
        *,
        most: int | None = MOST,
        most_per_limit: int | None = MOST_PER_LIMIT,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._kernel = kernel
        self._most = most
        self._most_per_limit = most_per_limit
        self._most_bytes = most_bytes
        self._bytes: Counter[str] = Counter()

    def check(self, names: Iterable[str], key: str | None = None) -> None:
        """Raises `QueueFull` where one more request for *names* would have to wait, and may not.

        Who asks again under a *key* is known already.
        """
        kernel, most = self._kernel, self._most
        everybody = most is not None and kernel.waiting >= most
        for name in names:
            limit = kernel.limits.get(name)
            if limit is None or not (limit.waiters or limit.free <= 0):
                continue
            alone = self._most_per_limit is not None and len(limit.waiters) >= self._most_per_limit
            if (alone or everybody) and key not in kernel.permits and key not in kernel.waiters:
                count = len(limit.waiters) if alone else kernel.waiting
                where = f"for {name!r}" if alone else "at this server"
                raise QueueFull(f"{count} wait {where} already, as many as may", limit=name)

    @contextmanager
    def holding(self, caller: Caller, size: int) -> Iterator[None]:
        """While a call of *size* bytes waits. Raises `QueueFull` where too much waits for its token."""
        names = () if caller.may("admin") else caller.names
        for name in names:
            if self._bytes[name] and self._bytes[name] + size > self._most_bytes:
                raise QueueFull(
                    f"calls with {self._bytes[name]} bytes wait for this token already; at most "
                    f"{self._most_bytes} may"
                )
        for name in names:
            self._bytes[name] += size
        try:
            yield
        finally:
            for name in names:
                self._bytes[name] -= size
                if not self._bytes[name]:
                    del self._bytes[name]
