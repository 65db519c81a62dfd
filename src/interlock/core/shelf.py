"""The agents of a pool: who is idle, out, being prepared or being closed, and which should go or come.

The vocabulary is that of SQLAlchemy's QueuePool: ``size`` agents are kept, up to ``max_overflow`` more are
started when all are out. Which of them is overflow is a mark on the agent itself, not a count. Agents are
told apart by identity, so they need neither a hash nor a sensible ``==``. Times are in milliseconds.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

State = Literal["here", "preparing", "closing", "gone"]
"""``here`` is idle or out, ``preparing`` is being reset or checked; ``closing`` still counts, ``gone`` does
not."""


class Member:
    """One agent of the pool. It is out while it has a ``permit``, that of whoever uses it."""

    __slots__ = (
        "agent",
        "alive",
        "born_ms",
        "dead",
        "failures",
        "lent_by",
        "overflow",
        "permit",
        "since_ms",
        "state",
        "surplus",
        "used",
        "user",
        "warned",
        "watch",
    )

    def __init__(self, agent: Any, overflow: bool, now_ms: int) -> None:
        self.agent = agent
        self.overflow = overflow
        self.born_ms = now_ms
        self.since_ms = now_ms
        """Since when it is idle; while it is out and watched, since when it is out."""
        self.state: State = "here"
        self.permit: Any = None
        self.lent_by: Any = None
        """The checkout by which it went out last: a late one of an earlier user has no say in it."""
        self.surplus = False
        """An overflow agent that stays only for those who wait."""
        self.used = False
        self.failures = 0
        """How many starts had failed in a row before this one came."""
        self.dead = False
        self.alive: Callable[[], object] | None = None
        """How the agent is asked whether it lives; None if it cannot tell."""
        self.watch: Any = None
        self.user: Any = None
        self.warned = False

    def __repr__(self) -> str:
        kind = "overflow agent" if self.overflow else "agent"
        return f"<{kind} {self.agent!r}: {'out' if self.permit is not None else self.state}>"


class Shelf:
    """The idle agents in the order of their return, and the count of all the others.

    ``lifo`` hands out the last returned, else the longest returned goes first. An overflow agent is to be
    closed once it was idle for *max_idle_ms* (None: it does not stay when it comes back), any agent once it
    is *max_lifetime_ms* old.
    """

    def __init__(
        self,
        size: int,
        max_overflow: int,
        *,
        lifo: bool = True,
        max_idle_ms: int | None = None,
        max_lifetime_ms: int | None = None,
    ) -> None:
        self.size = size
        self.max_overflow = max_overflow
        self.max_idle_ms = max_idle_ms
        self.max_lifetime_ms = max_lifetime_ms
        self.members: dict[int, Member] = {}
        """Every agent that counts, by identity."""
        self.idle: deque[Member] = deque()
        self.next = self.idle.pop if lifo else self.idle.popleft
        """Take the idle agent whose turn it is off the shelf."""
        self.lay = self.idle.append
        """Lay an agent on the shelf whose time does not matter; else `put`."""
        self.starting = 0
        self.preparing = 0
        self.closing = 0
        self.kept = 0
        """How many of the ``size`` places are taken."""

    # -- coming

    def arrive(self, agent: Any, now_ms: int) -> Member:
        """*agent* was started: it takes a vacant place, or is overflow."""
        assert id(agent) not in self.members, "an agent arrives once"
        member = Member(agent, self.kept >= self.size, now_ms)
        self.kept += not member.overflow
        self.members[id(agent)] = member
        return member

    def find(self, agent: object) -> Member | None:
        """The member that is *agent* itself."""
        return self.members.get(id(agent))

    def put(self, member: Member, now_ms: int) -> None:
        """*member* is idle from now on."""
        member.since_ms = now_ms
        self.idle.append(member)

    def settle(self, member: Member) -> bool:
        """Whether *member*, which came back, stays: one that is overflow does so in a vacant place, or for
        *max_idle_ms*."""
        if member.overflow and self.kept < self.size:
            member.overflow = False
            self.kept += 1
        member.surplus = member.overflow and self.max_idle_ms is None
        return not member.surplus

    # -- changing

    def prepare(self, member: Member) -> None:
        """*member* is being reset or checked."""
        member.state = "preparing"
        self.preparing += 1

    def prepared(self, member: Member) -> None:
        """The preparation of *member* has ended, if it was in one."""
        if member.state == "preparing":
            member.state = "here"
            self.preparing -= 1

    def leave(self, member: Member) -> None:
        """*member* is being closed: its place is vacant, but it still counts."""
        self.prepared(member)
        member.state = "closing"
        self.closing += 1
        if not member.overflow:
            self.kept -= 1

    def forget(self, member: Member) -> None:
        """*member*, which was leaving, does not exist any more."""
        if member.state == "closing":
            member.state = "gone"
            self.closing -= 1
            del self.members[id(member.agent)]

    # -- what follows from it

    @property
    def staying(self) -> int:
        """Agents that are not about to go."""
        return len(self.members) - self.closing

    @property
    def room(self) -> int:
        """How many may be started: those on their way out still count, so there are never more at once."""
        return self.size + self.max_overflow - len(self.members) - self.starting

    def to_start(self, waiting: int, spare: int | None = None) -> int:
        """How many to start now for *waiting* callers and to have ``size`` again (of these only *spare*)."""
        vacant = self.size - self.staying - self.starting
        if spare is not None:
            vacant = min(vacant, spare)
        lacking = waiting - self.starting - self.preparing - len(self.idle)
        return max(0, min(max(vacant, lacking), self.room))

    def out(self) -> list[Member]:
        """Who is out."""
        return [member for member in self.members.values() if member.permit is not None]

    def overflow(self) -> int:
        """How many of those that stay are overflow."""
        return self.staying - self.kept

    def surplus(self) -> list[Member]:
        """Idle ones that stayed only for those who wait."""
        return [member for member in self.idle if member.surplus]

    # -- time

    def outlived(self, member: Member, now_ms: int) -> bool:
        """Whether *member* is past its lifetime."""
        return self.max_lifetime_ms is not None and member.born_ms + self.max_lifetime_ms <= now_ms

    def due_ms(self, member: Member) -> int | None:
        """When *member*, idle, is to be closed; None: never."""
        due = None if self.max_lifetime_ms is None else member.born_ms + self.max_lifetime_ms
        if member.overflow and self.max_idle_ms is not None:
            idle_due = member.since_ms + self.max_idle_ms
            return idle_due if due is None else min(due, idle_due)
        return due

    def next_due(self) -> int | None:
        """Before this moment none that is idle is to be closed."""
        dues = [due for member in self.idle if (due := self.due_ms(member)) is not None]
        return min(dues, default=None)

    def expire(self, now_ms: int) -> list[Member]:
        """Take those that are due off the shelf."""
        expired = [one for one in self.idle if (due := self.due_ms(one)) is not None and due <= now_ms]
        for member in expired:
            self.idle.remove(member)
        return expired

    # -- self-check

    def check(self) -> None:
        """AssertionError, saying what is wrong, if a count left what it is derived from."""
        members = self.members.values()
        assert all(key == id(member.agent) for key, member in self.members.items())
        assert self.closing == sum(member.state == "closing" for member in members), "closing is miscounted"
        assert self.preparing == sum(member.state == "preparing" for member in members)
        kept = sum(not member.overflow for member in members if member.state != "closing")
        assert self.kept == kept <= self.size, f"{kept} agents are kept, {self.kept} are counted"
        assert self.starting >= 0
        assert self.room >= 0, "more agents than there may be"
        for member in self.idle:
            assert member.state == "here", f"{member!r} is idle"
            assert member.permit is None, f"{member!r} is idle and out"
        assert len(self.idle) == len({id(member) for member in self.idle}), "an agent is idle twice"
