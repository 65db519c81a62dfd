-- What one call reads and writes: a hash of records, and a sorted set that holds lists of texts in order.
--
-- Nothing is written before the call is over. Records are read when they are asked for and written back if
-- they are not what they were; lists are what is stored, less what was taken out, with what was put in. So a
-- call that fails has changed nothing, and what begins and ends within one call is never written at all.
--
-- Every list lives in the one sorted set, all of whose scores are 0: its members begin with the list's prefix
-- and go on with digits of a fixed width, so that the order of bytes is the order meant.

local store, records, ledger, granter, deadlock = {}, {}, {}, {}, {}
local queue, kernel, explain, clock, clients, words, readings = {}, {}, {}, {}, {}, {}, {}

local hash_key, list_key
local loaded, lists

local FIRST_CHUNK, LONGEST_CHUNK, MOST_ARGUMENTS = 2, 1024, 1000

store.calls = 0

local function call(...)
  store.calls = store.calls + 1
  return redis.call(...)
end

function store.open(hash, list)
  hash_key, list_key = hash, list
  loaded, lists = {}, {}
  store.calls = 0
end

-- records

local function pack(layout, record)
  local values = {}
  for at = 1, #layout do values[at] = record[layout[at]] or false end
  return cmsgpack.pack(values)
end

local function unpacked(layout, packed)
  local record, values = {}, cmsgpack.unpack(packed)
  for at = 1, #layout do
    local value = values[at]
    if value then record[layout[at]] = value end
  end
  return record
end

-- The record under `field`, or nil. The same table for as long as the call lasts.
function store.load(field, layout)
  local known = loaded[field]
  if known == nil then
    local packed = call("HGET", hash_key, field)
    known = {layout = layout, packed = packed, record = packed and unpacked(layout, packed) or nil}
    loaded[field] = known
  end
  return known.record
end

