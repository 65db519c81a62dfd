"""The stranger's path: an empty directory, an installation, a base URL, a fleet that is seen and steered."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from dashboards import chromium, looking
from gateways import Upstream, answer
from gateways import upstream as raw_provider
from processes import environment

ROOT = Path(__file__).parents[2]

AGENT = """\
import sys
from openai import OpenAI

client = OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
asked = [{"role": "user", "content": f"I am {sys.argv[2]}."}]
answer = client.chat.completions.create(model="mock", messages=asked)
print(answer.choices[0].message.content)
"""

CONFIG = """\
[providers.mock]
base_url = "{upstream}"
limit = 1
"""


def clean() -> dict[str, str]:
    """An environment in which only what is installed is found."""
    inherited = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    return {name: value for name, value in environment().items() if name not in inherited}


async def run(*command: str | Path, cwd: Path, within: float = 300.0) -> str:
    """What the command prints; fails with it."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=cwd, env=clean(), stdout=PIPE, stderr=STDOUT
    )
    try:
        async with asyncio.timeout(within):
            printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, printed.decode()
    return printed.decode()


async def install(directory: Path) -> Path:
    """A virtual environment in *directory* with this checkout, as anybody would install it; its programs."""
    uv = Path(sys.executable).with_name("uv")
    found = str(uv) if uv.exists() else shutil.which("uv")
    bin_ = directory / ".venv" / "bin"
    if found is not None:
        await run(found, "venv", "-q", "--python", sys.executable, ".venv", cwd=directory)
        await run(found, "pip", "install", "-q", "--python", bin_ / "python", f"{ROOT}[all]", cwd=directory)
    else:
        await run(sys.executable, "-m", "venv", ".venv", cwd=directory)
        await run(bin_ / "python", "-m", "pip", "install", "-q", f"{ROOT}[all]", cwd=directory)
    return bin_


@asynccontextmanager
async def serving(bin_: Path, cwd: Path) -> AsyncIterator[tuple[str, str]]:
    """``interlock serve`` from that installation, in *cwd*; the two addresses that it prints."""
    process = await asyncio.create_subprocess_exec(
        *(str(bin_ / "interlock"), "serve", "--port", "0"), cwd=cwd, env=clean(), stdout=PIPE, stderr=STDOUT
    )
    try:
        async with asyncio.timeout(30):
            yield await announced(process)
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(10):
            await process.communicate()


async def announced(process: Process) -> tuple[str, str]:
    printed = ""
    assert process.stdout is not None
    async for line in process.stdout:
        printed += line.decode()
        if found := re.search(r"export MOCK_BASE_URL=(\S+)[^$]*dashboard: (\S+)", printed):
            return found[1], found[2]
    raise AssertionError(f"it ended: {printed}")


@pytest.mark.timeout(300)
async def test_from_nothing_to_a_fleet_that_is_steered(tmp_path: Path) -> None:
    """Install, serve, paste the base URL into a client: the second agent waits, is seen to wait, and goes on
    when the limit is raised by a click."""
    bin_ = await install(tmp_path)
    where = await run(bin_ / "python", "-c", "import interlock; print(interlock.__file__)", cwd=tmp_path)
    assert where.startswith(str(tmp_path))
    home = tmp_path / "home"
    home.mkdir()
    (home / "agent.py").write_text(AGENT, encoding="utf-8")
    async with raw_provider() as upstream, chromium() as browser:
        (home / "interlock.toml").write_text(CONFIG.format(upstream=upstream.url), encoding="utf-8")
        async with serving(bin_, home) as (base_url, board_url):
            agents = {
                name: asyncio.create_task(
                    run(bin_ / "python", "agent.py", base_url, name, cwd=home, within=60)
                )
                for name in ("Ada", "Bob")
            }
            try:
                await steer(board_url, browser, upstream)
                printed = {name: (await task).strip() for name, task in agents.items()}
            finally:
                for task in agents.values():
                    task.cancel()
                await asyncio.gather(*agents.values(), return_exceptions=True)
    assert printed == {"Ada": "Hello, Ada", "Bob": "Hello, Bob"}
    assert (home / "interlock.db").exists()


async def steer(url: str, browser: Browser, upstream: Upstream) -> None:
    async with looking(browser, url) as page:
        row = page.locator('.gate[data-name="provider:mock"]')
        await expect(row.locator(".count")).to_have_text("1/1", timeout=30_000)
        await expect(row.locator(".wait")).to_contain_text("1 waiting", timeout=30_000)
        first = await upstream.next()
        assert upstream.idle()
        await page.get_by_role("button", name="Limit of mock").click()
        await page.get_by_label("At most").fill("2")
        await page.get_by_role("button", name="Set limit").click()
        second = await upstream.next()
        await expect(row.locator(".count")).to_have_text("2/2")
        await expect(row.locator(".wait")).to_have_text("")
        for exchange in (first, second):
            name = json.loads(exchange.body)["messages"][0]["content"].removeprefix("I am ").rstrip(".")
            exchange.write(answer(200, completion(f"Hello, {name}"), (b"content-type", b"application/json")))
        await expect(row.locator(".count")).to_have_text("0/2")
        await page.get_by_role("link", name="Ledger").click()
        await expect(page.locator("table.ledger tbody tr").first).to_contain_text("mock1↗2operator")


def completion(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps(
        {"id": "c1", "object": "chat.completion", "created": 1, "model": "mock", "choices": [choice]}
    ).encode()
