"""Lists in pages, in one way everywhere."""

from __future__ import annotations

import asyncio

from gateways import until
from served_tokens import door


async def test_lists_in_pages() -> None:
    """``next`` of one page is ``after`` of the next, also when the last one who was shown has gone."""
    async with door() as server:
        for n in range(7):
            await server.token("read", name=f"t{n}")
        admin = await server.token("admin", name="z")
        seen: list[str] = []
        after = ""
        while True:
            page = (await server.ask("GET", f"/tokens?limit=3{after}", admin)).json
            seen += [one["name"] for one in page["tokens"]]
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
        assert seen == [*(f"t{n}" for n in range(7)), "z"]

        await server.ask("PUT", "/limits/tools", admin, {"capacity": 1})
        await server.ask("POST", "/permits", admin, {"limits": ["tools"]})
        waiting = []
        for n in range(5):
            body = {"limits": ["tools"], "key": f"w:{n}", "timeoutMs": 60_000, "priority": n // 2 - 1}
            waiting.append(asyncio.create_task(server.ask("POST", "/permits", admin, body)))
            await until(lambda n=n: len(server.gate.admission.waiting()) == n + 1)  # type: ignore[misc]
            await server.clock.advance(0.001)
        first = (await server.ask("GET", "/waiting?limit=2", admin)).json
        assert [one["id"] for one in first["waiting"]] == ["w:0", "w:1"]
        assert (await server.ask("DELETE", "/waiting/w:1", admin)).status == 200
        second = (await server.ask("GET", f"/waiting?limit=2&after={first['next']}", admin)).json
        assert [one["id"] for one in second["waiting"]] == ["w:2", "w:3"]
        last = (await server.ask("GET", f"/waiting?after={second['next']}", admin)).json
        assert ([one["id"] for one in last["waiting"]], last["next"]) == (["w:4"], None)
        for n in (0, 2, 3, 4):
            await server.ask("DELETE", f"/waiting/w:{n}", admin)
        assert {one.status for one in await asyncio.gather(*waiting)} == {409}
        bad = await server.ask("GET", "/waiting?after=w", admin)
        assert (bad.status, "after is 'w'" in bad.json["detail"]) == (400, True)
