"""Every store keeps the rules of all stores."""

from pathlib import Path

import pytest

from interlock.ports import Settings
from interlock.stores import open_store
from interlock.testing.store_conformance import CASES, Case, run

KINDS = ("memory", "sqlite", "postgres")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_it_conforms(case: Case, kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """One case on a store that has nothing in it."""
    url = "memory:" if kind == "memory" else f"sqlite:///{tmp_path}/interlock.db"
    if kind == "postgres":
        url = request.getfixturevalue("postgres_url")
    async with await open_store(url) as store:
        assert isinstance(store, Settings)
        await run(case, store)
