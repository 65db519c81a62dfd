"""OpenTelemetry: spans for waits, gateway calls and runs, and the numbers of limits.

It needs ``interlock[otel]``, which is the API alone: where spans go is up to whoever sets up an SDK. What a
span says are names, numbers and codes: no body, no header, no query, and no words of an error.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from opentelemetry import metrics, trace
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from interlock import __version__
from interlock.admission.local import LocalAdmission
from interlock.session.tally import tally_of
from interlock.telemetry import genai
from interlock.telemetry.labels import Bounded
from interlock.telemetry.otel_metrics import PROVIDER, Numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider

    from interlock.admission.waits import TellsOfWaits, Wait, WaitEnded
    from interlock.core.sessions import Run
    from interlock.ports import Store
    from interlock.session.tally import AttemptEnded

    Headers = list[tuple[str, str]]

ROUTE: Final = "/gateway/{provider}/{path}"
_OURS: Final = ("opentelemetry.trace", "opentelemetry.metrics")
_MOST: Final = 256
"""Characters of a text from outside that go into an attribute."""
_W3C: Final = TraceContextTextMapPropagator()
_CARRIED: Final = frozenset(name.encode() for name in _W3C.fields)
_MOST_SUBMITTED: Final = 10_000
"""Runs that wait and whose submitters are remembered."""


class OpenTelemetry:
    """What `instrument` gives: the tracer of one admission, which also traces a gateway's calls."""

    def __init__(self, tracer: Tracer, numbers: Numbers) -> None:
        self._tracer = tracer
        self._numbers = numbers
        self._models = Bounded()
        self._submitted: OrderedDict[str, SpanContext] = OrderedDict()

    # -- waits

    def waiting(self, wait: Wait) -> WaitEnded:
        """A wait begins; its span is a child of the span that is current for who waits."""
        began_ns, context = time.time_ns(), get_current()
        position = wait.position()

        def ended(how: str, seconds: float) -> None:
            self._numbers.waited(wait.limits, seconds)
            attributes: dict[str, Any] = {
                "interlock.limits": wait.limits,
                "interlock.wait.outcome": how,
                "interlock.wait.seconds": seconds,
                "interlock.priority": wait.priority,
            }
            if position is not None:
                attributes["interlock.wait.position"] = position
            if wait.owner is not None:
                attributes["interlock.owner"] = wait.owner[:_MOST]
            provider = next((name for name in wait.limits if name.startswith(PROVIDER)), None)
            if provider is not None:
                attributes["interlock.provider"] = provider.removeprefix(PROVIDER)
            span = self._tracer.start_span(
                "interlock.wait", context, attributes=attributes, start_time=began_ns
            )
            if how not in ("granted", "cancelled"):
                _failed(span, how)
            span.end()

        return ended

    # -- runs

    def submitted(self, run: Run) -> None:
        """A run was submitted: should this process start it, its span is linked to what is current now."""
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            self._submitted[run.id] = context
            if len(self._submitted) > _MOST_SUBMITTED:
                self._submitted.popitem(last=False)

    def attempt(self, run: Run) -> AttemptEnded:
        """An agent begins to work: what it asks for meanwhile is below this span, which has no parent."""
        by = self._submitted.pop(run.id, None)
        attributes: dict[str, str | int | float] = {
            genai.OPERATION_NAME: genai.INVOKE_AGENT,
            genai.CONVERSATION_ID: run.session_id[:_MOST],
            "interlock.run.id": run.id,
            "interlock.run.attempt": run.attempt,
            "interlock.wait.seconds": run.waited or 0.0,
            "interlock.priority": run.priority,
        }
        links = [] if by is None else [Link(by)]
        span = self._tracer.start_span("interlock.run", Context(), attributes=attributes, links=links)
        token = attach(set_span_in_context(span, Context()))

        def ended(after: Run | None) -> None:
            if after is not None:
                span.set_attribute("interlock.run.status", after.status)
                if after.error is not None:
                    _failed(span, str(after.error.get("code"))[:_MOST])
            span.end()
            detach(token)

        return ended

    # -- calls

    @contextmanager
    def within(self, headers: Iterable[tuple[bytes, bytes]]) -> Iterator[None]:
        """Have a request's ``traceparent`` as the parent of what happens in here; *headers* as they came."""
        found = {
            name.lower().decode("latin-1"): value.decode("latin-1")
            for name, value in headers
            if name.lower() in _CARRIED
        }
        token = attach(_W3C.extract(found, Context()))
        try:
            yield
        finally:
            detach(token)

    def call(self, method: str, provider: str | None, headers: Mapping[str, str]) -> TracedCall:
        """See `interlock.http.gateway.tracing.Tracing`; the caller's ``traceparent`` is the parent."""
        return TracedCall(self._tracer, self._numbers, self._models, method, provider, headers)


