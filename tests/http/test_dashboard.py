"""The dashboard's own routes: a shell without data, files from nowhere else, and pages as streams of HTML."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import interlock.http.dashboard as package
from dashboards import Board, Crowd, dashboard
from gateways import call, caller
from interlock.http.dashboard.assets import FILES
from interlock.http.dashboard.fleet import MOST_QUEUE, PAGE
from interlock.http.dashboard.slots import MOST_CELLS, slots
from interlock.testing import VirtualClock
from interlock.testing.virtual_time import idle
from served_tokens import bearer

STATIC = Path(package.__file__).parent / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


class Reader:
    """One stream of the dashboard, event by event."""

    def __init__(self, caller: Any) -> None:
        self.caller = caller
        self._text = ""

    async def next(self) -> tuple[str, str]:
        """The name of the next event, and its HTML."""
        async with asyncio.timeout(10):
            while "\n\n" not in self._text:
                piece = await self.caller.chunk()
                assert piece, "the stream has ended"
                self._text += piece.decode()
        block, _, self._text = self._text.partition("\n\n")
        lines = block.split("\n")
        name = next((line[7:] for line in lines if line.startswith("event: ")), ":")
        return name, "\n".join(line[6:] for line in lines if line.startswith("data: "))


@asynccontextmanager
async def reading(url: str, query: str = "", *headers: Any) -> AsyncIterator[Reader]:
    async with caller(url) as one:
        one.writer.transport.resume_reading()
        one.ask("GET", f"/dashboard/stream?{query}", [(b"accept", b"text/event-stream"), *headers])
        status, fields = await one.head()
        assert (status, dict(fields)[b"content-type"]) == (200, b"text/event-stream")
        yield Reader(one)


class Tags(HTMLParser):
    """What a browser would make of a piece of HTML: its tags, the names of all attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


# -- the shell -----------------------------------------------------------------------------------------------


async def test_the_shell_is_open_and_holds_no_data() -> None:
    """The same bytes for everybody, with a policy that lets nothing in from anywhere else, and no cookie."""
    async with dashboard() as board:
        bare = await call(board.url, "GET", "/")
        await board.gate.set_limit("secret-provider", 3)
        await board.book.create("reader", ("read",))
        answer = await call(board.url, "GET", "/")
        assert (answer.status, answer.body) == (200, bare.body)
        fields = dict(answer.headers)
        assert fields[b"content-security-policy"].decode() == POLICY
        assert fields[b"x-content-type-options"] == b"nosniff"
        assert fields[b"referrer-policy"] == b"no-referrer"
        assert b"set-cookie" not in fields
        assert (await call(board.url, "HEAD", "/")).status == 200
        seen = Tags(answer.body.decode())
        assert not seen.attributes & {"style", "onclick", "onload", "onsubmit"}
        assert "style" not in seen.tags
        assert re.search(r"<noscript>.*needs JavaScript.*</noscript>", answer.body.decode(), re.DOTALL)
        assert re.findall(r"(?:src|href)=\"(?!#|/static/)[^\"]*\"", answer.body.decode()) == []
        assert re.search(r"<script(?![^>]*\ssrc=)", answer.body.decode()) is None


async def test_files_are_this_server_s_own_and_kept_by_their_content() -> None:
    """All that the shell asks for is there; another content has another address; nothing else is served."""
    async with dashboard() as board:
        await board.book.create("reader", ("read",))
        shell = (await call(board.url, "GET", "/")).body.decode()
        asked = re.findall(r"/static/([^\"?]+)\?v=([0-9a-f]+)", shell)
        assert {name for name, _ in asked} == set(FILES)
        for name, version in asked:
            answer = await call(board.url, "GET", f"/static/{name}?v={version}")
            assert (answer.status, answer.header(b"content-type")) == (200, FILES[name].encode())
            assert answer.body == (STATIC / name).read_bytes()
            assert b"immutable" in (answer.header(b"cache-control") or b"")
            assert answer.header(b"x-content-type-options") == b"nosniff"
            stale = await call(board.url, "GET", f"/static/{name}?v=0")
            assert stale.header(b"cache-control") == b"no-cache"
        for path in ("/static/vendor/vendor.json", "/static/../routes.py", "/static/", "/static/nothing.js"):
            assert (await call(board.url, "GET", path)).status == 401


