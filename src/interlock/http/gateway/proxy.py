"""The gateway: any client's calls, through the gates, to the provider, byte for byte.

One call is one straight way: read it, wait for a permit over the provider and the governor's layers at
once, send it, pass the answer on as it comes, give the permit back when the upstream body has ended. A 429
or 529 before the first byte takes the way again, off the slot. Whoever leaves, at any point, is noticed by
one watching task, which cancels the call: that closes the upstream connection and frees the slot.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from interlock.errors import AcquireTimeout, DeadlockDetected, Draining, InterlockError, LimitExceeded
from interlock.http.access.caller import caller_of
from interlock.http.gateway.call import Call, CallReader, GatewayProvider
from interlock.http.gateway.conversation import Turns, TurnScanner
from interlock.http.gateway.dialects import dialect_of
from interlock.http.gateway.headers import (
    RawHeaders,
    concurrency_headers,
    request_headers,
    response_headers,
)
from interlock.http.gateway.reply import Reply
from interlock.http.gateway.tracing import UNTRACED
from interlock.http.gateway.upstream import Upstream, UpstreamError, UpstreamResponse
from interlock.http.permits.room import WaitingRoom
from interlock.http.retrying import RETRY_AFTER, spread, spread_after
from interlock.provider.retry import (
    EXCERPT,
    WITHOUT_PERMIT,
    helps_to_retry,
    read_refusal,
    report_refusal,
    seconds_before,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from interlock.admission.permit import Permit
    from interlock.core.model import Outcome
    from interlock.http.access.budget import Budgets
    from interlock.http.gateway.call import Receive, Scope
    from interlock.http.gateway.tracing import CallTrace, Tracing
    from interlock.provider.gate import ProviderGate
    from interlock.provider.signals import RateLimitSignal

    Send = Callable[[dict[str, Any]], Awaitable[None]]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Excerpt:
    """An upstream's error answer, read so far as it may matter."""

    status: int
    headers: RawHeaders
    body: bytes
    signal: RateLimitSignal | None


