"""Which conversation a provider call belongs to, and when the turn that it serves began.

An agent's turn is many calls: the prompt, then one more after every tool. They share one place in
line, that of the prompt, so that started work finishes first. Nothing is asked of the client: the
conversation is read from the request, and whether the turn goes on from the answer as it passes.

Where this cannot be known, the turn counts as new: its caller then waits in the order of arrival,
and nobody is passed by a turn that ended long ago.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# --- the request ---------------------------------------------------------------------------------

_SESSION_HEADERS: Final = ("x-claude-code-session-id", "session_id", "session-id", "x-session-id")
_SESSION_METADATA: Final = ("conversation_id", "session_id", "thread_id")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9._:@/-]{1,128}")
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_RESULT_ROLES: Final = ("tool", "function")
_CACHE_MARKS: Final = ("cache_control", "prompt_cache_breakpoint")
_ITEMS_LOOKED_AT: Final = 64
_OBJECTS_MAX: Final = 1_000_000
_UNREADABLE: Final = (msgspec.MsgspecError, RecursionError, ValueError, TypeError)


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What the gateway needs to know of a request; each is ``None`` or ``False`` if unknown."""

    conversation: str | None
    streaming: bool
    continues_turn: bool
    model: str | None
    steers: str | None = None
    """A member that would choose another provider or account, were it read by whatever comes next."""


class _Body(msgspec.Struct):
    """The members that matter, undecoded: one of a wrong type must not hide the others."""

    model: msgspec.Raw = msgspec.Raw(b"null")
    stream: msgspec.Raw = msgspec.Raw(b"null")
    conversation: msgspec.Raw = msgspec.Raw(b"null")
    prompt_cache_key: msgspec.Raw = msgspec.Raw(b"null")
    metadata: msgspec.Raw = msgspec.Raw(b"null")
    previous_response_id: msgspec.Raw = msgspec.Raw(b"null")
    system: msgspec.Raw = msgspec.Raw(b"null")
    instructions: msgspec.Raw = msgspec.Raw(b"null")
    messages: msgspec.Raw = msgspec.Raw(b"null")
    input: msgspec.Raw = msgspec.Raw(b"null")
    api_base: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    base_url: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    api_key: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    organization: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_STEERING: Final = ("api_base", "base_url", "api_key", "organization")


class _Item(msgspec.Struct):
    """A message of a chat, or an item of a Responses input."""

    role: Any = None
    type: Any = None
    content: msgspec.Raw = msgspec.Raw(b"null")


def _unknown(response_id: str) -> None:
    return None


def identify(
    path: str,
    headers: Mapping[str, str],
    body: bytes,
    conversation_of: Callable[[str], str | None] = _unknown,
) -> RequestFacts:
    """Read what a request says of itself. Any bytes give an answer; nothing is raised.

    *headers* have lower-case names. *conversation_of* is ``Turns.conversation_of``, for requests
    that only name the response before them.

    An explicit id comes first. ``user``, ``safety_identifier`` and an Anthropic ``user_id`` that
    names no session tell people apart, not conversations: the turns of one person would be merged
    and a new prompt would inherit the age of an older one. They are not used. A
    ``prompt_cache_key`` often names a prefix that a whole fleet shares, so it counts alone only if
    it holds a UUID; else it is one more part of the opening.
    """
    named = next((headers[name] for name in _SESSION_HEADERS if headers.get(name)), None)
    conversation = plain_name(named)
    # A retry by the SDK is the same prompt again: it keeps the place of its first attempt.
    retried = headers.get("x-stainless-retry-count", "0").strip() not in ("", "0")
    try:
        fields = msgspec.json.decode(body, type=_Body)
    except _UNREADABLE:
        return RequestFacts(conversation, False, retried, None)
    items = _items(path, fields, body)
    if conversation is None:
        conversation = _conversation(fields, items, conversation_of)
    return RequestFacts(
        conversation=conversation,
        streaming=_decoded(fields.stream) is True,
        continues_turn=retried or _continues(items),
        model=_text(fields.model),
        steers=next((name for name in _STEERING if getattr(fields, name) is not msgspec.UNSET), None),
    )


