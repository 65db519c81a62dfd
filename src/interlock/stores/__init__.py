"""What remembers: sessions, their runs and their logs of events, and settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from interlock.errors import ValidationError
from interlock.stores.memory import MemoryStore

if TYPE_CHECKING:
    from interlock.stores.sqlite import SQLiteStore

__all__ = ["MemoryStore", "open_store"]

_ALLOWED = '"memory:", "sqlite:///file.db" or "sqlite:////directory/file.db"'


async def open_store(url: str) -> MemoryStore | SQLiteStore:
    """Open what *url* names; a file that is not there yet is made, a directory is not.

    Raises :class:`ValidationError` for a URL of another kind, and :class:`StoreError` where the
    database cannot be used: open in another process, from a newer Interlock, damaged.
    """
    if url == "memory:":
        return MemoryStore()
    scheme, colon, rest = url.partition("://")
    if scheme in ("postgres", "postgresql") and colon:
        raise ValidationError(f"store: postgresql:// comes with a later version; use {_ALLOWED}")
    path = rest.removeprefix("/")
    a_file = rest.startswith("/") and path not in ("", ":memory:") and not set("?#\0") & set(path)
    if scheme != "sqlite" or not a_file:
        # Only the scheme is shown: what follows may carry a password.
        shown = f"{scheme}://..." if colon else url
        raise ValidationError(f"store: {shown!r} is not {_ALLOWED}")
    # Imported here since it needs fcntl, which not every platform has.
    from interlock.stores.sqlite import SQLiteStore

    return await SQLiteStore.open(Path(path))
