"""The simulator: what it counts is what happens, replay is exact, and the same seed is the same result."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlock.errors import ValidationError
from interlock.testing.simulator import CallRecord, Measured, read_scenario, simulate
from interlock.testing.simulator.measure import quantile
from interlock.testing.simulator.scenario import load_scenario, spread

ROOT = Path(__file__).parents[2]


async def outcome(**tree: Any) -> Measured:
    """What comes of the scenario as it is."""
    return (await simulate(read_scenario(tree)))[0]


def provider(limit: int, cooldown: str = "0s", /, **upstream: Any) -> dict[str, Any]:
    one: dict[str, Any] = {"limit": limit, "cooldown": cooldown}
    return {"p": one | ({"upstream": upstream} if upstream else {})}


async def test_one_slot_by_hand() -> None:
    """Three calls of a second at once, half a second of cooldown: granted at 0, 1.5 and 3."""
    found = await outcome(providers=provider(1, "500ms"), workload=[{"provider": "p", "sessions": 3}])
    assert [call.granted for call in found.calls] == [0.0, 1.5, 3.0]
    assert (found.completed, found.failed, found.seconds) == (3, 0, 4.0)
    assert (found.wait_p50, found.wait_p95, found.wait_max) == (1.5, 3.0, 3.0)
    assert (found.turns, found.turn_mean, found.turn_p99) == (3, 2.5, 4.0)
    assert (found.utilisation, found.calls_per_second) == (0.75, 0.75)


async def test_a_turn_is_its_calls_and_tools_and_keeps_its_age() -> None:
    """The first prompt's second call goes before the younger prompt; in order of arrival, after it."""
    workload = {"provider": "p", "sessions": 2, "arrivals": "100ms", "calls": 2, "tool": "500ms"}
    tree = {"providers": provider(1), "workload": [workload | {"latency": "1s"}]}
    more = [
        {"order": "arrival"},
        {"order": "random"},
        {"limits": {"tools": 1}, "workload": {"latency": "10ms"}},
    ]
    by_age, by_arrival, by_chance, tools = await simulate(read_scenario(tree | {"what_if": more}))

    def went(one: Measured) -> list[tuple[str, float | None]]:
        return [(call.conversation, call.granted) for call in one.calls]

    assert went(by_age) == [("0.0", 0.0), ("0.1", 1.0), ("0.0", 2.0), ("0.1", 3.0)]
    assert by_age.turn_mean == (3.0 + 3.9) / 2
    assert went(by_arrival) == went(by_age)
    assert (by_age.passed, by_arrival.passed, by_chance.completed) == (0, 0, 4)
    starts = [call.granted for call in tools.calls]
    assert starts == pytest.approx([0.0, 0.1, 0.51, 1.01])  # one tool at a time


async def test_oldest_prompt_first_is_never_passed_and_finishes_sooner() -> None:
    """The order of the gate against two others on one workload: the measures of a starving turn."""
    workload = {
        "provider": "p",
        "sessions": 60,
        "arrivals": {"exponential": "1s"},
        "calls": [1, 6],
        "latency": {"lognormal": ["1s", "4s"]},
        "tool": {"between": ["10ms", "500ms"]},
    }
    tree: dict[str, Any] = {"seed": 3, "providers": provider(3), "workload": [workload]}
    tree["what_if"] = [{"order": "arrival"}, {"order": "random"}]
    by_age, by_arrival, by_chance = await simulate(read_scenario(tree))
    assert by_age.passed == 0
    assert by_arrival.passed > 0
    assert by_chance.passed > 0
    assert by_age.turn_mean < by_arrival.turn_mean
    assert {one.completed for one in (by_age, by_arrival, by_chance)} == {by_age.completed}


async def test_overshoot_is_refused_cut_and_counted() -> None:
    """A gate of two before a provider of one: one refusal, one cut, and everybody is served in the end."""
    found = await outcome(
        providers=provider(2, limit=1, hard_cap=1, lag="0s", penalty="0s", retry_after="2s"),
        workload=[{"provider": "p", "sessions": 4}],
    )
    measured = found.providers["p"]
    assert (found.refused, found.overshoot, found.completed) == (1, 1, 4)
    assert (measured.limit, measured.peak, measured.calls) == (1, 2, 4)
    assert sorted(call.attempts for call in found.calls) == [1, 1, 1, 2]
    assert max(call.granted or 0 for call in found.calls[1:]) >= 2.0


