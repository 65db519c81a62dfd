"""The original's seven routes, cell by cell (originals A4.7), and what they do over a real server's death."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateways import Answer, Upstream, answer, call, chat, gateway, hosting, open_to_all, until, upstream
from interlock.http.concurrency import ConcurrencyRoutes
from interlock.provider.gate import ProviderGate
from interlock.stores import MemoryStore
from interlock.testing import VirtualClock
from processes import Running, serve

NO_LIMIT = {"error": "No concurrency limit configured for this provider"}
NOTHING = {"error": "No concurrency configuration for this provider"}
NOT_A_LIMIT = {"error": "Body must be { limit: <positive integer> }"}
NOT_A_COOLDOWN = {"error": "Body must be { cooldownMs: <non-negative integer> }"}
NOT_JSON = {"error": "Invalid JSON body"}
ABSENT = {"error": "Concurrency service not available"}


class Site:
    """The routes over one gate, at a URL."""

    def __init__(self, url: str, gate: ProviderGate | None) -> None:
        self.url = url
        self._gate = gate

    @property
    def gate(self) -> ProviderGate:
        assert self._gate is not None
        return self._gate

    async def ask(self, method: str, path: str, body: Any = None, *headers: tuple[bytes, bytes]) -> Answer:
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        got = await call(self.url, method, f"/concurrency/{path}", headers, raw)
        assert got.header(b"content-type") == b"application/json"
        return got

    async def says(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        got = await self.ask(method, path, body)
        return got.status, got.json


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """A gate with one provider: ``p`` of limit 3."""
    clock = VirtualClock(1_000.0)
    async with ProviderGate(clock=clock, settings=MemoryStore()) as gate:
        await gate.set_limit("p", 3)
        guarded = open_to_all(ConcurrencyRoutes(gate))
        async with hosting(guarded) as url:
            yield Site(url, gate)


@pytest.fixture(params=["absent", "closed"])
async def without(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    """No gate, or one that has been closed."""
    gate = None
    if request.param == "closed":
        gate = ProviderGate(clock=VirtualClock())
        await gate.set_limit("p", 3)
        await gate.aclose()
    async with hosting(open_to_all(ConcurrencyRoutes(gate))) as url:
        yield Site(url, gate)


# -- limits ----------------------------------------------------------------------------------------


async def test_all_limits(site: Site) -> None:
    """By name; a provider that only has a cooldown has none."""
    await site.gate.set_limit("a", 1)
    await site.gate.set_cooldown("c", 1)
    expected = {"limits": [{"providerId": "a", "limit": 1}, {"providerId": "p", "limit": 3}]}
    assert await site.says("GET", "limits") == (200, expected)


async def test_one_limit(site: Site) -> None:
    assert await site.says("GET", "limits/p") == (200, {"providerId": "p", "limit": 3})


async def test_no_limit(site: Site) -> None:
    await site.gate.set_cooldown("c", 1)
    for unknown in ("c", "nobody", ""):
        assert await site.says("GET", f"limits/{unknown}") == (404, NO_LIMIT)


async def test_setting_a_limit(site: Site) -> None:
    """Also of a provider that nobody has heard of; members of no meaning are passed over, as ever."""
    for provider, limit in (("p", 5), ("new", 1), ("a/b", 2), ("ä", 2**53 - 1)):
        path = {"a/b": "a%2Fb", "ä": "%C3%A4"}.get(provider, provider)
        answered = await site.says("PUT", f"limits/{path}", {"limit": limit, "x": None})
        assert answered == (200, {"providerId": provider, "limit": limit})
        assert site.gate.get_limit(provider) == limit


async def test_setting_a_limit_ends_a_reduction(site: Site) -> None:
    """The operator has spoken."""
    site.gate.report_rate_limit("p", 0)
    assert await site.says("PUT", "limits/p", {"limit": 3}) == (200, {"providerId": "p", "limit": 3})
    (status,) = (await site.ask("GET", "status")).json["providers"]
    assert (status["autoReduced"], "notice" in status) == (False, False)


JSON = [
    b"",
    b"{",
    b"limit=3",
    b"{'limit': 3}",
    b"\xff\xfe",
    b'{"limit": NaN}',
    b'{"limit": Infinity}',
    b"[" * 60_000,
]


@pytest.mark.parametrize("body", JSON, ids=lambda body: repr(body[:16]))
@pytest.mark.parametrize("path", ["limits/p", "cooldown/p"])
async def test_a_body_that_is_no_json(site: Site, path: str, body: bytes) -> None:
    """Whatever bytes come in."""
    assert await site.says("PUT", path, body) == (400, NOT_JSON)
    assert site.gate.limits() == {"p": 3}


NUMBERS = [
    "0",
    "-1",
    "2.5",
    "1e400",
    "-1e400",
    "true",
    "null",
    '"3"',
    "[3]",
    "{}",
    "9007199254740992",
]
WHOLE = [("3.0", 3), ("1e2", 100)]
"""As JavaScript reads them."""
NUMBERS += ["9" * 400, "9" * 20_000, "-" + "9" * 20_000]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:12])
async def test_a_limit_that_is_no_positive_integer(site: Site, number: str) -> None:
    """Nothing is rounded, nothing is taken for something else, and no null removes a limit."""
    assert await site.says("PUT", "limits/p", b'{"limit": %b}' % number.encode()) == (400, NOT_A_LIMIT)
    assert site.gate.limits() == {"p": 3}


@pytest.mark.parametrize(("number", "limit"), WHOLE)
async def test_a_limit_however_it_is_written(site: Site, number: str, limit: int) -> None:
    assert await site.says("PUT", "limits/p", b'{"limit": %b}' % number.encode()) == (
        200,
        {"providerId": "p", "limit": limit},
    )


@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b"3", b"null", b'"limit"', b'{"Limit": 3}', b'{"cooldownMs": 3}']
)
async def test_a_body_without_a_limit(site: Site, body: bytes) -> None:
    assert await site.says("PUT", "limits/p", body) == (400, NOT_A_LIMIT)


async def test_a_body_is_bounded(site: Site) -> None:
    """It is not even read to its end; a content type is not looked at, as the original did not."""
    huge = b'{"limit": 4, "x": "%b"}' % (b"x" * 100_000)
    status, said = await site.says("PUT", "limits/p", huge)
    assert (status, set(said)) == (413, {"error"})
    typed = await site.ask("PUT", "limits/p", {"limit": 4}, (b"content-type", b"text/plain"))
    assert typed.status == 200
    marked = b"\xef\xbb\xbf" + b'{"limit": 5}'
    assert await site.says("PUT", "limits/p", marked) == (200, {"providerId": "p", "limit": 5})


async def test_an_impossible_id(site: Site) -> None:
    for path, body in (("limits/", {"limit": 1}), (f"limits/{'x' * 129}", {"limit": 1})):
        status, said = await site.says("PUT", path, body)
        assert (status, set(said)) == (400, {"error"})
        assert "1 to 128 characters" in said["error"]


async def test_removing_a_limit(site: Site) -> None:
    """The cooldown that was set stays; a second time there is none."""
    await site.gate.set_cooldown("p", 0.5)
    assert await site.says("DELETE", "limits/p") == (200, {"ok": True, "providerId": "p"})
    assert site.gate.limits() == {}
    assert await site.says("DELETE", "limits/p") == (404, NO_LIMIT)
    assert await site.says("DELETE", "limits/nobody") == (404, NO_LIMIT)
    assert site.gate.cooldowns() == {"p": 0.5}


# -- cooldowns -------------------------------------------------------------------------------------


async def test_a_cooldown(site: Site) -> None:
    """The one that was set, or the default where there is a limit."""
    assert await site.says("GET", "cooldown/p") == (200, {"providerId": "p", "cooldownMs": 350})
    await site.gate.set_cooldown("c", 1.5)
    assert await site.says("GET", "cooldown/c") == (200, {"providerId": "c", "cooldownMs": 1500})


async def test_no_cooldown(site: Site) -> None:
    """Neither a limit nor a cooldown was set: 404, whatever the original's contract says."""
    assert await site.says("GET", "cooldown/nobody") == (404, NOTHING)


