"""The ledger of limits: what was changed, by whom and why; replayed, it gives what is in force."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from random import Random

import msgspec
import pytest

from interlock.admission.local import LocalAdmission
from interlock.app import Interlock
from interlock.config import Config, load_config
from interlock.errors import StoreError, ValidationError
from interlock.ledger import KEPT, MOST_EVIDENCE, OPERATOR, Cause, Change, Ledger, read_changes, replay, shown
from interlock.provider.gate import ProviderGate
from interlock.provider.retry import report_refusal
from interlock.provider.signals import classify
from interlock.stores import MemoryStore
from interlock.testing import VirtualClock


async def started(settings: MemoryStore, **in_force: int | None) -> Ledger:
    ledger = Ledger(settings, VirtualClock(1000.0))
    await ledger.start(in_force, {})
    return ledger


async def told(ledger: Ledger, name: str) -> list[tuple[str, int | None, int | None, str]]:
    """The changes, oldest first, without their numbers and times."""
    changes = reversed(await ledger.history(name, limit=KEPT))
    return [(one.by, one.old, one.new, one.evidence) for one in changes]


# -- what is noted


async def test_a_gate_tells_each_change_and_its_evidence() -> None:
    """The operator, a 429 in the provider's words, its recovery, and the operator's restoring."""
    clock, settings = VirtualClock(1000.0), MemoryStore()
    ledger = Ledger(settings, clock)
    admission = LocalAdmission(clock=clock)
    gate = ProviderGate(
        admission=admission, settings=settings, ledger=ledger, recovery="probe", recovery_window=30.0
    )
    await ledger.start({}, {})
    async with gate:
        await gate.set_limit("p", 4, cause=Cause("operator", "PUT /limits by curl/8.1"))
        permit = await gate.acquire("p")
        body = b'{"error": {"code": "1302", "message": "High concurrency of key sk-abcdef123456, slow down"}}'
        signal = classify(429, (), body, provider="p", now=clock.now())
        assert signal is not None
        report_refusal(gate, "p", permit, signal)
        gate.report_rate_limit("p", reason="rate")  # takes nothing away
        gate.report_rate_limit("p")
        await clock.advance(31.0)
        await gate.set_limit("p", 4)
        await gate.set_limit("p", 4)  # nothing new
        await gate.remove_limit("p")
        permit.release()
    assert await told(ledger, "provider:p") == [
        ("operator", None, 4, "PUT /limits by curl/8.1"),
        ("429", 4, 3, "429 1302: High concurrency of key ***, slow down"),
        ("429", 3, 2, "concurrency, reported without its words"),
        ("recovery", 2, 3, "no 429 for 30 s"),
        ("restore", 3, 4, ""),
        ("operator", 4, None, ""),
    ]


async def test_evidence_is_short_and_holds_no_key() -> None:
    """One line, whatever the provider wrote."""
    for secret in (
        "sk-proj-a1b2c3",
        "Bearer abc.def",
        "AIzaSyA1",
        "0123456789abcdef0123456789",
        "key=hunter2",
    ):
        assert "***" in shown(f"no more for {secret} today")
        assert secret.split()[-1] not in shown(f"no more for {secret} today")
    assert shown("429 too_many_concurrent_requests:\n\tslow  down") == (
        "429 too_many_concurrent_requests: slow down"
    )
    assert len(shown("so much " * 99)) == MOST_EVIDENCE
    ledger = Ledger(MemoryStore(), VirtualClock(), ["open sesame"])
    await ledger.start({}, {})
    ledger.note("p", 1, Cause("429", "the key open sesame is busy"))
    assert await told(ledger, "p") == [("429", None, 1, "the key *** is busy")]


async def test_what_parts_make_by_themselves_is_no_change() -> None:
    """Limits of pools and sessions come and go; and before the start nothing is known."""
    settings = MemoryStore()
    ledger = Ledger(settings, VirtualClock())
    ledger.note("tools", 3, OPERATOR)
    await ledger.start({}, {})
    ledger.note("session:s1", 1, OPERATOR)
    await ledger.written()
    assert await settings.items() == {}


# -- how it is kept


async def test_pages_newest_first_and_only_of_this_limit() -> None:
    """Also where the name of one limit begins with that of another."""
    ledger = await started(MemoryStore())
    for number in range(1, 8):
        ledger.note("a", number, OPERATOR)
        ledger.note("a:b", number * 10, OPERATOR)
        ledger.note("a:000000000001", number * 100, OPERATOR)
    page = await ledger.history("a", limit=3)
    assert [one.number for one in page] == [7, 6, 5]
    assert [one.new for one in await ledger.history("a", limit=3, before=page[-1].number)] == [4, 3, 2]
    assert [one.new for one in await ledger.history("a:b", limit=2)] == [70, 60]
    assert await ledger.history("b") == []
    with pytest.raises(ValidationError):
        await ledger.history("a", limit=0)


async def test_only_the_latest_are_kept_and_no_number_comes_again() -> None:
    """While it runs and at a start; what is kept can still be replayed."""
    settings = MemoryStore()
    ledger = await started(settings)
    for number in range(1, KEPT + 6):
        ledger.note("tools", number, OPERATOR)
        if number % 100 == 0:
            await ledger.written()
    await ledger.aclose()
    (changes,) = read_changes(await settings.items("ledger:")).values()
    assert [changes[0].number, changes[-1].number, len(changes)] == [6, KEPT + 5, KEPT]
    assert replay(changes) == KEPT + 5
    ledger = await started(settings, tools=7)
    assert (await ledger.history("tools", limit=1))[0].number == KEPT + 6


async def test_what_was_not_written_is_noticed_at_the_next_start() -> None:
    """By the file's word where it says so; a limit that is gone is unlimited."""
    settings = MemoryStore()
    first = await started(settings)
    for name in ("tools", "streams", "provider:old"):
        first.note(name, 5, OPERATOR)
    await first.aclose()
    again = Ledger(settings, VirtualClock(2000.0))
    await again.start({"tools": 7, "streams": 6, "runs": 9}, {"streams": 6, "tools": 4})
    assert [(await told(again, name))[-1][:3] for name in ("tools", "streams", "provider:old", "runs")] == [
        ("start", 5, 7),
        ("file", 5, 6),
        ("start", 5, None),
        ("start", None, 9),
    ]


