"""Clients of a fleet: processes that take permits through an admission and write down all that they are told.

    python fleet_client.py

is a process that has everything loaded and becomes two with every line that it is given: a JSON object with
the members of `Plan`. It answers with the number of the new one, which works until it is killed or gets a
SIGTERM; then it gives back what it has, and ends. Each piece of work is one ``ask``:

==============  ===========================================================================================
``ask``         about to be asked for: ``ask``, ``limits``, ``key``, ``owner``, ``priority``, ``timeout``
``queued``      told that it waits
``cancelling``  about to be given up; ``cancelled`` once it has been
``refused``     it ended with the error of this ``code``
``granted``     it was granted: ``permit``, ``fence``; ``live`` unless it was lost before that was heard
``held``        the permit was still held
``lost``        it was not any more: it was ``lost``, or others released the key
``releasing``   about to be released; ``released`` with the ``answer``, True if that ended it
``noted``       what the package logged: ``text``
``ended``       the process ended by itself
==============  ===========================================================================================

``at`` of ``held`` and ``granted`` is from before the permit was looked at: it was held at that time for sure.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from histories import Book, now

from interlock.admission.remote import RemoteAdmission
from interlock.errors import InterlockError, Unavailable, ValidationError

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.02
ORDINARY, HASTY = 60.0, 0.2


@dataclass
class Plan:
    """What a client is to do."""

    name: str
    url: str
    upstream: str
    histories: str
    seed: int
    lease: float
    limits: dict[str, dict[str, Any]]
    """By name: ``capacity``, ``cooldown``."""
    tasks: int = 2
    shortest: float = 0.005
    longest: float = 0.05
    """Seconds of the shortest and of the longest piece of work."""
    mixed: bool = True
    """Whether it wants different limits and priorities, shares keys, gives up and releases in every way."""
    namespace: str = ""
    """The file of the network namespace that it lives in; its own, if it is empty."""
    everything: float = 0.0
    """If not 0: it wants all units at once, within so many seconds, and then ends."""


@dataclass
class Work:
    """One piece of work."""

    limits: tuple[str, ...]
    seconds: float
    manner: str = "release"
    key: str | None = None
    owner: str | None = None
    priority: int = 0
    timeout: float = ORDINARY


MANNERS = {
    "release": 12,
    "fail": 2,
    "twice": 2,
    "owner": 1,
    "cancel": 3,
    "hasty": 2,
    "at once": 1,
    "keyed": 2,
    "urgent": 2,
}
"""How a piece of work goes, and how often."""


def imagine(plan: Plan, dice: Random, name: str) -> Work:
    """The next piece of work."""
    first = next(iter(plan.limits))
    seconds = dice.uniform(plan.shortest, plan.longest)
    if not plan.mixed:
        return Work((first,), seconds)
    manner = dice.choices(list(MANNERS), list(MANNERS.values()))[0]
    if manner == "keyed":
        return Work((first,), seconds, manner, key=f"key {dice.randrange(3)}")
    names = dice.choices([(first,), tuple(plan.limits), (dice.choice(list(plan.limits)),)], [5, 1, 4])[0]
    work = Work(tuple(dice.sample(names, len(names))), seconds, manner)
    if manner == "owner":
        work.owner = name
    elif manner == "hasty":
        work.timeout = dice.uniform(0, HASTY)
    elif manner == "at once":
        work.timeout = 0
    elif manner == "urgent":
        work.priority = -1
    return work


class Noting(logging.Handler):
    """Writes down what the package logs."""

    def __init__(self, book: Book) -> None:
        super().__init__()
        self.book = book

    def emit(self, record: logging.LogRecord) -> None:
        self.book.write("noted", text=record.getMessage())


class Client:
    """One process."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.book = Book(Path(plan.histories), plan.name)
        self.stopping = False
        self.parent = os.getppid()
        self.admission: Any = None
        self.number = 0

    async def run(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop)
        logging.getLogger("interlock").addHandler(Noting(self.book))
        self.admission = await connect(self.plan)
        await self._declare()
        await asyncio.gather(*(self._work_on(task) for task in range(self.plan.tasks)))
        await self.admission.aclose()
        self.book.write("ended")

    @property
    def going_on(self) -> bool:
        """Whether it has not been told to stop, and the test is still there."""
        return not self.stopping and os.getppid() == self.parent

    def _stop(self) -> None:
        self.stopping = True

    async def _declare(self) -> None:
        """Say which limits there are, for an engine that does not know them (any more)."""
        for name, limit in self.plan.limits.items():
            declared = False
            while not declared and self.going_on:
                with suppress(Unavailable):
                    await self.admission.set_limit(name, limit["capacity"], cooldown=limit["cooldown"])
                    declared = True

    async def _work_on(self, task: int) -> None:
        dice = Random(f"{self.plan.seed} {self.plan.name} {task}")
        if self.plan.everything:
            names = [name for name, limit in self.plan.limits.items() for _ in range(limit["capacity"])]
            everything = Work(tuple(names), 0.0, timeout=self.plan.everything)
            await self._work(everything, f"{self.plan.name}-all", dice)
            return
        while self.going_on:
            self.number += 1
            name = f"{self.plan.name}-{self.number}"
            await self._work(imagine(self.plan, dice, name), name, dice)

    async def _work(self, work: Work, ask: str, dice: Random) -> None:
        self.book.write(
            "ask",
            ask=ask,
            limits=work.limits,
            key=work.key,
            owner=work.owner,
            priority=work.priority,
            timeout=work.timeout,
        )
        acquiring = asyncio.ensure_future(self._acquire(work, ask))
        if work.manner == "cancel":
            await asyncio.sleep(dice.uniform(0, 0.1))
            self.book.write("cancelling", ask=ask)
            acquiring.cancel()
        try:
            permit = await acquiring
        except asyncio.CancelledError:
            self.book.write("cancelled", ask=ask)
            return
        except InterlockError as error:
            self.book.write("refused", ask=ask, code=error.code)
            if isinstance(error, ValidationError):  # it has forgotten the limits
                await self._declare()
            return
        at = now()
        live = not permit.released
        self.book.write("granted", ask=ask, permit=permit.id, fence=permit.fence, live=live, at=at)
        if live:
            await self._use(permit, work, ask)
        await self._give_back(permit, work, ask)

    async def _acquire(self, work: Work, ask: str) -> Any:
        return await self.admission.acquire(
            *work.limits,
            key=work.key,
            owner=work.owner,
            priority=work.priority,
            timeout=work.timeout,
            on_queued=lambda: self.book.write("queued", ask=ask),
        )

    async def _use(self, permit: Any, work: Work, ask: str) -> None:
        reader, writer = await asyncio.open_unix_connection(self.plan.upstream)
        begin = {"what": "begin", "ask": ask, "client": self.plan.name, "limits": work.limits}
        writer.write(json.dumps({**begin, "permit": permit.id, "fence": permit.fence}).encode() + b"\n")
        await reader.readline()
        ends = now() + work.seconds
        while True:
            at = now()
            if permit.released:
                self.book.write("lost", ask=ask, lost=permit.lost)
                break
            self.book.write("held", ask=ask, at=at)
            if at >= ends or self.stopping:
                break
            await asyncio.sleep(min(LOOK_SECONDS, ends - at))
        writer.write(b"out\n")
        await reader.readline()
        writer.close()

    async def _give_back(self, permit: Any, work: Work, ask: str) -> None:
        self.book.write("releasing", ask=ask)
        if work.manner == "owner":
            with suppress(Unavailable):
                await self.admission.release_owner(work.owner)
            self.book.write("released", ask=ask, answer=permit.release())
            return
        outcome = "failed" if work.manner == "fail" else "success"
        self.book.write("released", ask=ask, answer=permit.release(outcome))
        if work.manner == "twice":
            self.book.write("released", ask=ask, answer=permit.release())


async def connect(plan: Plan) -> Any:
    """The admission that the scheme of the URL names."""
    if plan.url.startswith("http"):
        return RemoteAdmission(plan.url, lease=plan.lease)
    from interlock import RedisAdmission  # type: ignore[attr-defined]

    return await RedisAdmission.connect(plan.url, namespace="fleet", lease=plan.lease)


def move(namespace: str) -> None:
    """Put this process into the network *namespace*."""
    import ctypes

    with Path(namespace).open("rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")


def main() -> None:
    """Become two with every line."""
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger().handlers[0].setLevel(logging.ERROR)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while line := sys.stdin.readline():
        process_id = os.fork()
        if process_id == 0:
            code = 1
            try:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                plan = Plan(**json.loads(line))
                if plan.namespace:
                    move(plan.namespace)
                asyncio.run(Client(plan).run())
                code = 0
            except BaseException:
                log.exception("a client failed")
            finally:
                os._exit(code)
        print(process_id, flush=True)


if __name__ == "__main__":
    main()
