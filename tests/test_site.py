"""The documentation site is built without a warning, is whole, and asks nobody else for anything."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import interlock
from interlock import errors, testing

ROOT = Path(__file__).resolve().parents[1]
LOADED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}
"""What a browser fetches by itself, beside what it is sent to by a click."""


class Page(HTMLParser):
    """What a built page leads to, what it loads, and where it can be led to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag in LOADED and LOADED[tag] in found:
            self.loads.append(found[LOADED[tag]])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])


@cache
def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def pages_in(nav: object) -> Iterator[str]:
    """The pages that a part of the navigation names."""
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for value in nav.values():
            yield from pages_in(value)
    elif isinstance(nav, list):
        for value in nav:
            yield from pages_in(value)


def broken(site: Path) -> Iterator[str]:
    """Links, and what pages load, that lead nowhere within the site."""
    for file in sorted(site.rglob("*.html")):
        for link in (*page(file).links, *page(file).loads):
            parts = urlsplit(link)
            if parts.scheme:
                continue
            path = unquote(parts.path)
            target = site / path[1:] if path.startswith("/") else (file.parent / path).resolve()
            target = file if not path else target
            if not target.is_file():
                yield f"{file.relative_to(site)}: {link} is not there"
            elif parts.fragment and parts.fragment not in page(target).ids | {"__skip"}:
                yield f"{file.relative_to(site)}: {link} has no such place"


def foreign(site: Path) -> Iterator[str]:
    """What a page or a style sheet would load from somebody else."""
    for file in sorted(site.rglob("*.html")):
        yield from (f"{file.name}: {url}" for url in page(file).loads if urlsplit(url).netloc)
        if re.search(r'class="[^"]*\bmermaid\b', file.read_text(encoding="utf-8")):
            yield f"{file.name}: a diagram whose program is loaded from elsewhere"
    for file in sorted([*site.rglob("*.css"), *site.rglob("*.svg")]):
        text = file.read_text(encoding="utf-8")
        found = re.findall(
            r"url\(\s*[\"']?(?:https?:)?//[^)]+|@import[^;]+|<script|xlink:href=\"http[^\"]+", text
        )
        yield from (f"{file.name}: {what}" for what in found)


def test_the_site_is_built_and_whole(tmp_path: Path) -> None:
    """`make docs` succeeds in a copy: its navigation has every page, links lead on, no name is missing."""
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "zensical.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for name in ("src", "tests", "examples", "bench"):
        (tmp_path / name).symlink_to(ROOT / name)
    built = subprocess.run(
        [sys.executable, "docs/build.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (built.returncode, built.stderr) == (0, ""), built.stdout
    assert "No issues found" in built.stdout

    pages, site = tmp_path / "build/docs", tmp_path / "build/site"
    there = {path.relative_to(pages).as_posix() for path in pages.rglob("*.md")}
    navigation = list(pages_in(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]))
    missing = {name for name in there if not name.startswith("source/")} - {*navigation}
    assert missing == set(), "give them a line in the nav of zensical.toml"
    assert len(navigation) == len(set(navigation)) == len(set(navigation) & there)

    assert list(broken(site)) == []
    assert list(foreign(site)) == []
    described = set().union(*(page(path).ids for path in (site / "reference").glob("*.html")))
    assert {
        name
        for name in interlock.__all__
        if not {f"interlock.{name}", f"interlock.errors.{name}"} & described
    } == (set()), "list them in docs/reference.md"
    assert {f"interlock.testing.{name}" for name in testing.__all__} <= described


def test_the_table_of_errors_says_what_they_are() -> None:
    """Every error, in the order of its module, with its code, status and whether to try again."""
    text = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\d+) \| (yes|no) \|$", text, re.MULTILINE)
    known = [
        (name, one.default_code, str(one.status), "yes" if one.retryable else "no")
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, errors.InterlockError)
    ]
    assert rows == known
