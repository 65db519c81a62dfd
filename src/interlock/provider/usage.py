"""How much work an upstream itself counts for this account, read over HTTP.

The reading comes from outside, so it is parsed, clamped or ignored: a parser is a total function of
the body, and a poll that fails in any way, or lasts too long, is ``None``: "it cannot tell".
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from interlock.errors import CapabilityNotSupported, ValidationError
from interlock.provider.signals import count, json_value

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import aiohttp

    Parse: TypeAlias = Callable[[bytes], "ProviderUsage | None"]

MAX_BODY: Final = 64 * 1024
MAX_ENGINE_BODY: Final = 1024 * 1024  # an engine's metrics grow with its models and replicas


@dataclass(frozen=True, slots=True)
class ProviderUsage:
    """What a provider says about the work it is doing for this account."""

    concurrent_sessions: int
    limit: int | None = None


def _usage(sessions: object, limit: object = None) -> ProviderUsage | None:
    running = count(sessions)
    return None if running is None else ProviderUsage(running, count(limit) or None)


def _at(value: Any, *path: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def parse_usage(body: bytes) -> ProviderUsage | None:
    """``{"usage": {"concurrent_sessions": n}, "limits": {"concurrency": {"limit": n}}}``."""
    value = json_value(body)
    return _usage(_at(value, "usage", "concurrent_sessions"), _at(value, "limits", "concurrency", "limit"))


def parse_llama_slots(body: bytes) -> ProviderUsage | None:
    """llama.cpp's ``GET /slots``: a list of slots, each busy or not; they are also the limit."""
    slots = json_value(body)
    if not isinstance(slots, list) or not slots:
        return None
    busy = 0
    for slot in slots:
        # Older servers have a number instead, of which 0 means idle.
        at_work = _at(slot, "is_processing")
        if not isinstance(at_work, bool):
            at_work = count(_at(slot, "state"))
        if at_work is None:
            return None
        busy += bool(at_work)
    return _usage(busy, len(slots))


_RUNNING: Final = re.compile(rb"^vllm:num_requests_running(?:\{[^\n]*\})?[ \t]+([^\s]{1,40})", re.MULTILINE)


def parse_vllm_metrics(body: bytes) -> ProviderUsage | None:
    """vLLM's ``GET /metrics``: the requests running now, summed over engines and models."""
    try:
        numbers = [float(number) for number in _RUNNING.findall(body)]
    except ValueError:
        return None
    # NaN and an infinity stay what they are in a sum, a negative number does not.
    return _usage(sum(numbers)) if numbers and not min(numbers) < 0 else None


async def fetch_usage(
    url: str,
    parse: Parse,
    *,
    api_key: str | None = None,
    client: aiohttp.ClientSession | None = None,
    timeout: float = 2.0,
    max_body: int = MAX_BODY,
) -> ProviderUsage | None:
    """GET *url* within *timeout* seconds and parse its body; whatever fails gives ``None``.

    Redirects are not followed, since they would carry the key elsewhere, and a body that is longer
    than *max_body* bytes or compressed is not read.
    """
    try:
        async with asyncio.timeout(timeout):
            if client is not None:
                return parse(await _get(client, url, api_key, max_body))
            import aiohttp

            jar = aiohttp.DummyCookieJar()
            async with aiohttp.ClientSession(
                trust_env=False, auto_decompress=False, cookie_jar=jar
            ) as session:
                return parse(await _get(session, url, api_key, max_body))
    except Exception:  # a poll may fail in any way; a cancellation is no Exception and passes
        return None


async def _get(session: aiohttp.ClientSession, url: str, api_key: str | None, max_body: int) -> bytes:
    """The body of a plain, successful and short answer; anything else raises."""
    headers = {"Accept-Encoding": "identity"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    async with session.get(url, headers=headers, allow_redirects=False) as response:
        encoding = response.headers.get("Content-Encoding", "identity")
        if not 200 <= response.status < 300 or encoding.lower() != "identity":
            raise ValueError("no plain answer")
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > max_body:
                raise ValueError("too long")
        return bytes(body)


async def get_usage(
    base_url: str,
    api_key: str | None,
    *,
    client: aiohttp.ClientSession | None = None,
    timeout: float = 2.0,
) -> ProviderUsage | None:
    """The work that ``GET {base_url}/usage`` counts for *api_key*, or ``None``; never raises.

    At most 64 KiB are read, within *timeout* seconds. The idea, and the shape of the answer, are
    those of dispatch's provider concurrency.
    """
    url = f"{base_url.rstrip('/')}/usage"
    return await fetch_usage(url, parse_usage, api_key=api_key, client=client, timeout=timeout)


def usage_source(
    kind: str,
    base_url: str,
    api_key: str | None,
    *,
    client: aiohttp.ClientSession | None = None,
    timeout: float = 2.0,
) -> Callable[[str], Awaitable[ProviderUsage | None]]:
    """A ``UsageSource`` for one provider; the id that it is asked with makes no difference.

    *kind* is a path under *base_url* that answers as ``/usage`` does, or ``llama.cpp`` or ``vllm``,
    whose own routes stand beside the ``/v1`` that *base_url* may end with.
    """
    if client is None and find_spec("aiohttp") is None:
        raise CapabilityNotSupported("reading a provider's usage needs aiohttp: interlock[http]")
    base = base_url.rstrip("/")
    if not re.fullmatch(r"https?://[^\s/?#@\\]+(?:/[^\s?#@\\]*)?", base):
        raise ValidationError("base_url is no http or https address without user, query and hash")
    url, parse, max_body = base + kind, parse_usage, MAX_BODY
    if kind == "llama.cpp":
        url, parse, max_body = f"{_root(base)}/slots", parse_llama_slots, MAX_ENGINE_BODY
    elif kind == "vllm":
        url, parse, max_body = f"{_root(base)}/metrics", parse_vllm_metrics, MAX_ENGINE_BODY
    elif not re.fullmatch(r"/(?!/)(?:(?!\.\.)[A-Za-z0-9._~!$&'()*+,;=:@%/-])*", kind):
        allowed = 'a path under base_url such as "/usage", "llama.cpp" and "vllm"'
        raise ValidationError(f"usage is {kind!r:.80}; allowed are {allowed}")

    async def source(provider_id: str, /) -> ProviderUsage | None:
        return await fetch_usage(
            url, parse, api_key=api_key, client=client, timeout=timeout, max_body=max_body
        )

    return source


def _root(base_url: str) -> str:
    return base_url.removesuffix("/v1")
