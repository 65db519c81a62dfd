"""What remembers: sessions, their runs and their logs of events, and settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from interlock.errors import ValidationError
from interlock.stores.memory import MemoryStore

if TYPE_CHECKING:
    from interlock.stores.postgres import PostgresStore
    from interlock.stores.sqlite import SQLiteStore

__all__ = ["MemoryStore", "open_store"]

_ALLOWED = '"memory:", "sqlite:///file.db", "sqlite:////directory/file.db" or "postgresql://host/database"'


async def open_store(url: str) -> MemoryStore | SQLiteStore | PostgresStore:
    """Open what *url* names; a file that is not there yet is made, a directory or a database is not.

    Raises :class:`ValidationError` for a URL of another kind, and :class:`StoreError` where the
    database cannot be used: open in another process, out of reach, from a newer Interlock, damaged.
    """
    if url == "memory:":
        return MemoryStore()
    scheme, colon, rest = url.partition("://")
    if scheme in ("postgres", "postgresql") and colon:
        return await _open_postgres(url)
    path = rest.removeprefix("/")
    a_file = rest.startswith("/") and path not in ("", ":memory:") and not set("?#\0") & set(path)
    if scheme != "sqlite" or not a_file:
        # Only the scheme is shown: what follows may carry a password.
        shown = f"{scheme}://..." if colon else url
        raise ValidationError(f"store: {shown!r} is not {_ALLOWED}")
    # Imported here since it needs fcntl, which not every platform has.
    from interlock.stores.sqlite import SQLiteStore

    return await SQLiteStore.open(Path(path))


async def _open_postgres(url: str) -> PostgresStore:
    try:
        from interlock.stores.postgres import PostgresStore
    except ImportError as error:
        if error.name != "asyncpg":
            raise
        raise ValidationError(
            "store: postgresql:// needs the extra: pip install 'interlock[postgres]'"
        ) from None
    return await PostgresStore.open(url)
