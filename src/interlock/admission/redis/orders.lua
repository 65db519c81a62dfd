-- The words that change limits, owners and gates, and those that read.

local function whole_or_nil(value, least)
  return value == nil or is_whole(value, least, UNLIMITED - 1)
end

local function cooldown(limit, what, otherwise)
  local seconds = limit[what]
  if seconds == nil then return otherwise end
  demand(is_number(seconds, 0, 86400), what .. " is not 0 to 86400 seconds")
  return milliseconds(seconds)
end

-- The limit of this name; nil once the refusal has been said.
local function known_limit(ask, name)
  demand(is_whole(ask, 0, 1e15) and is_text(name), "this says ask and the name of a limit")
  local limit = records.limit(name)
  if limit and not limit.removed then return limit end
  unknown_limit(ask, name)
  return nil
end

-- Makes or changes a limit; with `keep` it is left as it is if there is one already.
function HANDLERS.set_limit(caller, now_ms, ask, name, settings)
  demand(is_whole(ask, 0, 1e15) and is_text(name) and type(settings) == "table", "set_limit says ask, name, limit")
  demand(whole_or_nil(settings.capacity, 1), "the capacity is no whole number from 1")
  demand(whole_or_nil(settings.queue_max, 0), "queue_max is no whole number from 0")
  local before = settings.keep == true and records.limit(name)
  if before and not before.removed then return say("done", ask) end
  local success_ms = cooldown(settings, "cooldown", 0)
  local limit = kernel.configure(name, {
    capacity = settings.capacity,
    success_ms = success_ms,
    cancelled_ms = cooldown(settings, "cooldown_cancelled", success_ms),
    failed_ms = cooldown(settings, "cooldown_failed", success_ms),
    queue_max = settings.queue_max,
    gated = settings.gated == true,
  }, now_ms)
  limit.keeper = limit.gated and caller.client or nil
  clock.hold_back(limit, now_ms)
  say("done", ask)
end

function HANDLERS.remove_limit(_, now_ms, ask, name)
  local limit = known_limit(ask, name)
  if limit == nil then return end
  kernel.remove(limit, now_ms)
  say("done", ask)
end

-- Nobody is let in over the limit for so many seconds.
function HANDLERS.pause(_, now_ms, ask, name, seconds)
  local limit = known_limit(ask, name)
  if limit == nil then return end
  demand(is_number(seconds, 0, 1e9), "a pause says for how many seconds")
  kernel.pause(limit, now_ms + milliseconds(seconds), now_ms)
  say("done", ask)
end

-- Ends a pause; a quarantine is not ended by anybody.
function HANDLERS.resume(_, now_ms, ask, name)
  local limit = known_limit(ask, name)
  if limit == nil then return end
  local quarantined_ms = clock.quarantined_until(limit)
  if quarantined_ms <= now_ms then
    kernel.resume(limit, now_ms)
  elseif limit.pause and records.due_of(limit.pause) > quarantined_ms then
    ledger.cancel(limit.pause)
    limit.pause = ledger.arm(quarantined_ms, KIND.pause, limit.name)
  end
  say("done", ask)
end

function HANDLERS.admit(_, now_ms, ask, name, count, fresh)
  local limit = known_limit(ask, name)
  if limit == nil then return end
  demand(is_whole(count, -1e15, 1e15), "admit says how many units")
  demand(not fresh or is_number(fresh, 0, 1e9), "admit says for how many seconds it is fresh")
  kernel.admit(limit, count, now_ms, fresh and now_ms + milliseconds(fresh) or nil)
  say("done", ask)
end

function HANDLERS.revoke(_, now_ms, ask, id, fence)
  demand(is_whole(ask, 0, 1e15) and is_text(id) and is_whole(fence, 0, UNLIMITED), "revoke says ask, id, fence")
  local permit = records.permit(id)
  local found = permit ~= nil and ledger.owns(permit, fence)
  if found then kernel.revoke(permit, now_ms) end
  say("done", ask, found)
end

function HANDLERS.release_owner(_, now_ms, ask, owner)
  demand(is_whole(ask, 0, 1e15) and is_text(owner), "release_owner says ask and owner")
  local released = kernel.release_owner(owner, now_ms)
  words.carry_out(now_ms)
  for _, permit in ipairs(released) do clients.tell_ended(permit, "released") end
  say("done", ask, #released)
end

-- readings

function HANDLERS.view(_, now_ms, ask, whole, seen)
  demand(is_whole(ask, 0, 1e15) and is_whole(seen, -1, UNLIMITED), "view says ask, whole and seen")
  local version = records.meta().version
  local same = whole ~= true and version == seen
  say("view", ask, version, now_ms, not same and readings.view(whole == true) or false)
end

function HANDLERS.check(_, _, ask)
  demand(is_whole(ask, 0, 1e15), "check says ask")
  say("done", ask, readings.check())
end

function HANDLERS.state(_, _, ask)
  demand(TESTING, "unknown word state")
  say("done", ask, readings.state())
end

local ONLY_READ = {view = true, check = true, state = true}

-- Carries out what the client has said; false if it was nothing that changes anything.
function words.carry_on(caller, ops, now_ms)
  local changing = false
  for _, op in ipairs(ops) do
    demand(type(op) == "table" and HANDLERS[op[1]], "an operation begins with no known word")
    -- What is not said at the end is nil: a reader in Lua cannot tell an absent value from none.
    HANDLERS[op[1]](caller, now_ms, op[2], op[3], op[4], op[5], op[6], op[7], op[8])
    words.carry_out(now_ms)
    changing = changing or not ONLY_READ[op[1]]
  end
  return changing
end
