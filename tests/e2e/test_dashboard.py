"""The dashboard in a real browser, by clicking and by keyboard: what an operator sees and does."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, Page, expect

from dashboards import Crowd, chromium, dashboard, looking
from gateways import until
from interlock.provider.usage import ProviderUsage
from interlock.stores.memory import MemoryStore
from served_sessions import HOLD

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


async def press(page: Page, button: str, yes: str) -> None:
    """Press *button*, and say *yes* to what is asked then."""
    await page.get_by_role("button", name=button, exact=True).click()
    await page.locator("#ask").get_by_role("button", name=yes, exact=True).click()
    await expect(page.locator("#ask")).not_to_be_visible()


async def test_an_operator_at_work(browser: Browser) -> None:
    """See who waits and why, raise the limit and see it go; pause and resume; restore what a 429 has cut."""
    async with dashboard({"streams": 8}) as board, Crowd(board.gate) as crowd:
        await board.gate.set_limit("mock", 1)
        crowd.ask("mock", "first", "second", "third")
        async with looking(browser, board.url) as page:
            row = page.locator('.gate[data-name="provider:mock"]')
            await expect(row.locator(".count")).to_have_text("1/1")
            await expect(row.locator(".wait")).to_contain_text("2 waiting, longest")
            await expect(page.locator("#pulse")).to_contain_text("1 in flight")
            assert await row.locator(".slots").get_attribute("aria-label") == "1 held, 0 free of 1"

            await row.get_by_role("link", name="mock").click()
            queue = page.locator(".queue")
            waiting, holding = queue.locator("section").nth(0), queue.locator("section").nth(1)
            await expect(waiting.locator("tbody tr")).to_have_count(2)
            await expect(waiting.locator("tbody tr").nth(0)).to_contain_text("second")
            await expect(waiting.locator("tbody tr").nth(0)).to_contain_text("mock is full (1/1)")
            await expect(holding.locator("tbody tr")).to_contain_text(["first"])

            await page.get_by_role("button", name="Limit of mock").click()
            await page.get_by_label("At most").fill("2")
            await page.get_by_role("button", name="Set limit").click()
            await expect(page.locator("#said")).to_have_text("mock: at most 2 at once.")
            await expect(row.locator(".count")).to_have_text("2/2")
            await expect(waiting.locator("tbody tr")).to_have_count(1)

            await page.get_by_role("button", name="Pause mock").click()
            await page.get_by_label("For").fill("90")
            await page.locator("#ask").get_by_role("button", name="Pause").click()
            paused = row.locator(".note.paused")
            await expect(paused).to_have_text(re.compile(r"paused 1:(30|2\d), by the operator"))
            await expect(paused).not_to_have_text(await paused.inner_text())  # it counts down
            await expect(waiting.locator("tbody tr").nth(0)).to_contain_text("mock is paused")
            await press(page, "Resume mock", "Resume")
            await expect(paused).to_have_count(0)

            board.gate.report_rate_limit("mock", 0.1)
            notice = row.locator(".notice")
            await expect(notice).to_contain_text("auto-reduced to 1 after a 429")
            await expect(row.locator(".slots i.over")).to_have_count(1)
            await expect(page.locator("#pulse")).to_contain_text("1 reduced")
            await press(page, "Restore 2 for mock", "Restore 2")
            await expect(notice).to_have_count(0)

            await page.get_by_role("link", name="Ledger").click()
            changes = page.locator("table.ledger tbody tr")
            await expect(changes).to_have_count(5)  # with the file's
            for number, what in enumerate(("1↗2restorePUT /limits", "2↘1429", "1↗2operatorPUT /limits")):
                await expect(changes.nth(number)).to_contain_text(what)
            await page.locator(".chips").get_by_role("link", name="streams").click()
            await expect(changes).to_have_count(1)


async def test_what_the_provider_counts_stands_beside_what_we_do(browser: Browser) -> None:
    """Calls of others at the same account are seen, and are why somebody waits who has room with us."""
    others = 4

    async def usage(provider_id: str) -> ProviderUsage:
        return ProviderUsage(concurrent_sessions=board.gate.reading("mock").used + others, limit=4)

    async with dashboard(usage=usage) as board, Crowd(board.gate) as crowd:
        await board.gate.set_limit("mock", 4)
        crowd.ask("mock", *(f"ours-{number}" for number in range(4)), "next")
        await until(lambda: board.gate.reading("mock").waiting)
        async with looking(browser, f"{board.url}/#fleet?open=provider:mock") as page:
            row = page.locator('.gate[data-name="provider:mock"]')
            await expect(page.locator(".queue")).to_contain_text("mock is full (4/4)")
            crowd.ends[0].set()
            await expect(row.locator(".state")).to_have_text(
                re.compile(r"\s*provider counts 7 of 4, 4 not ours\s*")
            )
            await expect(row.locator(".count")).to_have_text("3/4")
            await expect(page.locator(".queue")).to_contain_text("mock reports no room yet")
            others = 0
            await expect(row.locator(".wait")).to_have_text("")
            await expect(row.locator(".count")).to_have_text("4/4")


async def test_sessions_and_their_runs(browser: Browser) -> None:
    """Their events come as they happen; runs are interrupted and cancelled, a session is drained; a refusal
    is said in the server's words."""
    async with dashboard() as board:
        server = await board.sessions.start("build", agent="worker", max_concurrent_runs=2)
        runs = [await server.submit_run(HOLD) for _ in range(3)]
        async with looking(browser, board.url, expected=("409",)) as page:
            await expect(page.locator("#busy")).to_contain_text("build")
            await page.locator("#busy").get_by_role("link", name="build").click()
            rows = page.locator("table.runs tbody tr")
            await expect(rows).to_have_count(3)
            await expect(rows.nth(2)).to_contain_text("pending")
            await expect(rows.nth(2)).to_contain_text("next; full: session 2/2")

            await press(page, "Interrupt run 1", "Interrupt run")
            await expect(page.locator(f'tr[data-run="{runs[0]}"]')).to_contain_text("interrupted")
            await expect(page.locator(f'tr[data-run="{runs[2]}"]')).to_contain_text("running")
            await expect(page.locator("table.events tbody tr").first).to_contain_text("run_")
            await press(page, "Cancel run 2", "Cancel run")
            await expect(page.locator(f'tr[data-run="{runs[1]}"]')).to_contain_text("cancelled")

            await page.get_by_role("button", name="Interrupt run 3").click()
            await board.worker.finish(runs[2])
            await expect(page.locator(f'tr[data-run="{runs[2]}"]')).to_contain_text("completed")
            await page.locator("#ask").get_by_role("button", name="Interrupt run").click()
            await expect(page.locator("#ask-refusal")).to_contain_text("is completed, not in flight")
            await page.keyboard.press("Escape")

            last = await server.submit_run(HOLD)
            await page.get_by_role("button", name="Drain the session").click()
            await page.locator("#ask").get_by_role("button", name="Drain").click()
            await expect(page.locator("#ask-text")).to_contain_text("waiting for its runs to end")
            await board.worker.finish(last)
            await expect(page.locator("#said")).to_have_text("build: drained, and open again.")

            await page.locator("#session").get_by_role("link", name="Sessions").click()
            await page.get_by_label("Session id").fill("nobody")
            await page.keyboard.press("Enter")
            await expect(page.locator("#main")).to_have_text("There is no session nobody.")
            await page.go_back()
            await page.get_by_label("Session id").fill("build")
            await page.get_by_role("button", name="Open").click()
            await expect(page.get_by_role("heading", name="build")).to_be_visible()


