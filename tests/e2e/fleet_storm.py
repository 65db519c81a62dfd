"""A fleet of real processes over one engine, and all that can happen to it.

    async with storm(engine, tmp_path, dice) as fleet:
        await fleet.join(8)
        await fleet.hunt(kills=3, freezes=3, faults=tuple(FAULTS))
        await fleet.finish()
        print(await fleet.judged())

Every client has a wire of its own to the engine. What is done to whom is written down beside what the clients
write; `fleet_checker` judges all of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from e2e.engines import Engine, Happening
from e2e.histories import Book
from e2e.namespaces import Host
from e2e.observe import until
from fault_proxy import FAULTS, Proxy, proxy
from processes import environment

HERE = Path(__file__).parent
LIMITS = {
    "tools": {"capacity": 4, "cooldown": 0.0},
    "models": {"capacity": 3, "cooldown": 0.0},
    "cooling": {"capacity": 2, "cooldown": 0.1},
}
EVERYBODY = "*"


class Member:
    """One client: its process and its wire."""

    def __init__(self, name: str, process_id: int, wire: Proxy) -> None:
        self.name = name
        self.process_id = process_id
        self.wire = wire
        self.spared = False
        """Whether it is in trouble, or is to have none."""

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process_id, number)

    async def gone(self) -> bool:
        try:
            os.kill(self.process_id, 0)
        except ProcessLookupError:
            return True
        return False


class Storm:
    """See above; made by `storm`."""

    def __init__(
        self, engine: Engine, directory: Path, dice: Random, lease: float, limits: dict[str, Any]
    ) -> None:
        self.engine = engine
        self.dice = dice
        self.lease = lease
        self.limits = limits
        self.histories = directory / "histories"
        self.histories.mkdir()
        self.errors = directory / "clients.stderr"
        self.book = Book(self.histories, "storm")
        self.book.write("fleet", lease=lease, limits=limits)
        self.members: dict[str, Member] = {}
        self.upstream = ""
        self._named = 0
        self._joining = asyncio.Lock()
        self._nursery: Process | None = None
        self._stack = AsyncExitStack()

    # -- coming and going

    async def __aenter__(self) -> Storm:
        where = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-"))
        self.upstream = f"{where}/upstream"  # a socket's path has to be short
        bare = (sys.executable, "-E", "-s", "-S")
        counting = await self._spawn(
            *bare, f"{HERE / 'fleet_upstream.py'}", self.upstream, f"{self.histories}"
        )
        assert counting.stdout is not None
        assert await counting.stdout.readline() == b"ready\n"
        self._nursery = await self._spawn(sys.executable, f"{HERE / 'fleet_client.py'}")
        if self.engine.forgetful:
            async with self.disturbed(EVERYBODY, "engine begins"):
                pass
        return self

    async def __aexit__(self, *_: object) -> None:
        for member in self.members.values():
            member.signal(signal.SIGKILL)
        await self._stack.aclose()
        self.book.close()

    async def _spawn(self, *words: str) -> Process:
        with self.errors.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                *words, env=environment(), stdin=PIPE, stdout=PIPE, stderr=errors, start_new_session=True
            )

        async def end() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.communicate()

        self._stack.push_async_callback(end)
        return process

    async def join(self, count: int = 1, address: str = "127.0.0.1", **more: Any) -> list[Member]:
        """*count* new clients, whose wires begin at *address*; *more* is for their `fleet_client.Plan`."""
        assert self._nursery is not None
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        joined = []
        for _ in range(count):
            self._named += 1
            name = f"client {self._named}"
            wire = await self._stack.enter_async_context(proxy(self.engine.url, self.dice, address))
            plan = {
                "name": name,
                "url": wire.url,
                "upstream": self.upstream,
                "histories": f"{self.histories}",
                "seed": self.dice.randrange(1_000_000),
                "lease": self.lease,
                "limits": self.limits,
                "longest": self.dice.choice([0.05, 0.8]),
                **more,
            }
            async with self._joining:
                self._nursery.stdin.write(json.dumps(plan).encode() + b"\n")
                member = Member(name, int(await self._nursery.stdout.readline()), wire)
            self.members[name] = member
            joined.append(member)
        return joined

    # -- what can happen

    def kill(self, member: Member) -> None:
        """SIGKILL."""
        self.book.write("killing", who=member.name)
        member.signal(signal.SIGKILL)
        del self.members[member.name]

    @asynccontextmanager
    async def disturbed(self, who: str, kind: str) -> AsyncIterator[None]:
        """Around what happens to *who*, whose end begins when this ends."""
        self.book.write("disturbed", who=who, kind=kind)
        yield
        self.book.write("calm", who=who, kind=kind)

    async def freeze(self, member: Member, seconds: float) -> None:
        """SIGSTOP, and SIGCONT *seconds* later."""
        async with self.disturbed(member.name, "frozen"):
            member.signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
        member.signal(signal.SIGCONT)

    async def fault(self, member: Member, kind: str, seconds: float) -> None:
        """What happens to its wire is healed *seconds* later."""
        async with self.disturbed(member.name, kind):
            FAULTS[kind](member.wire, self.dice)
            await asyncio.sleep(seconds)
        member.wire.heal()

    async def unplug(self, member: Member, host: Host, seconds: float) -> None:
        """The link of *host*, on which it runs, is down for so long."""
        async with self.disturbed(member.name, "unplugged"):
            host.unplug()
            await asyncio.sleep(seconds)
        host.plug()

    async def engine_killed(self, seconds: float, cut_off: Sequence[Member] = ()) -> None:
        """Killed, and started *seconds* later, while those who are *cut_off* cannot say what they hold."""
        async with asyncio.TaskGroup() as tasks:
            for member in cut_off:
                tasks.create_task(self.fault(member, "partition", self.lease))
            async with self.disturbed(EVERYBODY, "engine killed"):
                await self.engine.kill()
                await asyncio.sleep(seconds)
                await self.engine.start()

    async def engine_frozen(self, seconds: float) -> None:
        """It stands still for so long."""
        async with self.disturbed(EVERYBODY, "engine frozen"):
            self.engine.freeze()
            await asyncio.sleep(seconds)
        self.engine.thaw()

    async def engine_suffers(self, kind: str, happens: Happening) -> None:
        """One of its `Engine.happenings`; should it be elsewhere afterwards, the wires lead there."""
        before = self.engine.url
        async with self.disturbed(EVERYBODY, kind):
            await happens()
            for member in self.members.values():
                member.wire.target = self.engine.url
                if self.engine.url != before:
                    member.wire.reset()

    async def hunt(
        self, kills: int = 0, freezes: int = 0, faults: tuple[str, ...] = (), at_once: int = 3
    ) -> None:
        """All of that, in any order, to *at_once* clients at a time; who is killed is replaced."""
        deeds: list[Callable[[Member], Awaitable[None]]] = [self._replace] * kills
        deeds += [partial(self.freeze, seconds=2 * self.lease)] * freezes
        deeds += [
            partial(self.fault, kind=kind, seconds=self.dice.uniform(0.1, 2 * self.lease)) for kind in faults
        ]
        self.dice.shuffle(deeds)

        async def work() -> None:
            while deeds:
                deed = deeds.pop()
                member = self.dice.choice([one for one in self.members.values() if not one.spared])
                member.spared = True
                await asyncio.sleep(self.dice.uniform(0, 0.3))
                await deed(member)
                member.spared = False

        await asyncio.gather(*(work() for _ in range(at_once)))

    async def _replace(self, member: Member) -> None:
        self.kill(member)
        await self.join(tasks=2)

    # -- what came of it

    async def begun(self) -> dict[str, int]:
        """How many pieces of work each client has begun."""
        reader, writer = await asyncio.open_unix_connection(self.upstream)
        writer.write(b'{"what": "count"}\n')
        counts: dict[str, int] = json.loads(await reader.readline())
        writer.close()
        return counts

    async def going_on(self, more: int, within: float = 20.0) -> float:
        """Return once *more* pieces of work have begun; how long that took."""
        wanted = sum((await self.begun()).values()) + more

        async def enough() -> bool:
            return sum((await self.begun()).values()) >= wanted

        return await until(enough, f"{more} more pieces of work", within=within, every=0.05)

    async def all_at_work(self, within: float = 20.0) -> None:
        """Return once every client has begun something."""

        async def enough() -> bool:
            return (await self.begun()).keys() >= self.members.keys()

        await until(enough, "every client at work", within=within, every=0.05)

    async def finish(self) -> float:
        """Half of the clients end by themselves, the others are killed at work.

        Returns the seconds until somebody had all units at once after that.
        """
        members = list(self.members.values())
        self.dice.shuffle(members)
        for member in members[::2]:
            member.signal(signal.SIGTERM)
        for member in members[1::2]:
            self.kill(member)
        for member in members[::2]:
            await until(member.gone, f"{member.name} ends when told to", within=70.0, every=0.02)
            del self.members[member.name]
        (last,) = await self.join(everything=60.0, tasks=1)
        return await until(last.gone, "the last client ends", within=70.0, every=0.05)

    async def judged(self) -> str:
        """What the checker says; raises AssertionError with every violation."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-E", "-s", "-S", HERE / "fleet_checker.py", self.histories),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
        )
        stdout, stderr = await process.communicate()
        assert process.returncode == 0, stdout.decode()[:8000] + stderr.decode()
        assert self.errors.read_text(encoding="utf-8") == ""
        return stdout.decode()


@asynccontextmanager
async def storm(
    engine: Engine, directory: Path, dice: Random, lease: float = 1.0, limits: dict[str, Any] | None = None
) -> AsyncIterator[Storm]:
    """A fleet over *engine*; what its clients write to standard error is shown if the test fails."""
    fleet = Storm(engine, directory, dice, lease, limits or LIMITS)
    try:
        async with fleet:
            yield fleet
    except BaseException as error:
        error.add_note(f"standard error of the clients:\n{fleet.errors.read_text(encoding='utf-8')[-4000:]}")
        raise
