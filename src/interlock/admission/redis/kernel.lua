-- Every change to who holds what: the operations of `interlock/core/kernel.py`, in its order, with its results.
--
-- An operation either changes everything that it says or refuses and changes nothing. A request is answered
-- with "permit", "waiter" or "refused", and the thing itself.

local function refused(reason, limit, circle)
  return "refused", {reason = reason, limit = limit, circle = circle}
end

-- limits

local function forget_reading(limit)
  ledger.cancel(limit.reading)
  limit.reading = nil
  limit.credits = 0
end

-- Makes a limit, or changes it. Lowering evicts nobody (R3); raising lets in what fits.
function kernel.configure(name, settings, now_ms)
  local limit = records.limit(name) or records.make_limit(name)
  local before = limit.capacity
  limit.capacity = settings.capacity or UNLIMITED
  limit.credits = math.max(0, limit.credits - math.max(0, before - limit.capacity))
  limit.success_ms, limit.cancelled_ms = settings.success_ms, settings.cancelled_ms
  limit.failed_ms, limit.queue_max = settings.failed_ms, settings.queue_max
  limit.removed = nil
  if limit.gated and not settings.gated then forget_reading(limit) end
  limit.gated = settings.gated or nil
  granter.reopen(limit)
  granter.reconsider(limit)
  granter.keeps_more = true
  queue.roomier(limit)
  queue.settle(now_ms)
  return limit
end

-- Forgets a limit: who waits for it is dropped, who holds it stays counted until it is given back.
function kernel.remove(limit, now_ms)
  limit.removed = true
  for _, member in ipairs(waiters(limit):members()) do
    local waiter = records.waiter(after_rank(member))
    if waiter then queue.end_wait(waiter, "dropped") end
  end
  forget_reading(limit)
  limit.gated = nil
  ledger.cancel(limit.pause)
  limit.pause = nil
  granter.reopen(limit)
  queue.settle(now_ms)
  queue.forget_if_idle(limit)
end

-- Admits nobody over the limit before `until_ms`. A pause only ever grows.
function kernel.pause(limit, until_ms, now_ms)
  if until_ms <= math.max(now_ms, records.due_of(limit.pause) or 0) then return end
  ledger.cancel(limit.pause)
  limit.pause = ledger.arm(until_ms, KIND.pause, limit.name)
  granter.reopen(limit)
  queue.settle(now_ms)
end

function kernel.resume(limit, now_ms)
  ledger.cancel(limit.pause)
  limit.pause = nil
  granter.reopen(limit)
  if limit.gated then queue.note_gate(limit, true) end
  queue.settle(now_ms)
end

-- Lets `count` units past the gate (R14). Until `fresh_until_ms` newcomers, too, need what is left of them.
function kernel.admit(limit, count, now_ms, fresh_until_ms)
  if not limit.gated then return end
  forget_reading(limit)
  limit.credits = math.max(0, count)
  if fresh_until_ms then limit.reading = ledger.arm(fresh_until_ms, KIND.reading, limit.name) end
  granter.reopen(limit)
  granter.roomier(limit)
  queue.settle(now_ms)
end

-- permits

-- A key that is live: the same request gets the same thing, another one is a conflict (R9).
local function known_as(what, known, asked)
  local same = ledger.claims(known.names).key == asked.claims.key and known.owner == asked.owner
  if not same then return refused("conflict") end
  if what == "permit" and known.lent then return refused("lent") end
  return what, known
end

local function known(asked)
  local permit = records.permit(asked.id)
  if permit then return known_as("permit", permit, asked) end
  local waiter = records.waiter("=" .. asked.id)
  if waiter then return known_as("waiter", waiter, asked) end
  return nil
end

-- A waiter, in line; or what became of it in the same step.
local function wait(waiter, deadline_ms, now_ms, always)
  queue.wait(waiter, deadline_ms)
  if always or granter.pending() or queue.gates_pending() or granter.keeps_more then
    queue.settle(now_ms, waiter)
  end
  if waiter.circle then return refused("deadlock", nil, waiter.circle) end
  return "waiter", waiter
end

local function straight_in(asked, since_ms, now_ms)
  local permit = ledger.grant(asked, asked.claims, now_ms)
  if asked.priority ~= 0 or since_ms ~= now_ms then
    permit.asked = records.rank_straight_in(asked.priority, since_ms, permit.fence)
  end
  return "permit", permit
end

-- One permit over all claims at once, or a place in line, or a refusal that changes nothing. `asked` has id,
-- claims, owner, parent, priority, since_ms, deadline_ms, lease_ms, wait.
function kernel.acquire(asked, now_ms)
  local what, value = known(asked)
  if what then return what, value end
  local since_ms, charged = math.min(asked.since_ms or now_ms, now_ms), asked.claims
  if asked.parent == nil then
    if ledger.all_open(charged) then return straight_in(asked, since_ms, now_ms) end
  else
    charged = ledger.uncovered(asked.claims, asked.parent)
  end
  local rank = records.rank(asked.priority, since_ms, records.next("arrivals"))
  local blocking = queue.blocker(charged, rank)
  if blocking == nil then
    granter.passing(charged, rank)
    local permit = ledger.grant(asked, charged, now_ms)
    permit.asked = rank
    queue.settle(now_ms)
    return "permit", permit
  end
  if not asked.wait then return refused("would_block", blocking.name) end
  for _, name in ipairs(charged.order) do
    local limit = records.limit(name)
    if limit.queue_max and limit.waiting >= limit.queue_max then return refused("queue_full", name) end
  end
  local parent = asked.parent
  return wait({ref = "=" .. asked.id, id = asked.id, names = asked.claims.names, charged = charged.names,
    owner = asked.owner, parent = parent and parent.id, parent_born = parent and parent.born, rank = rank,
    arrived_ms = now_ms, lease_ms = asked.lease_ms}, asked.deadline_ms, now_ms)
