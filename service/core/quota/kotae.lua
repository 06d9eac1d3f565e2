#!lua name=kotae1
-- Quotas: accounts and holds of one epoch. See redis.py, which loads this library.
--
-- All keys begin with KEYS[1], a hash tag, so they are on one node of a cluster. `E` is the epoch.
--   run, epoch, open   the server that the memory belongs to; its epoch; the epoch that admits holds
--   E:a:SUBJECT        account: open holds, then 42 numbers as in PostgreSQL, then the last charge
--                      that it contained when it was loaded
--   E:h:NAME           hold: subjects, starts, tokens, cost
--   E:x                names of holds by their time of expiry, in milliseconds
--   E:d                the last charge that was delivered
-- Values and arguments are MessagePack. Numbers are exact up to 2^53.

local TTL = 35 * 86400  -- seconds; longer than a month

local function fits(account, starts, limits, first, added)
  if added[1] > 0 and limits[first + 6] and account[1] >= limits[first + 6] then return false end
  local kinds, amounts = {0, 0, 1, 2, 1, 2}, {0, 1, 1, 1, 2, 2}
  for i = 1, 6 do
    local limit, kind, amount = limits[first + i - 1], kinds[i], amounts[i]
    local more = added[amount + 1]
    if limit and more > 0 then
      if more > limit then return false end
      local base, start = 1 + kind * 14, starts[kind + 1]
      if start == account[base + 8] then base = base + 7 end
      if start == account[base + 1]
        and account[base + 2 + amount] + account[base + 5 + amount] + more > limit then
        return false
      end
    end
  end
  return true
end

local function add(account, starts, part, requests, tokens, cost)
  for kind = 0, 2 do
    local base, start = 1 + kind * 14, starts[kind + 1]
    local known = true
    if start > account[base + 1] then
      if requests > 0 then
        for i = 1, 7 do
          account[base + 7 + i] = account[base + i]
          account[base + i] = 0
        end
        account[base + 1] = start
      else
        known = false
      end
    elseif start == account[base + 8] then
      base = base + 7
    elseif start < account[base + 1] then
      known = false
    end
    if known then
      base = base + part
      account[base + 2] = account[base + 2] + requests
      account[base + 3] = account[base + 3] + tokens
      account[base + 4] = account[base + 4] + cost
    end
  end
end

local function knows(account, starts)
  for kind = 0, 2 do
    local base = 1 + kind * 14
    if starts[kind + 1] < account[base + 1] and starts[kind + 1] ~= account[base + 8] then
      return false
    end
  end
  return true
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The accounts and holds that one call uses.
local function open_memory(tag, epoch)
  local memory = {accounts = {}, changed = {}}
  local prefix = tag .. ':' .. epoch
  function memory.key(name) return prefix .. ':' .. name end
  function memory.account(subject)
    local account = memory.accounts[subject]
    if account == nil then
      local packed = redis.call('GET', memory.key('a:' .. subject))
      account = packed and cmsgpack.unpack(packed)
      memory.accounts[subject] = account
    end
    return account
  end
  function memory.hold(name)
    local packed = redis.call('GET', memory.key('h:' .. name))
    return packed and cmsgpack.unpack(packed)
  end
  function memory.put(name, hold, expires_at)
    redis.call('SET', memory.key('h:' .. name), cmsgpack.pack(hold), 'EX', TTL)
    if expires_at then redis.call('ZADD', memory.key('x'), expires_at, name) end
  end
  function memory.change(subject, starts, part, requests, tokens, cost)
    local account = memory.account(subject)
    if account then
      add(account, starts, part, requests, tokens, cost)
      memory.changed[subject] = account
    end
    return account
  end
  function memory.remove(name)
    local hold = memory.hold(name)
    if not hold then return 0 end
    redis.call('DEL', memory.key('h:' .. name))
    redis.call('ZREM', memory.key('x'), name)
    for _, subject in ipairs(hold[1]) do
      local account = memory.change(subject, hold[2], 3, -1, -hold[3], -hold[4])
      if account then account[1] = account[1] - 1 end
    end
    return 1
  end
  function memory.save()
    for subject, account in pairs(memory.changed) do
      redis.call('SET', memory.key('a:' .. subject), cmsgpack.pack(account), 'EX', TTL)
    end
  end
  return memory
end

