"""Permits for every language: plain HTTP, each permit on a lease, waiting by long poll."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.routing import Route

from interlock.admission.wire import is_generated
from interlock.errors import (
    Draining,
    InterlockError,
    InvalidOperation,
    StaleFence,
    Unavailable,
    ValidationError,
)
from interlock.http.permits.asking import Asking
from interlock.http.permits.desk import new_id
from interlock.http.problems import NotFound, answering, json, read_body

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from interlock.admission.permit import Permit
    from interlock.admission.readings import Holder, Waiting
    from interlock.core import model
    from interlock.core.model import Outcome
    from interlock.http.permits.desk import PermitDesk

_DAY_MS = 86_400_000
_WHOLE = 2**53
_MOST_RENEWED = 5000
_OUTCOMES: dict[str, Outcome] = {"success": "success", "cancelled": "cancelled", "failed": "failed"}

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Millis = Annotated[int, Meta(ge=0, le=_DAY_MS)]
LeaseMillis = Annotated[int, Meta(ge=1, le=_DAY_MS)]
Fence = Annotated[int, Meta(ge=0, le=_WHOLE)]


class _Strict(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Unknown members are refused by name."""


class Asked(_Strict):
    """The body of ``POST /permits``; *since* in milliseconds since the epoch, *parent* a permit's id."""

    limits: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=64)]
    key: Name | None = None
    owner: Name | None = None
    parent: Name | None = None
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    since: Annotated[int, Meta(ge=0, le=_WHOLE)] | None = None
    timeout_ms: Millis = 0
    lease_ms: LeaseMillis = 30_000


class Renewal(_Strict):
    """The body of ``POST /permits/{id}/renew``."""

    fence: Fence
    lease_ms: LeaseMillis = 30_000


class Held(_Strict):
    """One permit of a `Renewals`; with *limits* it is counted again should the server have forgotten it."""

    id: Name
    fence: Fence
    limits: tuple[Name, ...] = ()
    owner: Name | None = None
    parent: Name | None = None


class Renewals(_Strict):
    """The body of ``POST /permits/renew``."""

    permits: Annotated[tuple[Held, ...], Meta(max_length=_MOST_RENEWED)]
    lease_ms: LeaseMillis = 30_000


def permit_routes(desk: PermitDesk) -> list[Route]:
    """The routes of ``/permits`` and ``/waiting``."""
    routes = _Routes(desk)
    paths: list[tuple[str, Literal["GET", "POST", "DELETE"], Callable[[Request], Any]]] = [
        ("/permits", "POST", routes.acquire),
        ("/permits/renew", "POST", routes.renew_all),
        ("/permits/{id:path}/renew", "POST", routes.renew),
        ("/permits/{id:path}", "DELETE", routes.release),
        ("/waiting", "GET", routes.waiting),
        ("/waiting/{id:path}", "GET", routes.explain),
        ("/waiting/{id:path}", "DELETE", routes.withdraw),
    ]
    return [Route(path, answering(handler), methods=[method]) for path, method, handler in paths]


class _Routes:
    def __init__(self, desk: PermitDesk) -> None:
        self._desk = desk
        self._admission = desk.admission

    # -- permits

    async def acquire(self, request: Request) -> Response:
        asked = await read_body(request, Asked)
        desk, lease = self._desk, asked.lease_ms / 1000
        if desk.draining:
            raise Draining("the server is draining; come back in a moment")
        key = asked.key or new_id()
        desk.prepare(asked.limits)
        poll = _Poll(desk, request, key)
        record = await poll.record(
            self._admission.acquire(
                *asked.limits,
                key=key,
                owner=asked.owner,
                parent=self._desk.parent(asked.parent),
                priority=asked.priority,
                since=None if asked.since is None else asked.since / 1000,
                timeout=asked.timeout_ms / 1000,
                lease=lease,
            ).__await__(),
        )
        if not desk.is_safe(record, lease):
            await desk.safe(record, lease, poll)
        if poll.left:
            desk.give_back(record, poll)
        return json(_permit(record, asked.limits), 201)

    async def renew(self, request: Request) -> Response:
        body = await read_body(request, Renewal)
        end = await self._desk.renew(request.path_params["id"], body.fence, body.lease_ms / 1000)
        return json({"expiresAt": round(end * 1000)})

    async def renew_all(self, request: Request) -> Response:
        """Many at once: what a process does from a thread, so that a busy event loop loses nothing."""
        body = await read_body(request, Renewals, most=4 << 20)
        lost = []
        for held in body.permits:
            try:
                await self._renew_or_adopt(held, body.lease_ms / 1000)
            except (NotFound, StaleFence, InvalidOperation, ValidationError):
                lost.append(held.id)
        return json({"lost": lost, "epoch": self._desk.epoch})

    async def _renew_or_adopt(self, held: Held, lease: float) -> None:
        try:
            await self._desk.renew(held.id, held.fence, lease)
        except NotFound:
            if not held.limits:
                raise
            self._desk.adopt(
                held.id, held.fence, held.limits, owner=held.owner, parent_id=held.parent, lease=lease
            )
            await self._desk.renew(held.id, held.fence, lease)

    async def release(self, request: Request) -> Response:
        fence, outcome = request.query_params.get("fence"), request.query_params.get("outcome", "success")
        if fence is not None and not (fence.isascii() and fence.isdecimal() and len(fence) <= 16):
            raise ValidationError(f"fence is {fence[:80]!r}; allowed are whole numbers")
        how = _OUTCOMES.get(outcome)
        if how is None:
            raise ValidationError(f"outcome is {outcome[:80]!r}; allowed are {', '.join(_OUTCOMES)}")
        permit = self._admission.permit(request.path_params["id"])
        released = permit is not None and fence in (None, str(permit.fence)) and permit.release(how)
        return json({"released": released})

    # -- waiting

    async def waiting(self, request: Request) -> Response:
        return json({"waiting": [_waiting(one) for one in self._admission.waiting()]})

    async def explain(self, request: Request) -> Response:
        found = self._admission.explain(request.path_params["id"])
        if found is None:
            raise _nobody(request.path_params["id"])
        blocks = [
            {
                **_camel(asdict(block)),
                "holders": [_holder(holder) for holder in block.holders],
                "until": _ms(block.until),
                "text": str(block),
            }
            for block in found.blocks
        ]
        return json({**_waiting(found.waiter), "blocks": blocks, "text": str(found)})

    async def withdraw(self, request: Request) -> Response:
        waiter_id = request.path_params["id"]
        if not self._admission.withdraw(waiter_id, InvalidOperation("an operator ended this wait")):
            raise _nobody(waiter_id)
        return json({"withdrawn": True})