def test_what_is_vendored_is_what_it_says() -> None:
    """Every file under its hash, with its licence, and no file more."""
    vendor = STATIC / "vendor"
    noted = {"vendor.json"}
    for package_ in json.loads((vendor / "vendor.json").read_text(encoding="utf-8")):
        assert package_["version"]
        assert package_["license"] in ("MIT", "0BSD")
        assert (vendor / package_["licenseFile"]).stat().st_size > 200
        for file in package_["files"]:
            noted.add(file["file"])
            assert sha256((vendor / file["file"]).read_bytes()).hexdigest() == file["sha256"], file["file"]
    assert {path.name for path in vendor.iterdir()} == noted


def test_our_own_scripts_and_styles_need_nobody() -> None:
    """No address of another server, nothing that is made of text at run time."""
    for name in ("dashboard.css", "dashboard.js", "charts.js", "icon.svg"):
        text = (STATIC / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert re.findall(r"https?://|@import|url\(", text) == [], name
        assert re.findall(r"innerHTML\b(?!\")|outerHTML|insertAdjacentHTML|\beval\(|new Function", text) == []


# -- the stream ----------------------------------------------------------------------------------------------


async def test_first_the_page_then_what_has_changed() -> None:
    """A patch has the row that changed and the head, nothing of what stayed; while time passes, nothing."""
    clock = VirtualClock(1_000.0)
    async with dashboard({"streams": 4}, clock=clock) as board, Crowd(board.gate) as crowd:
        for name in ("one", "two"):
            await board.gate.set_limit(name, 1)
        async with reading(board.url) as stream:
            name, html = await stream.next()
            assert name == "view"
            assert Tags(html).tags.count("article") == 2 + 5
            crowd.ask("one", "a", "b")
            await idle()
            await clock.advance(0.25)
            name, html = await stream.next()
            assert name == "patch"
            assert re.findall(r'data-name="([^"]*)"', html) == ["provider:one"]
            assert Tags(html).tags.count("article") == 1
            assert 'hx-target="#pulse"' in html
            assert 'data-since="1000000"' in html
            await clock.advance(5.0)
            await board.gate.set_limit("three", 1)
            await clock.advance(0.25)
            name, html = await stream.next()
            assert re.findall(r'data-name="([^"]*)"', html) == [
                "provider:one",
                "provider:three",
                "provider:two",
            ]
            assert 'hx-target="#gates"' in html


async def test_a_silent_page_pings_and_ends_with_its_token() -> None:
    """A comment every 15 seconds, so that its reader knows it lives; cut off when its token is revoked."""
    clock = VirtualClock(1_000.0)
    async with dashboard(clock=clock) as board:
        _, secret = await board.book.create("reader", ("read",))
        async with reading(board.url, "", bearer(secret)) as stream:
            assert (await stream.next())[0] == "view"
            for _ in range(2):
                for _ in range(10):
                    await clock.advance(1.5)
                assert (await stream.next()) == (":", "")
            await board.book.revoke("reader")
            with pytest.raises(asyncio.IncompleteReadError):
                await stream.next()


async def test_ten_thousand_who_wait_cost_what_is_seen() -> None:
    """The page and each patch stay small; so does the open queue: the first of them, and a count."""
    clock = VirtualClock(1_000.0)
    async with dashboard(clock=clock) as board, Crowd(board.gate) as crowd:
        await board.gate.set_limit("p", 1)
        crowd.ask("p", "holder", *(f"agent-{number:05}" for number in range(10_000)))
        await idle()
        while board.gate.reading("p").waiting < 10_000:
            await idle()
        async with reading(board.url) as closed, reading(board.url, "view=fleet&open=provider:p") as opened:
            _, page = await closed.next()
            assert "agent-" not in page
            assert len(page) < 15_000
            _, page = await opened.next()
            assert re.findall(r"agent-\d+", page) == [f"agent-{number:05}" for number in range(PAGE)]
            assert "9950 more behind them" in page
            assert len(page) < 40_000
            for round_ in range(3):
                crowd.ends[round_].set()
                await idle()
                await clock.advance(2.0)  # a long queue is looked at once a second
                name, patch = await closed.next()
                assert (name, len(patch) < 4_000) == ("patch", True)
                patch = ""
                while f"agent-{PAGE + round_:05}" not in patch:
                    name, patch = await opened.next()
                    assert (name, len(patch) < 30_000) == ("patch", True)
        async with reading(board.url, f"view=fleet&open=provider:p&n={10**9}") as most:
            _, page = await most.next()
            assert len(re.findall(r"agent-\d+", page)) == MOST_QUEUE + 1  # with the one who holds


HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</bdi></td></table><hx-partial hx-target=body>gone</hx-partial>",
    "x" * 10_000,
    "abc\u202egnp.exe\u2066\u200b\x00\x1b[2J",
    "line\r\n\r\nevent: view\ndata: gone\n\nand more",
    "{{ 7 * 7 }}{% raw %}",
)


