-- The one granter: who goes next, and who has to be let by first. See `interlock/core/granter.py`, whose four
-- ideas (bar, watch, reservers, patience) are these; the heaps are lists in the order of ranks.

local roomier, unplaced -- limits, by name; front waiters that are filed nowhere, as rank and lane

granter.keeps_more = false -- somebody keeps others from more than before: a circle may have closed

function granter.open()
  roomier, unplaced = {}, {}
  granter.keeps_more = false
end

function granter.pending()
  return next(roomier) ~= nil or #unplaced > 0
end

local function note_unplaced(lane)
  local entry = lane.head_rank .. lane.number
  table.insert(unplaced, place(unplaced, entry), entry)
end

-- what may be

-- Units that somebody of `rank` may take: free, less what older ones have reserved.
function granter.room(limit, rank)
  local room = limit.capacity - limit.used
  if limit.gated and limit.credits < room then room = limit.credits end
  if not limit.reserving or room <= 0 then return room end
  for reserver in reservers(limit):each(rank) do
    if room <= 0 then break end
    local weight = tonumber(reserver:sub(RANK_LENGTH + 1, RANK_LENGTH + 16))
    local lane = records.lane(reserver:sub(RANK_LENGTH + 17))
    if weight > room or records.waiter(lane.head).passed >= PATIENCE then room = room - weight end
  end
  return room
end

-- A limit that lacks room for `claims` at `rank`, `first` if it does; nil if it may go.
local function blocker(claims, rank, first)
  local lacking = nil
  for _, name in ipairs(claims.order) do
    local limit = records.limit(name)
    if (lacking == nil or limit == first) and granter.room(limit, rank) < claims.weights[name] then
      lacking = limit
    end
  end
  return lacking
end

-- The same for a newcomer: nobody at the gate and no fresh reading means that it is open.
function granter.walk_in_blocker(claims, rank)
  for _, name in ipairs(claims.order) do
    local limit, weight = records.limit(name), claims.weights[name]
    if limit.gated and limit.waiting == 0 and not limit.reading and not limit.pause then
      if ledger.free(limit) < weight then return limit end
    elseif limit.closed or limit.capacity < weight or granter.room(limit, rank) < weight then
      return limit
    end
  end
  return nil
end

-- A limit that is closed, or could never fit the claims: who waits for that stands aside.
local function shut(claims)
  for _, name in ipairs(claims.order) do
    local limit = records.limit(name)
    if limit.closed or limit.capacity < claims.weights[name] then return limit end
  end
  return nil
end

-- filing

local function reserve(limit, weight, lane)
  local entry = lane.head_rank .. digits(weight) .. lane.number
  reservers(limit):add(entry)
  all_reservers():add(limit.number .. entry)
  limit.reserving = (limit.reserving or 0) + 1
  granter.keeps_more = true
end

local function stand_in_line(lane)
  if lane.in_line then return end
  lane.in_line = true
  local patient, claims = records.waiter(lane.head).passed < PATIENCE, ledger.claims(lane.charged)
  for _, name in ipairs(claims.order) do
    local limit, weight = records.limit(name), claims.weights[name]
    if patient then line(limit):add(lane.head_rank .. lane.number) end
    if weight > 1 or not patient then reserve(limit, weight, lane) end
  end
end

local function stand_aside(lane, limit)
  lane.aside_at = limit.name
  aside(limit):add(lane.head_rank .. lane.number)
end

-- Unfiles the front waiter of a lane; what it had reserved is room again, unless it took it.
local function take_out(lane, granted)
  local entry = lane.head_rank .. lane.number
  if lane.aside_at then
    aside(records.limit(lane.aside_at)):remove(entry)
    lane.aside_at = nil
  end
  if lane.watching then
    watchers(records.limit(lane.watching)):remove(entry)
    lane.watching = nil
  end
  if not lane.in_line then return end
  lane.in_line = nil
  local patient, claims = records.waiter(lane.head).passed < PATIENCE, ledger.claims(lane.charged)
  for _, name in ipairs(claims.order) do
    local limit, weight = records.limit(name), claims.weights[name]
    if patient then line(limit):remove(entry) end
    if weight > 1 or not patient then
      local reserver = lane.head_rank .. digits(weight) .. lane.number
      reservers(limit):remove(reserver)
      all_reservers():remove(limit.number .. reserver)
      limit.reserving = limit.reserving > 1 and limit.reserving - 1 or nil
      if not granted then granter.roomier(limit) end
    end
  end
end

local function next_head(lane)
  local member = in_lane(lane):first()
  if member then
    lane.head, lane.head_rank = after_rank(member), member:sub(1, RANK_LENGTH)
    note_unplaced(lane)
  else
    lane.head = nil
    records.drop_lane(lane)
  end
end

-- what changed

-- A newcomer that may not go now takes its place in line.
function granter.enter(waiter)
  local claims, priority = ledger.claims(waiter.charged), records.priority_of(waiter.rank)
  local lane = records.lane_of(claims, priority) or records.make_lane(claims, priority)
  waiter.lane = lane.number
  for _, name in ipairs(claims.order) do
    local limit = records.limit(name)
    waiters(limit):add(waiter.rank .. waiter.ref)
    limit.waiting = limit.waiting + 1
  end
  everybody():add(waiter.rank .. waiter.ref)
  in_lane(lane):add(waiter.rank .. waiter.ref)
  if lane.head and lane.head_rank < waiter.rank then return end
  if lane.head then take_out(lane) end
  lane.head, lane.head_rank = waiter.ref, waiter.rank
  note_unplaced(lane)