class _Poll:
    """One client that asks for *key*, and perhaps waits; `left` once it is known to have gone."""

    def __init__(self, desk: PermitDesk, request: Request, key: str) -> None:
        self._desk = desk
        self._request = request
        self._key = key
        self._known = key in desk.admission.kernel.permits
        self._answer: asyncio.Future[model.Permit] = asyncio.get_running_loop().create_future()
        self.left = False

    async def record(self, steps: Any) -> model.Permit:
        """What *steps* get; withdrawn when the client leaves, or this is cancelled."""
        asking = Asking(steps, self._settled)
        asking.begin()
        if self._answer.done():
            return self._answer.result()
        watching = asyncio.get_running_loop().create_task(self._watch(asking))
        called_off = self._desk.on_drain(lambda: self._turn_away(asking))
        try:
            return await self._answer
        except asyncio.CancelledError:
            if not asking.leave() and not self._answer.cancelled() and self._answer.exception() is None:
                self._desk.give_back(self._answer.result(), self)  # in the instant of the grant
            if self.left:
                raise Draining("the client has left") from None  # nobody reads it
            raise
        finally:
            watching.cancel()
            called_off()

    def _settled(self, permit: Permit | None, error: InterlockError | None) -> None:
        record = None if permit is None else self._desk.admission.kernel.permits.get(self._key)
        if permit is not None and record is None:
            error = Unavailable("the server stood still until the lease was over; ask again")
        if record is not None:
            self._desk.taken(record, self, self._known)
        if self._answer.done():  # cancelled, and whoever awaits it has not come to run yet
            if record is not None:
                self._desk.give_back(record, self)
        elif record is not None:
            self._answer.set_result(record)
        else:
            assert error is not None
            self._answer.set_exception(error)

    async def _watch(self, asking: Asking) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.left = True
        asking.leave()
        self._answer.cancel()

    def _turn_away(self, asking: Asking) -> None:
        if asking.leave():
            self._answer.set_exception(Draining("the server stops; come back in a moment"))


def _nobody(waiter_id: str) -> NotFound:
    return NotFound(f"nobody waits under {waiter_id!r}")


def _permit(record: model.Permit, limits: tuple[str, ...]) -> dict[str, Any]:
    body = {
        "id": record.key,
        "fence": record.fence,
        "limits": limits,
        "key": None if is_generated(record.key) else record.key,
        "owner": record.owner,
        "grantedAt": record.granted_ms,
        "expiresAt": record.expires_ms,
    }
    return {name: value for name, value in body.items() if value is not None}


def _waiting(waiting: Waiting) -> dict[str, Any]:
    body = _camel(asdict(waiting))
    body |= {name: _ms(body[name]) for name in ("since", "arrivedAt", "deadline")}
    if is_generated(waiting.key):
        body["key"] = None
    return {name: value for name, value in body.items() if value is not None}


def _holder(holder: Holder) -> dict[str, Any]:
    body = _camel(asdict(holder))
    body |= {name: _ms(body[name]) for name in ("grantedAt", "touchedAt")}
    if is_generated(holder.key):
        body["key"] = None
    return {name: value for name, value in body.items() if value is not None}


def _camel(body: dict[str, Any]) -> dict[str, Any]:
    return {
        word + "".join(part.capitalize() for part in rest): value
        for name, value in body.items()
        for word, *rest in (name.split("_"),)
    }


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
