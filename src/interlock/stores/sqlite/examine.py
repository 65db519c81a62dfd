"""A look into a database file that changes nothing: is it whole, and is what it says true of itself?"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from interlock.core.findings import Finding
from interlock.core.runs import ENDED, SESSION_ENDED
from interlock.errors import StoreError
from interlock.ledger import PREFIX, read_changes, replay
from interlock.stores.schema import check_history
from interlock.stores.sqlite.schema import migrations
from interlock.stores.sqlite.transaction import marks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from interlock.stores.expected import Expected

_SHOWN = 5
_STEPS = 100_000
"""Of SQLite's machine, between two looks at the time."""
_ENDS = sorted(f"run_{status}" for status in ENDED)
_RESTORE = "stop the server, keep a copy of {path}, and bring back the last backup"
_REPORT = "keep a copy of {path}, and report this with the evidence"


def examine_file(path: Path, expected: Expected, expired: Callable[[], bool]) -> list[Finding]:
    """What is wrong with the database at *path*, or one finding that nothing is; ends once *expired* says so.

    Whoever has it open may go on: it is read as of one moment.
    """
    found: list[Finding] = []
    try:
        uri = f"file:{quote(str(path.absolute()))}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=5.0, isolation_level=None)) as db:
            db.set_progress_handler(expired, _STEPS)
            db.execute("BEGIN")
            found += _Look(db, path, expected).all()
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "") == "SQLITE_INTERRUPT":
            what, remedy = (
                "the database was not read to its end in time",
                "stop the server, then: interlock doctor",
            )
            found.append(Finding("warn", "store", what, f"{path}", remedy))
        else:
            remedy = _RESTORE.format(path=path)
            found.append(Finding("error", "store", "the database cannot be read", f"{path}: {error}", remedy))
    return found