async def test_a_token_is_asked_for_and_kept_in_the_tab(browser: Browser) -> None:
    """A wrong one and one of another scope are told apart; who looks may not act; revoked is signed out."""
    async with dashboard() as board:
        await board.gate.set_limit("mock", 1)
        _, look = await board.book.create("look", ("read",))
        _, work = await board.book.create("work", ("submit",))
        async with looking(browser, board.url, expected=("401", "403", "ERR_")) as page:
            await expect(page.get_by_role("heading", name="This server asks for a token")).to_be_visible()
            await expect(page.locator("#main")).not_to_be_visible()
            for token, said in (
                ("wrong", "it is wrong, was revoked or has expired"),
                (work.reveal(), "has not the scope 'read'"),
            ):
                await page.get_by_label("Token").fill(token)
                await page.keyboard.press("Enter")
                await expect(page.locator("#signin-refusal")).to_contain_text(said)
            await page.get_by_label("Token").fill(look.reveal())
            await page.get_by_role("button", name="Sign in").click()
            await expect(page.locator("#gates")).to_contain_text("mock")
            await expect(page.get_by_role("button", name="Limit")).to_have_count(0)
            assert await page.context.cookies() == []
            await page.reload()
            await expect(page.locator("#gates")).to_contain_text("mock")
            assert look.reveal() not in await page.content()
            await board.book.revoke("look")
            await expect(page.locator("#signin-refusal")).to_contain_text("was revoked")


