"""How many connections there are, in all and from one address."""

from __future__ import annotations

from interlock.http.access.failures import network
from interlock.http.access.reach import is_loopback

MOST = 1024
MOST_PER_ADDRESS = 128
LOOPBACK_TIMES = 4
"""The machine's own addresses may have so many times as many: a whole fleet comes from there."""


class Places:
    """The connections of one server; None is without a bound."""

    def __init__(self, most: int | None = MOST, most_per_address: int | None = MOST_PER_ADDRESS) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._by_network: dict[str, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def take(self, address: str) -> str | None:
        """A place for a connection from *address* ("" is a socket of this machine): what to `leave` later.

        None where there is no room for it.
        """
        name, bound = network(address), self._most_per_address
        there = self._by_network.get(name, 0)
        if bound is not None and (not address or is_loopback(address)):
            bound *= LOOPBACK_TIMES
        if (self._most is not None and self._count >= self._most) or (bound is not None and there >= bound):
            return None
        self._by_network[name] = there + 1
        self._count += 1
        return name

    def leave(self, place: str) -> None:
        """The connection that took *place* has ended."""
        self._count -= 1
        left = self._by_network[place] - 1
        if left:
            self._by_network[place] = left
        else:
            del self._by_network[place]
