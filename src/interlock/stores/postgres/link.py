"""One connection to the database: opened only to a server that can keep a promise, and timed in all it does.

Nothing here is left with the connection when a transaction has ended: no settings, no locks, and behind a
pooler no prepared statement. So a transaction pooler may give every transaction another connection.
"""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg

from interlock.config import shown_url
from interlock.errors import InterlockError, StoreError, ValidationError

CONNECT_SECONDS: Final = 5.0
LOCK_SECONDS: Final = 5
STATEMENT_SECONDS: Final = 10
LONG_SECONDS: Final = 30
"""For a statement that may have much to remove, and for reading."""
TRANSACTION_SECONDS: Final = 40.0
"""Nothing that we ask takes longer, also where the network swallows the answer."""
OLDEST: Final = 13

# Should this process freeze in a transaction, the server gives up what it has locked: between two statements
# by its idle timeout. Between the parts in which a statement is sent, only the timeout that PostgreSQL 17 has
# for the whole transaction works; before that, workers look for such connections (see `leases`).
_TIMES: Final = (
    f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'; SET LOCAL idle_in_transaction_session_timeout = '5s';"
    " SET LOCAL statement_timeout"
)
BEGIN: Final = f"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {_TIMES} = '{STATEMENT_SECONDS}s'"
BEGIN_LONG: Final = f"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {_TIMES} = '{LONG_SECONDS}s'"
BEGIN_READING: Final = f"BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; {_TIMES} = '{LONG_SECONDS}s'"

_BOUNDS_TRANSACTIONS: Final = 170_000
CHECK: Final = (
    "SELECT current_setting('server_version_num')::int AS version, pg_is_in_recovery() AS replica,"
    " current_setting('synchronous_commit') AS synchronous, pg_backend_pid() AS pid,"
    " current_setting('server_encoding') AS encoding"
)
_LOST: Final = ("08", "28", "3D", "57P01", "57P02", "57P03", "57P05", "53300", "25006", "25P03", "25P04")
"""Beginnings of the SQLSTATEs after which only another connection, or another server, is of use."""


class LinkLostError(Exception):
    """The connection is gone, or could not be made; the text says why."""


class Link:
    """A connection, with what is known of what is behind it."""

    def __init__(self, db: asyncpg.Connection, where: str) -> None:
        self.db = db
        self.where = where
        self._bounds = False
        """Whether the server can bound a transaction as a whole."""
        self.pooled = False
        """Whether a pooler stands between, so that the next transaction may be of another connection."""

    @classmethod
    async def open(cls, url: str, *, cached: bool) -> Link:
        """Connect, and refuse a server that is too old, a replica, or does not wait for the disk.

        *cached* statements stay prepared. Raises `LinkLostError`, `StoreError`, `ValidationError`.
        """
        where = shown_url(url)
        db: asyncpg.Connection | None = None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                db = await asyncpg.connect(
                    url,
                    timeout=2 * CONNECT_SECONDS,
                    statement_cache_size=200 if cached else 0,
                    server_settings={"application_name": "interlock"},
                )
                link = cls(db, where)
                await link._check()
        except BaseException as error:
            if db is not None:
                db.terminate()
            if isinstance(error, (ValueError, asyncpg.ClientConfigurationError)):
                if isinstance(error, InterlockError):
                    raise
                raise ValidationError(f"store: {where} is not a URL of PostgreSQL") from None
            raise translated(error, where) from None
        return link

    async def _check(self) -> None:
        db = self.db
        await db.execute("BEGIN")
        row = await db.fetchrow(CHECK)
        await db.execute("COMMIT")
        assert row is not None
        wrong = None
        if row["version"] < OLDEST * 10_000:
            wrong = f"PostgreSQL {OLDEST} or later is needed, this is {row['version'] // 10_000}"
        elif row["replica"]:
            wrong = "this server is a replica, which cannot be written to; name the primary"
        elif row["synchronous"] == "off":
            wrong = "synchronous_commit is off: what it acknowledges may be lost; set it to on"
        elif row["encoding"] != "UTF8":
            wrong = f"the database's encoding is {row['encoding']}; create it with encoding UTF8"
        if wrong is not None:
            raise StoreError(f"{self.where}: {wrong}")
        self._bounds = row["version"] >= _BOUNDS_TRANSACTIONS
        self.pooled = row["pid"] != db.get_server_pid()

    def begin(self, *, long: bool = False) -> str:
        """The statements with which a transaction that writes begins."""
        seconds = TRANSACTION_SECONDS if long else TRANSACTION_SECONDS / 4
        bound = f"; SET LOCAL transaction_timeout = '{seconds:g}s'" if self._bounds else ""
        return (BEGIN_LONG if long else BEGIN) + bound

    @property
    def closed(self) -> bool:
        """Whether it has been lost, as far as is known."""
        return bool(self.db.is_closed())

    def abort(self) -> None:
        """Close it at once."""
        self.db.terminate()

    async def close(self) -> None:
        """Take leave, if the server listens."""
        try:
            await self.db.close(timeout=2.0)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self.db.terminate()


def translated(error: BaseException, where: str) -> BaseException:
    """*error* as we speak of it: `LinkLostError` where another connection may help, else `StoreError`."""
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        why = str(error.args[0] if error.args else type(error).__name__).splitlines()[0]
        if state.startswith(_LOST):
            return LinkLostError(why)
        if state.startswith("53100"):
            why = "the disk is full; nothing of this was stored"
        return StoreError(f"{where}: {why}", sqlstate=state)
    if isinstance(error, asyncpg.DataError):
        return ValidationError(f"this cannot be kept: {error}")
    if isinstance(error, TimeoutError):
        return LinkLostError("it does not answer")
    if isinstance(error, (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
        return LinkLostError(" ".join(str(error).split()) or type(error).__name__)
    return error


class Backoff:
    """When to try again what has failed: after 50 ms first, then twice as long each time, at most 1 s."""

    def __init__(self) -> None:
        self._next = 0.05

    def next(self) -> float:
        """Seconds until the next try."""
        now, self._next = self._next, min(1.0, 2 * self._next)
        return now


class Line:
    """What opens links to one database, one for each who asks; each keeps trying until its time is over."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.where = shown_url(url)
        self.pooled = True
        """Unknown is as good as pooled."""

    async def open(self) -> Link:
        """One try."""
        return await Link.open(self.url, cached=not self.pooled)

    async def patiently(self, until: float) -> Link:
        """Try until it works or it is *until* on the loop's clock; raises `StoreError` that says why not."""
        loop, backoff = asyncio.get_running_loop(), Backoff()
        while True:
            try:
                return await self.open()
            except (LinkLostError, StoreError) as error:
                pause = backoff.next()
                if loop.time() + pause > until:
                    raise self.unreachable(error) from None
            await asyncio.sleep(pause)

    def unreachable(self, error: Exception) -> StoreError:
        """What callers are told when *error* would not go away."""
        if isinstance(error, StoreError):
            return error
        return StoreError(f"{self.where}: the database cannot be reached: {error}")
