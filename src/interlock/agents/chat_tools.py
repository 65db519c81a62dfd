"""Python callables as tools of a model: their JSON schema, and how they are called."""

from __future__ import annotations

import asyncio
import inspect
import keyword
import threading
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, get_type_hints

import msgspec

from interlock.errors import ValidationError
from interlock.session.patience import within

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from interlock.ports import Clock

RESULT_MOST: Final = 256 * 1024
"""Characters of a tool's result that the model is told."""
_NAME_MOST: Final = 64


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call.

    ``parameters`` is the JSON schema of its arguments. Made by `tool` of a plain callable; made by hand, the
    function gets the arguments just as the model gave them.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    function: Callable[..., Any]
    arguments: type[msgspec.Struct] | None = None
    """What arguments are checked against, and made into: the types that the function asks for."""

    def read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments to call it with. Raises ValueError if the function does not take *given*."""
        if self.arguments is None:
            return dict(given)
        taken = msgspec.convert(given, self.arguments)
        found = {name: getattr(taken, name) for name in taken.__struct_fields__}
        return {name: value for name, value in found.items() if value is not msgspec.UNSET}


def tool(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    description: str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Tool:
    """*function* as a tool, named and described as it is itself, its schema derived from its type hints.

    Give *parameters*, a JSON schema, where the hints say too little. Raises `ValidationError` for what cannot
    be called by name or has no schema.
    """
    if not callable(function):
        raise ValidationError(f"tools: {function!r:.100} cannot be called")
    named = name or getattr(function, "__name__", None) or type(function).__name__
    if not 0 < len(named) <= _NAME_MOST or not all(one.isalnum() or one in "_-" for one in named):
        allowed = f"1 to {_NAME_MOST} letters, digits, _ and -"
        raise ValidationError(f"tools: the name {named!r:.100} does not fit; allowed are {allowed}")
    described = inspect.getdoc(function) or "" if description is None else description
    if parameters is not None:
        return Tool(named, described, dict(parameters), function)
    struct, schema = _schema(function, named)
    return Tool(named, described, schema, function, struct)


def check_tools(tools: Sequence[Any]) -> dict[str, Tool]:
    """*tools*, callables and `Tool`s, by name."""
    found: dict[str, Tool] = {}
    for one in tools:
        made = one if isinstance(one, Tool) else tool(one)
        if made.name in found:
            raise ValidationError(f"tools: two of them are called {made.name!r}")
        found[made.name] = made
    return found


def _schema(function: Callable[..., Any], name: str) -> tuple[type[msgspec.Struct], dict[str, Any]]:
    try:
        signature = inspect.signature(function)
        hints = get_type_hints(_annotated(function), include_extras=True)
        fields: list[Any] = []
        for one in signature.parameters.values():
            if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) or keyword.iskeyword(one.name):
                raise TypeError(f"the parameter {one} cannot be given by name")  # noqa: TRY301
            hint = hints.get(one.name, Any)
            optional = one.default is not one.empty
            fields.append(
                (one.name, hint | msgspec.UnsetType, msgspec.UNSET) if optional else (one.name, hint)
            )
        struct = msgspec.defstruct("arguments", fields, kw_only=True, forbid_unknown_fields=True)
        _, parts = msgspec.json.schema_components([struct], ref_template="#/$defs/{name}")
    except (TypeError, ValueError, NameError, RecursionError) as error:
        raise ValidationError(f"tools: {name} has no schema, give its parameters: {error}") from error
    schema = parts.pop("arguments")
    schema.pop("title", None)
    return struct, {**schema, **({"$defs": parts} if parts else {})}


def _annotated(function: Any) -> Any:
    """What bears the type hints of *function*: a partial's function, an object's ``__call__``."""
    while hasattr(function, "func"):
        function = function.func
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function).__call__


# -- calling


async def call(
    one: Tool, arguments: Mapping[str, Any], permit: Any, clock: Clock, timeout: float | None
) -> str:
    """What *one* gives, as the model is told it; *permit* is released when it has ended.

    A function that is not async runs in a thread of its own. A thread cannot be stopped: after a timeout or a
    cancellation it goes on, and keeps its permit until it has ended. Raises TimeoutError after *timeout*
    seconds, and what the function raises.
    """
    if inspect.iscoroutinefunction(_called(one.function)):
        try:
            async with within(clock, timeout):
                result = await one.function(**arguments)
        finally:
            if permit is not None:
                permit.release()
    else:
        ended = _in_thread(one, arguments, permit)
        async with within(clock, timeout):
            await asyncio.wait([ended])
        result = ended.result()
        if inspect.isawaitable(result):
            getattr(result, "close", lambda: None)()
            raise TypeError(f"{one.name} returned something to await; it should be an async def")
    return _told(result)


def _called(function: Any) -> Any:
    inner = getattr(function, "func", function)
    return inner if inspect.isroutine(inner) or inspect.isclass(inner) else type(inner).__call__


def _in_thread(one: Tool, arguments: Mapping[str, Any], permit: Any) -> asyncio.Future[Any]:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Any] = loop.create_future()
    context = copy_context()

    def settle(result: Any, error: BaseException | None) -> None:
        if error is None:
            ended.set_result(result)
        else:
            ended.set_exception(error)
            ended.exception()  # seen, also where nobody waits any more

    def work() -> None:
        result: Any = None
        failed: BaseException | None = None
        try:
            result = context.run(one.function, **arguments)
        except BaseException as error:
            # A future takes no StopIteration, and a thread's exit is no reason for ours.
            plain = isinstance(error, Exception) and not isinstance(error, StopIteration)
            failed = error if plain else RuntimeError(f"{type(error).__name__}: {error}")
        finally:
            if permit is not None:
                permit.release()
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, failed)

    try:
        # Not of a pool: a tool that hangs would take a place there from others, such as the store.
        threading.Thread(target=work, name=f"tool {one.name}", daemon=True).start()
    except BaseException:
        if permit is not None:
            permit.release()
        raise
    return ended


def _told(result: Any) -> str:
    text = result if isinstance(result, str) else msgspec.json.encode(result, enc_hook=str).decode()
    text = text.encode(errors="replace").decode()  # lone surrogates
    if len(text) <= RESULT_MOST:
        return text
    return f"{text[:RESULT_MOST]}… ({len(text) - RESULT_MOST} more characters left out)"
