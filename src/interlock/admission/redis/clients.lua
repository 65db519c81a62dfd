-- Those who ask: one for each process. What they have to be told waits in an inbox until they say that they
-- have it, so that a lost answer is given again; a message on a channel is only a hint to come and look.
--
-- Requests are numbered by their client. A number that is not greater than the last one is a request that was
-- overtaken, on a connection that the client has given up: nothing of it is done (R19).

local LEAST_SILENCE = 5000

local hints

function clients.open()
  hints = {}
end

local function silence(client)
  return math.max(client.lease_ms, LEAST_SILENCE)
end

-- Notes that the client is there; whether it was known, and whether the request is to be carried out.
function clients.greet(request, now_ms)
  local client = records.client(request.client)
  local known = client ~= nil
  if not known then
    client = records.make_client({id = request.client, number = 0, inbox = request.seen,
      heard = request.seen})
    client.timer = ledger.arm(now_ms + math.max(request.lease, LEAST_SILENCE), KIND.client, client.id)
  elseif request.number <= client.number then
    return known, false
  end
  if client.lease_ms ~= request.lease then
    if client.lease_ms then by_lease():remove(digits(client.lease_ms) .. client.id) end
    by_lease():add(digits(request.lease) .. client.id)
    client.lease_ms = request.lease
  end
  client.number, client.seen_ms = request.number, now_ms
  if client.heard < math.min(client.inbox, request.seen) then
    for _, member in ipairs(inbox(client.id):members(digits(request.seen + 1))) do
      inbox(client.id):remove(member)
    end
  end
  client.heard = math.max(client.heard, request.seen)
  client.inbox = math.max(client.inbox, request.seen) -- an older copy of the state may have numbered less
  return known, true
end

-- telling

function clients.tell(id, ...)
  local client = records.client(id)
  if client == nil then return end
  client.inbox = client.inbox + 1
  inbox(id):add(digits(client.inbox) .. cmsgpack.pack({...}))
  hints[id] = client.inbox
end

-- What is left of the lease of a permit that was granted to somebody who comes to hear of it only now.
local function left_ms(id, fence, now_ms)
  local permit = records.permit(id)
  if permit == nil or permit.fence ~= fence then return 0 end
  return math.max(0, (records.expires_ms(permit) or now_ms) - now_ms)
end

-- Adds what the client has not been told yet to `answers`; the number of the last of it.
function clients.deliver(request, answers, now_ms)
  local client = records.client(request.client)
  if client == nil then return request.seen end -- it came too late even to be told that it came late
  for _, member in ipairs(client.inbox > client.heard and inbox(client.id):members() or {}) do
    if member > digits(request.seen + 1) then
      local entry = cmsgpack.unpack(member:sub(17))
      if entry[1] == "granted" then
        local _, ask, id, fence, granted_ms = unpack(entry)
        entry = {"granted", ask, fence, granted_ms, left_ms(id, fence, now_ms)}
      end
      answers[#answers + 1] = entry
    end
  end
  return client.inbox
end

function clients.publish(root, caller)
  for id, number in pairs(hints) do
    if id ~= caller then call("PUBLISH", root .. ":hint:" .. id, number) end
  end
end

-- Those who hold a permit hear once that it has ended, but for `caller`, who said so.
function clients.tell_ended(permit, how, caller)
  if permit.told then return end
  permit.told = true
  for _, taker in ipairs(permit.takers or {}) do
    if taker ~= caller then clients.tell(taker, "ended", permit.id, permit.fence, how) end
  end
end

-- having

function clients.take(permit, id)
  permit.takers = permit.takers or {}
  for _, taker in ipairs(permit.takers) do
    if taker == id then return end
  end
  table.insert(permit.takers, id)
end

-- The client never came to use the permit: it is free again, unless somebody else has it, too.
function clients.give_back(permit, id, now_ms)
  for at, taker in ipairs(permit.takers or {}) do
    if taker == id then
      table.remove(permit.takers, at)
      break
    end
  end
  if #(permit.takers or {}) == 0 then kernel.release(permit, "unused", now_ms) end
end

-- asking: a waiter has one ask or, where several want one key, several. Each is client, number, and
-- `deadline_ms`, with a `timer` of its own if it is less patient than the waiter.

function clients.ask(waiter, id, number, deadline_ms)
  waiter.asks = waiter.asks or {}
  local ask = {client = id, number = number, deadline_ms = deadline_ms}
  local waiter_ms = records.due_of(waiter.timer)
  if deadline_ms and (waiter_ms == nil or deadline_ms < waiter_ms) then
    ask.timer = ledger.arm(deadline_ms, KIND.ask, digits(number) .. id)
  end
  table.insert(waiter.asks, ask)
  asked(id):add(digits(number) .. waiter.ref)
end

-- The waiter for which the client asked under this number, and its place among those who ask for it.
function clients.find(id, number)
  local member = asked(id):starting(digits(number))
  local waiter = member and records.waiter(member:sub(17))
  for at, ask in ipairs(waiter and waiter.asks or {}) do
    if ask.client == id and ask.number == number then return waiter, at end
  end
  return nil
end

-- Takes one ask away from its waiter.
function clients.forget(waiter, at)
  local ask = table.remove(waiter.asks, at)
  ledger.cancel(ask.timer)
  asked(ask.client):remove(digits(ask.number) .. waiter.ref)
  return ask
end

-- All asks of a waiter that does not wait any more.
function clients.forget_all(waiter)
  local asks = {}
  while waiter.asks and #waiter.asks > 0 do asks[#asks + 1] = clients.forget(waiter, 1) end
  return asks
end

-- leaving

-- A client that was silent for its lease waits for nothing any more, the youngest first: room that one wait
-- gives up is not for another of them. What it was granted and never heard of goes back. Lent permits go on
-- waiting for their units, they end with their leases.
local function leave(client, now_ms)
  local asks = asked(client.id):members()
  for at = #asks, 1, -1 do
    local waiter, place_of = clients.find(client.id, tonumber(asks[at]:sub(1, 16)))
    if waiter then
      clients.forget(waiter, place_of)
      if #waiter.asks == 0 and not waiter.reclaims then kernel.withdraw(waiter, now_ms) end
    end
  end
  words.carry_out(now_ms)
  for _, member in ipairs(inbox(client.id):members()) do
    local entry = cmsgpack.unpack(member:sub(17))
    local permit = entry[1] == "granted" and records.permit(entry[3])
    if permit and permit.fence == entry[4] then clients.give_back(permit, client.id, now_ms) end
  end
  words.carry_out(now_ms)
  for _, member in ipairs(inbox(client.id):members()) do inbox(client.id):remove(member) end
  by_lease():remove(digits(client.lease_ms) .. client.id)
  records.drop_client(client.id)
end

function clients.fall_silent(id, due_ms)
  local client = records.client(id)
  local end_ms = client.seen_ms + silence(client)
  if end_ms > due_ms then
    client.timer = ledger.arm(end_ms, KIND.client, id)
  else
    leave(client, due_ms)
  end
end
