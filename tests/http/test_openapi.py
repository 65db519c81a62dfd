"""The table of routes and the description of the API that is made from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from interlock.http.access.scopes import OPEN
from interlock.http.endpoints import Endpoint
from interlock.http.openapi import document, operation_id
from interlock.http.table import ENDPOINTS
from served_tokens import door

DOCS = Path(__file__).parents[2] / "docs/http.md"
DOCUMENTED = [one for one in ENDPOINTS if one.documented]
"""All but the dashboard's own: a page for people is no API."""
ORIGINAL = [one for one in ENDPOINTS if one.path.startswith("/concurrency/")]


def plain(path: str) -> str:
    return path.replace(":path}", "}")


def operation(one: Endpoint) -> Any:
    found = document(ENDPOINTS)["paths"][plain(one.path)]
    return found[one.method.lower()]


async def test_the_description_is_valid_and_whole() -> None:
    """OpenAPI 3.1 by its own validator, with every endpoint; who reads it needs the scope ``read``."""
    async with door("configured") as server:
        assert (await server.ask("GET", "/openapi.json")).status == 401
        assert (await server.ask("GET", "/openapi.json", await server.token("gateway"))).status == 403
        got = await server.ask("GET", "/openapi.json", await server.token("read"))
    assert got.header(b"content-type") == b"application/json"
    validate(got.json)
    assert got.json["openapi"] == "3.1.0"
    told = {f"{method.upper()} {path}" for path, methods in got.json["paths"].items() for method in methods}
    assert told == {f"{one.method} {plain(one.path)}" for one in DOCUMENTED}


def test_every_operation_has_an_id_of_its_own() -> None:
    """Clients that are generated have a function of that name for each."""
    names = [operation_id(one) for one in DOCUMENTED]
    assert sorted(set(names)) == sorted(names)
    assert all(re.fullmatch("[a-z][A-Za-z]+", name) for name in names)


@pytest.mark.parametrize("one", DOCUMENTED, ids=lambda one: one.key)
def test_what_is_said_of_each(one: Endpoint) -> None:
    """Its parameters are those in its path, its scope is its security, what it refuses has codes."""
    said = operation(one)
    in_path = [parameter["name"] for parameter in said["parameters"] if parameter["in"] == "path"]
    assert in_path == re.findall(r"{(\w+)", one.path)
    assert said["security"] == ([] if one.scope == OPEN else [{"token": [one.scope]}])
    for status, response in said["responses"].items():
        problem = response.get("content", {}).get("application/problem+json")
        if problem is None:
            assert int(status) < 400 or one in ORIGINAL or one.path == "/readyz"
        else:
            [_, narrow] = problem["schema"]["allOf"]
            assert narrow["properties"]["code"]["enum"]
            assert narrow["properties"]["status"] == {"const": int(status)}
        if status in ("429", "503") and problem is not None:
            assert "Retry-After" in response["headers"]
    assert {"500"} <= set(said["responses"])
    assert ({"401", "403"} <= set(said["responses"])) == (one.scope != OPEN)


@pytest.mark.parametrize("one", ORIGINAL, ids=lambda one: one.key)
def test_the_original_s_routes_keep_their_errors(one: Endpoint) -> None:
    """``{"error": "…"}`` is what they are described with, also where a refusal of the guard has a code."""
    responses = operation(one)["responses"]
    for status in set(one.answers) - {200, 304}:
        schema = responses[str(status)]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/Failure"}


def test_streams_are_described_as_such() -> None:
    for one in DOCUMENTED:
        if one.path.endswith("/events"):
            content = operation(one)["responses"]["200"]["content"]
            assert set(content) == {"application/json", "text/event-stream"}


def test_what_follows_from_an_answer_is_linked() -> None:
    """From a session to its runs, from there to the run and its events."""
    found = document(ENDPOINTS)["paths"]
    made = found["/sessions"]["post"]["responses"]["201"]["links"]
    assert made["submitRun"] == {"operationId": "submitRun", "parameters": {"id": "$response.body#/id"}}
    submitted = found["/sessions/{id}/runs"]["post"]["responses"]["202"]["links"]
    assert submitted["run"]["parameters"] == {"id": "$response.body#/runId"}
    assert submitted["events"]["parameters"] == {"id": "$response.body#/sessionId"}
    taken = found["/permits"]["post"]["responses"]["201"]["links"]["renew"]
    assert taken["requestBody"] == {"fence": "$response.body#/fence"}


def test_the_documentation_has_every_route() -> None:
    """Its table says of each what the declaration says, and names no other."""
    section = DOCS.read_text().partition("\n## Every route\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([A-Z]+ /[^`]*)` \| (\w+) \| (.*) \|$", section, re.MULTILINE)
    assert rows == [(f"{one.method} {plain(one.path)}", one.scope, one.summary) for one in DOCUMENTED]
