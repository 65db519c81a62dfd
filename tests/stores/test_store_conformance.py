"""Both stores keep the rules of every store."""

from pathlib import Path

import pytest

from interlock.ports import Settings
from interlock.stores import open_store
from interlock.testing.store_conformance import CASES, Case, run

KINDS = ("memory", "sqlite")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_it_conforms(case: Case, kind: str, tmp_path: Path) -> None:
    """One case on a store that has nothing in it."""
    url = "memory:" if kind == "memory" else f"sqlite:///{tmp_path}/interlock.db"
    async with await open_store(url) as store:
        assert isinstance(store, Settings)
        await run(case, store)