end

-- Counts a permit that was granted elsewhere: there is room or not, it is held. It keeps its fence.
function kernel.adopt(asked, fence, now_ms)
  local what, value = known(asked)
  if what == "permit" and value.fence == fence then return what, value end
  if what then return refused("conflict") end
  local charged = asked.parent and ledger.uncovered(asked.claims, asked.parent) or asked.claims
  local permit = ledger.grant(asked, charged, now_ms, fence)
  records.meta().fence = math.max(records.meta().fence, fence)
  granter.keeps_more = true
  queue.settle(now_ms)
  return "permit", permit
end

-- lending

-- Gives back the units of a permit for a while; it stays live. Nil, or why it cannot be done.
function kernel.lend(permit, now_ms)
  if permit.lent then return "lent" end
  if permit.nested then return "family" end
  local weights = ledger.claims(permit.names).weights
  for name, number in pairs(permit.shares or {}) do
    local share = records.share(number)
    if share.members > 1 or share.weight ~= weights[name] then return "family" end
  end
  ledger.hide(permit)
  local freed = ledger.put_back(permit, "success", now_ms)
  permit.shares = nil
  permit.lent = true
  for _, limit in ipairs(freed) do queue.came_free(limit) end
  queue.settle(now_ms)
  return nil
end

-- Takes the units of a lent permit again, as old as it is. Should the wait for them end without a grant, the
-- permit ends as well: nobody works without units.
function kernel.reclaim(permit, deadline_ms, now_ms)
  if permit.reclaiming then return refused("conflict") end
  if not permit.lent then return "permit", permit end
  local rank, claims = records.rank_of(permit), ledger.claims(permit.names)
  if queue.blocker(claims, rank) == nil then
    granter.passing(claims, rank)
    queue.retake(permit, claims, rank, now_ms)
    queue.settle(now_ms)
    return "permit", permit
  end
  permit.reclaiming = true
  return wait({ref = "~" .. permit.id, names = claims.names, charged = claims.names, owner = permit.owner,
    parent = permit.parent, parent_born = permit.parent_born, rank = rank, arrived_ms = now_ms,
    reclaims = permit.id}, deadline_ms, now_ms, true)
end

-- giving back

function kernel.release(permit, outcome, now_ms)
  queue.finish(permit, "released", outcome, now_ms)
  if granter.pending() or queue.gates_pending() then queue.settle(now_ms) end
end

-- Takes a permit back from a holder that shows no sign of life; it cools as after a failure.
function kernel.revoke(permit, now_ms)
  queue.finish(permit, "revoked", "failed", now_ms)
  table.insert(queue.outbox, {what = "ended", reason = "revoked", permit = permit})
  queue.settle(now_ms)
end

-- Ends all that an owner holds or waits for (R11); the permits that it held.
function kernel.release_owner(owner, now_ms)
  local permits, waiting = {}, {}
  for member in owned(owner):each() do
    if member:sub(1, 1) == "p" then
      permits[#permits + 1] = records.permit(member:sub(2))
    else
      waiting[#waiting + 1] = records.waiter(member:sub(2))
    end
  end
  table.sort(permits, function(one, other) return one.fence < other.fence end)
  table.sort(waiting, deadlock.by_rank)
  for _, waiter in ipairs(waiting) do
    if records.waiting(waiter) then queue.end_wait(waiter, "revoked") end
  end
  for _, permit in ipairs(permits) do
    -- Else it went with its own wait to have its units back.
    if not permit.ended then queue.finish(permit, "released", "success", now_ms) end
  end
  queue.settle(now_ms)
  return permits
end

-- Stops waiting, without a trace (R16).
function kernel.withdraw(waiter, now_ms)
  queue.stop_waiting(waiter)
  queue.settle(now_ms)
end

-- time

local FALLS_DUE = {
  [KIND.hold] = function(subject)
    queue.came_free(ledger.cool_down(subject))
  end,
  [KIND.lease] = function(subject, due_ms)
    local permit = records.permit(subject)
    permit.lease = nil
    queue.finish(permit, "expired", "failed", due_ms)
    table.insert(queue.outbox, {what = "ended", reason = "expired", permit = permit})
  end,
  [KIND.pause] = function(subject)
    local limit = records.limit(subject)
    limit.pause = nil
    granter.reopen(limit)
    if limit.gated then queue.note_gate(limit, true) end
  end,
  [KIND.reading] = function(subject)
    local limit = records.limit(subject)
    limit.reading = nil
    limit.credits = 0
    granter.reopen(limit)
    if limit.gated then queue.note_gate(limit, false) end
  end,
  [KIND.deadline] = function(subject)
    local waiter = records.waiter(subject)
    waiter.timer = nil
    queue.end_wait(waiter, "timed_out")
  end,
}

-- Lets everything happen that is due, in its order. `others` sees to the timers that are not the kernel's.
function kernel.tick(now_ms, others)
  while true do
    local timer = timers():first()
    local due_ms = records.due_of(timer)
    if due_ms == nil or due_ms > now_ms then return end
    timers():remove(timer)
    local kind, subject = tonumber(timer:sub(17, 17)), timer:sub(34)
    if FALLS_DUE[kind] then
      FALLS_DUE[kind](subject, due_ms)
      queue.settle(due_ms)
    else
      others(kind, subject, due_ms)
    end
  end
end
