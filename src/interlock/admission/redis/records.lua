-- The records that the kernel keeps, and how numbers become texts that sort as they do.
--
-- A record's fields are those of its layout; what is not there is nil, and no field is ever false. What else
-- is set on a record lasts for one call: `gone`, `granted`, `ended`, `circle` and the like.

local UNLIMITED = 9007199254740992 -- 2^53: beyond it a number is no longer exact
local PATIENCE = 16

local META = {
  "epoch", "server", "now_ms", "time_ms", "jumped_ms", "started_ms", "quarantine_ms", "version",
  "fence", "arrivals", "timers", "limits", "lanes", "shares", "births",
}
local LIMIT = {
  "name", "number", "capacity", "success_ms", "cancelled_ms", "failed_ms", "queue_max", "removed", "used",
  "cooling", "granted", "waiting", "reserving", "pause", "gated", "credits", "reading", "closed", "keeper",
}
local PERMIT = {
  "id", "born", "names", "fence", "granted_ms", "owner", "parent", "parent_born", "shares", "nested", "lease",
  "touched_ms", "asked", "serial", "lent", "reclaiming", "takers",
}
local WAITER = {
  "ref", "id", "names", "charged", "owner", "parent", "parent_born", "rank", "arrived_ms", "lease_ms", "timer",
  "reclaims", "passed", "lane", "asks",
}
local LANE = {"number", "charged", "priority", "head", "head_rank", "in_line", "watching", "aside_at"}
local LANE_OF = {"number"}
local SHARE = {"weight", "members"}
local CLIENT = {"id", "number", "lease_ms", "seen_ms", "inbox", "heard", "timer"}
local KIND = {hold = 0, lease = 1, pause = 2, reading = 3, deadline = 4, client = 5, ask = 6}

local RANK_LENGTH = 49
local OFFSET = 1e15

-- texts

local function digits(number)
  return string.format("%016d", number)
end

-- Who goes first: priority, then since, then arrival; who went straight in came before all arrivals.
function records.rank(priority, since_ms, arrival)
  return digits(priority + OFFSET) .. digits(since_ms + OFFSET) .. "1" .. digits(arrival)
end

function records.rank_straight_in(priority, since_ms, fence)
  return digits(priority + OFFSET) .. digits(since_ms + OFFSET) .. "0" .. digits(fence)
end

function records.rank_of(permit)
  return permit.asked or records.rank_straight_in(0, permit.granted_ms, permit.fence)
end

function records.priority_of(rank)
  return tonumber(rank:sub(1, 16)) - OFFSET
end

function records.since_of(rank)
  return tonumber(rank:sub(17, 32)) - OFFSET
end

function records.due_of(timer)
  return timer and tonumber(timer:sub(1, 16))
end

function records.expires_ms(permit)
  return records.due_of(permit.lease)
end