async def test_a_store_that_fails_is_written_to_later(caplog: pytest.LogCaptureFixture) -> None:
    """The change is in force all the same; nothing is lost or out of order."""

    class Failing(MemoryStore):
        broken = True

        async def set(self, key: str, value: str) -> None:
            if self.broken:
                raise StoreError("the disk is full")
            await super().set(key, value)

    settings = Failing()
    ledger = await started(settings)
    ledger.note("tools", 3, OPERATOR)
    await ledger.written()
    assert "not written yet" in caplog.text
    settings.broken = False
    ledger.note("tools", 4, OPERATOR)
    assert [one.new for one in await ledger.history("tools")] == [4, 3]


def test_a_chain_that_is_broken_is_told() -> None:
    whole = [Change(1, 0.0, "file", None, 4), Change(2, 1.0, "429", 4, 3), Change(3, 2.0, "restore", 3, 4)]
    assert replay(whole) == 4
    assert replay([]) is None
    for broken, what in (
        ([whole[0], whole[2]], "change 2 is missing"),
        ([whole[0], msgspec.structs.replace(whole[1], old=5)], "begins at 5, not at 4"),
        ([msgspec.structs.replace(whole[0], old=2)], "not at unlimited"),
    ):
        with pytest.raises(ValueError, match=what):
            replay(broken)


# -- all of it: replaying is what is in force


def written_config(path: Path, random: Random) -> Config:
    numbers = {name: random.choice((None, 2, 3, 5, 8)) for name in ("tools", "runs")}
    limits = "".join(f"{name} = {number}\n" for name, number in numbers.items() if number)
    limit = random.choice(("", "limit = 3\n", "limit = 6\n"))
    path.write_text(
        f'store = "sqlite:///{path.parent}/i.db"\n[limits]\n{limits}[providers.p]\n'
        f'base_url = "http://127.0.0.1:9"\n{limit}recovery = "probe"\nrecovery_window = "3ms"\n'
        '[providers.q]\nbase_url = "http://127.0.0.1:9"\nlimit = 4\n',
        encoding="utf-8",
    )
    return load_config(path, {})


async def step(il: Interlock, path: Path, random: Random) -> None:
    """One thing that changes a limit, or tries to."""
    assert il.limits is not None
    name, provider = random.choice(("tools", "runs", "gpu")), random.choice("pq")
    number = random.choice((None, 1, 2, 4, 7))
    match random.randrange(6):
        case 0:
            await il.limits.set(name, number)
        case 1:
            await il.gate.set_limit(provider, number)
        case 2:
            await il.gate.remove_limit(provider)
        case 3:
            await il.apply(written_config(path, random))
        case 4:
            await asyncio.sleep(0.004)  # time to recover
        case _:
            il.gate.report_rate_limit(provider, 0.0)


async def agree(il: Interlock) -> None:
    """Every limit that was ever changed is what its changes, one after the other, lead to."""
    assert il.ledger is not None
    in_force = {name: one.capacity for name, one in il.admission.limits().items()}
    known = il.ledger.known()
    assert {name: known.get(name) for name in in_force} == in_force
    for name in {*il.ledger.known(), *in_force}:
        changes = await il.ledger.history(name, limit=KEPT)
        in_force = {name: one.capacity for name, one in il.admission.limits().items()}
        if il.ledger.known().get(name) == (changes[0].new if changes else None):  # no recovery meanwhile
            assert replay(reversed(changes)) == in_force.get(name), name


@pytest.mark.parametrize("seed", range(12))
async def test_replaying_gives_what_is_in_force(tmp_path: Path, seed: int) -> None:
    """Over restarts with another file, and over ends in which a record of either kind was lost."""
    random = Random(seed)
    path = tmp_path / "interlock.toml"
    config = written_config(path, random)
    for _ in range(5):
        async with Interlock(config) as il:
            await agree(il)
            for _ in range(12):
                await step(il, path, random)
                await agree(il)
            config = written_config(path, random) if random.randrange(2) else il.config
        lost = random.choice(("ledger:tools:%", "ledger:provider:p:%", "provider:p", "limit:tools", "-"))
        with sqlite3.connect(tmp_path / "i.db") as db:
            last = "SELECT key FROM settings WHERE key LIKE ? ORDER BY key DESC LIMIT 1"
            db.execute(f"DELETE FROM settings WHERE key IN ({last})", (lost,))
        db.close()
