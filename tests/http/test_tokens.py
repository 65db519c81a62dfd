"""Tokens: how they are made, kept, shown, revoked, and what becomes of those who guess."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from contextlib import AsyncExitStack
from hashlib import sha256
from itertools import pairwise
from typing import Any

import pytest
from websockets.asyncio.client import connect

from admission.harnesses import hosted
from gateways import OK, Answer, Caller, Header, caller, until, upstream
from interlock.errors import InvalidOperation, StoreError, ValidationError
from interlock.http.access.book import MOST_TOKENS, TokenBook, digest_of
from interlock.http.access.failures import MOST, Failures
from interlock.http.problems import NotFound
from interlock.secret import Secret
from interlock.stores import MemoryStore
from interlock.testing import VirtualClock
from served_sessions import JSON
from served_tokens import Door, door

SHORT = "pa55word"
LONG = "c" * 32


class Failing(MemoryStore):
    """A store that fails, or hangs until it is told not to, when it is written."""

    broken = False
    hanging: asyncio.Event | None = None

    async def _write(self) -> None:
        if self.hanging is not None:
            await self.hanging.wait()
        if self.broken:
            raise StoreError("the disk is full")

    async def set(self, key: str, value: str) -> None:
        await self._write()
        await super().set(key, value)

    async def delete(self, key: str) -> None:
        await self._write()
        await super().delete(key)


def book(settings: MemoryStore | None = None, configured: str | None = None) -> TokenBook:
    clock = VirtualClock(1_000.0)
    return TokenBook(settings or MemoryStore(), clock, None if configured is None else Secret(configured))


def opens(tokens: TokenBook, *shown: str | Secret) -> set[str]:
    """What these tokens together may do."""
    texts = [one.reveal() if isinstance(one, Secret) else one for one in shown]
    caller_ = tokens.caller([digest_of(text) for text in texts])
    return set() if caller_ is None else set(caller_.scopes)


# -- made and kept -------------------------------------------------------------------------------------------


async def test_a_token_is_256_random_bits() -> None:
    secrets = [(await book().create("a", ("read",)))[1].reveal() for _ in range(20)]
    assert len(set(secrets)) == 20
    for secret in secrets:
        assert len(base64.urlsafe_b64decode(secret.removeprefix("il_") + "=")) == 32


async def test_only_its_hash_is_kept() -> None:
    """Under its name, with its scopes and its times in milliseconds."""
    settings = MemoryStore()
    _, secret = await book(settings).create("ci", ("submit", "gateway", "submit"), expires_in=90.0)
    kept = await settings.items()
    assert list(kept) == ["token:ci"]
    assert json.loads(kept["token:ci"]) == {
        "hash": sha256(secret.reveal().encode()).hexdigest(),
        "scopes": ["gateway", "submit"],
        "created": 1_000_000,
        "expires": 1_090_000,
    }


async def test_it_counts_after_a_restart() -> None:
    settings = MemoryStore()
    first = book(settings)
    _, secret = await first.create("ci", ("read",))
    await first.create("other", ("admin",))
    await first.revoke("other")
    again = book(settings)
    assert not again.required
    await again.load()
    assert opens(again, secret) == {"read"}
    assert [token.name for token in again.tokens()] == ["ci"]


@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", "a" * 65, "ä", "a\n", "../a"])
async def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ValidationError, match="name: "):
        await book().create(name, ("read",))


@pytest.mark.parametrize("scopes", [(), ("root",), ("read", "Admin"), ("open",), ("",)])
async def test_scopes_that_cannot_be(scopes: tuple[str, ...]) -> None:
    tokens = book()
    with pytest.raises(ValidationError, match="one or more of gateway, submit, read, admin"):
        await tokens.create("a", scopes)
    assert not tokens.required


async def test_a_name_is_taken_once() -> None:
    """Also by two who ask at once; the first one's token is the one that opens."""
    settings = Failing()
    settings.hanging = asyncio.Event()
    tokens = book(settings)
    first = asyncio.create_task(tokens.create("a", ("read",)))
    await asyncio.sleep(0)
    async with asyncio.timeout(1):
        with pytest.raises(InvalidOperation, match="'a' already"):
            await tokens.create("a", ("admin",))
    settings.hanging.set()
    assert opens(tokens, (await first)[1]) == {"read"}


