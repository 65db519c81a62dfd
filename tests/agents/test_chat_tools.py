"""Functions as tools: the schema that the model is told, and what they are called with."""

from __future__ import annotations

import asyncio
import contextvars
import enum
import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import pytest

from interlock.agents import Tool, tool
from interlock.agents.chat_tools import RESULT_MOST, call, check_tools
from interlock.clock import SystemClock
from interlock.errors import ValidationError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: int
    y: int = 0


def paint(
    at: Point,
    colour: Colour = Colour.RED,
    *,
    mode: Literal["thin", "thick"] = "thin",
    layers: Annotated[list[int] | None, msgspec.Meta(description="from below")] = None,
    note: Any = None,
    bare=7,  # type: ignore[no-untyped-def]
) -> dict[str, Any]:
    """Paint a point.

    Only one.
    """
    return {"at": at, "colour": colour, "mode": mode, "layers": layers, "note": note, "bare": bare}


def test_the_schema_is_that_of_the_hints() -> None:
    made = tool(paint)
    assert (made.name, made.description) == ("paint", "Paint a point.\n\nOnly one.")
    schema = dict(made.parameters)
    defined = schema.pop("$defs")
    assert schema == {
        "type": "object",
        "properties": {
            "at": {"$ref": "#/$defs/Point"},
            "colour": {"$ref": "#/$defs/Colour"},
            "mode": {"enum": ["thick", "thin"]},
            "layers": {
                "anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}],
                "description": "from below",
            },
            "note": {},
            "bare": {},
        },
        "required": ["at"],
        "additionalProperties": False,
    }
    assert defined["Point"]["required"] == ["x"]
    assert defined["Colour"]["enum"] == ["blue", "red"]


def test_arguments_become_what_the_hints_say() -> None:
    made = tool(paint)
    arguments = made.read({"at": {"x": 1}, "colour": "blue", "layers": [1]})
    assert paint(**arguments) == {
        "at": Point(1, 0),
        "colour": Colour.BLUE,
        "mode": "thin",
        "layers": [1],
        "note": None,
        "bare": 7,
    }


@pytest.mark.parametrize(
    "arguments",
    [{}, {"at": {"x": "1"}}, {"at": {"x": 1}, "mode": "fat"}, {"at": {"x": 1}, "other": 1}, {"at": None}],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        tool(paint).read(arguments)


def test_a_schema_may_be_given() -> None:
    """The function gets what the model says then."""

    def anything(**what: Any) -> Any:
        return what

    schema = {"type": "object", "properties": {"q": {"type": "string"}}}
    made = tool(anything, name="search", description="Find it.", parameters=schema)
    assert (made.name, made.description, made.parameters) == ("search", "Find it.", schema)
    assert made.read({"q": 1}) == {"q": 1}


def _positional(a: int, /) -> None: ...


def _many(*a: int) -> None: ...


def _unknown(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def _no_json(a: Callable[[], None]) -> None: ...


@pytest.mark.parametrize("function", [_positional, _many, _unknown, _no_json, lambda a: a, len, 7, "text"])
def test_what_is_no_tool(function: Any) -> None:
    with pytest.raises(ValidationError, match="tools: "):
        tool(function)


def test_two_of_one_name() -> None:
    with pytest.raises(ValidationError, match="two of them are called 'paint'"):
        check_tools([paint, tool(paint)])


class Adder:
    def __init__(self, by: int) -> None:
        self.by = by

    def plus(self, number: int) -> int:
        return number + self.by

    async def __call__(self, number: int) -> int:
        return number + self.by


async def later(number: int, by: int) -> int:
    return number + by


@pytest.mark.parametrize(
    "made",
    [
        tool(Adder(2).plus),
        tool(Adder(2), name="adder"),
        tool(functools.partial(later, by=2), name="later"),
        tool(functools.partial(Adder(2).plus), name="plus"),
    ],
)
async def test_methods_objects_and_partials(made: Tool) -> None:
    assert "number" in made.parameters["properties"]
    assert await call(made, made.read({"number": 40}), None, SystemClock(), None) == "42"


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ("text", "text"),
        (None, "null"),
        ({"a": Point(1)}, '{"a":{"x":1,"y":0}}'),
        (Colour.RED, '"red"'),
        (object, "\"<class 'object'>\""),
        ("\ud800", "?"),
        (float("nan"), "null"),
        ("x" * (RESULT_MOST + 5), "x" * RESULT_MOST + "… (5 more characters left out)"),
    ],
)
async def test_what_the_model_is_told(result: Any, told: str) -> None:
    assert await call(tool(lambda: result, name="f"), {}, None, SystemClock(), None) == told


async def test_a_thread_sees_the_context_of_its_run() -> None:
    variable = contextvars.ContextVar("variable", default="outside")
    variable.set("inside")
    assert await call(tool(lambda: variable.get(), name="f"), {}, None, SystemClock(), None) == "inside"


async def test_a_thread_that_raises_what_no_future_takes() -> None:
    def stops() -> None:
        raise StopIteration

    def leaves() -> None:
        raise SystemExit(3)

    for function in (stops, leaves):
        with pytest.raises(RuntimeError, match=r"StopIteration|SystemExit"):
            await call(tool(function), {}, None, SystemClock(), None)


async def test_a_thread_may_outlive_the_loop() -> None:
    """Its result is nobody's then, and no error either."""
    may_end = threading.Event()

    def outlive() -> None:
        loop = asyncio.new_event_loop()
        working = loop.create_task(
            call(tool(may_end.wait, name="f", parameters={}), {}, None, SystemClock(), None)
        )
        loop.run_until_complete(asyncio.sleep(0.01))
        working.cancel()
        loop.run_until_complete(asyncio.wait([working]))
        loop.close()

    await asyncio.get_running_loop().run_in_executor(None, outlive)
    may_end.set()
