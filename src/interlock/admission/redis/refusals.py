"""The library's refusals as the errors that `interlock.admission.refusals` makes of the kernel's."""

from __future__ import annotations

from typing import Any

from interlock.admission.readings import BlockReading, Holder
from interlock.errors import (
    AcquireTimeout,
    DeadlockDetected,
    InterlockError,
    InvalidOperation,
    LimitExceeded,
    PermitLost,
    QueueFull,
    ValidationError,
)


def error_of(reason: str, details: Any, permit_id: str) -> InterlockError:
    """The error for the refusal *reason* of what was asked for under *permit_id*."""
    said: dict[str, Any] = details or {}
    limits = ", ".join(said.get("names", ()))
    match reason:
        case "would_block":
            why = "; ".join(map(str, _blocks(said)))
            return LimitExceeded(f"no room over {limits}: {why}", limit=said["limit"])
        case "timed_out":
            blocks = _blocks(said)
            waited = f"waited {said['waited_ms'] / 1000:g} s for {limits}: "
            return AcquireTimeout(
                waited + "; ".join(map(str, blocks)),
                limits=tuple(said["names"]),
                blocked_by=[block.limit for block in blocks],
            )
        case "queue_full":
            waiting = f"{said['queue_max']} wait for {said['limit']!r} already, as many as may"
            return QueueFull(waiting, limit=said["limit"])
        case "unknown_limit":
            known = ", ".join(said["known"]) or "none"
            return ValidationError(
                f"unknown limit {said['limit']!r}; known are: {known}", limit=said["limit"]
            )
        case "deadlock":
            return _deadlock(said["circle"])
        case "lost":
            return PermitLost(f"permit {said.get('id', permit_id)!r} was lost while it was lent")
    return InvalidOperation(_invalid(reason, said, limits, permit_id))


def _invalid(reason: str, said: dict[str, Any], limits: str, permit_id: str) -> str:
    match reason:
        case "conflict":
            return f"key {permit_id!r} is in use with other limits or another owner"
        case "lent":
            return f"the permit of key {permit_id!r} is lent until its holder has it back"
        case "parent_released":
            return f"the parent {said.get('parent')!r} has been released"
        case "parent_ended":
            return f"the parent was released while this waited for {limits}"
        case "released":
            return f"the permit was released while its holder waited to have {limits} back"
        case "revoked":
            return f"owner {said.get('owner')!r} was released while this waited"
        case "limit_removed":
            return f"a limit among {limits} was removed while this waited"
    return f"this was refused: {reason}"


def _blocks(said: dict[str, Any]) -> list[BlockReading]:
    return [
        BlockReading(
            limit=limit,
            why=why,
            missing=missing,
            used=used,
            capacity=capacity or None,
            until=until / 1000 if until else None,
            ahead=("",) * ahead,
            holders=tuple(Holder(name, None, name, (), 0, 0.0, None) for name in holders),
        )
        for limit, why, missing, used, capacity, until, ahead, holders in said["blocks"]
    ]


def _deadlock(circle: list[list[str]]) -> DeadlockDetected:
    names = [name for name, _ in circle]
    steps = ", ".join(
        f"{name} waits for {limit!r} that {keeper} keeps"
        for (name, limit), keeper in zip(circle, [*names[1:], names[0]], strict=True)
    )
    return DeadlockDetected(
        f"this would wait for ever: {steps}", limits=[limit for _, limit in circle], circle=names
    )
