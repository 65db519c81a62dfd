"""The schema of a database: numbered migrations of its dialect, applied once and in their order."""

from __future__ import annotations

from hashlib import sha256
from importlib import resources
from typing import TYPE_CHECKING, Literal, NamedTuple

from interlock.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Migration(NamedTuple):
    """The statements that lead from the version before to this one."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return sha256(self.sql.encode()).hexdigest()


def migrations_of(dialect: Literal["sqlite", "postgres"]) -> list[Migration]:
    """All that this code knows, in their order."""
    folder = resources.files("interlock.stores") / "migrations" / dialect
    files = [file for file in folder.iterdir() if file.name.endswith(".sql")]
    return [
        Migration(int(file.name[:4]), file.name.removesuffix(".sql"), file.read_text("utf-8"))
        for file in sorted(files, key=lambda file: file.name)
    ]


def check_history(
    applied: Sequence[tuple[int, str, str]], where: object, migrations: list[Migration]
) -> None:
    """What was applied must be what this code would have applied, from the first on.

    *applied* are versions, names and digests in their order, *where* is how the database is called.
    """
    if applied and applied[-1][0] > migrations[-1].version:
        found, known = applied[-1][0], migrations[-1].version
        raise StoreError(
            f"{where}: its schema {found} is newer than {known}, the last that this Interlock knows;"
            " use the newer Interlock",
            found=found,
            known=known,
        )
    for (version, name, digest), migration in zip(applied, migrations, strict=False):
        if (version, digest) != (migration.version, migration.sha256):
            raise StoreError(
                f"{where}: migration {name} is not the {migration.name} of this Interlock;"
                " the database was made by a changed copy"
            )
