"""Builds the documentation site: ``python docs/build.py`` writes build/site, and fails on any warning.

The pages of this directory read well where they lie. For the site they are copied to build/docs, and there

- README.md is the first page, beside the changelog and what contributors need to know;
- a file outside of docs that a page links to, an example or a test, is a page that shows it;
- each section of reference.md is a page with the docstrings of the names that it lists.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from posixpath import normpath, relpath

from interlock import errors

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build/docs"
"""Where the pages are put together; zensical.toml names it as ``docs_dir``."""

SIGNATURES_SAY_IT = {"Admission", "Clock", "Interlock", "Permit", "RunContext", "Settings", "Store"}
"""Names of which members are shown, too, that have no docstring."""

MOVED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}

_FENCE = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
_LISTED = re.compile(r"^\| `[\w.]+`(?= \|)|^`[\w.`, ]+`$", re.MULTILINE)
"""The names of a section of the reference: what begins a row of its table, and lines that are names only."""
_NAME = re.compile(r"`([\w.]+)`")
_LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".json": "json", ".service": "ini"}


def main() -> int:
    """Put the pages together, and have zensical build them; its exit code."""
    for old in (PAGES, PAGES.with_name("site")):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shown: set[str] = set()
    for page in [*ROOT.glob("docs/**/*.md"), *(ROOT / name for name in MOVED)]:
        name = page.relative_to(ROOT).as_posix()
        text = page.read_text(encoding="utf-8")
        (PAGES / place(name)).write_text(relinked(text, name, shown), encoding="utf-8")
    while shown:
        show(shown.pop(), shown)
    write_reference()
    return build()


def build() -> int:
    """Have zensical build the pages; 1 if it fails or warns, or a docstring cannot be read."""
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout)
    complaints = [line for line in done.stdout.splitlines() if line.startswith(("griffe:", "mkdocstrings:"))]
    return 1 if done.returncode or complaints else 0


def place(name: str) -> str:
    """Where on the site that file of the repository stands."""
    if name in MOVED:
        return MOVED[name]
    return name.removeprefix("docs/") if name.startswith("docs/") else f"source/{name}.md"


def relinked(text: str, name: str, shown: set[str]) -> str:
    """*text* of page *name* with the links of the site; *shown* gets the files that need a page."""
    here = Path(place(name)).parent.as_posix()

    def moved(link: re.Match[str]) -> str:
        target = normpath((Path(name).parent / link[1]).as_posix())
        if place(target).startswith("source/"):
            shown.add(target)
        return relpath(place(target), here)

    parts = _FENCE.split(text)  # every other one is a block, in which nothing is a link
    return "".join(part if part.startswith("```") else _LINK.sub(moved, part) for part in parts)


def show(name: str, shown: set[str]) -> None:
    """A page with a file of the repository, which searches pass by; of a directory with all that is in it."""
    path = ROOT / name
    if path.is_dir():
        inside = [one.name for one in sorted(path.iterdir()) if one.name[0] not in "._"]
        body = "\n".join(f"- [{one}]({path.name}/{one}.md)" for one in inside)
        shown.update(f"{name}/{one}" for one in inside)
    else:
        language = _LANGUAGES.get(path.suffix, "text")
        body = f"````{language}\n{path.read_text(encoding='utf-8').rstrip()}\n````"
    page = PAGES / place(name)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"---\nsearch:\n  exclude: true\n---\n\n# {name}\n\n{body}\n", encoding="utf-8")


def write_reference() -> None:
    """A page for each section of the reference, with the docstrings of its names; its names lead there."""
    index = PAGES / "reference.md"
    head, *parts = re.split(r"^## (.+)$", index.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (PAGES / "reference").mkdir()
    for title, text in zip(parts[::2], parts[1::2], strict=True):
        page = f"reference/{title.lower().replace(' ', '-')}.md"
        up = _LINK.sub(r"../\1", text.strip())
        blocks = "\n".join(
            block(full_name(name)) for row in _LISTED.findall(text) for name in _NAME.findall(row)
        )
        (PAGES / page).write_text(f"# {title}\n\n{up}\n\n{blocks}", encoding="utf-8")
        head += f"## {title}\n{_LISTED.sub(lambda row, page=page: linked(row[0], page), text)}"
    index.write_text(head, encoding="utf-8")


def full_name(name: str) -> str:
    """Where mkdocstrings finds a name of the reference."""
    if "." in name:
        return name
    return f"interlock.errors.{name}" if hasattr(errors, name) else f"interlock.{name}"


def linked(row: str, page: str) -> str:
    """A row of names, each of which leads to its place on *page*."""
    return _NAME.sub(lambda name: f"[`{name[1]}`]({page}#{full_name(name[1])})", row)


def block(name: str) -> str:
    """What has mkdocstrings write about *name*."""
    whole = name.rpartition(".")[2] in SIGNATURES_SAY_IT
    return f"::: {name}\n" + ("    options: {show_if_no_docstring: true}\n" if whole else "")


if __name__ == "__main__":
    sys.exit(main())
