"""The tokens that open a server: made here, kept as digests in the store, compared in constant time."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta

from interlock.errors import InvalidOperation, StoreError, ValidationError
from interlock.http.access.budget import Budgets
from interlock.http.access.caller import ANYBODY, Caller
from interlock.http.access.scopes import NAMES
from interlock.http.access.terms import Terms
from interlock.http.problems import NotFound
from interlock.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from interlock.ports import Clock, Settings, TimerHandle

log = logging.getLogger(__name__)

PREFIX: Final = "token:"
"""Of the settings' keys."""
LONGEST_DAYS: Final = 3650
MOST_TOKENS: Final = 1000
_BYTES: Final = 32
_UNGUESSABLE: Final = 32
"""Characters of a configured token from which on it is taken for a random one."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


_PLAIN: Final = Terms()
ScopeName = Literal["gateway", "submit", "read", "admin"]


class _Kept(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A token as it stands in the store; times in milliseconds since the epoch."""

    hash: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    scopes: tuple[ScopeName, ...]
    created: int
    expires: int | None = None
    terms: Terms | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token, which is everything but itself; times in milliseconds since the epoch."""

    name: str
    digest: bytes = field(repr=False)
    scopes: tuple[ScopeName, ...]
    created_ms: int
    expires_ms: int | None
    terms: Terms = _PLAIN

    def holds(self, now: float) -> bool:
        """Whether it has not expired at *now*, in seconds since the epoch."""
        return self.expires_ms is None or now * 1000 < self.expires_ms


class TokenBook:
    """The tokens in *settings*, and the *configured* one, which is nobody's but may do everything.

    A server's own: what changes here counts for its next request. Without any token, everybody may ask.
    """

    def __init__(self, settings: Settings, clock: Clock, configured: Secret | None = None) -> None:
        self._settings = settings
        self.clock = clock
        self._configured = None if configured is None else digest_of(configured.reveal())
        self._guessable = configured is not None and len(configured.reveal()) < _UNGUESSABLE
        self._tokens: dict[str, Token | None] = {}
        """By name; None opens nothing: it is being made, or what the store has is damaged."""
        self._digests: frozenset[bytes] = frozenset()
        self.budgets = Budgets(self, settings)
        self._read: dict[str, str] = {}
        """What the store had, by name."""
        self._changes = 0
        """Counts what is changed here."""
        self._ends: dict[str, set[Callable[[], None]]] = {}
        self._index()

    async def load(self) -> None:
        """Read what the store has. A damaged entry opens nothing, and still keeps the server closed.

        Again, it takes over what other servers of the same store have made and revoked since.
        """
        changes = self._changes
        found = await self._settings.items(PREFIX)
        if changes != self._changes:
            return  # what was changed here meanwhile is newer than what was read
        kept = {key.removeprefix(PREFIX): value for key, value in found.items()}
        for name in list(self._tokens):
            being_made = self._tokens[name] is None and name not in self._read
            if name not in kept and not being_made:
                self._forget(name)
        for name, value in kept.items():
            if self._read.get(name) != value:
                self._tokens[name] = _token(name, value)
        self._read = kept
        self._index()
        await self.budgets.load()

    async def aclose(self) -> None:
        """Write what tokens have used of their budgets."""
        await self.budgets.aclose()

    async def follow(self) -> None:
        """`load` each second, for ever: where others use the store as well."""
        while True:
            await asyncio.sleep(1.0)
            try:
                await self.load()
            except StoreError as error:
                log.warning("tokens could not be read, trying again: %s", error)

    # -- asking

    def token(self, name: str) -> Token | None:
        """The token of this name, if it is there and sound."""
        return self._tokens.get(name)

    @property
    def required(self) -> bool:
        """Whether a request has to show a token. One that has expired goes on asking for others."""
        return self._configured is not None or bool(self._tokens)

    @property
    def has_admin(self) -> bool:
        """Whether there is a token that may make others, or none is needed."""
        now = self.clock.now()
        known = (one for one in self._tokens.values() if one is not None)
        administer = any("admin" in one.scopes and one.holds(now) for one in known)
        return administer or self._configured is not None or not self.required

    def caller(self, digests: Sequence[bytes], *, unguessable: bool = False) -> Caller | None:
        """Who shows tokens of these SHA-256 digests; None if none of them opens anything.

        All are compared with all, each in constant time. With *unguessable* a configured one that is short
        does not count.
        """
        now = self.clock.now()
        scopes: set[str] = set()
        opened: list[Token] = []
        for token in self._tokens.values():
            shown = token is not None and sum(hmac.compare_digest(one, token.digest) for one in digests)
            if token is not None and shown and token.holds(now):
                scopes.update(token.scopes)
                opened.append(token)
        configured = self._configured or b""
        shown = sum(hmac.compare_digest(one, configured) for one in digests)
        if shown and not (unguessable and self._guessable):
            scopes.update(ANYBODY.scopes)
            return Caller(frozenset(scopes), tuple(token.name for token in opened))
        return _caller(scopes, opened) if opened else None

    def is_token(self, digest: bytes) -> bool:
        """Whether this is the digest of a token of ours, expired or not."""
        return digest in self._digests

    def tokens(self) -> list[Token]:
        """Those in the store, by name."""
        return [one for _, one in sorted(self._tokens.items()) if one is not None]

    def on_end(self, names: Iterable[str], callback: Callable[[], None]) -> Callable[[], None]:
        """Have *callback* called when one of these tokens is revoked or expires; what ends that."""
        timers: list[TimerHandle] = []
        watched = list(names)
        for name in watched:
            self._ends.setdefault(name, set()).add(callback)
            token = self._tokens.get(name)
            if token is not None and token.expires_ms is not None:
                timers.append(self.clock.call_at(token.expires_ms / 1000, callback))

        def stop() -> None:
            for timer in timers:
                timer.cancel()
            for name in watched:
                self._ends[name].discard(callback)
                if not self._ends[name]:
                    del self._ends[name]

        return stop

    # -- changing

    async def create(
        self, name: str, scopes: Sequence[str], expires_in: float | None = None, terms: Terms | None = None
    ) -> tuple[Token, Secret]:
        """A new token of 256 random bits, which is shown here once; *expires_in* in seconds.

        Raises `ValidationError` for a name, scope or terms that cannot be, `InvalidOperation` for a name that
        is taken, and `StoreError`; then there is none.
        """
        terms = terms or _PLAIN
        self._check(name, scopes)
        terms.check(scopes)
        secret = Secret("il_" + secrets.token_urlsafe(_BYTES))
        now_ms = int(self.clock.now() * 1000)
        expires_ms = None if expires_in is None else now_ms + round(expires_in * 1000)
        ordered = tuple(scope for scope in get_args(ScopeName) if scope in scopes)
        token = Token(name, digest_of(secret.reveal()), ordered, now_ms, expires_ms, terms)
        kept = _Kept(
            hash=token.digest.hex(),
            scopes=token.scopes,
            created=now_ms,
            expires=expires_ms,
            terms=None if terms == _PLAIN else terms,
        )
        self._tokens[name] = None
        self._changes += 1
        try:
            await self._settings.set(PREFIX + name, msgspec.json.encode(kept).decode())
        except BaseException:
            self._tokens.pop(name, None)
            raise
        finally:
            self._changes += 1
        self._tokens[name] = token
        self._index()
        return token, secret

    def _check(self, name: str, scopes: Sequence[str]) -> None:
        if not _NAME.fullmatch(name):
            raise ValidationError(
                f"name: {name!r:.80} is not 1 to 64 letters, digits, '.', '_' and '-', beginning with one of "
                "the first two"
            )
        if not scopes or not set(scopes) <= set(NAMES):
            wrong = ", ".join(sorted(set(scopes) - set(NAMES))) or "none"
            raise ValidationError(f"scope: {wrong:.80} is not one or more of {', '.join(NAMES)}")
        if name in self._tokens:
            raise InvalidOperation(f"there is a token {name!r} already: revoke it first, or choose a name")
        if len(self._tokens) >= MOST_TOKENS:
            raise InvalidOperation(f"there are {MOST_TOKENS} tokens already: revoke some")

    async def revoke(self, name: str) -> None:
        """Have the token open nothing any more, now and after a restart. What it opened and lasts, ends.

        Raises `NotFound`, and `StoreError`; then it is still there.
        """
        if name not in self._tokens:
            known = ", ".join(sorted(self._tokens)) or "none"
            raise NotFound(f"there is no token {name!r:.80}; known are: {known:.200}")
        self._changes += 1
        try:
            await self._settings.delete(PREFIX + name)
        except asyncio.CancelledError:
            self._forget(name)  # it may be gone: better it opens nothing
            raise
        self._forget(name)

    def _forget(self, name: str) -> None:
        self._changes += 1
        self._read.pop(name, None)
        self._tokens.pop(name, None)
        self._index()
        for callback in tuple(self._ends.get(name, ())):
            callback()

    def _index(self) -> None:
        known = {one.digest for one in self._tokens.values() if one is not None}
        self._digests = frozenset(known if self._configured is None else {*known, self._configured})


def _caller(scopes: set[str], tokens: Sequence[Token]) -> Caller | None:
    """Who shows all of *tokens*, and may do what any of them may; None if they are of several tenants."""
    tenants = {token.terms.tenant for token in tokens}
    if len(tenants) > 1 and None not in tenants:
        return None
    tenant = None if None in tenants else tenants.pop()
    least = [token.terms.least_priority(token.scopes) for token in tokens]
    bounds = [one for one in least if one is not None]
    return Caller(
        frozenset(scopes),
        tuple(token.name for token in tokens),
        tenant,
        min(bounds) if len(bounds) == len(least) else None,
    )


def _token(name: str, value: str) -> Token | None:
    """The token as the store has it; None where that is damaged."""
    try:
        kept = msgspec.json.decode(value, type=_Kept)
    except (msgspec.MsgspecError, UnicodeError):
        log.warning("token %r is damaged in the store, and opens nothing: revoke it", name)
        return None
    terms = kept.terms or _PLAIN
    return Token(name, bytes.fromhex(kept.hash), kept.scopes, kept.created, kept.expires, terms)


def digest_of(text: str) -> bytes:
    """What is kept and compared instead of a token."""
    return sha256(text.encode()).digest()