@pytest.mark.parametrize("cooldown_ms", [0, 1, 350, 86_400_000])
async def test_setting_a_cooldown(site: Site, cooldown_ms: int) -> None:
    """0 is one, too; it needs no limit."""
    for provider in ("p", "new"):
        answered = await site.says("PUT", f"cooldown/{provider}", {"cooldownMs": cooldown_ms})
        assert answered == (200, {"providerId": provider, "cooldownMs": cooldown_ms})
        assert site.gate.get_cooldown(provider) == cooldown_ms / 1000


@pytest.mark.parametrize("number", [one for one in NUMBERS if one != "0"], ids=lambda number: number[:12])
async def test_a_cooldown_that_is_no_whole_number(site: Site, number: str) -> None:
    body = b'{"cooldownMs": %b}' % number.encode()
    assert await site.says("PUT", "cooldown/p", body) == (400, NOT_A_COOLDOWN)
    assert site.gate.get_cooldown("p") == 0.35


async def test_a_cooldown_of_more_than_a_day(site: Site) -> None:
    """Is refused by the gate, in the same shape."""
    status, said = await site.says("PUT", "cooldown/p", {"cooldownMs": 86_400_001})
    assert (status, set(said)) == (400, {"error"})


# -- status ----------------------------------------------------------------------------------------


