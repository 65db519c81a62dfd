"""What the scenes of the rules are played with: a kernel, who asks, and what it has to tell."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from interlock.core.kernel import Kernel
from interlock.core.model import (
    NO_COOLDOWN,
    Ended,
    Granted,
    Permit,
    Refused,
    Waiter,
)


def world(**limits: int | dict[str, Any] | None) -> Kernel:
    """A kernel with these limits: a capacity each, or a dict with more settings."""
    kernel = Kernel()
    for name, setting in limits.items():
        kernel.configure(name, 0, **(setting if isinstance(setting, dict) else {"capacity": setting}))
    return kernel


def ask(kernel: Kernel, *names: str, at: int = 0, **asked: Any) -> Permit | Waiter | Refused:
    return kernel.acquire(kernel.claims(names), at, **asked)


def hold(kernel: Kernel, *names: str, at: int = 0, **asked: Any) -> Permit:
    """Ask, and be let in at once."""
    permit = ask(kernel, *names, at=at, **asked)
    assert isinstance(permit, Permit), f"{names} should have had room: {kernel}"
    return permit


def queue(kernel: Kernel, *names: str, at: int = 0, **asked: Any) -> Waiter:
    """Ask, and have to wait."""
    waiter = ask(kernel, *names, at=at, **asked)
    assert isinstance(waiter, Waiter), f"{names} should have had to wait: {kernel}"
    assert waiter.waiting
    return waiter


def let_in(kernel: Kernel) -> list[Waiter]:
    """Who of those who waited was let in since this was asked last, in order."""
    granted = [effect.waiter for effect in kernel.outbox if isinstance(effect, Granted)]
    kernel.outbox.clear()
    return granted


def told(kernel: Kernel) -> list[tuple[str, Permit | Waiter]]:
    """What came to an end unasked since this was asked last, and why."""
    endings = [(effect.reason, effect.subject) for effect in kernel.outbox if isinstance(effect, Ended)]
    kernel.outbox.clear()
    return endings


def copy_of(kernel: Kernel, *more: Any) -> Any:
    """The same state once more, to try something on it."""
    return deepcopy((kernel, *more), {id(NO_COOLDOWN): NO_COOLDOWN})


def permit_of(waiter: Waiter) -> Permit:
    assert waiter.permit is not None, "it waits still"
    return waiter.permit


def used(kernel: Kernel) -> dict[str, int]:
    return {name: limit.used for name, limit in kernel.limits.items()}
