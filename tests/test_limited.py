"""The decorator: a permit around every kind of function, while it runs and no longer."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from interlock import (
    AcquireTimeout,
    InvalidOperation,
    LimitExceeded,
    LocalAdmission,
    ProviderGate,
    ValidationError,
    limited,
    sync,
)
from interlock.testing import VirtualClock
from interlock.testing.virtual_time import idle


@pytest.fixture
def admission() -> LocalAdmission:
    admission = LocalAdmission(clock=VirtualClock())
    admission.configure("tools", 1)
    admission.configure("global", 2)
    return admission


def used(admission: LocalAdmission) -> dict[str, int]:
    return {name: limit.used for name, limit in admission.limits().items()}


NONE = {"global": 0, "tools": 0}
ONE = {"global": 1, "tools": 1}


async def test_a_coroutine_function(admission: LocalAdmission) -> None:
    """It holds all its limits while it runs, the next call waits, and it stays the function that it was."""
    go_on = asyncio.Event()

    @limited(admission, "tools", "global")
    async def work(number: int) -> int:
        """Works."""
        assert used(admission) == ONE
        await go_on.wait()
        return number

    assert (work.__name__, work.__doc__) == ("work", "Works.")
    assert inspect.iscoroutinefunction(work)
    calls = [asyncio.ensure_future(work(number)) for number in range(3)]
    await idle()
    assert len(admission.waiting()) == 2
    go_on.set()
    assert await asyncio.gather(*calls) == [0, 1, 2]
    assert used(admission) == NONE


async def test_a_method_and_what_it_raises(admission: LocalAdmission) -> None:
    class Agent:
        @limited(admission, "tools")
        async def work(self) -> None:
            raise OSError(used(admission)["tools"])

    with pytest.raises(OSError, match="1"):
        await Agent().work()
    assert used(admission) == NONE


@pytest.mark.parametrize(("timeout", "error"), [(0, LimitExceeded), (3.0, AcquireTimeout)])
async def test_the_wait_is_bounded(admission: LocalAdmission, timeout: float, error: type) -> None:
    @limited(admission, "tools", timeout=timeout, priority=3)
    async def work() -> None:
        raise AssertionError

    async with admission.acquire("tools"):
        call = asyncio.ensure_future(work())
        await admission.clock.advance(timeout)  # type: ignore[attr-defined]
        assert isinstance(call.exception(), error)


async def test_cancelled_in_line_and_inside(admission: LocalAdmission) -> None:
    @limited(admission, "tools")
    async def work() -> None:
        await asyncio.Event().wait()

    inside, in_line = (asyncio.ensure_future(work()) for _ in range(2))
    await idle()
    for call in (in_line, inside):
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert (used(admission), admission.waiting()) == (NONE, ())


async def test_an_asynchronous_generator(admission: LocalAdmission) -> None:
    """From its first item to its end; left early, it is closed before the permit is free."""
    seen = []

    @limited(admission, "tools")
    async def items(count: int) -> AsyncIterator[int]:
        try:
            for number in range(count):
                yield number
        finally:
            seen.append(used(admission)["tools"])

    unread = items(3)
    assert used(admission) == NONE
    assert [item async for item in unread] == [0, 1, 2]
    async with aclosing(items(3)) as left:  # type: ignore[type-var]
        async for _ in left:
            break
    assert (seen, used(admission)) == ([1, 1], NONE)


@pytest.mark.parametrize("conversation", ["conv-7", lambda number: f"conv-{number}"])
async def test_of_a_gate(conversation: Any) -> None:
    """The one name is the provider; a function of the call's own arguments may say whose it is."""
    async with ProviderGate() as gate:

        @limited(gate, "openai", conversation=conversation)
        async def ask(number: int) -> str | None:
            return gate.admission.holders("provider:openai")[0].owner

        assert await ask(7) == "conv-7"


def test_plain_functions_in_threads() -> None:
    with sync.start(lambda: LocalAdmission()) as admission:
        admission.set_limit("tools", 1)

        @limited(admission, "tools")
        def work(number: int) -> int:
            assert admission.limits()["tools"].used == 1
            return number

        @limited(admission, "tools", timeout=0)
        def items() -> Iterator[int]:
            yield work_inside()
            yield 2

        def work_inside() -> int:
            return admission.limits()["tools"].used

        assert work(3) == 3
        assert list(items()) == [1, 2]
        for item in items():
            assert item == 1
            with pytest.raises(LimitExceeded):
                list(items())
            break
        assert work(4) == 4


async def test_a_plain_function_never_blocks_a_loop() -> None:
    admission = await asyncio.to_thread(sync.start, LocalAdmission)
    await asyncio.to_thread(admission.set_limit, "tools", 1)

    @limited(admission, "tools")
    def work() -> int:
        return 1

    with pytest.raises(InvalidOperation, match="to_thread"):
        work()
    assert await asyncio.to_thread(work) == 1
    await asyncio.to_thread(admission.close)


def test_what_does_not_go_together_is_refused(admission: LocalAdmission) -> None:
    def plain() -> None: ...

    async def coroutine() -> None: ...

    with pytest.raises(ValidationError, match=r"plain function: give limited a facade of interlock\.sync"):
        limited(admission, "tools")(plain)
    with sync.start(LocalAdmission) as facade, pytest.raises(ValidationError, match="not its facade"):
        limited(facade, "tools")(coroutine)
    for names in ((), (plain,)):
        with pytest.raises(ValidationError, match="names of its limits"):
            limited(admission, *names)  # type: ignore[arg-type]