async def test_a_penalty_slows_and_patience_ends() -> None:
    """Calls in a punished account take twice as long; who has no time left has failed."""
    found = await outcome(
        timeout="3s",
        providers=provider(2, limit=1, hard_cap=1, lag="0s", penalty="1m", retry_after="1s"),
        workload=[{"provider": "p", "sessions": 3, "latency": "2s"}],
    )
    assert (found.completed, found.failed, found.turns) == (2, 1, 2)
    first, second, third = found.calls
    assert (first.granted, first.ended) == (0.0, 2.0)
    assert (second.granted, second.ended) == (2.0, 6.0)
    assert (third.granted, third.ended) == (None, 3.0)


async def test_sessions_and_runs_are_limited_as_in_a_fleet() -> None:
    """One run at a time: turns follow one another although the provider has room."""
    workload = [{"provider": "p", "sessions": 3, "turns": 2}]
    free = await outcome(providers=provider(9), workload=workload)
    runs = await outcome(providers=provider(9), workload=workload, limits={"runs": 1})
    sessions = await outcome(providers=provider(9), workload=workload, limits={"sessions": 1})
    agents = await outcome(providers=provider(9), workload=[workload[0] | {"agents": 2}])
    streams = await outcome(providers=provider(9), workload=workload, limits={"global": 2})
    assert (free.seconds, runs.seconds, sessions.seconds) == (2.0, 6.0, 6.0)
    assert (agents.seconds, streams.seconds) == (4.0, 3.0)


# -- properties ----------------------------------------------------------------------------------------------

durations = st.sampled_from(["100ms", "250ms", "1s", {"exponential": "400ms"}, {"between": ["1ms", "2s"]}])
workloads = st.fixed_dictionaries(
    {
        "provider": st.just("p"),
        "sessions": st.integers(1, 12),
        "arrivals": st.sampled_from(["0s", "150ms", {"exponential": "500ms"}]),
        "turns": st.sampled_from([1, [1, 3]]),
        "calls": st.sampled_from([1, [1, 4]]),
        "latency": durations,
        "tool": st.sampled_from(["0s", "50ms", {"between": ["0s", "1s"]}]),
        "think": st.sampled_from(["0s", "1s"]),
    }
)


def most_at_once(calls: list[CallRecord], lag: float) -> int:
    """The most calls that were at the provider at one moment, each for *lag* longer than it took."""
    moments = [(call.granted, 1) for call in calls if call.granted is not None]
    moments += [(call.ended + lag, -1) for call in calls if call.granted is not None]
    now = most = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(workloads, min_size=1, max_size=2),
    st.integers(1, 4),
    st.integers(0, 400),
    st.integers(1, 3),
    st.integers(0, 1 << 30),
)
def test_a_cooldown_as_long_as_the_lag_never_overshoots(
    workload: list[dict[str, Any]], limit: int, lag_ms: int, longer_ms: int, seed: int
) -> None:
    """At no moment does the provider count more than its limit, so nothing is refused, whatever the load.

    The kernel counts in whole milliseconds: one more than the lag is as long as the lag for certain.
    """
    found = asyncio.run(
        outcome(
            seed=seed,
            providers=provider(
                limit, f"{lag_ms + longer_ms}ms", limit=limit, hard_cap=limit, lag=f"{lag_ms}ms"
            ),
            workload=workload,
        )
    )
    assert (found.refused, found.overshoot, found.failed) == (0, 0, 0)
    assert most_at_once(found.calls, 0.0) <= limit
    assert found.passed == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(workloads, min_size=1, max_size=2),
    st.integers(1, 3),
    st.sampled_from(["0s", "100ms", "350ms"]),
    st.sampled_from(["oldest-prompt", "arrival", "random"]),
    st.integers(0, 1 << 30),
)
def test_a_recorded_log_is_replayed_exactly(
    tmp_path_factory: pytest.TempPathFactory,
    workload: list[dict[str, Any]],
    limit: int,
    cooldown: str,
    order: str,
    seed: int,
) -> None:
    """At the recorded settings every call is granted, refused and ended as it was, 429s included."""
    tree: dict[str, Any] = {
        "seed": seed,
        "order": order,
        "providers": provider(limit, cooldown, limit=2, hard_cap=2, lag="200ms", penalty="1s"),
    }
    recorded = asyncio.run(outcome(**tree, workload=workload))
    directory = tmp_path_factory.mktemp("log")
    lines = [
        {
            "at": call.at,
            "since": call.since,
            "provider": call.provider,
            "conversation": call.conversation,
            "hold": call.hold,
        }
        for call in recorded.calls
    ]
    (directory / "log.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, lines)))
    scenario = read_scenario(tree | {"log": "log.jsonl"}, beside=directory)
    (replayed,) = asyncio.run(simulate(scenario))
    assert replayed.calls == recorded.calls
    assert replayed.document() == recorded.document()


async def test_the_same_seed_is_the_same_result_in_every_process() -> None:
    """To the last digit, also where strings hash otherwise; another seed is another result."""
    printed = [
        await simulated(hash_seed, *seed)
        for hash_seed, seed in (("1", ()), ("2", ()), ("1", ("--seed", "8")))
    ]
    assert printed[0] == printed[1] != printed[2]
    assert len(json.loads(printed[0])["variants"]) == 4


async def simulated(hash_seed: str, *more: str) -> bytes:
    """What ``interlock simulate --json`` prints of the example."""
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "interlock.cli",
            "simulate",
            "examples/simulate/provider_limit.toml",
            "--json",
        ),
        *more,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        printed, _ = await process.communicate()
    assert process.returncode == 0
    return printed


