"""The fleet's own limits: the file's word, the operator's, and which of the two counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from interlock.admission.local import LocalAdmission
from interlock.app import Interlock
from interlock.config import load_config
from interlock.errors import InvalidOperation, ValidationError
from interlock.limits import FLEET, FleetLimits
from interlock.stores import MemoryStore
from interlock.testing import VirtualClock


async def opened(settings: MemoryStore, **file: int | None) -> tuple[FleetLimits, LocalAdmission]:
    """The limits as after a start with *file*."""
    admission = LocalAdmission(clock=VirtualClock())
    limits = FleetLimits(admission, settings)
    await limits.load(file)
    return limits, admission


def capacities(admission: LocalAdmission) -> dict[str, int | None]:
    return {name: one.capacity for name, one in admission.limits().items() if one.capacity is not None}


async def test_every_one_exists() -> None:
    """Unlimited, but counted, where the file says nothing."""
    _, admission = await opened(MemoryStore(), tools=8)
    assert set(admission.limits()) == set(FLEET)
    assert capacities(admission) == {"tools": 8}


async def test_what_was_set_wins_over_the_file_after_a_restart() -> None:
    """Also that there is no limit, and one that the file does not know."""
    settings = MemoryStore()
    limits, admission = await opened(settings, tools=8, streams=4)
    await limits.set("tools", 3, cooldown=0.5)
    await limits.set("streams", None)
    await limits.set("gpu", 1)
    await limits.set("tools", 2)
    for _ in range(2):
        assert capacities(admission) == {"tools": 2, "gpu": 1}
        assert admission.kernel.limits["tools"].cooldown.success_ms == 500
        _, admission = await opened(settings, tools=8, streams=4)


async def test_the_file_counts_once_it_says_something_new() -> None:
    """Heard while it runs or after a restart; from then on it is as if nothing had been set."""
    settings = MemoryStore()
    limits, admission = await opened(settings, tools=8, streams=4)
    await limits.set("tools", 3)
    await limits.set("streams", 2)
    assert not await limits.hear("tools", 8)
    assert await limits.hear("tools", 12)
    assert not await limits.hear("tools", 12)
    assert capacities(admission) == {"tools": 12, "streams": 2}
    _, admission = await opened(settings, tools=12, streams=5)
    assert capacities(admission) == {"tools": 12, "streams": 5}
    _, admission = await opened(settings)
    assert capacities(admission) == {}


async def test_nothing_of_a_limit_is_lost_when_its_capacity_changes() -> None:
    """Its cooldowns and the length of its queue are others' business."""
    limits, admission = await opened(MemoryStore())
    admission.configure("tools", 1, cooldown=1.0, cooldown_failed=2.0, queue_max=7)
    await limits.set("tools", 2)
    limit = admission.kernel.limits["tools"]
    assert (limit.capacity, limit.cooldown.success_ms, limit.cooldown.failed_ms, limit.queue_max) == (
        2,
        1000,
        2000,
        7,
    )


@pytest.mark.parametrize(
    ("name", "who"), [("pool:a", "pool"), ("session:s", "session"), ("tools:ada", "governor")]
)
async def test_others_limits_are_theirs(name: str, who: str) -> None:
    """They would be made anew, as their makers say."""
    limits, admission = await opened(MemoryStore())
    with pytest.raises(InvalidOperation, match=f"made by the {who}: change it there"):
        await limits.set(name, 1)
    assert name not in admission.limits()


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "3"])
async def test_a_wrong_capacity_changes_nothing(wrong: Any) -> None:
    settings = MemoryStore()
    limits, admission = await opened(settings, tools=8)
    with pytest.raises(ValidationError, match="the capacity of 'tools' is"):
        await limits.set("tools", wrong)
    assert capacities(admission) == {"tools": 8}
    assert await settings.items("limit:") == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"capacity": 0}', '{"capacity": "x"}', '{"size": 3}'])
async def test_an_unreadable_setting_is_ignored_and_left_alone(text: str) -> None:
    """Somebody may know better what it was."""
    settings = MemoryStore()
    await settings.set("limit:tools", text)
    _, admission = await opened(settings, tools=8)
    assert capacities(admission) == {"tools": 8}
    assert await settings.get("limit:tools") == text


# -- the whole fleet -------------------------------------------------------------------------------


CONFIG = """
store = "sqlite:///{path}/interlock.db"
[limits]
sessions = 10
tools = {tools}
[providers.p]
base_url = "http://127.0.0.1:9"
limit = {limit}
cooldown = "{cooldown}"
"""


def config(path: Path, tools: int = 8, limit: int = 4, cooldown: str = "350ms") -> Any:
    file = path / "interlock.toml"
    file.write_text(CONFIG.format(path=path, tools=tools, limit=limit, cooldown=cooldown))
    return load_config(file, {})


async def test_the_parts_share_one_admission(tmp_path: Path) -> None:
    """What the file says is the limiter's and the governor's; absent ones are unlimited, but counted."""
    async with Interlock(config(tmp_path)) as il:
        assert il.limiter.limits.max_parallel_sessions == 10
        assert (il.governor.stats().tools_max, il.governor.stats().streams_max) == (8, None)
        async with il.limiter.acquire_run_slot("s1", "r1"), il.governor.acquire_tool():
            used = {name: one.used for name, one in il.admission.limits().items() if one.used}
            assert used == {"runs": 1, "tools": 1, "global": 1}


async def test_a_changed_file_is_applied(tmp_path: Path) -> None:
    """What it says anew, to the fleet and to its providers; what an operator set elsewhere stays."""
    async with Interlock(config(tmp_path)) as il:
        await il.gate.set_cooldown("p", 1.0)
        await il.limits.set("tools", 2)
        await il.apply(config(tmp_path, limit=6))
        assert (il.gate.get_limit("p"), il.gate.get_cooldown("p")) == (6, 1.0)
        assert il.governor.stats().tools_max == 2
        await il.apply(config(tmp_path, limit=6, tools=12, cooldown="2s"))
        assert (il.gate.get_limit("p"), il.gate.get_cooldown("p")) == (6, 2.0)
        assert il.governor.stats().tools_max == 12
        await il.gate.set_limit("p", 3)
    async with Interlock(config(tmp_path, limit=6, tools=12, cooldown="2s")) as il:
        assert (il.gate.get_limit("p"), il.gate.get_cooldown("p")) == (3, 2.0)
    async with Interlock(config(tmp_path, limit=7, tools=12, cooldown="3s")) as il:
        assert (il.gate.get_limit("p"), il.gate.get_cooldown("p")) == (7, 3.0)


async def test_what_cannot_be_changes_nothing(tmp_path: Path) -> None:
    """It is looked at as a whole first."""
    async with Interlock(config(tmp_path)) as il:
        wrong = tmp_path / "wrong.toml"
        wrong.write_text('coordination = "redis://x"\n[limits]\ntools = 1\n')
        with pytest.raises(ValidationError, match="coordination"):
            await il.apply(load_config(wrong, {}))
        assert il.governor.stats().tools_max == 8


async def test_a_fleet_that_cannot_be_opened_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its store, which belongs to one process, can be opened again at once."""

    async def fail(self: FleetLimits, file: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(FleetLimits, "load", fail)
        with pytest.raises(ZeroDivisionError):
            await Interlock(config(tmp_path)).__aenter__()
    async with Interlock(config(tmp_path)) as il:
        assert il.limiter.limits.max_parallel_sessions == 10
