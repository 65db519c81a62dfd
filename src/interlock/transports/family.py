"""httpx2 and httpx, which are one library in two packages: everything here is written once for both.

Which of the two a call belongs to, its request says; the streams of its answer are of that one's classes.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from interlock.errors import InvalidOperation, Unavailable, ValidationError
from interlock.provider.gate import ProviderGate
from interlock.provider.retry import EXCERPT
from interlock.sync import Gate
from interlock.transports.passage import LARGE, Asked, Passage, without_waiting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from interlock.admission.permit import Permit
    from interlock.core.model import Outcome
    from interlock.transports.passage import Ending, Headers

    T = TypeVar("T")


def library_of(thing: object) -> Any:
    """The module of the library, httpx2 or httpx, that a request or a response is of."""
    for base in type(thing).__mro__:
        root = base.__module__.partition(".")[0]
        if root in ("httpx2", "httpx"):
            return sys.modules[root]
    raise ValidationError(f"{thing!r:.100} is neither of httpx2 nor of httpx")


class Gating:
    """A transport for asynchronous clients; the classes in `httpx2` and `httpx` say what it takes."""

    def __init__(self, gate: ProviderGate, provider_id: str, transport: Any, **terms: Any) -> None:
        if not isinstance(gate, ProviderGate):
            raise ValidationError(f"gate is {gate!r:.80}; allowed is a ProviderGate")
        self._wire = _Wire(gate, transport)
        self._passage = Passage(self._wire, provider_id, **terms)

    async def handle_async_request(self, request: Any) -> Any:
        """Send *request* under a permit, which the answer keeps until its body has ended or was closed."""
        return await self._passage.take(request)

    async def aclose(self) -> None:
        """Close the transports underneath."""
        for transport in self._wire.transports:
            await transport.aclose()


class SyncGating:
    """The same for synchronous clients, over the gate of `interlock.sync`."""

    def __init__(self, gate: Gate, provider_id: str, transport: Any, **terms: Any) -> None:
        if not isinstance(gate, Gate):
            raise ValidationError(f"gate is {gate!r:.80}; allowed is what interlock.sync.start(…) gives")
        self._wire = _BlockingWire(gate, transport)
        self._passage = Passage(self._wire, provider_id, **terms)

    def handle_request(self, request: Any) -> Any:
        """Send *request* under a permit, which the answer keeps until its body has ended or was closed."""
        return without_waiting(self._passage.take(request))

    def close(self) -> None:
        """Close the transports underneath."""
        for transport in self._wire.transports:
            transport.close()


class _Family:
    """What waiting and blocking wires have in common: how a request and a response are read."""

    kind = ""

    def __init__(self, transport: Any) -> None:
        self._given = transport
        self._own: dict[str, Any] = {}
        self._making = threading.Lock()  # the first calls of several threads come together

    @property
    def transports(self) -> list[Any]:
        return [*self._own.values(), *([] if self._given is None else [self._given])]

    def beneath(self, request: Any) -> Any:
        """The transport that sends: the one that was given, else one of the request's own library."""
        if self._given is not None:
            return self._given
        library = library_of(request)
        with self._making:
            if library.__name__ not in self._own:
                self._own[library.__name__] = getattr(library, self.kind)()
            return self._own[library.__name__]

    async def asked(self, request: Any) -> Asked:
        try:
            body = request.content
        except RuntimeError:  # RequestNotRead: it is streamed, and gone once it was sent
            body = None
        headers = {name.lower(): value for name, value in request.headers.items()}
        return Asked(request.method, request.url.path, headers, body)

    def status(self, response: Any) -> int:
        return int(response.status_code)

    def headers(self, response: Any) -> Headers:
        return list(response.headers.multi_items())

    def hand_on(self, response: Any, head: bytes | None, ending: Ending | None) -> Any:
        if ending is None:  # closed before: what was read of it is all of it
            response.stream = library_of(response).ByteStream(head)
        elif response.is_closed:  # made whole by a transport that is no network: nobody reads its stream
            ending.done()
        else:
            response.stream.ending = ending
        return response


