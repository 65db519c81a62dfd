"""One gateway call, read and understood: for which provider, of which conversation, since when, how long."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interlock.errors import ValidationError
from interlock.http.access.caller import caller_of
from interlock.http.gateway.conversation import RequestFacts, Turns, identify, plain_name
from interlock.http.gateway.headers import RawHeaders, upstream_path
from interlock.http.gateway.tracing import UNTRACED
from interlock.provider.signals import WORDINGS, Wording

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from interlock.http.access.caller import Caller
    from interlock.http.gateway.reply import Reply
    from interlock.http.gateway.tracing import CallTrace

    Scope = dict[str, Any]
    Receive = Callable[[], Awaitable[dict[str, Any]]]

_LARGE = 256 * 1024


@dataclass(frozen=True, slots=True)
class GatewayProvider:
    """One upstream as the gateway needs it; *api_key* None lets the caller's own credentials pass."""

    id: str
    base_url: str
    api_key: str | None = None
    wordings: tuple[Wording, ...] = WORDINGS


@dataclass(slots=True)
class Call:
    """One request, read and understood. *since* orders it, *deadline* ends its patience; both in seconds."""

    provider: GatewayProvider
    method: str
    url: str
    raw_headers: RawHeaders
    body: bytes
    facts: RequestFacts
    conversation: str | None
    arrived: float
    since: float
    deadline: float
    priority: int
    reply: Reply
    caller: Caller
    waited: float = 0.0
    trace: CallTrace = UNTRACED


class CallReader:
    """Reads calls for *providers*; *timeout* in seconds, *max_body* in bytes."""

    def __init__(
        self,
        providers: Mapping[str, GatewayProvider],
        turns: Turns,
        now: Callable[[], float],
        *,
        timeout: float,
        max_body: int,
    ) -> None:
        self.providers = dict(providers)
        self._turns = turns
        self._now = now
        self._timeout = timeout
        self._max_body = max_body

    async def read(
        self, scope: Scope, headers: dict[str, str], below: str, receive: Receive, reply: Reply
    ) -> Call | None:
        """The call; None if it was refused, or its client left, before it was whole."""
        arrived = self._now()
        provider = self.addressed(scope)
        if provider is None:
            provider_id = scope["raw_path"].split(b"/", 3)[2].decode("latin-1")
            known = ", ".join(sorted(self.providers)) or "none"
            await reply.refuse(
                404, "unknown_provider", f"no provider {provider_id!r}; configured are: {known}"
            )
            return None
        url = provider.base_url + upstream_path(scope["raw_path"], scope["query_string"])
        body = await self._body(headers, receive, reply)
        if body is None:
            return None
        facts = await self._facts(below, headers, body)
        if facts.steers is not None:
            raise ValidationError(
                f"the body has {facts.steers!r}; where calls go, and as whom, is the server's configuration",
                code="unsupported_parameter",
            )
        caller = caller_of(scope)
        conversation = plain_name(headers.get("x-interlock-conversation")) or facts.conversation
        if conversation is not None and not conversation.endswith(caller.suffix):
            conversation += caller.suffix  # two tenants' conversations are two, whatever they are called
        timeout_ms = _whole(headers, "x-interlock-timeout-ms", 0, 86_400_000)
        timeout = self._timeout if timeout_ms is None else timeout_ms / 1000
        return Call(
            provider=provider,
            method=scope["method"],
            url=url,
            raw_headers=scope["headers"],
            body=body,
            facts=facts,
            conversation=conversation,
            arrived=arrived,
            since=self._since(headers, conversation, facts, arrived, caller),
            deadline=arrived + timeout,
            priority=caller.check_priority(_whole(headers, "x-interlock-priority", -1000, 1000) or 0),
            reply=reply,
            caller=caller,
        )

    async def _body(self, headers: dict[str, str], receive: Receive, reply: Reply) -> bytes | None:
        """The request's body; None if the client left, or it was refused for its size."""
        announced = headers.get("content-length", "0")
        pieces: list[bytes] = []
        arrived = 0
        size = int(announced) if announced.isdecimal() else 0
        while size <= self._max_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            pieces.append(piece)
            arrived += len(piece)
            size = max(size, arrived)
            if not message.get("more_body", False):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        await reply.refuse(
            413,
            "request_too_large",
            f"the body is over {self._max_body} bytes; raise gateway.max_body or send less",
            headers=[(b"connection", b"close")],
        )
        return None

    async def _facts(self, below: str, headers: dict[str, str], body: bytes) -> RequestFacts:
        known = self._turns.conversation_of
        if len(body) < _LARGE:
            return identify(below, headers, body, known)
        # A long conversation takes milliseconds to read: off the loop with it.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, identify, below, headers, body, known)

    def _since(
        self,
        headers: dict[str, str],
        conversation: str | None,
        facts: RequestFacts,
        now: float,
        caller: Caller,
    ) -> float:
        """When the prompt began that this call serves: said by the caller, else inferred from its turn."""
        started_ms = _whole(headers, "x-interlock-prompt-started-at", 0, 1 << 53)
        if started_ms is not None:
            return caller.started(started_ms / 1000, now) or now
        if conversation is None:
            return now
        return self._turns.started_at(conversation, continues=facts.continues_turn, now=now)

    def addressed(self, scope: Scope) -> GatewayProvider | None:
        """The provider that a request speaks to."""
        # The raw path, as in `upstream_path`: what is one segment there is one here.
        return self.providers.get(scope["raw_path"].split(b"/", 3)[2].decode("latin-1"))


def _whole(headers: dict[str, str], name: str, least: int, most: int) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    digits = text.strip().removeprefix("-")
    if not digits.isdecimal() or len(digits) > 17 or not least <= int(text) <= most:
        raise ValidationError(f"header {name} is {text!r:.60}; allowed are whole numbers {least} to {most}")
    return int(text)