class TracedCall:
    """See `interlock.http.gateway.tracing.CallTrace`."""

    def __init__(
        self,
        tracer: Tracer,
        numbers: Numbers,
        models: Bounded,
        method: str,
        provider: str | None,
        headers: Mapping[str, str],
    ) -> None:
        self._tracer = tracer
        self._numbers = numbers
        self._models = models
        self._known: dict[str, Any] = {} if provider is None else {genai.PROVIDER_NAME: provider}
        self._conversation: dict[str, Any] = {}
        self._attempt: Span | None = None
        self._attempts = 0
        self._began = 0.0
        self._error: str | None = None
        self._parent = _W3C.extract(headers, Context())
        attributes = {genai.METHOD: method, genai.ROUTE: ROUTE}
        if provider is not None:
            attributes["interlock.provider"] = provider
        self._span = tracer.start_span(f"{method} {ROUTE}", self._parent, SpanKind.SERVER, attributes)
        self._context = set_span_in_context(self._span, self._parent)
        self._token = attach(self._context)

    def identified(self, path: str, model: str | None, conversation: str | None) -> None:
        if (operation := genai.operation(path)) is not None:
            self._known[genai.OPERATION_NAME] = operation
        if model is not None:
            self._known[genai.REQUEST_MODEL] = model[:_MOST]
        if conversation is not None:
            self._conversation[genai.CONVERSATION_ID] = conversation[:_MOST]
            self._span.set_attributes(self._conversation)

    def sending(self, base_url: str, headers: Headers) -> Headers:
        parts = urlsplit(base_url)
        self._known[genai.SERVER_ADDRESS] = parts.hostname or ""
        self._known[genai.SERVER_PORT] = parts.port or (443 if parts.scheme == "https" else 80)
        words = (self._known.get(genai.OPERATION_NAME), self._known.get(genai.REQUEST_MODEL))
        name = " ".join(filter(None, words)) or "call"
        attributes = self._known | self._conversation | {"interlock.attempt": self._attempts}
        self._attempts += 1
        self._error = None
        self._began = time.monotonic()
        span = self._tracer.start_span(name, self._context, SpanKind.CLIENT, attributes)
        self._attempt = span
        sent, came = span.get_span_context(), trace.get_current_span(self._parent).get_span_context()
        if not sent.is_valid or sent.span_id == came.span_id:
            return headers  # no spans are made here: what the caller sent goes on as it came
        carried: dict[str, str] = {}
        _W3C.inject(carried, set_span_in_context(span, self._context))
        kept = [field for field in headers if field[0].lower() not in _W3C.fields]
        return [*kept, *carried.items()]

    def answered(self, status: int) -> None:
        if self._attempt is not None:
            self._attempt.set_attribute(genai.STATUS, status)
            if status >= 400:
                self._error = str(status)

    def attempted(self, error: str | None) -> None:
        span, self._attempt = self._attempt, None
        if span is None:
            return
        error = error or self._error
        if error is not None:
            _failed(span, error)
        span.end()
        if genai.OPERATION_NAME in self._known:
            told = self._known | ({} if error is None else {genai.ERROR_TYPE: error})
            if genai.REQUEST_MODEL in told:
                told[genai.REQUEST_MODEL] = self._models.value(told[genai.REQUEST_MODEL])
            self._numbers.called(told, time.monotonic() - self._began)

    def ended(self, outcome: str, status: int) -> None:
        self.attempted("cancelled")
        self._span.set_attribute("interlock.outcome", outcome)
        if status:
            self._span.set_attribute(genai.STATUS, status)
        if outcome in ("failed", "torn", "upstream_failed"):
            _failed(self._span, outcome)
        self._span.end()
        detach(self._token)


def instrument(
    admission: TellsOfWaits,
    store: Store | None = None,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> OpenTelemetry:
    """Trace the waits of *admission* and the runs of the sessions in *store*; once for each of them.

    Without providers, those that are set up globally. The numbers of limits are those of a `LocalAdmission`:
    where a server keeps them, it tells them. What it gives traces a gateway's calls, as its ``tracing``.
    """
    meters = meter_provider or metrics.get_meter_provider()
    numbers = _numbers.get(meters)
    if numbers is None:
        numbers = _numbers[meters] = Numbers(meters.get_meter("interlock", __version__))
    telemetry = _instrumented.get(admission)
    if telemetry is None:
        telemetry = OpenTelemetry(trace.get_tracer("interlock", __version__, tracer_provider), numbers)
        _instrumented[admission] = telemetry
        admission.on_wait.append(telemetry.waiting)
        if isinstance(admission, LocalAdmission):
            numbers.watch(admission)
    if store is not None and store not in _traced_stores:
        _traced_stores[store] = None
        tally_of(store).on_submit.append(telemetry.submitted)
        tally_of(store).on_attempt.append(telemetry.attempt)
    return telemetry


_numbers: WeakKeyDictionary[MeterProvider, Numbers] = WeakKeyDictionary()
_instrumented: WeakKeyDictionary[Any, OpenTelemetry] = WeakKeyDictionary()
_traced_stores: WeakKeyDictionary[Store, None] = WeakKeyDictionary()


def is_set_up() -> bool:
    """Whether this process has a provider of spans or of numbers other than the API's own empty ones."""
    providers = (trace.get_tracer_provider(), metrics.get_meter_provider())
    return any(not type(one).__module__.startswith(_OURS) for one in providers)


def _failed(span: Span, error: str) -> None:
    span.set_attribute(genai.ERROR_TYPE, error)
    span.set_status(StatusCode.ERROR)
