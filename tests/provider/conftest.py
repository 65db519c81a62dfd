"""Opens scenes for the tests of the provider gate, and ends them without a trace."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from interlock.testing import VirtualClock
from provider.gates import START, Account, P, Scene

Open = Callable[..., Awaitable[Scene]]


@pytest.fixture
async def scene(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Open]:
    """``await scene(limit, **options of the gate)``; what was logged as an error fails the test."""
    scenes: list[Scene] = []

    async def open_(limit: int | None = None, *, clock: VirtualClock | None = None, **options: Any) -> Scene:
        opened = Scene(clock or VirtualClock(START), **options)
        scenes.append(opened)
        if limit is not None:
            await opened.gate.set_limit(P, limit)
        return opened

    yield open_
    for opened in scenes:
        await opened.end()
    errors = [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert not errors, errors[0].getMessage()


@pytest.fixture
def account() -> Account:
    """What the provider behind `gated` counts."""
    return Account()


@pytest.fixture
def gated(scene: Open, account: Account) -> Open:
    """Opens a scene with *account* behind its gate and no cooldown."""

    async def open_(limit: int | None, **options: Any) -> Scene:
        return await scene(limit, **({"fetch_usage": account, "default_cooldown": 0} | options))

    return open_