@asynccontextmanager
async def cable(url: str) -> AsyncIterator[Cable]:
    """A way to *url* that can be cut."""
    one = Cable(int(url.rpartition(":")[2]))
    await one.mend()
    try:
        yield one
    finally:
        await one.cut()


class Cable:
    """Carries bytes from a port of its own to another one."""

    def __init__(self, to: int) -> None:
        self._to = to
        self.port = 0
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
        for end in list(self._ends):
            end.transport.abort()
        await until(lambda: not self._ends)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        self._ends |= {writer, back}
        try:
            await asyncio.wait(
                [asyncio.ensure_future(_pump(reader, back)), asyncio.ensure_future(_pump(there, writer))],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            self._ends -= {writer, back}
            writer.transport.abort()
            back.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    except ConnectionError:
        return


async def test_a_lost_connection_is_said_and_found_again(browser: Browser) -> None:
    """The old state stays, marked as old, with its time; what happened meanwhile comes with the new one."""
    async with dashboard() as board, Crowd(board.gate) as crowd, cable(board.url) as line:
        await board.gate.set_limit("mock", 2)
        crowd.ask("mock", "one")
        async with looking(browser, f"http://127.0.0.1:{line.port}/", expected=("ERR_",)) as page:
            count = page.locator('.gate[data-name="provider:mock"] .count')
            await expect(count).to_have_text("1/2")
            await expect(page.locator("#link")).to_have_text("live")
            await line.cut()
            banner = page.locator("#banner")
            await expect(banner).to_have_text(
                re.compile(r"Connection lost\. This is the state of \d\d:\d\d:\d\d\. Trying again\.")
            )
            await expect(page.locator("#link")).to_have_text("connection lost")
            await expect(count).to_have_text("1/2")
            assert float(await page.locator("main").evaluate("(main) => getComputedStyle(main).opacity")) < 1
            crowd.ask("mock", "two")
            await line.mend()
            await expect(page.locator("#said")).to_have_text("Connected again.")
            await expect(count).to_have_text("2/2")
            await expect(banner).not_to_be_visible()
            await expect(page.locator("#link")).to_have_text("live")


async def test_the_keyboard_is_enough(browser: Browser) -> None:
    """Select, open, set a limit, pause, change pages; Escape leaves things as they are, and focus stays."""
    async with dashboard() as board, Crowd(board.gate) as crowd:
        for name in ("alpha", "beta"):
            await board.gate.set_limit(name, 1)
        crowd.ask("beta", "one", "two")
        async with looking(browser, board.url) as page:
            beta = page.locator('.gate[data-name="provider:beta"]')
            await expect(beta).to_be_visible()
            await page.keyboard.press("ArrowDown")
            await page.keyboard.press("ArrowDown")
            await expect(beta).to_be_focused()
            assert await beta.evaluate("(row) => getComputedStyle(row).outlineStyle") == "solid"
            await page.keyboard.press("Enter")
            await expect(page.locator(".queue")).to_contain_text("two")
            await expect(beta).to_be_focused()
            await page.keyboard.press("l")
            await expect(page.get_by_label("At most")).to_be_focused()
            await page.keyboard.type("7")
            await page.keyboard.press("Escape")
            await expect(page.locator("#ask")).not_to_be_visible()
            await expect(beta).to_be_focused()
            await expect(beta.locator(".count")).to_have_text("1/1")
            await page.keyboard.press("l")
            await page.keyboard.type("2")
            await page.keyboard.press("Enter")
            await expect(beta.locator(".count")).to_have_text("2/2")
            await expect(beta).to_be_focused()
            await page.keyboard.press("p")
            await page.keyboard.press("Enter")
            await expect(beta.locator(".note.paused")).to_be_visible()
            assert await page.get_by_role("link", name="Skip to the page").count() == 1
            await page.keyboard.press("3")
            await expect(page.locator("#changes")).to_be_visible()
            await page.keyboard.press("Shift+Tab")
            await page.keyboard.press("2")
            await expect(page.locator("#stored")).to_contain_text("There is no session yet.")


CONTRAST = """() => {
  const part = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const colour = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const found = colour(getComputedStyle(one).backgroundColor);
      if (found.length < 4 || found[3] === 1) return found;
    }
  };
  const low = [];
  for (const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); walk.nextNode();) {
    const text = walk.currentNode.data.trim(), one = walk.currentNode.parentElement;
    if (!text || !one.checkVisibility() || one.closest(".hidden, .skip, noscript")) continue;
    const both = [light(colour(getComputedStyle(one).color)), light(behind(one))];
    const ratio = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    if (ratio < 4.5) low.push(`${ratio.toFixed(1)} ${text.slice(0, 40)}`);
  }
  return low;
}"""
"""Texts whose contrast is lower than WCAG AA asks for."""


async def test_on_a_phone_in_light_and_dark_with_ten_thousand_who_wait(browser: Browser) -> None:
    """Nothing is wider than the screen, every text has the contrast of WCAG AA, and few rows are drawn."""
    async with dashboard({"streams": 3}, pools=("coders",)) as board, Crowd(board.gate) as crowd:
        await board.gate.set_limit("mock", 1)
        long = "a-provider-with-a-very-long-name-" * 2
        await board.gate.set_limit(long, 200)
        crowd.ask(long, *(f"<script>{number}" + "w" * 300 for number in range(30)))
        board.gate.report_rate_limit(long, 60.0)
        crowd.ask("mock", *(f"agent-{number:05}" for number in range(10_001)))
        server = await board.sessions.start("s" * 150, agent="worker")
        await server.submit_run({"text": "x" * 3000})
        await until(lambda: board.gate.reading("mock").waiting == 10_000)
        for scheme, options in (("light", PHONE), ("dark", PHONE), ("dark", {})):
            async with looking(browser, board.url, color_scheme=scheme, **options) as page:
                await expect(page.locator("#pools")).to_contain_text("coders")
                for where, seen in (
                    ("#fleet?open=provider:mock", ".queue tbody tr"),
                    (f"#fleet?open=provider:{long}", ".queue tbody tr"),
                    ("#sessions", "#stored tbody tr"),
                    (f"#sessions?id={'s' * 150}", "#events tbody tr"),
                    ("#ledger", "#changes tbody tr"),
                ):
                    await page.evaluate("(where) => { location.hash = where; }", where)
                    await expect(page.locator(seen).first).to_be_visible()
                    assert await page.locator("tr").count() < 120
                    wide = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
                    assert wide <= 0, (scheme, where)
                    assert await page.evaluate(CONTRAST) == [], (scheme, where)
                dark = await page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
                assert (sum(map(int, re.findall(r"\d+", dark))) < 150) == (scheme == "dark")
                await page.evaluate("location.hash = '#fleet'")
                await expect(page.locator("#pulse")).to_contain_text("10030 waiting")


async def test_what_was_is_plotted_also_after_a_restart(browser: Browser) -> None:
    """Three plots of a limit of choice, over an hour or a day."""
    store = MemoryStore()
    async with dashboard(store=store) as board, Crowd(board.gate) as crowd:
        await board.gate.set_limit("mock", 3)
        crowd.ask("mock", "one", "two")
        await until(lambda: board.history.series("provider:mock", 0.0).rows[-1:])
    async with dashboard(store=store) as board:
        assert board.gate.reading("mock").used == 0
        async with looking(browser, board.url) as page:
            await expect(page.locator("#history canvas")).to_have_count(3)
            await expect(page.locator("#plot-flight-now")).to_have_text("at most 2")
            await page.get_by_label("Limit", exact=True).select_option("streams")
            await expect(page.locator("#plot-flight-now")).to_have_text("at most 0")
            await page.get_by_role("button", name="24 h").click()
            await page.get_by_label("Limit", exact=True).select_option("mock")
            await expect(page.locator("#plot-flight-now")).to_have_text("at most 2")
