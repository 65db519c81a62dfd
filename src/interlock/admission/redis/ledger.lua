-- Who holds what: permits, owners, families and units that cool. See `interlock/core/ledger.py`.
--
-- Sets of holders are the truth. What a limit's record counts (`used`, `cooling`, `waiting`) is written in the
-- same step as the sets that it counts, and `readings.check` holds the two together.

local memo = {}

function ledger.open()
  memo = {}
end

-- What `names` ask for, in any order; a name given twice takes two units. Equal claims have the same key.
function ledger.claims(names)
  local given = #names == 1 and "1" .. names[1] or "n" .. cmsgpack.pack(names)
  local claims = memo[given]
  if claims ~= nil then return claims end
  local sorted, weights, order = {}, {}, {}
  for at, name in ipairs(names) do sorted[at] = name end
  table.sort(sorted, records.bytewise)
  for _, name in ipairs(sorted) do
    if weights[name] == nil then order[#order + 1] = name end
    weights[name] = (weights[name] or 0) + 1
  end
  claims = {names = sorted, order = order, weights = weights, key = cmsgpack.pack(sorted)}
  memo[given] = claims
  return claims
end

-- The first of the claimed limits that nobody made, or that was removed and only counts on.
function ledger.unknown(claims)
  for _, name in ipairs(claims.order) do
    local limit = records.limit(name)
    if limit == nil or limit.removed then return name end
  end
  return nil
end

function ledger.free(limit)
  return limit.capacity - limit.used
end

-- The capacity while the short way is open: nobody waits, no pause, no gate; else less than nothing.
local function open_capacity(limit)
  if limit.waiting > 0 or limit.pause or limit.gated or limit.removed then return -1 end
  return limit.capacity
end

function ledger.all_open(claims)
  for _, name in ipairs(claims.order) do
    local limit = records.limit(name)
    if limit.used + claims.weights[name] > open_capacity(limit) then return false end
  end
  return true
end

-- timers

function ledger.arm(due_ms, kind, subject)
  local timer = digits(due_ms) .. kind .. digits(records.next("timers")) .. subject
  timers():add(timer)
  return timer
end

function ledger.cancel(timer)
  if timer then timers():remove(timer) end
end

-- beginning

local function charge(claims)
  for _, name in ipairs(claims.order) do
    local limit, weight = records.limit(name), claims.weights[name]
    limit.used = limit.used + weight
    limit.granted = limit.granted + weight
    if limit.gated then queue.spend(limit, weight) end
  end
end

-- Holds together with `parent` what that one holds already.
local function join(permit, claims, charged, parent)
  local held = ledger.claims(parent.names)
  for _, name in ipairs(claims.order) do
    if charged.weights[name] == nil then
      parent.shares = parent.shares or {}
      local share = parent.shares[name]
      if share == nil then
        share = records.make_share(held.weights[name])
        records.share(share).members = 1
        members(share):add(parent.id)
        parent.shares[name] = share
      end
      records.share(share).members = records.share(share).members + 1
      members(share):add(permit.id)
      permit.shares = permit.shares or {}
      permit.shares[name] = share
    end
  end
end

-- Those who hold units, by fence; a lent permit holds none.
function ledger.show(permit)
  holding():add(digits(permit.fence) .. permit.id)
end

function ledger.hide(permit)
  holding():remove(digits(permit.fence) .. permit.id)
end

-- A new permit over `asked.claims`, of which `charged` is not held by the parent already; there is room.
function ledger.grant(asked, charged, now_ms, fence)
  fence = fence or records.next("fence")
  local permit = records.make_permit({id = asked.id, names = asked.claims.names, fence = fence,
    granted_ms = now_ms, owner = asked.owner})
  charge(charged)
  ledger.show(permit)
  local parent = asked.parent
  if parent then
    permit.parent, permit.parent_born = parent.id, parent.born
    join(permit, asked.claims, charged, parent)
  end
  if asked.owner then owned(asked.owner):add("p" .. asked.id) end
  permit.lease = ledger.arm(now_ms + asked.lease_ms, KIND.lease, asked.id)
  return permit
end

-- Gives the units of a lent permit back to it, under a new fence; there is room.
function ledger.retake(permit, claims, now_ms)
  permit.serial = permit.serial or permit.fence
  permit.fence = records.next("fence")
  permit.granted_ms = now_ms
  permit.lent = nil
  charge(claims)
  ledger.show(permit)
end

-- What `claims` ask for beyond what `parent` holds: that is not charged again.
function ledger.uncovered(claims, parent)
  if parent.lent then return claims end
  local held, names = ledger.claims(parent.names), {}
  for _, name in ipairs(claims.names) do
    if held.weights[name] == nil then names[#names + 1] = name end
  end
  return ledger.claims(names)
end

-- going on

-- Whether `fence` is, or for a permit that was lent has been, that of the permit.
function ledger.owns(permit, fence)
  return (permit.serial or permit.fence) <= fence and fence <= permit.fence
end

-- Lets the lease end at that moment, or when it would have if that is later: another may count on it.
function ledger.renew(permit, end_ms)
  local current_ms = records.expires_ms(permit)
  if current_ms ~= nil and current_ms >= end_ms then return end
  ledger.cancel(permit.lease)
  permit.lease = ledger.arm(end_ms, KIND.lease, permit.id)
end

-- ending

local function cooldown_after(limit, outcome)
  if outcome == "success" then return limit.success_ms end
  if outcome == "unused" then return 0 end
  return outcome == "cancelled" and limit.cancelled_ms or limit.failed_ms
end

-- Takes a permit out of a share; the weight that comes free with its last member, else nil.
local function leave(permit, number)
  local share = records.share(number)
  members(number):remove(permit.id)
  share.members = share.members - 1
  if share.members > 0 then return nil end
  records.drop_share(number)
  return share.weight
end

-- Takes the units of a permit out of its hand; which limits have units free again.
function ledger.put_back(permit, outcome, now_ms)
  local freed, claims = {}, ledger.claims(permit.names)
  for _, name in ipairs(claims.order) do
    local limit, weight = records.limit(name), claims.weights[name]
    local share = permit.shares and permit.shares[name]
    if share then weight = leave(permit, share) end
    if weight then
      local cooldown_ms = cooldown_after(limit, outcome)
      if cooldown_ms > 0 then
        ledger.arm(now_ms + cooldown_ms, KIND.hold, digits(weight) .. name)
        limit.cooling = limit.cooling + weight
      else
        limit.used = limit.used - weight
        freed[#freed + 1] = limit
      end
    end
  end
  return freed
end

-- Ends a permit; which limits have units free again. The others' cool, or the family keeps them.
function ledger.let_go(permit, how, outcome, now_ms)
  permit.ended = how
  records.drop_permit(permit)
  if permit.owner then owned(permit.owner):remove("p" .. permit.id) end
  ledger.cancel(permit.lease)
  if permit.lent then return {} end
  ledger.hide(permit)
  return ledger.put_back(permit, outcome, now_ms)
end

-- The units of a hold are free.
function ledger.cool_down(subject)
  local weight, limit = tonumber(subject:sub(1, 16)), records.limit(subject:sub(17))
  limit.used = limit.used - weight
  limit.cooling = limit.cooling - weight
  return limit
end
