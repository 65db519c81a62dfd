"""What makes the rows of a store wrong, whatever database keeps them: who reads them asks here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from interlock.core.findings import Finding
from interlock.core.runs import ENDED, SESSION_ENDED
from interlock.ledger import read_changes, replay

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from interlock.stores.expected import Expected

REPORT: Final = "keep a copy of {where}, and report this with the evidence"
ENDS: Final = sorted(f"run_{status}" for status in ENDED)
"""The types of events that say that a run has ended."""
TABLES: Final = ("sessions", "runs", "events")
_SHOWN: Final = 5


class Gap(NamedTuple):
    """A session with fewer events than its counter says; *first* is the number of the first that lacks."""

    session_id: str
    key: int
    last: int
    missing: int
    first: int = 0


class Judgement:
    """Findings about the database that is called *where*."""

    def __init__(self, where: str, expected: Expected) -> None:
        self._where = where
        self._expected = expected

    def error(self, what: str, evidence: list[str], remedy: str = REPORT) -> Finding:
        """Something that should not be."""
        return Finding("error", "store", what, some(evidence), remedy.format(where=self._where))

    def whole(self, counts: Iterable[str]) -> Finding:
        """Nothing is wrong."""
        return Finding("ok", "store", "the database is whole", f"{self._where}: {', '.join(counts)}")

    def numbers(self, rows: Iterable[Any]) -> tuple[list[Finding], list[Gap]]:
        """Every session's events have the numbers from 1 to its last, less what retention removed.

        *rows* are the id of each session, its last number, its number of runs, how many events it has, the
        first and the last of their numbers, the last number of its runs, and its key.
        """
        past, gaps = list[str](), list[Gap]()
        most = self._expected.max_events
        for id_, last, runs, count, first, latest, number, key in rows:
            if last is None:
                past.append(f"{id_} has no counter")
            elif count and (first < 1 or latest > last):
                past.append(
                    f"{id_} has event {latest if latest > last else first}, its counter says 1 to {last}"
                )
            elif (number or 0) > runs:
                past.append(f"{id_} has run number {number}, its counter says {runs}")
            elif count < last and (most is None or count < most):
                gaps.append(Gap(id_, key, last, last - count))
        return [self.error("sessions have numbers beyond their counters", past)] if past else [], gaps

    def gaps(self, gaps: list[Gap]) -> Iterator[Finding]:
        """The *gaps*, with their first numbers."""
        lacks = [
            f"{gap.session_id} lacks {gap.missing} of {gap.last}, the first is {gap.first}" for gap in gaps
        ]
        if lacks and self._expected.max_events is None:
            yield self.error("events are missing", lacks)
        elif lacks:
            remedy = "nothing to do if max_events_per_session of [retention] was raised; else report this"
            yield Finding(
                "warn", "store", "more events are missing than retention removes", some(lacks), remedy
            )

    def ends(self, rows: Iterable[Any]) -> Iterator[Finding]:
        """A run that has ended has one event that says so, and no other run has any.

        *rows* are the id of each run, its status, how many such events it has, the type of one, and whether
        it is not known when it ended.
        """
        without, many, other, open_ = list[str](), list[str](), list[str](), list[str]()
        for id_, status, n, type_, no_time in rows:
            if status not in ENDED:
                if n:
                    open_.append(f"{id_} is {status}, its log says {type_}")
            elif n == 0:
                without.append(f"{id_} is {status}")
            elif n > 1:
                many.append(f"{id_} is {status} and has {n}")
            elif type_ != f"run_{status}":
                other.append(f"{id_} is {status}, its log says {type_}")
            elif no_time:
                other.append(f"{id_} is {status}, but not since when")
        for what, evidence in (
            ("ended runs have no event that says so", without),
            ("ended runs have more than one event that says so", many),
            ("ended runs and their logs disagree", other),
            ("logs say that runs have ended which have not", open_),
        ):
            if evidence:
                yield self.error(what, evidence)

    def unfinished(self, rows: Iterable[Any]) -> Iterator[Finding]:
        """What is to be done belongs to a session that goes on, and to an agent that there is.

        *rows* are the id of each unfinished run, the id and the status of its session, and its agent.
        """
        ended, nobodys = list[str](), list[str]()
        first = ""
        for run, session, status, agent in rows:
            if status in SESSION_ENDED:
                ended.append(f"{run} of {session}, which is {status}")
            elif agent not in self._expected.agents:
                first = first or run
                nobodys.append(f"{run} of {session}, whose agent is {agent or 'none'}")
        if ended:
            yield self.error("sessions have ended with runs that have not", ended)
        if nobodys:
            remedy = f"configure the agent under [agents], or: interlock cancel {first}"
            what = "runs wait for an agent that is not configured"
            yield Finding("warn", "store", what, some(nobodys), remedy)

    def changes(self, kept: Mapping[str, str]) -> Iterator[Finding]:
        """Each change of a limit begins where the one before ended; *kept* are the ledger's settings."""
        broken = []
        try:
            for name, changes in read_changes(dict(kept)).items():
                try:
                    replay(changes)
                except ValueError as error:
                    broken.append(f"{name}: {error}")
        except ValueError as error:
            broken.append(str(error))
        if broken:
            remedy = "the limits in force are right; only their history is not: interlock limits history NAME"
            yield Finding("warn", "store", "the ledger of limits has a break", some(broken), remedy)


def some(evidence: list[str]) -> str:
    """The first few of *evidence*, and how many more there are."""
    more = f"; {len(evidence) - _SHOWN} more" if len(evidence) > _SHOWN else ""
    return "; ".join(evidence[:_SHOWN]) + more