end

local function stop_counting(waiter, claims)
  for _, name in ipairs(claims.order) do
    local limit = records.limit(name)
    waiters(limit):remove(waiter.rank .. waiter.ref)
    limit.waiting = limit.waiting - 1
  end
  everybody():remove(waiter.rank .. waiter.ref)
end

-- Somebody who waited does not any more, and was not granted: for that see `settle_one`.
function granter.leave(waiter)
  local claims, lane = ledger.claims(waiter.charged), records.lane(waiter.lane)
  stop_counting(waiter, claims)
  for _, name in ipairs(claims.order) do
    if records.limit(name).waiting == 0 then granter.reopen(records.limit(name)) end
  end
  local leads = lane.head == waiter.ref
  if leads then take_out(lane) end
  in_lane(lane):remove(waiter.rank .. waiter.ref)
  if leads then next_head(lane) end
end

-- Units of a limit came free, or somebody's reservation there went.
function granter.roomier(limit)
  if limit.waiting > 0 then roomier[limit.name] = true end
end

-- Every lane that stands at the limit: aside, or in line for it.
local function standing(limit, with_aside)
  local found, lanes = {}, {}
  local function note(number)
    if not found[number] then lanes[#lanes + 1] = records.lane(number) end
    found[number] = true
  end
  if with_aside then
    for member in aside(limit):each() do note(after_rank(member)) end
  end
  for member in line(limit):each() do note(after_rank(member)) end
  for member in reservers(limit):each() do note(member:sub(RANK_LENGTH + 17)) end
  return lanes
end

-- The pause, the gate, the capacity or the waiters of a limit changed: sort out who stands where.
function granter.reopen(limit)
  local closed = limit.pause ~= nil or (limit.gated and limit.credits <= 0)
  if closed and not limit.closed then
    limit.closed = true
    for _, lane in ipairs(limit.waiting > 0 and standing(limit) or {}) do
      take_out(lane)
      stand_aside(lane, limit)
    end
  elseif limit.closed and not closed then
    limit.closed = nil
    granter.reconsider(limit)
  end
end

-- Files everyone who claims the limit anew: whom it kept aside may compete, or the other way round.
function granter.reconsider(limit)
  if limit.waiting == 0 then return end
  for _, lane in ipairs(standing(limit, true)) do
    take_out(lane)
    note_unplaced(lane)
  end
end

-- Somebody of `rank` goes: older front waiters that share a limit with it are passed.
function granter.passing(claims, rank)
  local counted, impatient = {}, {}
  for _, name in ipairs(claims.order) do
    local limit = records.limit(name)
    for member in limit.waiting > 0 and line(limit):each(rank) or function() end do
      local lane = records.lane(after_rank(member))
      if not counted[lane] then
        counted[lane] = true
        local head = records.waiter(lane.head)
        head.passed = head.passed + 1
        if head.passed == PATIENCE then impatient[#impatient + 1] = lane end
      end
    end
  end
  for _, lane in ipairs(impatient) do
    local charged = ledger.claims(lane.charged)
    for _, name in ipairs(charged.order) do
      local limit, weight = records.limit(name), charged.weights[name]
      line(limit):remove(lane.head_rank .. lane.number)
      if weight == 1 then reserve(limit, weight, lane) end
    end
  end
end

-- the granter

local function unplaced_lane(entry)
  local lane = records.lane(after_rank(entry))
  local stands = lane == nil or lane.head == nil or lane.head_rank ~= entry:sub(1, RANK_LENGTH)
  return not stands and lane.watching == nil and lane.aside_at == nil and lane or nil
end

-- The oldest front waiter that might go now, taken out of where it was filed.
local function oldest()
  while #unplaced > 0 and unplaced_lane(unplaced[1]) == nil do table.remove(unplaced, 1) end
  local best, at = unplaced[1], nil
  for name in pairs(roomier) do
    local limit = records.limit(name)
    local first = limit and watchers(limit):first()
    if first == nil then
      roomier[name] = nil
    elseif best == nil or first < best then
      best, at = first, limit
    end
  end
  if best == nil then return nil end
  local lane = records.lane(after_rank(best))
  if at == nil then
    table.remove(unplaced, 1)
  else
    watchers(at):remove(best)
    lane.watching = nil
  end
  return lane, at
end

local function settle_one(lane, at, now_ms)
  local claims, rank = ledger.claims(lane.charged), lane.head_rank
  local closed = shut(claims)
  local lacking = closed == nil and blocker(claims, rank, at) or nil
  if closed then
    take_out(lane)
    stand_aside(lane, closed)
  elseif lacking then
    stand_in_line(lane)
    lane.watching = lacking.name
    watchers(lacking):add(rank .. lane.number)
    if lacking == at then roomier[lacking.name] = nil end
  else
    local head = records.waiter(lane.head)
    granter.passing(claims, rank)
    take_out(lane, true)
    in_lane(lane):remove(rank .. head.ref)
    stop_counting(head, claims)
    queue.grant_waiting(head, now_ms)
    for _, name in ipairs(claims.order) do
      if records.limit(name).waiting == 0 then granter.reopen(records.limit(name)) end
    end
    next_head(lane)
  end
end

-- Grants all that fits, oldest first, until nothing more does.
function granter.settle(now_ms)
  while granter.pending() do
    local lane, at = oldest()
    if lane then settle_one(lane, at, now_ms) end
  end
end