async def test_hostile_names_are_text_and_nothing_else() -> None:
    """Whatever callers are called: no tag, no event, no invisible character comes of it, and nothing long."""
    clock = VirtualClock(1_000.0)
    async with dashboard(clock=clock) as board, Crowd(board.gate) as crowd:
        await board.gate.set_limit("p", 3)
        crowd.ask("p", *HOSTILE)
        for name in HOSTILE:
            board.admission.configure(name[:200], 1)
        await idle()
        html = ""
        async with reading(board.url, "view=fleet&open=provider:p") as stream:
            name, html = await stream.next()
            assert name == "view"
        for view in ("view=ledger", "view=ledger&limit=%3Cb%3E", "view=sessions&id=%3Cscript%3E"):
            async with reading(board.url, view) as stream:
                html += (await stream.next())[1]
        seen = Tags(html)
        assert {"script", "img", "iframe"} & set(seen.tags) == set()
        assert {name for name in seen.attributes if name.startswith("on") or name == "style"} == set()
        assert html.count("<hx-partial") == 4  # the heads
        assert "49" not in re.findall(r"<bdi>([^<]*)</bdi>", html)
        assert max(len(text) for text in re.findall(r">([^<]*)<", html)) < 400
        assert re.findall("[\u202a-\u202e\u2066-\u2069\u200b\x00\x1b\r]", seen.text) == []
        assert "alert(1)" in seen.text
        assert len(html) < 60_000


async def test_sessions_that_are_named_in_bad_faith() -> None:
    """Their ids, agents, events and outputs are shown harmlessly as well."""
    async with dashboard() as board:
        session_id = "<i onclick=x>'\"&amp;"
        await board.sessions.start(session_id, agent="worker", tags=("<i>tag",))
        server = board.sessions.running[session_id]
        await server.execute_run({"</bdi><script>": "<script>"}, timeout=5.0)
        async with reading(board.url, "view=sessions") as stream:
            _, html = await stream.next()
            assert {"i", "script"} & set(Tags(html).tags) == set()
            assert session_id in Tags(html).text
        async with reading(board.url, "view=sessions&id=%3Ci%20onclick%3Dx%3E%27%22%26amp%3B") as stream:
            _, html = await stream.next()
            seen = Tags(html)
            assert {"script", "i"} & set(seen.tags) == set()
            assert "onclick" not in seen.attributes
            assert "completed" in seen.text


async def test_what_a_token_may_not_do_is_not_offered() -> None:
    """``read`` looks, ``submit`` may end runs, ``admin`` everything; without ``read`` there is no page."""
    async with dashboard() as board:
        await board.gate.set_limit("p", 1)
        await board.sessions.start("s1", agent="worker")
        await board.sessions.running["s1"].submit_run({"do": "hold"})
        offered: dict[str, set[str]] = {}
        for scopes in (("read",), ("read", "submit"), ("admin",)):
            _, secret = await board.book.create("-".join(scopes), scopes)
            for query in ("view=fleet", "view=sessions&id=s1"):
                async with reading(board.url, query, bearer(secret)) as stream:
                    _, html = await stream.next()
                    found = offered.setdefault("+".join(scopes), set())
                    found.update(re.findall(r'data-do="([a-z]+)"', html))
        runs = {"cancel", "interrupt", "drain"}
        assert offered == {
            "read": set(),
            "read+submit": runs,
            "admin": runs | {"limit", "pause"},
        }
        _, secret = await board.book.create("worker", ("submit", "gateway"))
        answer = await call(board.url, "GET", "/dashboard/stream", [bearer(secret)])
        assert (answer.status, answer.json["code"]) == (403, "insufficient_scope")
        assert (await call(board.url, "GET", "/dashboard/stream")).status == 401


