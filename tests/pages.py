"""The pages of the documentation, read as their readers do: blocks of code, and commands to type."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import CO_COROUTINE
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SHELL = {"sh", "bash", "shell", "console"}
SERVER = "http://127.0.0.1:7411"
"""Where a server listens unless told otherwise; in a block it stands for one that runs."""

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARKED = re.compile(r"(?:^<!-- not run: ([^\n]+) -->\n)?^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    number: int
    language: str
    body: str
    not_run: str
    """Why no test runs it, if none does: what ``<!-- not run: … -->`` says in the line above it."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}-{self.number}"

    def commands(self) -> list[list[str]]:
        """The commands that it tells its reader to type, in words.

        Of a shell: every line, with a prompt only those that have one. In a text: the lines that begin with
        ``interlock`` or ``curl``; two spaces end the command there, what follows says what it does.
        """
        lines = re.sub(r"\\\n\s*", "", self.body).splitlines()
        if self.language in SHELL:
            prompts = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
            typed = [shlex.split(line, comments=True) for line in prompts or lines]
        elif self.language == "text":
            ours = [line.removeprefix("$ ") for line in lines]
            ours = [line for line in ours if line.startswith(("interlock ", "curl "))]
            typed = [shlex.split(re.split(r"\s{2,}", line)[0]) for line in ours]
        else:
            typed = []
        return [command for words in typed for command in _split(words) if command]


def _split(words: list[str]) -> Iterator[list[str]]:
    """The commands of a line, without the files that they read and write."""
    command: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in ("|", "&&", ";"):
            yield command
            command = []
        elif re.fullmatch(r"[012]?(?:>>?|<)", word):
            next(rest)
        else:
            command.append(word)
    yield command


def blocks_of(page: Path) -> list[Block]:
    """All blocks of *page*, in their order."""
    found = _MARKED.findall(page.read_text(encoding="utf-8"))
    return [
        Block(page, number, language.strip(), body, not_run)
        for number, (not_run, language, body) in enumerate(found)
    ]


def blocks(page: Path, *languages: str) -> list[str]:
    """What stands in the blocks of *page* in any of *languages*."""
    return [block.body for block in blocks_of(page) if block.language in languages]


def without_blocks(page: Path) -> str:
    """The text of *page* between its blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


async def run_code(code: str, source: Path) -> dict[str, Any]:
    """Run *code* as ``python -m asyncio`` would; the names that it leaves behind."""
    compiled = compile(code, str(source), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, Any] = {"__name__": "__main__"}
    result = eval(compiled, names)
    if compiled.co_flags & CO_COROUTINE:
        await result
    return names
