-- One call: what a client says in one step of its loop, and what there is to tell it.

local VERSION = 1

local function is_request(request)
  return type(request) == "table" and request.v == VERSION and type(request.client) == "string"
    and #request.client <= 64 and request.client:match("^[%w_-]+$") ~= nil
    and is_whole(request.lease, 1, LONGEST_LEASE_MS) and type(request.server) == "string"
    and is_whole(request.seen, 0, UNLIMITED) and type(request.ops) == "table"
    and (request.number == nil or is_whole(request.number, 1, UNLIMITED))
end

-- Reads in one go what most requests will ask for.
local function foresee(ops)
  local fields = {}
  for _, op in ipairs(ops) do
    if type(op) == "table" and op[1] == "acquire" and is_text(op[3]) and are_names(op[4]) then
      fields["p" .. op[3]], fields["w=" .. op[3]] = true, true
      for _, name in ipairs(op[4]) do fields["l" .. name] = true end
    elseif type(op) == "table" and op[1] == "release" and is_text(op[2]) then
      fields["p" .. op[2]] = true
    end
  end
  store.expect(fields, records.layout_of)
end

local function due_in(now_ms)
  local due_ms = records.due_of(timers():first())
  return due_ms and math.max(0, due_ms - now_ms)
end

-- What has to happen before the request is looked at: the moment, who asks, and what fell due by then.
local function begin(request)
  local known, fresh = false, true
  local now_ms = clock.start(request)
  if request.number then known, fresh = clients.greet(request, now_ms) end
  local before = records.meta().timers .. (timers():first() or "")
  kernel.tick(now_ms, words.fall_due)
  words.carry_out(now_ms)
  local changed = before ~= records.meta().timers .. (timers():first() or "")
  return {now_ms = now_ms, known = known, fresh = fresh, changed = changed}
end

local function carry_on(root, request, begun)
  local now_ms, changed = begun.now_ms, begun.changed
  if begun.fresh then
    foresee(request.ops)
    changed = words.carry_on(request, request.ops, now_ms) or changed
  end
  local meta, said = records.meta(), words.answers()
  if changed then meta.version = meta.version + 1 end
  local last = request.number and clients.deliver(request, said, now_ms) or request.seen
  local known = begun.known and records.client(request.client) ~= nil
  clients.publish(root, request.client)
  store.flush()
  return {epoch = meta.epoch, now = now_ms, time = meta.time_ms, known = known, stale = not begun.fresh,
    answers = said, inbox = last, due = due_in(now_ms), quarantine = clock.quarantine_left(),
    calls = TESTING and store.calls or nil}
end

local function reason(failure)
  return type(failure) == "table" and (failure.message or failure.err) or tostring(failure)
end

-- keys: the records, the lists; arguments: what comes before every channel's name, the request.
local function apply(keys, arguments)
  local readable, request = pcall(cmsgpack.unpack, arguments[2])
  if not (readable and is_request(request)) then return redis.error_reply("INTERLOCK this is no request") end
  store.open(keys[1], keys[2])
  for _, module in ipairs({ledger, granter, queue, clients, words}) do module.open() end
  local sound, begun = pcall(begin, request)
  if not sound then
    -- No call would ever get past this: without the state an epoch begins, and holders say what they hold.
    store.clear()
    redis.log(redis.LOG_WARNING, "interlock gave up the state in " .. keys[1] .. ": " .. reason(begun))
    return redis.error_reply("INTERLOCK_STATE was damaged and has been given up: " .. reason(begun))
  end
  local done, reply = pcall(carry_on, arguments[1], request, begun)
  if done then return cmsgpack.pack(reply) end
  return redis.error_reply("INTERLOCK " .. reason(reply))
end

redis.register_function{function_name = NAME, callback = apply, flags = {"allow-oom"}}