async def test_what_is_asked_for_is_checked() -> None:
    """And one who wants no stream gets the page once."""
    async with dashboard() as board:
        once = await call(board.url, "GET", "/dashboard/stream?view=ledger", [(b"accept", b"text/html")])
        assert (once.status, once.header(b"cache-control")) == (200, b"no-store")
        assert "Nothing has changed yet." in once.body.decode()
        for query, said in (
            ("view=nothing", "allowed are fleet, ledger, sessions"),
            ("view=fleet&limit=x", "limit is nothing of the fleet; it has open, n"),
            ("view=fleet&n=0", "n is '0'; allowed are whole numbers from 1"),
            ("view=ledger&before=-1", "before is '-1'"),
        ):
            answer = await call(board.url, "GET", f"/dashboard/stream?{query}")
            assert answer.status == 400
            assert said in answer.json["detail"]
        for query, said in (
            ("view=sessions&id=nobody", "There is no session nobody."),
            ("view=sessions&after=nobody", "There is no session nobody."),
            ("view=fleet&open=nothing", "in flight"),
        ):
            async with reading(board.url, query) as stream:
                assert said in Tags((await stream.next())[1]).text


# -- pieces --------------------------------------------------------------------------------------------------


def test_slots_show_every_kind_that_there_is() -> None:
    """One cell for each slot as far as they fit; in proportion beyond; nothing that is there vanishes."""
    assert slots(2, 1, 4).cells == ("held", "held", "cooling", "free")
    assert slots(4, 0, 3).cells == ("held", "held", "held", "over")
    assert slots(0, 2, 1).cells == ("cooling", "cooling")
    assert slots(3, 0, None).cells == ("held",) * 3
    assert slots(1, 0, 3, quarantined=True).cells == ("held", "quarantined", "quarantined")
    assert slots(1, 0, 3, quarantined=True).label == "1 held, 2 in quarantine of 3"
    assert slots(4, 1, 3).label == "4 held, 1 cooling, 2 over the limit, 0 free of 3"
    for held, cooling, capacity in (
        (1, 1, 1000),
        (998, 1, 1000),
        (5000, 1, 10),
        (0, 0, 41),
        (10**6, 3, None),
    ):
        found = slots(held, cooling, capacity)
        assert len(found.cells) == MOST_CELLS
        assert ("held" in found.cells) == (held > 0)
        assert ("cooling" in found.cells) == (cooling > 0)
        assert ("free" in found.cells) == (held + cooling < (capacity or 0))


async def history(board: Board, query: str) -> Any:
    return await call(board.url, "GET", f"/history{query}")


async def test_history_over_http() -> None:
    """Columns of equal length, fine for the last hour and coarse before; who is unknown is told the names."""
    clock = VirtualClock(1_795_269_600.0)
    async with dashboard(clock=clock) as board, Crowd(board.gate) as crowd:
        await board.gate.set_limit("p", 1)
        crowd.ask("p", "a", "b")
        for _ in range(30):
            await clock.advance(1.0)
        names = (await history(board, "")).json["limits"]
        assert "provider:p" in names
        fine = (await history(board, "?limit=provider:p")).json
        assert (fine["limit"], fine["stepMs"]) == ("provider:p", 10_000)
        assert fine["inFlight"][:3] == [1, 1, 1]
        assert fine["capacity"][1] == 1
        assert fine["waiting"][1] == 1
        assert fine["waitLongestMs"][2] >= 20_000
        assert len({len(column) for column in fine.values() if isinstance(column, list)}) == 1
        coarse = (await history(board, "?limit=provider:p&since=0")).json
        assert (coarse["stepMs"], coarse["inFlight"]) == (60_000, [1])
        assert (await history(board, "?limit=nobody")).status == 404
        assert "provider:p" in (await history(board, "?limit=nobody")).json["detail"]
        assert (await history(board, "?limit=provider:p&since=yesterday")).status == 400
        assert (await history(board, "?limits=provider:p")).status == 400
