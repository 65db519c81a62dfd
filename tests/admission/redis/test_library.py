"""The library as a text: how it is put together, how long its parts are, and what it is called."""

from __future__ import annotations

import re
from pathlib import Path

import interlock.admission.redis.library as library
from interlock.admission.redis.library import PARTS, build, source

HERE = Path(library.__file__).parent
MOST_LINES, MOST_LINES_OF_A_FUNCTION, LONGEST_LINE = 450, 70, 120
MOST_LOCALS = 200
"""Of one Lua function; the library is one."""


def test_every_part_is_in_the_library() -> None:
    """A file that is not listed would not be loaded."""
    assert {path.stem for path in HERE.glob("*.lua")} == set(PARTS)
    assert all((HERE / f"{part}.lua").read_text() in source() for part in PARTS)


def test_parts_are_short_enough_to_be_read() -> None:
    """The bounds of the house, for Lua, and a sentence at the head of each file."""
    for path in HERE.glob("*.lua"):
        lines = path.read_text().splitlines()
        assert lines[0].startswith("-- "), path.name
        assert len(lines) <= MOST_LINES, path.name
        assert max(map(len, lines)) <= LONGEST_LINE, path.name
        starts = [at for at, line in enumerate(lines) if re.match(r"(local )?function ", line)]
        ends = [at for at, line in enumerate(lines) if line == "end"]
        for start in starts:
            length = next(end for end in ends if end > start) - start + 1
            assert length <= MOST_LINES_OF_A_FUNCTION, f"{path.name}:{start + 1}"


def test_there_is_room_for_more_names() -> None:
    """Lua has room for so many names at the top of one text."""
    assert len(re.findall(r"(?m)^local ", source())) < MOST_LOCALS - 50


def test_the_name_says_which_text_it_is() -> None:
    """Another text, or one for tests, is another library; the same is the same."""
    names = {build("a").name, build("a", testing=True).name, build("b").name, build("a").name}
    assert len(names) == 3
    one = build(source())
    assert one.text.startswith(f"#!lua name={one.name}\n")
    assert "local TESTING = false\n" in one.text