class Gateway:
    """An ASGI application for ``/gateway/{provider}/{path}``; times in seconds, *max_body* in bytes."""

    def __init__(
        self,
        gate: ProviderGate,
        upstream: Upstream,
        providers: Mapping[str, GatewayProvider],
        *,
        also: tuple[str, ...] = (),
        ping_after: float = 15.0,
        timeout: float = 300.0,
        max_body: int = 32 << 20,
    ) -> None:
        self._gate = gate
        self._upstream = upstream
        self._also = also
        self._ping_after = ping_after
        self._now = gate.clock.now
        self._turns = Turns()
        self._reader = CallReader(providers, self._turns, self._now, timeout=timeout, max_body=max_body)
        self.room = WaitingRoom(gate.admission.kernel)
        self.budgets: Budgets | None = None
        """Of tokens, where there are any."""
        self.calls: set[asyncio.Task[Any]] = set()
        """The calls under way."""
        self.draining = False
        self.on_ended: list[Callable[[str | None, str], object]] = []
        """Called after every call with the provider's id, if it is one of ours, and `Reply.outcome`."""
        self.tracing: Tracing | None = None

    @property
    def providers(self) -> Mapping[str, GatewayProvider]:
        """The upstreams that there are, by id."""
        return self._reader.providers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {
            name.lower().decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        below = "/" + scope["path"].partition("/gateway/")[2].partition("/")[2]
        reply = Reply(send, dialect_of(below, headers), ping_after=self._ping_after)
        addressed = self._reader.addressed(scope)
        provider = None if addressed is None else addressed.id
        trace: CallTrace = UNTRACED
        if self.tracing is not None:
            trace = self.tracing.call(scope["method"], provider, headers)
        task = asyncio.current_task()
        assert task is not None
        self.calls.add(task)
        torn = False
        try:
            if self.draining:
                await self._refuse(reply, Draining("the gateway is draining; come back in a moment"), scope)
                return
            call = await self._reader.read(scope, headers, below, receive, reply)
            if call is not None:
                call.trace = trace
                trace.identified(below, call.facts.model, call.conversation)
                await self._until_disconnect(call, receive, task)
        except InterlockError as error:
            await self._refuse(reply, error, scope)
        except ConnectionResetError as cut:
            torn = True
            log.warning("an answer was cut off: %s", cut)
            raise  # the server cuts the client's connection as well
        except Exception:
            if reply.started and not reply.pinged:
                raise
            log.exception("a gateway call failed")
            await reply.stop_pings()
            await reply.refuse(500, "internal_error", "the gateway failed; its log says why")
        finally:
            reply.cancel_pings()
            self.calls.discard(task)
            outcome = "torn" if torn else reply.outcome
            trace.ended(outcome, reply.status)
            for ended in self.on_ended:
                ended(provider, outcome)

    # -- the way

    async def _until_disconnect(self, call: Call, receive: Receive, task: asyncio.Task[Any]) -> None:
        left = False

        async def watch() -> None:
            nonlocal left
            while (await receive())["type"] != "http.disconnect":
                pass
            left = True
            task.cancel()

        watching = asyncio.get_running_loop().create_task(watch())
        try:
            if call.method in WITHOUT_PERMIT:
                await self._pass_without_permit(call)
            else:
                await self._pass(call)
        except asyncio.CancelledError:
            if not left or task.uncancel() > 0:
                # Cancelled by the server, which stops at once, and not by the client's leaving.
                if call.reply.started:
                    raise ConnectionResetError("the server stops") from None
                raise Draining("the server stops; come back in a moment") from None
        finally:
            watching.cancel()

    async def _pass(self, call: Call) -> None:
        """Through the gates and on; again, off the slot, while the provider says "too much"."""
        last: _Excerpt | None = None
        if self.budgets is not None:
            self.budgets.ask(call.caller)
        for attempt in itertools.count():
            try:
                if attempt:
                    await self._back_off(call, attempt)
                permit = await self._admitted(call)
            except (AcquireTimeout, LimitExceeded):
                if last is None:
                    raise
                await self._pass_excerpt(call, last)
                return
            finally:
                if call.reply.pinged is False:
                    await call.reply.stop_pings()
            if self.budgets is not None:
                self.budgets.hold(call.caller, partial(getattr, permit, "released"))
            last = await self._attempt(call, permit, attempt)
            if last is None:
                return

    async def _back_off(self, call: Call, attempt: int) -> None:
        """Ask less and less often, also where the provider says "at once"; nothing is held meanwhile."""
        if call.facts.streaming:
            call.reply.ping_later(self._now() - call.arrived)
        began = self._now()
        try:
            await asyncio.sleep(seconds_before(self._gate, call.provider.id, attempt))
        finally:
            call.waited += self._now() - began

    async def _admitted(self, call: Call) -> Permit:
        self.room.check((f"provider:{call.provider.id}", *self._also))
        with self.room.holding(call.caller, len(call.body)):
            return await self._waited_for(call)

    async def _waited_for(self, call: Call) -> Permit:
        asked = self._now()
        timeout = max(0.0, call.deadline - asked)
        try:
            return await self._gate.acquire(
                call.provider.id,
                call.conversation,
                prompt_started_at=call.since,
                priority=call.priority,
                timeout=timeout,
                also=self._also,
                on_queued=(
                    (lambda: call.reply.ping_later(asked - call.arrived)) if call.facts.streaming else None
                ),
            )
        finally:
            call.waited += self._now() - asked

    async def _attempt(self, call: Call, permit: Permit, attempt: int) -> _Excerpt | None:
        """One try under *permit*. None: the call is over; else the provider refused for now."""
        outcome: Outcome = "failed"
        response: UpstreamResponse | None = None
        broken: str | None = None
        try:
            response = await self._send(call)
            if response.status < 400:
                outcome = await self._stream(call, response, permit)
            else:
                excerpt = await self._excerpt(call, response)
                if excerpt.signal is not None:
                    report_refusal(self._gate, call.provider.id, permit, excerpt.signal)
                if excerpt.signal is not None and self._again(call, excerpt, attempt):
                    return excerpt
                outcome = "success" if response.status < 500 and excerpt.signal is None else "failed"
                await self._pass_excerpt(call, excerpt, response)
        except UpstreamError as error:
            broken = error.kind
            await self._upstream_failed(call, error)
        except asyncio.CancelledError:
            outcome = broken = "cancelled"
            raise
        finally:
            # Closed before it is released: the provider sees the end no later than the next one's start.
            if response is not None:
                response.close()
            permit.release(outcome)
            call.trace.attempted(broken)
        return None

    async def _pass_without_permit(self, call: Call) -> None:
        response: UpstreamResponse | None = None
        broken: str | None = "cancelled"
        try:
            response = await self._send(call)
            await self._stream(call, response, None)
            broken = None
        except UpstreamError as error:
            broken = error.kind
            await self._upstream_failed(call, error)
        finally:
            if response is not None:
                response.close()
            call.trace.attempted(broken)

    async def _send(self, call: Call) -> UpstreamResponse:
        headers = request_headers(call.raw_headers, api_key=call.provider.api_key, dialect=call.reply.dialect)
        if call.reply.pinged:
            # The header of the answer is out: what comes must be readable as it is.
            headers = [(name, value) for name, value in headers if name.lower() != "accept-encoding"]
            headers.append(("accept-encoding", "identity"))
        headers = call.trace.sending(call.provider.base_url, headers)
        # A plain answer comes all at once: its first byte may take as long as its caller waits.
        patience = None if call.facts.streaming else max(120.0, call.deadline - self._now())
        body = call.body if call.body or call.method not in WITHOUT_PERMIT else None
        try:
            response = await self._upstream.send(call.method, call.url, headers, body, timeout=patience)
            call.trace.answered(response.status)
            return response
        finally:
            await call.reply.stop_pings()

    async def _stream(self, call: Call, response: UpstreamResponse, permit: Permit | None) -> Outcome:
        """Pass the answer on as it comes; how it ended."""
        reply = call.reply
        fields = {name.lower(): value for name, value in response.headers}
        encoding = fields.get(b"content-encoding", b"").decode("latin-1")
        scanner = TurnScanner(encoding)
        events = fields.get(b"content-type", b"").startswith(b"text/event-stream") and not encoding
        if reply.pinged and not events:
            excerpt = await self._excerpt(call, response)
            await reply.whole(502, excerpt.headers, excerpt.body)
            return "failed"
        if not reply.started:
            await reply.start(response.status, self._headers(call, response_headers(response.headers)))
        if permit is not None:
            # A client that reads slowly does not keep what the provider is done with.
            response.when_ended(permit.release)
        last = b""
        try:
            async for chunk in response.chunks():
                if permit is not None:
                    permit.touch()
                scanner.feed(chunk)
                if response.ended:
                    last = chunk  # one write for it and for the end
                else:
                    await reply.chunk(chunk)
        except UpstreamError as error:
            call.trace.attempted(error.kind)
            if not events:
                # The client must not take a torn answer for a whole one: its connection is cut as well.
                raise ConnectionResetError(error.message) from None
            await reply.break_off(error.status, f"upstream_{error.kind}", error.message)
            return "failed"
        if permit is not None and call.conversation is not None:
            self._turns.observe(call.conversation, scanner.ended, scanner.response_id, self._now())
        await reply.end(last)
        return "success"

    async def _upstream_failed(self, call: Call, error: UpstreamError) -> None:
        if call.reply.started and not call.reply.pinged:
            raise ConnectionResetError(error.message)
        await call.reply.refuse(error.status, f"upstream_{error.kind}", error.message)

    # -- "too much"

    async def _excerpt(self, call: Call, response: UpstreamResponse) -> _Excerpt:
        body = bytearray()
        async for chunk in response.chunks():
            body += chunk
            if len(body) > EXCERPT:
                break
        text = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers]
        signal = read_refusal(
            response.status,
            text,
            bytes(body),
            provider_id=call.provider.id,
            wordings=call.provider.wordings,
            now=self._now(),
        )
        return _Excerpt(response.status, response.headers, bytes(body), signal)

    def _again(self, call: Call, excerpt: _Excerpt, attempt: int) -> bool:
        """Whether asking again can help before the caller's deadline."""
        assert excerpt.signal is not None
        return helps_to_retry(
            self._gate,
            call.provider.id,
            excerpt.status,
            excerpt.signal,
            attempt=attempt,
            deadline=call.deadline,
        )

    async def _pass_excerpt(
        self, call: Call, excerpt: _Excerpt, response: UpstreamResponse | None = None
    ) -> None:
        """The upstream's own error, unchanged; the rest of a long one follows as it comes."""
        headers = self._headers(call, response_headers(excerpt.headers))
        if response is None or len(excerpt.body) <= EXCERPT or call.reply.pinged:
            await call.reply.whole(excerpt.status, headers, excerpt.body)
            return
        await call.reply.start(excerpt.status, headers)
        await call.reply.chunk(excerpt.body)
        async for chunk in response.chunks():
            await call.reply.chunk(chunk)
        await call.reply.end()

    # -- words

    def _headers(self, call: Call, headers: RawHeaders) -> RawHeaders:
        reading = self._gate.reading(call.provider.id)
        paused_for = None if reading.paused_until is None else reading.paused_until - self._now()
        own = concurrency_headers(reading.capacity, reading.used, paused_for, round(call.waited * 1000))
        return headers + own

    async def _refuse(self, reply: Reply, error: InterlockError, scope: Scope) -> None:
        await reply.stop_pings()
        if isinstance(error, AcquireTimeout | DeadlockDetected):
            error = caller_of(scope).told(error)
        retry_after = None
        if error.retryable:
            known = error.details.get("retry_after", 0.0)
            retry_after = max(spread(scope, RETRY_AFTER), spread_after(scope, known))
            if (provider := self._reader.addressed(scope)) is not None:
                paused_until = self._gate.reading(provider.id).paused_until or 0.0
                retry_after = max(retry_after, spread_after(scope, paused_until - self._now()))
        await reply.refuse(error.status, error.code, error.message, retry_after=retry_after)