async def test_there_are_no_more_than_can_be_compared() -> None:
    tokens = book()
    for number in range(MOST_TOKENS):
        await tokens.create(f"t{number}", ("read",))
    with pytest.raises(InvalidOperation, match="revoke some"):
        await tokens.create("one-more", ("read",))


async def test_what_was_not_kept_is_not_there() -> None:
    """A failing store, and a caller that goes away: the server is as open or closed as before."""
    settings = Failing()
    tokens = book(settings)
    settings.broken = True
    with pytest.raises(StoreError):
        await tokens.create("a", ("read",))
    assert not tokens.required
    settings.broken, settings.hanging = False, asyncio.Event()
    making = asyncio.create_task(tokens.create("a", ("read",)))
    await asyncio.sleep(0)
    assert tokens.required, "closed before anybody can have it"
    making.cancel()
    await asyncio.wait((making,))
    assert not tokens.required


async def test_what_was_not_revoked_is_still_there() -> None:
    """Where the store failed; where nobody knows whether it did, nothing is open."""
    settings = Failing()
    tokens = book(settings)
    _, secret = await tokens.create("a", ("read",))
    settings.broken = True
    with pytest.raises(StoreError):
        await tokens.revoke("a")
    assert opens(tokens, secret) == {"read"}
    settings.hanging = asyncio.Event()
    revoking = asyncio.create_task(tokens.revoke("a"))
    await asyncio.sleep(0)
    revoking.cancel()
    await asyncio.wait((revoking,))
    assert opens(tokens, secret) == set()