class _Look:
    def __init__(self, db: sqlite3.Connection, path: Path, expected: Expected) -> None:
        self._db = db
        self._path = path
        self._expected = expected

    def all(self) -> Iterator[Finding]:
        if not self._rows("SELECT name FROM sqlite_master"):
            yield Finding("ok", "store", "the database is empty; the next server sets it up", f"{self._path}")
            return
        wrong = list(self._file())
        yield from wrong
        if wrong:
            return  # what follows reads tables that may not be there, or lie
        wrong = [*self._numbers(), *self._ends(), *self._unfinished(), *self._changes()]
        yield from wrong
        if not any(one.severity == "error" for one in wrong):
            counted = [f"{self._rows(f'SELECT COUNT(*) FROM {one}')[0][0]} {one}" for one in _TABLES]  # noqa: S608
            yield Finding("ok", "store", "the database is whole", f"{self._path}: {', '.join(counted)}")

    # -- the file

    def _file(self) -> Iterator[Finding]:
        damage = [str(row[0]) for row in self._rows("PRAGMA quick_check(20)")]
        if damage != ["ok"]:
            yield self._error("the database is damaged", damage, _RESTORE)
            return
        try:
            select = "SELECT version, name, sha256 FROM schema_migrations ORDER BY version"
            applied = self._rows(select)
            check_history(applied, self._path, migrations())
        except sqlite3.OperationalError as error:
            remedy = "name Interlock's own file as store in the configuration"
            yield Finding(
                "error", "store", "this is no database of Interlock", f"{self._path}: {error}", remedy
            )
            return
        except StoreError as error:
            yield Finding(
                "error", "store", "its schema is not this Interlock's", error.message, "interlock --version"
            )
            return
        if missing := [one.name for one in migrations()[len(applied) :]]:
            remedy = f"cp {self._path} {self._path}.backup, then: interlock serve"
            yield Finding("warn", "store", "its schema is older", f"to come: {', '.join(missing)}", remedy)
        orphans = self._rows("PRAGMA foreign_key_check")
        if orphans:
            evidence = [f"{table} row {row} has no {parent}" for table, row, parent, _ in orphans]
            yield self._error("rows belong to nothing", evidence, _REPORT)

    # -- sessions and their logs

    def _numbers(self) -> Iterator[Finding]:
        """Every session's events have the numbers from 1 to its last, less what retention removed."""
        select = (
            "SELECT sessions.id, last_sequence, counters.runs, COUNT(events.key), MIN(sequence),"
            " MAX(sequence), (SELECT MAX(number) FROM runs WHERE runs.session = sessions.key), sessions.key"
            " FROM sessions LEFT JOIN counters ON counters.session = sessions.key"
            " LEFT JOIN events ON events.session = sessions.key GROUP BY sessions.key"
        )
        past, gaps, thin = list[str](), list[str](), list[str]()
        most = self._expected.max_events
        for id_, last, runs, count, first, latest, number, key in self._rows(select):
            if last is None:
                past.append(f"{id_} has no counter")
            elif count and (first < 1 or latest > last):
                past.append(
                    f"{id_} has event {latest if latest > last else first}, its counter says 1 to {last}"
                )
            elif (number or 0) > runs:
                past.append(f"{id_} has run number {number}, its counter says {runs}")
            elif count < last and (most is None or count < most):
                (gaps if most is None else thin).append(self._gap(id_, key, last, last - count))
        if past:
            yield self._error("sessions have numbers beyond their counters", past, _REPORT)
        if gaps:
            yield self._error("events are missing", gaps, _REPORT)
        if thin:
            remedy = "nothing to do if max_events_per_session of [retention] was raised; else report this"
            yield Finding(
                "warn", "store", "more events are missing than retention removes", _some(thin), remedy
            )

    def _gap(self, id_: str, key: int, last: int, missing: int) -> str:
        before = (
            "SELECT sequence, LAG(sequence, 1, 0) OVER (ORDER BY sequence) AS one"
            " FROM events WHERE session = ?"
        )
        gap = self._rows(f"SELECT one + 1 FROM ({before}) WHERE sequence <> one + 1 LIMIT 1", key)  # noqa: S608
        count = self._rows("SELECT COALESCE(MAX(sequence), 0) + 1 FROM events WHERE session = ?", key)
        return f"{id_} lacks {missing} of {last}, the first is {(gap or count)[0][0]}"

    def _ends(self) -> Iterator[Finding]:
        """A run that has ended has one event that says so, and no other run has any."""
        select = (
            "WITH ends AS (SELECT session, run_id, COUNT(*) AS n, MIN(type) AS type FROM events"  # noqa: S608
            f" WHERE type IN ({marks(_ENDS)}) GROUP BY session, run_id)"
            " SELECT runs.id, status, COALESCE(n, 0), ends.type, ended_at IS NULL FROM runs"
            " LEFT JOIN ends ON ends.session = runs.session AND run_id = runs.id"
        )
        without, many, other, open_ = list[str](), list[str](), list[str](), list[str]()
        for id_, status, n, type_, no_time in self._rows(select, *_ENDS):
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
                yield self._error(what, evidence, _REPORT)

    def _unfinished(self) -> Iterator[Finding]:
        """What is to be done belongs to a session that goes on, and to an agent that there is."""
        select = (
            "SELECT runs.id, sessions.id, sessions.status, agent_id FROM runs"
            " JOIN sessions ON sessions.key = runs.session"
            " WHERE runs.status IN ('pending', 'running', 'paused')"
        )
        ended, nobodys = list[str](), list[str]()
        first = ""
        for run, session, status, agent in self._rows(select):
            if status in SESSION_ENDED:
                ended.append(f"{run} of {session}, which is {status}")
            elif agent not in self._expected.agents:
                first = first or run
                nobodys.append(f"{run} of {session}, whose agent is {agent or 'none'}")
        if ended:
            yield self._error("sessions have ended with runs that have not", ended, _REPORT)
        if nobodys:
            remedy = f"configure the agent under [agents], or: interlock cancel {first}"
            what = "runs wait for an agent that is not configured"
            yield Finding("warn", "store", what, _some(nobodys), remedy)

    # -- the ledger

    def _changes(self) -> Iterator[Finding]:
        """Each change of a limit begins where the one before ended."""
        select = "SELECT key, value FROM settings WHERE key >= ? AND key < ?"
        kept = dict(self._rows(select, PREFIX, PREFIX[:-1] + ";"))
        broken = []
        try:
            for name, changes in read_changes(kept).items():
                try:
                    replay(changes)
                except ValueError as error:
                    broken.append(f"{name}: {error}")
        except ValueError as error:
            broken.append(str(error))
        if broken:
            remedy = "the limits in force are right; only their history is not: interlock limits history NAME"
            yield Finding("warn", "store", "the ledger of limits has a break", _some(broken), remedy)

    # -- inside

    def _rows(self, sql: str, *values: object) -> list[Any]:
        return self._db.execute(sql, values).fetchall()

    def _error(self, what: str, evidence: list[str], remedy: str) -> Finding:
        return Finding("error", "store", what, _some(evidence), remedy.format(path=self._path))


_TABLES = ("sessions", "runs", "events")


def _some(evidence: list[str]) -> str:
    more = f"; {len(evidence) - _SHOWN} more" if len(evidence) > _SHOWN else ""
    return "; ".join(evidence[:_SHOWN]) + more
