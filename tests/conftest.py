from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from postgres_server import PostgresServer


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL of this test run, which nobody stops."""
    from postgres_server import PostgresServer

    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest) -> str:
    """The URL of a database with nothing of ours in it: ``INTERLOCK_TEST_POSTGRES_URL``, or our own."""
    url: str = os.environ.get("INTERLOCK_TEST_POSTGRES_URL") or request.getfixturevalue("postgres_server").url
    with ThreadPoolExecutor(1) as pool:  # also for a test that asks for it while its loop runs
        pool.submit(lambda: asyncio.run(_emptied(url))).result()
    return url


async def _emptied(url: str) -> None:
    import asyncpg

    db = await asyncpg.connect(url)
    await db.execute("SET client_min_messages = warning; DROP SCHEMA IF EXISTS interlock CASCADE")
    await db.close()
