"""`ProviderGate` over a server's admission: one gate for all processes, the same calls in each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from admission.harnesses import Hosted, hosted
from interlock import (
    InvalidOperation,
    LimitExceeded,
    ProviderGate,
    RemoteAdmission,
    Unavailable,
    ValidationError,
)
from interlock.provider.remote import RemoteGate


@pytest.fixture
async def server() -> AsyncIterator[Hosted]:
    async with hosted() as server:
        yield server


async def client(server: Hosted, **callbacks: object) -> ProviderGate:
    return ProviderGate(admission=RemoteAdmission(server.url), **callbacks)  # type: ignore[arg-type]


async def end(*gates: ProviderGate) -> None:
    for gate in gates:
        await gate.aclose()
        await gate.admission.aclose()


async def test_the_gate_follows_its_admission(server: Hosted) -> None:
    """With a server's admission it is the server's gate; what belongs to the server is refused by name."""
    gate = await client(server)
    assert isinstance(gate, RemoteGate)
    assert isinstance(gate, ProviderGate)
    with pytest.raises(ValidationError, match="default_cooldown, usage_repoll: the gate is the server's"):
        ProviderGate(admission=gate.admission, default_cooldown=1.0, usage_repoll=2.0)
    with pytest.raises(InvalidOperation, match="configured at the server"):
        gate.preset("p", 4, cooldown=0.0)
    await end(gate)


async def test_a_foreign_admission_is_refused() -> None:
    """Neither in process nor a server's: the error says what is allowed."""
    with pytest.raises(ValidationError, match="allowed are LocalAdmission and RemoteAdmission"):
        ProviderGate(admission=object())  # type: ignore[arg-type]


async def test_one_limit_for_all_processes(server: Hosted) -> None:
    """What one sets holds for the others; a slot of one is taken for all."""
    one, two = await client(server), await client(server)
    await one.set_limit("p", 1)
    await one.set_cooldown("p", 0.0)
    await two.load()
    assert two.limits() == {"p": 1}
    assert two.get_limit("p") == 1
    assert two.get_cooldown("p") == 0.0
    async with one.acquire("p", "conv"):
        with pytest.raises(LimitExceeded, match=r"'provider:p' is full \(1/1 in use, held by conv"):
            await two.acquire("p", timeout=0)
        await two.load()
        status = two.status("p")
        assert status is not None
        assert (status.in_flight, status.limit, status.configured_limit) == (1, 1, 1)
        assert two.reading("p").used == 1
    async with two.acquire("p", timeout=10):
        pass
    assert await one.remove_limit("p") is True
    assert await one.remove_limit("p") is False
    await end(one, two)


async def test_a_provider_without_a_limit_is_counted(server: Hosted) -> None:
    """As in process: nobody has to make it known first."""
    gate = await client(server)
    async with gate.acquire("new"):
        await gate.load()
        assert gate.reading("new").used == 1
        assert gate.status("new") is None
    await end(gate)


async def test_a_burst_of_two_processes_cuts_once(server: Hosted) -> None:
    """Calls granted before the cut tell nothing new, whichever process made them; all see the result."""
    heard: list[tuple[object, ...]] = []
    one = await client(
        server,
        on_pause=lambda *said: heard.append(("paused", *said)),
        on_limit_reduced=lambda *said: heard.append(("reduced", *said)),
    )
    two = await client(server)
    await one.set_limit("p", 4)
    mine, other = await one.acquire("p"), await two.acquire("p")
    one.report_rate_limit("p", 30.0, permit=mine)
    await one.load()
    two.report_rate_limit("p", 20.0, permit=other, reason="concurrency")
    await two.load()
    for gate in (one, two):
        status = gate.status("p")
        assert status is not None
        assert (status.limit, status.configured_limit, status.auto_reduced_from) == (3, 4, 4)
        assert status.paused
        assert status.reason == "concurrency"
        assert "auto-reduced to 3" in (status.notice or "")
    assert [said[:2] for said in heard] == [("paused", "p"), ("reduced", "p")]
    assert heard[1] == ("reduced", "p", 3, 4)
    assert 29 < float(str(heard[0][2])) <= 30
    with pytest.raises(LimitExceeded, match="'provider:p' is paused"):
        await two.acquire("p", timeout=0)
    two.resume("p")
    async with one.acquire("p", timeout=10):
        pass
    for permit in (mine, other):
        permit.release()
    await end(one, two)


async def test_what_is_asked_for_after_a_report_waits(server: Hosted) -> None:
    """A report goes ahead of the acquire that follows it in the program."""
    gate = await client(server)
    await gate.set_limit("p", 4)
    gate.report_rate_limit("p", 30.0, reason="rate")
    with pytest.raises(LimitExceeded, match="is paused"):
        await gate.acquire("p", timeout=0)
    gate.resume("p")
    gate.pause("p", 30.0)
    with pytest.raises(LimitExceeded, match="is paused"):
        await gate.acquire("p", timeout=0)
    await end(gate)


async def test_closing_ends_the_waits_of_this_process(server: Hosted) -> None:
    """Those of others go on, and so does the server."""
    one, two = await client(server), await client(server)
    await one.set_limit("p", 1)
    await one.set_cooldown("p", 0.0)
    holder = await one.acquire("p")
    mine = asyncio.ensure_future(one.acquire("p"))
    other = asyncio.ensure_future(two.acquire("p"))
    await asyncio.sleep(0)
    for gate in (one, two):
        await gate.load()  # which is answered after what was asked before
    assert len(server.admission.waiting()) == 2
    await one.aclose()
    with pytest.raises(Unavailable, match="the gate was closed while this waited"):
        await mine
    with pytest.raises(Unavailable, match="the gate is closed"):
        await one.acquire("p")
    holder.release()
    (await other).release()
    await end(one, two)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda gate: gate.report_rate_limit("p", reason="odd"), "reason is 'odd'"),
        (lambda gate: gate.pause("p", -1), "seconds is -1"),
        (lambda gate: gate.pause("", 1), "a provider's id is ''"),
        (lambda gate: gate.set_limit("p", 0), "capacity of 'provider:p' is 0"),
        (lambda gate: gate.set_cooldown("p", -1), "cooldown is -1"),
        (lambda gate: gate.admission.set_limit("provider:p", 3), "the limit 'provider:p' is the gate's"),
    ],
)
async def test_bad_values_are_refused(server: Hosted, call: Any, message: str) -> None:
    """Here, as in process, and in the same words."""
    gate = await client(server)
    with pytest.raises((ValidationError, InvalidOperation), match=message):
        await as_coroutine(call, gate)
    await end(gate)


async def as_coroutine(call: Any, gate: ProviderGate) -> None:
    result = call(gate)
    if result is not None:
        await result
