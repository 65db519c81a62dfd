"""The description of the API (OpenAPI 3.1), made from what the endpoints declare and from nothing else."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cached_property
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.responses import Response

from interlock import __version__
from interlock.errors import InterlockError, ValidationError
from interlock.http.access.scopes import NAMES, OPEN
from interlock.http.bodies import JSON_SCHEMA
from interlock.http.endpoints import declared, endpoint
from interlock.http.problems import PROBLEM_JSON, NotJson, Problem, TooLarge, encoded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from starlette.requests import Request

    from interlock.http.endpoints import Endpoint

    Schema = dict[str, Any]

_REF: Final = "#/components/schemas/{name}"
_TAGS: Final = {
    "state": "Health, and what the fleet is doing",
    "limits": "Limits, and what became of them",
    "providers": "The operator's hand on a provider",
    "permits": "Permits for every language, each on a lease",
    "waiting": "Who waits, and why",
    "sessions": "Sessions and their logs",
    "runs": "Runs of sessions",
    "concurrency": "The routes of dispatch's provider-concurrency",
    "tokens": "Who may call",
}
_GUARD: Final = {
    400: ("bad_host",),
    401: ("unauthorized",),
    403: ("insufficient_scope", "cross_site"),
    421: ("unknown_host",),
    429: ("too_many_failures",),
}
"""How a request may be refused before any endpoint has seen it."""
_OPEN_GUARD: Final = {400: ("bad_host",), 403: ("cross_site",), 421: ("unknown_host",)}


class DescriptionRoutes:
    """The route of the description itself, of all that *holders* declare."""

    def __init__(self, holders: Iterable[Any]) -> None:
        self._holders = tuple(holders)

    @cached_property
    def _document(self) -> bytes:
        return encoded(document([one for holder in self._holders for one in declared(holder)]))

    @endpoint("GET /openapi.json", "read", "This description", tag="state", answers={200: dict[str, Any]})
    async def description(self, request: Request) -> Response:
        return Response(self._document, media_type="application/json")


def document(endpoints: Iterable[Endpoint]) -> Schema:
    """The OpenAPI document of *endpoints*, as far as they are to be documented."""
    found = [one for one in endpoints if one.documented]
    schemas, components = _schemas(found)
    paths: dict[str, Schema] = defaultdict(dict)
    operations = {one.key: operation_id(one) for one in found}
    for one in found:
        paths[_plain(one.path)][one.method.lower()] = _operation(one, schemas, operations)
    used = {one.tag for one in found}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Interlock",
            "version": __version__,
            "description": "Concurrency control for fleets of LLM agents. JSON, camelCase, times in"
            " milliseconds since the epoch. Errors are problem documents (RFC 9457) with a `code`.",
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": _TAGS.get(name, name)} for name in sorted(used)],
        "paths": dict(paths),
        "components": {
            "schemas": {**components, "Json": JSON_SCHEMA},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": f"A token with the scope that is named: {', '.join(NAMES)};"
                    " `admin` includes the others. A server without any token asks for none.",
                }
            },
        },
    }


def operation_id(one: Endpoint) -> str:
    """What clients that are generated call it: the name of its method, in camelCase."""
    first, *rest = one.name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _plain(path: str) -> str:
    return re.sub(r":path}", "}", path)


def _types(one: Endpoint) -> Iterable[Any]:
    for answer in one.answers.values():
        for kind in answer if isinstance(answer, tuple) else (answer,):
            if kind is not None and not isinstance(kind, str):
                yield kind
    if one.body is not None:
        yield one.body


def _schemas(endpoints: Iterable[Endpoint]) -> tuple[dict[Any, Schema], Schema]:
    """The schema of every type that goes over the wire, and the components that they refer to."""
    kinds = list({repr(kind): kind for one in endpoints for kind in _types(one)}.values())
    made, components = msgspec.json.schema_components([Problem, *kinds], ref_template=_REF)
    return dict(zip(map(repr, [Problem, *kinds]), made, strict=True)), components


def _operation(one: Endpoint, schemas: Mapping[Any, Schema], operations: Mapping[str, str]) -> Schema:
    said: Schema = {
        "operationId": operation_id(one),
        "summary": one.summary,
        "tags": [one.tag],
        "parameters": [
            *_path_parameters(one),
            *_parameters(one.query, "query"),
            *_parameters(one.headers, "header"),
        ],
        "responses": _responses(one, schemas, operations),
        "security": [] if one.scope == OPEN else [{"token": [one.scope]}],
    }
    if one.description:
        said["description"] = one.description
    if one.body is not None:
        content = {"application/json": {"schema": schemas[repr(one.body)]}}
        said["requestBody"] = {"required": one.body_needed, "content": content}
    return said


# -- parameters ----------------------------------------------------------------------------------------------


def _path_parameters(one: Endpoint) -> Iterable[Schema]:
    typed = {said["name"]: said for said in _parameters(one.within, "path")}
    for name in re.findall(r"{(\w+)", one.path):
        said = typed.get(name, {"name": name, "in": "path", "schema": {"type": "string", "minLength": 1}})
        yield {**said, "required": True}


def _parameters(kind: type | None, place: str) -> Iterable[Schema]:
    """The members of the struct *kind* as parameters in *place*."""
    if kind is None:
        return
    _, components = msgspec.json.schema_components([kind], ref_template=_REF)
    [struct] = components.values()
    needed = struct.get("required", ())
    for name, schema in struct["properties"].items():
        schema = _without_null(schema)
        description = schema.pop("description", None)
        said: Schema = {"name": name, "in": place, "required": name in needed, "schema": schema}
        yield said if description is None else {**said, "description": description}


def _without_null(schema: Schema) -> Schema:
    """*schema* of something that may be absent, but cannot be said to be null."""
    kept = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    found = {**schema, **kept[0]} if len(kept) == 1 else dict(schema)
    if len(kept) == 1:
        del found["anyOf"]
    if found.get("default", ...) in (None, []):
        del found["default"]
    return found


# -- answers -------------------------------------------------------------------------------------------------


def _responses(one: Endpoint, schemas: Mapping[Any, Schema], operations: Mapping[str, str]) -> Schema:
    found: dict[int, Schema] = {}
    for status, answer in one.answers.items():
        found[status] = _described(status)
        kinds = answer if isinstance(answer, tuple) else (answer,)
        if content := {
            _media(kind): {"schema": _schema(kind, schemas)} for kind in kinds if kind is not None
        }:
            found[status]["content"] = content
        if status < 300:
            headers = {**one.answer_headers, **({"ETag": "Of these settings."} if 304 in one.answers else {})}
            found[status] |= _headers(headers) | _links(one, operations)
    for status, codes in _problems(one).items():
        said = found.setdefault(status, _described(status))
        narrow = {"properties": {"status": {"const": status}, "code": {"enum": sorted(codes)}}}
        schema = {"allOf": [schemas[repr(Problem)], narrow]}
        said.setdefault("content", {})[PROBLEM_JSON] = {"schema": schema}
        if status in (429, 503):
            after = {"Retry-After": "Seconds after which to come again, a fifth more or less."}
            said.setdefault("headers", {}).update(_headers(after)["headers"])
            if status == 429 and "RateLimit" in one.answer_headers:
                said["headers"] |= _headers(one.answer_headers)["headers"]
    return {str(status): found[status] for status in sorted(found)}


def _described(status: int) -> Schema:
    return {"description": HTTPStatus(status).phrase}


def _media(kind: Any) -> str:
    return kind if isinstance(kind, str) else "application/json"


def _schema(kind: Any, schemas: Mapping[Any, Schema]) -> Schema:
    return {"type": "string"} if isinstance(kind, str) else schemas[repr(kind)]


def _headers(texts: Mapping[str, str]) -> Schema:
    if not texts:
        return {}
    return {
        "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in texts.items()}
    }


def _links(one: Endpoint, operations: Mapping[str, str]) -> Schema:
    """Where the members of the answer lead."""
    links = {}
    for key, members in one.links.items():
        said: Schema = {"operationId": operations[key], "parameters": {}}
        for name, member in members.items():
            if member.startswith("body:"):
                pointer = f"$response.body#/{member.removeprefix('body:')}"
                said.setdefault("requestBody", {})[name] = pointer
            else:
                said["parameters"][name] = f"$response.body#/{member}"
        links[operations[key]] = said
    return {"links": links} if links else {}


def _problems(one: Endpoint) -> dict[int, set[str]]:
    """The codes of all problem documents that *one* may answer, by status."""
    found: dict[int, set[str]] = defaultdict(set)
    for status, codes in (_OPEN_GUARD if one.scope == OPEN else _GUARD).items():
        found[status].update(codes)
    found[500].add(InterlockError.default_code)
    if one.own_errors is not None:
        return found
    refusals: list[type[InterlockError]] = [
        *one.problems,
        ValidationError,
        NotJson,
        *([] if one.body is None else [TooLarge]),
    ]
    for kind in refusals:
        found[kind.status].add(kind.default_code)
    return found
