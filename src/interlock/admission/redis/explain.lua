-- Why something waits, worked out from the state. See `interlock/core/explain.py`.

local MOST_LOOKED_AT = 1000
local MOST_NAMED = 3

-- Why so many units are not to be had at `rank`, and how many are missing; nil: they are.
function explain.obstacle(limit, weight, rank)
  if limit.capacity < weight then return "never_fits", weight - limit.capacity end
  if limit.pause then return "paused", 0 end
  if ledger.free(limit) < weight then return "full", weight - ledger.free(limit) end
  if limit.gated and limit.credits < weight then return "gate", weight - limit.credits end
  local room = granter.room(limit, rank)
  if room < weight then return "reserved", weight - room end
  return nil
end

-- The first few who hold the limit, by owner or else by id; of the oldest thousand permits.
local function named_holders(limit)
  local found = {}
  for _, member in ipairs(holding():members(nil, MOST_LOOKED_AT)) do
    if #found == MOST_NAMED then break end
    local permit = records.permit(member:sub(17))
    if ledger.claims(permit.names).weights[limit.name] then found[#found + 1] = permit.owner or permit.id end
  end
  return found
end

local function block(limit, why, missing, ahead)
  return {limit.name, why, missing, limit.used, limit.capacity < UNLIMITED and limit.capacity or false,
    records.due_of(limit.pause) or false, ahead, named_holders(limit)}
end

-- Everything that keeps `claims` at `rank` out right now: limit, why, missing, used, capacity, paused until,
-- how many go first, who holds it.
function explain.blocks(claims, rank)
  local found = {}
  for _, name in ipairs(claims.order) do
    local limit = records.limit(name)
    local why, missing = explain.obstacle(limit, claims.weights[name], rank)
    if why then found[#found + 1] = block(limit, why, missing, waiters(limit):count(rank)) end
  end
  if #found == 0 and #claims.order > 0 then
    local limit, elders = records.limit(claims.order[1]), 0
    for _, member in ipairs(waiters(limit):members(rank, MOST_LOOKED_AT)) do
      local charged = records.waiter(after_rank(member)).charged
      if ledger.claims(charged).key == claims.key then elders = elders + 1 end
    end
    if elders > 0 then found[1] = block(limit, "behind", 0, elders) end
  end
  return found
end
