"""`RemoteAdmission` where the port does not show it: lost connections, lost answers, restarts, leases."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from admission.harnesses import Hosted, hosted
from fault_proxy import Proxy, proxy
from interlock.admission.local import LocalAdmission
from interlock.admission.remote import RemoteAdmission
from interlock.errors import AcquireTimeout, InvalidOperation, PermitLost, Unavailable, ValidationError
from interlock.stores.memory import MemoryStore
from processes import serve

SEED = int(os.environ.get("E2E_SEED", time.time_ns() % 1_000_000))


async def until(holds: Callable[[], object], within: float = 5.0) -> None:
    """Return once *holds*, which other tasks, threads or time bring about."""
    async with asyncio.timeout(within):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@asynccontextmanager
async def remote(url: str, **options: Any) -> AsyncIterator[RemoteAdmission]:
    admission = RemoteAdmission(url, **options)
    try:
        yield admission
    finally:
        await admission.aclose()


@asynccontextmanager
async def behind_a_proxy(
    lease: float = 30.0, **limits: int
) -> AsyncIterator[tuple[Hosted, Proxy, RemoteAdmission]]:
    """A server with *limits*, a wire that can fail, and a client."""
    local = LocalAdmission()
    for name, capacity in limits.items():
        local.configure(name, capacity)
    async with hosted(local) as server, proxy(server.url) as wire, remote(wire.url, lease=lease) as admission:
        await admission.refresh()
        yield server, wire, admission


def used(server: Hosted, name: str = "a") -> int:
    return server.admission.limits()[name].used


def waiting(server: Hosted) -> list[str]:
    return [one.id for one in server.admission.waiting()]


async def asked(admission: RemoteAdmission, *names: str, **more: Any) -> asyncio.Task[Any]:
    async def acquire() -> Any:
        return await admission.acquire(*names, **more)

    task = asyncio.create_task(acquire())
    await asyncio.sleep(0)
    return task


# -- being told what it cannot be ----------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["", "localhost:7411", "ftp://x", "http://", "unix:/x"])
def test_a_url_is_needed(url: str) -> None:
    """And what is allowed is said."""
    with pytest.raises(ValidationError, match="allowed are http://host:port"):
        RemoteAdmission(url)


@pytest.mark.parametrize("lease", [0, -1, 0.01, 100_000, float("nan")])
def test_a_lease_has_bounds(lease: float) -> None:
    """A tenth of a second to a day."""
    with pytest.raises(ValidationError, match="lease is"):
        RemoteAdmission("http://localhost", lease=lease)


def test_a_missing_extra_is_named() -> None:
    """Without websockets the error says what to install, and `import interlock` does not need it."""
    code = (
        "import sys; sys.modules['websockets'] = None; sys.modules['websockets.client'] = None\n"
        "import interlock; interlock.RemoteAdmission\n"
        "try: interlock.RemoteAdmission('http://localhost')\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout.startswith("RemoteAdmission needs websockets"), done.stderr
    assert "install interlock[http]" in done.stdout


async def test_what_cannot_be_written_down_is_refused_at_once() -> None:
    """It never reaches the wire, where it would end the connection of everybody else."""
    async with behind_a_proxy(a=1) as (server, wire, admission):
        for bad in ({"key": "\ud800"}, {"owner": 5}, {"priority": "high"}, {"since": "now"}):
            with pytest.raises((ValidationError, TypeError, UnicodeError)):
                await admission.acquire("a", **bad)
        with pytest.raises(ValidationError, match="too long"):
            await admission.acquire("a", key="k" * 300)
        assert wire.connections == 1
        (await admission.acquire("a")).release()
        await admission.refresh()
        assert used(server) == 0


# -- no server -----------------------------------------------------------------------------------------------


async def test_nobody_is_let_in_without_a_server(caplog: pytest.LogCaptureFixture) -> None:
    """It fails closed: who waits gets an `AcquireTimeout` at its own deadline, which names the server."""
    caplog.set_level(logging.ERROR)
    async with remote("http://127.0.0.1:9") as admission:
        began = time.monotonic()
        with pytest.raises(
            AcquireTimeout, match=r"waited .* s for a: no answer from http://127\.0\.0\.1:9 \("
        ):
            await admission.acquire("a", timeout=0.2)
        assert 0.2 <= time.monotonic() - began < 1.3
        with pytest.raises(AcquireTimeout):
            await admission.acquire("a", timeout=0)


async def test_a_wrong_token_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """In the log at once, and in the error at the end."""
    async with hosted(token="right") as server, remote(server.url, token="wrong") as admission:
        with pytest.raises(AcquireTimeout, match="answered 401; is the token right"):
            await admission.acquire("a", timeout=0.2)
    assert "answered 401" in caplog.text


async def test_who_waits_is_let_in_when_the_server_comes() -> None:
    """It need not be there first."""
    async with hosted() as first:
        port = int(first.url.rpartition(":")[2])
    async with remote(f"http://127.0.0.1:{port}") as admission:
        task = await asked(admission, "a", timeout=5)
        await asyncio.sleep(0.05)
        assert not task.done()
        local = LocalAdmission()
        local.configure("a", 1)
        async with hosted(local, port=port):
            (await task).release()


async def test_a_server_that_says_nothing_is_left() -> None:
    """It is connected but answers nothing: the deadline holds, and a new connection is tried."""
    async with behind_a_proxy(lease=1.0, a=1) as (_, wire, admission):
        wire.answers.swallow = True
        began = time.monotonic()
        with pytest.raises(AcquireTimeout, match="no answer from"):
            await admission.acquire("a", timeout=0.1)
        assert time.monotonic() - began < 2.5
        await until(lambda: wire.connections > 1)


async def test_closing_ends_the_waits_of_the_unconnected() -> None:
    """With `Unavailable`, at once."""
    async with remote("http://127.0.0.1:9") as admission:
        task = await asked(admission, "a")
        await admission.aclose()
        with pytest.raises(Unavailable, match="closed while this waited"):
            await task
        with pytest.raises(Unavailable, match="closed"):
            await admission.refresh()


# -- lost connections ----------------------------------------------------------------------------------------


async def test_permits_outlive_their_connection() -> None:
    """They are held on, are the same, and can be released on the next one."""
    async with behind_a_proxy(a=1) as (server, wire, admission):
        permit = await admission.acquire("a")
        for _ in range(3):
            wire.reset()
            await until(lambda: not admission._link.up)
            await admission.refresh()
            assert used(server) == 1
            assert not permit.lost
        permit.release()
        await admission.refresh()
        assert used(server) == 0


async def test_waits_keep_their_places() -> None:
    """They are withdrawn with the connection and made again with their original age."""
    async with behind_a_proxy(a=1) as (server, wire, admission), remote(server.url) as other:
        holder = await other.acquire("a")
        first = await asked(admission, "a", key="first")
        await until(lambda: waiting(server) == ["first"])
        second = await asked(other, "a", key="second")
        await until(lambda: waiting(server) == ["first", "second"])
        since = server.admission.waiting()[0].since
        wire.refuse = True
        wire.reset()
        await until(lambda: waiting(server) == ["second"])
        wire.refuse = False
        await until(lambda: waiting(server) == ["first", "second"])
        assert server.admission.waiting()[0].since == since
        holder.release()
        (await first).release()
        (await second).release()


async def test_what_was_asked_without_a_connection_is_as_old_as_it_is() -> None:
    """Its age goes with it: it comes before who asked later with one."""
    async with behind_a_proxy(a=1) as (server, wire, admission), remote(server.url) as other:
        holder = await other.acquire("a")
        wire.refuse = True
        wire.reset()
        await until(lambda: not admission._link.up)
        first = await asked(admission, "a", key="first")
        await asyncio.sleep(0.05)
        second = await asked(other, "a", key="second")
        await until(lambda: waiting(server) == ["second"])
        wire.refuse = False
        await until(lambda: waiting(server) == ["first", "second"])
        holder.release()
        (await first).release()
        (await second).release()


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_lost_answer_is_no_leak(key: str | None) -> None:
    """The grant happened, the answer was lost: asking again is the same request."""
    async with behind_a_proxy(a=1) as (server, wire, admission):
        wire.answers.swallow = True
        task = await asked(admission, "a", key=key)
        await until(lambda: used(server) == 1)
        (fence,) = (holder.fence for holder in server.admission.holders("a"))
        await wire.answers.swallowed.wait()
        wire.answers.swallow = False
        wire.reset()
        permit = await task
        assert permit.fence == fence
        assert used(server) == 1
        permit.release()
        await admission.refresh()
        assert used(server) == 0


@pytest.mark.parametrize("key", [None, "k"])
async def test_cancelled_after_a_lost_answer(key: str | None) -> None:
    """Nobody wants the permit any more: the next connection gives it back."""
    async with behind_a_proxy(a=1) as (server, wire, admission):
        wire.answers.swallow = True
        task = await asked(admission, "a", key=key)
        await until(lambda: used(server) == 1)
        wire.reset()
        wire.answers.swallow = False
        await until(lambda: not admission._link.up)
        task.cancel()
        await admission.refresh()
        assert used(server) == 0
        assert waiting(server) == []


async def test_a_grant_that_nobody_took_here_stays_the_others() -> None:
    """Two processes wait with one key; for one of them the answer is on its way when it gives up."""
    async with behind_a_proxy(a=1) as (server, _, admission), remote(server.url) as other:
        holder = await other.acquire("a")
        mine, theirs = await asked(admission, "a", key="k"), await asked(other, "a", key="k")
        await until(lambda: len(other._asks) == 1 and waiting(server) == ["k"])
        await admission.refresh()
        await other.refresh()
        link, late = admission._link, list[bytes]()
        assert link._socket is not None
        received, link._socket._received = link._received, late.append
        holder.release()
        permit = await theirs
        await until(lambda: len(late) > 0)
        mine.cancel()
        await asyncio.gather(mine, return_exceptions=True)
        link._socket._received = received
        for message in late:
            received(message)
        await admission.refresh()
        assert not permit.released
        assert used(server) == 1
        permit.release()
        await other.refresh()
        assert used(server) == 0


async def test_a_lost_release_is_made_again() -> None:
    """Also if its key is asked for anew right away: that is another permit."""
    async with behind_a_proxy(a=1) as (server, wire, admission):
        permit = await admission.acquire("a", key="k")
        wire.requests.swallow = True
        assert permit.release()
        await wire.requests.swallowed.wait()
        again = await asked(admission, "a", key="k")
        await asyncio.sleep(0.02)
        assert used(server) == 1
        wire.requests.swallow = False
        wire.reset()
        successor = await again
        assert successor.fence > permit.fence
        await admission.refresh()
        assert not successor.released
        assert used(server) == 1
        successor.release()


async def test_releases_before_the_end_are_still_heard() -> None:
    """`aclose` waits for the server to have heard them."""
    async with behind_a_proxy(a=8) as (server, _, admission):
        permits = [await admission.acquire("a") for _ in range(8)]
        for permit in permits:
            permit.release()
        await admission.aclose()
        assert used(server) == 0


async def test_what_another_process_releases_is_noticed() -> None:
    """A key is one permit for all; who still works under it learns that it ended."""
    async with behind_a_proxy(a=1) as (_, _, admission), remote(admission.url) as other:
        mine, theirs = await admission.acquire("a", key="k"), await other.acquire("a", key="k")
        theirs.release()
        await until(lambda: mine.released)
        assert not mine.lost
        assert mine.release() is False


async def test_a_storm_of_cut_connections_leaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Two clients, thirty tasks that come, go and are cancelled, a wire that breaks all the time: never over
    the limit by what the tasks themselves count, and nothing is left."""
    print(f"E2E_SEED={SEED}")
    caplog.set_level(logging.ERROR)
    dice = Random(SEED)
    inside = most = done = 0

    async with behind_a_proxy(a=3, b=2) as (server, wire, admission), remote(wire.url) as other:

        async def work(by: RemoteAdmission) -> None:
            nonlocal inside, most, done
            for _ in range(10):
                names = ("a", "b") if dice.random() < 0.3 else ("a",)
                async with by.acquire(*names):
                    inside += 1
                    most = max(most, inside)
                    try:
                        await asyncio.sleep(dice.uniform(0, 0.01))
                    finally:
                        inside -= 1
                done += 1

        tasks = [asyncio.create_task(work(dice.choice((admission, other)))) for _ in range(30)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(dice.uniform(0, 0.05))
            wire.answers.swallow, wire.requests.swallow = dice.random() < 0.4, dice.random() < 0.4
            await asyncio.sleep(dice.uniform(0, 0.02))
            wire.reset()  # always: bytes do not get lost in the middle of a connection
            wire.answers.swallow = wire.requests.swallow = False
            if dice.random() < 0.2:
                dice.choice(tasks).cancel()
        assert most <= 3
        await admission.refresh()
        await other.refresh()
        await until(lambda: used(server) == used(server, "b") == 0)
        assert waiting(server) == []
        server.admission.kernel.check()
        print(f"{done} pieces of work over {wire.connections} connections, at most {most} at once")
        assert wire.connections > 4


# -- restarts ------------------------------------------------------------------------------------------------


class Restarting:
    """A server that can be killed and started again on its port and store."""

    def __init__(self, **limits: int) -> None:
        self.store = MemoryStore()
        self._limits = limits
        self._stack = AsyncExitStack()
        self.server: Hosted
        self.port = 0

    async def start(self) -> Hosted:
        local = LocalAdmission()
        for name, capacity in self._limits.items():
            local.configure(name, capacity)
        self.server = await self._stack.enter_async_context(hosted(local, self.store, port=self.port))
        self.port = int(self.server.url.rpartition(":")[2])
        return self.server

    async def stop(self, *, clean: bool = False) -> None:
        if clean:
            await self.server.desk.aclose()
        await self._stack.aclose()

    async def __aenter__(self) -> Restarting:
        await self.start()
        return self

    async def __aexit__(self, *exit_: object) -> None:
        await self._stack.aclose()


async def test_a_restarted_server_is_told_what_is_held() -> None:
    """The same permit goes on under the same fence, and new fences are greater."""
    async with Restarting(a=2, b=1) as restarting, remote(restarting.server.url, lease=2.0) as admission:
        parent = await admission.acquire("a", key="p", owner="o")
        child = await admission.acquire("a", "b", parent=parent)
        await restarting.stop()
        server = await restarting.start()
        await until(lambda: used(server) == 1)
        assert {(one.id, one.fence) for one in server.admission.holders("a")} == {
            (parent.id, parent.fence),
            (child.id, child.fence),
        }
        assert (used(server), used(server, "b")) == (1, 1)  # the family still shares its unit
        assert not parent.lost
        newcomer = await admission.acquire("a")  # once the time of unknown holders is over
        assert newcomer.fence > child.fence
        assert await admission.release_owner("o") == 1
        assert parent.released
        child.release()
        newcomer.release()
        await admission.refresh()
        assert (used(server), used(server, "b")) == (0, 0)


async def test_nobody_gets_what_an_unknown_holder_may_have() -> None:
    """A holder that is gone for good is waited for, as long as its lease could last and no longer."""
    async with Restarting(a=1, free=1) as restarting:
        gone = RemoteAdmission(restarting.server.url, lease=1.0)
        for _ in range(9):
            (await gone.acquire("a")).release()
        fence = (await gone.acquire("a", key="k")).fence
        await restarting.stop()
        gone._link._task.cancel()  # type: ignore[union-attr]
        gone._keeper.stop()
        await restarting.start()
        async with remote(restarting.server.url, lease=1.0) as admission:
            began = time.monotonic()
            (await admission.acquire("free", timeout=0)).release()
            with pytest.raises(AcquireTimeout, match="'a' is paused"):
                await admission.acquire("a", timeout=0.1)
            successor = await admission.acquire("a", timeout=5)
            assert successor.fence > fence
            successor.release()
            assert 0.5 < time.monotonic() - began < 1.6
        await gone.aclose()


async def test_a_clean_end_with_nothing_leased_leaves_no_pause() -> None:
    """And one with something leased leaves as much as that."""
    async with Restarting(a=1) as restarting:
        async with remote(restarting.server.url) as admission:
            (await admission.acquire("a")).release()
        assert await restarting.store.items("lease:") != {}
        await restarting.stop(clean=True)
        assert await restarting.store.items("lease:") == {}
        await restarting.start()
        async with remote(restarting.server.url, lease=20.0) as admission:
            permit = await admission.acquire("a", timeout=0)
            await restarting.stop(clean=True)
            (entry,) = (await restarting.store.items("lease:")).values()
            assert 0 < float(entry.split('"lease": ')[1].rstrip("}")) <= 20
            assert not permit.lost
            permit.release()


async def test_a_clean_end_forgets_no_unknown_holder() -> None:
    """Killed, started, ended cleanly, started: the limit is paused still for who holds it from the first."""
    async with Restarting(a=1) as restarting:
        gone = RemoteAdmission(restarting.server.url, lease=20.0)
        await gone.acquire("a", key="k")
        await restarting.stop()
        gone._link._task.cancel()  # type: ignore[union-attr]
        gone._keeper.stop()
        for _ in range(2):
            server = await restarting.start()
            assert server.admission.limits()["a"].paused_until is not None
            await restarting.stop(clean=True)
        server = await restarting.start()
        async with remote(server.url) as admission:
            await admission.remove_limit("a")
            await admission.set_limit("a", 1)
            assert server.admission.limits()["a"].paused_until is not None
        await gone.aclose()


async def test_limits_that_clients_set_are_remembered() -> None:
    """A limit made at run time is there after a restart, and one that was removed is not."""
    async with Restarting(a=1) as restarting, remote(restarting.server.url) as admission:
        await admission.set_limit("mine", 7, cooldown=0.5)
        await admission.set_limit("gone", 1)
        await admission.set_limit("a", 3)
        await admission.remove_limit("gone")
        await restarting.stop()
        server = await restarting.start()
        capacities = {one.name: one.capacity for one in server.admission.limits().values()}
        assert capacities.items() >= {"a": 3, "mine": 7}.items()
        assert "gone" not in capacities


async def test_waits_go_on_over_a_restart() -> None:
    """In their order, and behind what is still held."""
    async with Restarting(a=1) as restarting, remote(restarting.server.url, lease=0.5) as admission:
        holder = await admission.acquire("a")
        tasks = []
        for number in range(3):
            tasks.append(await asked(admission, "a", key=f"w{number}", timeout=10))
            await until(lambda: len(waiting(restarting.server)) == len(tasks))
        await restarting.stop()
        server = await restarting.start()
        await until(lambda: waiting(server) == ["w0", "w1", "w2"])
        assert not any(task.done() for task in tasks)
        holder.release()
        for task in tasks:
            (await task).release()


async def test_a_lent_permit_survives_a_restart() -> None:
    """It is lent still, and gets its units back."""
    async with Restarting(a=1) as restarting, remote(restarting.server.url, lease=0.5) as admission:
        permit = await admission.acquire("a")
        async with permit.lend():
            await restarting.stop()
            server = await restarting.start()
            await until(lambda: permit.id in server.admission.kernel.permits)
            await admission.refresh()
            assert used(server) == 0
        assert not permit.released
        assert used(server) == 1
        permit.release()


async def test_a_wait_for_lent_units_survives_a_cut() -> None:
    """The permit would end with its wait, so the server keeps it until the client is back."""
    async with behind_a_proxy(a=1) as (server, wire, admission), remote(server.url) as other:
        permit = await admission.acquire("a")
        lending = permit.lend()
        await lending.__aenter__()
        borrower = await other.acquire("a")
        back = asyncio.create_task(lending.__aexit__(None, None, None))
        await until(lambda: len(waiting(server)) == 1)
        wire.reset()
        await until(lambda: not admission._link.up)
        await until(lambda: admission._link.up)
        assert len(waiting(server)) == 1
        borrower.release()
        await back
        assert not permit.released
        permit.release()


# -- leases --------------------------------------------------------------------------------------------------


async def test_a_busy_loop_loses_nothing(tmp_path: Path) -> None:
    """The thread renews while the event loop stands still for three leases."""
    config = 'store = "memory:"\n[limits]\ntools = 1\n'
    async with serve(tmp_path, config) as server, remote(server.url, lease=0.5) as admission:
        permit = await admission.acquire("tools")
        time.sleep(1.5)  # noqa: ASYNC251 - that is what is tested
        assert not permit.lost
        await admission.refresh()
        assert not permit.lost
        assert [one.id for one in admission.holders("tools")] == [permit.id]
        assert permit.release()


async def test_a_holder_fences_itself() -> None:
    """Cut off from its server it counts its permits as lost before the server does, and releases nothing."""
    async with behind_a_proxy(lease=1.0, a=1) as (server, wire, admission):
        permit = await admission.acquire("a")
        wire.refuse = True
        wire.reset()
        await until(lambda: permit.lost)
        assert used(server) == 1  # the server would wait a little longer
        assert (permit.released, permit.release()) == (True, False)
        await until(lambda: used(server) == 0)
        wire.refuse = False
        (await admission.acquire("a")).release()


async def test_a_grant_that_came_too_late_is_not_used() -> None:
    """It lay on the wire for longer than its lease: it counts from when the server was last heard to have
    heard us, so it is given back and asked for again."""
    async with behind_a_proxy(lease=0.4, a=1) as (server, _, admission):
        holder = await admission.acquire("a")
        task = await asked(admission, "a", key="k")
        await until(lambda: waiting(server) == ["k"])
        link = admission._link
        received = link._received
        late: list[bytes] = []
        assert link._socket is not None
        link._socket._received = late.append
        holder.release()
        await until(lambda: len(late) > 0 and used(server) == 1)
        (fence,) = (one.fence for one in server.admission.holders("a"))
        await asyncio.sleep(0.45)
        link._socket._received = received
        for message in late:
            received(message)
        permit = await task
        assert permit.fence > fence
        assert not permit.lost
        permit.release()


async def test_errors_are_those_of_the_server() -> None:
    """Class, code, message and details; also what the client knows itself."""
    async with behind_a_proxy(a=1) as (_, _, admission):
        permit = await admission.acquire("a")
        async with permit.lend():
            with pytest.raises(InvalidOperation, match="is lent already"):
                await permit.lend().__aenter__()
        permit.release()
        with pytest.raises(InvalidOperation, match="has been released"):
            await permit.lend().__aenter__()
        with pytest.raises(InvalidOperation, match=r"acquire\(…, timeout=0\)"):
            admission.try_acquire("a")
        parent = await admission.acquire("a")
        child = await admission.acquire("a", parent=parent)
        with pytest.raises(InvalidOperation, match="shares its units"):
            await parent.lend().__aenter__()
        child.release()
        parent.release()


async def test_a_lent_permit_that_is_lost_says_so() -> None:
    """`PermitLost` on leaving."""
    async with behind_a_proxy(lease=0.5, a=1) as (server, _, admission):
        permit = await admission.acquire("a")
        lending = permit.lend()
        await lending.__aenter__()
        server.admission.revoke(server.admission.kernel.permits[permit.id])
        await until(lambda: permit.lost)
        with pytest.raises(PermitLost):
            await lending.__aexit__(None, None, None)


async def test_another_event_loop_may_go_on() -> None:
    """A second asyncio.run() with the same admission connects anew; what is held is held."""
    async with behind_a_proxy(a=2) as (server, _, _):

        def elsewhere() -> None:
            admission = RemoteAdmission(server.url)
            permits = [asyncio.run(_acquired(admission)) for _ in range(2)]
            assert [permit.lost for permit in permits] == [False, False]
            asyncio.run(_released(admission, permits))

        await asyncio.to_thread(elsewhere)
        await until(lambda: used(server) == 0)


async def _acquired(admission: RemoteAdmission) -> Any:
    return await admission.acquire("a")


async def _released(admission: RemoteAdmission, permits: list[Any]) -> None:
    await admission.refresh()
    for permit in permits:
        assert permit.release()
    await admission.aclose()