local function is_current(tag, run, epoch)
  return redis.call('GET', tag .. ':run') == run and redis.call('GET', tag .. ':epoch') == epoch
end

local function list_states(memory, subjects)
  local states = {}
  for _, subject in ipairs(subjects) do
    local account = memory.account(subject)
    if account then states[#states + 1] = {subject, account} end
  end
  return states
end

-- run, epoch, milliseconds to live, operations → replies and accounts; nothing if it is closed
local function apply(keys, args)
  local tag, run, epoch = keys[1], args[1], args[2]
  if not is_current(tag, run, epoch) or redis.call('GET', tag .. ':open') ~= epoch then
    return false
  end
  local memory, replies, touched, seen = open_memory(tag, epoch), {}, {}, {}
  for index, op in ipairs(cmsgpack.unpack(args[4])) do
    local kind, name, subjects, limits, starts, tokens, cost =
      op[1], op[2], op[3], op[4], op[5], op[6], op[7]
    local hold = name ~= '' and memory.hold(name)
    local reply = {'ok'}
    if kind == 'release' then
      memory.remove(name)
    elseif kind == 'grow' and not hold then
      reply = {'absent'}
    elseif kind ~= 'hold' or not hold then
      local added = {kind == 'hold' and 1 or 0, tokens, cost}
      if kind == 'grow' then added = {0, tokens - hold[3], cost - hold[4]} end
      for i, subject in ipairs(subjects) do
        local account = memory.account(subject)
        if kind ~= 'grow' and not (account and knows(account, starts)) then
          reply = {'missing'}
          break
        elseif kind ~= 'read' and reply[1] == 'ok' and account
          and not fits(account, starts, limits, 7 * i - 6, added) then
          reply = {'full'}
        end
      end
      if reply[1] == 'full' then reply[2] = list_states(memory, subjects) end
      if reply[1] == 'ok' and kind ~= 'read' then
        local expires_at = kind == 'hold' and now_ms() + tonumber(args[3])
        memory.put(name, {subjects, starts, tokens, cost}, expires_at)
        for _, subject in ipairs(subjects) do
          local account = memory.change(subject, starts, 3, added[1], added[2], added[3])
          if account then account[1] = account[1] + added[1] end
        end
      end
    end
    -- Packed at once: later operations change the same accounts.
    replies[index] = cmsgpack.pack(reply)
    for _, subject in ipairs(subjects) do
      if not seen[subject] then
        seen[subject] = true
        touched[#touched + 1] = subject
      end
    end
  end
  memory.save()
  return {replies, cmsgpack.pack(list_states(memory, touched))}
end

-- run, epoch, starts, last charge, [subject, used amounts of the three windows]
local function load_accounts(keys, args)
  local tag, run, epoch = keys[1], args[1], args[2]
  if not is_current(tag, run, epoch) then return 0 end
  local memory, starts = open_memory(tag, epoch), cmsgpack.unpack(args[3])
  local holds = {}
  for _, name in ipairs(redis.call('ZRANGE', memory.key('x'), 0, -1)) do
    holds[#holds + 1] = memory.hold(name)
  end
  for _, item in ipairs(cmsgpack.unpack(args[5])) do
    local subject, used = item[1], item[2]
    local account = memory.account(subject)
    local is_new = not account
    if is_new then
      account = {}
      for i = 1, 43 do account[i] = 0 end
      account[44] = tonumber(args[4])
    end
    local open = 0
    for kind = 0, 2 do
      local base, start = 1 + kind * 14, starts[kind + 1]
      if is_new or (start < account[base + 1] and start ~= account[base + 8]) then
        if not is_new then base = base + 7 end
        account[base + 1] = start
        for i = 1, 3 do
          account[base + 1 + i], account[base + 4 + i] = used[kind + 1][i], 0
        end
        for _, hold in ipairs(holds) do
          for _, other in ipairs(hold[1]) do
            if other == subject then
              if kind == 0 then open = open + 1 end
              if hold[2][kind + 1] == start then
                account[base + 5] = account[base + 5] + 1
                account[base + 6] = account[base + 6] + hold[3]
                account[base + 7] = account[base + 7] + hold[4]
              end
            end
          end
        end
      end
    end
    if is_new then account[1] = open end
    memory.accounts[subject], memory.changed[subject] = account, account
  end
  memory.save()
  return 1
end

-- run, epoch, milliseconds to live, holds
local function restore(keys, args)
  local tag, run, epoch = keys[1], args[1], args[2]
  if not is_current(tag, run, epoch) then return 0 end
  local memory, expires_at = open_memory(tag, epoch), now_ms() + tonumber(args[3])
  for _, hold in ipairs(cmsgpack.unpack(args[4])) do
    local name = table.remove(hold, 1)
    if not memory.hold(name) then
      memory.put(name, hold, expires_at)
      for _, subject in ipairs(hold[1]) do
        local account = memory.change(subject, hold[2], 3, 1, hold[3], hold[4])
        if account then account[1] = account[1] + 1 end
      end
    end
  end
  memory.save()
  return 1
end

-- run, epoch, [id, names, [subject, starts, requests, tokens, cost]]
local function settle(keys, args)
  local tag, run, epoch = keys[1], args[1], args[2]
  if not is_current(tag, run, epoch) then return false end
  local memory = open_memory(tag, epoch)
  local delivered = tonumber(redis.call('GET', memory.key('d')) or '0')
  for _, entry in ipairs(cmsgpack.unpack(args[3])) do
    if entry[1] > delivered then
      delivered = entry[1]
      for _, name in ipairs(entry[2]) do memory.remove(name) end
      for _, charge in ipairs(entry[3]) do
        local account = memory.account(charge[1])
        if account and delivered > account[44] then
          memory.change(charge[1], charge[2], 0, charge[3], charge[4], charge[5])
        end
      end
    end
  end
  memory.save()
  redis.call('SET', memory.key('d'), string.format('%.0f', delivered), 'EX', TTL)
  return string.format('%.0f', delivered)
end

-- run, epoch, milliseconds to live, names → 1 if holds are admitted
local function keep(keys, args)
  local tag, run, epoch = keys[1], args[1], args[2]
  if not is_current(tag, run, epoch) then return 0 end
  local memory, expires_at = open_memory(tag, epoch), now_ms() + tonumber(args[3])
  for _, name in ipairs(cmsgpack.unpack(args[4])) do
    redis.call('ZADD', memory.key('x'), 'XX', expires_at, name)
  end
  return redis.call('GET', tag .. ':open') == epoch and 1 or 0
end

-- run, epoch, count → number of holds that have expired
local function expire(keys, args)
  local tag, run, epoch = keys[1], args[1], args[2]
  if not is_current(tag, run, epoch) then return 0 end
  local memory, removed = open_memory(tag, epoch), 0
  local names = redis.call(
    'ZRANGEBYSCORE', memory.key('x'), '-inf', now_ms(), 'LIMIT', 0, tonumber(args[3])
  )
  for _, name in ipairs(names) do removed = removed + memory.remove(name) end
  memory.save()
  return removed
end

-- run → the epoch of this memory, and whether it admits holds
local function read_state(keys, args)
  local tag = keys[1]
  local epoch = redis.call('GET', tag .. ':epoch')
  if not epoch or redis.call('GET', tag .. ':run') ~= args[1] then return {'-1', 0} end
  return {epoch, redis.call('GET', tag .. ':open') == epoch and 1 or 0}
end

-- run, epoch: begins the epoch, unless a later one has begun
local function begin(keys, args)
  local tag, run, epoch = keys[1], args[1], args[2]
  if is_current(tag, run, epoch) then return 1 end
  local last = redis.call('GET', tag .. ':epoch')
  if last and tonumber(last) >= tonumber(epoch) then return 0 end
  redis.call('SET', tag .. ':run', run)
  redis.call('SET', tag .. ':epoch', epoch)
  redis.call('DEL', tag .. ':open')
  return 1
end

-- run, epoch: admits holds
local function open(keys, args)
  if not is_current(keys[1], args[1], args[2]) then return 0 end
  redis.call('SET', keys[1] .. ':open', args[2])
  return 1
end

redis.register_function('kotae1_apply', apply)
redis.register_function('kotae1_load', load_accounts)
redis.register_function('kotae1_restore', restore)
redis.register_function('kotae1_settle', settle)
redis.register_function('kotae1_keep', keep)
redis.register_function('kotae1_expire', expire)
redis.register_function('kotae1_state', read_state)
redis.register_function('kotae1_begin', begin)
redis.register_function('kotae1_open', open)
