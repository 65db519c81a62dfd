"""Names of OpenTelemetry are those of its conventions, and the page tells all of ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.attributes import error_attributes, http_attributes, server_attributes

from interlock import LocalAdmission
from interlock.telemetry import genai
from interlock.telemetry.otel import instrument
from spans import Sdk


def test_names_are_those_of_the_conventions() -> None:
    """Every constant of ours is one of theirs."""
    theirs = {
        value
        for module in (
            gen_ai_attributes,
            gen_ai_metrics,
            error_attributes,
            http_attributes,
            server_attributes,
        )
        for value in vars(module).values()
        if isinstance(value, str) and re.fullmatch(r"[a-z_.]+", value)
    }
    operations = {one.value for one in gen_ai_attributes.GenAiOperationNameValues}
    ours = {name: value for name, value in vars(genai).items() if name.isupper() and isinstance(value, str)}
    assert len(ours) > 12
    assert {name for name, value in ours.items() if value not in theirs | operations} == set()


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/responses", "chat"),
        ("/v1/messages/", "chat"),
        ("/v1/completions", "text_completion"),
        ("/v1/embeddings", "embeddings"),
        ("/v1/responses/resp_1/cancel", None),
        ("/", None),
    ],
)
def test_operations_are_told_by_the_path(path: str, operation: str | None) -> None:
    assert genai.operation(path) == operation


def test_the_page_tells_every_metric() -> None:
    """Its table is the metrics that there are, each with its description, and names the spans."""
    sdk, admission = Sdk(), LocalAdmission()
    admission.configure("tools", 1)
    telemetry = instrument(admission, **sdk.providers)
    numbers = telemetry._numbers
    numbers.waited(["tools"], 1.0)
    numbers.called({}, 1.0)
    data = sdk.reader.get_metrics_data()
    assert data is not None
    told = {one.name: one.description for one in data.resource_metrics[0].scope_metrics[0].metrics}
    page = (Path(__file__).parents[2] / "docs/telemetry.md").read_text()
    section = page.partition("## OpenTelemetry")[2].partition("\n## ")[0]
    rows = re.findall(
        r"^\| `([\w.]+)` \| (?:histogram, s|gauge) \| [^|]+ \| (.*?) \|$", section, re.MULTILINE
    )
    assert dict(rows) == told
    for span in ("interlock.wait", "interlock.run", "POST /gateway/{provider}/{path}"):
        assert f"| `{span}` |" in section
