"""Agents that are Python: named ``module:name`` in a configuration.

An agent of a session is ``async def agent(run)``, or an object with ``async def run(self, run)``. One of a
pool is anything that can be called.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from interlock.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

Marked = TypeVar("Marked", bound="Callable[..., Any]")

CAPABILITIES: Final = frozenset(("pause",))
"""What an agent may offer beside running: its runs can be paused at their checkpoints."""
_ALLOWED: Final = "allowed is `async def agent(run)`, or a class or an object with `async def run(self, run)`"


class FunctionAgent:
    """A function as an agent: `run` calls it, and awaits what it gives if need be."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    async def run(self, *args: Any, **kwargs: Any) -> Any:
        """What the function gives."""
        result = self.function(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    def __repr__(self) -> str:
        return f"<FunctionAgent {getattr(self.function, '__qualname__', self.function)}>"


def agent_factory(target: str) -> Callable[[], Any]:
    """What makes an agent of *target*, "module:name": a class is called, a function becomes its `run`.

    Raises `ValidationError` if there is no such thing, or it cannot be called.
    """
    found = _imported(target)
    if inspect.isclass(found):
        return found
    if not callable(found):
        raise ValidationError(
            f"target {target!r} is {type(found).__name__}; allowed are classes and functions"
        )
    return lambda: FunctionAgent(found)


# -- of sessions


@overload
def agent(marked: Marked, /) -> Marked: ...


@overload
def agent(*, capabilities: Collection[str] = ()) -> Callable[[Marked], Marked]: ...


def agent(marked: Marked | None = None, /, *, capabilities: Collection[str] = ()) -> Any:
    """Mark an async function, or a class with ``async def run(self, run)``, as an agent of a session.

        @interlock.agent(capabilities={"pause"})
        async def writer(run): ...

    *capabilities* are what it offers: ``"pause"`` if it calls ``run.checkpoint()`` often enough for its runs
    to be paused. Raises `ValidationError` for others, and for what cannot be an agent.
    """
    known = check_capabilities(capabilities)

    def mark(found: Marked) -> Marked:
        _check_agent(found, getattr(found, "__qualname__", repr(found)))
        found.capabilities = known  # type: ignore[attr-defined]
        return found

    return mark if marked is None else mark(marked)


def check_capabilities(capabilities: object) -> frozenset[str]:
    """*capabilities*, if they are names of what is known."""
    if isinstance(capabilities, (set, frozenset, list, tuple)):
        names = frozenset(one for one in capabilities if isinstance(one, str))
        if len(names) == len(capabilities) and names <= CAPABILITIES:
            return names
    allowed = ", ".join(map(repr, sorted(CAPABILITIES)))
    raise ValidationError(f"capabilities is {capabilities!r:.100}; allowed is a set with any of: {allowed}")


def session_agent(target: str) -> Any:
    """The agent of a session that *target*, "module:name", is; of a class, a new object.

    Raises `ValidationError` if there is no such thing, or it is no agent.
    """
    found = _imported(target)
    _check_agent(found, f"target {target!r}")
    if inspect.isclass(found):
        try:
            found = found()
        except TypeError as error:
            raise ValidationError(f"target {target!r} cannot be made without arguments: {error}") from error
    check_capabilities(getattr(found, "capabilities", ()))
    return found


def session_agents(target: str) -> dict[str, Any]:
    """The agents by name that *target* is, "module:name": a mapping of them, or one that is called *name*.

    Raises `ValidationError` as `session_agent`.
    """
    found = _imported(target)
    if not isinstance(found, Mapping):
        return {target.rpartition(":")[2].rpartition(".")[2]: session_agent(target)}
    for name, one in found.items():
        _check_agent(one, f"target {target!r}, agent {name!r}")
        check_capabilities(getattr(one, "capabilities", ()))
    return {str(name): one() if inspect.isclass(one) else one for name, one in found.items()}


def _check_agent(found: Any, name: str) -> None:
    given = 1
    if inspect.isclass(found):
        given, work = 2, getattr(found, "run", None)  # unbound: it takes `self` as well
    elif inspect.iscoroutinefunction(found):
        work = found
    else:
        work = getattr(found, "run", None)
    if not inspect.iscoroutinefunction(work):
        kind = "a plain function" if inspect.isroutine(found) else f"of type {type(found).__name__}"
        kind = "a class without `async def run`" if inspect.isclass(found) else kind
        raise ValidationError(f"{name} is {kind}; {_ALLOWED}")
    try:
        inspect.signature(work).bind(*[None] * given)
    except TypeError as error:
        raise ValidationError(f"{name} cannot be called with a run: {error}; {_ALLOWED}") from None


def _imported(target: str) -> Any:
    module, _, path = target.partition(":")
    try:
        found: Any = import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValidationError(f"target {target!r} cannot be imported: {error}") from None
    return found
