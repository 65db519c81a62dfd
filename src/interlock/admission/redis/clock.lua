-- Whose time it is: a logical clock that the server's only drives, and the epoch, which changes when what is
-- stored may not be all that was granted.
--
-- The clock adds what the server's `TIME` has gone on since the last call, but never more than half the shortest
-- lease at once, and only one such leap for each lease: a clock that is set forward by an hour takes nobody's
-- permit away, one that is set back adds nothing, one that flutters stays safe.
--
-- A new epoch begins when the state is gone or another server has it. Until the longest lease of the clients
-- has passed, every limit with a capacity is paused: whoever holds something says so (`hold` with `adopt`), and
-- who cannot be reached has counted it as lost by then.

local function server_ms(request)
  if TESTING and request.time then return request.time end
  local time = call("TIME")
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- the leases of those who are there

local function shortest_lease(lease_ms)
  local first = by_lease():first()
  return first and math.min(lease_ms, tonumber(first:sub(1, 16))) or lease_ms
end

local function longest_lease(lease_ms)
  for member in by_lease():each() do lease_ms = math.max(lease_ms, tonumber(member:sub(1, 16))) end
  return lease_ms
end

-- time

local function advance(meta, time_ms, lease_ms)
  local passed = math.max(0, time_ms - meta.time_ms)
  local most = math.floor(lease_ms / 2)
  meta.time_ms = time_ms
  if passed > most then
    if meta.jumped_ms and meta.now_ms - meta.jumped_ms < lease_ms then return end
    meta.now_ms = meta.now_ms + most
    meta.jumped_ms = meta.now_ms
  else
    meta.now_ms = meta.now_ms + passed
  end
end

-- epochs

local function pause_all(meta)
  for _, name in ipairs(store.list("L"):members()) do clock.hold_back(records.limit(name), meta.now_ms) end
end

-- Until when nobody may be let in over the limit: it may be held by somebody who could not say so yet.
function clock.quarantined_until(limit)
  local end_ms = records.meta().quarantine_ms
  if end_ms == 0 or limit.capacity == UNLIMITED or limit.removed then return 0 end
  return end_ms + math.max(limit.success_ms, limit.cancelled_ms, limit.failed_ms)
end

function clock.hold_back(limit, now_ms)
  kernel.pause(limit, clock.quarantined_until(limit), now_ms)
end

-- Fences go on from the clock, in microseconds: no grants come so fast that a later epoch finds the clock
-- behind them.
local function begin_epoch(meta, request, time_ms)
  if meta.epoch then store.list("@"):remove(meta.epoch) end
  meta.epoch = string.format("%s-%d-%s-%d", request.server, time_ms, request.client, request.number or 0)
  store.mark(meta.epoch)
  meta.server = request.server
  meta.fence = math.max(meta.fence, time_ms * 1000)
  meta.started_ms = meta.now_ms
  meta.quarantine_ms = request.allow and 0 or meta.now_ms + longest_lease(request.lease)
  pause_all(meta)
end

-- Somebody whose lease is longer than was known may hold his for as long.
local function bear_with(meta, request)
  if meta.now_ms >= meta.quarantine_ms then return end
  local end_ms = meta.started_ms + request.lease
  if end_ms > meta.quarantine_ms then
    meta.quarantine_ms = end_ms
    pause_all(meta)
  end
end

-- What is left of the quarantine; cooldowns come on top, limit by limit.
function clock.quarantine_left()
  local meta = records.meta()
  return math.max(0, meta.quarantine_ms - meta.now_ms)
end

-- Begins the call: which moment it is, by the logical clock.
function clock.start(request)
  local meta, time_ms = records.meta(), server_ms(request)
  if meta == nil or not store.marked(meta.epoch) then
    store.clear()
    meta = records.start()
    meta.now_ms, meta.time_ms = time_ms, time_ms
    begin_epoch(meta, request, time_ms)
  else
    advance(meta, time_ms, shortest_lease(request.lease))
    if meta.server ~= request.server then
      begin_epoch(meta, request, time_ms)
    else
      bear_with(meta, request)
    end
  end
  return meta.now_ms
end
