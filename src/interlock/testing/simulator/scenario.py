"""A scenario: limits and providers in the words of ``interlock.toml``, a workload or a log, and variants."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

import msgspec

from interlock.config import LimitsConfig, parse_capacity, parse_duration, parse_toml, read_struct
from interlock.config.rules import positive_duration, refuse, text, whole
from interlock.errors import ValidationError

if TYPE_CHECKING:
    from random import Random

MOST_CALLS: Final = 5_000_000
"""Planned calls of one variant."""
_P95: Final = 1.6448536269514722
"""The 95th percentile of the standard normal distribution."""
AS_IT_IS: Final = "as it is"


class Spread(NamedTuple):
    """A duration that varies; *first* and *second* are in seconds."""

    kind: Literal["constant", "between", "exponential", "lognormal"]
    first: float
    second: float = 0.0

    def draw(self, random: Random) -> float:
        """One of them, in seconds, to the microsecond."""
        match self.kind:
            case "constant":
                return self.first
            case "between":
                return round(random.uniform(self.first, self.second), 6)
            case "exponential":
                return round(random.expovariate(1 / self.first), 6)
        sigma = math.log(self.second / self.first) / _P95
        return round(random.lognormvariate(math.log(self.first), sigma), 6)


def spread(value: object) -> Spread:
    """A rule of values: a duration, or a table with one key that says how it varies."""
    if isinstance(value, str):
        return Spread("constant", parse_duration(value))
    [(kind, given)] = value.items() if isinstance(value, dict) and len(value) == 1 else [(None, None)]
    match kind, given:
        case "between", [least, most]:
            return _in_order(Spread("between", parse_duration(least), parse_duration(most)))
        case "exponential", mean:
            return Spread("exponential", positive_duration(mean))
        case "lognormal", [median, p95]:
            return _in_order(Spread("lognormal", positive_duration(median), positive_duration(p95)))
    return refuse(
        value,
        'a duration such as "2s", or {between = ["1s", "3s"]}, {exponential = "2s"} (the mean) or '
        '{lognormal = ["2s", "8s"]} (the median and the 95th percentile)',
    )


def _in_order(pair: Spread) -> Spread:
    return pair if pair.first <= pair.second else refuse(pair.first, f"at most {pair.second:g} s, the second")


def number_between(value: object) -> tuple[int, int]:
    """A rule of values: a whole number, or two of them between which it is drawn."""
    match value:
        case [least, most]:
            low, high = whole(1, 1000, least), whole(1, 1000, most)
            return (low, high) if low <= high else refuse(value, "in order: the smaller one first")
    one = whole(1, 1000, value, ", or two such as [1, 3]")
    return one, one


Duration = Annotated[float, parse_duration]
Varying = Annotated[Spread, spread]
Count = Annotated[tuple[int, int], number_between]


class UpstreamScenario(msgspec.Struct, frozen=True, kw_only=True):
    """What the provider really does; see `interlock.testing.account.Account`."""

    limit: Annotated[int, partial(whole, 1, 1_000_000)]
    hard_cap: Annotated[int | None, partial(whole, 1, 1_000_000)] = None
    lag: Duration = 0.3
    penalty: Duration = 2.0
    retry_after: Duration = 1.0
    foreign: Annotated[int, partial(whole, 0, 1_000_000)] = 0


class ProviderScenario(msgspec.Struct, frozen=True, kw_only=True):
    """One provider as its gate is configured. Without ``upstream`` it refuses nothing."""

    limit: Annotated[int | None, parse_capacity] = None
    cooldown: Duration = 0.35
    cooldown_cancelled: Annotated[float | None, parse_duration] = None
    cooldown_failed: Annotated[float | None, parse_duration] = None
    default_pause: Duration = 30.0
    recovery: Literal["manual", "probe"] = "manual"
    recovery_window: Annotated[float, positive_duration] = 30.0
    upstream: Annotated[UpstreamScenario | None, UpstreamScenario] = None


_OF_A_GATE: Final = frozenset(ProviderScenario.__struct_fields__) - {"upstream"}


class WorkloadScenario(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions of one kind. A turn is one prompt: its calls follow one another, with tools in between."""

    provider: Annotated[str, text]
    sessions: Annotated[int, partial(whole, 1, 1_000_000)] = 1
    arrivals: Varying = Spread("constant", 0.0)
    agents: Annotated[int | None, parse_capacity] = None
    turns: Count = (1, 1)
    calls: Count = (1, 1)
    latency: Varying = Spread("constant", 1.0)
    tool: Varying = Spread("constant", 0.0)
    think: Varying = Spread("constant", 0.0)
    priority: Annotated[int, partial(whole, -1000, 1000)] = 0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a variant may say."""

    seed: Annotated[int, partial(whole, 0, 1 << 53)] = 0
    order: Literal["oldest-prompt", "arrival", "random"] = "oldest-prompt"
    timeout: Annotated[float, positive_duration] = 300.0
    log: Annotated[str | None, text] = None
    limits: LimitsConfig = LimitsConfig()
    providers: dict[str, ProviderScenario] = {}
    workload: tuple[WorkloadScenario, ...] = ()


class Arrival(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of a recorded log: a call that came *at* so many seconds and takes *hold* at the provider.

    *since* is when its prompt began (default: *at*). Calls of one conversation with one *since* are a turn.
    """

    at: Annotated[float, msgspec.Meta(ge=0)]
    provider: str
    hold: Annotated[float, msgspec.Meta(ge=0)]
    conversation: str | None = None
    since: Annotated[float, msgspec.Meta(ge=0)] | None = None
    priority: int = 0


