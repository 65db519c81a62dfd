"""What a workload asks for, drawn before the first call: every variant is asked for the same."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from interlock.testing.simulator.scenario import Variant, WorkloadScenario


SHORTEST: Final = 1e-6
"""Seconds that a call takes at least, so that it ends after all that came when it began."""


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A call that takes *hold* seconds at the provider, after a tool that took *tool*."""

    tool: float
    hold: float


@dataclass(frozen=True, slots=True)
class PlannedTurn:
    """A prompt, *think* seconds after the session was ready for it. *since*: it began then instead."""

    think: float
    calls: tuple[PlannedCall, ...]
    since: float | None = None


@dataclass(frozen=True, slots=True)
class PlannedSession:
    """A conversation that begins at *start*, seconds from the beginning; *lane* is its workload's number."""

    id: str
    start: float
    provider: str
    priority: int
    turns: tuple[PlannedTurn, ...]
    lane: int = 0


@dataclass(frozen=True)
class Plan:
    """All sessions by the time of their start; *agents* of each lane, None: as many as there are sessions."""

    sessions: tuple[PlannedSession, ...]
    agents: tuple[int | None, ...]
    calls: int


def plan(variant: Variant) -> Plan:
    """What happens in *variant*, as far as no limit has a say in it."""
    settings = variant.settings
    sessions: list[PlannedSession] = []
    for lane, workload in enumerate(settings.workload):
        sessions += _drawn(settings.seed, lane, workload)
    for number, one in enumerate(variant.arrivals):
        turn = PlannedTurn(
            0.0, (PlannedCall(0.0, max(SHORTEST, one.hold)),), one.at if one.since is None else one.since
        )
        conversation = one.conversation or f"log:{number}"
        sessions.append(PlannedSession(conversation, one.at, one.provider, one.priority, (turn,)))
    sessions.sort(key=lambda session: session.start)
    agents = tuple(workload.agents for workload in settings.workload) or (None,)
    calls = sum(len(turn.calls) for session in sessions for turn in session.turns)
    return Plan(tuple(sessions), agents, calls)


def _drawn(seed: int, lane: int, workload: WorkloadScenario) -> list[PlannedSession]:
    random = Random(f"{seed}:{lane}")  # noqa: S311 - repeatable on purpose
    start = 0.0
    found = []
    for number in range(workload.sessions):
        start = round(start + (workload.arrivals.draw(random) if number else 0.0), 6)
        # Of its own: what one session draws must not depend on how much another did.
        own = Random(f"{seed}:{lane}:{number}")  # noqa: S311
        turns = []
        for turn in range(own.randint(*workload.turns)):
            think = workload.think.draw(own) if turn else 0.0
            calls = tuple(
                PlannedCall(
                    workload.tool.draw(own) if call else 0.0, max(SHORTEST, workload.latency.draw(own))
                )
                for call in range(own.randint(*workload.calls))
            )
            turns.append(PlannedTurn(think, calls))
        session = PlannedSession(
            f"{lane}.{number}", start, workload.provider, workload.priority, tuple(turns), lane
        )
        found.append(session)
    return found
