"""The library in Lua and the oracle, asked the same; the first difference is an AssertionError."""

from __future__ import annotations

from collections import Counter
from typing import Any

from admission.redis.oracle import Oracle
from admission.redis.servers import Namespace
from admission.redis.walks import Walk
from interlock.core.model import PATIENCE

COMPARED = ("known", "stale", "now", "answers", "inbox", "due", "quarantine")
AT_ONCE = 50
LOOKED_THROUGH = 7
"""After how many requests the books are compared and checked."""


class Differs(AssertionError):
    """The two say or keep something else."""


def hunt(namespace: Namespace, kind: str, seed: int, count: int) -> tuple[int, Counter[str]]:
    """Walk one world: how many operations, and what was reached."""
    namespace.empty()
    oracle = Oracle()
    walk = Walk(kind, seed, count, oracle)
    operations = 0
    asked: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for number, request in enumerate(walk.requests()):
        if request is None:
            _compare(namespace, asked, f"{kind} {seed} {count}")
            namespace.empty()
            oracle.flush()
            oracle.reached["everything lost"] += 1
            continue
        if number % LOOKED_THROUGH == 0:
            request["ops"] = [*request["ops"], ["state", 0], ["check", 0]]
        operations += len(request["ops"])
        expected = oracle.call(request)
        asked.append((request, _plain(expected)))
        if len(asked) == AT_ONCE:
            _compare(namespace, asked, f"{kind} {seed} {count}")
        walk.heard(request, expected)
        _note_states(oracle)
    _compare(namespace, asked, f"{kind} {seed} {count}")
    return operations, oracle.reached


def _compare(namespace: Namespace, asked: list[tuple[dict[str, Any], dict[str, Any]]], walk: str) -> None:
    """Have the library answer what the oracle has: the walk needs no answer but the oracle's."""
    replies = namespace.call_all([request for request, _ in asked])
    for (request, expected), got in zip(asked, replies, strict=True):
        difference = f"{got}" if isinstance(got, Exception) else None
        for what in () if difference else COMPARED:
            mine, theirs = expected[what], _plain(got[what])
            if mine != theirs:
                difference = _first_difference(what, mine, theirs)
                break
        if difference is not None:
            replay = f"replay: PYTHONPATH=tests python -m admission.redis.test_differential {walk}"
            raise Differs(f"the walk {walk} differs at {request}:\n{difference}\n{replay}")
    asked.clear()


def _note_states(oracle: Oracle) -> None:
    for limit in oracle.kernel.limits.values():
        oracle.reached["somebody stands aside"] += bool(limit.aside)
        oracle.reached["somebody reserves"] += bool(limit.reservers)
        for _, _, lane in limit.reservers:
            oracle.reached["out of patience"] += lane.head is not None and lane.head.passed == PATIENCE


def _answers(namespace: Namespace, oracle: Oracle, request: dict[str, Any]) -> dict[str, Any]:
    expected = oracle.call(request)
    got = namespace.call(request)
    for what in COMPARED:
        mine, theirs = _plain(expected[what]), _plain(got[what])
        if mine != theirs:
            raise AssertionError(_first_difference(what, mine, theirs))
    return expected


def _plain(value: Any) -> Any:
    """Lists for tuples, and for what is empty: Lua does not tell an empty map from an empty list."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()} or []
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _first_difference(what: str, mine: Any, theirs: Any) -> str:
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        for at, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            if one != other:
                return _first_difference(f"{what}[{at}]", one, other)
    if isinstance(mine, dict) and isinstance(theirs, dict) and mine.keys() == theirs.keys():
        for name, one in mine.items():
            if one != theirs[name]:
                return _first_difference(f"{what}.{name}", one, theirs[name])
    return f"{what}: kernel {mine!r}\n{' ' * len(what)}  lua    {theirs!r}"


EVERYTHING = {
    "adopted",
    "adopted what still waited",
    "adoption refused",
    "another server",
    "asked for its units twice",
    "asked twice",
    "client fell silent",
    "epoch without quarantine",
    "everything lost",
    "gate recycled=False",
    "gate recycled=True",
    "given back unused",
    "given back, but not by all",
    "granted",
    "held",
    "hold of nothing",
    "joined",
    "leap",
    "leap counted",
    "lend None",
    "lend family",
    "lend lent",
    "limit kept",
    "not wanted any more",
    "one of several timed out",
    "out of patience",
    "outlived the one it had joined",
    "owner released",
    "quarantine",
    "quarantine extended",
    "queued",
    "reclaimed",
    "refused conflict",
    "refused deadlock",
    "refused lent",
    "refused lost",
    "refused parent_released",
    "refused queue_full",
    "refused unknown_limit",
    "refused would_block",
    "released cancelled",
    "released failed",
    "released nothing",
    "released success",
    "removed",
    "resumed in quarantine",
    "revoked",
    "silent one's grant given back",
    "silent one's wait withdrawn",
    "somebody reserves",
    "somebody stands aside",
    "stale request",
    "told done",
    "told ended",
    "told gate",
    "told granted",
    "told refused deadlock",
    "told refused limit_removed",
    "told refused lost",
    "told refused parent_ended",
    "told refused released",
    "told refused revoked",
    "told refused timed_out",
    "touched",
    "waits to reclaim",
    "withdrawn",
    "withdrawn when granted",
    "withdrawn, others wait on",
}
"""Every answer, refusal, ending and rare state; a hunt that missed one has not hunted."""
