"""Where a server may listen, and for whom: nobody is let in by accident."""

from __future__ import annotations

import os
import signal
import socket
import stat
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx2
import pytest

import processes
from gateways import call
from processes import Finished, Running, command

MEMORY = 'store = "memory:"\n'
ELSEWHERE = '[server]\nhost = "0.0.0.0"\n'
TOKEN = 'token = "env:CANARY"\n'
CANARY = {"CANARY": "s3cret"}


def write(home: Path, text: str) -> None:
    (home / "interlock.toml").write_text(text, encoding="utf-8")


def running(
    home: Path, *words: str, env: dict[str, str] | None = None
) -> AbstractAsyncContextManager[Running]:
    return processes._running("serve", "--port", "0", *words, cwd=home, env=env)


async def refused(home: Path, *words: str) -> str:
    """Why ``interlock serve`` does not start; exit 2, in one line."""
    finished = await command("serve", "--port", "0", *words, cwd=home)
    assert (finished.code, finished.stdout) == (2, ""), finished
    (line,) = finished.stderr.splitlines()
    return line


async def made(home: Path, name: str, *words: str) -> Finished:
    """A token, made in the store while no server runs."""
    finished = await command("token", "create", name, "--config", "interlock.toml", *words, cwd=home)
    assert finished.code == 0, finished
    return finished


def local(server: Running) -> str:
    return server.url.replace("0.0.0.0", "127.0.0.1").replace("[::]", "127.0.0.1")


WARNING = "everybody who reaches 0.0.0.0 may do everything"


# Which host, which tokens, whether --insecure-no-auth: whether it starts, whether that is warned of, and how
# it answers somebody who shows nothing.
MATRIX = [
    ("127.0.0.1", "none", False, True, False, 200),
    ("127.0.0.1", "none", True, True, False, 200),
    ("127.0.0.1", "configured", False, True, False, 401),
    ("0.0.0.0", "none", False, False, False, None),
    ("0.0.0.0", "none", True, True, True, 200),
    ("0.0.0.0", "configured", False, True, False, 401),
    ("0.0.0.0", "configured", True, True, False, 401),
    ("0.0.0.0", "admin", False, True, False, 401),
    ("0.0.0.0", "submit", False, False, False, None),
    ("0.0.0.0", "submit", True, True, False, 401),
]


@pytest.mark.parametrize(("host", "token", "insecure", "starts", "warned", "answer"), MATRIX)
async def test_who_may_start_where(
    host: str, token: str, insecure: bool, starts: bool, warned: bool, answer: int | None, tmp_path: Path
) -> None:
    """Elsewhere than on loopback it needs a token that may do everything, or that it is spelled out."""
    write(tmp_path, f'[server]\nhost = "{host}"\n' + (TOKEN if token == "configured" else ""))
    words = ["--insecure-no-auth"] if insecure else []
    if token in ("admin", "submit"):
        await made(tmp_path, "it", "--scope", token)
    if not starts:
        line = await refused(tmp_path, *words)
        assert host in line
        assert "server.token" in line
        assert "--insecure-no-auth" in line
        return
    for _ in range(2 if warned else 1):  # at each start
        (tmp_path / "serve.stderr").unlink(missing_ok=True)
        async with running(tmp_path, *words, env=CANARY) as server:
            assert (await call(local(server), "GET", "/limits")).status == answer
            assert (WARNING in server.stderr()) == warned
            assert "s3cret" not in "".join(server.lines) + server.stderr()


@pytest.mark.parametrize("host", ["::", "10.0.0.1", "gpu-7.lan"])
async def test_any_other_host_is_elsewhere(host: str, tmp_path: Path) -> None:
    """Whether or not it is one of this machine: nothing listens before a token is there."""
    write(tmp_path, MEMORY + f'[server]\nhost = "{host}"\n')
    line = await refused(tmp_path)
    assert host in line
    assert "server.token" in line


async def test_an_expired_admin_is_none(tmp_path: Path) -> None:
    """Nobody could ever let anybody in."""
    write(tmp_path, ELSEWHERE)
    await made(tmp_path, "it", "--scope", "admin", "--expires", "1ms")
    assert "server.token" in await refused(tmp_path)


async def test_connections_are_bounded_as_configured(tmp_path: Path) -> None:
    """The bound of a server is that of its configuration."""
    write(tmp_path, MEMORY + "[server]\nmax_connections = 1\n")
    async with running(tmp_path) as server:
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as first:
            first.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert first.recv(100).startswith(b"HTTP/1.1 200")
            assert (await call(server.url, "GET", "/healthz")).status == 503
        assert first.fileno() == -1


# -- a Unix socket -------------------------------------------------------------------------------------------


async def test_a_socket_is_for_its_own_user(tmp_path: Path) -> None:
    """It needs no token; the commands find it, and nothing listens on an address. Its end removes it."""
    path = tmp_path / "il.sock"
    write(tmp_path, MEMORY + ELSEWHERE + 'socket = "il.sock"\n')
    async with running(tmp_path) as server:
        assert server.lines[0].endswith("on unix:il.sock, state in memory:")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        transport = httpx2.AsyncHTTPTransport(uds=str(path))
        async with httpx2.AsyncClient(transport=transport) as client:
            assert (await client.get("http://localhost/healthz")).json() == {"status": "ok"}
            assert (await client.get("http://evil.example/healthz")).status_code == 421
        for words in (["status"], ["doctor"], ["token", "list"]):
            said = await command(*words, cwd=tmp_path)
            assert "no answer" not in said.stdout + said.stderr
            assert said.code == 0, said
        taken = await command("serve", cwd=tmp_path)
        assert (taken.code, "a server listens there" in taken.stderr) == (1, True), taken
        server.process.terminate()
        assert await server.ended() == 0
    assert not path.exists()


async def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    """That of a server that was killed; a file is not."""
    path = tmp_path / "il.sock"
    write(tmp_path, MEMORY)
    async with running(tmp_path, "--socket", "il.sock") as server:
        os.kill(server.process.pid, signal.SIGKILL)
        await server.ended()
    assert path.exists()
    async with running(tmp_path, "--socket", "il.sock"):
        pass
    path.write_text("mine")
    finished = await command("serve", "--socket", "il.sock", cwd=tmp_path)
    assert (finished.code, finished.stdout) == (1, "")
    assert "cannot listen on il.sock: something else" in finished.stderr
    assert path.read_text() == "mine"
