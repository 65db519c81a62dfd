"""`GET /doctor`: a server names what is wrong with its limits, their ledger and its store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateways import call, gateway, hosting, open_to_all, until
from interlock.admission.local import LocalAdmission
from interlock.errors import Unavailable
from interlock.http.doctor import Doctor, DoctorRoutes
from interlock.ledger import Ledger
from interlock.provider.gate import ProviderGate
from interlock.stores import open_store


@asynccontextmanager
async def served(tmp_path: Path) -> AsyncIterator[tuple[str, LocalAdmission, Doctor]]:
    """A server whose limit `tools` has one holder, and somebody who waits."""
    store = await open_store(f"sqlite:///{tmp_path}/i.db")
    admission = LocalAdmission()
    ledger = Ledger(store, admission.clock)
    admission.configure("tools", 1)
    await ledger.start({"tools": 1}, {})
    gate = ProviderGate(admission=admission, settings=store, ledger=ledger)
    doctor = Doctor(gate, ledger, store)
    waiting = asyncio.create_task(_hold(admission))
    try:
        async with admission.acquire("tools"), hosting(open_to_all(DoctorRoutes(doctor))) as url:
            await until(admission.waiting)
            yield url, admission, doctor
    finally:
        waiting.cancel()
        await asyncio.wait({waiting})
        await gate.aclose()
        await ledger.aclose()
        await admission.aclose()
        await store.aclose()


async def _hold(admission: LocalAdmission) -> None:
    await asyncio.sleep(0)
    async with admission.acquire("tools"):
        pass


async def errors(url: str) -> list[str]:
    answer = await call(url, "GET", "/doctor")
    assert answer.status == 200
    return [one["what"] for one in answer.json["findings"] if one["severity"] != "ok"]


async def test_a_server_that_is_right_says_what_it_looked_at(tmp_path: Path) -> None:
    async with served(tmp_path) as (url, _, _):
        findings = (await call(url, "GET", "/doctor")).json["findings"]
        assert [(one["severity"], one["about"]) for one in findings] == [
            ("ok", "limits"),
            ("ok", "limits"),
            ("ok", "server"),
            ("ok", "store"),
        ]
        assert findings[0]["evidence"] == "1 limits, 1 permits, 1 waiters"


def miscount(admission: LocalAdmission) -> Callable[[], Any]:
    admission.kernel.limits["tools"].used += 1
    return lambda: setattr(admission.kernel.limits["tools"], "used", 1)


def forget(admission: LocalAdmission) -> Callable[[], Any]:
    admission.kernel.limits["tools"].capacity = 2
    return lambda: setattr(admission.kernel.limits["tools"], "capacity", 1)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (miscount, ["tools counts 2 units that are taken, but 1 are"]),
        (forget, ["1 waiters could go, and were not let in", "limits and their ledger disagree"]),
    ],
)
async def test_what_is_wrong_is_named(
    tmp_path: Path, harm: Callable[[LocalAdmission], Callable[[], Any]], said: list[str]
) -> None:
    async with served(tmp_path) as (url, admission, _):
        undo = harm(admission)
        assert await errors(url) == said
        undo()
        assert await errors(url) == []


async def test_a_change_past_the_ledger_is_named(tmp_path: Path) -> None:
    """It was made by nobody that should."""
    async with served(tmp_path) as (url, admission, _):
        admission.configure("tools", 1, cooldown=0.5)
        assert await errors(url) == []
        admission.configure("tools", 5)
        (finding,) = [
            one for one in (await call(url, "GET", "/doctor")).json["findings"] if one["severity"] == "error"
        ]
        assert finding["evidence"] == "tools is 5, its ledger says 1"
        assert finding["remedy"] == "interlock limits history NAME, then: interlock limits set NAME CAPACITY"


async def test_one_examination_at_a_time(tmp_path: Path) -> None:
    """A database may be large; who comes meanwhile is asked to come again. One that is given up is over."""
    async with served(tmp_path) as (url, _, doctor):
        first = asyncio.create_task(doctor.examine())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await doctor.examine()
        assert (await call(url, "GET", "/doctor")).status in (200, 503)
        first.cancel()
        await asyncio.wait({first})
        assert (await call(url, "GET", "/doctor")).status == 200


async def test_it_needs_the_token_like_everything_else() -> None:
    """The whole application, here without a store or a ledger."""
    async with gateway("http://127.0.0.1:9", token="s3cret") as whole:
        assert (await call(whole.url, "GET", "/doctor")).status == 401
        answer = await call(whole.url, "GET", "/doctor", [(b"authorization", b"Bearer s3cret")])
        assert (answer.status, answer.json["findings"][0]["severity"]) == (200, "ok")
