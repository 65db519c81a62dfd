"""A limit around a function: one decorator for coroutine functions, generators and plain functions.

The module is not called after its one function: `interlock.limited` would then be now this, now that.
"""

from __future__ import annotations

import inspect
from contextlib import aclosing
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from interlock.admission.permit import DEFAULT_TIMEOUT
from interlock.errors import ValidationError
from interlock.sync import Facade

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    F = TypeVar("F", bound=Callable[..., Any])


def limited(
    source: Any,
    *names: str,
    timeout: float | None = DEFAULT_TIMEOUT,
    conversation: str | Callable[..., str | None] | None = None,
    **asked: Any,
) -> Callable[[F], F]:
    """Each call of the function holds one permit over *names* while it runs.

        @limited(admission, "tools", "global", timeout=5)
        async def search(query): ...

        @limited(gate, "openai", conversation=lambda request: request.session)
        async def complete(request): ...

    An asynchronous generator, or a plain one, holds it from its first item to its end. A plain function wants
    a facade of `interlock.sync` as *source* and is called in threads.

    Args:
        source: what has the limits: an admission, a gate (its one name is the provider), or a facade of one.
        timeout: seconds to wait; None for ever, 0 not at all.
        conversation: of a gate: who holds, or a function of the call's own arguments that says so.
        asked: what else ``source.acquire`` takes.

    Raises `ValidationError` where source and function do not go together, and a call what its acquire raises.
    """
    if not names or not all(isinstance(name, str) for name in names):
        raise ValidationError("limited needs the names of its limits: @limited(admission, 'tools')")
    asked["timeout"] = timeout

    def acquire(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if conversation is None:
            return source.acquire(*names, **asked)
        who = conversation(*args, **kwargs) if callable(conversation) else conversation
        return source.acquire(*names, conversation_id=who, **asked)

    def decorate(function: F) -> F:
        wrap = _wrapper_of(function, isinstance(source, Facade))
        return wrap(function, acquire)  # type: ignore[no-any-return]

    return decorate


def _wrapper_of(function: Any, blocks: bool) -> Callable[..., Any]:
    waits = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    if waits and blocks:
        raise ValidationError(f"{function!r} is asynchronous: give limited the object itself, not its facade")
    if not waits and not blocks:
        raise ValidationError(
            f"{function!r} is a plain function: give limited a facade of interlock.sync; call it in threads"
        )
    if inspect.isasyncgenfunction(function):
        return _async_generator
    if inspect.isgeneratorfunction(function):
        return _generator
    return _coroutine if waits else _plain


def _coroutine(function: Callable[..., Any], acquire: Callable[..., Any]) -> Any:
    @wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        async with acquire(args, kwargs):
            return await function(*args, **kwargs)

    return call


def _async_generator(function: Callable[..., Any], acquire: Callable[..., Any]) -> Any:
    @wraps(function)
    async def generate(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async with acquire(args, kwargs) as permit, aclosing(function(*args, **kwargs)) as items:
            async for item in items:
                permit.touch()
                yield item

    return generate


def _plain(function: Callable[..., Any], acquire: Callable[..., Any]) -> Any:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with acquire(args, kwargs):
            return function(*args, **kwargs)

    return call


def _generator(function: Callable[..., Any], acquire: Callable[..., Any]) -> Any:
    @wraps(function)
    def generate(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with acquire(args, kwargs):
            yield from function(*args, **kwargs)

    return generate