@pytest.mark.parametrize(
    "kept",
    [
        "",
        "null",
        "{}",
        '{"hash": "00", "scopes": ["admin"], "created": 1}',
        '{"hash": "%s", "scopes": ["root"], "created": 1}' % ("0" * 64),
        '{"hash": "%s", "scopes": ["admin"], "created": "1"}' % ("0" * 64),
    ],
)
async def test_a_damaged_entry_opens_nothing(kept: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nor does it open the server to everybody; it can be revoked."""
    settings = MemoryStore()
    await settings.set("token:a", kept)
    tokens = book(settings)
    await tokens.load()
    assert tokens.required
    assert opens(tokens, "", "a", kept) == set()
    assert "token 'a' is damaged" in caplog.text
    await tokens.revoke("a")
    assert (tokens.required, await settings.items()) == (False, {})


async def test_an_expired_token_opens_nothing_and_is_still_asked_for() -> None:
    tokens = book()
    _, secret = await tokens.create("a", ("admin",), expires_in=60.0)
    assert isinstance(tokens.clock, VirtualClock)
    await tokens.clock.advance(59.9)
    assert opens(tokens, secret) == {"admin"}
    await tokens.clock.advance(0.1)
    assert opens(tokens, secret) == set()
    assert tokens.required
    assert not tokens.has_admin


async def test_every_token_is_compared_with_every_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many comparisons of as many bytes, whichever is the right one, and if none is."""
    tokens = book(configured=SHORT)
    secrets = [(await tokens.create(f"t{n}", ("read",)))[1].reveal() for n in range(5)]
    compared: list[tuple[int, int]] = []
    real = __import__("hmac").compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return bool(real(one, other))

    monkeypatch.setattr("interlock.http.access.book.hmac.compare_digest", counting)
    seen = []
    for shown in (*secrets, SHORT, "wrong", ""):
        compared.clear()
        opens(tokens, shown, "and another")
        seen.append(list(compared))
    assert seen[0] == [(32, 32)] * 12
    assert all(one == other for one, other in pairwise(seen))


# -- shown ---------------------------------------------------------------------------------------------------


async def test_they_are_made_listed_and_revoked_over_http() -> None:
    """From the first one on, a token is asked for; a revoked one opens nothing from its next request."""
    async with door() as server:
        assert (await server.ask("GET", "/tokens")).json == {"tokens": [], "next": None}
        made = await server.ask("POST", "/tokens", None, {"name": "root", "scopes": ["admin"]}, JSON)
        assert made.status == 201
        assert made.header(b"cache-control") == b"no-store"
        root = made.json["token"]
        assert (made.json["name"], made.json["expiresAt"], made.json["adminLeft"]) == ("root", None, True)
        assert (await server.ask("GET", "/tokens")).status == 401
        body = {"name": "ci", "scopes": ["read", "gateway"], "expiresInMs": 5000}
        ci = (await server.ask("POST", "/tokens", root, body, JSON)).json["token"]
        listed = await server.ask("GET", "/tokens", root)
        start = 1_000_000_000
        assert listed.json["tokens"] == [
            {"name": "ci", "scopes": ["gateway", "read"], "createdAt": start, "expiresAt": start + 5000},
            {"name": "root", "scopes": ["admin"], "createdAt": start, "expiresAt": None},
        ]
        assert (await server.ask("GET", "/limits", ci)).status == 200
        gone = await server.ask("DELETE", "/tokens/ci", root)
        assert gone.json == {"name": "ci", "revoked": True, "adminLeft": True}
        assert (await server.ask("GET", "/limits", ci)).status == 401
        again = await server.ask("DELETE", "/tokens/ci", root)
        assert (again.status, again.json["code"]) == (404, "not_found")
        assert (await server.ask("DELETE", "/tokens/root", root)).status == 200
        assert (await server.ask("GET", "/tokens")).status == 200, "nobody has a token: nobody is asked"


async def test_whether_anybody_can_still_make_tokens_is_told() -> None:
    async with door() as server:
        body = {"name": "ci", "scopes": ["gateway"]}
        assert (await server.ask("POST", "/tokens", None, body, JSON)).json["adminLeft"] is False
    async with door(LONG) as server:
        assert (await server.ask("POST", "/tokens", LONG, body, JSON)).json["adminLeft"] is True


WRONG: list[tuple[Any, int]] = [
    ({"name": "a"}, 400),
    ({"name": "a", "scopes": []}, 400),
    ({"name": "a", "scopes": ["root"]}, 400),
    ({"name": "a", "scopes": ["read"] * 5}, 400),
    ({"name": "a b", "scopes": ["read"]}, 400),
    ({"name": "a", "scopes": ["read"], "expiresInMs": 0}, 400),
    ({"name": "a", "scopes": ["read"], "expiresInMs": 1e30}, 400),
    ({"name": "a", "scopes": ["read"], "hash": "0" * 64}, 400),
    ({"name": "taken", "scopes": ["read"]}, 409),
]


@pytest.mark.parametrize(("body", "status"), WRONG)
async def test_what_cannot_be_made(body: Any, status: int) -> None:
    async with door(LONG) as server:
        await server.token("read", name="taken")
        answer = await server.ask("POST", "/tokens", LONG, body, JSON)
        assert answer.status == status, answer
        assert [token.name for token in server.book.tokens()] == ["taken"]


async def test_no_token_of_ours_reaches_the_provider() -> None:
    """Wherever it stands, whether it was the one that opened, and also one that has expired."""
    async with upstream() as provider, door(LONG, provider=provider.url) as server:
        right = await server.token("gateway")
        old = await server.token("read", name="old", expires_in=1.0)
        await server.clock.advance(2.0)
        cases: list[list[Header]] = [
            [(b"authorization", b"Bearer " + right.encode()), (b"x-goog-api-key", b"callers")],
            [(b"x-api-key", right.encode()), (b"authorization", b"Bearer callers")],
            [(b"x-interlock-token", right.encode()), (b"x-api-key", b"callers")],
            [
                (b"x-interlock-token", right.encode()),
                (b"authorization", b"Bearer " + old.encode()),
                (b"x-api-key", LONG.encode()),
                (b"api-key", b"callers"),
            ],
        ]
        for fields in cases:
            provider.will_answer(OK)
            answer = await server.ask("POST", "/gateway/p/v1/models", None, {}, *fields)
            assert answer.status == 200
            head = (await provider.next()).head
            assert b"callers" in head
            assert not [one for one in (right, old, LONG) if one.encode() in head]


# -- an end to what lasts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["revoking", "expiry"])
async def test_a_stream_ends_with_its_token(by: str) -> None:
    """Events are read no longer by who may not; other readers go on."""
    async with door(LONG) as server, caller(server.url) as reading, caller(server.url) as other:
        reader = await server.token("read", expires_in=30.0)
        keeps = await server.token("read", name="keeps")
        await server.ask("POST", "/sessions", LONG, {"id": "s1", "agent": "worker"}, JSON)
        for client, token in ((reading, reader), (other, keeps)):
            fields = [(b"authorization", b"Bearer " + token.encode()), (b"accept", b"text/event-stream")]
            client.ask("GET", "/sessions/s1/events", fields)
            assert (await client.head())[0] == 200
        await (server.book.revoke("read") if by == "revoking" else server.clock.advance(30.0))
        async with asyncio.timeout(1):
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await to_the_end(reading)
        await server.ask("POST", "/sessions/s1/runs", LONG, {"input": {"say": "hi"}}, JSON)
        async with asyncio.timeout(5):
            while b"run_completed" not in await other.chunk():
                pass
    assert server.book._ends == {}


async def to_the_end(stream: Caller) -> None:
    while await stream.chunk():
        pass


async def test_a_poll_ends_with_its_token() -> None:
    async with door(LONG) as server, caller(server.url) as waiting:
        reader = await server.token("read")
        await server.ask("POST", "/sessions", LONG, {"id": "s1", "agent": "worker"}, JSON)
        submitted = await server.ask("POST", "/sessions/s1/runs", LONG, {"input": {"do": "hold"}}, JSON)
        path = f"/runs/{submitted.json['runId']}/wait"
        waiting.ask("GET", path, [(b"authorization", b"Bearer " + reader.encode())])
        await until(lambda: server.book._ends)
        await server.book.revoke("read")
        async with asyncio.timeout(1):
            answer = await waiting.answer()
        assert (answer.status, answer.json["code"]) == (401, "unauthorized")


async def test_a_connection_of_permits_ends_with_its_token() -> None:
    """What waits on it is withdrawn."""
    tokens = book()
    _, secret = await tokens.create("a", ("submit",))
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(hosted(book=tokens))
        fields = {"authorization": f"Bearer {secret.reveal()}"}
        address = server.url.replace("http", "ws") + "/permits/connect"
        client = await stack.enter_async_context(connect(address, additional_headers=fields, proxy=None))
        await until(lambda: tokens._ends)
        await tokens.revoke("a")
        async with asyncio.timeout(1):
            await client.wait_closed()
        assert client.close_code == 1008
        await until(lambda: not tokens._ends)


# -- guessing ------------------------------------------------------------------------------------------------


async def guess(server: Door, token: str | None = "wrong") -> Answer:
    return await server.ask("GET", "/limits", token)


async def test_who_guesses_has_to_wait() -> None:
    """Ten wrong tokens in a minute: nothing is heard for the next."""
    async with door(SHORT) as server:
        for n in range(MOST):
            assert (await guess(server, f"guess-{n}")).status == 401
        refused = await guess(server)
        assert (refused.status, refused.json["code"]) == (429, "too_many_failures")
        assert 60 <= int(refused.header(b"retry-after") or 0) <= 72
        assert (await guess(server, SHORT)).status == 429, "the right guess is not told from a wrong one"
        assert (await guess(server, None)).status == 429
        assert (await server.ask("GET", "/healthz")).status == 200
        await server.clock.advance(59.0)
        assert (await guess(server, SHORT)).header(b"retry-after") in (b"1", b"2")
        await server.clock.advance(1.0)
        assert (await guess(server, SHORT)).status == 200
        assert (await guess(server)).status == 401


async def test_what_nobody_guesses_opens_meanwhile() -> None:
    """One client with a wrong token does not stop the others on its machine."""
    async with door(LONG) as server:
        stored = await server.token("read")
        for _ in range(MOST):
            await guess(server)
        assert (await guess(server)).status == 429
        assert (await guess(server, stored)).status == 200
        assert (await guess(server, LONG)).status == 200


async def test_who_shows_nothing_does_not_guess() -> None:
    async with door(SHORT) as server:
        for _ in range(MOST + 1):
            assert (await guess(server, None)).status == 401
        assert (await guess(server, SHORT)).status == 200


async def test_old_failures_do_not_count() -> None:
    """A minute after the first one, counting begins anew."""
    clock = VirtualClock()
    failures = Failures(clock)
    for _ in range(3):
        for _ in range(MOST - 1):
            failures.note("10.0.0.1")
        assert failures.blocked_for("10.0.0.1") == 0
        await clock.advance(60.0)
    for _ in range(MOST):
        failures.note("10.0.0.1")
    assert failures.blocked_for("10.0.0.1") == 60.0
    await clock.advance(30.0)
    assert failures.blocked_for("10.0.0.1") == 30.0
    assert failures.blocked_for("10.0.0.2") == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("fe80::1%eth0", "fe80::1%eth1", True),
        ("", "", True),
    ],
)
def test_what_is_one_address(one: str, other: str, same: bool) -> None:
    failures = Failures(VirtualClock())
    for _ in range(MOST):
        failures.note(one)
    assert (failures.blocked_for(other) > 0) == same


