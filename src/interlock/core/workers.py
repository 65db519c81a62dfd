"""What several processes that share a store tell each other: who works, and what is wanted of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

WishVerb: TypeAlias = Literal["cancel", "interrupt", "pause", "resume"]


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that holds sessions and runs their runs, as long as it renews its lease."""

    id: str
    host: str
    pid: int
    agents: tuple[str, ...] = ()
    """Names of the agents that it has."""
    started_at: float = 0.0
    draining: bool = False
    """Whether it takes nothing more."""
    seen_at: float = 0.0
    """When it renewed its lease last, by the store's clock."""
    alive: bool = True
    """Whether its lease runs."""
    sessions: int = 0
    """How many it holds."""


class Held(NamedTuple):
    """A session that a worker holds."""

    fence: int
    """How often it was taken by a worker."""
    runs: int
    """The number of its last run."""
    wished: bool = False
    """Whether somebody waits for something to be done to its runs."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants done to a run in flight, for the worker that has it."""

    session_id: str
    run_id: str
    verb: WishVerb
    key: int = 0
    """Its place among all wishes, once it is stored."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a wish: an error's code and message, or None where it was done."""

    code: str | None = None
    message: str = ""
