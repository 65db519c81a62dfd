"""The house rules that a reader cannot see in one file: what may import what, and how large a thing may grow.

Everything is read from the syntax trees, nothing is imported, except where a rule is about importing. A rule
that the code has outgrown is changed here, with its reason, in the same commit.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"
PACKAGE = SRC / "interlock"

# From the bottom up. A part may import from the parts of lower layers, never from its own layer's others.
LAYERS = (
    ("core",),
    ("ports",),
    ("clock",),  # gives a `ports.Clock`, and hands out its timer handles
    ("ledger", "history"),  # stores examine what the ledger has kept in them
    ("admission", "stores"),
    ("limiter", "governor", "limits", "provider", "pool"),
    ("session",),  # its runs take slots, streams and tools
    ("agents",),  # work on what a session gives them
    ("telemetry",),  # reads all of the above, and is told of what passes
    ("http", "sync"),
    ("transports", "limiting"),  # transports read conversations as `http.gateway` does
    ("app",),
    ("cli",),  # starts what `app` wires
)
SEEN_BY_ALL = {"errors": (), "secret": (), "config": ("errors", "secret")}
"""Parts beside the layers that everybody but `core` may import, each with what it may import itself."""

TESTING = "testing"
MAY_IMPORT_TESTING = {"interlock.cli.mock_provider", "interlock.cli.demo", "interlock.cli.simulate"}
"""The commands that run a simulated provider; nothing else in the package knows of test tools."""

PURE = {
    "__future__",
    "bisect",
    "collections",
    "collections.abc",
    "dataclasses",
    "enum",
    "functools",
    "heapq",
    "itertools",
    "sys",
    "types",
    "typing",
}
"""What `core` may import: data structures and words for types. No time, no chance, no input, no output."""

FORBIDDEN = {
    "asyncio": {
        "BoundedSemaphore",
        "Condition",
        "LifoQueue",
        "Lock",
        "PriorityQueue",
        "Queue",
        "Semaphore",
        "shield",
        "wait_for",
    },
    "time": {"sleep"},
}
"""Primitives that lost wake-ups, swallowed cancellations or stop the loop; futures and our own records do."""

VAGUE = {"base", "common", "helper", "helpers", "manager", "misc", "util", "utils"}

MOST_LINES = 450
LONG_FILES: dict[str, tuple[int, str]] = {}
"""Files that may be longer, each with its own bound and the reason."""

MOST_LINES_OF_A_FUNCTION = 70


# -- reading -------------------------------------------------------------------------------------------------


@cache
def modules() -> dict[str, tuple[Path, ast.Module]]:
    """Every module of the package by its dotted name, with its file and its tree."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path, ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