def test_many_addresses_take_no_more_memory() -> None:
    """The ones that failed last are remembered."""
    failures = Failures(VirtualClock(), most_addresses=100)
    for n in range(2_000):
        failures.note(f"10.0.{n >> 8}.{n & 255}")
        failures.note("192.168.0.1")
        assert (failures.blocked_for("192.168.0.1") > 0) == (n >= MOST - 1)
    assert len(failures) == 100


# -- nothing shows -------------------------------------------------------------------------------------------


async def test_no_token_shows(caplog: pytest.LogCaptureFixture) -> None:
    """In no answer but the one that made it, no log, no error and no representation."""
    caplog.set_level(logging.DEBUG)
    heard: list[str] = []
    async with door(LONG) as server:
        made = await server.ask("POST", "/tokens", LONG, {"name": "a", "scopes": ["read", "gateway"]}, JSON)
        canary = made.json["token"]
        digest = sha256(canary.encode())
        heard += [repr(server.book), repr(server.book.tokens()), str(server.book.tokens()[0])]
        for method, path in (
            ("GET", "/tokens"),
            ("GET", "/limits"),
            ("PUT", "/limits/tools"),
            ("GET", "/nothing"),
            ("POST", "/gateway/p/v1/models"),
            ("POST", "/gateway/nobody/v1/models"),
            ("DELETE", "/tokens/nothing"),
        ):
            for token in (canary, canary + "x", LONG):
                heard.append(str(await server.ask(method, path, token, {})))
        taken = {"name": "a", "scopes": ["read"]}
        heard.append(str(await server.ask("POST", "/tokens", LONG, taken, JSON)))
        await server.book.revoke("a")
        with pytest.raises(NotFound) as gone:
            await server.book.revoke("a")
        heard.append(repr(gone.value))
    heard.append(caplog.text)
    for secret in (canary, digest.hexdigest(), repr(digest.digest()), LONG):
        assert [one for one in heard if secret in one] == []
