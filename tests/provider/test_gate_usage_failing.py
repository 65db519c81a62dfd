"""The usage gate of a provider that does not answer, or not well: nobody waits for it for ever."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from interlock import ProviderUsage
from interlock.testing.virtual_time import idle
from provider.conftest import Open
from provider.gates import Account, P, admitted

# -- providers that do not answer, or not well ---------------------------------------------------


async def test_a_hanging_poll_is_given_up(gated: Open, account: Account) -> None:
    """After ``usage_timeout`` it counts as unknown: waiters go up to the local limit, never above."""
    here = await gated(4, usage_timeout=3, usage_repoll=60)
    await here.hold()
    account.silent()
    waiters = await here.line_up(5)
    await here.clock.advance(2.999)
    assert admitted(waiters) == 0
    await here.clock.advance(0.001)
    assert admitted(waiters) == 3
    assert here.status().in_flight == 4
    assert account.at_once == 0, "it was cancelled"
    account.answer = 0
    await here.release(waiters[0].permit)
    assert admitted(waiters) == 4, "the next poll is a new one"


async def test_a_poll_that_ignores_its_cancellation(scene: Open) -> None:
    """It keeps nobody waiting, its late answer is dropped, and no second one runs beside it."""
    running = most = 0
    let_go = asyncio.Event()

    async def stubborn(_: str) -> ProviderUsage:
        nonlocal running, most
        running += 1
        most = max(most, running)
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        running -= 1
        return ProviderUsage(4)

    here = await scene(2, fetch_usage=stubborn, default_cooldown=0)
    waiters = await here.line_up(6)
    await here.clock.advance(2)
    assert admitted(waiters) == 2
    for waiter in waiters[:4]:
        await here.release(waiter.permit)
        await here.clock.advance(5)
    assert admitted(waiters) == 6
    assert most == 1
    let_go.set()
    await idle()
    assert running == 0
    assert here.status().upstream_in_flight is None


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), TimeoutError(), OSError(111, "refused"), asyncio.CancelledError()], ids=repr
)
async def test_a_poll_that_raises_is_unknown(gated: Open, account: Account, error: BaseException) -> None:
    """Nothing reaches the loop unhandled; waiters go at once, up to the local limit."""
    here = await gated(2)
    account.answer = error
    await here.hold()
    waiters = await here.line_up(3)
    assert (account.polls, admitted(waiters)) == (1, 1)
    await here.clock.advance(10)
    assert admitted(waiters) == 1


@pytest.mark.parametrize("answer", [ProviderUsage(1), None, RuntimeError("no")], ids=repr)
async def test_a_source_may_be_plain(scene: Open, answer: Any) -> None:
    """Any callable that answers, or raises, in place."""

    def fetch(provider_id: str) -> Any:
        assert provider_id == P
        if isinstance(answer, Exception):
            raise answer
        return answer

    here = await scene(3, fetch_usage=fetch)
    waiters = await here.line_up(5)
    assert admitted(waiters) == (2 if answer == ProviderUsage(1) else 3)


class _Odd:
    def __init__(self, sessions: Any) -> None:
        self.concurrent_sessions = sessions


class _Broken:
    @property
    def concurrent_sessions(self) -> int:
        raise ValueError("broken")


@pytest.mark.parametrize(
    "answer",
    [
        object(),
        "3",
        b"3",
        True,
        {"concurrent_sessions": 9},
        _Odd(-1),
        _Odd(True),
        _Odd(None),
        _Odd("3"),
        _Odd(2.9),
        _Odd(math.nan),
        _Odd(math.inf),
        _Odd([3]),
        _Broken(),
    ],
    ids=lambda answer: (
        type(answer).__name__
        + repr(getattr(answer, "__dict__", answer) if type(answer) is not object else "")[:40]
    ),
)
async def test_garbage_is_unknown(gated: Open, account: Account, answer: Any) -> None:
    """Whatever is no count keeps nobody out and lets in no more than fit."""
    here = await gated(2)
    account.answer = answer
    waiters = await here.line_up(5)
    assert admitted(waiters) == 2
    assert here.status().upstream_in_flight is None


@pytest.mark.parametrize("limit", ["3", math.nan, object()], ids=lambda limit: repr(limit)[:10])
async def test_a_garbled_limit_is_no_limit(gated: Open, account: Account, limit: Any) -> None:
    """The count beside it is believed all the same."""
    here = await gated(4)
    account.answer = _Odd(3)
    account.answer.limit = limit
    waiters = await here.line_up(3)
    assert admitted(waiters) == 1
    account.answer = 0
    await here.clock.advance(1)
    assert admitted(waiters) == 3


async def test_an_unknown_usage_never_raises_the_room(gated: Open, account: Account) -> None:
    """The local limit stands, poll after poll."""
    here = await gated(2)
    account.answer = None
    waiters = await here.line_up(5)
    await here.clock.advance(30)
    assert admitted(waiters) == 2


async def test_one_silent_provider_does_not_hold_up_another(scene: Open) -> None:
    """Each is asked for itself."""

    async def fetch(provider_id: str) -> ProviderUsage:
        if provider_id == P:
            await asyncio.get_running_loop().create_future()
        return ProviderUsage(0)

    here = await scene(1, fetch_usage=fetch, default_cooldown=0)
    await here.gate.set_limit("other", 1)
    await here.line_up(1)
    held = await here.hold("x", "other")
    waiter = await here.queue("y", "other")
    await here.release(held)
    assert not waiter.waits
