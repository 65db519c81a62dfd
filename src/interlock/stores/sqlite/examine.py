"""A look into a database file that changes nothing: is it whole, and is what it says true of itself?"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from interlock.core.findings import Finding
from interlock.errors import StoreError
from interlock.ledger import PREFIX
from interlock.stores.judgement import ENDS, REPORT, TABLES, Judgement
from interlock.stores.schema import check_history
from interlock.stores.sqlite.schema import migrations
from interlock.stores.sqlite.transaction import marks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from interlock.stores.expected import Expected

_STEPS = 100_000
"""Of SQLite's machine, between two looks at the time."""
_RESTORE = "stop the server, keep a copy of {where}, and bring back the last backup"


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
            remedy = _RESTORE.format(where=path)
            found.append(Finding("error", "store", "the database cannot be read", f"{path}: {error}", remedy))
    return found


class _Look:
    def __init__(self, db: sqlite3.Connection, path: Path, expected: Expected) -> None:
        self._db = db
        self._path = path
        self._judge = Judgement(str(path), expected)

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
            counts = [f"{self._rows(f'SELECT COUNT(*) FROM {one}')[0][0]} {one}" for one in TABLES]  # noqa: S608
            yield self._judge.whole(counts)

    # -- the file

    def _file(self) -> Iterator[Finding]:
        damage = [str(row[0]) for row in self._rows("PRAGMA quick_check(20)")]
        if damage != ["ok"]:
            yield self._judge.error("the database is damaged", damage, _RESTORE)
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
            yield self._judge.error("rows belong to nothing", evidence, REPORT)

    # -- what is in it

    def _numbers(self) -> Iterator[Finding]:
        select = (
            "SELECT sessions.id, last_sequence, counters.runs, COUNT(events.key), MIN(sequence),"
            " MAX(sequence), (SELECT MAX(number) FROM runs WHERE runs.session = sessions.key), sessions.key"
            " FROM sessions LEFT JOIN counters ON counters.session = sessions.key"
            " LEFT JOIN events ON events.session = sessions.key GROUP BY sessions.key"
        )
        wrong, gaps = self._judge.numbers(self._rows(select))
        yield from wrong
        yield from self._judge.gaps([gap._replace(first=self._first_missing(gap.key)) for gap in gaps])

    def _first_missing(self, key: int) -> int:
        before = (
            "SELECT sequence, LAG(sequence, 1, 0) OVER (ORDER BY sequence) AS one"
            " FROM events WHERE session = ?"
        )
        gap = self._rows(f"SELECT one + 1 FROM ({before}) WHERE sequence <> one + 1 LIMIT 1", key)  # noqa: S608
        count = self._rows("SELECT COALESCE(MAX(sequence), 0) + 1 FROM events WHERE session = ?", key)
        return int((gap or count)[0][0])

    def _ends(self) -> Iterator[Finding]:
        select = (
            "WITH ends AS (SELECT session, run_id, COUNT(*) AS n, MIN(type) AS type FROM events"  # noqa: S608
            f" WHERE type IN ({marks(ENDS)}) GROUP BY session, run_id)"
            " SELECT runs.id, status, COALESCE(n, 0), ends.type, ended_at IS NULL FROM runs"
            " LEFT JOIN ends ON ends.session = runs.session AND run_id = runs.id"
        )
        return self._judge.ends(self._rows(select, *ENDS))

    def _unfinished(self) -> Iterator[Finding]:
        select = (
            "SELECT runs.id, sessions.id, sessions.status, agent_id FROM runs"
            " JOIN sessions ON sessions.key = runs.session"
            " WHERE runs.status IN ('pending', 'running', 'paused')"
        )
        return self._judge.unfinished(self._rows(select))

    def _changes(self) -> Iterator[Finding]:
        select = "SELECT key, value FROM settings WHERE key >= ? AND key < ?"
        return self._judge.changes(dict(self._rows(select, PREFIX, PREFIX[:-1] + ";")))

    # -- inside

    def _rows(self, sql: str, *values: object) -> list[Any]:
        return self._db.execute(sql, values).fetchall()