@dataclass(frozen=True)
class Variant:
    """One world to be simulated."""

    name: str
    settings: Settings
    arrivals: tuple[Arrival, ...] = ()


@dataclass(frozen=True)
class Scenario:
    """A file: its world as it is, and every ``[[what_if]]``."""

    variants: list[Variant] = field(default_factory=list)


def load_scenario(path: str | Path, *, seed: int | None = None) -> Scenario:
    """The scenario in the TOML file *path*; *seed* wins over that of the file as it is.

    Raises `ValidationError` whose message is one line naming the file, the key and what is allowed.
    """
    file = Path(path)
    return read_scenario(parse_toml(file), str(file), seed=seed, beside=file.parent)


def read_scenario(
    tree: dict[str, Any], source: str = "scenario", *, seed: int | None = None, beside: Path = Path()
) -> Scenario:
    """As `load_scenario`, of what a file would say; a log is looked for in the directory *beside*."""
    tree = dict(tree)
    if "config" in tree:
        tree = _merged(_configured(beside / text(tree.pop("config"))), tree)
    changes = tree.pop("what_if", [])
    if not isinstance(changes, list) or not all(isinstance(one, dict) for one in changes):
        raise ValidationError(f"{source}: what_if: is not a list of tables; write [[what_if]]")
    if seed is not None:
        tree["seed"] = seed
    variants = [_variant(AS_IT_IS, tree, source, beside)]
    for number, change in enumerate(changes, 1):
        more = dict(change)
        name = more.pop("name", None) or f"what if {number}"
        changed = _merged(tree, more)
        variants.append(_variant(text(name), changed, f"{source}: what_if {number}", beside))
    names = [one.name for one in variants]
    for name in names:
        if names.count(name) > 1:
            raise ValidationError(f"{source}: what_if: two variants are called {name!r}; name them apart")
    return Scenario(variants)


def _configured(file: Path) -> dict[str, Any]:
    """The limits and providers of a configuration *file*, as far as they matter here."""
    tree = parse_toml(file)
    providers = tree.get("providers", {})
    if not isinstance(providers, dict) or not all(isinstance(one, dict) for one in providers.values()):
        raise ValidationError(f"{file}: providers: is not a table of tables")
    gates = {
        name: {key: value for key, value in one.items() if key in _OF_A_GATE}
        for name, one in providers.items()
    }
    return {"limits": tree.get("limits", {}), "providers": gates}


def _merged(base: Any, change: Any) -> Any:
    """*base* with the keys of *change* in place of its own; a table over a list is for each in it."""
    if isinstance(base, list) and isinstance(change, dict):
        return [_merged(one, change) for one in base]
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    return base | {key: _merged(base.get(key), value) for key, value in change.items()}


def _variant(name: str, tree: dict[str, Any], source: str, beside: Path) -> Variant:
    settings = read_struct(Settings, tree, source)
    if (settings.log is None) == (not settings.workload):
        raise ValidationError(f"{source}: workload: say [[workload]] or log, one of the two")
    arrivals = () if settings.log is None else read_log(beside / settings.log)
    used = [one.provider for one in settings.workload] or sorted({one.provider for one in arrivals})
    for provider in used:
        if provider not in settings.providers:
            known = ", ".join(settings.providers) or "none"
            raise ValidationError(f"{source}: providers: {provider!r} is used, but configured are: {known}")
    for provider, one in settings.providers.items():
        up = one.upstream
        if up is not None and up.hard_cap is not None and up.hard_cap < up.limit:
            where = f"providers.{provider}.upstream.hard_cap"
            raise ValidationError(f"{source}: {where}: {up.hard_cap} is below the limit of {up.limit}")
    most = sum(one.sessions * one.turns[1] * one.calls[1] for one in settings.workload)
    if most > MOST_CALLS:
        raise ValidationError(f"{source}: workload: up to {most} calls; allowed are {MOST_CALLS}")
    return Variant(name, settings, arrivals)


def read_log(file: Path) -> tuple[Arrival, ...]:
    """The arrivals in a file of JSON lines, in the order of their times. Raises `ValidationError`."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise ValidationError(f"{file}: cannot be read: {error.strerror}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            one = msgspec.json.decode(line, type=Arrival)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ValidationError(f"{file}:{number}: {error}") from None
        found.append(one)
    return tuple(sorted(found, key=lambda one: one.at))
