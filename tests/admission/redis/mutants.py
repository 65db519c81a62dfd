"""Libraries that are broken on purpose, each in one place, and each like a bug that somebody has had."""

from __future__ import annotations

from interlock.admission.redis.library import Library, build, source

MUTANTS: dict[str, tuple[str, str]] = {
    "one more than fits": (
        "if limit.used + claims.weights[name] > open_capacity(limit) then",
        "if limit.used + claims.weights[name] > open_capacity(limit) + 1 then",
    ),
    "a newcomer passes those who wait": (
        "if limit.waiting > 0 or limit.pause or limit.gated or limit.removed then return -1 end",
        "if limit.pause or limit.gated or limit.removed then return -1 end",
    ),
    "a newcomer passes a pause": (
        "if limit.waiting > 0 or limit.pause or limit.gated or limit.removed then return -1 end",
        "if limit.waiting > 0 or limit.gated or limit.removed then return -1 end",
    ),
    "what cools is free at once": ("if cooldown_ms > 0 then", "if cooldown_ms < 0 then"),
    "a cooling unit never comes back": (
        "  limit.used = limit.used - weight\n  limit.cooling",
        "  limit.cooling",
    ),
    "a stale fence releases": (
        "return (permit.serial or permit.fence) <= fence and fence <= permit.fence",
        "return fence <= permit.fence",
    ),
    "the key of somebody else is the same permit": (
        "local same = ledger.claims(known.names).key == asked.claims.key and known.owner == asked.owner",
        "local same = ledger.claims(known.names).key == asked.claims.key",
    ),
    "the first of a family frees what all hold": ("  if share.members > 0 then return nil end\n", ""),
    "nobody runs out of patience": ("if head.passed == PATIENCE then", "if head.passed > PATIENCE then"),
    "reservations bind nobody": (
        "if weight > room or records.waiter(lane.head).passed >= PATIENCE then room = room - weight end",
        "if room < 0 then room = room - weight end",
    ),
    "the youngest of the lanes goes first": (
        "elseif best == nil or first < best then",
        "elseif best == nil or first > best then",
    ),
    "room wakes nobody": ("  if limit.waiting > 0 then roomier[limit.name] = true end\n", ""),
    "one that gave up keeps its place": (
        "  in_lane(lane):remove(waiter.rank .. waiter.ref)\n  if leads",
        "  if leads",
    ),
    "a pause can be cut short": (
        "if until_ms <= math.max(now_ms, records.due_of(limit.pause) or 0) then return end",
        "if until_ms <= now_ms then return end",
    ),
    "a credit is good for ever": ("  limit.credits = math.max(0, limit.credits - weight)\n", ""),
    "since in the future": (
        "math.min(asked.since_ms or now_ms, now_ms), asked.claims",
        "asked.since_ms or now_ms, asked.claims",
    ),
    "a dead owner inherits from itself": (
        '    if records.waiting(waiter) then queue.end_wait(waiter, "revoked") end\n',
        "",
    ),
    "circles are not looked for": (
        "      if below(records.limit(name)):first() then\n        granter.keeps_more = true",
        "      if below(records.limit(name)):first() then\n        granter.keeps_more = false",
    ),
    "a renewal cuts a lease short": (
        "  if current_ms ~= nil and current_ms >= end_ms then return end\n",
        "",
    ),
    "an adopted fence is given again": (
        "  records.meta().fence = math.max(records.meta().fence, fence)\n",
        "",
    ),
    "the clock leaps with the server's": ("  if passed > most then", "  if passed < 0 then"),
    "the clock leaps at every flutter": (
        "    if meta.jumped_ms and meta.now_ms - meta.jumped_ms < lease_ms then return end\n",
        "",
    ),
    "another server is not noticed": ("if meta.server ~= request.server then", "if false then"),
    "a new epoch lets in at once": (
        "request.allow and 0 or meta.now_ms + longest_lease(request.lease)",
        "0",
    ),
    "a limit made in a quarantine is open": ("  clock.hold_back(limit, now_ms)\n", ""),
    "what was told once is told no more": (
        "client.heard = math.max(client.heard, request.seen)",
        "client.heard = client.inbox",
    ),
    "an overtaken request is carried out": (
        "  elseif request.number <= client.number then\n    return known, false\n",
        "",
    ),
    "one gives back what two have": (
        "if #(permit.takers or {}) == 0 then kernel.release",
        "if permit then kernel.release",
    ),
    "the dead wait on": (
        "if #waiter.asks == 0 and not waiter.reclaims then kernel.withdraw(waiter, now_ms) end",
        "if waiter.reclaims then kernel.withdraw(waiter, now_ms) end",
    ),
    "the last of an owner is forgotten": (
        'if permit.owner then owned(permit.owner):remove("p" .. permit.id) end',
        "",
    ),
}

ONLY_IN = {"the dead wait on": ("slow",)}
"""Where a fault is to be looked for, if most walks never come near it."""


def mutant(name: str) -> Library:
    """The library with this fault."""
    right, wrong = MUTANTS[name]
    text = source()
    assert text.count(right) == 1, f"{name!r} is in the library {text.count(right)} times"
    return build(text.replace(right, wrong), testing=True)
