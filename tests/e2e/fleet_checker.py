"""Whether a fleet was kept within its limits: a program that shares no code with Interlock.

    python -E -s -S fleet_checker.py HISTORIES

HISTORIES is a directory of ``*.jsonl`` files: of the clients (see `fleet_client`), of the upstream that they
used (`fleet_upstream`), and of whoever disturbed them, which has

=============  ============================================================================================
``fleet``      ``lease`` in seconds; ``limits``, each with its ``capacity`` and ``cooldown``
``disturbed``  something is about to happen to ``who`` (a client; ``*`` is everybody); what, says ``kind``
``calm``       it is over
``killing``    the client ``who`` is about to be killed
=============  ============================================================================================

``at`` is the system's monotonic clock. Only what is certain counts: a permit was held from when its holder
had heard of it until the last time that its holder saw it so, or ended it. What somebody did who was being
disturbed, or just had been, is evidence for nothing but the limits; so is what a client did that had noted
trouble of its own, such as a connection that was lost because the machine was too busy.

Every violation is printed with its evidence, and the exit code is 1 if there is one; else the counts, and 0.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable
from math import inf
from operator import itemgetter
from pathlib import Path
from typing import Any

from fleet_history import Ask, FleetHistory, Grant
from histories import Findings

CLOCK_SECONDS = 0.001
"""What a cooldown may be shorter by: moments are kept as whole milliseconds."""
OVERDUE_SECONDS = 1.0
"""How long after its deadline an ask has to have ended."""
EARLY_SECONDS = 0.01
"""How much before it at the most."""
HEARD_SECONDS = 0.5
"""How long it may take until what a client did is known where the limits are kept, and back."""
BACK_SECONDS = 5.0
"""How long after its lease what a dead client held may be counted."""
STUCK_SECONDS = 1.0
"""For how long units may lie free in front of somebody who wants them, also if he has not been told."""

Span = tuple[float, float, int, Any]
"""From when until when how many units were used, and who says so."""


def overlaps(spans: Iterable[Span], capacity: float) -> tuple[int, list[Any]]:
    """The most units at once; who had them when it were first more than *capacity*."""
    moments: list[tuple[float, int, int, Any]] = []
    for number, (start, end, units, who) in enumerate(spans):
        if units and start < end:
            moments += [(start, 1, number, (units, who)), (end, 0, number, (units, who))]
    inside: dict[int, Any] = {}
    used = most = 0
    found: list[Any] = []
    for _, begins, number, (units, who) in sorted(moments, key=lambda moment: moment[:3]):
        used += units if begins else -units
        if begins:
            inside[number] = who
        else:
            del inside[number]
        most = max(most, used)
        if used > capacity and not found:
            found = list(inside.values())
    return most, found


class Check:
    """All rules, over one history."""

    def __init__(self, history: FleetHistory) -> None:
        self.history = history
        self.found = Findings()
        self.rows: dict[str, Any] = {}

    def run(self) -> Findings:
        for rule in (
            self._strays,
            self._limits,
            self._keys,
            self._fences,
            self._order,
            self._ends,
            self._deadlines,
            self._releases,
            self._losses,
            self._stuck,
        ):
            rule()
        return self.found

    # -- who held what

    def _strays(self) -> None:
        for record in self.history.strays:
            self.found.add("invented", "somebody worked on a permit that nobody was granted", record)
        if not self.history.grants:
            self.found.add("nothing", "nobody was granted anything: this shows nothing")

    def _limits(self) -> None:
        """Never more than the capacity, by what the holders saw and by what the upstream saw."""
        for name, limit in self.history.limits.items():
            cools = max(0.0, limit["cooldown"] - CLOCK_SECONDS)
            held = [(g.start, g.end + cools, g.claims[name], told(g)) for g in self.history.grants]
            seen = [(*self.history.inside(g), g.claims[name], told(g)) for g in self.history.grants]
            for rule, spans in (("limit", held), ("upstream", seen)):
                most, over = overlaps(spans, limit["capacity"])
                self.rows[f"most {name} by the {'upstream' if rule == 'upstream' else 'holders'}"] = most
                if over:
                    text = f"{most} units of {name!r} were used at once; allowed are {limit['capacity']}"
                    self.found.add(rule, text, *over)
            raw = [
                (min(a.began for a in g.asks), max(a.left for a in g.asks), g.claims[name], told(g))
                for g in self.history.grants
            ]
            self.rows[f"most {name} with those who had lost it"] = overlaps(raw, inf)[0]

    def _keys(self) -> None:
        """One key is one permit at a time."""
        keyed: dict[str, list[Span]] = defaultdict(list)
        for grant in self.history.grants:
            if (key := grant.asks[0].key) is not None:
                keyed[key].append((grant.start, grant.end, 1, told(grant)))
        for key, spans in keyed.items():
            if (over := overlaps(spans, 1)[1]) != []:
                self.found.add("key", f"{key!r} was held twice at once", *over)

    def _fences(self) -> None:
        """Each is there once, and greater than that of whoever had been granted before it was asked for."""
        for name in self.history.limits:
            grants = [g for g in self.history.grants if g.claims[name]]
            known: dict[int, Grant] = {}
            for grant in grants:
                if (other := known.setdefault(grant.fence, grant)) is not grant:
                    self.found.add("fence", f"of {name!r} is there twice", told(other), told(grant))
            before = Greatest((ask.ended, g.fence, told(g)) for g in grants for ask in g.asks)
            for grant in grants:
                asked = min(ask.at for ask in grant.asks)
                fence, who = before.until(asked)
                if grant.asks[0].key is None and fence >= grant.fence:
                    self.found.add("fence", f"of {name!r} did not rise", who, told(grant))

    def _order(self) -> None:
        """Of those who want the same, nobody is granted while somebody waits who was there first."""
        lanes: dict[frozenset[tuple[str, int]], list[Ask]] = defaultdict(list)
        for ask in self.history.asks.values():
            if ask.key is None:
                lanes[frozenset(ask.claims.items())].append(ask)
        compared = watched = 0
        for lane in lanes.values():
            for priority in {ask.priority for ask in lane}:
                first = [ask for ask in lane if ask.priority == priority and self._waited_in_peace(ask)]
                fences = Greatest((a.queued, a.grant["fence"], a.said) for a in first if a.grant)
                watched += len(first)
                waits = Greatest(
                    (a.queued, min(a.cancelling, deadline(a)), a.said) for a in first if not a.grant
                )
                for ask in lane:
                    if ask.grant is None or ask.priority < priority:
                        continue
                    compared += 1
                    fence, who = fences.until(ask.at)
                    if fence > ask.grant["fence"]:
                        self.found.add("order", "granted before one that waited already", ask.grant, who)
                    until, who = waits.until(ask.at)
                    if until > ask.ended:
                        self.found.add("order", "granted while another waited already", ask.grant, who)
        self.rows["waits that nobody disturbed"] = watched
        self.rows["grants compared with them"] = compared

    def _waited_in_peace(self, ask: Ask) -> bool:
        """Whether the place of *ask* was its own all the time; what ended otherwise may have had none."""
        if ask.queued == inf or ask.end is None or ask.end.get("code", "timeout") != "timeout":
            return False
        return self.history.calm(ask.by, ask.at, min(ask.ended, ask.cancelling, deadline(ask)))

    # -- how it ended

    def _ends(self) -> None:
        for ask in self.history.asks.values():
            if len(ask.ends) > 1:
                self.found.add("once", "an ask ended twice", ask.said, *ask.ends)
            timed_out = ask.end is not None and ask.end.get("code") == "timeout"
            if timed_out and ask.ended < deadline(ask) - EARLY_SECONDS:
                self.found.add("early", "timed out before its deadline", ask.said, ask.end)

    def _deadlines(self) -> None:
        latest = 0.0
        for ask in self.history.asks.values():
            due = min(deadline(ask), ask.cancelling)
            due += self.history.frozen(ask.by, ask.at, min(ask.ended, due + BACK_SECONDS))
            late = min(ask.ended, self.history.killed.get(ask.by, inf)) - due
            latest = max(latest, late if ask.end else 0.0)
            if late > OVERDUE_SECONDS:
                self.found.add("deadline", f"{late:.2f} s overdue", ask.said, ask.end)
        self.rows["longest after a deadline"] = f"{latest:.3f} s"

    def _releases(self) -> None:
        """One of them ends the permit; none does that comes after it was lost."""
        for grant in self.history.grants:
            for client in {ask.by for ask in grant.asks}:
                said = [one for ask in grant.asks if ask.by == client for one in ask.released]
                if sum(one["answer"] for one in said) > 1:
                    self.found.add("release", "a permit was released twice", *said)
            for ask in grant.asks:
                if ask.lost and any(one["answer"] for one in ask.released):
                    self.found.add("release", "what was lost was released", ask.lost, *ask.released)

    def _losses(self) -> None:
        """Nobody loses a permit who could say that it is there."""
        slowest, lost = 0.0, 0
        for grant in self.history.grants:
            for ask in grant.asks:
                if ask.given_back or not ask.released or ask.said["owner"] or ask.key:
                    continue
                lost += 1
                at = ask.lost["at"] if ask.lost else ask.releasing
                if self.history.calm(ask.by, at - self.history.lease, at):
                    self.found.add("loss", "lost for no reason", told(grant), ask.lost)
                for window in self.history.disturbances(ask.by, at - OVERDUE_SECONDS, at):
                    if window.kind == "frozen" and window.end < at:
                        slowest = max(slowest, at - window.end)
        self.rows["permits lost"] = lost
        self.rows["longest until a woken holder knew"] = f"{slowest:.3f} s"

    # -- capacity that does not come back

    def _stuck(self) -> None:
        """Units that nobody can have are given to who waits for them."""
        self.spans: dict[str, list[Span]] = defaultdict(list)
        for ask in self.history.asks.values():
            start, end = self._may_hold(ask)
            for name, units in ask.claims.items():
                self.spans[name].append((start, end, units, ask))
        longest = 0.0
        for ask in self.history.asks.values():
            end = min(ask.ended, ask.cancelling, deadline(ask))
            if end - ask.queued > STUCK_SECONDS and self.history.calm(ask.by, ask.at, end):
                for start, stop in self._free_for(ask, ask.queued, end):
                    if not self._elders(ask, start, stop):
                        longest = max(longest, stop - start)
                        if stop - start > STUCK_SECONDS:
                            text = f"waited for {stop - start:.2f} s before units that were free"
                            self.found.add("stuck", text, ask.said, ask.end)
        self.rows["longest before free units"] = f"{longest:.3f} s"

    def _may_hold(self, ask: Ask) -> tuple[float, float]:
        """From when until when a unit may be counted for *ask*, in the worst case."""
        cools = max(self.history.limits[name]["cooldown"] for name in ask.claims)
        start, last = ask.at, ask.last
        if ask.end is not None and self.history.calm(ask.by, ask.at, last + HEARD_SECONDS):
            start = max(start, ask.ended - HEARD_SECONDS)
            if ask.grant is None or ask.given_back:
                return start, last + HEARD_SECONDS + cools
        if not ask.released:
            last = max(last, self.history.killed.get(ask.by, last))
        return start, last + self.history.lease + BACK_SECONDS + cools

    def _free_for(self, ask: Ask, start: float, end: float) -> Iterable[tuple[float, float]]:
        """When between *start* and *end* there was room for *ask* on each of its limits."""
        cuts = {start, end}
        near: dict[str, list[Span]] = {}
        for name in ask.claims:
            near[name] = [s for s in self.spans[name] if s[0] < end and s[1] > start and s[3] is not ask]
            cuts |= {at for s in near[name] for at in s[:2] if start < at < end}
        away = [
            (w.start, w.end + self.history.lease + BACK_SECONDS) for w in self.history.windows if w.who == "*"
        ]
        cuts |= {at for window in away for at in window if start < at < end}
        since = inf
        moments = sorted(cuts)
        for at in moments[:-1]:
            free = not any(one <= at < other for one, other in away)
            for name, units in ask.claims.items():
                used = sum(s[2] for s in near[name] if s[0] <= at < s[1])
                free = free and used + units <= self.history.limits[name]["capacity"]
            if free:
                since = min(since, at)
            elif since < inf:
                yield since, at
                since = inf
        if since < inf:
            yield since, end

    def _elders(self, ask: Ask, start: float, end: float) -> bool:
        """Whether somebody may keep the units for something else that it waits for."""
        return any(
            other.claims != ask.claims
            and other.claims.keys() & ask.claims.keys()
            and (other.priority < ask.priority or (other.priority == ask.priority and other.at < ask.queued))
            and other.at < end
            and min(other.ended, self.history.killed.get(other.by, inf)) > start
            for other in self.history.asks.values()
        )

    def counts(self) -> str:
        """One line for each thing that was counted."""
        history = self.history
        kinds = Counter(window.kind for window in history.windows)
        refusals = Counter(a.end["code"] for a in history.asks.values() if a.end and "code" in a.end)
        rows = {
            "asks": len(history.asks),
            "grants": len(history.grants),
            "refused": dict(refusals),
            "cancelled": history.counts["cancelled"],
            "clients killed": len(history.killed),
            "disturbances": dict(kinds),
            **self.rows,
        }
        return "\n".join(f"{name}: {number}" for name, number in rows.items())


class Greatest:
    """The greatest value of all that came before a moment."""

    def __init__(self, entries: Iterable[tuple[float, float, Any]]) -> None:
        self.moments: list[float] = []
        self.values: list[tuple[float, Any]] = []
        for at, value, who in sorted(entries, key=itemgetter(0, 1)):
            if not self.values or value > self.values[-1][0]:
                self.moments.append(at)
                self.values.append((value, who))

    def until(self, at: float) -> tuple[float, Any]:
        """The greatest value from before *at*, and whose it is."""
        place = bisect_left(self.moments, at) - 1
        return self.values[place] if place >= 0 else (-inf, None)


def deadline(ask: Ask) -> float:
    """When it has to end; `inf` if it has no end."""
    timeout = ask.said["timeout"]
    return inf if timeout is None else float(ask.at + timeout)


def told(grant: Grant) -> Any:
    """What of *grant* is evidence."""
    ask = grant.asks[0]
    return {
        "ask": ask.said["ask"],
        "limits": ask.said["limits"],
        "permit": grant.permit,
        "fence": grant.fence,
        "held": [grant.start, grant.end],
    }


def main(arguments: list[str]) -> int:
    """Check the one directory that is named; the exit code."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    assert "interlock" not in sys.modules
    check = Check(FleetHistory(Path(arguments[0])))
    found = check.run()
    print("\n".join(found.printed) or check.counts())
    if found.printed:
        print(f"{len(found.printed)} violations", file=sys.stderr)
    return 1 if found.printed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