-- Names as the bytes that they are: the order of texts is the server's locale's.
local function bytewise(one, other)
  if one == other then return false end
  for at = 1, math.min(#one, #other) do
    local mine, theirs = one:byte(at), other:byte(at)
    if mine ~= theirs then return mine < theirs end
  end
  return #one < #other
end

records.bytewise = bytewise

-- records by what they are called

function records.meta()
  return store.load("@", META)
end

function records.start()
  return store.put("@", META, {version = 0, fence = 0, arrivals = 0, timers = 0, limits = 0, lanes = 0,
    shares = 0, births = 0})
end

-- The next of a running number: "arrivals", "timers" and so on.
function records.next(what)
  local meta = records.meta()
  meta[what] = meta[what] + 1
  return meta[what]
end

function records.limit(name)
  return store.load("l" .. name, LIMIT)
end

function records.permit(id)
  return store.load("p" .. id, PERMIT)
end

-- `reference` is "=" and the key under which somebody asked, or "~" and the lent permit to be had back.
function records.waiter(reference)
  return store.load("w" .. reference, WAITER)
end

function records.lane(number)
  return store.load("n" .. number, LANE)
end

function records.share(number)
  return store.load("s" .. number, SHARE)
end

function records.client(id)
  return store.load("c" .. id, CLIENT)
end

-- The lane of those who wait for these claims at this priority, if anybody does.
local function lane_field(claims, priority)
  return "k" .. digits(priority + OFFSET) .. claims.key
end

function records.lane_of(claims, priority)
  local found = store.load(lane_field(claims, priority), LANE_OF)
  return found and records.lane(found.number)
end

function records.make_limit(name)
  local number = digits(records.next("limits"))
  store.list("L"):add(name)
  return store.put("l" .. name, LIMIT, {name = name, number = number, capacity = UNLIMITED, success_ms = 0,
    cancelled_ms = 0, failed_ms = 0, used = 0, cooling = 0, granted = 0, waiting = 0, credits = 0})
end

function records.drop_limit(limit)
  store.list("L"):remove(limit.name)
  store.drop("l" .. limit.name)
end

function records.make_permit(permit)
  permit.born = records.next("births")
  return store.put("p" .. permit.id, PERMIT, permit)
end

function records.drop_permit(permit)
  store.drop("p" .. permit.id)
end

function records.make_waiter(waiter)
  waiter.passed = 0
  return store.put("w" .. waiter.ref, WAITER, waiter)
end

function records.drop_waiter(waiter)
  store.drop("w" .. waiter.ref)
end

function records.make_lane(claims, priority)
  local number = digits(records.next("lanes"))
  store.put(lane_field(claims, priority), LANE_OF, {number = number})
  return store.put("n" .. number, LANE, {number = number, charged = claims.names, priority = priority})
end

function records.drop_lane(lane)
  store.load(lane_field(ledger.claims(lane.charged), lane.priority), LANE_OF)
  store.drop(lane_field(ledger.claims(lane.charged), lane.priority))
  store.drop("n" .. lane.number)
end

function records.make_share(weight)
  local number = digits(records.next("shares"))
  store.put("s" .. number, SHARE, {weight = weight, members = 0})
  return number
end

function records.drop_share(number)
  store.drop("s" .. number)
end

function records.make_client(client)
  return store.put("c" .. client.id, CLIENT, client)
end

function records.drop_client(id)
  store.drop("c" .. id)
end

-- Which layout a field has, for `store.expect`.
local LAYOUTS = {l = LIMIT, p = PERMIT, w = WAITER, n = LANE, k = LANE_OF, s = SHARE, c = CLIENT}
LAYOUTS["@"] = META

function records.layout_of(field)
  return LAYOUTS[field:sub(1, 1)]
end

-- The record under a field, whichever kind it is.
function records.any(field)
  return store.load(field, records.layout_of(field))
end

-- The parent of a permit or a waiter, as long as it is that very permit, and held. Who waits to have lent
-- units back has the parent of the lent permit: its holder, too, goes on only after this one.
function records.parent_of(one)
  local parent = one.parent and records.permit(one.parent)
  if parent and parent.born == one.parent_born then return parent end
  return nil
end

function records.waiting(waiter)
  return not (waiter.gone or waiter.granted)
end

-- lists by what is in them; R: rank first, so that they are in order

local function line(limit) return store.list("l" .. limit.number) end -- R lanes: patient, in line
local function reservers(limit) return store.list("r" .. limit.number) end -- R weight, lane
local function watchers(limit) return store.list("o" .. limit.number) end -- R lanes that it blocks
local function aside(limit) return store.list("a" .. limit.number) end -- R lanes that it keeps out
local function waiters(limit) return store.list("w" .. limit.number) end -- R all who claim it
local function below(limit) return store.list("b" .. limit.number) end -- R those who ask below a permit
local function all_below() return store.list("B") end -- R the same at any limit
local function all_reservers() return store.list("R") end -- limit, then as `reservers`
local function everybody() return store.list("W") end -- R all waiters
local function in_lane(lane) return store.list("q" .. lane.number) end -- R waiters
local function timers() return store.list("t") end -- due, kind, serial, subject
local function holding() return store.list("f") end -- fence, permit
local function members(share) return store.list("m" .. share) end -- permits that hold it together
local function nested(permit) return store.list("d" .. digits(permit.born)) end -- R waiters below it
local function owned(owner) return store.list("s" .. cmsgpack.pack(owner)) end -- p permit, w waiter
local function asked(client) return store.list("k" .. cmsgpack.pack(client)) end -- ask, waiter
local function inbox(client) return store.list("i" .. cmsgpack.pack(client)) end -- number, what to say
local function by_lease() return store.list("z") end -- lease, client

local function after_rank(member)
  return member:sub(RANK_LENGTH + 1)
end
