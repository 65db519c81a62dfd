"""The rules as they are written: none is missing, and every test that one names is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SEMANTICS = (ROOT / "docs/semantics.md").read_text()
RULES = [f"R{number}" for number in range(1, 17)]
NAMED = re.findall(r"\[(test_\w+)\]\(\.\./([\w/]+\.py)\)", SEMANTICS)


def section(rule: str) -> str:
    """What stands under the heading of *rule*, up to the next heading."""
    _, _, rest = SEMANTICS.partition(f"\n### {rule}\n")
    return re.split(r"\n##", rest)[0]


@cache
def functions_of(path: str) -> dict[str, str]:
    """The tests of a module and what each says that it shows."""
    functions = ast.walk(ast.parse((ROOT / path).read_text()))
    return {
        node.name: ast.get_docstring(node) or ""
        for node in functions
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_rule_has_its_heading_once_and_in_order() -> None:
    assert re.findall(r"^### (R\d+)$", SEMANTICS, re.MULTILINE) == RULES


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_one_sentence_and_names_tests_of_its_own(rule: str) -> None:
    """A rule begins with its sentence in bold, and links to tests that are called after it."""
    text = section(rule)
    assert re.match(r"\n\*\*[A-Z][^*]+\.\*\*", text), f"{rule} does not begin with its sentence"
    named = re.findall(r"\[(test_\w+)\]", text)
    assert named
    assert all(name.startswith(f"test_r{int(rule[1:]):02}_") for name in named)


def test_every_test_that_is_named_exists() -> None:
    """No link is left unchecked, and each leads to a test of that name."""
    assert [name for name, _ in NAMED] == re.findall(r"\[(test_\w+)\]", SEMANTICS)
    missing = [name for name, path in NAMED if name not in functions_of(path)]
    assert missing == []


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_test_says_its_rule(rule: str) -> None:
    """A test that is called after a rule states in its docstring what of that rule it shows."""
    tests = {
        name: says
        for path in ROOT.glob("tests/core/test_rules_*.py")
        for name, says in functions_of(str(path.relative_to(ROOT))).items()
    }
    of_rule = {name: says for name, says in tests.items() if name.startswith(f"test_r{int(rule[1:]):02}_")}
    assert of_rule
    assert [name for name, says in of_rule.items() if not says.startswith(f"{rule}: ")] == []