# -- what a scenario says ------------------------------------------------------------------------------------

SOUND: dict[str, Any] = {"providers": {"p": {}}, "workload": [{"provider": "p"}]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"provider": {}}, "scenario: provider: not a known key; did you mean providers? known here:"),
        ({"providers": {"p": {"limit": 0}}}, "providers.p.limit: 0 is not a whole number from 1"),
        ({"providers": {"q": {}}}, "scenario: providers: 'p' is used, but configured are: q"),
        ({"providers": {"p": {"upstream": {}}}}, "providers.p.upstream.limit: is needed, but not set"),
        (
            {"providers": {"p": {"upstream": {"limit": 3, "hard_cap": 2}}}},
            "scenario: providers.p.upstream.hard_cap: 2 is below the limit of 3",
        ),
        ({"workload": []}, "scenario: workload: say [[workload]] or log, one of the two"),
        ({"workload": [{"provider": "p", "calls": [3, 1]}]}, "workload.0.calls: a list is not in order"),
        (
            {"workload": [{"provider": "p", "latency": {"normal": "1s"}}]},
            'workload.0.latency: a table is not a duration such as "2s", or {between = ["1s", "3s"]}',
        ),
        (
            {"workload": [{"provider": "p", "latency": {"between": ["2s", "1s"]}}]},
            "workload.0.latency: 2.0 is not at most 1 s, the second",
        ),
        (
            {"workload": [{"provider": "p", "sessions": 1_000_000, "calls": 1000}]},
            "up to 1000000000 calls; allowed are 5000000",
        ),
        ({"what_if": {"name": "x"}}, "scenario: what_if: is not a list of tables; write [[what_if]]"),
        ({"what_if": [{"order": "lifo"}]}, "what_if 1: order: "),
        ({"what_if": [{"name": "as it is"}]}, "two variants are called 'as it is'; name them apart"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        read_scenario(SOUND | change)
    assert said in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"at": 1, "provider": "p"}', "log.jsonl:2: Object missing required field `hold`"),
        ('{"at": -1, "provider": "p", "hold": 1}', "log.jsonl:2: Expected `float` >= 0.0"),
        ('{"at": 1, "provider": "p", "hold": 1, "x": 1}', "log.jsonl:2: Object contains unknown field `x`"),
        ("{", "log.jsonl:2: Input data was truncated"),
        ('{"at": 1, "provider": "q", "hold": 1}', "'q' is used, but configured are: p"),
    ],
)
def test_what_is_wrong_in_a_log_names_its_line(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "log.jsonl").write_text('{"at": 0, "provider": "p", "hold": 1}\n' + line)
    with pytest.raises(ValidationError) as refused:
        read_scenario({"providers": {"p": {}}, "log": "log.jsonl"}, beside=tmp_path)
    assert said in refused.value.message
    with pytest.raises(ValidationError, match="cannot be read: No such file"):
        read_scenario({"providers": {"p": {}}, "log": "other.jsonl"}, beside=tmp_path)


