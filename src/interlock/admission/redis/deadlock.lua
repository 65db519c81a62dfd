-- Circles in which everyone waits, and would for ever. See `interlock/core/deadlock.py`: the largest set of
-- waiters for which no release can ever bring back what they lack.

local function by_rank(one, other) return one.rank < other.rank end

deadlock.by_rank = by_rank

-- The permit, its parent, and so on, as far as they are still held.
function deadlock.ancestry(permit)
  return function()
    local this = permit
    if this then permit = records.parent_of(this) end
    return this
  end
end

-- Who holds each limit, those together that hold a share together, and how many units.
local function families()
  local found, shared = {}, {}
  for member in holding():each() do
    local permit = records.permit(member:sub(17))
    local claims = ledger.claims(permit.names)
    for _, name in ipairs(claims.order) do
      local share = permit.shares and permit.shares[name]
      local family = share and shared[share]
      if family == nil then
        family = {permits = {}, weight = share and records.share(share).weight or claims.weights[name]}
        if share then shared[share] = family end
        found[name] = found[name] or {}
        table.insert(found[name], family)
      end
      table.insert(family.permits, permit)
    end
  end
  return found
end

local Impasse = {}
Impasse.__index = Impasse

-- Works out, for those who are left, what they hold up.
function Impasse:look()
  self.below, self.kept = {}, {}
  for waiter in pairs(self.waiters) do
    for permit in deadlock.ancestry(records.parent_of(waiter)) do
      self.below[permit] = self.below[permit] or {}
      table.insert(self.below[permit], waiter)
    end
  end
  for name, of_limit in pairs(self.families) do
    local kept = 0
    for _, family in ipairs(of_limit) do
      for _, permit in ipairs(family.permits) do
        if self.below[permit] then
          kept = kept + family.weight
          break
        end
      end
    end
    self.kept[name] = kept
  end
end

-- The elders that reserve at a limit and wait in vain, with what they reserve.
function Impasse:reservations(limit)
  local found = {}
  for member in reservers(limit):each() do
    local weight = tonumber(member:sub(RANK_LENGTH + 1, RANK_LENGTH + 16))
    local head = records.waiter(records.lane(member:sub(RANK_LENGTH + 17)).head)
    if self.waiters[head] then
      -- Before its patience is over, an elder reserves only where it lacks.
      local coming = limit.capacity - (self.kept[limit.name] or 0)
      if head.passed >= PATIENCE or (coming < weight and weight <= limit.capacity) then
        found[#found + 1] = {waiter = head, weight = weight}
      end
    end
  end
  return found
end

-- Whether the waiter will never have so many units of the limit, though there are as many.
function Impasse:lacks(waiter, limit, weight)
  if limit.capacity < weight then return false end -- it waits for an operator
  local coming = limit.capacity - (self.kept[limit.name] or 0)
  for _, reserved in ipairs(self:reservations(limit)) do
    if reserved.waiter.rank < waiter.rank then coming = coming - reserved.weight end
  end
  return coming < weight
end

-- The first limit that the waiter lacks in vain.
function Impasse:lacking(waiter)
  local claims = ledger.claims(waiter.charged)
  for _, name in ipairs(claims.order) do
    if self:lacks(waiter, records.limit(name), claims.weights[name]) then return records.limit(name) end
  end
  return nil
end

-- The youngest of those who have to go on before what the waiter lacks of the limit can come back.
function Impasse:youngest_keeper(waiter, limit)
  local youngest = nil
  local function note(keeper)
    if youngest == nil or youngest.rank < keeper.rank then youngest = keeper end
  end
  for _, family in ipairs(self.families[limit.name] or {}) do
    for _, permit in ipairs(family.permits) do
      for _, below_it in ipairs(self.below[permit] or {}) do note(below_it) end
    end
  end
  for _, reserved in ipairs(self:reservations(limit)) do
    if reserved.waiter.rank < waiter.rank then note(reserved.waiter) end
  end
  return youngest
end

-- Those who wait below a permit, and the elders that reserve.
local function candidates()
  local found = {}
  for member in all_below():each() do found[records.waiter(after_rank(member))] = true end
  for member in all_reservers():each() do
    local lane = records.lane(member:sub(16 + RANK_LENGTH + 17))
    if lane.head then found[records.waiter(lane.head)] = true end
  end
  return found
end

local function impasse()
  local self = setmetatable({families = families(), waiters = candidates()}, Impasse)
  local settled = false
  while not settled do
    self:look()
    settled = true
    local vain = {}
    for waiter in pairs(self.waiters) do
      if self:lacking(waiter) then vain[waiter] = true else settled = false end
    end
    self.waiters = vain
  end
  return self
end

-- A circle among those who wait below a permit and the elders that reserve; empty if there is none. From the
-- oldest who waits in vain it goes on, each time, to the youngest of those who keep what is lacking.
function deadlock.find_circle()
  local found = impasse()
  local waiter = nil
  for one in pairs(found.waiters) do
    if waiter == nil or one.rank < waiter.rank then waiter = one end
  end
  local steps, at = {}, {}
  while waiter and at[waiter] == nil do
    local limit = found:lacking(waiter)
    steps[#steps + 1] = {waiter = waiter, limit = limit}
    at[waiter] = #steps
    waiter = found:youngest_keeper(waiter, limit)
  end
  local circle = {}
  for step = waiter and at[waiter] or 1, #steps do circle[#circle + 1] = steps[step] end
  return circle
end