async def test_a_quiet_status_has_the_original_s_keys(site: Site) -> None:
    """Absent keys are absent, not null; ours follow."""
    assert await site.says("GET", "status") == (
        200,
        {
            "providers": [
                {
                    "providerId": "p",
                    "limit": 3,
                    "inFlight": 0,
                    "queued": 0,
                    "paused": False,
                    "cooldownMs": 350,
                    "autoReduced": False,
                    "configuredLimit": 3,
                    "cooling": 0,
                }
            ]
        },
    )


async def test_a_busy_status(site: Site) -> None:
    """In flight, reduced and paused; times in milliseconds since the epoch."""
    async with site.gate.acquire("p", "conv-1"):
        site.gate.report_rate_limit("p", 30)
        (status,) = (await site.ask("GET", "status")).json["providers"]
    assert status == {
        "providerId": "p",
        "limit": 2,
        "inFlight": 1,
        "queued": 0,
        "paused": True,
        "pausedUntil": 1_030_000,
        "cooldownMs": 350,
        "autoReduced": True,
        "autoReducedFrom": 3,
        "notice": "Concurrency limit auto-reduced to 2 after a 429 — restore manually when ready.",
        "configuredLimit": 3,
        "cooling": 0,
        "reason": "concurrency",
    }


# -- without the service ---------------------------------------------------------------------------


async def test_lists_are_empty_without_the_service(without: Site) -> None:
    assert await without.says("GET", "limits") == (200, {"limits": []})
    assert await without.says("GET", "status") == (200, {"providers": []})


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "limits/p", None),
        ("PUT", "limits/p", {"limit": 3}),
        ("PUT", "limits/p", b"{"),
        ("DELETE", "limits/p", None),
        ("GET", "cooldown/p", None),
        ("PUT", "cooldown/p", {"cooldownMs": 3}),
    ],
)
async def test_the_rest_says_so_without_the_service(without: Site, method: str, path: str, body: Any) -> None:
    assert await without.says(method, path, body) == (503, ABSENT)


async def test_a_store_that_fails_is_told(site: Site) -> None:
    """In the original's shape; the change is in force, but not durable."""

    class Failing(MemoryStore):
        async def set(self, key: str, value: str) -> None:
            raise OSError("no space left")

    async with (
        ProviderGate(clock=VirtualClock(), settings=Failing()) as gate,
        hosting(open_to_all(ConcurrencyRoutes(gate))) as url,
    ):
        status, said = await Site(url, gate).says("PUT", "limits/p", {"limit": 3})
    assert status == 507
    assert "no space left" in said["error"]


# -- who may ask -----------------------------------------------------------------------------------


async def test_the_original_s_front_end_needs_no_header_of_ours(site: Site) -> None:
    """Nothing but what a browser sends by itself from a page of ours."""
    ours = [(b"origin", site.url.encode()), (b"sec-fetch-site", b"same-origin")]
    got = await site.ask("PUT", "limits/p", {"limit": 4}, *ours, (b"content-type", b"application/json"))
    assert (got.status, got.json) == (200, {"providerId": "p", "limit": 4})


async def test_a_foreign_page_changes_nothing(site: Site) -> None:
    for foreign in ((b"origin", b"http://evil.example"), (b"sec-fetch-site", b"cross-site")):
        got = await call(site.url, "DELETE", "/concurrency/limits/p", [foreign])
        assert got.status == 403
    assert site.gate.limits() == {"p": 3}