async def test_limits_can_be_those_of_a_configuration(tmp_path: Path) -> None:
    """What it says of limits and gates counts unless the scenario says otherwise; nothing else of it does."""
    (tmp_path / "interlock.toml").write_text(
        'store = "postgresql://there"\n[limits]\nruns = 1\n'
        '[providers.p]\nbase_url = "https://there"\napi_key = "env:NOWHERE"\nlimit = 2\ncooldown = "0s"\n'
    )
    tree = {"config": "interlock.toml", "workload": [{"provider": "p", "sessions": 6}]}
    tree["what_if"] = [
        {"limits": {"runs": 4}},
        {"limits": {"runs": "unlimited"}, "providers": {"p": {"limit": 3}}},
    ]
    found = await simulate(read_scenario(tree, beside=tmp_path))
    assert [one.seconds for one in found] == [6.0, 3.0, 2.0]
    with pytest.raises(ValidationError, match=r"other.toml: cannot be read"):
        read_scenario(tree | {"config": "other.toml"}, beside=tmp_path)


async def test_a_log_need_not_be_in_order_nor_say_who_called(tmp_path: Path) -> None:
    """Calls of one conversation and prompt are a turn."""
    lines = [
        {"at": 3.0, "provider": "p", "hold": 1.0, "conversation": "c", "since": 1.0},
        {"at": 1.0, "provider": "p", "hold": 1.0, "conversation": "c", "since": 1.0},
        {"at": 0.5, "provider": "p", "hold": 1.0},
    ]
    (tmp_path / "log.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    found = (await simulate(read_scenario({"providers": provider(1), "log": "log.jsonl"}, beside=tmp_path)))[
        0
    ]
    assert [call.granted for call in found.calls] == [0.5, 1.5, 3.0]
    assert (found.turns, found.turn_mean, found.seconds) == (2, 2.0, 3.5)


async def test_progress_is_told_up_to_the_whole() -> None:
    """Over all variants, in calls."""
    told: list[tuple[int, int]] = []
    tree = SOUND | {"workload": [{"provider": "p", "sessions": 600}], "what_if": [{"name": "again"}]}
    await simulate(read_scenario(tree), on_progress=lambda *numbers: told.append(numbers))
    assert told == [(256, 1200), (512, 1200), (856, 1200), (1112, 1200)]


def test_spreads_have_the_middle_that_they_say() -> None:
    """Of ten thousand draws; the generator is seeded."""
    from random import Random

    def drawn(value: object) -> list[float]:
        random = Random(5)
        return sorted(spread(value).draw(random) for _ in range(10_000))

    lognormal = drawn({"lognormal": ["2s", "8s"]})
    assert quantile(lognormal, 0.5) == pytest.approx(2.0, rel=0.05)
    assert quantile(lognormal, 0.95) == pytest.approx(8.0, rel=0.05)
    assert sum(drawn({"exponential": "2s"})) / 10_000 == pytest.approx(2.0, rel=0.05)
    between = drawn({"between": ["1s", "3s"]})
    assert (between[0] >= 1.0, between[-1] <= 3.0) == (True, True)
    assert quantile(between, 0.5) == pytest.approx(2.0, rel=0.05)
    assert {quantile([1.0, 2.0, 3.0, 4.0], share) for share in (0.25, 0.01)} == {1.0}
    assert [quantile([1.0, 2.0, 3.0, 4.0], share) for share in (0.26, 0.5, 0.75, 1.0)] == [2.0, 2.0, 3.0, 4.0]
    assert quantile([], 0.5) == 0.0


def test_the_example_can_be_loaded() -> None:
    for file in sorted((ROOT / "examples/simulate").glob("*.toml")):
        assert len(load_scenario(file).variants) > 1
