"""``interlock submit``: a run for a session, and what became of it."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from contextlib import aclosing
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from interlock.cli.client import NoAnswer, default_url, fetch, in_path
from interlock.cli.output import Json, shown
from interlock.cli.screen import Screen
from interlock.cli.stream import BACKFILLED, END, BackOff
from interlock.cli.tail import RUN_ENDS, told, waiting
from interlock.config import parse_duration
from interlock.errors import InterlockError, ValidationError

SUBMIT_SECONDS = 30.0
LOOK_SECONDS = 30.0
"""For how long one request waits for the end of a run; then it is asked again."""


def submit(
    session: str,
    text: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *,
    agent: str | None = None,
    wait: Annotated[bool, Parameter(negative=())] = False,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"], negative=())] = False,
    timeout: str | None = None,
    priority: int = 0,
    retry: Literal["on-crash"] | None = None,
    key: str | None = None,
    url: str | None = None,
    as_json: Json = False,
) -> int:
    """Submit a run: print its id and its place in line, or wait for its end and print its output.

    What was acknowledged is not lost, whatever becomes of the server. Ctrl-C ends the waiting, not the run.

    Example: interlock submit s1 "Summarise the report" --agent writer --wait

    Args:
        session: its id.
        text: what the run is to do: a JSON object, else the text of a prompt; - reads standard input.
        agent: create the session for this agent if there is none yet.
        wait: wait for the end; exit 1 unless the run completed.
        follow: show the events until the end; exit 1 unless the run completed.
        timeout: for how long the run may take once it has started, such as 5m.
        priority: a smaller number goes first.
        retry: run it again if the server dies meanwhile.
        key: submitting again with the same key gives the same run.
        url: the server (default: INTERLOCK_URL, else as the configuration here says).
        as_json: print the run, or with --follow its events, as JSON.
    """
    if text is not None and re.fullmatch(r"--?[A-Za-z][\w-]*(=.*)?", text):
        raise ValidationError(f"unknown option {text}; a prompt that looks like one goes into standard input")
    if wait and follow:
        raise ValidationError("--wait or --follow, not both: --follow waits as well")
    body: dict[str, Any] = {"input": _input(_read() if text == "-" else text), "priority": priority}
    if timeout is not None:
        body["timeoutMs"] = round(parse_duration(timeout) * 1000)
    if retry is not None:
        body["retry"] = retry.replace("-", "_")
    headers = {} if key is None else {"idempotency-key": _header(key)}
    return asyncio.run(_submit(url, session, agent, body, headers, wait=wait, follow=follow, as_json=as_json))


def _input(text: str | None) -> dict[str, Any]:
    """What *text* asks for; `ValidationError` for what cannot be sent as JSON."""
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    asked = found if isinstance(found, dict) else {"prompt": text}
    try:
        json.dumps(asked, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeError:
        raise ValidationError("the input is no text in UTF-8") from None
    except ValueError:
        raise ValidationError("the input has NaN or Infinity in it, which JSON does not know") from None
    return asked


def _read() -> str:
    try:
        return sys.stdin.read()
    except UnicodeError:
        raise ValidationError("standard input is no text in UTF-8") from None


def _header(key: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
        raise ValidationError(
            f"--key is {key[:80]!r}; allowed are up to 255 printable ASCII characters, no space"
        )
    return key


async def _submit(
    url: str | None,
    session: str,
    agent: str | None,
    body: dict[str, Any],
    headers: dict[str, str],
    *,
    wait: bool,
    follow: bool,
    as_json: bool,
) -> int:
    there = f" --url {url}" if url else ""
    url = url or default_url()
    if agent is not None:
        await _make_session(url, session, agent)
    path = f"/sessions/{in_path(session)}/runs"
    run = await fetch(url, path, "POST", body, headers=headers, timeout=SUBMIT_SECONDS)
    run_id, place = run["runId"], run.get("position")
    line = f"{run_id}: {run['status']}" + ("" if place is None else f", place {place} in line")
    if not wait and not follow:
        print(json.dumps(run) if as_json else line)
        return 0
    screen = Screen(as_json=as_json)
    screen.say(line)
    try:
        if follow:
            await _follow(url, session, run_id, screen)
        ended = await _ended(url, run_id, screen)
    except asyncio.CancelledError:
        screen.say(f"{run_id} goes on; to end it: interlock cancel {run_id}{there}")
        raise
    finally:
        screen.close()
    if as_json and wait:
        print(json.dumps(ended))
    elif wait and ended["output"] is not None:
        print(shown(ended["output"]))
    if ended["status"] == "completed":
        return 0
    screen.say(why(ended))
    return 1


async def _make_session(url: str, session: str, agent: str) -> None:
    """Create *session* unless there is one; `InterlockError` if that has another agent."""
    try:
        found = await fetch(url, f"/sessions/{in_path(session)}")
    except InterlockError as error:
        if error.code != "session_not_found":
            raise
        await fetch(url, "/sessions", "POST", {"id": session, "agent": agent}, timeout=SUBMIT_SECONDS)
        return
    if found["agent"] != agent:
        raise InterlockError(
            f"session {session!r} has the agent {found['agent']!r}: leave --agent away, or take another"
        )


async def _follow(url: str, session: str, run_id: str, screen: Screen) -> None:
    stream = told(url, session, screen, run_id=run_id)
    async with aclosing(stream), waiting(url, screen, run_id) as queue:
        async for kind, document in stream:
            if kind == BACKFILLED:
                continue
            if kind == END:
                return
            queue.note(document)
            screen.event(document)
            if kind in RUN_ENDS:
                return


async def _ended(url: str, run_id: str, screen: Screen) -> dict[str, Any]:
    """The run once it has ended, however often the server goes away meanwhile."""
    off = BackOff(url, screen.say)
    path = f"/runs/{in_path(run_id)}/wait?timeoutMs={round(LOOK_SECONDS * 1000)}"
    async with waiting(url, screen, run_id):
        while True:
            try:
                run = await fetch(url, path, timeout=LOOK_SECONDS + 10)
            except NoAnswer as error:
                await off.lost(error.details.get("reason", error.message))
            except InterlockError as error:
                if error.code != "timeout":
                    raise
                off.back()
                off.good()
            else:
                off.back()
                return run


def why(run: dict[str, Any]) -> str:
    """What is to say of a run that did not complete."""
    error = run.get("error") or {}
    line = f"{run['runId']} ended {run['status']}"
    return f"{line}: {error.get('code')}: {error.get('message')}" if error else line
