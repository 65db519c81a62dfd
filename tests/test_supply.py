"""What is shipped, and what it may load: the package and nothing beside it, and no code by chance.

A `.pth` file in a wheel runs at every start of Python; that is how a proxy of this kind has been hijacked.
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

from interlock.errors import InterlockError
from interlock.http.connections.server import OLDEST_PARSER, check_parser
from test_architecture import tracked_files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src/interlock"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SHIPPED = {".py", ".lua", ".sql", ".typed", ".html", ".css", ".js", ".svg", ".json", ".txt"}

UNSAFE = {
    "pickle",
    "cPickle",
    "dill",
    "marshal",
    "shelve",
    "yaml",
    "jsonpickle",
    "cloudpickle",
    "code",
    "runpy",
}
EVALUATES = {"eval", "exec", "compile", "__import__", "execfile"}
MAY_IMPORT_BY_NAME = {
    "__init__.py": "its own public names, from a table in it",
    "agents/python.py": "the module:name of an agent, which the operator's file lists",
}


def trees() -> list[tuple[str, ast.Module]]:
    """Every module of the package, by its path in it."""
    return [
        (path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8")))
        for path in sorted(PACKAGE.rglob("*.py"))
    ]


def called(node: ast.AST) -> str:
    """The bare name that *node* calls, if it calls one."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def imported(node: ast.AST) -> set[str]:
    """The modules that *node* imports, by their first names."""
    if isinstance(node, ast.Import):
        return {name.name.partition(".")[0] for name in node.names}
    return (
        {(node.module or "").partition(".")[0]}
        if isinstance(node, ast.ImportFrom) and not node.level
        else set()
    )


def test_a_wheel_is_the_package_and_nothing_else() -> None:
    """It is made of one directory, without hooks or files for elsewhere; and no `.pth` is in that."""
    build = PROJECT["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"] == {"packages": ["src/interlock"]}
    assert set(build) == {"targets"}
    assert set(build["targets"]) == {"wheel", "sdist"}
    assert set(build["targets"]["sdist"]) == {"include"}
    assert "src" in build["targets"]["sdist"]["include"]  # so a wheel that is made from it is the same
    assert PROJECT["build-system"]["build-backend"] == "hatchling.build"
    assert "backend-path" not in PROJECT["build-system"]
    assert PROJECT["project"]["scripts"] == {"interlock": "interlock.cli:main"}
    assert "entry-points" not in PROJECT["project"]
    shipped = [path for path in tracked_files() if path.is_relative_to(ROOT / "src")]
    assert [path for path in shipped if not path.is_relative_to(PACKAGE)] == []
    assert [path for path in shipped if path.suffix not in SHIPPED or path.is_symlink()] == []


def test_little_is_needed() -> None:
    """One library, which needs none itself; and all that extras need has a floor."""
    assert [one.partition(">")[0] for one in PROJECT["project"]["dependencies"]] == ["msgspec"]
    for extra, needs in PROJECT["project"]["optional-dependencies"].items():
        assert [one for one in needs if "interlock" not in one and ">=" not in one] == [], extra


def test_no_data_becomes_code() -> None:
    """Nothing is unpickled or evaluated, and a module is imported by name where a person has written it."""
    found = []
    for name, tree in trees():
        for node in ast.walk(tree):
            unsafe = imported(node) & UNSAFE
            evaluates = (
                {called(node)} & EVALUATES if isinstance(getattr(node, "func", None), ast.Name) else set()
            )
            by_name = called(node) == "import_module" and name not in MAY_IMPORT_BY_NAME
            if unsafe or evaluates or by_name:
                found.append(f"{name}:{getattr(node, 'lineno', 0)}")
    assert found == []
    assert {
        name for name, tree in trees() if any(called(n) == "import_module" for n in ast.walk(tree))
    } == set(MAY_IMPORT_BY_NAME)


def test_the_parser_is_not_too_old() -> None:
    """A version with known holes is refused at the start, whatever has been installed."""
    check_parser()
    for old in ("0.6.2", "0.5", "0.0.9rc1"):
        with pytest.raises(InterlockError, match=rf"{old} .*{'.'.join(map(str, OLDEST_PARSER))}"):
            check_parser(old)
    check_parser("0.6.3")
    check_parser("1.0.0b1")
