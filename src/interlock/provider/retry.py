"""Asking again after "too much": what a refusal means, whether to come back, when, and what the gate hears.

Whoever passes calls on to a provider (the gateway, the transports of the SDKs) decides by these, so that a
call fares the same in process and through the server. The idea, retries that hold no slot and keep their
place, is dispatch's.
"""

from __future__ import annotations

import logging
import zlib
from typing import TYPE_CHECKING, Final

from interlock.provider.signals import WORDINGS, classify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interlock.admission.permit import Permit
    from interlock.provider.gate import ProviderGate
    from interlock.provider.signals import RateLimitSignal, Wording

log = logging.getLogger(__name__)

WITHOUT_PERMIT: Final = frozenset(("GET", "HEAD", "OPTIONS"))
"""Methods that list models and the like: they start no work at the provider."""
RETRIED: Final = frozenset((429, 529))
EXCERPT: Final = 64 * 1024
"""Bytes of an error's body that are looked at."""
_OVERLOAD_PAUSE: Final = 5.0
"""Seconds to pause for an overload that names no time: it passes sooner than a rate window."""


def read_refusal(
    status: int,
    headers: Sequence[tuple[str, str]],
    body: bytes,
    *,
    provider_id: str,
    wordings: Sequence[Wording] = WORDINGS,
    now: float,
) -> RateLimitSignal | None:
    """`classify`, for a *body* as it came over the wire, compressed or not."""
    encoding = next((value for name, value in headers if name.lower() == "content-encoding"), "")
    return classify(
        status, headers, inflated(body, encoding), provider=provider_id, wordings=wordings, now=now
    )


def report_refusal(gate: ProviderGate, provider_id: str, permit: Permit, signal: RateLimitSignal) -> None:
    """Tell *gate* what was answered under *permit*."""
    pause = signal.retry_after
    if pause is None and signal.reason == "overload":
        pause = _OVERLOAD_PAUSE
    log.info("%s said too much (%s): %s", provider_id, signal.reason, signal.message)
    said = " ".join(filter(None, (f"{signal.status or ''}", signal.code)))
    evidence = ": ".join(filter(None, (said, signal.message)))
    gate.report_rate_limit(provider_id, pause, permit=permit, reason=signal.reason, evidence=evidence)


def helps_to_retry(
    gate: ProviderGate,
    provider_id: str,
    status: int,
    signal: RateLimitSignal,
    *,
    attempt: int,
    deadline: float,
) -> bool:
    """Whether asking again after this *attempt* (the first is 0) can help before *deadline* (epoch)."""
    if status not in RETRIED or signal.reason == "quota":
        return False
    paused_until = gate.reading(provider_id).paused_until or 0.0
    return max(gate.clock.now() + _delay(attempt + 1), paused_until) < deadline


def seconds_before(gate: ProviderGate, provider_id: str, attempt: int) -> float:
    """How long to stay away before *attempt*, besides the pause that the gate keeps anyway.

    It asks less and less often, also where the provider says "at once". Nothing is held meanwhile.
    """
    paused_until = gate.reading(provider_id).paused_until or 0.0
    return max(0.0, _delay(attempt) - max(0.0, paused_until - gate.clock.now()))


def inflated(body: bytes, encoding: str) -> bytes:
    """The beginning of *body* decompressed; as it is if there is nothing to do, empty if that fails."""
    if encoding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        return body
    try:
        return zlib.decompressobj(wbits=47).decompress(body, EXCERPT)
    except zlib.error:
        return b""


def _delay(attempt: int) -> float:
    """Seconds before the attempt of this number, the first being 0."""
    return float(min(8.0, 0.01 * 2**attempt))