@cache
def imports(name: str) -> tuple[tuple[str, str | None, int], ...]:
    """What module *name* imports, also for types only: (module, name imported from it, line)."""
    path, tree = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: list[tuple[str, str | None, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, None, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            found += [(source, alias.name, node.lineno) for alias in node.names]
    return tuple(found)


def inner_imports(name: str) -> Iterator[tuple[str, int]]:
    """The modules of the package that module *name* imports, resolved to modules."""
    for source, imported, line in imports(name):
        whole = f"{source}.{imported}"
        target = whole if whole in modules() else source
        if target.partition(".")[0] == "interlock" and whole != "interlock.__version__":
            yield target, line


def part_of(module: str) -> str:
    """The concept that a module belongs to: the name right below ``interlock``; "" is the package itself."""
    return (module + ".").split(".")[1]


def height(part: str) -> int:
    return next(n for n, layer in enumerate(LAYERS) if part in layer)


def at(name: str, line: int) -> str:
    return f"{modules()[name][0].relative_to(ROOT)}:{line}"


def complaints(found: Iterator[str]) -> str:
    return "\n".join(sorted(found))


# -- (a) layers ----------------------------------------------------------------------------------------------


def test_every_part_has_its_layer() -> None:
    """A new module or package directly below ``interlock`` is given a place in `LAYERS` first."""
    placed = {part for layer in LAYERS for part in layer} | {*SEEN_BY_ALL, TESTING, ""}
    assert {part_of(name) for name in modules()} <= placed


def test_imports_point_down() -> None:
    """A part imports from lower layers only; two parts of one layer do not know each other."""
    assert complaints(_upward_imports()) == ""


def _upward_imports() -> Iterator[str]:
    for name in modules():
        part = part_of(name)
        if part in ("", TESTING):
            continue
        for target, line in inner_imports(name):
            to = part_of(target)
            if to not in (part, TESTING) and not _may_import(part, to):
                yield f"{at(name, line)}: {part} imports {target}"


def _may_import(part: str, to: str) -> bool:
    if part in SEEN_BY_ALL:
        return to in SEEN_BY_ALL[part]
    if to in SEEN_BY_ALL:
        return part != "core"
    return to != "" and height(to) < height(part)


def test_test_tools_are_imported_by_the_commands_that_need_them_only() -> None:
    found = (
        f"{at(name, line)}: imports {target}"
        for name in modules()
        if part_of(name) != TESTING and name not in MAY_IMPORT_TESTING
        for target, line in inner_imports(name)
        if part_of(target) == TESTING
    )
    assert complaints(found) == ""


# -- (b) a pure core -----------------------------------------------------------------------------------------


def test_core_imports_data_structures_only() -> None:
    """Time is an argument of the core, effects are returned: it has nothing to ask and nobody to tell."""
    found = (
        f"{at(name, line)}: imports {source}"
        for name in modules()
        if part_of(name) == "core"
        for source, _, line in imports(name)
        if source not in PURE and part_of(source) != "core"
    )
    assert complaints(found) == ""


# -- (c) forbidden primitives --------------------------------------------------------------------------------


def test_forbidden_primitives_are_used_nowhere() -> None:
    assert complaints(line for name in modules() for line in _forbidden_uses(name)) == ""


def _forbidden_uses(name: str) -> Iterator[str]:
    """By whichever way they come in: ``import asyncio as aio``, ``from asyncio.locks import Lock``."""
    _, tree = modules()[name]
    called: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                source = (getattr(node, "module", None) or alias.name).partition(".")[0]
                called[alias.asname or alias.name.partition(".")[0]] = source
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            source = called.get(root.id, "") if isinstance(root, ast.Name) else ""
            if node.attr in FORBIDDEN.get(source, ()):
                yield f"{at(name, node.lineno)}: {source}.{node.attr}"
    for source, imported, line in imports(name):
        if imported in FORBIDDEN.get(source.partition(".")[0], ()):
            yield f"{at(name, line)}: {source}.{imported}"


# -- (d) names -----------------------------------------------------------------------------------------------


def test_no_module_is_named_after_nothing() -> None:
    """A file called ``utils`` says only that nobody knew where its content belongs."""
    vague = [name for name in modules() if VAGUE & set(name.rpartition(".")[2].strip("_").split("_"))]
    assert vague == []


# -- (e) size ------------------------------------------------------------------------------------------------


def test_files_are_short_enough_to_be_read() -> None:
    found = []
    for path, _ in modules().values():
        file = path.relative_to(PACKAGE).as_posix()
        lines = len(path.read_text(encoding="utf-8").splitlines())
        most, _ = LONG_FILES.get(file, (MOST_LINES, ""))
        if lines > most:
            found.append(f"{file}: {lines} lines, at most {most}")
    assert found == []


def test_the_list_of_long_files_is_no_longer_than_needed() -> None:
    for file in LONG_FILES:
        lines = len((PACKAGE / file).read_text(encoding="utf-8").splitlines())
        assert lines > MOST_LINES, f"{file} has {lines} lines: it needs no exception any more"


def test_functions_are_short_enough_to_be_read() -> None:
    found = (
        f"{at(name, node.lineno)}: {node.name} has {lines} lines, at most {MOST_LINES_OF_A_FUNCTION}"
        for name, (_, tree) in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > MOST_LINES_OF_A_FUNCTION
    )
    assert complaints(found) == ""


# -- (f) docstrings ------------------------------------------------------------------------------------------


def test_what_is_public_says_what_it_is() -> None:
    """Every module, and every class and function at its top whose name has no leading underscore."""
    assert complaints(line for name in modules() for line in _undocumented(name)) == ""


def _undocumented(name: str) -> Iterator[str]:
    _, tree = modules()[name]
    if ast.get_docstring(tree) is None:
        yield f"{at(name, 1)}: the module"
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        overloads = any(isinstance(one, ast.Name) and one.id == "overload" for one in node.decorator_list)
        if not overloads and not node.name.startswith("_") and ast.get_docstring(node) is None:
            yield f"{at(name, node.lineno)}: {node.name}"


# -- (g) the public names ------------------------------------------------------------------------------------


def test_every_public_name_can_be_imported() -> None:
    interlock = importlib.import_module("interlock")
    public = interlock.__all__
    assert len(public) == len(set(public))
    assert [name for name in public if getattr(interlock, name, None) is None] == []


def test_what_type_checkers_see_is_what_is_there() -> None:
    """The names under ``TYPE_CHECKING`` are the public ones, from the homes that they are loaded from."""
    interlock = importlib.import_module("interlock")
    seen = {name: source for source, name, _ in imports("interlock") if part_of(source)}
    assert {name: interlock._HOME.get(name) for name in seen} == seen


# -- (h) a bare interpreter ----------------------------------------------------------------------------------


def test_the_kernel_and_its_shell_need_the_standard_library_only() -> None:
    """Also a tool without our dependencies can load them: without ``site``, nothing else is in reach."""
    later = "interlock.admission.remote.websocket"  # imported by the first client of a server
    parts = ("core", "admission", "clock", "errors")
    bare = [name for name in modules() if part_of(name) in parts and name != later]
    code = (
        f"import sys; sys.path.insert(0, {str(SRC)!r})\n"
        f"import {', '.join(bare)}\n"
        "foreign = {name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names\n"
        "sys.exit(' '.join(sorted(foreign - {'interlock', '__main__'})) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# -- (i) nothing of one machine ------------------------------------------------------------------------------

# Spelt in pieces, because this file is searched as well.
_MACHINE_PATH = re.compile(r"(?<![\w.])/(?:root|work|home)" + "/")
_REGISTRY = re.compile(r"\b(?:py" + r"pi|python" + r"hosted|npm" + r"js|artifact" + r"ory)\.(?:\w+\.)*\w+")
_INDEX = re.compile(r"--(?:extra-|default-)?ind" + r"ex-url|https?://[^\s\"'<>]*/sim" + "ple\\b")


def tracked_files() -> list[Path]:
    """What is in the repository, or would be with the next commit."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_the_repository_names_no_machine_and_no_package_index() -> None:
    """It is made the same way everywhere, by whatever index the machine at hand is set up with."""
    found = []
    for path in tracked_files():
        text = path.read_text(encoding="utf-8", errors="replace")
        for what in (_MACHINE_PATH, _REGISTRY, _INDEX):
            for match in what.finditer(text):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{path.relative_to(ROOT)}:{line}: {match[0]}")
    assert found == []


def test_requirements_are_names_versions_and_hashes() -> None:
    """No option but a hash, and no address at all."""
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        assert "://" not in text, path.name
        assert set(re.findall(r"(?m)(?:^|\s)(-[\w-]+)", text)) <= {"--hash"}, path.name
