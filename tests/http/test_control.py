"""The control plane's own routes: limits, what is in use, and the operator's pause. Errors are problems."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateways import Answer, call, hosting, open_to_all
from interlock.admission.local import LocalAdmission
from interlock.governor import ConcurrencyGovernor
from interlock.http.control import ControlRoutes, Fleet
from interlock.limiter import ConcurrencyLimiter
from interlock.limits import FleetLimits
from interlock.provider.gate import ProviderGate
from interlock.stores import MemoryStore


class Served:
    """A fleet with a provider ``p`` of limit 2, at a URL."""

    def __init__(self) -> None:
        self.url = ""
        self.ready = True
        self.admission = LocalAdmission()
        self.gate = ProviderGate(admission=self.admission)
        self.limits = FleetLimits(self.admission, MemoryStore())


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    await served.limits.load({})
    await served.gate.set_limit("p", 2)
    shared = served.admission
    fleet = Fleet(served.limits, ConcurrencyLimiter(admission=shared), ConcurrencyGovernor(admission=shared))
    app = open_to_all(ControlRoutes(served.gate, fleet, lambda: served.ready))
    async with served.gate, hosting(app) as url:
        served.url = url
        yield served


async def ask(
    served: Served, method: str, path: str, body: Any = None, *headers: tuple[bytes, bytes]
) -> Answer:
    raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    return await call(served.url, method, path, headers, raw)


def problem(got: Answer) -> tuple[int, str, str]:
    """Status, code and detail of a refusal."""
    assert got.header(b"content-type") == b"application/problem+json"
    body = got.json
    assert body["status"] == got.status
    return got.status, body["code"], body["detail"]


# -- limits ----------------------------------------------------------------------------------------


async def test_every_limit_is_listed(served: Served) -> None:
    """The fleet's and the providers', null for unlimited."""
    limits = {one["name"]: one for one in (await ask(served, "GET", "/limits")).json["limits"]}
    assert set(limits) == {"global", "provider:p", "runs", "sessions", "streams", "tools"}
    assert limits["provider:p"] == {
        "name": "provider:p",
        "capacity": 2,
        "used": 0,
        "cooling": 0,
        "waiting": 0,
        "pausedUntil": None,
        "gated": False,
    }
    assert limits["tools"]["capacity"] is None


async def test_a_limit_is_set(served: Served) -> None:
    """In force at once; a cooldown that is left out stays; null is unlimited; a new name makes one."""
    for body, capacity, cooldown_ms in (
        ({"capacity": 3, "cooldownMs": 500}, 3, 500),
        ({"capacity": 4}, 4, 500),
        ({"capacity": None, "cooldownMs": 0}, None, 0),
    ):
        got = await ask(served, "PUT", "/limits/tools", body)
        assert (got.status, got.json["name"], got.json["capacity"]) == (200, "tools", capacity)
        limit = served.admission.kernel.limits["tools"]
        assert (limit.cooldown.success_ms, limit.cooldown.failed_ms) == (cooldown_ms, cooldown_ms)
    assert (await ask(served, "PUT", "/limits/gpu", {"capacity": 1})).json["capacity"] == 1
    assert served.admission.limits()["gpu"].capacity == 1


async def test_a_provider_s_limit_goes_through_its_gate(served: Served) -> None:
    """So that it is durable, ends a reduction, and null removes it."""
    served.gate.report_rate_limit("p", 0)
    got = await ask(served, "PUT", "/limits/provider:p", {"capacity": 5, "cooldownMs": 250})
    assert got.json["capacity"] == 5
    status = served.gate.status("p")
    assert status is not None
    assert (status.configured_limit, status.auto_reduced, status.cooldown) == (5, False, 0.25)
    assert (await ask(served, "PUT", "/limits/provider:p", {"capacity": None})).json["capacity"] is None
    assert served.gate.get_limit("p") is None


WRONG = [
    (b"", "the body is not JSON"),
    (b"{", "the body is not JSON"),
    (b"\xff\xfe", "the body is not JSON"),
    ({}, "capacity"),
    ({"capacity": 0}, "capacity"),
    ({"capacity": -1}, "capacity"),
    ({"capacity": True}, "capacity"),
    ({"capacity": 1.5}, "capacity"),
    ({"capacity": "3"}, "capacity"),
    ({"capacity": 10**9}, "capacity"),
    ({"capacity": 10**300}, "capacity"),
    (b'{"capacity": 1e400}', "the body"),
    (b'{"capacity": NaN}', "the body"),
    ({"capacity": 3, "cooldownMs": -1}, "cooldownMs"),
    ({"capacity": 3, "cooldownMs": None}, "cooldownMs"),
    ({"capacity": 3, "cooldown": 1}, "cooldown"),
    ([3], "the body"),
]


@pytest.mark.parametrize(("body", "named"), WRONG, ids=lambda value: str(value)[:24])
async def test_a_wrong_limit_is_refused_by_name(served: Served, body: Any, named: str) -> None:
    """And nothing has changed."""
    status, code, detail = problem(await ask(served, "PUT", "/limits/tools", body))
    assert (status, code) == (400, "validation_error")
    assert named in detail
    assert served.admission.limits()["tools"].capacity is None


async def test_a_wrong_name_is_refused(served: Served) -> None:
    """Too long or too short; or one that a part of ours makes, and would make anew."""
    for name, status, code in (
        ("x" * 201, 400, "validation_error"),
        ("", 400, "validation_error"),
        (f"provider:{'x' * 129}", 400, "validation_error"),
        ("pool:coders", 409, "invalid_operation"),
        ("session:s1", 409, "invalid_operation"),
        ("tools:ada", 409, "invalid_operation"),
    ):
        assert problem(await ask(served, "PUT", f"/limits/{name}", {"capacity": 1}))[:2] == (status, code)


async def test_a_form_is_no_body(served: Served) -> None:
    """It is what a foreign page may send without being asked."""
    form = (b"content-type", b"application/x-www-form-urlencoded")
    assert problem(await ask(served, "PUT", "/limits/tools", {"capacity": 1}, form))[0] == 415


async def test_a_store_that_fails_is_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: MemoryStore, key: str, value: str) -> None:
        from interlock.errors import StoreError

        raise StoreError("the disk is full")

    monkeypatch.setattr(MemoryStore, "set", fail)
    assert problem(await ask(served, "PUT", "/limits/tools", {"capacity": 1})) == (
        507,
        "storage_error",
        "the disk is full",
    )


# -- what is in use --------------------------------------------------------------------------------


async def test_the_limiter_s_status(served: Served) -> None:
    """camelCase; null is unlimited."""
    await ask(served, "PUT", "/limits/runs", {"capacity": 3})
    permit = await served.admission.acquire("runs")
    assert (await ask(served, "GET", "/limiter/status")).json == {
        "activeSessions": 0,
        "activeRuns": 1,
        "maxParallelSessions": None,
        "maxParallelRuns": 3,
        "availableSessionSlots": None,
        "availableRunSlots": 2,
    }
    permit.release()


async def test_the_governor_s_stats(served: Served) -> None:
    await ask(served, "PUT", "/limits/streams", {"capacity": 4})
    permit = await served.admission.acquire("streams", "global")
    assert (await ask(served, "GET", "/governor/stats")).json == {
        "streamsAvailable": 3,
        "streamsMax": 4,
        "toolsAvailable": None,
        "toolsMax": None,
        "globalAvailable": None,
        "globalMax": None,
    }
    permit.release()


# -- the operator's pause --------------------------------------------------------------------------


async def test_a_provider_is_paused_and_resumed(served: Served) -> None:
    """A pause only grows, as ever."""
    now_ms = served.gate.clock.now() * 1000
    got = await ask(served, "POST", "/providers/p/pause", {"ms": 5000})
    assert (got.status, got.json["providerId"], got.json["paused"]) == (200, "p", True)
    assert got.json["pausedUntil"] == pytest.approx(now_ms + 5000, abs=1000)
    shorter = await ask(served, "POST", "/providers/p/pause", {"ms": 1})
    assert shorter.json["pausedUntil"] == got.json["pausedUntil"]
    resumed = await ask(served, "POST", "/providers/p/resume")
    assert (resumed.status, resumed.json) == (200, {"providerId": "p", "paused": False})


async def test_nobody_is_paused_by_a_slip(served: Served) -> None:
    """An unknown provider is said to be one, with those that are known."""
    for verb in ("pause", "resume"):
        status, code, detail = problem(await ask(served, "POST", f"/providers/q/{verb}", {"ms": 5000}))
        assert (status, code, detail) == (404, "not_found", "unknown provider 'q'; known are: p")
    assert "provider:q" not in served.admission.limits()


@pytest.mark.parametrize(
    "body", [b"", {}, {"ms": -1}, {"ms": 1.5}, {"ms": True}, {"ms": 86_400_001}, {"s": 5}]
)
async def test_a_wrong_pause_is_refused(served: Served, body: Any) -> None:
    assert problem(await ask(served, "POST", "/providers/p/pause", body))[:2] == (400, "validation_error")
    assert served.gate.reading("p").paused_until is None


async def test_health_is_told(served: Served) -> None:
    """Also whether new work is taken."""
    assert (await ask(served, "GET", "/healthz")).json == {"status": "ok"}
    assert (await ask(served, "GET", "/readyz")).status == 200
    served.ready = False
    got = await ask(served, "GET", "/readyz")
    assert (got.status, got.json) == (503, {"status": "draining"})


async def test_a_gate_may_stand_alone(served: Served) -> None:
    """Without a fleet around it what is the fleet's is said to be missing, the rest works."""
    async with hosting(open_to_all(ControlRoutes(served.gate, None, lambda: True))) as url:
        got = await call(url, "GET", "/limiter/status")
        assert problem(got)[:2] == (503, "unavailable")
        assert (await call(url, "POST", "/providers/p/resume")).status == 200
