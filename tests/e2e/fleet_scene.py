"""Histories of a fleet that never was, for the tests of the program that reads them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

CHECKER = Path(__file__).with_name("fleet_checker.py")
LIMITS = {"a": {"capacity": 2, "cooldown": 0.0}, "cool": {"capacity": 1, "cooldown": 0.1}}
LEASE = 1.0
TINY = 0.000001


class Scene:
    """What clients, the upstream and the storm wrote down."""

    def __init__(self) -> None:
        self.lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.fence = 0
        self.add("storm", 0.0, "fleet", lease=LEASE, limits=LIMITS)

    def add(self, by: str, at: float, what: str, **more: Any) -> None:
        self.lines[by].append({"what": what, "at": at, **more})

    def ask(self, by: str, ask: str, at: float, queued: float | None = None, **more: Any) -> None:
        said = {"limits": ["a"], "key": None, "owner": None, "priority": 0, "timeout": 60.0, **more}
        self.add(by, at, "ask", ask=ask, **said)
        if queued is not None:
            self.add(by, queued, "queued", ask=ask)

    def end(self, by: str, ask: str, at: float, what: str, **more: Any) -> None:
        self.add(by, at, what, ask=ask, **more)

    def grant(self, by: str, ask: str, at: float, fence: int = 0, permit: str = "") -> None:
        """And the upstream lets it in a little later."""
        self.fence = fence = fence or self.fence + 1
        permit = permit or f"permit {ask}"
        self.add(by, at, "granted", ask=ask, permit=permit, fence=fence, live=True)
        self.add("upstream", at + 0.01, "began", ask=ask, client=by, permit=permit, fence=fence)

    def hold(self, by: str, ask: str, *moments: float) -> None:
        for at in moments:
            self.add(by, at, "held", ask=ask)

    def leave(self, ask: str, at: float, cut: bool = False) -> None:
        self.add("upstream", at, "left", ask=ask, cut=cut)

    def release(self, by: str, ask: str, at: float, answer: bool = True, left: bool = True) -> None:
        if left:
            self.leave(ask, at - TINY)
        self.add(by, at, "releasing", ask=ask)
        self.add(by, at + TINY, "released", ask=ask, answer=answer)

    def work(
        self, by: str, ask: str, at: float, until: float, asked: float | None = None, **more: Any
    ) -> None:
        """All of it, from the grant *at* to the release."""
        queued = None if asked is None else asked + 0.01
        self.ask(by, ask, at - 0.001 if asked is None else asked, queued, **more)
        self.grant(by, ask, at)
        self.hold(by, ask, at + 0.01, until - 2 * TINY)
        self.release(by, ask, until)

    def disturb(self, who: str, kind: str, start: float, end: float) -> None:
        self.add("storm", start, "disturbed", who=who, kind=kind)
        self.add("storm", end, "calm", who=who, kind=kind)

    def kill(self, who: str, at: float) -> None:
        self.add("storm", at, "killing", who=who)


def judged(scene: Scene, directory: Path) -> tuple[set[str], str]:
    """The rules that the checker finds broken, and all that it says."""
    for by, lines in scene.lines.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (directory / f"{by}.jsonl").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-E", "-s", "-S", CHECKER, directory],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    rules = {line.split(":")[0] for line in done.stdout.splitlines() if not line.startswith(" ")}
    assert (done.returncode == 0) == ("grants" in rules)
    return (set() if done.returncode == 0 else rules), done.stdout + done.stderr
