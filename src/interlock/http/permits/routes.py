"""Permits for every language: plain HTTP, each permit on a lease, waiting by long poll."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from interlock.core.model import UNLIMITED
from interlock.errors import (
    AcquireTimeout,
    DeadlockDetected,
    Draining,
    InterlockError,
    InvalidOperation,
    LimitExceeded,
    QueueFull,
    StaleFence,
    StoreError,
    Unavailable,
    ValidationError,
)
from interlock.http.access.caller import caller_of
from interlock.http.bodies import read_body
from interlock.http.endpoints import endpoint
from interlock.http.ids import NewId, check_new_id, check_not_reserved
from interlock.http.permits.answers import (
    PLACE,
    ExplanationAnswer,
    PermitAnswer,
    ReleasedAnswer,
    RenewalsAnswer,
    RenewedAnswer,
    WaitingPage,
    WithdrawnAnswer,
    explanation_said,
    permit_said,
    place_behind,
    place_of,
    waiting_said,
)
from interlock.http.permits.asking import Asking
from interlock.http.permits.desk import PermitGone, new_id
from interlock.http.problems import NotFound, json, problem
from interlock.http.queries import Query, read_query
from interlock.http.ratelimit import RATE_LIMIT, RawHeaders, Room, rate_limit_fields

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from interlock.admission.permit import Permit
    from interlock.admission.readings import BlockReading
    from interlock.core import model
    from interlock.http.access.caller import Caller
    from interlock.http.permits.desk import PermitDesk

_DAY_MS = 86_400_000
_WHOLE = 2**53
_LATEST_MS = 10**14
"""In the year 5138: a clock can reach it."""
_MOST_RENEWED = 5000
MOST_WAITING: Final = 10_000
"""On one page; so many may wait in all."""

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Millis = Annotated[int, Meta(ge=0, le=_DAY_MS)]
LeaseMillis = Annotated[int, Meta(ge=1, le=_DAY_MS)]
Fence = Annotated[int, Meta(ge=0, le=_WHOLE)]


class _Strict(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Unknown members are refused by name."""


class Asked(_Strict):
    """The body of ``POST /permits``; *since* in milliseconds since the epoch, *parent* a permit's id."""

    limits: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=64)]
    key: NewId | None = None
    owner: NewId | None = None
    parent: Name | None = None
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    since: Annotated[int, Meta(ge=0, le=_LATEST_MS)] | None = None
    timeout_ms: Millis = 0
    lease_ms: LeaseMillis = 30_000

    def __post_init__(self) -> None:
        for name, text in (("key", self.key), ("owner", self.owner)):
            if text is not None:
                check_new_id(name, text)


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


class Given(Query):
    """What a release may say."""

    fence: Fence | None = None
    outcome: Literal["success", "cancelled", "failed"] = "success"


class WaitingAsked(Query):
    """A part of who waits: *after* is the ``next`` of the page before."""

    limit: Annotated[int, Meta(ge=1, le=MOST_WAITING)] = MOST_WAITING
    after: Annotated[str, Meta(max_length=400, pattern=PLACE)] | None = None


