-- What a client may say and what it is answered: the words of `interlock/admission/wire.py`, and those that a
-- provider's gate needs. `docs/design/0004-redis.md` has the table.
--
-- A refusal is ["refused", ask, reason, details]; the client makes the error of it.

local LONGEST_TEXT, MOST_NAMES, LONGEST_LEASE_MS = 256, 64, 86400000
local DAY_US = 86400000000
local MOST_KNOWN = 100

local answers
local HANDLERS = {}

function words.open()
  answers = {}
end

local function say(...)
  answers[#answers + 1] = {...}
end

local function refuse(ask, reason, details)
  say("refused", ask, reason, details or {})
end

-- arguments

local function milliseconds(seconds)
  return math.floor(seconds * 1000 + 0.001)
end

local function is_text(value)
  return type(value) == "string" and #value > 0 and #value <= LONGEST_TEXT * 4
end

local function is_number(value, least, most)
  return type(value) == "number" and value >= least and value <= most
end

local function is_whole(value, least, most)
  return is_number(value, least, most) and value == math.floor(value)
end

local function are_names(value)
  if type(value) ~= "table" or #value == 0 or #value > MOST_NAMES then return false end
  for _, name in ipairs(value) do
    if not is_text(name) then return false end
  end
  return true
end

-- The call is refused as a whole: nothing of it was done.
local function demand(met, what)
  if not met then error({message = what}) end
end

-- refusals

local function unknown_limit(ask, name)
  local known = {}
  for _, one in ipairs(store.list("L"):members(nil, MOST_KNOWN)) do
    if not records.limit(one).removed then known[#known + 1] = one end
  end
  refuse(ask, "unknown_limit", {limit = name, known = known})
end

local function refuse_request(ask, refusal, asked_for, now_ms)
  local reason, details = refusal.reason, {}
  if reason == "would_block" then
    local rank = records.rank(asked_for.priority, now_ms, records.meta().arrivals + 1)
    details = {limit = refusal.limit, names = asked_for.claims.names,
      blocks = explain.blocks(asked_for.claims, rank)}
  elseif reason == "queue_full" then
    details = {limit = refusal.limit, queue_max = records.limit(refusal.limit).queue_max}
  elseif reason == "deadlock" then
    details = {circle = refusal.circle}
  end
  refuse(ask, reason, details)
end

-- Why a wait ended without a grant, in the terms of `interlock/admission/refusals.py`.
local function ending(reason, waiter, now_ms)
  local details = {names = waiter.names}
  if reason == "timed_out" then
    details.waited_ms = now_ms - waiter.arrived_ms
    details.blocks = explain.blocks(ledger.claims(waiter.charged), waiter.rank)
    return "timed_out", details
  end
  if reason == "deadlock" then return "deadlock", {circle = waiter.circle} end
  if waiter.lent_ended == "expired" or waiter.lent_ended == "revoked" then return "lost", details end
  if reason == "revoked" then return "revoked", {owner = waiter.owner} end
  if waiter.parent and not waiter.reclaims and not records.parent_of(waiter) then
    return "parent_ended", details
  end
  local removed = false
  for _, name in ipairs(waiter.charged) do
    local limit = records.limit(name)
    removed = removed or limit == nil or limit.removed ~= nil
  end
  if waiter.reclaims and not removed then return "released", details end
  return "limit_removed", details
end

-- effects

local function carry_out_ending(effect, again, now_ms)
  local waiter = effect.waiter
  local reason, details = ending(effect.reason, waiter, now_ms)
  for _, ask in ipairs(clients.forget_all(waiter)) do
    local outlived = effect.reason == "timed_out" and not waiter.reclaims
      and (ask.deadline_ms == nil or ask.deadline_ms > now_ms)
    if outlived then
      again[#again + 1] = {waiter = waiter, ask = ask}
    else
      clients.tell(ask.client, "refused", ask.number, reason, details)
    end
  end
  if waiter.ended_with then clients.tell_ended(waiter.ended_with, "released") end
end

local function carry_out_grant(waiter, permit)
  for _, ask in ipairs(clients.forget_all(waiter)) do
    if waiter.reclaims then
      clients.tell(ask.client, "done", ask.number, {permit.fence, permit.granted_ms})
    else
      clients.take(permit, ask.client)
      clients.tell(ask.client, "granted", ask.number, permit.id, permit.fence, permit.granted_ms)
    end
  end
end

-- Somebody joined one with the same key who was less patient: he goes on waiting at the same age.
local function ask_again(one, now_ms)
  local waiter, ask = one.waiter, one.ask
  if waiter.parent and not records.parent_of(waiter) then
    return clients.tell(ask.client, "refused", ask.number, "parent_released", {parent = waiter.parent})
  end
  local asked_for = {id = waiter.id, claims = ledger.claims(waiter.names), owner = waiter.owner,
    parent = records.parent_of(waiter), priority = records.priority_of(waiter.rank),
    since_ms = records.since_of(waiter.rank), deadline_ms = ask.deadline_ms, lease_ms = waiter.lease_ms,
    wait = true}
  local what, value = kernel.acquire(asked_for, now_ms)
  if what == "permit" then
    clients.take(value, ask.client)
    clients.tell(ask.client, "granted", ask.number, value.id, value.fence, value.granted_ms)
  elseif what == "waiter" then
    clients.ask(value, ask.client, ask.number, ask.deadline_ms)
  else
    clients.tell(ask.client, "refused", ask.number, value.reason, {limit = value.limit, circle = value.circle})
  end
end

-- Tells everybody concerned what has happened since the last time.
function words.carry_out(now_ms)
  if #queue.outbox == 0 then return end
  local again = {}
  while #queue.outbox > 0 do
    local outbox = queue.outbox
    queue.outbox = {}
    for _, effect in ipairs(outbox) do
      if effect.what == "granted" then
        carry_out_grant(effect.waiter, effect.permit)
      elseif effect.what == "gate" then
        if effect.limit.keeper then
          clients.tell(effect.limit.keeper, "gate", effect.limit.name, effect.recycled)
        end
      elseif effect.waiter then
        carry_out_ending(effect, again, now_ms)
      else
        clients.tell_ended(effect.permit, effect.reason)
      end
    end
    for _, one in ipairs(again) do ask_again(one, now_ms) end
    again = {}
  end
end

-- The timers that are not the kernel's.
function words.fall_due(kind, subject, due_ms)
  words.carry_out(due_ms)
  if kind == KIND.client then
    clients.fall_silent(subject, due_ms)
    return
  end
  local id, number = subject:sub(17), tonumber(subject:sub(1, 16))
  local waiter, at = clients.find(id, number)
  if waiter == nil then return end -- in this very moment it came to its end
  local reason, details = ending("timed_out", waiter, due_ms)
  clients.forget(waiter, at)
  clients.tell(id, "refused", number, reason, details)
  if #waiter.asks == 0 then kernel.withdraw(waiter, due_ms) end
end

-- asking

local function granted(ask, permit, client, now_ms)
  clients.take(permit, client)
  say("granted", ask, permit.fence, permit.granted_ms,
    math.max(0, (records.expires_ms(permit) or now_ms) - now_ms))
end

local function queued(ask, waiter)
  say("queued", ask, records.since_of(waiter.rank) / 1000)
end

local function wanted(caller, id, names, more, now_ms)
  local timeout, lease = more.timeout, more.lease
  local since_ms = more.since and milliseconds(more.since)
  if since_ms == nil and (more.age or 0) > 0 then since_ms = now_ms - milliseconds(more.age) end
  return {id = id, claims = ledger.claims(names), owner = more.owner, priority = more.priority or 0,
    since_ms = since_ms, deadline_ms = timeout and now_ms + milliseconds(timeout),
    lease_ms = lease and milliseconds(lease) or caller.lease, wait = timeout ~= 0}
end

local function check_more(more)
  demand(type(more) == "table", "more is no map")
  demand(more.owner == nil or is_text(more.owner), "the owner is no text of a fitting length")
  demand(more.parent == nil or is_text(more.parent), "the parent is no id")
  demand(more.priority == nil or is_whole(more.priority, -1e12, 1e12), "the priority is no whole number")
  demand(more.timeout == nil or is_number(more.timeout, 0, 1e11), "the timeout is no number of seconds")
  demand(more.since == nil or is_number(more.since, 0, 1e11), "since is no number of seconds")
  demand(more.age == nil or is_number(more.age, 0, 1e11), "the age is no number of seconds")
  demand(more.lease == nil or is_number(more.lease, 0.001, LONGEST_LEASE_MS / 1000),
    "the lease is no number of seconds up to a day")
end

function HANDLERS.acquire(caller, now_ms, ask, id, names, more)
  demand(is_whole(ask, 0, 1e15) and is_text(id) and are_names(names), "acquire says ask, id and names")
  check_more(more)
  local claims = ledger.claims(names)
  local unknown = ledger.unknown(claims)
  if unknown then return unknown_limit(ask, unknown) end
  local asked_for = wanted(caller, id, names, more, now_ms)
  if more.parent then
    asked_for.parent = records.permit(more.parent)
    if asked_for.parent == nil then return refuse(ask, "parent_released", {parent = more.parent}) end
  end
  local joined = records.waiter("=" .. id)
  local what, value = kernel.acquire(asked_for, now_ms)
  if what == "waiter" and joined and not asked_for.wait then
    what, value = "refused", {reason = "would_block", limit = joined.names[1]}
  end
  if what == "permit" then
    granted(ask, value, caller.client, now_ms)
  elseif what == "refused" then
    refuse_request(ask, value, asked_for, now_ms)
  elseif clients.find(caller.client, ask) then
    queued(ask, value)
  else
    demand(caller.number, "only a numbered request may wait")
    clients.ask(value, caller.client, ask, asked_for.deadline_ms)
    if records.waiting(value) then queued(ask, value) end
  end
end

local function withdraw(caller, now_ms, ask)
  local waiter, at = clients.find(caller.client, ask)
  if waiter == nil then return false end
  clients.forget(waiter, at)
  if #waiter.asks == 0 then
    kernel.withdraw(waiter, now_ms)
    if waiter.ended_with then clients.tell_ended(waiter.ended_with, "released", caller.client) end
  end
  return true
end

-- The request of this number is wanted no more, nor the permit that it may have got.
function HANDLERS.withdraw(caller, now_ms, ask, id)
  demand(is_whole(ask, 0, 1e15) and type(id) == "string", "withdraw says ask and id")
  if withdraw(caller, now_ms, ask) then return end
  local permit = id ~= "" and records.permit(id)
  if permit then clients.give_back(permit, caller.client, now_ms) end -- the grant was on its way
end

-- Of all that the client has asked for it wants only these; the rest is what an older copy of the state knew.
function HANDLERS.wants(caller, now_ms, asks)
  demand(type(asks) == "table", "wants says which asks")
  local wanted_still = {}
  for _, ask in ipairs(asks) do wanted_still[ask] = true end
  local known_asks = asked(caller.client):members()
  for at = #known_asks, 1, -1 do
    local ask = tonumber(known_asks[at]:sub(1, 16))
    if not wanted_still[ask] then withdraw(caller, now_ms, ask) end
  end
end

-- giving back and going on

local OUTCOMES = {success = true, cancelled = true, failed = true, unused = true}

function HANDLERS.release(caller, now_ms, id, fence, outcome)
  demand(is_text(id) and is_whole(fence, 0, UNLIMITED) and OUTCOMES[outcome], "release says id, fence, outcome")
  local permit = records.permit(id)
  if permit == nil or (fence ~= 0 and not ledger.owns(permit, fence)) then return end
  if outcome == "unused" then return clients.give_back(permit, caller.client, now_ms) end
  kernel.release(permit, outcome, now_ms)
  clients.tell_ended(permit, "released", caller.client)
end

function HANDLERS.touch(_, now_ms, id, fence)
  demand(is_text(id) and is_whole(fence, 0, UNLIMITED), "touch says id and fence")
  local permit = records.permit(id)
  if permit and permit.fence == fence then permit.touched_ms = now_ms end
end

-- A permit that was granted before this epoch, or in a copy of the state that had not reached this server.
local function adopt(id, fence, names, owner, parent, lease_ms, now_ms)
  local claims = ledger.claims(names)
  if fence > records.meta().fence + DAY_US or ledger.unknown(claims) then return end
  local waiter, asks = records.waiter("=" .. id), {}
  if waiter then -- here its grant got lost: it still waits for what it holds
    asks = clients.forget_all(waiter)
    kernel.withdraw(waiter, now_ms)
  end
  local what, permit = kernel.adopt({id = id, claims = claims, owner = owner,
    parent = parent and records.permit(parent), lease_ms = lease_ms}, fence, now_ms)
  for _, ask in ipairs(what == "permit" and asks or {}) do
    clients.take(permit, ask.client)
    clients.tell(ask.client, "granted", ask.number, id, permit.fence, permit.granted_ms)
  end
end

-- The client has this permit: it is so, or is counted again, or was lost meanwhile. Its lease begins anew.
function HANDLERS.hold(caller, now_ms, id, fence, names, owner, parent, lease, may_adopt)
  demand(is_text(id) and is_whole(fence, 1, UNLIMITED) and are_names(names), "hold says id, fence and names")
  demand(is_number(lease, 0.001, LONGEST_LEASE_MS / 1000), "the lease is no number of seconds up to a day")
  demand((not owner or is_text(owner)) and (not parent or is_text(parent)), "owner or parent is no text")
  local lease_ms = milliseconds(lease)
  if records.permit(id) == nil and may_adopt == true then
    adopt(id, fence, names, owner or nil, parent or nil, lease_ms, now_ms)
  end
  local permit = records.permit(id)
  if permit == nil or not ledger.owns(permit, fence) then return say("ended", id, fence, "expired") end
  clients.take(permit, caller.client)
  ledger.renew(permit, now_ms + lease_ms)
  say("held", id, permit.fence, records.expires_ms(permit) - now_ms)
end

-- lending

function HANDLERS.lend(_, now_ms, id, fence)
  demand(is_text(id) and is_whole(fence, 0, UNLIMITED), "lend says id and fence")
  local permit = records.permit(id)
  -- Should others share its units, it simply keeps them.
  if permit and ledger.owns(permit, fence) then kernel.lend(permit, now_ms) end
end

function HANDLERS.reclaim(caller, now_ms, ask, id, fence, timeout)
  demand(is_whole(ask, 0, 1e15) and is_text(id) and is_whole(fence, 0, UNLIMITED), "reclaim says ask, id, fence")
  demand(not timeout or is_number(timeout, 0, 1e11), "the timeout is no number of seconds")
  local permit = records.permit(id)
  if permit == nil or not ledger.owns(permit, fence) then return refuse(ask, "lost", {id = id}) end
  if permit.reclaiming then -- its client was away meanwhile, and asks once more
    local waiter = records.waiter("~" .. id)
    clients.forget_all(waiter)
    return clients.ask(waiter, caller.client, ask)
  end
  local unknown = permit.lent and ledger.unknown(ledger.claims(permit.names))
  if unknown then
    kernel.release(permit, "unused", now_ms)
    clients.tell_ended(permit, "released", caller.client)
    return unknown_limit(ask, unknown)
  end
  demand(caller.number, "only a numbered request may wait")
  local what, value = kernel.reclaim(permit, timeout and now_ms + milliseconds(timeout) or nil, now_ms)
  if what == "permit" then
    say("done", ask, {value.fence, value.granted_ms})
  elseif what == "waiter" then
    clients.ask(value, caller.client, ask)
  else
    refuse(ask, value.reason, {circle = value.circle})
    if permit.ended then clients.tell_ended(permit, "released", caller.client) end
  end
end

function words.handler(word)
  return HANDLERS[word]
end

function words.answers()
  return answers
end