def _decoded(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except _UNREADABLE:
        return None


def _text(raw: msgspec.Raw) -> str | None:
    value = _decoded(raw)
    return value if isinstance(value, str) and value else None


def plain_name(text: str | None) -> str | None:
    """*text* as a name that is safe to show and to keep: itself if it is short and plain."""
    if not text or _PLAIN_NAME.fullmatch(text):
        return text or None
    return "id:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _items(path: str, fields: _Body, body: bytes) -> list[_Item]:
    """The messages or input items. The count of braces bounds what decoding them can cost."""
    if body.count(b"{") > _OBJECTS_MAX:
        return []
    # Elsewhere ``input`` is something to embed or to speak, and no conversation.
    responses = "/responses" in path
    try:
        return msgspec.json.decode(fields.input if responses else fields.messages, type=list[_Item])
    except _UNREADABLE:
        # An input that is just text is sent as the first item of a list from the second call on.
        text = responses and _text(fields.input)
        return [_Item(role="user", content=fields.input)] if text else []


def _conversation(
    fields: _Body, items: list[_Item], conversation_of: Callable[[str], str | None]
) -> str | None:
    explicit = _explicit(fields)
    if explicit is not None:
        return plain_name(explicit)
    key = _text(fields.prompt_cache_key)
    if key is not None and _UUID.search(key):
        return plain_name(key)
    previous = _text(fields.previous_response_id)
    if previous is not None:
        # Unknown after a restart; the id then names the rest of the conversation.
        return conversation_of(previous) or plain_name(previous)
    return _opening(fields, items, key)


def _explicit(fields: _Body) -> str | None:
    conversation = _decoded(fields.conversation)
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    if isinstance(conversation, str) and conversation:
        return conversation
    metadata = _decoded(fields.metadata)
    if not isinstance(metadata, dict):
        return None
    for member in _SESSION_METADATA:
        value = metadata.get(member)
        if isinstance(value, str) and value:
            return value
    user = metadata.get("user_id")
    return user if isinstance(user, str) and "session" in user else None


def _opening(fields: _Body, items: list[_Item], key: str | None) -> str | None:
    """The conversation by what it opened with: the instructions and the first user message."""
    try:
        parts: list[Any] = [key, _plain(_decoded(fields.system)), _text(fields.instructions)]
        for item in items[:_ITEMS_LOOKED_AT]:
            if item.role in ("system", "developer", "user"):
                parts.append((item.role, _plain(msgspec.json.decode(item.content))))
            if item.role == "user":
                digest = hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()
                return f"opening:{digest[:32]}"
    except _UNREADABLE:
        return None
    return None


def _plain(content: Any) -> Any:
    """*content* without what changes from call to call: its spelling and its cache marks."""
    if isinstance(content, str):
        return [content]
    if isinstance(content, list):
        return [_plain_block(block) for block in content]
    return content


def _plain_block(block: Any) -> Any:
    if not isinstance(block, dict):
        return block
    if isinstance(block.get("text"), str):
        return block["text"]
    return {name: value for name, value in block.items() if name not in _CACHE_MARKS}


def _continues(items: list[_Item]) -> bool:
    """Whether a tool's result came after the last thing that the model said.

    Not just in the last item: clients add reminders and pictures behind the result.
    """
    for item in reversed(items[-_ITEMS_LOOKED_AT:]):
        kind = item.type if isinstance(item.type, str) else ""
        if item.role in _RESULT_ROLES or kind.endswith("_output"):
            return True
        if item.role == "assistant" or kind == "reasoning" or kind.endswith("_call"):
            return False
        if kind == "mcp_approval_response" or (item.role == "user" and _has_result(item)):
            return True
    return False


def _has_result(item: _Item) -> bool:
    content = _decoded(item.content)
    return isinstance(content, list) and any(
        isinstance(block, dict) and block.get("type") == "tool_result" for block in content
    )


# --- the registry --------------------------------------------------------------------------------


@dataclass(slots=True)
class _Turn:
    began: float
    goes_on: bool
    seen: float


class Turns:
    """When the current turn of each conversation began; bounded, and forgotten when idle.

    Requests of one conversation may overlap (sub-agents, titles, retries): each call changes one
    entry and holds nothing, so an answer that never comes leaves nothing behind.
    """

    def __init__(self, *, most: int = 10_000, idle: float = 3600.0) -> None:
        self._most = most
        self._idle = idle
        self._turns: OrderedDict[str, _Turn] = OrderedDict()  # by last use
        self._answers: OrderedDict[str, str] = OrderedDict()  # response id -> conversation

    def __len__(self) -> int:
        return len(self._turns)

    def started_at(self, conversation: str, *, continues: bool, now: float) -> float:
        """When the turn began that a request of *conversation* serves.

        A request that continues a turn keeps its start, and so does one that follows a tool call.
        Any other begins a new turn.
        """
        turn = self._touch(conversation, now)
        if not (continues or turn.goes_on):
            turn.began = now
        turn.goes_on = turn.goes_on or continues
        return turn.began

    def observe(self, conversation: str, ended: bool | None, response_id: str | None, now: float) -> None:
        """Take note of an answer: a tool call keeps the turn open, a final answer ends it.

        After one of which nothing is known (``None``) the next request says whether it goes on.
        """
        self._touch(conversation, now).goes_on = ended is False
        if response_id is not None:
            self._answers[response_id] = conversation
            if len(self._answers) > self._most:
                self._answers.popitem(last=False)

    def conversation_of(self, response_id: str) -> str | None:
        """The conversation in which this response was given."""
        return self._answers.get(response_id)

    def _touch(self, conversation: str, now: float) -> _Turn:
        while self._turns and next(iter(self._turns.values())).seen + self._idle <= now:
            self._turns.popitem(last=False)
        turn = self._turns.get(conversation)
        if turn is None:
            turn = self._turns[conversation] = _Turn(began=now, goes_on=False, seen=now)
            if len(self._turns) > self._most:
                self._turns.popitem(last=False)
        turn.seen = now
        self._turns.move_to_end(conversation)
        return turn


# --- the answer ----------------------------------------------------------------------------------

_TAIL: Final = 512  # longer than the longest match
_PIECE: Final = 64 * 1024
_INFLATED_MAX: Final = 2 * 1024 * 1024  # for one chunk; no answer compresses like that

_COLON: Final = rb"[ \t\r\n]{0,64}:[ \t\r\n]{0,64}"
_REASON: Final = _COLON + rb'"([A-Za-z_]{1,40})"'
# A branch for each name: the search then passes over a quote by the byte behind it.
_SIGN: Final = re.compile(
    rb'"(?:'
    rb'finish_reason"' + _REASON + rb"|"
    rb'stop_reason"' + _REASON + rb"|"
    # Some servers, and a forced tool call, finish with "stop": the calls themselves tell.
    rb'tool_calls"' + _COLON + rb"(\[)[ \t\r\n]{0,64}\{|"
    rb'function_call"' + _COLON + rb'(\{)[ \t\r\n]{0,64}"(?:name|arguments)"|'
    rb'type"' + _COLON + rb'"((?:function|custom_tool|computer|local_shell|apply_patch)_call'
    rb"|mcp_approval_request"
    rb'|response\.(?:completed|incomplete|failed|cancelled))"'
    rb")"
)
_GOES_ON: Final = frozenset(
    b"tool_calls function_call tool_use pause_turn compaction [ { custom_tool_call computer_call"
    b" local_shell_call apply_patch_call mcp_approval_request".split()
)
_OBJECT: Final = re.compile(rb'"object"' + _COLON + rb'"response"')
_STATUS: Final = re.compile(rb'"status"' + _COLON + rb'"(?:completed|incomplete|failed|cancelled)"')
_RESPONSE_ID: Final = re.compile(rb'"id"' + _COLON + rb'"(resp_[A-Za-z0-9_-]{1,128})"')


class TurnScanner:
    """Watches an answer pass and tells whether the turn goes on after it.

    Fed with the body as it passes, in any pieces, JSON or server-sent events. It keeps a tail of
    512 bytes, and none between two events. Inside of JSON text every quote is escaped, so a name
    with bare quotes and a colon behind it is a member and never something that the model said.
    """

    def __init__(self, content_encoding: str = "") -> None:
        encoding = content_encoding.strip().lower()
        self._inflate = zlib.decompressobj(wbits=47) if encoding in ("gzip", "x-gzip", "deflate") else None
        self._blind = self._inflate is None and encoding not in ("", "identity")
        self._tail = b""
        self._cut = False  # bytes before the tail are gone
        self._json: bool | None = None
        self._calls = self._stops = self._object = self._status = False
        self.response_id: str | None = None

    @property
    def goes_on(self) -> bool | None:
        """True after a tool call, False after a final answer, None if neither was seen."""
        if self._calls:
            return True
        if self._blind:
            return None
        return False if self._stops or (self._object and self._status) else None

    @property
    def ended(self) -> bool | None:
        """The opposite of ``goes_on``, as ``Turns.observe`` takes it."""
        return None if self.goes_on is None else not self.goes_on

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes of the body."""
        if self._blind:
            return
        if self._inflate is None:
            self._look(chunk)
            return
        for piece in self._inflated(self._inflate, chunk):
            self._look(piece)

    def _inflated(self, inflate: zlib._Decompress, chunk: bytes) -> Iterator[bytes]:
        room = _INFLATED_MAX
        try:
            while piece := inflate.decompress(chunk, _PIECE):
                yield piece
                chunk = inflate.unconsumed_tail
                room -= len(piece)
                if room <= 0:
                    self._blind = True
                    return
        except zlib.error:
            self._blind = True

    def _look(self, chunk: bytes) -> None:
        data = self._tail + chunk
        # A match at the first byte of a cut tail was judged before, with the byte in front of it.
        start = 1 if self._cut else 0
        if self._json is None and (head := data.lstrip()):
            self._json = head.startswith(b"{")
        for match in _members(_SIGN, data, start):
            if match[match.lastindex or 0] in _GOES_ON:
                self._calls = True
            else:
                self._stops = True
        if self._json:
            # Of a JSON body only: in a stream the same members say that it has begun.
            self._object = self._object or any(_members(_OBJECT, data, start))
            self._status = self._status or any(_members(_STATUS, data, start))
        if self.response_id is None and b'"resp_' in data:
            for match in _members(_RESPONSE_ID, data, start):
                self.response_id = match[1].decode()
                break
        if self._json is False and data.endswith((b"\n\n", b"\r\n\r\n")):
            self._tail, self._cut = b"", False
        else:
            self._tail, self._cut = data[-_TAIL:], self._cut or len(data) > _TAIL


def _members(pattern: re.Pattern[bytes], data: bytes, start: int) -> Iterator[re.Match[bytes]]:
    """The matches whose opening quote is bare. (A look-behind would cost seven times as much.)"""
    for match in pattern.finditer(data, start):
        if data[match.start() - 1 : match.start()] != b"\\":
            yield match
