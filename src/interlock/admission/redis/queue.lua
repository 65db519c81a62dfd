-- Who waits, and how a wait ends: by a grant, by itself, or because it would never end. See
-- `interlock/core/queue.py`.

local gates -- gated limits where somebody may have to be asked: their names, and whether room appeared

function queue.open()
  gates = {}
  queue.outbox = {}
end

local function tell(effect)
  table.insert(queue.outbox, effect)
end

local function note_gate(limit, recycled)
  if gates[limit.name] == nil then
    gates[limit.name] = false
    gates[#gates + 1] = limit.name
  end
  if recycled then gates[limit.name] = true end
end

queue.note_gate = note_gate

function queue.gates_pending()
  return #gates > 0
end

-- What keeps somebody out who asks for `charged` at `rank` now; nil if nothing does.
function queue.blocker(charged, rank)
  local contended = #charged.order > 0
  for _, name in ipairs(charged.order) do
    contended = contended and records.limit(name).waiting > 0
  end
  local lane = contended and records.lane_of(charged, records.priority_of(rank)) or nil
  if lane and lane.head_rank < rank then
    -- Others with the same claims go first: what keeps them out keeps this one out.
    return records.limit(lane.watching or lane.aside_at or charged.order[1])
  end
  return granter.walk_in_blocker(charged, rank)
end

-- The last credit shuts the gate.
function queue.spend(limit, weight)
  limit.credits = math.max(0, limit.credits - weight)
  granter.reopen(limit)
end

function queue.retake(permit, claims, rank, now_ms)
  ledger.retake(permit, claims, now_ms)
  permit.asked = rank
  permit.reclaiming = nil
  granter.keeps_more = true -- what was asked for below it meanwhile may wait for these very units
end

-- Takes a waiter out of all lists but those of the granter.
local function unlist(waiter)
  if waiter.owner then owned(waiter.owner):remove("w" .. waiter.ref) end
  local parent = records.parent_of(waiter)
  if parent and not waiter.reclaims then
    nested(parent):remove(waiter.rank .. waiter.ref)
    parent.nested = parent.nested > 1 and parent.nested - 1 or nil
  end
  if waiter.parent then
    for _, name in ipairs(ledger.claims(waiter.charged).order) do
      below(records.limit(name)):remove(waiter.rank .. waiter.ref)
    end
    all_below():remove(waiter.rank .. waiter.ref)
  end
  ledger.cancel(waiter.timer)
end

function queue.grant_waiting(waiter, now_ms)
  local permit
  local charged = ledger.claims(waiter.charged)
  if waiter.reclaims then
    permit = records.permit(waiter.reclaims)
    unlist(waiter)
    queue.retake(permit, charged, waiter.rank, now_ms)
  else
    local asked = {id = waiter.id, claims = ledger.claims(waiter.names), owner = waiter.owner,
      parent = records.parent_of(waiter), lease_ms = waiter.lease_ms}
    unlist(waiter)
    permit = ledger.grant(asked, charged, now_ms)
    permit.asked = waiter.rank
  end
  waiter.granted = permit
  records.drop_waiter(waiter)
  tell({what = "granted", waiter = waiter, permit = permit})
end

function queue.wait(waiter, deadline_ms)
  records.make_waiter(waiter)
  if waiter.owner then owned(waiter.owner):add("w" .. waiter.ref) end
  local parent = records.parent_of(waiter)
  if parent and not waiter.reclaims then
    nested(parent):add(waiter.rank .. waiter.ref)
    parent.nested = (parent.nested or 0) + 1
  end
  if waiter.parent then queue.wait_below(waiter) end
  if deadline_ms then waiter.timer = ledger.arm(deadline_ms, KIND.deadline, waiter.ref) end
  granter.enter(waiter)
  for _, name in ipairs(ledger.claims(waiter.charged).order) do
    local limit = records.limit(name)
    if limit.gated then note_gate(limit, false) end
  end
end

-- Whether somebody who waits below a permit waits for a limit at which an elder reserves.
local function below_reservers()
  local number = nil
  for member in all_reservers():each() do
    if member:sub(1, 16) ~= number then
      number = member:sub(1, 16)
      if store.list("b" .. number):first() then return true end
    end
  end
  return false
end

-- Notes that somebody holds up a permit; where it could close a circle, has that looked at.
function queue.wait_below(waiter)
  for _, name in ipairs(ledger.claims(waiter.charged).order) do
    below(records.limit(name)):add(waiter.rank .. waiter.ref)
  end
  all_below():add(waiter.rank .. waiter.ref)
  for permit in deadlock.ancestry(records.parent_of(waiter)) do
    for _, name in ipairs(permit.lent and {} or ledger.claims(permit.names).order) do
      if below(records.limit(name)):first() then
        granter.keeps_more = true
        return
      end
    end
  end
  if below_reservers() then granter.keeps_more = true end
end

function queue.came_free(limit)
  if limit.waiting > 0 then
    queue.roomier(limit)
  elseif limit.removed then
    queue.forget_if_idle(limit)
  end
end

function queue.roomier(limit)
  granter.roomier(limit)
  if limit.gated then note_gate(limit, true) end
end

function queue.forget_if_idle(limit)
  if limit.removed and limit.used == 0 then records.drop_limit(limit) end
end

-- Ends a permit, and with it what only made sense under it.
function queue.finish(permit, how, outcome, now_ms)
  local inner = permit.nested and nested(permit):members() or {}
  for _, limit in ipairs(ledger.let_go(permit, how, outcome, now_ms)) do queue.came_free(limit) end
  if permit.reclaiming then
    local waiter = records.waiter("~" .. permit.id)
    waiter.lent_ended = how
    queue.end_wait(waiter, "dropped")
  end
  for _, member in ipairs(inner) do
    nested(permit):remove(member) -- the waiter does not find its parent any more
    queue.end_wait(records.waiter(after_rank(member)), "dropped")
  end
end

function queue.stop_waiting(waiter)
  waiter.gone = true
  local lent = waiter.reclaims and records.permit(waiter.reclaims)
  unlist(waiter)
  granter.leave(waiter)
  records.drop_waiter(waiter)
  if lent then
    lent.reclaiming = nil
    queue.finish(lent, "released", "unused", waiter.arrived_ms) -- it holds no units: when is all the same
    waiter.ended_with = lent
  end
end

function queue.end_wait(waiter, reason)
  tell({what = "ended", reason = reason, waiter = waiter})
  queue.stop_waiting(waiter)
end

-- How others know somebody who waits: by the permit below which it asked.
local function holder_above(waiter)
  local under = records.parent_of(waiter)
  if under then return under.owner or under.id end
  return waiter.owner or waiter.id or waiter.reclaims
end

-- Ends the youngest of a circle of those who hold each other up; false if there is none.
local function break_circle(arriving)
  local circle = deadlock.find_circle()
  local victim, at = nil, nil
  for number, step in ipairs(circle) do
    if records.parent_of(step.waiter) and (victim == nil or victim.rank < step.waiter.rank) then
      victim, at = step.waiter, number
    end
  end
  if victim == nil then return false end
  victim.circle = {}
  for step = 0, #circle - 1 do
    local one = circle[(at - 1 + step) % #circle + 1]
    victim.circle[step + 1] = {holder_above(one.waiter), one.limit.name}
  end
  if victim == arriving then
    queue.stop_waiting(victim) -- the answer to its request says so
  else
    queue.end_wait(victim, "deadlock")
  end
  return true
end

function queue.settle(now_ms, arriving)
  granter.settle(now_ms)
  while granter.keeps_more do
    granter.keeps_more = false
    if all_below():first() and break_circle(arriving) then
      granter.keeps_more = true
      granter.settle(now_ms)
    end
  end
  for _, name in ipairs(gates) do
    local limit, recycled = records.limit(name), gates[name]
    local held_back = limit and limit.gated and limit.closed and not limit.pause
    if held_back and limit.waiting > 0 and ledger.free(limit) > 0 then
      tell({what = "gate", limit = limit, recycled = recycled})
    end
  end
  gates = {}
end