async def test_they_are_part_of_the_server() -> None:
    """Beside the gateway, whose own answers they do not touch."""
    async with upstream() as provider, gateway(provider.url, limit=2) as served:
        got = await call(served.url, "GET", "/concurrency/limits/p")
        assert (got.status, got.json) == (200, {"providerId": "p", "limit": 2})
        assert (await call(served.url, "POST", "/concurrency/limits/p")).status == 405


# -- a real process that dies ----------------------------------------------------------------------


def config(provider: Upstream, limit: int) -> str:
    return (
        'store = "sqlite:///interlock.db"\n[providers.p]\n'
        f'base_url = "{provider.url}"\ncooldown = "0s"\nlimit = {limit}\n'
    )


async def said(server: Running, path: str) -> Any:
    return (await call(server.url, "GET", f"/concurrency/{path}")).json


async def test_settings_survive_a_kill(tmp_path: Path) -> None:
    """What was answered is durable: limits, cooldowns and removals, each over what the file says."""
    async with upstream() as provider:
        async with serve(tmp_path, config(provider, 5)) as server:
            for method, path, body in (
                ("PUT", "limits/p", {"limit": 2}),
                ("PUT", "limits/q", {"limit": 7}),
                ("PUT", "limits/gone", {"limit": 7}),
                ("PUT", "cooldown/p", {"cooldownMs": 1234}),
                ("DELETE", "limits/gone", None),
            ):
                raw = b"" if body is None else json.dumps(body).encode()
                assert (await call(server.url, method, f"/concurrency/{path}", [], raw)).status == 200
            server.process.kill()
            await server.ended()
        async with serve(tmp_path, config(provider, 5)) as server:
            limits = [{"providerId": "p", "limit": 2}, {"providerId": "q", "limit": 7}]
            assert await said(server, "limits") == {"limits": limits}
            assert await said(server, "cooldown/p") == {"providerId": "p", "cooldownMs": 1234}


async def test_a_removed_limit_of_the_file_stays_removed(tmp_path: Path) -> None:
    """It was done at run time; the file still says what it said then."""
    async with upstream() as provider:
        async with serve(tmp_path, config(provider, 5)) as server:
            assert (await call(server.url, "DELETE", "/concurrency/limits/p")).status == 200
            server.process.kill()
            await server.ended()
        async with serve(tmp_path, config(provider, 5)) as server:
            assert await said(server, "limits") == {"limits": []}


async def test_a_reduction_survives_a_kill(tmp_path: Path) -> None:
    """The limit in force, what it was before, and how that is said."""
    body = json.dumps({"error": {"code": "concurrency_limit_exceeded"}}).encode()
    async with upstream() as provider:
        async with serve(tmp_path, config(provider, 3)) as server:
            raised = json.dumps({"limit": 6}).encode()
            assert (await call(server.url, "PUT", "/concurrency/limits/p", [], raised)).status == 200
            provider.will_answer(answer(429, body, (b"retry-after", b"0")))
            hurry = [(b"x-interlock-timeout-ms", b"0")]
            await call(server.url, "POST", "/gateway/p/v1/chat/completions", hurry, chat())
            database = tmp_path / "interlock.db-wal"
            await until(lambda: b'"effective":5' in database.read_bytes())
            server.process.kill()
            await server.ended()
        async with serve(tmp_path, config(provider, 3)) as server:
            (status,) = (await said(server, "status"))["providers"]
            assert (status["limit"], status["configuredLimit"], status["autoReducedFrom"]) == (5, 6, 6)
            assert status["notice"].startswith("Concurrency limit auto-reduced to 5 after a 429")


async def test_the_file_counts_again_once_it_says_something_new(tmp_path: Path) -> None:
    """Until then what was set at run time does, over any number of restarts."""
    async with upstream() as provider:
        for limit, expected in ((5, 2), (5, 2), (9, 9), (9, 9)):
            async with serve(tmp_path, config(provider, limit)) as server:
                if not (tmp_path / "set").exists():
                    raw = b'{"limit": 2}'
                    assert (await call(server.url, "PUT", "/concurrency/limits/p", [], raw)).status == 200
                    (tmp_path / "set").touch()
                assert await said(server, "limits/p") == {"providerId": "p", "limit": expected}
