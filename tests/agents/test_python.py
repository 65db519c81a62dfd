"""Python as agents: what is marked, what is found by its name, and what is refused."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from interlock.agents import agent, session_agent
from interlock.errors import ValidationError


async def plain(run: Any) -> str:
    return "plain"


async def curried(prefix: str, run: Any) -> str:
    return prefix


class Worker:
    capabilities = frozenset({"pause"})

    async def run(self, run: Any) -> str:
        return "worker"


class Demanding:
    def __init__(self, key: str) -> None: ...

    async def run(self, run: Any) -> None: ...


class Careless:
    capabilities = frozenset({"fly"})

    async def run(self, run: Any) -> None: ...


class Blocking:
    def run(self, run: Any) -> None: ...


class Idle: ...


async def nothing_to_do() -> None: ...


async def too_much(run: Any, more: Any) -> None: ...


def blocking(run: Any) -> None: ...


GOOD = {
    "plain": plain,
    "curried": functools.partial(curried, "curried"),
    "Worker": Worker,
    "worker": Worker(),
}
BAD = {
    "Demanding": (Demanding, "cannot be made without arguments"),
    "Careless": (Careless, r"capabilities is frozenset\({'fly'}\); allowed is a set with any of: 'pause'"),
    "Blocking": (Blocking, "a class without `async def run`"),
    "Idle": (Idle, "a class without `async def run`"),
    "idle": (Idle(), "of type Idle"),
    "nothing_to_do": (nothing_to_do, "cannot be called with a run"),
    "too_much": (too_much, "cannot be called with a run: missing a required argument: 'more'"),
    "blocking": (blocking, "a plain function"),
    "number": (7, "of type int"),
    "nothing": (None, "of type NoneType"),
    "module": (sys, "of type module"),
}


@pytest.fixture(autouse=True)
def module() -> Iterator[None]:
    made = ModuleType("some_agents")
    vars(made).update(GOOD | {name: found for name, (found, _) in BAD.items()})
    sys.modules["some_agents"] = made
    yield
    del sys.modules["some_agents"]


@pytest.mark.parametrize("name", GOOD)
async def test_found_by_name(name: str) -> None:
    found = session_agent(f"some_agents:{name}")
    assert await getattr(found, "run", found)(None) == name.lower()


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_agent(name: str) -> None:
    """The error names the target, or what is wrong with it, and says what is allowed."""
    with pytest.raises(ValidationError, match=BAD[name][1]) as refused:
        session_agent(f"some_agents:{name}")
    assert name in str(refused.value) or name == "Careless"
    assert "allowed is" in str(refused.value) or "without arguments" in str(refused.value)


@pytest.mark.parametrize(
    "target", ["no_such_module:x", "some_agents:other", "some_agents", "", ":", "a..b:c"]
)
def test_what_is_not_there(target: str) -> None:
    with pytest.raises(ValidationError, match="cannot be imported"):
        session_agent(target)


def test_marked_bare_and_with_capabilities() -> None:
    @agent
    async def bare(run: Any) -> None: ...

    @agent(capabilities={"pause"})
    async def pausable(run: Any) -> None: ...

    @agent(capabilities=["pause"])
    class Both(Worker): ...

    @agent()
    class Neither:
        async def run(self, run: Any) -> None: ...

    assert bare.capabilities == frozenset()  # type: ignore[attr-defined]
    assert pausable.capabilities == Both.capabilities == {"pause"}  # type: ignore[attr-defined]
    assert Neither().capabilities == frozenset()  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", ["pause", {"fly"}, {7}, None, 7, {"pause": 1}, ["pause", "pause"]])
def test_capabilities_that_are_none(wrong: Any) -> None:
    with pytest.raises(ValidationError, match="capabilities is"):
        agent(capabilities=wrong)


@pytest.mark.parametrize("wrong", [blocking, Idle, nothing_to_do, 7, "pause"])
def test_what_cannot_be_marked(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        agent(wrong)
