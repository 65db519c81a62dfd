"""Agents that are Python: named ``module:name`` in a configuration."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any

from interlock.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable


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
    module, _, path = target.partition(":")
    try:
        found: Any = import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise ValidationError(f"target {target!r} cannot be imported: {error}") from None
    if inspect.isclass(found):
        return found
    if not callable(found):
        raise ValidationError(
            f"target {target!r} is {type(found).__name__}; allowed are classes and functions"
        )
    return lambda: FunctionAgent(found)
