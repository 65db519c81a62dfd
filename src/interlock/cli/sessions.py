"""Sessions and runs of a running server: which there are, and what an operator does to them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

import httpx2
from cyclopts import Parameter

from interlock.cli.client import client, default_url, fetch, in_path
from interlock.cli.output import Json, ago, console, plain, seconds, shown
from interlock.cli.progress import progress
from interlock.cli.screen import waits_for
from interlock.cli.status import table
from interlock.config import parse_duration
from interlock.core.runs import ENDED, RUN_MOVES, SESSION_ENDED, SESSION_MOVES, RunStatus, SessionStatus
from interlock.errors import InterlockError, ValidationError

PAGE = 1000
LONGEST_DRAIN_SECONDS = 300.0
"""For how long one request may wait."""
UNFINISHED = sorted({after for _, after in RUN_MOVES.values()} - ENDED)
OPEN = sorted({after for _, after in SESSION_MOVES.values()} - SESSION_ENDED | {"pending"})

RunStatuses = Annotated[list[RunStatus] | None, Parameter(name="--status", negative=())]
SessionStatuses = Annotated[list[SessionStatus] | None, Parameter(name="--status", negative=())]


# -- sessions


async def sessions(
    session: str | None = None,
    /,
    *,
    status: SessionStatuses = None,
    url: str | None = None,
    as_json: Json = False,
) -> int:
    """Show every session; with an id, what this one does.

    Example: interlock sessions --status active

    Args:
        session: its id.
        status: show those with this status only; may be given several times.
        url: the server (default: INTERLOCK_URL, else as the configuration here says).
        as_json: print what the server answered.
    """
    if session is not None and status:
        raise ValidationError("a session or --status, not both")
    url = url or default_url()
    if session is not None:
        found = await fetch(url, f"/sessions/{in_path(session)}")
        return _print(found, as_json, *_session_lines(found))
    async with client(url) as http:
        every = [one async for one in _pages(url, "/sessions", "sessions", status or (), http)]
    if as_json:
        print(json.dumps({"sessions": every}))
        return 0
    listing = table("session", "agent", "status", "events", "runs at once", "changed")
    for one in every:
        number, at_once = str(one["lastSequence"]), str(one["maxConcurrentRuns"])
        agent = plain(one["agent"] or "-")
        listing.add_row(plain(one["id"]), agent, one["status"], number, at_once, ago(one["updatedAt"]))
    console().print(listing if every else "no sessions")
    return 0


def _session_lines(one: dict[str, Any]) -> list[str]:
    lines = [f"{one['id']}: {one['status']}, agent {one['agent']}"]
    if one.get("inFlightRuns") is not None:
        running, queued = _count(one["inFlightRuns"]), _count(one["queuedRuns"])
        lines.append(
            f"  runs: {running} of {one['maxConcurrentRuns']} in flight, "
            f"{queued} of {one['maxQueuedRuns']} queued; subscribers: {one.get('subscribers', 0)}"
        )
    tags = ", ".join(one["tags"]) or "none"
    lines.append(f"  a run that comes meanwhile: {one['collision']}; tags: {tags}")
    changed, created = ago(one["updatedAt"]), ago(one["createdAt"])
    lines.append(f"  events: {one['lastSequence']}; changed {changed} ago, created {created} ago")
    return lines


def _count(runs: Any) -> int:
    return len(runs) if isinstance(runs, list) else int(runs)


# -- runs


async def runs(
    session: str | None = None,
    /,
    *,
    status: RunStatuses = None,
    run: str | None = None,
    url: str | None = None,
    as_json: Json = False,
) -> int:
    """Show the runs of a session, or the unfinished ones of all; with --run, what became of this one.

    Example: interlock runs s1 --status failed

    Args:
        session: its id.
        status: show those with this status only; may be given several times.
        run: the id of one run, to show all about it.
        url: the server (default: INTERLOCK_URL, else as the configuration here says).
        as_json: print what the server answered.
    """
    if run is not None and (status or session is not None):
        raise ValidationError("--run stands alone: a run's id says which session it is of")
    url = url or default_url()
    if run is not None:
        found = await fetch(url, f"/runs/{in_path(run)}")
        return _print(found, as_json, *_run_lines(found))
    async with client(url) as http:
        every = [one async for one in _runs(url, session, status, http)]
    if as_json:
        print(json.dumps({"runs": every}))
        return 0
    of_session = [] if session is not None else ["session"]
    listing = table("run", *of_session, "status", "age", "waited", "took", "note")
    for one in every:
        waited = "-" if one["waitedMs"] is None else seconds(one["waitedMs"])
        ids = [plain(one["runId"]), plain(one["sessionId"])][: 1 + len(of_session)]
        row = [*ids, one["status"], ago(one["submittedAt"]), waited, _took(one), plain(_note(one))]
        listing.add_row(*row)
    console().print(listing if every else "no runs")
    return 0


async def _runs(
    url: str, session: str | None, statuses: Sequence[RunStatus] | None, http: httpx2.AsyncClient
) -> AsyncIterator[dict[str, Any]]:
    found = [session]
    if session is None:
        found = [
            one["id"]
            async for one in _pages(url, "/sessions", "sessions", OPEN if not statuses else (), http)
        ]
        statuses = statuses or UNFINISHED
    for one in found:
        async for run in _pages(url, f"/sessions/{in_path(str(one))}/runs", "runs", statuses or (), http):
            yield run


def _run_lines(one: dict[str, Any]) -> list[str]:
    lines = [f"{one['runId']}: {one['status']}, run {one['number']} of session {one['sessionId']}"]
    if one["status"] == "pending":
        lines.append(f"  {_note(one) or 'waits'}")
    waited = "" if one["waitedMs"] is None else f", waited {seconds(one['waitedMs'])}"
    lines.append(
        f"  submitted {ago(one['submittedAt'])} ago{waited}, took {_took(one)}, attempt {one['attempt']}"
    )
    if one["error"]:
        lines.append(f"  error {one['error'].get('code')}: {one['error'].get('message')}")
    if one["tokenUsage"]:
        used = ", ".join(f"{name} {number}" for name, number in one["tokenUsage"].items())
        lines.append(f"  tokens: {used}")
    lines.append(f"  input {json.dumps(one['input'], ensure_ascii=False)}")
    if one["output"] is not None:
        lines.append(f"  output {json.dumps(one['output'], ensure_ascii=False)}")
    return lines


def _took(one: dict[str, Any]) -> str:
    if one["startedAt"] is None:
        return "-"
    return ago(one["startedAt"]) if one["endedAt"] is None else seconds(one["endedAt"] - one["startedAt"])


def _note(one: dict[str, Any]) -> str:
    """Why it ended as it did, or why it waits."""
    if one["error"]:
        return str(one["error"].get("code"))
    if one.get("position") is None:
        return ""
    limits = waits_for(one.get("waitsFor"))
    return f"place {one['position']} in line" + (f", for {limits}" if limits else "")


# -- what an operator does


async def cancel(*runs: str, url: str | None = None, as_json: Json = False) -> int:
    """End runs: one that waits never starts, one that works is told to stop.

    Example: interlock cancel run_5c1f

    Args:
        runs: their ids.
        url: the server (default: INTERLOCK_URL, else as the configuration here says).
        as_json: print what the server answered for each.
    """
    return await _each("cancel", runs, url, as_json)


async def interrupt(*runs: str, url: str | None = None, as_json: Json = False) -> int:
    """Stop runs that work; they end interrupted.

    Example: interlock interrupt run_5c1f

    Args:
        runs: their ids.
        url: the server (default: INTERLOCK_URL, else as the configuration here says).
        as_json: print what the server answered for each.
    """
    return await _each("interrupt", runs, url, as_json)


async def _each(verb: str, run_ids: Sequence[str], url: str | None, as_json: bool) -> int:
    """Ask *verb* of every run, also after one was refused; `InterlockError` that names those."""
    if not run_ids:
        raise ValidationError(f"which run? interlock {verb} RUN; `interlock runs` lists them")
    url = url or default_url()
    answers, refused = [], []
    async with client(url) as http:
        for run_id in dict.fromkeys(run_ids):
            try:
                answer = await fetch(url, f"/runs/{in_path(run_id)}/{verb}", "POST", over=http)
            except InterlockError as error:
                refused.append(error)
                continue
            answers.append(answer)
            if not as_json:
                print(f"{answer['runId']}: {answer['status']}", flush=True)
    if as_json and answers:
        print(json.dumps({"runs": answers}))
    if len(refused) == 1:
        raise refused[0]
    if refused:
        raise InterlockError(" | ".join(error.message for error in refused))
    return 0


async def drain(
    session: str, /, *, timeout: str = "60s", url: str | None = None, as_json: Json = False
) -> int:
    """Take no new runs into a session until those that it has are done; then it is open again.

    Example: interlock drain s1 --timeout 5m

    Args:
        session: its id.
        timeout: for how long to wait; exit 1 after it.
        url: the server (default: INTERLOCK_URL, else as the configuration here says).
        as_json: print what the server answered.
    """
    wait = parse_duration(timeout)
    if wait > LONGEST_DRAIN_SECONDS:
        raise ValidationError(f"--timeout is {timeout}; allowed are at most 5m, and then again")
    path, body = f"/sessions/{in_path(session)}/drain", {"timeoutMs": round(wait * 1000)}
    with progress(f"draining {session}"):
        answer = await fetch(url or default_url(), path, "POST", body, timeout=wait + 10)
    return _print(answer, as_json, f"{session}: drained")


# -- what they share


async def _pages(
    url: str, path: str, what: str, statuses: Sequence[str], http: httpx2.AsyncClient
) -> AsyncIterator[dict[str, Any]]:
    """Every entry of a list that the server gives in pages."""
    after: str | None = None
    while True:
        query = [("limit", str(PAGE)), *(("status", one) for one in statuses)]
        query += [] if after is None else [("after", after)]
        page = await fetch(url, f"{path}?{urlencode(query)}", over=http)
        for one in page[what]:
            yield one
        if (after := page.get("next")) is None:
            return


def _print(answer: dict[str, Any], as_json: bool, *lines: str) -> int:
    print(json.dumps(answer) if as_json else "\n".join(map(shown, lines)))
    return 0
