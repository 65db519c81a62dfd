"""The page and the dashboard speak of the metrics that there are, and of all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from expositions import parse
from gateways import call, gateway
from interlock.telemetry.invariants import MOST_PERMITS
from interlock.telemetry.labels import MOST_VALUES
from interlock.telemetry.logs import SHORTEST
from interlock.telemetry.prometheus import METRICS, OUTCOMES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/telemetry.md").read_text(encoding="utf-8")
BOARD = json.loads((ROOT / "examples/grafana/interlock.json").read_text(encoding="utf-8"))


def expressions(node: Any) -> list[str]:
    """Every query of a dashboard, those of its variables included."""
    if isinstance(node, list):
        return [one for part in node for one in expressions(part)]
    if not isinstance(node, dict):
        return []
    own = [value for key, value in node.items() if key in ("expr", "query") and isinstance(value, str)]
    return own + [one for part in node.values() for one in expressions(part)]


def test_the_page_lists_every_metric_as_it_is() -> None:
    rows = re.findall(r"^\| `(interlock_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", PAGE, re.MULTILINE)
    told = [(name, kind, tuple(re.findall(r"`(\w+)`", labels)), says) for name, kind, labels, says in rows]
    assert told == [tuple(metric) for metric in METRICS]


def test_the_page_lists_every_outcome() -> None:
    table = PAGE.partition("| outcome | means |")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == OUTCOMES


def test_the_page_names_the_bounds() -> None:
    assert f"at most\n{MOST_VALUES:,} values" in PAGE
    assert f"more\nthan {MOST_PERMITS:,} permits" in PAGE
    assert (SHORTEST, "six characters or more" in PAGE) == (6, True)


async def test_the_dashboard_and_the_page_name_only_what_a_server_tells() -> None:
    """And the dashboard shows all of it."""
    async with gateway() as served:
        said = parse((await call(served.url, "GET", "/metrics")).body.decode())
    known = {
        name: {name, f"{name}_bucket", f"{name}_sum", f"{name}_count"} if one.kind == "histogram" else {name}
        for name, one in said.items()
    }
    in_page = set(re.findall(r"interlock_\w+", PAGE))
    in_board = set(re.findall(r"interlock_\w+", " ".join(expressions(BOARD))))
    assert (in_page | in_board) <= set().union(*known.values())
    assert [name for name, parts in known.items() if not parts & in_board] == []


def test_the_dashboard_is_one_that_grafana_can_lay_out() -> None:
    """Panels have their own numbers, their own places within 24 columns, a data source and queries."""
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["targets"]
        assert panel["datasource"]["uid"] == "${datasource}"
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    queries = " ".join(expressions(BOARD))
    named = set(re.findall(r"\$(\w+)", queries)) - {"__rate_interval"}
    assert named <= {variable["name"] for variable in BOARD["templating"]["list"]}
    for query in expressions(BOARD):
        assert [query.count(one) for one in "({["] == [query.count(one) for one in ")}]"]
        for counter in (metric.name for metric in METRICS if metric.kind == "counter"):
            use = rf"(?:rate|increase)\({counter}\b|^sum\({counter}\b"
            assert counter not in query or re.search(use, query), query


def test_labels_of_queries_are_those_of_their_metrics() -> None:
    labels = {metric.name: {*metric.labels, "job", "le"} for metric in METRICS}
    for query in expressions(BOARD):
        for name, chosen in re.findall(r"(interlock_\w+?)(?:_bucket|_sum|_count)?\{(.*?)\}", query):
            assert set(re.findall(r"(\w+)=~?", chosen)) <= labels[name], query
