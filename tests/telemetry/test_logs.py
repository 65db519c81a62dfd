"""How a server logs: one line a record, and a canary that never sings."""

from __future__ import annotations

import io
import json
import logging
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.secret import Secret
from interlock.telemetry.logs import JsonLines, Redacting, log_to, redact

CANARY = "c4n4ryc4n4ry"
SPOKEN = [
    "Authorization: Bearer {}",
    "authorization: bearer   {}",
    "{{'authorization': 'Bearer {}', 'accept': '*/*'}}",
    '{{"Authorization":"Basic {}"}}',
    "(b'authorization', b'Bearer {}')",
    "[('x-api-key', '{}')]",
    "x-api-key: {}",
    "X-Goog-Api-Key={}",
    "x-interlock-token: {}",
    "sent Bearer {} to it",
    "GET /v1/models?key=1&api_key={}&page=2",
    "POST https://example.com/x?access_token={}#top",
    "OPENAI_API_KEY={}",
    'api_key = "{}"',
    "password='{}'",
    "client_secret: {}",
    "https://user:{}@example.com/path",
    "postgresql://{}@localhost/db",
    "Incorrect API key provided: sk-proj-{}",
    "sk-ant-api03-{}",
    "gsk_{}",
    "ghp_{}",
    "github_pat_{}",
    "hf_{}",
    "eyJhbGciOiJI.{}.x",
    "AIzaSyD-0123456789_{}",
]
HARMLESS = [
    "run run_5c1f of session s1 ignored for 10 s that it should stop; it was left to itself",
    "usage of 'openai' could be read: 812 input tokens, output_tokens=96",
    "http://127.0.0.1:7411/gateway/openai/v1/chat/completions",
    "a call of the task-force at 12:30 and a risk-averse agent",
    "limits.tools 8 -> 12",
    "send the server's token, as a bearer",
]


def record(message: str, *args: Any, exc_info: Any = None, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("interlock.test", logging.WARNING, "file.py", 7, message, args, exc_info)
    made.__dict__.update(more)
    return made


@pytest.mark.parametrize("spoken", SPOKEN)
def test_what_looks_like_a_credential_is_hidden(spoken: str) -> None:
    text = redact(f"before {spoken.format(CANARY)} after")
    assert CANARY not in text
    assert "***" in text
    assert text.startswith("before")


@pytest.mark.parametrize("text", HARMLESS)
def test_what_does_not_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_the_configuration_s_own_secrets_are_hidden_however_they_look() -> None:
    """Also one that is part of another; one that is an ordinary word's length is no help to hide."""
    lines = Redacting([Secret("plain words"), Secret("plain words and more"), Secret("on")])
    shown = lines.format(record("it said %s, then %s, on and on", "plain words and more", "plain words"))
    assert shown == "WARNING interlock.test: it said ***, then ***, on and on"


def error(text: str) -> Any:
    def fail() -> None:
        raise RuntimeError(text)

    try:
        fail()
    except RuntimeError as raised:
        return type(raised), raised, raised.__traceback__


def test_a_line_of_json_says_when_how_bad_who_and_what() -> None:
    line = JsonLines().format(record("%d calls\nfailed: ä", 3, created=1_795_270_461.5))
    assert json.loads(line) == {
        "time": "2026-11-21T14:14:21.500Z",
        "level": "warning",
        "logger": "interlock.test",
        "message": "3 calls\nfailed: ä",
    }
    assert "\n" not in line


def test_a_traceback_is_in_the_line_and_hidden_where_it_must_be() -> None:
    for lines in (JsonLines([Secret(CANARY)]), JsonLines()):
        line = lines.format(record("it failed", exc_info=error(f"401: Bearer {CANARY}")))
        assert "\n" not in line
        assert CANARY not in line
        said = json.loads(line)
        assert said["message"] == "it failed"
        assert said["exception"].startswith("Traceback (most recent call last):")
        assert said["exception"].endswith("RuntimeError: 401: Bearer ***")


def test_a_traceback_below_a_line_of_text_is_hidden_where_it_must_be() -> None:
    shown = Redacting().format(record("it failed", exc_info=error(f"Bearer {CANARY}")))
    assert shown.startswith("WARNING interlock.test: it failed\nTraceback")
    assert CANARY not in shown


@given(st.text(), st.sampled_from(SPOKEN), st.text())
def test_anything_can_be_logged_as_one_line(before: str, spoken: str, after: str) -> None:
    """Whatever others say around it: the line is JSON, fit to be written, and the canary is silent."""
    line = JsonLines([Secret(CANARY)]).format(
        record(f"{before} {spoken.format(CANARY)} {after}".replace("%", "%%"))
    )
    line.encode()
    assert set(json.loads(line)) == {"time", "level", "logger", "message"}
    assert CANARY not in line
    assert "\n" not in line


def test_it_takes_no_time_that_grows_out_of_hand() -> None:
    """Patterns over text of others: 300 kB of what nearly fits costs less than a second."""
    for piece in (
        "a-",
        "api_key",
        "token ",
        "Bearer",
        "sk-",
        "://",
        "eyJ",
        "authorization: ",
        "api_key='",
        "   ",
    ):
        began = time.process_time()
        redact(piece * (300_000 // len(piece)))
        assert time.process_time() - began < 1.0, piece


def test_all_that_a_process_logs_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    stream = io.StringIO()
    log_to(stream, style="json", secrets=[Secret("plain words")], level=root.level)
    logging.getLogger("somebody.else").error("said %s", "plain words")
    assert json.loads(stream.getvalue())["message"] == "said ***"
    log_to(stream)
    assert len(root.handlers) == 1
