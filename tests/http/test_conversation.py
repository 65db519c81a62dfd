"""Which conversation a call belongs to, when its turn began, and whether the answer ends it."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.http.gateway.conversation import RequestFacts, Turns, TurnScanner, identify

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
UUID = "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"


def facts(path: str, headers: dict[str, str] | None = None, **body: Any) -> RequestFacts:
    return identify(path, headers or {}, json.dumps(body).encode())


def named(path: str, headers: dict[str, str] | None = None, **body: Any) -> str | None:
    return facts(path, headers, **body).conversation


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


# --- identify ------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["x-claude-code-session-id", "session_id", "session-id", "x-session-id"])
def test_a_session_header_names_the_conversation_before_any_body(header: str) -> None:
    """A header that names the session wins over all that the body says."""
    assert named(CHAT, {header: "s-1"}, messages=[user("hi")], conversation="c") == "s-1"


@pytest.mark.parametrize(
    "body",
    [
        {"conversation": "c-1"},
        {"conversation": {"id": "c-1"}},
        {"metadata": {"conversation_id": "c-1"}},
        {"metadata": {"session_id": "c-1"}},
        {"metadata": {"thread_id": "c-1"}},
        {"metadata": {"thread_id": "c-1"}, "previous_response_id": "resp_0"},
    ],
)
def test_an_id_in_the_body_names_the_conversation(body: dict[str, Any]) -> None:
    """An explicit id comes before everything that can only be guessed."""
    assert named(RESPONSES, input="hi", **body) == "c-1"


def test_the_opening_names_a_conversation_that_names_nothing() -> None:
    """Later calls of a conversation have the opening of its first; others have another."""
    opening = [{"role": "system", "content": "be brief"}, user("hi")]
    first = named(CHAT, messages=opening)
    assert first is not None
    assert named(CHAT, messages=[*opening, said("ho"), user("and?")], model="other") == first
    assert named(CHAT, messages=[opening[0], user("hey")]) != first
    assert named(CHAT, messages=[opening[1]]) != first


def test_the_opening_of_an_anthropic_call_is_free_of_cache_marks() -> None:
    """A cache mark wanders from message to message, and text becomes a block to carry it."""
    mark = {"cache_control": {"type": "ephemeral"}}
    picture = {"type": "image", "source": {"type": "base64", "data": "aGk="}}
    marked = [{"type": "text", "text": "hi", **mark}, {**picture, **mark}]
    bare = [{"type": "text", "text": "hi"}, picture]
    first = named(MESSAGES, system="rules", messages=[user(marked)])
    later = named(
        MESSAGES,
        system=[{"type": "text", "text": "rules", **mark}],
        messages=[user(bare), said("ho"), user("and?")],
    )
    assert first == later
    assert first != named(MESSAGES, system="other rules", messages=[user(bare)])


def test_the_opening_of_a_responses_call_may_be_text_or_a_list() -> None:
    """Clients send the first input as text and repeat it as an item."""
    first = named(RESPONSES, instructions="rules", input="hi")
    later = named(RESPONSES, instructions="rules", input=[user("hi"), said("ho"), user("and?")])
    assert first == later
    assert first != named(RESPONSES, input="hi")


def test_what_is_embedded_is_no_conversation() -> None:
    """``input`` opens a conversation in a Responses call only."""
    assert named("/v1/embeddings", input="hi") is None


@pytest.mark.parametrize(
    "coarse",
    [{"user": "u"}, {"safety_identifier": "u"}, {"metadata": {"user_id": "u"}}],
)
def test_a_person_is_no_conversation(coarse: dict[str, Any]) -> None:
    """Two conversations of one person stay two."""
    one = named(MESSAGES, messages=[user("one")], **coarse)
    two = named(MESSAGES, messages=[user("two")], **coarse)
    assert one == named(MESSAGES, messages=[user("one")])
    assert one != two


def test_a_user_id_that_names_a_session_is_a_conversation() -> None:
    """Some clients hide the session in ``user_id``; it is kept hashed, not in the clear."""
    hidden = json.dumps({"account": "a", "session_id": UUID})
    one = named(MESSAGES, messages=[user("one")], metadata={"user_id": hidden})
    two = named(MESSAGES, messages=[user("two")], metadata={"user_id": hidden})
    assert one == two
    assert one is not None
    assert one.startswith("id:")


def test_a_prompt_cache_key_counts_alone_only_if_it_is_unique() -> None:
    """A key that a fleet shares must not merge the fleet into one conversation."""
    assert named(RESPONSES, input="hi", prompt_cache_key=UUID) == UUID
    one = named(RESPONSES, input="one", prompt_cache_key="my-app")
    two = named(RESPONSES, input="two", prompt_cache_key="my-app")
    other = named(RESPONSES, input="one", prompt_cache_key="their-app")
    assert len({one, two, other}) == 3


def test_a_response_leads_to_its_conversation() -> None:
    """``previous_response_id`` is looked up; an unknown one becomes the name itself."""
    turns = Turns()
    turns.observe("c-1", True, "resp_1", 0.0)
    body = json.dumps({"previous_response_id": "resp_1", "input": "and?"}).encode()
    assert identify(RESPONSES, {}, body, turns.conversation_of).conversation == "c-1"
    assert identify(RESPONSES, {}, body).conversation == "resp_1"


RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "42"}


@pytest.mark.parametrize(
    ("path", "body", "continues"),
    [
        (CHAT, {"messages": [user("q"), said(None), {"role": "tool", "content": "42"}]}, True),
        (CHAT, {"messages": [said(None), {"role": "function", "content": "42"}]}, True),
        (CHAT, {"messages": [{"role": "tool", "content": "42"}, user("a picture")]}, True),
        (CHAT, {"messages": [{"role": "tool", "content": "42"}, said("so"), user("q")]}, False),
        (CHAT, {"messages": [user("q")]}, False),
        (CHAT, {"messages": []}, False),
        (MESSAGES, {"messages": [user("q"), said("calls"), user([RESULT])]}, True),
        (MESSAGES, {"messages": [user([RESULT, {"type": "text", "text": "reminder"}])]}, True),
        (MESSAGES, {"messages": [user([RESULT]), said("so"), user("q")]}, False),
        (RESPONSES, {"input": [user("q"), {"type": "function_call_output"}]}, True),
        (RESPONSES, {"input": [{"type": "custom_tool_call_output"}]}, True),
        (RESPONSES, {"input": [{"type": "mcp_approval_response", "approve": True}]}, True),
        (RESPONSES, {"input": [{"type": "function_call_output"}, {"type": "reasoning"}]}, False),
        (RESPONSES, {"input": [user("q"), {"type": "function_call"}]}, False),
        (RESPONSES, {"input": "q"}, False),
    ],
)
def test_a_result_after_the_models_last_word_continues_the_turn(
    path: str, body: dict[str, Any], continues: bool
) -> None:
    """What came back from a tool belongs to the prompt that made the model call it."""
    assert facts(path, **body).continues_turn is continues


def test_a_retry_continues_the_turn_of_its_first_attempt() -> None:
    """The SDKs count their attempts: the second is not a new prompt."""
    assert facts(CHAT, {"x-stainless-retry-count": "1"}, messages=[user("q")]).continues_turn
    assert not facts(CHAT, {"x-stainless-retry-count": "0"}, messages=[user("q")]).continues_turn


def test_one_odd_member_does_not_hide_the_others() -> None:
    """Each member is read by itself; one of a wrong type counts as absent."""
    seen = facts(CHAT, model="m", stream=True, metadata=[1], conversation=7, messages=[user("q"), "?"])
    assert seen == RequestFacts(None, True, False, "m")
    assert facts(CHAT, model={"m": 1}, stream="yes") == RequestFacts(None, False, False, None)


WORDS = st.sampled_from(["user", "tool", "tool_result", "text", "type", "id", "", "\x00", "é"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)
ITEMS = st.lists(
    st.fixed_dictionaries({}, optional={"role": JSON, "type": JSON, "content": JSON}), max_size=4
)
BODY = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(["model", "stream", "conversation", "metadata", "system"], JSON),
        **dict.fromkeys(["prompt_cache_key", "previous_response_id", "instructions"], JSON),
        **dict.fromkeys(["messages", "input"], JSON | ITEMS),
    },
)


@given(path=st.sampled_from([CHAT, RESPONSES, "", "?"]), body=st.binary())
def test_any_bytes_give_facts(path: str, body: bytes) -> None:
    """Nothing that a caller sends makes reading it fail."""
    assert isinstance(identify(path, {}, body), RequestFacts)


@given(path=st.sampled_from([CHAT, RESPONSES]), body=BODY)
def test_any_json_gives_facts(path: str, body: dict[str, Any]) -> None:
    """Nor any JSON, however odd its shape, and its name is short and plain."""
    seen = identify(path, {}, json.dumps(body).encode())
    assert seen.conversation is None or (0 < len(seen.conversation) <= 128 and seen.conversation.isascii())


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":' + b"[" * 100_000,
        b'{"messages":[{"role":"user","content":' + b"[" * 500 + b"]" * 500 + b"}]}",
        b'{"messages":[' + b"{}," * 3_000_000 + b"{}]}",
        b'{"input":[' + b"1," * 1_000_000 + b"1]}",
        b'{"conversation":"\\ud800"}',
    ],
)
def test_a_bomb_gives_facts_and_takes_no_memory(body: bytes) -> None:
    """Depth and number are bounded before anything is built."""
    tracemalloc.start()
    try:
        for path in (CHAT, RESPONSES):
            assert isinstance(identify(path, {}, body), RequestFacts)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


# --- Turns ---------------------------------------------------------------------------------------


def test_a_turn_keeps_its_start_until_its_final_answer() -> None:
    """A tool call and its result belong to the prompt; the next prompt begins anew."""
    turns = Turns()
    assert turns.started_at("c", continues=False, now=1.0) == 1.0
    turns.observe("c", False, None, 2.0)
    assert turns.started_at("c", continues=True, now=3.0) == 1.0
    turns.observe("c", True, None, 4.0)
    assert turns.started_at("c", continues=False, now=5.0) == 5.0


def test_a_tool_call_continues_the_turn_of_a_client_that_does_not_say_so() -> None:
    """The answer suffices: the result may come in a shape that nobody recognises."""
    turns = Turns()
    turns.started_at("c", continues=False, now=1.0)
    turns.observe("c", False, None, 2.0)
    assert turns.started_at("c", continues=False, now=3.0) == 1.0


def test_after_an_unknown_answer_the_next_request_says() -> None:
    """``None`` neither ends a turn nor keeps it open."""
    turns = Turns()
    turns.started_at("c", continues=False, now=1.0)
    turns.observe("c", None, None, 2.0)
    assert turns.started_at("c", continues=True, now=3.0) == 1.0
    turns.observe("c", None, None, 4.0)
    assert turns.started_at("c", continues=False, now=5.0) == 5.0


def test_a_side_request_does_not_restart_a_turn_that_goes_on() -> None:
    """Sub-agents and titles share the session: their prompts are part of the turn."""
    turns = Turns()
    turns.started_at("c", continues=False, now=1.0)
    turns.observe("c", None, None, 2.0)
    turns.started_at("c", continues=True, now=3.0)
    assert turns.started_at("c", continues=False, now=4.0) == 1.0
    turns.observe("c", True, None, 5.0)  # the side answer; the main one is still to come
    assert turns.started_at("c", continues=True, now=6.0) == 1.0


def test_an_idle_conversation_is_forgotten() -> None:
    """After an hour of silence even an open turn is over, and takes no room."""
    turns = Turns(idle=3600.0)
    turns.started_at("c", continues=False, now=0.0)
    turns.observe("c", False, None, 1.0)
    assert turns.started_at("d", continues=False, now=3600.0) == 3600.0
    assert len(turns) == 2
    assert turns.started_at("c", continues=True, now=3601.0) == 3601.0


def test_the_longest_unused_goes_first() -> None:
    """The registry is bounded; what is in use stays."""
    turns = Turns(most=2)
    turns.started_at("a", continues=False, now=1.0)
    turns.started_at("b", continues=False, now=2.0)
    turns.started_at("a", continues=True, now=3.0)
    turns.started_at("c", continues=False, now=4.0)
    assert len(turns) == 2
    assert turns.started_at("a", continues=True, now=5.0) == 1.0
    for n in range(5):
        turns.observe("a", True, f"resp_{n}", 6.0)
    assert [turns.conversation_of(f"resp_{n}") for n in range(5)] == [None] * 3 + ["a"] * 2


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            st.sampled_from(["ask", "result", "ended", "goes on", "unknown"]),
            st.floats(0, 100),
        )
    )
)
def test_no_start_lies_in_the_future_nor_before_the_first_request(
    steps: list[tuple[str, str, float]],
) -> None:
    """Whatever the order of requests and answers, overlapping or not."""
    turns = Turns(most=3, idle=200.0)
    now, first = 0.0, {}
    for conversation, step, pause in steps:
        now += pause
        first.setdefault(conversation, now)
        if step in ("ask", "result"):
            began = turns.started_at(conversation, continues=step == "result", now=now)
            assert first[conversation] <= began <= now
        else:
            ended = {"ended": True, "goes on": False}.get(step)
            turns.observe(conversation, ended, None, now)
        assert len(turns) <= 3


# --- TurnScanner ---------------------------------------------------------------------------------


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(
        f"event: {event.get('type', 'x')}\ndata: {json.dumps(event)}\n\n".encode() for event in events
    )


def chunk(finish: str | None, **delta: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]}


def chat(finish: str, **message: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "choices": [{"message": message, "finish_reason": finish}]}


TRAP = 'a "finish_reason":"tool_calls" "stop_reason": "tool_use" {"type":"function_call"} \\'
CALL = {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BEGUN = {"type": "response.created", "response": {"id": "resp_1", "object": "response"}}
DONE_ITEM = {
    "type": "response.output_item.done",
    "item": {"type": "message", "status": "completed"},
}


def response(status: str, *output: dict[str, Any]) -> dict[str, Any]:
    return {"id": "resp_1", "object": "response", "status": status, "output": list(output)}


ANSWERS: dict[str, tuple[bytes, bool | None, str | None]] = {
    "chat stop": (json.dumps(chat("stop", content=TRAP)).encode(), False, None),
    "chat calls": (json.dumps(chat("tool_calls", tool_calls=[CALL])).encode(), True, None),
    "chat no calls": (json.dumps(chat("stop", tool_calls=[])).encode(), False, None),
    "chat indented": (json.dumps(chat("tool_calls"), indent=8).encode(), True, None),
    "chat forced": (json.dumps(chat("stop", tool_calls=[CALL]), indent=4).encode(), True, None),
    "chat function": (
        json.dumps(chat("stop", function_call={"name": "f", "arguments": "{}"})).encode(),
        True,
        None,
    ),
    "chat stream stop": (
        sse(chunk(None, content=TRAP), chunk(None, content="o"), chunk("length")) + b"data: [DONE]\n\n",
        False,
        None,
    ),
    "chat stream calls": (sse(chunk(None, content="o"), chunk("tool_calls")), True, None),
    "chat stream cut": (sse(chunk(None, content=TRAP), chunk(None, content="o")), None, None),
    "anthropic stop": (b'{"type": "message", "stop_reason" :\n "end_turn"}', False, None),
    "as wide as it may be": (
        b'{"id"%b:%b"resp_%b","stop_reason"%b:%b"end_turn"}'
        % (b"\n" * 64, b" " * 64, b"x" * 128, b" " * 64, b"\t" * 64),
        False,
        "resp_" + "x" * 128,
    ),
    "anthropic calls": (
        sse(
            {"type": "message_start", "message": {"id": "msg_1", "stop_reason": None}},
            {"type": "content_block_delta", "delta": {"partial_json": TRAP}},
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
        ),
        True,
        None,
    ),
    "anthropic pause": (b'{"stop_reason":"pause_turn"}', True, None),
    "anthropic input": (
        json.dumps({"content": [{"input": {"stop_reason": "end_turn"}}], "stop_reason": "tool_use"}).encode(),
        True,
        None,
    ),
    "responses stop": (
        json.dumps(response("completed", {"type": "message", "text": TRAP})).encode(),
        False,
        "resp_1",
    ),
    "responses calls": (
        json.dumps(response("completed", {"type": "custom_tool_call"})).encode(),
        True,
        "resp_1",
    ),
    "responses queued": (json.dumps(response("queued")).encode(), None, "resp_1"),
    "responses stream stop": (
        sse(BEGUN, DONE_ITEM, {"type": "response.completed", "response": response("completed")}),
        False,
        "resp_1",
    ),
    "responses stream calls": (
        sse(BEGUN, {"type": "response.output_item.done", "item": {"type": "function_call"}}),
        True,
        "resp_1",
    ),
    "responses stream cut": (sse(BEGUN, DONE_ITEM), None, "resp_1"),
    "count": (b'{"input_tokens": 7}', None, None),
    "error": (b'{"error":{"type":"server_error","message":"no"}}', None, None),
    "empty": (b"", None, None),
}


def scanned(pieces: list[bytes], encoding: str = "") -> tuple[bool | None, str | None]:
    scanner = TurnScanner(encoding)
    for piece in pieces:
        scanner.feed(piece)
        assert len(scanner._tail) <= 4096
    assert scanner.ended is (None if scanner.goes_on is None else not scanner.goes_on)
    return scanner.goes_on, scanner.response_id


@pytest.mark.parametrize("name", ANSWERS)
def test_the_verdict_is_the_same_wherever_the_body_is_split(name: str) -> None:
    """At every border between two pieces, and byte by byte."""
    body, goes_on, response_id = ANSWERS[name]
    for split in range(len(body) + 1):
        assert scanned([body[:split], body[split:]]) == (goes_on, response_id), split
    assert scanned([body[i : i + 1] for i in range(len(body))]) == (goes_on, response_id)


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_body_is_read_on_the_side(name: str, encoding: str) -> None:
    """gzip and deflate are unpacked on a copy, again in any pieces."""
    body, goes_on, response_id = ANSWERS[name]
    packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    for size in (1, 7, len(packed)):
        pieces = [packed[i : i + size] for i in range(0, len(packed), size)]
        assert scanned(pieces, encoding.upper()) == (goes_on, response_id)


@given(st.text(max_size=20), st.text(max_size=20), st.integers(0, 2**32))
def test_nothing_said_inside_of_a_string_is_a_sign(before: str, after: str, seed: int) -> None:
    """Whatever the model says, as text or as arguments of a call, its quotes are escaped."""
    text = f"{before}{TRAP}{after}"
    body = sse(chunk(None, content=text), chunk(None, content=json.dumps({"a": text})))
    cut = seed % (len(body) + 1)
    assert scanned([body[:cut], body[cut:]]) == (None, None)


def test_a_sign_is_found_behind_any_amount_of_text() -> None:
    """The tail is short and the answer may be long; a key split off from its backslash is none."""
    noise = b'{"a":"' + b'\\"finish_reason":"tool_calls" ' * 1000 + b'",'
    for size in (1, 511, 512, 513, 5000):
        body = noise + b'"stop_reason":"end_turn"}'
        pieces = [body[i : i + size] for i in range(0, len(body), size)]
        assert scanned(pieces) == (False, None)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br"])
def test_of_an_encoding_that_cannot_be_read_nothing_is_known(encoding: str) -> None:
    """Rather no verdict than a wrong one."""
    assert scanned([b'{"stop_reason":"tool_use"}'], encoding) == (None, None)


def test_a_gzip_bomb_ends_the_reading_not_the_server() -> None:
    """Unpacking is bounded for each chunk; past that nothing is known any more."""
    bomb = gzip.compress(b'{"stop_reason":"end_turn",' + b" " * 200_000_000)
    tracemalloc.start()
    try:
        assert scanned([bomb], "gzip") == (None, None)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@given(st.lists(st.binary()), st.sampled_from(["", "gzip", "deflate", "br", "\x00"]))
def test_any_bytes_may_be_fed(pieces: list[bytes], encoding: str) -> None:
    """The scanner never disturbs the body that it watches."""
    scanned(pieces, encoding)
