"""`interlock prune`: what is old goes, and nothing while somebody has the store open."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from interlock.core.sessions import Session
from interlock.errors import SessionNotFound
from interlock.stores import open_store
from processes import serve
from shells import Shell

DAY = 86_400.0
CONFIG = 'store = "sqlite:///interlock.db"\n'


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INTERLOCK_STORE", raising=False)
    (tmp_path / "interlock.toml").write_text(CONFIG, encoding="utf-8")
    return tmp_path


async def test_what_is_old_is_removed(home: Path, shell: Shell) -> None:
    """Sessions that ended long ago, unless they are pinned; others stay."""
    now = time.time()
    store = await open_store("sqlite:///interlock.db")
    old, new = now - 91 * DAY, now - 89 * DAY
    for session_id, at, tags in (("old", old, ()), ("pinned", old, ("pinned",)), ("new", new, ())):
        session = Session(session_id, "completed", agent_id="a", tags=tags, created_at=at, updated_at=at)
        await store.create_session(session)
    await store.aclose()
    printed = await shell.says("prune")
    assert printed == "sqlite:///interlock.db: 1 sessions hidden, 0 removed, 0 events removed\n"
    assert json.loads(await shell.says("prune", "--config", "interlock.toml", "--json")) == {
        "hiddenSessions": 0,
        "removedSessions": 0,
        "removedEvents": 0,
    }
    (home / "short.toml").write_text(f'{CONFIG}[retention]\ncompleted_age = "88d"\n', encoding="utf-8")
    assert "1 sessions hidden" in await shell.says("prune", "--config", "short.toml")
    store = await open_store("sqlite:///interlock.db")
    try:
        with pytest.raises(SessionNotFound):
            await store.get_session("old")
        assert [one.id for one in await store.list_sessions()] == ["pinned"]
    finally:
        await store.aclose()


async def test_an_open_store_is_refused(home: Path, shell: Shell) -> None:
    """In one line that names who has it."""
    async with serve(home, CONFIG) as server:
        line = await shell.refuses(1, "prune")
        assert str(server.process.pid) in line
        assert "interlock.db" in line


async def test_nothing_is_made_to_be_pruned(home: Path, shell: Shell) -> None:
    line = await shell.refuses(1, "prune")
    assert (
        line == "interlock: interlock.db does not exist; run this where the server runs, or with its --config"
    )
    (home / "memory.toml").write_text('store = "memory:"\n', encoding="utf-8")
    assert "store is memory:" in await shell.refuses(2, "prune", "--config", "memory.toml")
    assert "nope.toml" in await shell.refuses(2, "prune", "--config", "nope.toml")
    assert sorted(path.name for path in home.iterdir()) == ["interlock.toml", "memory.toml"]
