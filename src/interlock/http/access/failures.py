"""How often an address has shown a wrong token, and for how long it is not asked again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interlock.ports import Clock

MOST = 10
"""Wrong tokens of one address within `WINDOW`, before it has to wait."""
WINDOW = 60.0
BLOCKED = 60.0
_MOST_ADDRESSES = 4096


@dataclass(slots=True)
class _Address:
    began: float
    count: int = 0
    until: float = 0.0


class Failures:
    """Wrong tokens by address; before there are too many addresses, the one that failed longest ago is
    forgotten."""

    def __init__(self, clock: Clock, *, most_addresses: int = _MOST_ADDRESSES) -> None:
        self._clock = clock
        self._most = most_addresses
        self._by_address: OrderedDict[str, _Address] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_address)

    def blocked_for(self, address: str) -> float:
        """Seconds until *address* may try again; 0 if it may now."""
        known = self._by_address.get(network(address))
        return 0.0 if known is None else max(0.0, known.until - self._clock.now())

    def note(self, address: str) -> None:
        """*address* has shown a wrong token."""
        now, name = self._clock.now(), network(address)
        known = self._by_address.get(name)
        if known is None or now >= max(known.began + WINDOW, known.until):
            known = self._by_address[name] = _Address(now)
        self._by_address.move_to_end(name)
        known.count += 1
        if known.count == MOST:
            known.until = now + BLOCKED
        if len(self._by_address) > self._most:
            self._by_address.popitem(last=False)


def network(address: str) -> str:
    """What *address* is counted as: who has an IPv6 address has all of its /64."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    return str(parsed.ipv4_mapped or int(parsed) >> 64)
