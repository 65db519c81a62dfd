"""The one table of routes: what an endpoint is, said where it is answered.

A class with methods marked by `endpoint` is all it takes::

    class ToolRoutes:
        @endpoint("GET /tools/{name}", "read", "A tool", tag="tools", answers={200: ToolAnswer})
        async def tool(self, request: Request) -> Response: ...

The class goes into `interlock.http.table.HOLDERS`, and an object of it into `create_app`. From these
come the routes, who may use them, and the description of the API: nothing is said a second time. An endpoint
without a scope cannot be written.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from interlock.errors import InterlockError
from interlock.http.access.scopes import NAMES, OPEN, admits
from interlock.http.problems import PROBLEM_JSON, NotAllowed, encoded, problem, unexpected
from interlock.http.queries import AnyQuery, Query, read_query

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

    from starlette.types import Receive, Send
    from starlette.types import Scope as AsgiScope

    Handler = Callable[[Request], Awaitable[Response]]

Scope: TypeAlias = Literal["open", "gateway", "submit", "read", "admin"]

_METHODS: Final = ("GET", "PUT", "POST", "DELETE")
_DECLARED: Final = "__endpoint__"

H = TypeVar("H")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One method of one path: who may use it, what it reads, and what it answers."""

    method: str
    path: str
    scope: str
    summary: str
    tag: str
    name: str = ""
    """Of the method that answers it."""
    description: str = ""
    answers: Mapping[int, Any]
    """By status: a type, a media type as text, or a tuple of them."""
    problems: tuple[type[InterlockError], ...] = ()
    """What it may refuse, beside what all do."""
    within: type | None = None
    """A struct of the parameters in the path; texts, where there is none."""
    query: type[Query] = Query
    headers: type | None = None
    body: Any = None
    body_needed: bool = True
    answer_headers: Mapping[str, str] = field(default_factory=dict)
    """What a good answer may have in its header, by name."""
    links: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By endpoint ("GET /runs/{id}") whose parameters are in the answer: which member is which parameter."""
    own_errors: Callable[[InterlockError, Mapping[str, Any]], Response] | None = None
    """For routes whose errors are no problem documents."""
    documented: bool = True

    @property
    def key(self) -> str:
        """How it is called."""
        return f"{self.method} {self.path}"


def endpoint(
    key: str, scope: Scope, summary: str, *, tag: str, answers: Mapping[int, Any], **more: Any
) -> Callable[[H], H]:
    """Declare the method below as the answer to *key* ("GET /limits"), for who has the *scope*.

    *more* are further members of `Endpoint`. The method's docstring is part of the API's description.
    """
    method, _, path = key.partition(" ")
    if method not in _METHODS or not path.startswith("/"):
        raise ValueError(f"{key!r} is no endpoint; write it as 'GET /limits'")
    if scope not in (OPEN, *NAMES):
        raise ValueError(f"{key!r} has the scope {scope!r}; there are: {', '.join((OPEN, *NAMES))}")
    said = Endpoint(method=method, path=path, scope=scope, summary=summary, tag=tag, answers=answers, **more)

    def declare(handler: H) -> H:
        text = " ".join((handler.__doc__ or "").split())
        name: str = getattr(handler, "__name__")  # noqa: B009 - a method has one
        setattr(handler, _DECLARED, replace(said, name=name, description=text))
        return handler

    return declare


def declared(holder: Any) -> Iterator[Endpoint]:
    """The endpoints of a class, or of an object, in the order in which they are written."""
    for one in vars(holder if isinstance(holder, type) else type(holder)).values():
        if (found := getattr(one, _DECLARED, None)) is not None:
            yield found


def routes_of(*holders: Any) -> list[Route]:
    """One route for each path that *holders* declare, the closer ones first; each asks for scopes itself."""
    paths: dict[str, dict[str, _Answering]] = defaultdict(dict)
    for holder in holders:
        for one in declared(holder):
            if one.method in paths[one.path]:
                raise ValueError(f"{one.key} is declared twice")
            paths[one.path][one.method] = _Answering(one, getattr(holder, one.name))
    return [Route(path, Path(paths[path])) for path in sorted(paths, key=_closeness)]


def _closeness(path: str) -> list[tuple[int, str]]:
    """What is written out comes before what may be anything, and the longer path before its beginning."""
    parts = [(1, "") if part.startswith("{") else (0, part) for part in path.split("/")]
    return [*parts, (2, "")]


@dataclass(frozen=True, slots=True)
class _Answering:
    """An endpoint, and the handler that a particular server has for it."""

    endpoint: Endpoint
    handler: Handler

    async def answer(self, request: Request) -> Response:
        try:
            if self.endpoint.query is not AnyQuery:
                read_query(request, self.endpoint.query)
            return await self.handler(request)
        except InterlockError as error:
            if self.endpoint.own_errors is not None:
                return self.endpoint.own_errors(error, request.scope)
            return problem(error, request.scope)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception as error:
            return Response(encoded(unexpected(error)), 500, media_type=PROBLEM_JSON)


class Path:
    """One path with all its methods: it knows which there are, and who may use them."""

    def __init__(self, methods: Mapping[str, _Answering]) -> None:
        self._methods = methods
        there = {*methods, "OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
        self._allow = ", ".join(sorted(there))

    @property
    def endpoints(self) -> Iterable[Endpoint]:
        """What is answered here."""
        return [one.endpoint for one in self._methods.values()]

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        found = self._methods.get("GET" if method == "HEAD" else method)
        if found is None:
            response = self._other(method, scope)
        elif await admits(scope, send, found.endpoint.scope):
            response = await found.answer(Request(scope, receive))
        else:
            return
        await response(scope, receive, send)

    def _other(self, method: str, scope: AsgiScope) -> Response:
        """What may be done here: an answer to OPTIONS, and to who does something else."""
        allow = [(b"allow", self._allow.encode())]
        if method != "OPTIONS":
            text = f"{method[:40]} is not for this path; allowed are {self._allow}"
            return problem(NotAllowed(text), scope, allow)
        response = Response(status_code=204)
        response.raw_headers += allow
        return response