class _Wire(_Family):
    kind = "AsyncHTTPTransport"

    def __init__(self, gate: ProviderGate, transport: Any) -> None:
        super().__init__(transport)
        self._gate = gate

    async def on_gate(self, work: Callable[[ProviderGate], T]) -> T:
        return work(self._gate)

    async def acquire(self, provider_id: str, conversation: str | None, **asked: Any) -> Permit:
        return await self._gate.acquire(provider_id, conversation, **asked)

    def release(self, permit: Permit, outcome: Outcome) -> bool:
        return permit.release(outcome)

    async def off_loop(self, work: Callable[[], T], size: int) -> T:
        if size < LARGE:
            return work()
        return await asyncio.get_running_loop().run_in_executor(None, work)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def send(self, request: Any) -> Any:
        response = await self.beneath(request).handle_async_request(request)
        response.stream = _async_body(library_of(response))(response.stream)
        return response

    async def head(self, response: Any) -> bytes:
        return await response.stream.head()  # type: ignore[no-any-return]

    async def close(self, response: Any) -> None:
        await response.stream.aclose()


class _BlockingWire(_Family):
    kind = "HTTPTransport"

    def __init__(self, gate: Gate, transport: Any) -> None:
        super().__init__(transport)
        self._gate = gate

    async def on_gate(self, work: Callable[[ProviderGate], T]) -> T:
        return self._gate.run(work)

    async def acquire(self, provider_id: str, conversation: str | None, **asked: Any) -> Permit:
        return self._gate.acquire(provider_id, conversation, **asked).wait()

    def release(self, permit: Permit, outcome: Outcome) -> bool:
        try:
            # There and then, so that the slot is free as soon as the caller goes on.
            return self._gate.run(lambda _: permit.release(outcome), lasting=True)
        except (Unavailable, InvalidOperation):  # closed before, or a collector's call in the loop's thread
            return permit.release(outcome)

    async def off_loop(self, work: Callable[[], T], size: int) -> T:
        return work()

    async def sleep(self, seconds: float) -> None:
        self._gate.run(lambda _: asyncio.sleep(seconds))

    async def send(self, request: Any) -> Any:
        response = self.beneath(request).handle_request(request)
        response.stream = _body(library_of(response))(response.stream)
        return response

    async def head(self, response: Any) -> bytes:
        return response.stream.head()  # type: ignore[no-any-return]

    async def close(self, response: Any) -> None:
        response.stream.close()


class _AsyncBody:
    """An answer's body; *ending* is told of its pieces and of its end, once there is one."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._closed = False
        self._head: list[bytes] = []
        self._rest: AsyncIterator[bytes] | None = None
        self.ending: Ending | None = None

    async def head(self) -> bytes:
        """Its beginning, a little more than `EXCERPT` if there is so much; it stays to be read."""
        self._rest = aiter(self._inner)
        async for chunk in self._rest:
            self._head.append(chunk)
            if sum(map(len, self._head)) > EXCERPT:
                break
        return b"".join(self._head)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        rest = self._rest or aiter(self._inner)
        try:
            for chunk in self._head:
                yield chunk
            async for chunk in rest:
                if self.ending is not None:
                    self.ending.feed(chunk)
                yield chunk
        except GeneratorExit:
            await self.aclose()
            raise
        except BaseException as error:
            try:
                await self._shut()
            finally:
                if self.ending is not None:
                    self.ending.broken(error)
            raise
        if self.ending is not None:
            self.ending.done()

    async def aclose(self) -> None:
        try:
            await self._shut()
        finally:
            if self.ending is not None:
                self.ending.left()

    async def _shut(self) -> None:
        if not self._closed:
            self._closed = True
            await self._inner.aclose()


class _Body:
    """`_AsyncBody` for threads."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._closed = False
        self._head: list[bytes] = []
        self._rest: Iterator[bytes] | None = None
        self.ending: Ending | None = None

    def head(self) -> bytes:
        self._rest = iter(self._inner)
        for chunk in self._rest:
            self._head.append(chunk)
            if sum(map(len, self._head)) > EXCERPT:
                break
        return b"".join(self._head)

    def __iter__(self) -> Iterator[bytes]:
        rest = self._rest or iter(self._inner)
        try:
            yield from self._head
            for chunk in rest:
                if self.ending is not None:
                    self.ending.feed(chunk)
                yield chunk
        except GeneratorExit:
            self.close()
            raise
        except BaseException as error:
            try:
                self._shut()
            finally:
                if self.ending is not None:
                    self.ending.broken(error)
            raise
        if self.ending is not None:
            self.ending.done()

    def close(self) -> None:
        try:
            self._shut()
        finally:
            if self.ending is not None:
                self.ending.left()

    def _shut(self) -> None:
        if not self._closed:
            self._closed = True
            self._inner.close()


@cache
def _async_body(library: Any) -> Any:
    return type("AsyncBody", (_AsyncBody, library.AsyncByteStream), {})


@cache
def _body(library: Any) -> Any:
    return type("Body", (_Body, library.SyncByteStream), {})
