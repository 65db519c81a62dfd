"""What the clients of a fleet wrote down, put together: asks with their ends, grants, disturbances.

Part of the program `fleet_checker`, which shares no code with Interlock.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from histories import Record, records

EVERYBODY = "*"
SETTLE_SECONDS = 4.0
"""For so long after a disturbance its victim may still be on its way back: connects, is counted again."""


@dataclass
class Ask:
    """One request for a permit, as far as it went."""

    said: Record
    queued: float = inf
    cancelling: float = inf
    ends: list[Record] = field(default_factory=list)
    """``granted``, ``refused``, ``cancelled``: one of them, once."""
    looks: list[float] = field(default_factory=list)
    """When its permit was held for sure."""
    lost: Record | None = None
    releasing: float = inf
    released: list[Record] = field(default_factory=list)
    began: float = inf
    """When the upstream let it in."""
    left: float = inf

    def __post_init__(self) -> None:
        self.by: str = self.said["by"]
        self.at: float = self.said["at"]
        self.claims = Counter(self.said["limits"])
        self.key: str | None = self.said["key"]
        self.priority: int = self.said["priority"]

    @property
    def end(self) -> Record | None:
        return self.ends[0] if self.ends else None

    @property
    def grant(self) -> Record | None:
        return self.end if self.end is not None and self.end["what"] == "granted" else None

    @property
    def ended(self) -> float:
        """When it was granted, refused or cancelled."""
        return self.end["at"] if self.end is not None else inf

    @property
    def given_back(self) -> bool:
        """Whether its holder ended the permit: it was held until then."""
        return bool(self.released) and bool(self.released[0]["answer"])

    @property
    def last(self) -> float:
        """When its client wrote of it for the last time."""
        marks = [self.at, *self.looks[-1:], *(one["at"] for one in self.ends + self.released)]
        marks += [at for at in (self.queued, self.cancelling, self.releasing) if at < inf]
        return max(marks + ([self.lost["at"]] if self.lost else []))


@dataclass
class Grant:
    """One permit under one fence, which all asks with its key may share."""

    permit: str
    fence: int
    asks: list[Ask] = field(default_factory=list)

    @property
    def claims(self) -> Counter[str]:
        return self.asks[0].claims

    @property
    def start(self) -> float:
        """From when on it was held for sure."""
        return min((ask.looks[0] for ask in self.asks if ask.looks), default=inf)

    @property
    def end(self) -> float:
        """Until when it was held for sure: until anybody was about to release it, if it was there then."""
        marks = [ask.looks[-1] for ask in self.asks if ask.looks]
        marks += [ask.releasing for ask in self.asks if ask.given_back]
        return min(max(marks, default=-inf), min(ask.releasing for ask in self.asks))


@dataclass(frozen=True)
class Window:
    """Somebody, or everybody, was disturbed; or had noted trouble that nobody made."""

    who: str
    kind: str
    start: float
    end: float


class FleetHistory:
    """All that was written down in *directory*."""

    def __init__(self, directory: Path) -> None:
        self.asks: dict[str, Ask] = {}
        self.windows: list[Window] = []
        self.killed: dict[str, float] = {}
        self.strays: list[Record] = []
        """What belongs to nothing."""
        self.counts: Counter[str] = Counter()
        self.lease = 0.0
        self.limits: dict[str, Record] = {}
        self._open: dict[tuple[str, str], float] = {}
        for record in records(directory):
            self.counts[record["what"]] += 1
            self._note(record)
        self.windows += [Window(who, kind, at, inf) for (who, kind), at in self._open.items()]
        self.grants = self._grants()
        self._by: dict[str, list[Window]] = defaultdict(list)
        for window in self.windows:
            self._by[window.who].append(window)

    def _note(self, record: Record) -> None:
        what, at = record["what"], record["at"]
        if what == "fleet":
            self.lease, self.limits = record["lease"], record["limits"]
        elif what == "disturbed":
            self._open[record["who"], record["kind"]] = at
        elif what == "calm":
            who, kind = record["who"], record["kind"]
            self.windows.append(Window(who, kind, self._open.pop((who, kind)), at))
        elif what == "noted":
            self.windows.append(Window(record["by"], "trouble noted", at, at))
        elif what == "killing":
            self.killed[record["who"]] = at
        elif what == "ask":
            self.asks[record["ask"]] = Ask(record)
        elif "ask" in record:
            ask = self.asks.get(record["ask"])
            if ask is None:
                self.strays.append(record)
            else:
                self._follow(ask, record)

    def _follow(self, ask: Ask, record: Record) -> None:
        what, at = record["what"], record["at"]
        if what in ("granted", "refused", "cancelled"):
            ask.ends.append(record)
            if record.get("live"):
                ask.looks.append(at)
        elif what == "held":
            ask.looks.append(at)
        elif what == "lost":
            ask.lost = record
        elif what == "released":
            ask.released.append(record)
        elif what in ("queued", "cancelling", "releasing"):
            setattr(ask, what, min(at, getattr(ask, what)))
        elif what == "began":
            ask.began = at
            grant = ask.grant
            if grant is None or (grant["permit"], grant["fence"]) != (record["permit"], record["fence"]):
                self.strays.append(record)
        elif what == "left":
            ask.left = at

    def _grants(self) -> list[Grant]:
        grants: dict[tuple[str, int], Grant] = {}
        for ask in self.asks.values():
            if (said := ask.grant) is not None:
                key = said["permit"], said["fence"]
                grants.setdefault(key, Grant(*key)).asks.append(ask)
        return list(grants.values())

    def disturbances(self, who: str, start: float, end: float) -> Iterable[Window]:
        """What happened to *who* or to everybody between *start* and *end*."""
        for window in (*self._by[who], *self._by[EVERYBODY]):
            if window.start <= end and window.end >= start:
                yield window

    def inside(self, grant: Grant) -> tuple[float, float]:
        """From when until when the upstream saw *grant*, without what holders did who could not know better.

        Those are the ones that lost it, and those that were killed after they had been cut off.
        """
        ends = []
        for ask in grant.asks:
            killed = self.killed.get(ask.by, inf)
            known = ask.lost is None and ask.releasing == inf and self.calm(ask.by, ask.at, killed - 0.001)
            ends.append(ask.left if known else min(ask.left, grant.end))
        return min(ask.began for ask in grant.asks), max(ends)

    def calm(self, who: str, start: float, end: float) -> bool:
        """Whether nothing happened to *who* from a while before *start* until *end*."""
        if self.killed.get(who, inf) <= end:
            return False
        return not any(self.disturbances(who, start - SETTLE_SECONDS, end))

    def frozen(self, who: str, start: float, end: float) -> float:
        """Seconds that *who* stood still for between *start* and *end*."""
        found = (w for w in self.disturbances(who, start, end) if w.kind == "frozen" and w.who == who)
        return sum(min(w.end, end) - max(w.start, start) for w in found)
