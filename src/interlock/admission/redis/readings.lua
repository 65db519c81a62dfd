-- Readings of the state. A view is what `interlock/admission/view.py` shows; positions follow from its order.

local MOST_SHOWN = 1000

local function read_limit(limit)
  return {name = limit.name, capacity = limit.capacity < UNLIMITED and limit.capacity or false,
    used = limit.used, cooling = limit.cooling, waiting = limit.waiting,
    paused_until = records.due_of(limit.pause) or false, gated = limit.gated == true}
end

local function read_waiter(waiter, seen_claims)
  local claims, obstacles = ledger.claims(waiter.charged), {}
  for _, name in ipairs(claims.order) do
    local why, missing = explain.obstacle(records.limit(name), claims.weights[name], waiter.rank)
    if why then obstacles[#obstacles + 1] = {name, why, missing} end
  end
  if #obstacles == 0 and seen_claims[claims.key] then obstacles[1] = {claims.order[1], "behind", 0} end
  seen_claims[claims.key] = true
  return {id = waiter.id or waiter.reclaims, reclaims = waiter.reclaims ~= nil, owner = waiter.owner or false,
    limits = waiter.names, charged = waiter.charged, priority = records.priority_of(waiter.rank),
    since = records.since_of(waiter.rank), arrived = waiter.arrived_ms,
    deadline = records.due_of(waiter.timer) or false, obstacles = obstacles}
end

local function read_permit(permit)
  return {id = permit.id, owner = permit.owner or false, limits = permit.names, fence = permit.fence,
    granted = permit.granted_ms, touched = permit.touched_ms or false}
end

-- Reads in one go the records whose names begin with `kind` and end as the members do from `start` on.
local function foresee_members(members_of, kind, start)
  local fields = {}
  for _, member in ipairs(members_of) do fields[kind .. member:sub(start)] = true end
  store.expect(fields, records.layout_of)
end

-- All limits, and the first of those who wait and of those who hold; everybody if `whole`. Times are
-- logical milliseconds.
function readings.view(whole)
  local most = not whole and MOST_SHOWN + 1 or nil
  local view = {limits = {}, places = {}, held = {}, whole = true}
  local names = store.list("L"):members()
  local waiting, held = everybody():members(nil, most), holding():members(nil, most)
  foresee_members(names, "l", 1)
  foresee_members(waiting, "w", RANK_LENGTH + 1)
  foresee_members(held, "p", 17)
  for _, name in ipairs(names) do
    local limit = records.limit(name)
    if not limit.removed then view.limits[#view.limits + 1] = read_limit(limit) end
  end
  local seen_claims = {}
  for at, member in ipairs(waiting) do
    if at == most then view.whole = false; break end
    view.places[at] = read_waiter(records.waiter(after_rank(member)), seen_claims)
  end
  for at, member in ipairs(held) do
    if at == most then view.whole = false; break end
    view.held[at] = read_permit(records.permit(member:sub(17)))
  end
  return view
end

-- what is kept, record by record

-- Every record by its kind.
local function all()
  local found = {l = {}, p = {}, w = {}, n = {}, k = {}, s = {}, c = {}, ["@"] = {}}
  for _, field in ipairs(store.fields()) do
    local kind = field:sub(1, 1)
    table.insert(found[kind], records.any(field))
  end
  return found
end

-- The lists as they follow from the records, but for units that cool and inboxes, which are nowhere else.
local function derived_lists(found)
  local expected, reserving = {}, {}
  local function expect(prefix, member)
    expected[prefix .. member] = true
  end
  local function expect_timer(timer)
    if timer then expect("t", timer) end
  end
  for _, limit in ipairs(found.l) do
    expect("L", limit.name)
    expect_timer(limit.pause)
    expect_timer(limit.reading)
  end
  for _, permit in ipairs(found.p) do
    if not permit.lent then expect("f", digits(permit.fence) .. permit.id) end
    if permit.owner then expect("s" .. cmsgpack.pack(permit.owner), "p" .. permit.id) end
    for _, share in pairs(permit.shares or {}) do expect("m" .. share, permit.id) end
    expect_timer(permit.lease)
  end
  for _, waiter in ipairs(found.w) do
    local entry, parent = waiter.rank .. waiter.ref, records.parent_of(waiter)
    expect("W", entry)
    expect("q" .. waiter.lane, entry)
    if waiter.owner then expect("s" .. cmsgpack.pack(waiter.owner), "w" .. waiter.ref) end
    if parent and not waiter.reclaims then expect("d" .. digits(parent.born), entry) end
    if waiter.parent then expect("B", entry) end
    for _, name in ipairs(ledger.claims(waiter.charged).order) do
      expect("w" .. records.limit(name).number, entry)
      if waiter.parent then expect("b" .. records.limit(name).number, entry) end
    end
    for _, ask in ipairs(waiter.asks or {}) do
      expect("k" .. cmsgpack.pack(ask.client), digits(ask.number) .. waiter.ref)
      expect_timer(ask.timer)
    end
    expect_timer(waiter.timer)
  end
  for _, lane in ipairs(found.n) do readings.expect_lane(lane, expect, reserving) end
  for _, client in ipairs(found.c) do
    expect_timer(client.timer)
    expect("z", digits(client.lease_ms) .. client.id)
  end
  expect("@", records.meta().epoch)
  return expected, reserving
end

-- Where the front waiter of a lane is filed.
function readings.expect_lane(lane, expect, reserving)
  local entry, claims = lane.head_rank .. lane.number, ledger.claims(lane.charged)
  if lane.aside_at then expect("a" .. records.limit(lane.aside_at).number, entry) end
  if lane.watching then expect("o" .. records.limit(lane.watching).number, entry) end
  local patient = records.waiter(lane.head).passed < PATIENCE
  for _, name in ipairs(lane.in_line and claims.order or {}) do
    local limit, weight = records.limit(name), claims.weights[name]
    local reserver = lane.head_rank .. digits(weight) .. lane.number
    if patient then expect("l" .. limit.number, entry) end
    if weight > 1 or not patient then
      expect("r" .. limit.number, reserver)
      expect("R", limit.number .. reserver)
      reserving[name] = (reserving[name] or 0) + 1
    end
  end
end

-- What permits and shares hold of each limit, and how many wait for it.
local function count_up(found)
  local used, waiting, counted = {}, {}, {}
  for _, permit in ipairs(found.p) do
    local claims = ledger.claims(permit.names)
    for _, name in ipairs(permit.lent and {} or claims.order) do
      local share = permit.shares and permit.shares[name]
      if not share then
        used[name] = (used[name] or 0) + claims.weights[name]
      elseif not counted[share] then
        counted[share] = true
        used[name] = (used[name] or 0) + records.share(share).weight
      end
    end
  end
  for _, waiter in ipairs(found.w) do
    for _, name in ipairs(ledger.claims(waiter.charged).order) do waiting[name] = (waiting[name] or 0) + 1 end
  end
  return used, waiting
end

local function shown(member)
  return (member:gsub("[^%w%p ]", "?"))
end

-- What is wrong with the books, a sentence each. It reads all of them.
function readings.check()
  local found, problems, cooling = all(), {}, {}
  local used, waiting = count_up(found)
  local expected, reserving = derived_lists(found)
  for member in pairs(store.members()) do
    if member:sub(1, 1) == "t" and member:sub(18, 18) == tostring(KIND.hold) then
      local name = member:sub(51)
      cooling[name] = (cooling[name] or 0) + tonumber(member:sub(35, 50))
    elseif expected[member] then
      expected[member] = nil
    elseif member:sub(1, 1) ~= "i" then
      problems[#problems + 1] = "nothing belongs to the entry " .. shown(member)
    end
  end
  for member in pairs(expected) do problems[#problems + 1] = "the entry is missing: " .. shown(member) end
  for _, limit in ipairs(found.l) do
    local taken = (used[limit.name] or 0) + (cooling[limit.name] or 0)
    if limit.used ~= taken or limit.cooling ~= (cooling[limit.name] or 0) then
      problems[#problems + 1] = string.format("of %s %d units are taken, %d are counted", limit.name, taken, limit.used)
    end
    if limit.waiting ~= (waiting[limit.name] or 0) or limit.reserving ~= reserving[limit.name] then
      problems[#problems + 1] = string.format("for %s wait %d and reserve %d, %d and %d are counted", limit.name,
        waiting[limit.name] or 0, reserving[limit.name] or 0, limit.waiting, limit.reserving or 0)
    end
  end
  return problems
end

-- Everything that the kernel in Python knows as well, for a comparison.
function readings.state()
  local found, state = all(), {limits = {}, permits = {}, waiters = {}, clients = {}}
  for _, limit in ipairs(found.l) do
    state.limits[limit.name] = {limit.capacity, limit.used, limit.cooling, limit.waiting, limit.credits,
      limit.granted, limit.closed == true, limit.gated == true, limit.removed == true,
      records.due_of(limit.pause) or false, records.due_of(limit.reading) or false}
  end
  for _, permit in ipairs(found.p) do
    state.permits[permit.id] = {permit.fence, permit.serial or false, permit.names, permit.owner or false,
      permit.granted_ms, records.expires_ms(permit) or false, permit.lent == true,
      permit.touched_ms or false, permit.takers or {}}
  end
  for _, waiter in ipairs(found.w) do
    local lane = records.lane(waiter.lane)
    state.waiters[waiter.ref] = {waiter.names, waiter.charged, waiter.owner or false, waiter.arrived_ms,
      records.due_of(waiter.timer) or false, lane.head == waiter.ref and waiter.passed or false,
      lane.watching or false, lane.aside_at or false}
  end
  for _, client in ipairs(found.c) do state.clients[client.id] = client.inbox end
  state.order = {}
  for at, member in ipairs(everybody():members()) do state.order[at] = after_rank(member) end
  local meta = records.meta()
  state.fence, state.arrivals = meta.fence, meta.arrivals
  return state
end
