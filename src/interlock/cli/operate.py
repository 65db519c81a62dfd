"""The operator's commands: limits, cooldowns and pauses of a running server, and why anything waits."""

from __future__ import annotations

import json
import time
from typing import Any

from cyclopts import App
from rich.console import Console

from interlock.cli.client import default_url, fetch, in_path, named
from interlock.cli.explaining import tree
from interlock.cli.output import Json, console
from interlock.cli.status import others, table
from interlock.config import parse_capacity, parse_duration

limits_app = App(name="limits")
limits_app.command("interlock.cli.history:history", name="history")
cooldown_app = App(name="cooldown")


# -- limits


@limits_app.default
async def limits(*, url: str | None = None, as_json: Json = False) -> int:
    """Show every limit: in use, capacity, who waits.

    Example: interlock limits

    Args:
        url: the server (default: INTERLOCK_URL, else as the configuration here says).
        as_json: print what the server answered.
    """
    answer = await fetch(url or default_url(), "/limits")
    if as_json:
        print(json.dumps(answer))
    else:
        Console().print(others(answer["limits"]))
    return 0


@limits_app.command(name="set")
async def set_limit(name: str, capacity: str, /, *, url: str | None = None, as_json: Json = False) -> int:
    """Change a limit, at once and durably: it wins over the file until that says something new.

    Example: interlock limits set openai 6

    Args:
        name: of a limit, such as tools, or of a provider.
        capacity: a whole number from 1, or unlimited.
        url: the server (default: INTERLOCK_URL, else as the configuration here says).
        as_json: print what the server answered.
    """
    number = parse_capacity(int(capacity) if capacity.isdecimal() and len(capacity) < 19 else capacity)
    url = url or default_url()
    path = f"/limits/{in_path(await named(url, name))}"
    answer = await fetch(url, path, "PUT", {"capacity": number})
    return _say(answer, as_json, f"{name}: {answer['used']} of {_capacity(answer['capacity'])} in use")


@limits_app.command(name="rm")
async def remove_limit(provider: str, /, *, url: str | None = None, as_json: Json = False) -> int:
    """Take the limit of a provider away: its calls are counted, and all who wait go.

    Example: interlock limits rm openai

    Args:
        provider: its id.
        url: the server (default: INTERLOCK_URL, else as the configuration here says).
        as_json: print what the server answered.
    """
    answer = await fetch(url or default_url(), f"/concurrency/limits/{in_path(provider)}", "DELETE")
    return _say(answer, as_json, f"{provider}: unlimited")


# -- cooldowns


@cooldown_app.default
async def cooldown(*, url: str | None = None, as_json: Json = False) -> int:
    """Show the cooldown of every provider that has a limit.

    Example: interlock cooldown

    Args:
        url: the server (default: INTERLOCK_URL, else as the configuration here says).
        as_json: print the cooldowns as JSON.
    """
    providers = (await fetch(url or default_url(), "/concurrency/status"))["providers"]
    found = {one["providerId"]: one["cooldownMs"] for one in providers}
    if as_json:
        cooldowns = [{"providerId": name, "cooldownMs": cooldown_ms} for name, cooldown_ms in found.items()]
        print(json.dumps({"cooldowns": cooldowns}))
        return 0
    shown = table("provider", "cooldown")
    for name, cooldown_ms in found.items():
        shown.add_row(name, f"{cooldown_ms} ms")
    Console().print(shown)
    return 0


@cooldown_app.command(name="set")
async def set_cooldown(
    provider: str, duration: str, /, *, url: str | None = None, as_json: Json = False
) -> int:
    """Change the cooldown of a provider, durably; it counts for the calls that end from now on.

    Example: interlock cooldown set openai 350ms

    Args:
        provider: its id.
        duration: with its unit, such as 350ms or 2s.
        url: the server (default: INTERLOCK_URL, else as the configuration here says).
        as_json: print what the server answered.
    """
    cooldown_ms = round(parse_duration(duration) * 1000)
    path = f"/concurrency/cooldown/{in_path(provider)}"
    answer = await fetch(url or default_url(), path, "PUT", {"cooldownMs": cooldown_ms})
    return _say(answer, as_json, f"{provider}: slots cool for {answer['cooldownMs']} ms")


# -- pauses


async def pause(provider: str, duration: str, /, *, url: str | None = None, as_json: Json = False) -> int:
    """Let nobody in at a provider for a while; calls under way go on. A pause only ever grows.

    Example: interlock pause openai 5s

    Args:
        provider: its id.
        duration: with its unit, such as 5s or 2m.
        url: the server (default: INTERLOCK_URL, else as the configuration here says).
        as_json: print what the server answered.
    """
    ms = round(parse_duration(duration) * 1000)
    answer = await fetch(url or default_url(), f"/providers/{in_path(provider)}/pause", "POST", {"ms": ms})
    left = max(0.0, answer.get("pausedUntil", 0) / 1000 - time.time())
    return _say(answer, as_json, f"{provider}: paused for {left:.0f} s")


async def resume(provider: str, /, *, url: str | None = None, as_json: Json = False) -> int:
    """End the pause of a provider, whoever it is from.

    Example: interlock resume openai

    Args:
        provider: its id.
        url: the server (default: INTERLOCK_URL, else as the configuration here says).
        as_json: print what the server answered.
    """
    answer = await fetch(url or default_url(), f"/providers/{in_path(provider)}/resume", "POST")
    return _say(answer, as_json, f"{provider}: open")


# -- who waits


async def explain(waiter: str | None = None, /, *, url: str | None = None, as_json: Json = False) -> int:
    """Show who waits, in the order in which they would go; with an id, what is in its way.

    Example: interlock explain waiter-17

    Args:
        waiter: its id, as the list shows it.
        url: the server (default: INTERLOCK_URL, else as the configuration here says).
        as_json: print what the server answered.
    """
    url = url or default_url()
    if waiter is None:
        answer = await fetch(url, "/waiting")
    else:
        answer = await fetch(url, f"/waiting/{in_path(waiter)}")
    if as_json:
        print(json.dumps(answer))
        return 0
    if waiter is not None:
        console().print(tree(answer, time.time() * 1000))
    elif answer["waiting"]:
        console().print(_line(answer["waiting"]))
    else:
        print("nobody waits")
    return 0


def _line(waiting: list[dict[str, Any]]) -> Any:
    shown = table("waiter", "owner", "for", "waited", "ahead")
    for one in waiting:
        limits = ", ".join(one["limits"])
        shown.add_row(one["id"], one.get("owner", "-"), limits, _ago(one["arrivedAt"]), str(one["position"]))
    return shown


def _ago(at_ms: int) -> str:
    return f"{max(0.0, time.time() - at_ms / 1000):.1f} s"


def _capacity(capacity: int | None) -> str:
    return "∞" if capacity is None else str(capacity)


def _say(answer: dict[str, Any], as_json: bool, line: str) -> int:
    print(json.dumps(answer) if as_json else line)
    return 0