class PermitRoutes:
    """The routes of ``/permits`` and ``/waiting`` over *desk*."""

    def __init__(self, desk: PermitDesk) -> None:
        self._desk = desk
        self._admission = desk.admission

    # -- permits

    @endpoint(
        "POST /permits",
        "submit",
        "Take a permit over all of these limits, or none",
        tag="permits",
        body=Asked,
        answers={201: PermitAnswer},
        problems=(
            AcquireTimeout,
            DeadlockDetected,
            Draining,
            InvalidOperation,
            LimitExceeded,
            QueueFull,
            StoreError,
            Unavailable,
        ),
        answer_headers=RATE_LIMIT,
        links={
            "POST /permits/{id:path}/renew": {"id": "id", "fence": "body:fence"},
            "DELETE /permits/{id:path}": {"id": "id", "fence": "fence"},
        },
    )
    async def acquire(self, request: Request) -> Response:
        """It is held until its lease ends, unless it is renewed or released. With a timeout this waits."""
        asked = await read_body(request, Asked)
        desk, lease = self._desk, asked.lease_ms / 1000
        if desk.draining:
            raise Draining("the server is draining; come back in a moment")
        if asked.key is not None:
            check_not_reserved("key", asked.key, "renew")
        caller = caller_of(request.scope)
        for what, name in (("key", asked.key), ("owner", asked.owner), ("parent", asked.parent)):
            caller.check_name(what, name)
        key = asked.key or new_id() + caller.suffix
        caller.check_priority(asked.priority)
        try:
            desk.ask(caller, asked.limits, key, waits=asked.timeout_ms > 0)
            poll = _Poll(desk, request, key)
            record = await self._record(poll, asked, key, caller)
        except (LimitExceeded, QueueFull) as error:
            return problem(error, request.scope, self._room(asked.limits))
        except (AcquireTimeout, DeadlockDetected, InvalidOperation) as error:
            raise caller.told(error) from None
        if not poll.known:
            desk.charge(caller, record)
        if not desk.is_safe(record, lease):
            await desk.safe(record, lease, poll)
        if poll.left:
            desk.give_back(record, poll)
        response = json(permit_said(record, asked.limits), 201)
        response.raw_headers += self._room(asked.limits)
        return response

    async def _record(self, poll: _Poll, asked: Asked, key: str, caller: Caller) -> model.Permit:
        since = None if asked.since is None else asked.since / 1000
        return await poll.record(
            self._admission.acquire(
                *asked.limits,
                key=key,
                owner=asked.owner,
                parent=self._desk.parent(asked.parent),
                priority=asked.priority,
                since=caller.started(since, self._admission.clock.now()),
                timeout=asked.timeout_ms / 1000,
                lease=asked.lease_ms / 1000,
            ).__await__(),
        )

    def _room(self, names: tuple[str, ...]) -> RawHeaders:
        """What is left of these limits, as far as they have an end."""
        found = (self._admission.kernel.limits.get(name) for name in dict.fromkeys(names))
        now = self._admission.clock.now()
        return rate_limit_fields(
            Room(limit.name, limit.capacity, limit.capacity - limit.used, _closed_for(limit, now))
            for limit in found
            if limit is not None and not limit.removed and limit.capacity != UNLIMITED
        )

    @endpoint(
        "POST /permits/{id:path}/renew",
        "submit",
        "Hold a permit for longer",
        tag="permits",
        body=Renewal,
        answers={200: RenewedAnswer},
        problems=(PermitGone, StaleFence, StoreError),
    )
    async def renew(self, request: Request) -> Response:
        body, permit_id = await read_body(request, Renewal), request.path_params["id"]
        if not caller_of(request.scope).owns(permit_id):
            raise PermitGone(permit_id)
        end = await self._desk.renew(permit_id, body.fence, body.lease_ms / 1000)
        return json({"expiresAt": round(end * 1000)})

    @endpoint(
        "POST /permits/renew",
        "submit",
        "Hold many permits for longer",
        tag="permits",
        body=Renewals,
        answers={200: RenewalsAnswer},
        problems=(StoreError,),
    )
    async def renew_all(self, request: Request) -> Response:
        """Many at once: what a process does from a thread, so that a busy event loop loses nothing."""
        body = await read_body(request, Renewals, most=4 << 20, most_keys=6 * _MOST_RENEWED)
        caller = caller_of(request.scope)
        lost = []
        for held in body.permits:
            if not caller.owns(held.id) or not all(
                caller.owns(one or held.id) for one in (held.owner, held.parent)
            ):
                lost.append(held.id)
                continue
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

    @endpoint(
        "DELETE /permits/{id:path}",
        "submit",
        "Give a permit back",
        tag="permits",
        query=Given,
        answers={200: ReleasedAnswer},
    )
    async def release(self, request: Request) -> Response:
        """It may be repeated, and with the fence it never touches a successor."""
        given = read_query(request, Given)
        permit_id = request.path_params["id"]
        ours = caller_of(request.scope).owns(permit_id)
        permit = self._admission.permit(permit_id) if ours else None
        released = (
            permit is not None and given.fence in (None, permit.fence) and permit.release(given.outcome)
        )
        return json({"released": released})

    # -- waiting

    @endpoint(
        "GET /waiting", "read", "Who waits", tag="waiting", query=WaitingAsked, answers={200: WaitingPage}
    )
    async def waiting(self, request: Request) -> Response:
        """In the order in which they would go."""
        asked = read_query(request, WaitingAsked)
        caller = caller_of(request.scope)
        found = [one for one in self._admission.waiting() if caller.owns(one.key, one.owner)]
        start = 0 if asked.after is None else place_behind(found, asked.after)
        shown = found[start : start + asked.limit]
        more = start + len(shown) < len(found)
        place = place_of(shown[-1]) if more else None
        return json({"waiting": [waiting_said(one) for one in shown], "next": place})

    @endpoint(
        "GET /waiting/{id:path}",
        "read",
        "Why somebody waits",
        tag="waiting",
        answers={200: ExplanationAnswer},
        problems=(NotFound,),
    )
    async def explain(self, request: Request) -> Response:
        waiter_id, caller = request.path_params["id"], caller_of(request.scope)
        found = self._admission.explain(waiter_id)
        if found is None or not caller.owns(found.waiter.key, found.waiter.owner):
            raise _nobody(waiter_id)
        found = replace(found, blocks=tuple(_seen_by(caller, block) for block in found.blocks))
        return json(explanation_said(found))

    @endpoint(
        "DELETE /waiting/{id:path}",
        "submit",
        "End a wait",
        tag="waiting",
        answers={200: WithdrawnAnswer},
        problems=(NotFound,),
    )
    async def withdraw(self, request: Request) -> Response:
        waiter_id, caller = request.path_params["id"], caller_of(request.scope)
        if caller.tenant is not None:
            found = next((one for one in self._admission.waiting() if one.id == waiter_id), None)
            if found is None or not caller.owns(found.key, found.owner):
                raise _nobody(waiter_id)
        if not self._admission.withdraw(waiter_id, InvalidOperation("an operator ended this wait")):
            raise _nobody(waiter_id)
        return json({"withdrawn": True})


def _closed_for(limit: model.Limit, now: float) -> float | None:
    return None if limit.paused_until_ms is None else limit.paused_until_ms / 1000 - now


class _Poll:
    """One client that asks for *key*, and perhaps waits; `left` once it is known to have gone."""

    def __init__(self, desk: PermitDesk, request: Request, key: str) -> None:
        self._desk = desk
        self._request = request
        self._key = key
        self.known = key in desk.admission.kernel.permits
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
            self._desk.taken(record, self, self.known)
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


def _seen_by(caller: Caller, block: BlockReading) -> BlockReading:
    """*block* without the names of others; how many units they hold is in its numbers."""
    if caller.tenant is None:
        return block
    holders = tuple(one for one in block.holders if caller.owns(one.key, one.owner))
    return replace(block, holders=holders, ahead=tuple(one for one in block.ahead if caller.owns(one)))


def _nobody(waiter_id: str) -> NotFound:
    return NotFound(f"nobody waits under {waiter_id!r}")
