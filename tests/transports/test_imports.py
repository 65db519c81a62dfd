"""Client libraries are optional: none is loaded unasked, and a missing one is named with its remedy."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_nothing_is_loaded_unasked() -> None:
    code = (
        "import sys, interlock, interlock.sync, interlock.transports\n"
        "interlock.gated, interlock.limited, interlock.ProviderGate\n"
        "print({'httpx2', 'httpx', 'aiohttp', 'httpcore'} & set(sys.modules))"
    )
    assert run(code) == "set()"


@pytest.mark.parametrize(
    ("library", "wanted", "remedy"),
    [
        ("httpx2", "from interlock import InterlockTransport", "interlock[http]"),
        ("httpx2", "from interlock import InterlockSyncTransport", "interlock[http]"),
        ("httpx", "from interlock.transports.httpx import InterlockTransport", "httpx>=0.28"),
        ("aiohttp", "from interlock.transports.aiohttp import interlock_middleware", "interlock[http]"),
    ],
)
def test_a_missing_library_is_named(library: str, wanted: str, remedy: str) -> None:
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        f"try: {wanted}\n"
        "except ImportError as error: print(error)"
    )
    said = run(code)
    assert f"needs {library}" in said
    assert remedy in said


def test_httpx_alone_is_enough_for_its_own_transport() -> None:
    code = (
        "import sys; sys.modules['httpx2'] = None\n"
        "from interlock.transports.httpx import InterlockTransport; print(InterlockTransport.__module__)"
    )
    assert run(code) == "interlock.transports.httpx"
