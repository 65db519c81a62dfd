"""The files of the dashboard: what the page loads, and nothing else, from this server alone."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Final

from starlette.responses import Response

FILES: Final = {
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "vendor/htmx.min.js": "text/javascript; charset=utf-8",
    "vendor/uPlot.iife.min.js": "text/javascript; charset=utf-8",
    "vendor/uPlot.min.css": "text/css; charset=utf-8",
}
"""By name below ``/static``, with their types."""
PROTECTION: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self'; img-src 'self' data:; "
        "font-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""Of every answer of the dashboard."""
_LASTING: Final = "public, max-age=31536000, immutable"


def address(name: str) -> str:
    """Where the file is, by its content: one that has changed is another one to every cache."""
    return f"/static/{name}?v={_version(name)}"


@cache
def content(name: str) -> bytes:
    """The bytes of the file."""
    return (files("interlock.http.dashboard") / "static" / name).read_bytes()


@cache
def _version(name: str) -> str:
    return sha256(content(name)).hexdigest()[:12]


def answer(name: str, asked: str | None) -> Response:
    """The file, whose version *asked* names, if it does."""
    kept = _LASTING if asked == _version(name) else "no-cache"
    return Response(content(name), 200, {**PROTECTION, "cache-control": kept}, media_type=FILES[name])