-- Reads what will be needed in one go, or a few.
function store.expect(fields, layout_of)
  local unread = {}
  for field in pairs(fields) do
    if loaded[field] == nil then unread[#unread + 1] = field end
  end
  for first = 1, #unread, MOST_ARGUMENTS do
    local found = call("HMGET", hash_key, unpack(unread, first, math.min(#unread, first + MOST_ARGUMENTS - 1)))
    for at, packed in ipairs(found) do
      local field = unread[first + at - 1]
      local layout = layout_of(field)
      loaded[field] = {layout = layout, packed = packed, record = packed and unpacked(layout, packed) or nil}
    end
  end
end

function store.put(field, layout, record)
  store.load(field, layout)
  loaded[field].record = record
  return record
end

function store.drop(field)
  loaded[field].record = nil
end

-- lists

-- Where a text is, or belongs; what is made later mostly comes last.
local function place(texts, text)
  local low, high = 1, #texts + 1
  if high == 1 or texts[high - 1] < text then return high end
  while low < high do
    local middle = math.floor((low + high) / 2)
    if texts[middle] < text then low = middle + 1 else high = middle end
  end
  return low
end

local List = {}
List.__index = List

function store.list(prefix)
  local list = lists[prefix]
  if list == nil then
    list = setmetatable({
      prefix = prefix,
      fetched = {}, -- what is stored, as far as it was read
      front = 1, -- before this all that was fetched is removed
      complete = false,
      chunk = FIRST_CHUNK,
      added = {}, -- in order
      back = {}, -- those of them that are stored, and were removed in between
      removed = {},
    }, List)
    lists[prefix] = list
  end
  return list
end

function List:stored(nth)
  local fetched = self.fetched
  while nth > #fetched and not self.complete do
    local from = #fetched > 0 and "(" .. self.prefix .. fetched[#fetched] or "[" .. self.prefix
    local found = call("ZRANGEBYLEX", list_key, from, "(" .. self.prefix .. "\255", "LIMIT", 0, self.chunk)
    for _, member in ipairs(found) do fetched[#fetched + 1] = member:sub(#self.prefix + 1) end
    self.complete = #found < self.chunk
    self.chunk = math.min(LONGEST_CHUNK, self.chunk * 4)
  end
  return fetched[nth]
end

function List:add(member)
  table.insert(self.added, place(self.added, member), member)
  if self.removed[member] then
    self.removed[member] = nil
    self.back[member] = true
  end
end

function List:remove(member)
  local at = place(self.added, member)
  if self.added[at] == member then
    table.remove(self.added, at)
    if not self.back[member] then return end
    self.back[member] = nil
  end
  self.removed[member] = true
end

-- The smallest member, or nil.
function List:first()
  local stored = self:stored(self.front)
  while stored and self.removed[stored] do
    self.front = self.front + 1
    stored = self:stored(self.front)
  end
  local added = self.added[1]
  if stored == nil or (added ~= nil and added < stored) then return added end
  return stored
end

-- All members in order, or those below `bound`. The list must not change meanwhile: see `members`.
function List:each(bound)
  local nth_stored, nth_added = self.front, 1
  return function()
    local stored, added = self:stored(nth_stored), self.added[nth_added]
    while stored and self.removed[stored] do
      nth_stored = nth_stored + 1
      stored = self:stored(nth_stored)
    end
    local member = stored
    if stored == nil or (added ~= nil and added < stored) then member = added end
    if member == nil or (bound ~= nil and member >= bound) then return nil end
    if member == stored then nth_stored = nth_stored + 1 end
    if member == added then nth_added = nth_added + 1 end
    return member
  end
end

-- The first `most` members below `bound`, as a table of their own.
function List:members(bound, most)
  local found = {}
  for member in self:each(bound) do
    if #found == most then break end
    found[#found + 1] = member
  end
  return found
end

-- The first member that begins with `text`, or nil.
function List:starting(text)
  local added = self.added[place(self.added, text)]
  if added and added:sub(1, #text) == text then return added end
  local from = self.prefix .. text
  for _, stored in ipairs(call("ZRANGEBYLEX", list_key, "[" .. from, "(" .. from .. "\255", "LIMIT", 0, 2)) do
    local member = stored:sub(#self.prefix + 1)
    if not self.removed[member] then return member end
  end
  return nil
end

-- How many members are below `bound`.
function List:count(bound)
  local count = call("ZLEXCOUNT", list_key, "[" .. self.prefix, "(" .. self.prefix .. bound)
  for member in pairs(self.removed) do
    if member < bound then count = count - 1 end
  end
  for _, member in ipairs(self.added) do
    if member < bound and not self.back[member] then count = count + 1 end
  end
  return count
end

-- writing

local function write(command, key, arguments)
  for first = 1, #arguments, MOST_ARGUMENTS do
    call(command, key, unpack(arguments, first, math.min(#arguments, first + MOST_ARGUMENTS - 1)))
  end
end

-- Writes what has changed.
function store.flush()
  local set, dropped, added, removed = {}, {}, {}, {}
  for field, known in pairs(loaded) do
    if known.record == nil then
      if known.packed then dropped[#dropped + 1] = field end
    else
      local packed = pack(known.layout, known.record)
      if packed ~= known.packed then
        set[#set + 1] = field
        set[#set + 1] = packed
      end
    end
  end
  for prefix, list in pairs(lists) do
    for _, member in ipairs(list.added) do
      if not list.back[member] then
        added[#added + 1] = "0"
        added[#added + 1] = prefix .. member
      end
    end
    for member in pairs(list.removed) do removed[#removed + 1] = prefix .. member end
  end
  write("HDEL", hash_key, dropped)
  write("HSET", hash_key, set)
  write("ZREM", list_key, removed)
  write("ZADD", list_key, added)
end

-- Every field that has a record now. It reads them all: only for looking the books through.
function store.fields()
  local found = {}
  for _, field in ipairs(call("HKEYS", hash_key)) do
    if loaded[field] == nil or loaded[field].record then found[#found + 1] = field end
  end
  for field, known in pairs(loaded) do
    if known.record and not known.packed then found[#found + 1] = field end
  end
  table.sort(found)
  return found
end

-- Every member of every list as of now, with its prefix; the same warning.
function store.members()
  local found = {}
  for _, member in ipairs(call("ZRANGE", list_key, 0, -1)) do found[member] = true end
  for prefix, list in pairs(lists) do
    for member in pairs(list.removed) do found[prefix .. member] = nil end
    for _, member in ipairs(list.added) do found[prefix .. member] = true end
  end
  return found
end

-- Forgets everything that is stored.
function store.clear()
  call("DEL", hash_key, list_key)
  loaded, lists = {}, {}
end

-- Whether the lists belong to the records: somebody may have deleted one of the two keys.
function store.marked(epoch)
  return call("ZSCORE", list_key, "@" .. epoch)
end

function store.mark(epoch)
  store.list("@"):add(epoch)
end
